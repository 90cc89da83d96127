"""A trained detector to be called on images: what `detlab.load` gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from detlab.analysis.thresholds import given
from detlab.checkpoint import model_of, operating_of, read
from detlab.config import first_line, rule_fault
from detlab.data.images import UNREADABLE, read_image, to_rgb
from detlab.engine import Device, predict, select_device
from detlab.errors import UserError
from detlab.models.anchors import resize_of, shorter_sides
from detlab.structures import ClassMap, IouType, Keypoints, Prediction

# A file's path; a PIL image of any mode; uint8 [H, W, 3] in RGB; [3, H, W], uint8 or float in 0..1.
ImageLike = str | Path | Image.Image | np.ndarray | Tensor

# A least score, the operating threshold of each class, or none.
Threshold = float | Literal["operating"] | None


class Detector:
    """A model with its class names, to be called on images.

    Args:
        model: torchvision's contract, with `iou_types`; on `device`.
        class_map: names of its labels.
        keypoints: what the points are that it predicts; None where it predicts none.
        device: where it runs.
        threshold: detections with a lower score are left out; `operating`: with a lower one than their class's operating
            threshold; None leaves out none.
        path: the checkpoint that it is from.
        operating: the operating threshold of each class.
    """

    def __init__(
        self,
        model: nn.Module,
        class_map: ClassMap,
        keypoints: Keypoints | None,
        *,
        device: Device,
        threshold: Threshold,
        path: Path,
        operating: Sequence[float],
    ) -> None:
        self.model = model
        self.class_map = class_map
        self.iou_types: tuple[IouType, ...] = cast(Any, model).iou_types
        self.keypoints = keypoints if "keypoints" in self.iou_types else None
        self.device = device
        self.threshold: Threshold = threshold
        self.path = path
        self.operating = torch.tensor([float(value) for value in operating])

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> list[Prediction]:
        """Detect on one image, or on several one after the other: in a batch an image's scores depend on its neighbours.

        Files and PIL images are taken as they are seen (see `detlab.data.images.to_rgb`): predictions are in the pixels of the
        picture that a viewer shows, where EXIF's orientation has turned it. Floats are rounded to 8 bits, as those that the
        model learnt from were.

        Returns:
            A `Prediction` for each image, on the CPU, in the image's own pixels.

        Raises:
            UserError: a file that cannot be decoded, or an object that is no such image; says which.
        """
        several: Any = images if _are_several(images) else [images]
        return [self._detect(as_image(image, f"image {i}")) for i, image in enumerate(several)]

    def _detect(self, image: Tensor) -> Prediction:
        return self.together([image])[0]

    def together(self, images: Sequence[Tensor]) -> list[Prediction]:
        """Detect on images of one size in one batch, where none is padded for another: as one by one, but for rounding.

        Args:
            images: uint8 `[3, H, W]` each.

        Raises:
            ValueError: images of several sizes.
        """
        if len({image.shape for image in images}) > 1:
            raise ValueError("images of several sizes in one batch change each other's scores")
        found = predict(self.model, images, self.device)
        return [self.believed(prediction, self.threshold) for prediction in found]

    def resize_to(self, least: int, most: int | None) -> None:
        """Let images be resized to other sides than the model learnt with, in pixels.

        Args:
            least: the shorter side.
            most: what the longer side may not exceed; None: as many times the shorter one as before.

        Raises:
            UserError: a model that resizes to one fixed size, or in a way of its own; a longer side below the shorter one.
        """
        transform = resize_of(self.model)
        if transform is None or transform.fixed_size is not None:
            how = "in a way of its own" if transform is None or transform.fixed_size is None else "to one fixed size"
            raise UserError(f"size: {self.path}: its model resizes images {how}; leave it out.")
        longest = round(transform.max_size * least / shorter_sides(transform)[-1]) if most is None else most
        if not 1 <= least <= longest:
            raise UserError(
                f"size: {least},{longest} is not allowed; give the shorter side, 1 or more, then the longer one."
            )
        transform.min_size = (least,)  # pyright: ignore[reportAttributeAccessIssue]  # declared as one, kept as several
        transform.max_size = longest

    def named(self, prediction: Prediction) -> list[dict[str, Any]]:
        """A prediction as plain values, an object after the other: `name`, `score`, `box` (xyxy in pixels of the image)."""
        rows = zip(*(prediction[field].tolist() for field in ("labels", "scores", "boxes")), strict=True)
        return [{"name": self.class_map.name(label), "score": score, "box": box} for label, score, box in rows]

    def believed(self, prediction: Prediction, threshold: Threshold) -> Prediction:
        """What of a prediction has the score that is asked for, as copies on the CPU; see `threshold` above."""
        scores = prediction["scores"]
        least = self.operating.to(scores.device)[prediction["labels"] - 1] if threshold == "operating" else threshold
        keep = torch.ones_like(scores, dtype=torch.bool) if least is None else scores >= least
        # Indexing copies: what inference mode made could not be changed by whoever is given it.
        return cast(Prediction, {field: cast(Tensor, value)[keep].cpu() for field, value in prediction.items()})


def _are_several(images: Any) -> bool:
    """Whether this is a sequence or a stack of images, rather than one."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim == 4
    return isinstance(images, Sequence) and not isinstance(images, str)


