"""What a run leaves to go on from, and what rebuilds its best model anywhere."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from detlab import distributed, storage
from detlab.averaging import Average
from detlab.config import build
from detlab.errors import UserError
from detlab.structures import ClassMap, Keypoints
from detlab.untrusted import saved_config

log = logging.getLogger(__name__)

FORMAT = 1
# What every checkpoint holds.
_CONTENT = {"config": str, "overrides": list, "choices": dict, "class_map": dict, "model": dict}


@dataclass
class Position:
    """Where a run stands: steps and whole epochs done, the step of the last evaluation and its metrics, the best ones."""

    step: int = 0
    epoch: int = 0
    evaluated: int = 0
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    last_metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0  # evaluations since the best one
    best_average: dict[str, float] = field(default_factory=dict)  # metrics of the averaged weights at their best
    test_metrics: dict[str, float] = field(default_factory=dict)
    skipped: int = 0  # steps left out because they were not finite
    records: dict[str, int] = field(
        default_factory=dict
    )  # bytes of each file of records that tell of the run up to here

    def improve(self, metrics: dict[str, float], objective: str) -> bool:
        """Take the metrics of the present step; whether they are the best so far. What is not a number is the worst."""
        self.evaluated, self.last_metrics = self.step, metrics
        self.stale += 1
        if not _better(metrics, self.best_metrics, objective):
            return False
        self.best = metrics[objective] if math.isfinite(metrics[objective]) else None
        self.best_step, self.best_metrics, self.stale = self.step, metrics, 0
        return True

    def judge_by(self, objective: str) -> None:
        """Tell the best evaluation by another number of it."""
        value = self.best_metrics[objective] if self.best_metrics else math.nan
        self.best = value if math.isfinite(value) else None

    def improve_average(self, metrics: dict[str, float], objective: str) -> bool:
        """The same for the averaged weights."""
        if not _better(metrics, self.best_average, objective):
            return False
        self.best_average = metrics
        return True


def _better(metrics: dict[str, float], best: dict[str, float], objective: str) -> bool:
    value = metrics[objective]
    if not best or not math.isfinite(best[objective]):
        return not best or math.isfinite(value)
    return value > best[objective]


@dataclass(frozen=True)
class Origin:
    """What a checkpoint says of where it comes from: the resolved config, the overrides and the group choices."""

    config: DictConfig
    overrides: list[str]
    choices: dict[str, str]
    class_map: ClassMap
    keypoints: Keypoints | None  # of the data set
    batches: dict[str, int]  # what decides which images a position in an epoch stands for
    data: dict[str, dict[str, Any]]  # by part: number of images, and fingerprint

    def record(self) -> dict[str, Any]:
        """As plain values, which load with `weights_only=True`."""
        return {
            "format": FORMAT,
            "config": OmegaConf.to_yaml(self.config, resolve=True),
            "overrides": list(self.overrides),
            "choices": dict(self.choices),
            "batches": dict(self.batches),
            "data": {part: dict(known) for part, known in self.data.items()},
            "class_map": {"names": list(self.class_map.names), "category_ids": list(self.class_map.category_ids)},
            "keypoints": _plain(self.keypoints),
        }


def _plain(keypoints: Keypoints | None) -> dict[str, list[Any]] | None:
    """What keypoints are, as lists."""
    if keypoints is None:
        return None
    pairs = {"flip_pairs": keypoints.flip_pairs, "skeleton": keypoints.skeleton}
    plain = {key: [list(pair) for pair in value] for key, value in pairs.items()}
    return {"names": list(keypoints.names), "sigmas": list(keypoints.sigmas), **plain}


def keypoints_of(state: Mapping[str, Any]) -> Keypoints | None:
    """What the keypoints of a checkpoint's data set are; None where it has none, or is of before they were written down."""
    if "keypoints" not in state or state["keypoints"] is None:
        return None
    plain = state["keypoints"]
    flip_pairs, skeleton = (tuple((a, b) for a, b in plain[key]) for key in ("flip_pairs", "skeleton"))
    return Keypoints(tuple(plain["names"]), flip_pairs, tuple(plain["sigmas"]), skeleton)


