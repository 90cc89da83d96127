"""What is timed of an evaluation without its model: scoring, and masks made into run lengths."""

from __future__ import annotations

import cProfile
import hashlib
import io
import math
import pstats
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from pycocotools.coco import COCO
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detlab import parts
from detlab.allocation import keep_freed_memory
from detlab.benchmark import plain
from detlab.benchmark.contestants import begin
from detlab.benchmark.detections import Density, MadeImages
from detlab.config import build
from detlab.errors import UserError
from detlab.evaluation.metrics import METRICS
from detlab.masks import encode_in_boxes
from detlab.structures import RLE, IouType

# Of the images of a round, so many are a warm-up: nothing here gets faster by more.
_WARM_UP = 20


def scored_types(config: str) -> tuple[IouType, ...]:
    """What the configured model is scored by.

    Raises:
        UserError: keypoints, which the made images do not have.
    """
    cfg = begin(config)
    model = build(cfg.model, group="model", allow=cfg.allow, num_classes=2, num_keypoints=17)
    if "keypoints" in model.iou_types:
        raise UserError(
            "model: it is scored by keypoints, and what bench=evaluate makes has boxes and masks; take another model."
        )
    return tuple(model.iou_types)


class Stopwatch:
    """Adds up the seconds that are spent within it, however often it is entered."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._started


class _OfMadeImages(ABC):
    """What these contestants share: the images are made from one seed on both sides, and no clock runs while they are.

    Args:
        config: as YAML.
        iou_types: what is scored.
        images: of a round.
        density: how full they are; by default as val2017's.
    """

    keeps_freed_memory = False  # as a run does

    def __init__(
        self, config: str, iou_types: tuple[IouType, ...], images: int, density: Density | None = None
    ) -> None:
        self.cfg = begin(config)
        self.iou_types = iou_types
        self.made = MadeImages(images, density, seed=self.cfg.seed)
        if self.keeps_freed_memory:
            keep_freed_memory(self.cfg.keep_freed_memory)
        self.found: dict[str, Any] = {}

    @abstractmethod
    def work(self, images: int, counted: AbstractContextManager[Any]) -> dict[str, Any]:
        """Do the work on the first images, all that is to be measured within `counted`; what its rival must find too."""

    def warm_up(self) -> None:
        """Some of the images: a whole round takes minutes."""
        self.work(min(_WARM_UP, len(self.made)), nullcontext())

    def round(self) -> float:
        """Seconds of the work on all images."""
        clock = Stopwatch()
        self.found = self.work(len(self.made), clock)
        return clock.seconds

    def profile(self) -> str:
        """The functions in which one more round spent its time, by Python's profiler, which slows all calls down."""
        profiler = cProfile.Profile()
        self.work(len(self.made), profiler)
        table = io.StringIO()
        pstats.Stats(profiler, stream=table).sort_stats("tottime").print_stats(20)
        return table.getvalue()

    def result(self) -> dict[str, Any]:
        """What the last round found."""
        return self.found

    def close(self) -> None:  # noqa: B027
        """Nothing to end: no process loads images."""


class OurScoring(_OfMadeImages):
    """The configured evaluator: from the ground truth in memory and a model's outputs to the numbers."""

    keeps_freed_memory = True

    @torch.inference_mode()
    def work(self, images: int, counted: AbstractContextManager[Any]) -> dict[str, Any]:
        self.made.ground_truth()  # made once, in memory as if it was read
        with counted:
            evaluator = parts.evaluator(self.cfg, self.made, self.iou_types)  # type: ignore[arg-type]
            evaluator.reset()
        for index in range(images):
            prediction = self.made.prediction(index, masks="segm" in self.iou_types)
            with counted:
                evaluator.update([index + 1], [prediction])
        with counted:
            numbers = evaluator.compute()
        return {f"{t}/{m.name}": numbers[f"{t}/{m.name}"] for t in self.iou_types for m in METRICS[t]}


class TheirScoring(_OfMadeImages):
    """The references' evaluator, image by image; pasting masks into images is the end of torchvision's own prediction."""

    @cached_property
    def truth(self) -> COCO:
        """The ground truth's index, which their data set has made for itself."""
        return plain.index_of(self.made.ground_truth())

    @torch.inference_mode()
    def work(self, images: int, counted: AbstractContextManager[Any]) -> dict[str, Any]:
        truth = self.truth
        with counted:
            evaluator = plain.TutorialEvaluator(truth, self.iou_types)
        for index in range(images):
            found: dict[str, Any] = {**self.made.prediction(index, masks="segm" in self.iou_types)}
            with counted:
                if "masks_in_boxes" in found:
                    found["masks"] = paste_masks_in_image(found["masks_in_boxes"], found["boxes"], found["image_size"])
                evaluator.update({index + 1: found})
        with counted:
            numbers = evaluator.summarize()
        return {
            f"{t}/{metric.name}": math.nan if value < 0 else value
            for t in self.iou_types
            for metric, value in zip(METRICS[t], numbers[t], strict=True)
        }


class _Masks(_OfMadeImages):
    """A mask head's outputs, image by image, to run lengths."""

    @torch.inference_mode()
    def work(self, images: int, counted: AbstractContextManager[Any]) -> dict[str, Any]:
        found = {}
        for index in range(images):
            prediction = self.made.prediction(index, masks=True)
            with counted:
                rles = self.encoded(prediction["masks_in_boxes"], prediction["boxes"], self.made.image_size(index))  # type: ignore[typeddict-item]
            found[f"the masks of image {index + 1}"] = _digest(rles)
        return found

    @abstractmethod
    def encoded(self, probabilities: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> Sequence[RLE]:
        """Run lengths of `[N, 1, 28, 28]` in boxes `[N, 4]` of an image of that height and width."""


class OurMasks(_Masks):
    """From the boxes alone."""

    keeps_freed_memory = True

    def encoded(self, probabilities: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> Sequence[RLE]:
        return encode_in_boxes(probabilities, boxes, *size)


class TheirMasks(_Masks):
    """From whole images."""

    def encoded(self, probabilities: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> Sequence[RLE]:
        return plain.run_lengths_of(paste_masks_in_image(probabilities, boxes, size))


def _digest(rles: Sequence[RLE]) -> str:
    """A short name of run lengths: the same for the same ones."""
    return hashlib.blake2b(" ".join(rle["counts"] for rle in rles).encode(), digest_size=8).hexdigest()
