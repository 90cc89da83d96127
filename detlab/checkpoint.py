"""What a run leaves to go on from, and what rebuilds its best model anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from detlab import distributed, storage
from detlab.averaging import Average
from detlab.config import build
from detlab.errors import UserError
from detlab.structures import ClassMap, Keypoints

FORMAT = 1


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

    def record(self) -> dict[str, Any]:
        """As plain values, which load with `weights_only=True`."""
        return {
            "format": FORMAT,
            "config": OmegaConf.to_yaml(self.config, resolve=True),
            "overrides": list(self.overrides),
            "choices": dict(self.choices),
            "batches": dict(self.batches),
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


class Checkpoints:
    """The `checkpoints/` of a run's folder: `last.pt` and `previous.pt` the whole state, `best.pt` the best weights."""

    def __init__(self, run_folder: Path, origin: Origin) -> None:
        self.folder = run_folder / "checkpoints"
        self._origin = origin
        self._saved = time.monotonic()
        if distributed.first():
            self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def age(self) -> float:
        """Seconds since the state was saved, or since the run began."""
        return time.monotonic() - self._saved

    def save_last(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        position: Position,
        average: Average | None,
    ) -> None:
        """Write the whole state; the one before becomes `previous.pt`."""
        if not distributed.first():
            return
        last, newest = self.folder / "last.pt", self.folder / "newest.pt"
        state = {
            **self._origin.record(),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"},
            "position": asdict(position),
        }
        if average is not None:
            state["average"] = average.state_dict()
        # Both old files stay until the new one is whole: a full disk or a kill at any instant leaves one to go on from.
        storage.save(state, newest)
        if last.exists():
            last.replace(self.folder / "previous.pt")
        newest.replace(last)
        self._saved = time.monotonic()

    def save_weights(self, name: str, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Write weights (`best.pt`, `best_ema.pt`), and what rebuilds the model without network."""
        if distributed.first():
            content = {**self._origin.record(), "model": model.state_dict(), "step": step, "metrics": dict(metrics)}
            storage.save(content, self.folder / name)

    def best_weights(self) -> dict[str, Any]:
        """The weights of `best.pt`, which the first process reads for all."""
        return distributed.from_first(lambda: read(self.folder / "best.pt")["model"])

    def restore(
        self,
        run: Path,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        average: Average | None,
        *,
        objective: str,
    ) -> Position:
        """Bring everything back to where a state was saved; what the config now says of the optimizer holds from here on.

        But for the rates of torch's own schedules, which know no formula: those are the saved ones.

        Args:
            run: a run's folder, or one of its states.
            model: is given the saved weights.
            optimizer: is given the saved state, but keeps its settings.
            schedule: goes on at the saved step.
            average: is given the saved average; without one it begins at the saved weights.
            objective: by which the best is judged from here on.

        Raises:
            UserError: a file that is damaged, no state, of other classes, keypoints or another model, or with other batches.
        """
        path = state_file(run)
        state = distributed.from_first(lambda: read(path))
        if "position" not in state:
            raise UserError(f"{path}: holds weights only; resume needs last.pt or previous.pt.")
        theirs, ours = state["class_map"]["names"], list(self._origin.class_map.names)
        if theirs != ours:
            raise UserError(f"{path}: trained on the classes {theirs}, but the data set has {ours}.")
        if "keypoints" in cast(Any, model).iou_types:
            kept = ("names", "flip_pairs", "sigmas")  # the skeleton is for pictures only
            check_keypoints(keypoints_of(state), self._origin.keypoints, path, keys=kept)
        for key, now in self._origin.batches.items():
            if state["batches"][key] != now:
                raise UserError(
                    f"{path}: saved with {key}={state['batches'][key]}, but now it is {now}; the position in an epoch would "
                    "mean other images. Start a new run from its weights instead: model.weights=.../best.pt"
                )
        load_strict(model, state["model"], path)
        configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        try:
            optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: its optimizer's state does not fit this one ({error}).") from None
        for group, settings in zip(optimizer.param_groups, configured, strict=True):
            group.update(settings)
        schedule.load_state_dict({**schedule.state_dict(), **state["schedule"], "base_lrs": schedule.base_lrs})
        for group, rate in zip(optimizer.param_groups, _rates(schedule, state["optimizer"]), strict=True):
            group["lr"] = rate
        if average is not None and "average" in state:
            average.load_state_dict(state["average"])
        elif average is not None:
            average.restart(model)
        position = Position(**state["position"])
        position.judge_by(objective)
        return position


def _rates(schedule: LRScheduler, saved: dict[str, Any]) -> list[float]:
    """The rates of the next step: the schedule's formula over the rates configured now, where it has one."""
    if isinstance(schedule, LambdaLR):
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        return [float(lr) * factor(schedule.last_epoch) for lr, factor in pairs]
    return [group["lr"] for group in saved["param_groups"]]


def state_file(run: Path) -> Path:
    """The state to go on from: the file itself, or of a run's folder `last.pt`, else `previous.pt`."""
    if run.is_file():
        return run
    last, previous = (run / "checkpoints" / name for name in ("last.pt", "previous.pt"))
    return last if last.exists() or not previous.exists() else previous


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
    return state


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
    state = read(path)
    config = OmegaConf.create(state["config"])
    class_map = ClassMap(tuple(state["class_map"]["names"]), tuple(state["class_map"]["category_ids"]))
    # The weights are in this file: the one that training began with is not needed, and may be gone.
    if "weights" in config.model:
        config.model.weights = "none"
    keypoints = keypoints_of(state)
    counts = {"num_classes": len(class_map) + 1, "num_keypoints": len(keypoints) if keypoints is not None else None}
    model = build(config.model, group="model", allow=allow, **counts)
    load_strict(model, state["model"], path)
    return model.eval(), class_map, keypoints
