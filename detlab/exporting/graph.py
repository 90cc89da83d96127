"""How does a detector become an ONNX file that takes images of any size?"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor
from torchvision.models.detection import anchor_utils
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detlab.errors import UserError
from detlab.models.anchors import resize_of, shorter_sides
from detlab.ops.anchors import AnchorGenerator

# ONNX's RoiAlign knows torchvision's half pixels from 16 on.
OPSET = 17
INPUT = "image"
# What a model's predictions hold, in the order of the graph's outputs.
FIELDS = ("boxes", "labels", "scores", "masks", "keypoints", "keypoints_scores")
# The image that is traced: its sides differ, and neither is a multiple of what a detector pads to.
TRACED = (120, 150)


class _TracedTransform(GeneralizedRCNNTransform):
    """torchvision's transform, whose sizes stay computed in the graph, to the pixel and to float32's rounding as in Python.

    torchvision's own traces the factor in float32: 256 of 400 pixels may come out as 255. And ONNX's Resize finds the places
    that a pixel is read from in another way than torch, which over an image of 500 pixels moves them by so much that input
    differs in the fourth digit, and the scores of deep, light networks too.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """See torchvision's; in evaluation only."""
        sides = shape_as_tensor(image)[-2:]
        if self.fixed_size is not None:
            wanted = torch.tensor([self.fixed_size[1], self.fixed_size[0]])
        else:
            # Of one dimension: the exporter computes with tensors of none in float32.
            least, most = (torch.tensor([s], dtype=torch.float64) for s in (shorter_sides(self)[-1], self.max_size))
            exact = sides.to(torch.float64)
            factor = torch.minimum(least / exact.amin(0, keepdim=True), most / exact.amax(0, keepdim=True))
            wanted = torch.floor(exact * factor).to(torch.int64)
        top, bottom, down = _read_places(sides[:1], wanted[:1])
        left, right, across = _read_places(sides[1:], wanted[1:])
        rows = image[:, top] * (1 - down)[:, None] + image[:, bottom] * down[:, None]
        return rows[:, :, left] * (1 - across) + rows[:, :, right] * across, target


def _read_places(count: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What bilinear interpolation reads along an axis, as torch's kernels compute it (`area_pixel_compute_source_index`).

    The scale is float32, and the place that it gives rounded to float32 once, as a fused multiply-add does.

    Args:
        count: pixels that there are, int64 `[1]`.
        wanted: pixels that there shall be, int64 `[1]`.

    Returns:
        int64 `[wanted]` twice, the pixels before and behind; float32 `[wanted]`, the weight of those behind.
    """
    scale = (count.to(torch.float32) / wanted.to(torch.float32)).to(torch.float64)
    number = torch.arange(wanted[0], dtype=torch.float64)  # pyright: ignore[reportCallIssue, reportArgumentType]
    place = ((number + 0.5) * scale - 0.5).to(torch.float32).clamp(min=0)
    before = torch.minimum(place.to(torch.int64), count - 1)
    behind = torch.minimum(before + 1, count - 1)
    return before, behind, (place - before).clamp(0, 1)


class _OneImage(nn.Module):
    """A detector as a function of one uint8 image `[3, H, W]`, RGB, to the tensors of its prediction."""

    def __init__(self, detector: nn.Module, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.detector = detector
        self.fields = fields

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        prediction = self.detector([image.float() / 255])[0]
        return tuple(prediction[field] for field in self.fields)


def _traceable(model: nn.Module) -> nn.Module:
    """A copy of a detector on the CPU whose parts keep nothing from one image to the next."""
    model = copy.deepcopy(model).cpu().eval()
    for module in model.modules():
        if isinstance(module, AnchorGenerator):
            module.__class__ = anchor_utils.AnchorGenerator  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(module, GeneralizedRCNNTransform):
            module.__class__ = _TracedTransform
    return model


def _sigmoid(graph: Any, logits: Any) -> Any:
    """ONNX's nodes for a sigmoid, without its Sigmoid.

    That of onnxruntime takes all logits below -18 for -18, so that its RPN orders unlikely proposals otherwise than torch's where
    there are few likely ones.
    """
    one = graph.op("Constant", value_t=torch.tensor(1.0))
    return graph.op("Div", one, graph.op("Add", one, graph.op("Exp", graph.op("Neg", logits))))


@contextmanager
def _exact_sigmoid() -> Iterator[None]:
    """Within, torch's exporter writes sigmoids as `_sigmoid` does."""
    torch.onnx.register_custom_op_symbolic("aten::sigmoid", _sigmoid, OPSET)  # pyright: ignore[reportPrivateImportUsage]
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::sigmoid", OPSET)  # pyright: ignore[reportPrivateImportUsage]


@torch.no_grad()
def onnx_bytes(model: nn.Module) -> tuple[bytes, tuple[str, ...]]:
    """A detector as an ONNX model, by torch's TorchScript exporter.

    The newer one begins with `torch.export`, which stops where torchvision's `batched_nms` asks whether there are any boxes
    (seen with torch 2.14.1 and torchvision 0.29.1).

    Args:
        model: torchvision's contract, with `iou_types`, in evaluation mode.

    Returns:
        The file, whose input `image` is uint8 `[3, H, W]`, RGB, of any height and width, and its outputs: of `FIELDS` those
        that the model predicts, in the image's own pixels.

    Raises:
        UserError: the model is made of something that the exporter does not know.
    """
    if resize_of(model) is None:
        raise UserError(
            f"--format onnx: {type(model).__name__} is none of torchvision's detectors; only what is built of them is exported."
        )
    traced = _traceable(model)
    image = torch.randint(0, 256, (3, *TRACED), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # Once as it is, so that the pools have settled their scales, which a trace would compute in the graph.
    prediction: dict[str, Any] = traced([image.float() / 255])[0]
    fields = tuple(field for field in FIELDS if field in prediction)
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), _exact_sigmoid():
            warnings.simplefilter("ignore")  # the exporter's own: that it is deprecated, what a trace keeps constant
            torch.onnx.export(
                _OneImage(traced, fields),
                (image,),
                file,  # pyright: ignore[reportArgumentType]
                input_names=[INPUT],
                output_names=list(fields),
                dynamic_axes={INPUT: {1: "height", 2: "width"}, **{field: {0: "objects"} for field in fields}},
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--format onnx: torch's exporter does not take this model: {first}") from error
    return file.getvalue(), fields