def as_image(image: Any, where: str) -> Tensor:
    """Any `ImageLike` as uint8 `[3, H, W]`.

    Raises:
        UserError: it cannot be decoded, or is nothing of the kind; begins with `where`, or with the file's name.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except UNREADABLE as error:
            raise UserError(f"{where}: not readable as an image ({error}).") from None
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return torch.from_numpy(image.copy()).permute(2, 0, 1)
    if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] == 3:
        pixels = image.detach().as_subclass(Tensor)
        if pixels.dtype == torch.uint8:
            return pixels
        if pixels.is_floating_point() and pixels.numel() and 0 <= float(pixels.min()) <= float(pixels.max()) <= 1:
            return F.to_dtype(pixels, torch.uint8, scale=True)
    raise UserError(
        f"{where}: {_described(image)}; expected a path, a PIL image, a uint8 array [H, W, 3], or a tensor [3, H, W], uint8 "
        "or float in 0..1."
    )


def _described(image: Any) -> str:
    if not isinstance(image, np.ndarray | Tensor):
        return f"a {type(image).__name__}"
    values = isinstance(image, Tensor) and image.is_floating_point() and image.numel()
    return f"{image.dtype} {list(image.shape)}" + (f" from {image.min():.4g} to {image.max():.4g}" if values else "")


def checkpoint_of(run: Path) -> Path:
    """The checkpoint file that `RUN` names: a file itself, or the best one of a run's folder.

    Raises:
        UserError: no such file or folder, or a folder without a best checkpoint.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise UserError(f"{run}: neither a run's folder nor a checkpoint file.")
    best = run / "checkpoints" / "best.pt"
    if not best.is_file():
        raise UserError(
            f"{run}: holds no checkpoints/best.pt, which a run writes after its first evaluation; give a run's folder or "
            "a checkpoint file."
        )
    return best


def load(run: Path, *, device: str, threshold: Threshold) -> Detector:
    """A run's detector; see `detlab.load`."""
    fault = rule_fault("device", device)
    if fault is not None:
        raise UserError(fault)
    if threshold not in (None, "operating") and (isinstance(threshold, str) or not 0 <= threshold <= 1):
        raise UserError(f"threshold: {threshold!r} is not allowed; allowed: 0 to 1, operating, None.")
    path = checkpoint_of(run)
    state = read(path)
    model, class_map, keypoints = model_of(state, path, ())
    record = operating_of(state, path)
    operating = given(record["thresholds"] if record is not None else [None] * len(class_map)).tolist()
    place = select_device(device, "fp32")
    try:
        place.place(model)
    except (RuntimeError, AssertionError) as error:  # torch's two ways to say that it has no such device
        raise UserError(f"device: {device!r} is not available here ({first_line(error)}).") from None
    return Detector(model, class_map, keypoints, device=place, threshold=threshold, path=path, operating=operating)
