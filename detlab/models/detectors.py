"""Detectors put together from visible parts: backbone, anchors, RoI pools and heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from detlab.errors import UserError
from detlab.models.backbones import feature_maps
from detlab.models.box_head import RegionMLPHead
from detlab.models.builders import call_builder
from detlab.models.rpn import SampledRPN
from detlab.models.transform import BoxMaskTransform
from detlab.models.weights import start_from
from detlab.ops.anchors import AnchorGenerator as FloatAnchorGenerator
from detlab.ops.roi_align import MultiScaleRoIAlign as RegionPool
from detlab.structures import IOU_TYPES, IouType


def check_parts(
    backbone: nn.Module, anchor_generator: AnchorGenerator, roi_pools: dict[str, MultiScaleRoIAlign | None]
) -> None:
    """Refuse parts that do not fit each other, before torchvision fails in the middle of a step.

    Raises:
        UserError: the backbone does not say its `out_channels`, as many anchor sizes as there are not maps, levels with
            different numbers of anchors a cell (they share one head), or a pool of maps that are not there.
    """
    maps = feature_maps(backbone)
    channels = {shape[0] for shape in maps.values()}
    if channels != {getattr(backbone, "out_channels", None)}:
        raise UserError(
            f"model.backbone: its maps have {sorted(channels)} channels, but its out_channels is "
            f"{getattr(backbone, 'out_channels', 'not set')}; all maps need the same number."
        )
    sizes, ratios = anchor_generator.sizes, anchor_generator.aspect_ratios
    if not len(sizes) == len(ratios) == len(maps):
        raise UserError(
            f"model.anchor_generator: {len(sizes)} tuples of sizes and {len(ratios)} of aspect_ratios for the "
            f"{len(maps)} maps ({', '.join(maps)}) of the backbone; give one of each a map."
        )
    per_cell = anchor_generator.num_anchors_per_location()
    if len(set(per_cell)) != 1:
        raise UserError(
            f"model.anchor_generator: {per_cell} anchors a cell on the {len(maps)} maps, but the RPN head, shared by all "
            "maps, needs the same number on each."
        )
    for key, pool in roi_pools.items():
        unknown = [name for name in pool.featmap_names if name not in maps] if pool is not None else []
        if unknown:
            raise UserError(f"model.{key}.featmap_names: no map {unknown[0]!r}; the backbone has {', '.join(maps)}.")


# The modules of torchvision's detectors whose outputs become boxes, anchors and losses, which need more than 8 bits.
PRECISE = (
    "backbone", "head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor", "roi_heads.keypoint_predictor",
)  # fmt: skip


def _outputs_in_float32(model: nn.Module) -> None:
    """Make the precise modules return float32, not less, under autocast.

    torchvision makes its anchors in the maps' type: in bfloat16 they would be off by pixels. Where the anchors do not depend on it
    the maps stay as they are.
    """
    rpn: Any = getattr(model, "rpn", None)
    precise = [
        name
        for name in PRECISE
        if name != "backbone" or not isinstance(rpn and rpn.anchor_generator, FloatAnchorGenerator)
    ]

    def float32(output: Any) -> Any:
        if isinstance(output, Tensor):
            return output.to(torch.promote_types(output.dtype, torch.float32))
        if isinstance(output, dict):
            return type(output)((key, float32(value)) for key, value in output.items())
        return type(output)(float32(value) for value in output)

    for name, module in model.named_modules():
        if name in precise:
            module.register_forward_hook(lambda _module, _inputs, output: float32(output))
        if name == "roi_heads.keypoint_predictor":
            # torchvision's keypoint loss views it, which the memory order that goes with autocast does not allow.
            module.register_forward_hook(lambda _module, _inputs, output: output.contiguous())


def _start_small(heads: Any) -> None:
    """Initial values of the predictors as in Detectron2: small, so that a new head begins with an even guess.

    torchvision's own start gives a mask loss of about 8 on untrained features, where an even guess has 0.69. Of a keypoint an even
    guess over the 56 x 56 places of its region costs 8.05.
    """
    nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.01)
    nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.001)
    nn.init.zeros_(heads.box_predictor.cls_score.bias)
    nn.init.zeros_(heads.box_predictor.bbox_pred.bias)
    if heads.has_mask():
        nn.init.normal_(heads.mask_predictor.mask_fcn_logits.weight, std=0.001)
    if heads.has_keypoint():
        nn.init.normal_(heads.keypoint_predictor.kps_score_lowres.weight, std=0.001)


def rcnn(
    *,
    num_classes: int,
    backbone: nn.Module,
    anchor_generator: AnchorGenerator,
    box_roi_pool: MultiScaleRoIAlign,
    mask_roi_pool: MultiScaleRoIAlign | None,
    mask_hidden_channels: int | None,
    # Not required, since the configs of checkpoints of before there were keypoints lack them.
    keypoint_roi_pool: MultiScaleRoIAlign | None = None,
    keypoint_layers: Sequence[int] | None = None,
    num_keypoints: int | None = None,
    weights: str,
    norm: str,
    norm_eps: float,
    trainable_backbone_layers: int | Literal["all"],
    min_size: int | Sequence[int],
    max_size: int,
    enlarge_to: int | None,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    rpn_pre_nms_top_n_train: int,
    rpn_pre_nms_top_n_test: int,
    rpn_post_nms_top_n_train: int,
    rpn_post_nms_top_n_test: int,
    rpn_nms_thresh: float,
    rpn_fg_iou_thresh: float,
    rpn_bg_iou_thresh: float,
    rpn_batch_size_per_image: int,
    rpn_positive_fraction: float,
    rpn_score_thresh: float,
    # Nor these, since older ones lack them; they change no result.
    rpn_sampled_gradient: bool = True,
    rpn_batched: bool | None = None,
    masks_in_boxes: bool = True,
    # Nor this: older ones padded to 32.
    size_divisible: int = 32,
    box_score_thresh: float,
    box_nms_thresh: float,
    box_detections_per_img: int,
    box_fg_iou_thresh: float,
    box_bg_iou_thresh: float,
    box_batch_size_per_image: int,
    box_positive_fraction: float,
) -> FasterRCNN:
    """Faster R-CNN (Ren et al., 2015), with a `mask_roi_pool` Mask R-CNN and with a `keypoint_roi_pool` Keypoint R-CNN (He et al.,
    2017), of torchvision's modules.

    The arguments are torchvision's, and so are the modules' names: state dicts of `FasterRCNN`, `MaskRCNN` and `KeypointRCNN` load.

    Args:
        num_classes: with the background, K + 1; from the class map, never from a user.
        backbone: `[B, 3, H, W]` to one map or a dict of maps, with `out_channels`.
        anchor_generator: sizes in pixels of the resized image and aspect ratios (height / width), one tuple a map.
        box_roi_pool: for the box head.
        mask_roi_pool: for the mask head; None for a detector without masks.
        mask_hidden_channels: of the mask predictor (256 in the tutorial); None where there is no mask head.
        keypoint_roi_pool: for the keypoint head, which finds each point among 4 x 4 as many places as the pool's output has;
            None for a detector without keypoints.
        keypoint_layers: channels of the keypoint head's convolutions, one after the other; None where there is no such head.
        num_keypoints: how many points an object has; from the data set, never from a user; None where its objects have none.
        weights: `none`, `imagenet` for the backbone, `coco` for all but the predictors, or a file with a detlab checkpoint or
            a state dict.
        norm: that of the backbone, which interpolates it.
        norm_eps: that of the backbone, which interpolates it.
        trainable_backbone_layers: that of the backbone, which interpolates it.
        min_size: the shorter side that images are resized to, in pixels; of several, training draws one for each image.
        max_size: what the longer side may not exceed, in pixels.
        rpn_sampled_gradient: whether the gradient of the RPN's head is computed where it is not zero; else everywhere, as by
            torchvision.
        rpn_batched: whether the RPN matches and sorts out all images of a batch at once; None for on a GPU alone.
        masks_in_boxes: whether an evaluation takes masks from their boxes, without pasting them into whole images.
        enlarge_to: where `min_size` is less than this, both sizes grow by the same factor until it is this; None for never.
        size_divisible: what a batch's height and width are padded to multiples of, in pixels.
        image_mean: of red, green, blue in 0..1.
        image_std: of red, green, blue in 0..1.

    Returns:
        torchvision's detector, with `iou_types`.

    Raises:
        UserError: parts that do not fit each other, weights that cannot be had or do not fit.
    """
    pools = {"box_roi_pool": box_roi_pool, "mask_roi_pool": mask_roi_pool, "keypoint_roi_pool": keypoint_roi_pool}
    check_parts(backbone, anchor_generator, pools)
    if (mask_roi_pool is None) != (mask_hidden_channels is None):
        raise UserError(
            "model.mask_roi_pool, model.mask_hidden_channels: a mask head needs both; without one, both are null."
        )
    if (keypoint_roi_pool is None) != (not keypoint_layers):
        raise UserError(
            "model.keypoint_roi_pool, model.keypoint_layers: a keypoint head needs both; without one, both are null."
        )
    if keypoint_roi_pool is not None and num_keypoints is None:
        raise UserError(
            "model: it learns keypoints, but the data set has none; take another model or add the missing annotations."
        )
    sides = [min_size] if isinstance(min_size, int) else list(min_size)
    factor = max(1.0, enlarge_to / min(sides)) if enlarge_to is not None else 1.0
    model = FasterRCNN(
        backbone,
        num_classes,
        min_size=tuple(round(side * factor) for side in sides),  # pyright: ignore[reportArgumentType]
        max_size=round(max_size * factor),
        image_mean=list(image_mean),
        image_std=list(image_std),
        size_divisible=size_divisible,
        rpn_anchor_generator=anchor_generator,
        rpn_pre_nms_top_n_train=rpn_pre_nms_top_n_train,
        rpn_pre_nms_top_n_test=rpn_pre_nms_top_n_test,
        rpn_post_nms_top_n_train=rpn_post_nms_top_n_train,
        rpn_post_nms_top_n_test=rpn_post_nms_top_n_test,
        rpn_nms_thresh=rpn_nms_thresh,
        rpn_fg_iou_thresh=rpn_fg_iou_thresh,
        rpn_bg_iou_thresh=rpn_bg_iou_thresh,
        rpn_batch_size_per_image=rpn_batch_size_per_image,
        rpn_positive_fraction=rpn_positive_fraction,
        rpn_score_thresh=rpn_score_thresh,
        box_roi_pool=box_roi_pool,
        box_score_thresh=box_score_thresh,
        box_nms_thresh=box_nms_thresh,
        box_detections_per_img=box_detections_per_img,
        box_fg_iou_thresh=box_fg_iou_thresh,
        box_bg_iou_thresh=box_bg_iou_thresh,
        box_batch_size_per_image=box_batch_size_per_image,
        box_positive_fraction=box_positive_fraction,
    )
    if masks_in_boxes:
        model.transform.__class__ = BoxMaskTransform
    if rpn_sampled_gradient or rpn_batched is not False:
        model.rpn = SampledRPN(
            anchor_generator,
            model.get_submodule("rpn.head"),
            fg_iou_thresh=rpn_fg_iou_thresh,
            bg_iou_thresh=rpn_bg_iou_thresh,
            batch_size_per_image=rpn_batch_size_per_image,
            positive_fraction=rpn_positive_fraction,
            pre_nms_top_n={"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
            post_nms_top_n={"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
            nms_thresh=rpn_nms_thresh,
            score_thresh=rpn_score_thresh,
        )
        model.rpn.sampled_gradient, model.rpn.batched = rpn_sampled_gradient, rpn_batched
    # Any: a module's attributes are Tensor or Module to the type checker.
    heads: Any = model.roi_heads
    if isinstance(box_roi_pool, RegionPool) and type(heads.box_head) is TwoMLPHead:
        heads.box_head.__class__ = RegionMLPHead
        box_roi_pool.defers = True
    out_channels: int = backbone.out_channels  # type: ignore[assignment]
    iou_types: tuple[IouType, ...] = ("bbox",)
    if mask_roi_pool is not None and mask_hidden_channels is not None:
        heads.mask_roi_pool = mask_roi_pool
        heads.mask_head = MaskRCNNHeads(out_channels, (256, 256, 256, 256), 1)
        heads.mask_predictor = MaskRCNNPredictor(256, mask_hidden_channels, num_classes)
        iou_types = (*iou_types, "segm")
    if keypoint_roi_pool is not None and keypoint_layers and num_keypoints is not None:
        heads.keypoint_roi_pool = keypoint_roi_pool
        heads.keypoint_head = KeypointRCNNHeads(out_channels, tuple(keypoint_layers))
        heads.keypoint_predictor = KeypointRCNNPredictor(keypoint_layers[-1], num_keypoints)
        iou_types = (*iou_types, "keypoints")
    _outputs_in_float32(model)
    _start_small(heads)
    model.iou_types = iou_types  # type: ignore[assignment]
    start_from(model, weights)
    return model


def _without_background(model: nn.Module) -> None:
    """Make a model predict objects alone: RetinaNet and FCOS score class 0 like any other, though no target ever has it."""

    def objects(output: Any) -> Any:
        if isinstance(output, dict):  # of losses
            return output
        return [{key: value[found["labels"] > 0] for key, value in found.items()} for found in output]

    model.register_forward_hook(lambda _module, _inputs, output: objects(output))


def wrapped(
    *,
    num_classes: int,
    num_keypoints: int | None = None,
    model: Callable[..., nn.Module],
    iou_types: Sequence[IouType],
    weights: str,
) -> nn.Module:
    """A raw torchvision detector as one of detlab's; torchvision downloads nothing for it.

    RetinaNet, FCOS and SSD count the background as class 0, as the R-CNNs do: labels are 1..K for all of them, and
    predictions of class 0 are dropped.

    Args:
        num_classes: with the background, K + 1; from the class map, never from a user.
        num_keypoints: how many points an object has, for a builder that takes it; from the data set, never from a user.
        model: torchvision's builder (or a function like it) with its arguments, a node with `_partial_: true`.
        iou_types: what it predicts.
        weights: `none`, or a file with a detlab checkpoint or a state dict.

    Returns:
        What the builder makes, with `iou_types`.

    Raises:
        UserError: an argument that makes torchvision download or that its builder would ignore, an unknown type of
            prediction, weights that do not fit.
    """
    unknown = [name for name in iou_types if name not in IOU_TYPES]
    if unknown or not iou_types:
        raise UserError(f"model.iou_types: {list(iou_types)} is not allowed; allowed: some of {', '.join(IOU_TYPES)}.")
    built = call_builder(model, num_classes, num_keypoints)
    built.iou_types = tuple(iou_types)  # type: ignore[assignment]
    _outputs_in_float32(built)
    _without_background(built)
    start_from(built, weights)
    return built