def check_keypoints(theirs: Keypoints | None, ours: Keypoints | None, path: Path, *, keys: Sequence[str]) -> None:
    """Refuse a data set whose keypoints are not those that a checkpoint's model has learnt.

    Args:
        theirs: the checkpoint's; None where it does not say, or is of before they were written down: nothing is compared.
        ours: the data set's.
        path: the checkpoint.
        keys: which of the settings must be the same.

    Raises:
        UserError: names the first that differs.
    """
    if theirs is None:
        return
    if ours is None:
        raise UserError(f"{path}: trained on keypoints, but the data set has none.")
    for key in keys:
        was, now = _plain(theirs)[key], _plain(ours)[key]  # type: ignore[index]
        if was != now:
            raise UserError(f"{path}: trained with keypoints.{key}={was}, but the data set has {now}.")


@dataclass(frozen=True)
class TrainingState:
    """What a run goes on from; `average` where averaged weights are kept."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    average: Average | None
    position: Position
    scaler: GradScaler | None = None

    def content(self) -> dict[str, Any]:
        """All of it as tensors on the CPU, copies, and plain values."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "position": asdict(self.position),
        }
        if self.average is not None:
            content["average"] = self.average.state_dict()
        if self.scaler is not None and self.scaler.is_enabled():
            content["scaler"] = self.scaler.state_dict()
        return _copied(content)


def _copied(value: Any) -> Any:
    """A value with copies of its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


class Records(Protocol):
    """Knows how long the files of a run's records are."""

    def sizes(self) -> dict[str, int]: ...


