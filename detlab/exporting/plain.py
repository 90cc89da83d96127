"""How is a run's model rebuilt where there is no detlab: which lines of torchvision make the modules that its weights fit?"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pprint import pformat
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign

from detlab import __version__
from detlab.errors import UserError
from detlab.models.anchors import resize_of, shorter_sides
from detlab.models.backbones import backbone
from detlab.ops.roi_align import MultiScaleRoIAlign as RegionPool

if TYPE_CHECKING:
    from detlab.detector import Detector

_RCNN, _WRAPPED, _BACKBONE = (
    f"detlab.models.{name}" for name in ("detectors.rcnn", "detectors.wrapped", "backbones.backbone")
)
_NORMS = {
    "batch": "partial(nn.BatchNorm2d, eps={eps})",
    "frozen": "partial(FrozenBatchNorm2d, eps={eps})",
    "group": "lambda channels: nn.GroupNorm(math.gcd(32, channels), channels, eps={eps})",
}
# torchvision's, where nothing is said.
_COLOURS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_PADDING = 32
# Where the names are from that a script may use, in the order in which they are imported.
_IMPORTS = {
    "math.": "import math",
    "sys.": "import sys",
    "OrderedDict(": "from collections import OrderedDict",
    "partial(": "from functools import partial",
    "Path(": "from pathlib import Path",
    "torch.": "\nimport torch",
    "nn.": "from torch import nn",
    "decode_image(": "from torchvision.io import ImageReadMode, decode_image",
    "get_model(": "from torchvision.models import get_model",
    "FasterRCNN(": "from torchvision.models.detection import FasterRCNN",
    "AnchorGenerator(": "from torchvision.models.detection.anchor_utils import AnchorGenerator",
    "BackboneWithFPN(": "from torchvision.models.detection.backbone_utils import BackboneWithFPN",
    "KeypointRCNNHeads(": "from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor",
    "MaskRCNNHeads(": "from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor",
    "FrozenBatchNorm2d,": "from torchvision.ops import FrozenBatchNorm2d",
    "MultiScaleRoIAlign(": "from torchvision.ops import MultiScaleRoIAlign",
}
_LOAD = """
model.load_state_dict(torch.load(Path(__file__).with_suffix(".pth"), weights_only=True))
model.eval()

"""
_USE = """

@torch.inference_mode()
def detect(image):
    \"\"\"uint8 [3, height, width], RGB, to boxes (xyxy in its pixels), labels (from 1), scores, and masks or keypoints.\"\"\"
    found = model([image / 255])[0]
    return {field: value[found["labels"] > 0] for field, value in found.items()}


if __name__ == "__main__":
    found = detect(decode_image(sys.argv[1], ImageReadMode.RGB, apply_exif_orientation=True))
    for label, score, box in zip(*(found[field].tolist() for field in ("labels", "scores", "boxes"))):
        if score >= thresholds[label - 1]:
            print(repr(names[label - 1]), round(score, 4), [round(side, 1) for side in box])
"""


class Script(NamedTuple):
    """A script, and of it the lines that build the model and load its weights."""

    text: str
    loader: str


def script_of(detector: Detector, config: DictConfig) -> Script:
    """A Python script that builds the detector of torchvision's modules alone and loads the file of its name with `.pth`.

    Args:
        detector: whose model it is.
        config: the run's, as its checkpoint holds it.

    Raises:
        UserError: a part of the model that is not torchvision's.
    """
    node: Any = OmegaConf.to_container(config.model)
    target, count = node["_target_"], len(detector.class_map) + 1
    points = len(detector.keypoints.names) if detector.keypoints is not None else None
    if target == _RCNN:
        imports, lines = [], _rcnn_lines(detector.model, node, count, points)
    elif target == _WRAPPED:
        imports, lines = _builder_lines(node["model"], count, points)
    else:
        raise _foreign("model", target)
    lists = [
        _assigned("names", list(detector.class_map.names)),
        _assigned("thresholds", [round(score, 6) for score in detector.operating.tolist()]),
    ]
    loader = "\n".join(lines) + _LOAD
    body = loader + "\n".join(lists) + "\n" + _USE
    imports = [line for name, line in _IMPORTS.items() if name in body] + imports
    head = f'"""A detector of torchvision\'s modules, written by detlab {__version__}: python THIS.py IMAGE, or import detect."""'
    return Script("\n".join([head, "", *imports, "", body]), loader)


def _foreign(where: str, target: Any) -> UserError:
    return UserError(
        f"--format state_dict: {where} is {target}, which torchvision has not, so that its weights fit nothing there; only what is "
        "built of detlab's backbones, torchvision's anchors, pools and heads, or by a builder of torchvision's goes without detlab."
    )


def _assigned(name: str, value: Any) -> str:
    """A line that gives a plain value a name, in several lines where it is long."""
    return f"{name} = {pformat(value, width=110, compact=True)}".replace("\n", "\n" + " " * (len(name) + 3))


def _call(function: str, *parts: str, **named: Any) -> str:
    """A call, in as few lines as its arguments need."""
    arguments = [*parts, *(f"{key}={value!r}" for key, value in named.items())]
    line = f"{function}({', '.join(arguments)})"
    if len(line) < 110:
        return line
    lines = [""]
    for each in arguments:
        if lines[-1] and len(lines[-1]) + len(each) > 110:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + each + ","
    return "\n".join([f"{function}(", *(f"    {each}" for each in lines), ")"])


