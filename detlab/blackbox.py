"""What a run keeps of a step that broke down, so that it can be looked at and repeated: `crash.pt`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detlab import distributed, storage
from detlab.chance import seed_all
from detlab.checkpoint import Origin, Position
from detlab.engine import NonFiniteStep, NormStatistics, losses_of, said_of
from detlab.errors import NonFiniteLossError
from detlab.structures import FIELD_OF, Batch, DetectionDataset

log = logging.getLogger(__name__)

NAME = "crash.pt"


@dataclass(frozen=True)
class BlackBox:
    """Writes down a step whose losses or gradients are not finite, and says whether the run may go on without it.

    Args:
        skips: whether the run goes on without such a step: `on_nonfinite=skip`.
        max_skipped: how often it does.
        folder: the run's.
        origin: what the file says of where it is from.
        position: counts the steps left out.
        dataset: the training part, for the names of images.
    """

    skips: bool
    max_skipped: int
    folder: Path
    origin: Origin
    position: Position
    dataset: DetectionDataset

    def record(self, failed: NonFiniteStep) -> None:
        """Write `crash.pt`: batches, seeds, losses, gradient norms and weights; all processes call it together.

        Raises:
            NonFiniteLossError: unless `on_nonfinite` is `skip`, and fewer steps than `max_skipped` were left out before.
        """
        said = said_of(failed)
        share = {
            "seed": failed.seed,
            "batches": [_plain_batch(batch, failed) for batch in failed.batches],
            "losses": [{name: value.detach().cpu() for name, value in part.items()} for part in failed.own_losses],
            "culprits": dict(culprits(failed)),
        }
        shares = distributed.gather(share)
        found = distributed.broadcast({i: names for part in shares for i, names in part["culprits"].items()})
        kept = self._keep(failed, shares) if distributed.first() else ""
        self.position.skipped += 1
        said = f"{said} {self._blame(found)}"
        if not self.skips:
            raise NonFiniteLossError(f"{said}\n{kept}")
        if self.position.skipped > self.max_skipped:
            limit = f"More than max_skipped={self.max_skipped} steps were left out."
            raise NonFiniteLossError(f"{said}\n{limit} {kept}")
        log.warning("left out: %s %s", said, kept)

    def _keep(self, failed: NonFiniteStep, shares: list[dict[str, Any]]) -> str:
        """Write the file; what to do with it, or why it is not there, which must not hide what broke down."""
        path = self.folder / NAME
        crash = {
            "step": failed.step,
            "lr": failed.lr,
            "precision": failed.device.precision,
            "channels_last": failed.device.channels_last,
            "iou_types": list(failed.iou_types),
            "losses": {name: float(value) for name, value in failed.losses.items()},
            "gradient_norms": gradient_norms(failed.model),
            "processes": shares,
        }
        try:
            storage.save({**self.origin.record(), "model": failed.model.state_dict(), "crash": crash}, path)
        except OSError as error:
            return f"It could not be kept ({error})."
        return f"To repeat it: detlab replay {path}"

    def _blame(self, found: Mapping[int, list[str]]) -> str:
        if not found:
            return "No image of them does it alone."
        names = {image["id"]: image["file_name"] for image in self.dataset.ground_truth()["images"]}
        told = [f"{i} ({names[i] if i in names else 'no name'}): {', '.join(losses)}" for i, losses in found.items()]
        return f"Not finite alone: image {'; image '.join(told)}."


def _plain_batch(batch: Batch, failed: NonFiniteStep) -> dict[str, Any]:
    """A micro-batch as plain tensors, with what of its targets is learnt."""
    images, targets = batch
    fields = dict.fromkeys(("boxes", "labels", *(FIELD_OF[iou_type] for iou_type in failed.iou_types)))
    return {
        "images": [image.as_subclass(Tensor).cpu() for image in images],
        "targets": [
            {"image_id": target["image_id"], **{field: target[field].as_subclass(Tensor).cpu() for field in fields}}
            for target in targets
        ],
    }


def culprits(failed: NonFiniteStep) -> Iterator[tuple[int, list[str]]]:
    """The images of this process that are not finite alone, each with its losses, or with `gradient`; the norms learn nothing."""
    statistics = NormStatistics(failed.model)
    trained = [parameter for parameter in failed.model.parameters() if parameter.requires_grad]
    for images, targets in failed.batches:
        for image, target in zip(images, targets, strict=True):
            seed_all(failed.seed)
            losses = losses_of(failed.model, [image], [target], failed.device, failed.iou_types)
            names = [name for name, value in losses.items() if not torch.isfinite(value)]
            if not names:
                total = torch.stack(list(losses.values())).sum()
                gradients = torch.autograd.grad(total, trained, allow_unused=True)
                names = ["gradient"] if not _all_finite(gradients) else []
            if names:
                yield target["image_id"], names
    statistics.restore()


def _all_finite(gradients: tuple[Tensor | None, ...]) -> bool:
    return bool(torch.isfinite(nn.utils.get_total_norm([g for g in gradients if g is not None])))


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """The norm of each parameter's gradient, where it has one."""
    return {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
