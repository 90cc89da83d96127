"""What a run does to learn how good it is: numbers, pictures, the best weights, and when to stop for good."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn

from detlab import distributed, parts
from detlab.analysis.thresholds import record_of
from detlab.averaging import Average
from detlab.checkpoint import Checkpoints, Position
from detlab.data.loader import Loader
from detlab.engine import Device, evaluate, validation_loss
from detlab.pictures import comparison_of
from detlab.stopping import RunStopping
from detlab.structures import DetectionDataset, IouType
from detlab.writer import CURVE_SCORES, Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """The evaluations of a run.

    Args:
        cfg: `objective`, `patience`, `stop_at` and `seed` are read.
        dataset: the validation part, for the pictures.
        loader: its images, this process's.
        loss_loader: the same with trainable targets, or None where no `val/loss` is asked for.
        evaluator: of its ground truth.
        device: where the model runs.
        iou_types: what is learnt and scored.
    """

    cfg: DictConfig
    dataset: DetectionDataset
    loader: Loader
    loss_loader: Loader | None
    evaluator: Any
    device: Device
    iou_types: tuple[IouType, ...]

    @classmethod
    def of(
        cls, cfg: DictConfig, dataset: DetectionDataset, device: Device, iou_types: tuple[IouType, ...]
    ) -> Validation:
        """The evaluations that a configuration asks for, on a data set."""
        return cls(
            cfg,
            dataset=dataset,
            loader=parts.evaluation_batches(cfg, dataset, device),
            loss_loader=parts.evaluation_batches(cfg, dataset, device, trainable=True) if cfg.val_loss else None,
            evaluator=parts.evaluator(cfg, dataset, iou_types),
            device=device,
            iou_types=iou_types,
        )

    def run(
        self,
        model: nn.Module,
        average: Average | None,
        position: Position,
        stopping: RunStopping,
        writer: Writer,
        checkpoints: Checkpoints,
    ) -> None:
        """Score the model, and its averaged weights where there are any; record, and save what is the best so far.

        Nothing is recorded where Ctrl-C stops it. Sets `stopping.reason` where `patience` is at its end or `stop_at` is reached.
        """
        started = time.perf_counter()
        metrics = evaluate(model, self.loader, self.evaluator, stopping, device=self.device)
        if metrics is None:
            return
        results = self.evaluator.results()
        curves = self._curves()
        losses = None
        if self.loss_loader is not None:
            losses = validation_loss(
                model, self.loss_loader, stopping, device=self.device, seed=self.cfg.seed, iou_types=self.iou_types
            )
            if losses is None:
                return
        averaged, results_averaged = None, []
        if average is not None:
            averaged = evaluate(average.model, self.loader, self.evaluator, stopping, device=self.device)
            if averaged is None:
                return
            results_averaged = self.evaluator.results()
        # From here on nothing is interrupted: what is recorded and what is saved belong together.
        writer.evaluation(position.step, position.epoch, metrics, time.perf_counter() - started)
        for iou_type, counts in curves.items():
            writer.curves(f"val/{iou_type}/PR50", counts, position.step)
        if losses is not None:
            writer.losses("val", position.step, position.epoch, losses)
        if position.improve(metrics, self.cfg.objective):
            checkpoints.save_weights("best.pt", model, position.best_step, metrics, self._operating(results))
            writer.predictions(results)
        if average is not None and averaged is not None:
            writer.evaluation(position.step, position.epoch, averaged, None, part="val_ema")
            if position.improve_average(averaged, self.cfg.objective):
                operating = self._operating(results_averaged)
                checkpoints.save_weights("best_ema.pt", average.model, position.step, averaged, operating)
        if self.cfg.histograms:
            writer.histograms(model, position.step)
        if distributed.first():
            writer.picture("val/predictions", comparison_of(model, self.dataset, self.device), position.step)
        if self.over(position):
            stopping.reason = "patience" if position.stale else "stop_at"

    def _operating(self, results: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The operating thresholds by class, by the overlap that the objective scores; the first process has all results."""
        if not distributed.first():
            return None
        iou_type, keypoints = self.cfg.objective.partition("/")[0], self.dataset.keypoints
        sigmas = keypoints.sigmas if keypoints is not None else None
        truth, wanted = self.dataset.ground_truth(), self.cfg.operating_precision
        record = record_of(truth, results, iou_type, self.dataset.class_map, sigmas=sigmas, precision=wanted)
        without = [
            name for name, one in zip(self.dataset.class_map.names, record["thresholds"], strict=True) if one is None
        ]
        if wanted is not None and without:
            log.warning(
                "operating_precision: no threshold gives %s a precision of %g; 0.5 is taken", ", ".join(without), wanted
            )
        return record

    def _curves(self) -> dict[str, Any]:
        """What precision-recall curves are drawn from, by type; where everything was gathered, by an evaluator that can tell."""
        if not distributed.first() or not hasattr(self.evaluator, "counts"):
            return {}
        return {iou_type: self.evaluator.counts(iou_type, CURVE_SCORES) for iou_type in self.iou_types}

    def close(self) -> None:
        """End the workers that load images."""
        for loader in (self.loader, self.loss_loader):
            if loader is not None:
                loader.close()

    def over(self, position: Position) -> bool:
        """Whether a run that stands there needs no further training: it no longer improves, or is good enough."""
        patience, stop_at = self.cfg.patience, self.cfg.stop_at
        impatient = patience is not None and position.stale >= patience
        return impatient or (stop_at is not None and position.best is not None and position.best >= stop_at)


def score_held_out(
    cfg: DictConfig,
    model: nn.Module,
    dataset: DetectionDataset,
    position: Position,
    stopping: RunStopping,
    writer: Writer,
    checkpoints: Checkpoints,
    device: Device,
) -> None:
    """Score the best weights, once, on the part that nothing was chosen by; they stay in the model. `test/` in the records."""
    model.load_state_dict(checkpoints.best_weights())
    evaluator = parts.evaluator(cfg, dataset, model.iou_types)  # type: ignore[arg-type]
    with closing(parts.evaluation_batches(cfg, dataset, device)) as loader:
        metrics = evaluate(model, loader, evaluator, stopping, device=device)
    if metrics is not None:
        position.test_metrics = metrics
        writer.evaluation(position.step, position.epoch, metrics, None, part="test")