def _rcnn_lines(model: Any, node: Mapping[str, Any], count: int, points: int | None) -> list[str]:
    """Lines for `detlab.models.detectors.rcnn`: what is not torchvision's default, and heads as it puts them on."""
    if node["backbone"]["_target_"] != _BACKBONE:
        raise _foreign("model.backbone", node["backbone"]["_target_"])
    anchors, heads = model.rpn.anchor_generator, model.roi_heads
    ratios = anchors.aspect_ratios
    each = f"({ratios[0]!r},) * {len(ratios)}" if len(ratios) > 1 and len(set(ratios)) == 1 else repr(ratios)
    shapes = (f"sizes={anchors.sizes!r}", f"aspect_ratios={each}")
    lines = [
        *_backbone_lines(model.backbone, node["backbone"]),
        f"anchors = {_call('AnchorGenerator', *shapes)}",
        f"pool = {_pool(heads.box_roi_pool, 'box_roi_pool')}",
        "model = "
        + _call(
            "FasterRCNN",
            "backbone",
            str(count),
            "rpn_anchor_generator=anchors",
            "box_roi_pool=pool",
            **_settings(model, node),
        ),
    ]
    channels = model.backbone.out_channels
    if heads.has_mask():
        hidden = heads.mask_predictor.conv5_mask.out_channels
        lines += [
            f"model.roi_heads.mask_roi_pool = {_pool(heads.mask_roi_pool, 'mask_roi_pool')}",
            f"model.roi_heads.mask_head = MaskRCNNHeads({channels}, (256, 256, 256, 256), 1)",
            f"model.roi_heads.mask_predictor = MaskRCNNPredictor(256, {hidden}, {count})",
        ]
    if heads.has_keypoint():
        layers = tuple(node["keypoint_layers"])
        lines += [
            f"model.roi_heads.keypoint_roi_pool = {_pool(heads.keypoint_roi_pool, 'keypoint_roi_pool')}",
            f"model.roi_heads.keypoint_head = KeypointRCNNHeads({channels}, {layers!r})",
            f"model.roi_heads.keypoint_predictor = KeypointRCNNPredictor({layers[-1]}, {points})",
        ]
    return lines


def _settings(model: nn.Module, node: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of torchvision's `FasterRCNN` that are numbers, where they are not its defaults."""
    transform = resize_of(model)
    assert transform is not None
    sides = shorter_sides(transform)
    sizes: dict[str, Any] = {"min_size": sides[0] if len(sides) == 1 else sides, "max_size": transform.max_size}
    if transform.size_divisible != _PADDING:
        sizes["size_divisible"] = transform.size_divisible
    colours = {"image_mean": list(transform.image_mean), "image_std": list(transform.image_std)}
    if colours == _COLOURS:
        colours = {}
    defaults = {name: parameter.default for name, parameter in inspect.signature(FasterRCNN).parameters.items()}
    numbers = {name: node[name] for name in defaults if name.startswith(("rpn_", "box_")) and name in node}
    plain = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
    return sizes | colours | {name: value for name, value in plain.items() if value != defaults[name]}


def _backbone_lines(built: Any, given: Mapping[str, Any]) -> list[str]:
    """Lines for `detlab.models.backbones.backbone`."""
    defaults = inspect.signature(backbone).parameters
    name, norm, eps, fpn = (
        given[key] if key in given else defaults[key].default for key in ("name", "norm", "norm_eps", "fpn")
    )
    layer = _NORMS[norm].format(eps=repr(float(eps)))
    body = f"get_model({name!r}, weights=None, norm_layer={layer})"
    residual = not any(name.startswith(family) for family in ("mobilenet", "efficientnet"))
    if not residual:
        body += ".features"
    if fpn:
        channels = [block[0].in_channels for block in built.fpn.inner_blocks]
        layers = dict(built.body.return_layers)
        return [f"body = {body}", f"backbone = BackboneWithFPN(body, {layers!r}, {channels!r}, {built.out_channels})"]
    lines = [f"backbone = {body}"]
    if residual:
        lines.append(
            "backbone = nn.Sequential(OrderedDict(list(backbone.named_children())[:-2]))  # less avgpool and fc"
        )
    return [*lines, f"backbone.out_channels = {built.out_channels}"]


def _pool(pool: Any, key: str) -> str:
    if type(pool) not in (RegionPool, MultiScaleRoIAlign):
        raise _foreign(f"model.{key}", type(pool).__name__)
    if getattr(pool, "aligned", False):
        raise _foreign(f"model.{key}", "aligned")
    canonical = {"canonical_scale": pool.canonical_scale, "canonical_level": pool.canonical_level}
    other = {} if tuple(canonical.values()) == (224, 4) else canonical
    arguments = (list(pool.featmap_names), tuple(pool.output_size), pool.sampling_ratio)
    return _call("MultiScaleRoIAlign", *map(repr, arguments), **other)


def _builder_lines(node: Mapping[str, Any], count: int, points: int | None) -> tuple[list[str], list[str]]:
    """The import of a builder of torchvision's, and the line that calls it as `detlab.models.builders` does."""
    from hydra.utils import get_method

    target = str(node["_target_"])
    module, _, name = target.rpartition(".")
    if not target.startswith("torchvision.") or not all(map(str.isidentifier, target.split("."))):
        raise _foreign("model.model", target)
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    nested = next((key for key, value in given.items() if not _is_plain(value) or not key.isidentifier()), None)
    if nested is not None:
        raise _foreign(f"model.model.{nested}", "a part of its own")
    takes = inspect.signature(get_method(target)).parameters
    none = {key: None for key in ("weights", "weights_backbone") if key in takes}
    own = {"num_keypoints": points} if "num_keypoints" in takes else {}
    return [f"from {module} import {name}"], ["model = " + _call(name, **none, num_classes=count, **own, **given)]


def _is_plain(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)
