"""The records of a run: TensorBoard's event file, metrics.jsonl, run.json, and the lines on the screen."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard.summary import custom_scalars, hparams
from torch.utils.tensorboard.writer import SummaryWriter

from detlab import distributed, storage
from detlab.checkpoint import Position
from detlab.console import Console, duration, peak_memory
from detlab.engine import StepReport
from detlab.evaluation.metrics import METRICS
from detlab.evaluation.scoring import Counts

_METRICS = "metrics.jsonl"
_EVENTS = "events.out.tfevents."
# The thresholds of precision-recall curves; TensorBoard itself takes them to be spread evenly from 0 to 1.
CURVE_SCORES = np.linspace(0, 1, 101)


def _cut(path: Path, size: int) -> None:
    """Cut a file to its first bytes; one of which none are wanted is deleted."""
    if not size:
        path.unlink()
    elif path.stat().st_size > size:
        os.truncate(path, size)


def plain(value: Any) -> Any:
    """A value as JSON has it: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Writer:
    """Where a run's records go; this one, of the processes beside the first, writes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def training_step(self, report: StepReport) -> None: ...

    def losses(self, part: str, step: int, epoch: int, losses: Mapping[str, float]) -> None: ...

    def evaluation(
        self, step: int, epoch: int, metrics: Mapping[str, float], seconds: float | None, *, part: str = "val"
    ) -> None: ...

    def curves(self, tag: str, counts: Mapping[str, Counts], step: int) -> None: ...

    def histograms(self, model: nn.Module, step: int) -> None: ...

    def picture(self, tag: str, picture: Tensor | None, step: int) -> None: ...

    def text(self, tag: str, text: str) -> None: ...

    def hyper_parameters(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None: ...

    def predictions(self, results: list[dict[str, Any]]) -> None: ...

    def record(self, content: Mapping[str, Any]) -> None: ...

    def sizes(self) -> dict[str, int]:
        return {}


@contextmanager
def writing(
    folder: Path, console: Console, position: Position, *, log_every: int, device: torch.device
) -> Iterator[Writer]:
    """The writer of this process, closed in the end; see `RunWriter`."""
    if not distributed.first():
        yield Writer(folder)
        return
    known = {"step": position.step, "records": position.records}
    with RunWriter(folder, console, log_every=log_every, device=device, **known) as writer:
        yield writer


class RunWriter(Writer):
    """Writes what a run has to tell, under the same tags everywhere; the x axis is the optimizer step.

    Args:
        folder: the run's.
        console: where lines go.
        log_every: steps between lines.
        step: where the run stands.
        records: bytes of each file that tell of the run up to there; what an attempt that broke off wrote behind is dropped.
        device: whose memory is told.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        *,
        log_every: int,
        step: int,
        records: Mapping[str, int],
        device: torch.device,
    ) -> None:
        super().__init__(folder)
        self._console = console
        self._log_every = log_every
        self._device = device
        for path in self._files():
            _cut(path, records[path.name] if path.name in records else 0)
        # The step is for a TensorBoard that is open and has seen what was cut off.
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self._lines = (folder / _METRICS).open("a", encoding="utf-8")
        self._started, self._first_step = time.monotonic(), step
        self._laid_out = False

    def _files(self) -> list[Path]:
        """The files that grow with the run."""
        return [path for path in self.folder.iterdir() if path.name == _METRICS or path.name.startswith(_EVENTS)]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that grows with the run, all that was written being on the disk."""
        self._board.flush()
        self._lines.flush()
        os.fsync(self._lines.fileno())
        return {path.name: path.stat().st_size for path in self._files()}

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._board.close()

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and each value in TensorBoard."""
        for tag, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(tag, value, step)
        self._lines.write(json.dumps({"step": step, "epoch": epoch, **plain(values)}) + "\n")
        self._lines.flush()

    def training_step(self, report: StepReport) -> None:
        """Every `log_every` steps: the losses are read from the device, written and said."""
        if report.step % self._log_every:
            return
        losses = {f"train/{_loss_name(name)}": float(value) for name, value in report.losses.items()}
        rate = report.images / report.step_time
        memory = peak_memory(self._device)
        performance = {
            "perf/images_per_second": rate,
            "perf/data_time": report.data_time,
            "perf/step_time": report.step_time,
            "perf/max_memory": memory,
        }
        self.scalars(report.step, report.epoch, {**losses, "train/lr": report.lr, **performance})
        done = report.step - self._first_step
        left = (time.monotonic() - self._started) / done * (self._console.total_steps - report.step)
        said = "  ".join(f"{tag.removeprefix('train/')} {value:.4f}" for tag, value in losses.items())
        self._console.step(
            report.step,
            f"step {report.step}/{self._console.total_steps}  lr {report.lr:.2e}  {said}  data {report.data_time:.2f} s"
            f"  step {report.step_time:.2f} s  {rate:.1f} images/s  {memory:.0f} MiB  left {duration(left)}",
        )

    def losses(self, part: str, step: int, epoch: int, losses: Mapping[str, float]) -> None:
        """The losses of a part that is not trained on."""
        self.scalars(step, epoch, {f"{part}/{_loss_name(name)}": value for name, value in losses.items()})
        said = "  ".join(f"{_loss_name(name)} {value:.4f}" for name, value in losses.items())
        self._console.say(f"epoch {epoch}  step {step}  {part}  {said}")

    def evaluation(
        self, step: int, epoch: int, metrics: Mapping[str, float], seconds: float | None, *, part: str = "val"
    ) -> None:
        """The numbers of an evaluation, under `val/`, or of another part, or of averaged weights (`val_ema/`)."""
        self._lay_out([iou_type for iou_type in METRICS if f"{iou_type}/AP" in metrics])
        self.scalars(step, epoch, {f"{part}/{name}": value for name, value in metrics.items()})
        whose = "" if part == "val" else f"{part}  "
        for iou_type in dict.fromkeys(name.partition("/")[0] for name in metrics):
            said = "  ".join(
                f"{name.partition('/')[2]} {value:.3f}"
                for name, value in metrics.items()
                if name.startswith(iou_type + "/")
            )
            self._console.say(f"epoch {epoch}  step {step}  {whose}{iou_type}  {said}")
        if seconds is not None:
            self._console.say(f"epoch {epoch}  evaluated in {duration(seconds)}")

    def _lay_out(self, iou_types: Sequence[str]) -> None:
        """Once a process: what TensorBoard's CUSTOM SCALARS tab shows; not before it is known what is scored."""
        if not self._laid_out:
            file_writer = self._board._get_file_writer()
            assert file_writer is not None
            file_writer.add_summary(custom_scalars(dashboard(iou_types)))
            self._laid_out = True

    def curves(self, tag: str, counts: Mapping[str, Counts], step: int) -> None:
        """Precision over recall at each of `CURVE_SCORES`, for TensorBoard's PR CURVES tab: one class as `tag`, more below it."""
        for name, (_, right, wrong, objects) in counts.items():
            precision = right / np.maximum(right + wrong, 1)
            # Of what is no object there is no number: true negatives are 0.
            self._board.add_pr_curve_raw(
                tag if len(counts) == 1 else f"{tag}/{name}",
                *(
                    torch.from_numpy(np.asarray(values, np.float64))
                    for values in (right, wrong, np.zeros(len(right)), objects - right, precision, right / objects)
                ),
                global_step=step,
                num_thresholds=len(right),
            )

    def histograms(self, model: nn.Module, step: int) -> None:
        """How the values of each trained parameter are spread, as `weights/<name>`."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._board.add_histogram(f"weights/{name}", parameter.detach().float().cpu(), step)

    def picture(self, tag: str, picture: Tensor | None, step: int) -> None:
        """A picture, uint8 `[3, H, W]`, for TensorBoard."""
        if picture is not None:
            self._board.add_image(tag, picture, step)

    def text(self, tag: str, text: str) -> None:
        """A text for TensorBoard, set as code."""
        self._board.add_text(tag, "    " + text.replace("\n", "\n    "), 0)

    def hyper_parameters(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Settings with final metrics in the run's own event file, so that TensorBoard's HPARAMS tab compares a sweep.

        `SummaryWriter.add_hparams` would open a run of its own beside this one.
        """
        values = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in settings.items()
        }
        final = {f"val/{name}": value for name, value in metrics.items() if math.isfinite(value)}
        file_writer = self._board._get_file_writer()
        assert file_writer is not None
        # Without the experiment's summary: of several runs TensorBoard takes one's, and shows no column that it lacks.
        _, *session = hparams(values, final)
        for summary in session:
            file_writer.add_summary(summary)

    def predictions(self, results: list[dict[str, Any]]) -> None:
        """predictions.json: COCO results of the best evaluation."""
        storage.write_text(self.folder / "predictions.json", json.dumps(results))

    def record(self, content: Mapping[str, Any]) -> None:
        """run.json, written whole."""
        storage.write_text(self.folder / "run.json", json.dumps(plain(content), indent=2) + "\n")


def dashboard(iou_types: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """The charts of a COCO dashboard, by category and title, as `SummaryWriter.add_custom_scalars` takes them.

    Args:
        iou_types: what is scored.
    """
    charts: dict[str, dict[str, list[Any]]] = {}
    for iou_type in iou_types:
        names = [metric.name for metric in METRICS[iou_type]]  # type: ignore[index]
        sizes = [name for name in names if name in ("APs", "APm", "APl")]
        tags = {"AP": ["AP", "AP50", "AP75"], "AP by size": sizes, "AR": [n for n in names if n.startswith("AR")]}
        charts[iou_type] = {
            title: ["Multiline", [f"^val/{iou_type}/{name}$" for name in chosen]] for title, chosen in tags.items()
        }
    charts["losses"] = {
        "training": ["Multiline", ["^train/loss"]],
        "training and validation": ["Multiline", ["^train/loss$", "^val/loss$"]],
    }
    charts["rate"] = {"learning rate": ["Multiline", ["^train/lr$"]]}
    return charts


def _loss_name(name: str) -> str:
    return name if name.startswith("loss") else f"loss_{name}"