class Checkpoints:
    """The `checkpoints/` of a run's folder: `last.pt` and `previous.pt` the whole state, `best.pt` the best weights.

    Args:
        run_folder: the run's.
        origin: what each file says of where it is from.
        every_minutes: between states that are saved in the middle of an epoch.
    """

    def __init__(self, run_folder: Path, origin: Origin, *, every_minutes: float) -> None:
        self.folder = run_folder / "checkpoints"
        self._origin = origin
        self._every = 60 * every_minutes
        self._begun = time.monotonic()
        self._writing: threading.Thread | None = None
        self._failure: Exception | None = None
        if distributed.first():
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder in (run_folder, self.folder):
                storage.clear_unfinished(folder)

    def follow(self, state: TrainingState, records: Records) -> None:
        """From here on save this, and how far the records are."""
        self._state, self._records = state, records

    def at(self, step: int) -> None:
        """Save in the background where the last time is `every_minutes` ago; the state is that after optimizer step `step`."""
        if time.monotonic() - self._begun >= self._every:
            self._state.position.step = step
            self.save_in_background()

    def save_in_background(self) -> None:
        """Save the state as it is now, while training goes on; not, where the one before is still being written.

        A full disk is said, and training goes on: the next state may find room, and the last one stays.
        """
        if not distributed.first() or (self._writing is not None and self._writing.is_alive()):
            return
        self.wait()
        if self._failure is not None:
            log.warning("the state could not be saved, training goes on without: %s", self._failure)
            self._failure = None
        content = self._content()
        self._writing = threading.Thread(target=self._write_or_note, args=(content,), name="checkpoint")
        self._writing.start()

    def save(self) -> None:
        """Save the state as it is now, before anything else happens.

        Raises:
            OSError: it cannot be written; the last one stays.
        """
        if distributed.first():
            self.wait()
            self._write(self._content())

    def wait(self) -> None:
        """Let a state that is being written reach the disk."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def close(self) -> None:
        """End with the run: nothing is written after it, when another one may go on from here."""
        self.wait()

    def _content(self) -> dict[str, Any]:
        self._begun = time.monotonic()
        self._state.position.records = self._records.sizes()
        return {**self._origin.record(), **self._state.content()}

    def _write_or_note(self, content: dict[str, Any]) -> None:
        try:
            self._write(content)
        except Exception as error:
            self._failure = error

    def _write(self, content: dict[str, Any]) -> None:
        last = self.folder / "last.pt"
        # Two names for the old file until the new one is whole: a full disk or a kill at any instant leaves one to go on from.
        storage.save(content, self.folder / "newest.pt")
        if last.exists():
            storage.keep_as(last, self.folder / "previous.pt")
        (self.folder / "newest.pt").replace(last)
        storage.sync_folder(self.folder)

    def save_weights(
        self, name: str, model: nn.Module, step: int, metrics: dict[str, float], operating: dict[str, Any] | None
    ) -> None:
        """Write weights (`best.pt`, `best_ema.pt`), what rebuilds the model without network, and its operating thresholds."""
        if distributed.first():
            content = {**self._origin.record(), "model": model.state_dict(), "step": step, "metrics": dict(metrics)}
            storage.save({**content, "operating": operating}, self.folder / name)

    def best_weights(self) -> dict[str, Any]:
        """The weights of `best.pt`, which the first process reads for all."""
        return distributed.from_first(lambda: read(self.folder / "best.pt")["model"])

    def restore(self, resumed: Resumed, state: TrainingState, *, objective: str) -> None:
        """Bring everything back to where a state was saved; what the config now says of the optimizer holds from here on.

        But for the rates of torch's own schedules, which know no formula: those are the saved ones.

        Args:
            resumed: what was saved.
            state: is given it, but the optimizer keeps its settings; an average that was not saved begins at the saved weights.
            objective: by which the best is judged from here on.

        Raises:
            UserError: of other classes, keypoints or another model, or with other batches.
        """
        path, saved = resumed.path, resumed.content
        theirs, ours = saved["class_map"]["names"], list(self._origin.class_map.names)
        if theirs != ours:
            raise UserError(f"{path}: trained on the classes {theirs}, but the data set has {ours}.")
        if "keypoints" in cast(Any, state.model).iou_types:
            kept = ("names", "flip_pairs", "sigmas")  # the skeleton is for pictures only
            check_keypoints(keypoints_of(saved), self._origin.keypoints, path, keys=kept)
        for key, now in self._origin.batches.items():
            if saved["batches"][key] != now:
                raise UserError(
                    f"{path}: saved with {key}={saved['batches'][key]}, but now it is {now}; the position in an epoch would "
                    "mean other images. Start a new run from its weights instead: model.weights=.../best.pt"
                )
        load_strict(state.model, saved["model"], path)
        optimizer, schedule = state.optimizer, state.schedule
        configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        try:
            optimizer.load_state_dict(saved["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: its optimizer's state does not fit this one ({error}).") from None
        for group, settings in zip(optimizer.param_groups, configured, strict=True):
            group.update(settings)
        schedule.load_state_dict({**schedule.state_dict(), **saved["schedule"], "base_lrs": schedule.base_lrs})
        for group, rate in zip(optimizer.param_groups, _rates(schedule, saved["optimizer"]), strict=True):
            group["lr"] = rate
        if state.scaler is not None and "scaler" in saved:
            state.scaler.load_state_dict(saved["scaler"])
        if state.average is not None and "average" in saved:
            state.average.load_state_dict(saved["average"])
        elif state.average is not None:
            state.average.restart(state.model)
        vars(state.position).update(saved["position"])
        state.position.judge_by(objective)


def _rates(schedule: LRScheduler, saved: dict[str, Any]) -> list[float]:
    """The rates of the next step: the schedule's formula over the rates configured now, where it has one."""
    if isinstance(schedule, LambdaLR):
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        return [float(lr) * factor(schedule.last_epoch) for lr, factor in pairs]
    return [group["lr"] for group in saved["param_groups"]]


def state_files(run: Path) -> list[Path]:
    """The states to go on from, the newest first: the file itself, or of a run's folder `last.pt`, then `previous.pt`."""
    if run.is_file():
        return [run]
    both = [run / "checkpoints" / name for name in ("last.pt", "previous.pt")]
    return [path for path in both if path.exists()] or both[:1]


@dataclass(frozen=True)
class Resumed:
    """A state that was saved, and its file."""

    path: Path
    content: dict[str, Any]

    @property
    def class_names(self) -> list[str]:
        return self.content["class_map"]["names"]


def resumed_from(run: Path) -> Resumed:
    """The newest whole state of a run, read by the first process for all; a damaged newer one is named and passed over.

    Args:
        run: a run's folder, or one of its states.

    Raises:
        UserError: no state, weights only, one of an older detlab, or none that is whole.
    """
    return distributed.from_first(lambda: _resumed_from(run))


def _resumed_from(run: Path) -> Resumed:
    paths = state_files(run)
    for path in paths:
        try:
            state = read(path)
        except storage.DamagedFileError as error:
            if path == paths[-1]:
                raise
            log.warning("%s Going on from %s, which is older.", error, paths[-1])
            continue
        if "position" not in state:
            raise UserError(f"{path}: holds weights only; resume needs last.pt or previous.pt.")
        if "records" not in state["position"]:
            raise UserError(
                f"{path}: a state of an older detlab, which does not say how far its records are. Start a new run from its "
                "weights instead: model.weights=.../best.pt"
            )
        return Resumed(path, state)
    raise AssertionError("state_files names one at least")


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content, verified.

    Raises:
        UserError: unreadable, damaged, or no detlab checkpoint of this format.
    """
    state = storage.load(path)
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path}: not a detlab checkpoint.")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: a checkpoint of format {state['format']}; this detlab reads format {FORMAT}.")
    lacking = [key for key, kind in _CONTENT.items() if key not in state or not isinstance(state[key], kind)]
    if lacking:
        raise UserError(f"{path}: not a whole detlab checkpoint; it lacks {', '.join(lacking)}.")
    return state


def operating_of(state: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The operating thresholds of a checkpoint, as `detlab.analysis.thresholds.record_of` gives them.

    None where it holds none: a state to go on from, or one of before they were written down.

    Raises:
        UserError: they are no thresholds of its classes.
    """
    if "operating" not in state or state["operating"] is None:
        return None
    record, count = state["operating"], len(state["class_map"]["names"])
    fields = ("thresholds", "precision", "recall", "f1")
    whole = isinstance(record, dict) and {"iou_type", "by", *fields} <= record.keys()
    whole = whole and re.fullmatch(r"f1|precision [\d.e-]+", str(record["by"])) is not None
    lists = [record[field] for field in fields] if whole else [None]
    if not all(isinstance(values, list) and len(values) == count and all(map(_is_part, values)) for values in lists):
        raise UserError(f"{path}: damaged: its operating thresholds are none of its {count} class(es).")
    return record


def _is_part(value: Any) -> bool:
    """Whether this is a number in 0..1, or None."""
    return value is None or (isinstance(value, float) and 0 <= value <= 1)


def load_strict(model: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    """Load weights that must fit wholly.

    Raises:
        UserError: they are another model's.
    """
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path}: holds another model than the one configured: {first}") from None


def load_model(path: Path, allow: Sequence[str] = ()) -> tuple[nn.Module, ClassMap, Keypoints | None]:
    """Rebuild a checkpoint's model from what the file says, without network, in evaluation mode, on the CPU.

    The saved config is a stranger's: only detlab's and torchvision's own classes are built from it, and those of the packages
    that `allow`, or the environment variable DETLAB_ALLOW, names.

    Raises:
        UserError: the file is no readable checkpoint, or names a class that is not allowed.
    """
    return model_of(read(path), path, allow)


def model_of(
    state: Mapping[str, Any], path: Path, allow: Sequence[str]
) -> tuple[nn.Module, ClassMap, Keypoints | None]:
    """The model of a checkpoint that was read; see `load_model`."""
    config = saved_config(state["config"], path)
    class_map = ClassMap(tuple(state["class_map"]["names"]), tuple(state["class_map"]["category_ids"]))
    # The weights are in this file: the one that training began with is not needed, and may be gone.
    if "weights" in config.model:
        config.model.weights = "none"
    keypoints = keypoints_of(state)
    counts = {"num_classes": len(class_map) + 1, "num_keypoints": len(keypoints) if keypoints is not None else None}
    model = build(config.model, group="model", allow=allow, **counts)
    load_strict(model, state["model"], path)
    return model.eval(), class_map, keypoints
