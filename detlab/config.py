"""What may a configuration say, where does it lie, and what does it build?"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra._internal.utils import _locate
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from detlab.errors import UserError
from detlab.evaluation.metrics import BACKENDS, METRICS


def _shipped(folder: str) -> Path:
    """A folder of configuration as shipped: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / folder if (here / folder).is_dir() else here.parent / folder


CONF = _shipped("conf")
EXPERIMENTS = _shipped("experiments")

# The modules whose classes a `_target_` may name, by group, and functions of ours; each permits itself and what lies below it.
PREFIXES: dict[str, tuple[str, ...]] = {
    "model": (
        "detlab.models.detectors.rcnn", "detlab.models.detectors.wrapped", "detlab.models.backbones.backbone",
        "detlab.ops.anchors.AnchorGenerator", "detlab.ops.roi_align.MultiScaleRoIAlign",
        "torchvision.models", "torchvision.ops", "torch.nn",
    ),
    "dataset": (
        "detlab.data.adapt.AdaptedDataset", "detlab.data.coco.coco", "detlab.data.masks.masks", "detlab.data.pennfudan.pennfudan",
        "detlab.data.synthetic.Synthetic", "detlab.data.voc.voc", "detlab.data.yolo.yolo", "detlab.data.augmentations",
        "detlab.data.transforms", "torchvision.transforms",
    ),
    "augmentation": ("detlab.data.augmentations", "detlab.data.transforms", "torchvision.transforms.v2"),
    "optimizer": ("torch.optim",),
    "schedule": (
        "detlab.schedules.constant", "detlab.schedules.cosine", "detlab.schedules.multistep", "detlab.schedules.step",
        "torch.optim.lr_scheduler",
    ),
    "evaluator": ("detlab.evaluation.coco.CocoEvaluator",),
}  # fmt: skip
# Functions of others may be named here alone, and only with `_partial_: true`: torchvision's builders, which download when called
# by themselves. detlab.models.detectors.wrapped calls them so that they do not.
BUILDERS = ("torchvision.models",)
# Never, even where a user allows them: they run commands, load code, unpickle, or write what they download.
NEVER = (
    "_io", "_pickle", "asyncio", "builtins", "code", "codeop", "ctypes", "functools", "importlib", "io", "marshal",
    "multiprocessing", "nt", "ntpath", "operator", "os", "pathlib", "pickle", "pkgutil", "posix", "posixpath", "pty",
    "runpy", "shelve", "shutil", "site", "socket", "subprocess", "sys", "tempfile", "types", "urllib", "webbrowser",
    "hydra", "torch._C", "torch.hub", "torch.jit", "torch.package", "torch.serialization", "torch.storage",
    "torch.utils.cpp_extension", "torchvision.datasets.utils", "torchvision.models._api",
)  # fmt: skip
# What the runner passes to each group's target beside the arguments in its YAML.
PASSED_BY_RUNNER: dict[str, tuple[str, ...]] = {
    "model": ("num_classes", "num_keypoints"),
    "dataset": ("part",),
    "optimizer": ("params",),
    "schedule": ("optimizer", "total_steps", "steps_per_epoch"),
    "evaluator": ("ground_truth", "class_map", "iou_types", "keypoint_sigmas"),
    "augmentation": (),
}
# Of these, what a target need not take: torch's own schedules know no length of a run, and not every model has keypoints.
PASSED_WHERE_TAKEN = ("total_steps", "steps_per_epoch", "num_keypoints", "keypoint_sigmas")
# Keys of a node that are no arguments of what it builds: the top level takes them up by interpolation, `groups` the run.
SUGGESTIONS: dict[str, tuple[str, ...]] = {
    "dataset": ("image_size", "image_sizes"),
    "model": ("objective",),
    "optimizer": ("groups",),
}
TARGET_KEYS = ("_target_", "_args_", "_partial_", "_convert_")


@dataclass
class RunConfig:
    """The top-level keys of conf/config.yaml and their types; the defaults stand there, once."""

    model: Any = MISSING
    dataset: Any = MISSING
    augmentation: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    evaluator: Any = MISSING
    name: str = MISSING
    tags: list[str] = MISSING
    seed: int = MISSING
    epochs: int = MISSING
    max_steps: int | None = MISSING
    max_minutes: float | None = MISSING
    batch_size: int = MISSING
    accumulate: int = MISSING
    shuffle: bool = MISSING
    aspect_ratio_groups: int | None = MISSING
    image_size: Any = MISSING  # min and max; Any, since it may be an interpolation of the data set's
    workers: int = MISSING
    device: str = MISSING
    devices: int | str = MISSING
    timeout: float = MISSING
    # OmegaConf knows no Literal, and its enums would not compare equal to their names.
    precision: str = field(default=MISSING, metadata={"choices": ("auto", "fp32", "bf16", "fp16")})
    channels_last: bool | None = MISSING
    keep_freed_memory: bool = MISSING
    clip_grad_norm: float | None = MISSING
    ema: float | None = MISSING
    overfit: int | None = MISSING
    profile: int | None = MISSING
    log_every: int = MISSING
    eval_every: int = MISSING
    histograms: bool = MISSING
    val_loss: bool = MISSING
    patience: int | None = MISSING
    stop_at: float | None = MISSING
    objective: str = MISSING
    checkpoint: Any = MISSING  # every_minutes
    operating_precision: float | None = MISSING
    on_nonfinite: str = field(default=MISSING, metadata={"choices": ("stop", "skip")})
    max_skipped: int = MISSING
    deterministic: bool = MISSING
    resume: str | None = MISSING
    resume_anyway: bool = MISSING
    allow: list[str] = MISSING


CHOICES: dict[str, tuple[str, ...]] = {
    f.name: f.metadata["choices"] for f in dataclasses.fields(RunConfig) if "choices" in f.metadata
}


class DetlabSearchPath(SearchPathPlugin):
    """The working folder's ./conf and ./experiments, where they exist, before the shipped folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put our folders around Hydra's `main`, the shipped conf."""
        main = SearchPathQuery(provider="main")
        for folder, shipped in (("conf", CONF), ("experiments", EXPERIMENTS)):
            own = Path.cwd() / folder
            if own.is_dir() and own.resolve() != shipped.resolve():
                search_path.prepend(provider=f"./{folder}", path=f"file://{own}", anchor=main)
        if EXPERIMENTS.is_dir():
            search_path.append(provider="experiments", path=f"file://{EXPERIMENTS}")


def processes_announced() -> int:
    """How many processes torchrun, or a launcher like it, has started this one among; 1 where none has."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ and "RANK" in os.environ else 1


_RUN_FOLDERS: dict[str, str] = {}


def run_folder(kind: str) -> str:
    """The process's default folder for its `run` or its `sweep`: the first free name of this second.

    One answer for the whole process, so that preflight, Hydra and every job of a sweep agree.
    """
    if kind not in _RUN_FOLDERS:
        _RUN_FOLDERS[kind] = _free_folder(kind)
    return _RUN_FOLDERS[kind]


def forget_run_folders() -> None:
    """Let `run_folder` decide anew."""
    _RUN_FOLDERS.clear()


def use_run_folder(kind: str, folder: str) -> None:
    """Let `run_folder` answer what another process has decided."""
    _RUN_FOLDERS[kind] = folder


def _free_folder(kind: str) -> str:
    now = datetime.now()
    first = Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}" + ("-sweep" if kind == "sweep" else ""))
    folder, number = first, 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return str(folder)


def claim_run_folder(kind: str) -> Path:
    """Create this process's default folder, for this process alone.

    Raises:
        OSError: it cannot be created.
    """
    while True:
        folder = Path(run_folder(kind))
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:  # taken since, by a run that started in the same second, or by an earlier run of ours
            forget_run_folders()
        else:
            return folder


def safe_name(text: str) -> str:
    """A folder name of at most 80 characters out of overrides: `lr=0.1,size=[1,2]` becomes `lr=0.1_size=1_2`."""
    name = re.sub(r"[^\w.=+-]+", "_", text, flags=re.ASCII).strip("_")
    name = name.replace("=_", "=")
    if len(name) > 80:
        name = f"{name[:71]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name or "defaults"


def register() -> None:
    """Make Hydra know the schema, the search path and the resolvers. Calling it again changes nothing."""
    ConfigStore.instance().store(name="schema", node=RunConfig, provider="detlab")
    plugins = Plugins.instance()
    plugins.register(DetlabSearchPath)
    from detlab import launchers, sweepers

    # Hydra builds what has a name in its own package for plugins, and nothing else.
    plugins.class_name_to_class.update(launchers.PLUGINS | sweepers.PLUGINS)
    # The launchers' packages store nodes under the names that ours have, which Hydra would take for the schemas of ours.
    stored = ConfigStore.instance().repo["hydra"]["launcher"]
    for name in ("joblib", "ray", "submitit_local", "submitit_slurm"):
        stored.pop(f"{name}.yaml", None)
    setup_globals()
    # Cached in the config: a job that a launcher sends to another process keeps its sweep's folder.
    OmegaConf.register_new_resolver("detlab.run_folder", run_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("detlab.safe_name", safe_name, replace=True)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _likeness(first: str, second: str) -> float:
    if sorted(first) == sorted(second):
        return 1.0  # letters that changed places
    return difflib.SequenceMatcher(None, first, second).ratio()


def did_you_mean(word: str, candidates: Sequence[str]) -> str:
    """` Did you mean X?` with the candidate most like `word`, or nothing where none is like it.

    Of dotted keys the last part must be alike; the rest then decides: `lr` is `optimizer.lr`, and so is `optimzer.lr`.
    """
    parent, _, leaf = word.rpartition(".")
    scores: dict[str, float] = {}
    for candidate in candidates:
        its_parent, _, its_leaf = candidate.rpartition(".")
        alike = _likeness(leaf, its_leaf)
        if alike < 0.6:
            continue
        if parent and its_parent:
            scores[candidate] = alike + _likeness(parent, its_parent)
        else:
            scores[candidate] = alike + (1.0 if parent == its_parent else 0.5)
    return f" Did you mean {max(scores, key=lambda name: scores[name])}?" if scores else ""


Rule = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(low: float) -> Rule:
    return f"{low} or more", lambda v: _is_number(v) and v >= low


def _above(low: float) -> Rule:
    return f"a finite number above {low}", lambda v: _is_number(v) and v > low


def _fraction(*, below_one: bool = False) -> Rule:
    if below_one:
        return "0 or more, and below 1", lambda v: _is_number(v) and 0 <= v < 1
    return "0 to 1", lambda v: _is_number(v) and 0 <= v <= 1


def _one_of(choices: Sequence[str]) -> Rule:
    return ", ".join(choices), lambda v: v in choices


def _is_objective(value: Any) -> bool:
    iou_type, _, metric = str(value).partition("/")
    return any(metric == known.name for name, table in METRICS.items() if name == iou_type for known in table)


MODEL_FRACTIONS = (
    "rpn_nms_thresh", "rpn_fg_iou_thresh", "rpn_bg_iou_thresh", "rpn_positive_fraction", "rpn_score_thresh",
    "box_score_thresh", "box_nms_thresh", "box_fg_iou_thresh", "box_bg_iou_thresh", "box_positive_fraction",
)  # fmt: skip
MODEL_COUNTS = (
    "rpn_pre_nms_top_n_train", "rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_train", "rpn_post_nms_top_n_test",
    "rpn_batch_size_per_image", "box_batch_size_per_image", "box_detections_per_img", "enlarge_to", "mask_hidden_channels",
    "size_divisible",
)  # fmt: skip
# What a value may be, where its key is present and not null.
RULES: dict[str, Rule] = {
    "seed": ("a whole number from 0 to 2^63 - 1", lambda v: _is_number(v) and 0 <= v < 2**63),
    "epochs": _at_least(1),
    "max_steps": _at_least(1),
    "max_minutes": _above(0),
    "batch_size": _at_least(1),
    "accumulate": _at_least(1),
    "aspect_ratio_groups": _at_least(0),
    "workers": _at_least(0),
    "log_every": _at_least(1),
    "eval_every": _at_least(1),
    "devices": ("auto, or a whole number from 1", lambda v: v == "auto" or (isinstance(v, int) and v >= 1)),
    "timeout": _above(0),
    "checkpoint.every_minutes": _above(0),
    "on_nonfinite": _one_of(CHOICES["on_nonfinite"]),
    "max_skipped": _at_least(0),
    "clip_grad_norm": _above(0),
    "ema": _fraction(below_one=True),
    "overfit": _at_least(1),
    "profile": _at_least(1),
    "patience": _at_least(1),
    "stop_at": _fraction(),
    "operating_precision": _fraction(),
    "image_size.min": _at_least(1),
    "image_size.max": _at_least(1),
    "precision": _one_of(CHOICES["precision"]),
    "device": ("auto, cpu, cuda, cuda:N, mps", lambda v: re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", str(v)) is not None),
    "objective": ("<bbox|segm|keypoints>/<metric>, such as bbox/AP or segm/AP50", _is_objective),
    "dataset.difficulty": _one_of(("easy", "hard")),
    "dataset.invalid": _one_of(("error", "drop", "clip")),
    "dataset.cache": _one_of(("none", "ram", "disk")),
    "dataset.folds": _at_least(2),
    "dataset.fold": _at_least(0),
    "dataset.fraction": ("a number above 0, up to 1", lambda v: _is_number(v) and 0 < v <= 1),
    "model.norm": _one_of(("batch", "frozen", "group", "auto")),
    "model.norm_eps": ("auto, or 0 or more", lambda v: v == "auto" or (_is_number(v) and v >= 0)),
    "model.trainable_backbone_layers": (
        "auto, all, or a whole number from 0",
        lambda v: v in ("auto", "all") or (_is_number(v) and isinstance(v, int) and v >= 0),
    ),
    "model.keypoint_layers": (
        "a list of whole numbers from 1",
        lambda v: isinstance(v, Sequence) and len(v) > 0 and all(isinstance(x, int) and x >= 1 for x in v),
    ),
    "model.image_std": ("three numbers above 0", lambda v: len(v) == 3 and all(_is_number(x) and x > 0 for x in v)),
    "model.rpn_batched": ("true, false or null", lambda v: isinstance(v, bool)),
    **{f"model.{key}": _fraction() for key in MODEL_FRACTIONS},
    **{f"model.{key}": _at_least(1) for key in MODEL_COUNTS},
    "optimizer.lr": _above(0),
    "optimizer.weight_decay": _at_least(0),
    "optimizer.momentum": _fraction(below_one=True),
    "evaluator.backend": _one_of(BACKENDS),
    "schedule.warmup_steps": _at_least(0),
    "schedule.warmup_factor": _fraction(),
    "schedule.final_factor": _fraction(),
    "schedule.gamma": _above(0),
    "schedule.step_epochs": _at_least(1),
}


def rule_fault(key: str, value: Any) -> str | None:
    """What is wrong with the range of one value, in a line; None where nothing is, or where no rule knows the key."""
    if key not in RULES or value is None:
        return None
    allowed, holds = RULES[key]
    return None if holds(value) else f"{key}: {value!r} is not allowed; allowed: {allowed}."


def value_faults(cfg: DictConfig) -> list[str]:
    """What is wrong with ranges and between fields, a line each; needs no torch, and passes over missing values."""
    unresolved: list[str] = []
    values: dict[str, Any] = {}
    for key in RULES:
        try:
            values[key] = OmegaConf.select(cfg, key)
        except InterpolationToMissingValueError:
            values[key] = None  # the missing value is a fault of its own
        except OmegaConfBaseException as error:
            unresolved.append(f"{key}: {first_line(error)}")
            values[key] = None
    # A value that is out of its range may be why another one, which interpolates it, is not found.
    faults = [fault for key, value in values.items() if (fault := rule_fault(key, value))] or unresolved
    if not any(fault.startswith(("batch_size:", "accumulate:", "devices:", "image_size.")) for fault in faults):
        faults += _cross_faults(values)
    return faults


def _cross_faults(values: dict[str, Any]) -> list[str]:
    """Rules between fields that are each in range."""
    faults = []
    batch_size, accumulate, devices = values["batch_size"], values["accumulate"], values["devices"]
    if batch_size is not None and accumulate is not None and batch_size % accumulate:
        faults.append(f"accumulate: {accumulate} does not divide batch_size={batch_size}.")
    elif isinstance(devices, int) and accumulate is not None and (batch_size or 0) % (devices * accumulate):
        faults.append(f"devices: {devices} times accumulate={accumulate} does not divide batch_size={batch_size}.")
    low, high = values["image_size.min"], values["image_size.max"]
    if low is not None and high is not None and low > high:
        faults.append(f"image_size.min: {low} is above image_size.max={high}.")
    return faults


def missing_faults(cfg: DictConfig) -> list[str]:
    """The mandatory values (`???`) that nobody gave, a line each."""
    # Not by OmegaConf.missing_keys, which follows interpolations into Hydra's own values, missing until a job starts.
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return [
        f"{key}: missing; give {key}=..."
        for name, node in plain.items()
        if name != "hydra"
        for key in _missing(node, str(name))
    ]


def _below(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _user_prefixes(allow: Sequence[str]) -> tuple[str, ...]:
    """The user's own modules, from `allow=[...]` and from DETLAB_ALLOW (comma separated)."""
    env = os.environ["DETLAB_ALLOW"].split(",") if "DETLAB_ALLOW" in os.environ else []
    return tuple(name.strip().rstrip(".") for name in (*allow, *env) if name.strip())


def find_target(
    name: Any, *, group: str, allow: Sequence[str] = (), where: str = "_target_", partial: bool = False
) -> Callable[..., Any]:
    """The class or function that a `_target_` names, where the group's allow-list permits it.

    The name is judged before anything is imported, and what it led to afterwards: `detlab.models.x.os.system` has an
    allowed beginning. Hydra's own block-list lets torch.load and builtins.getattr through.

    Args:
        name: a dotted path.
        group: whose prefixes hold; see `PREFIXES`.
        allow: the user's own modules; DETLAB_ALLOW adds to them.
        where: the key, as an error will name it.
        partial: whether the node says `_partial_: true`: what it names is not called by us.

    Raises:
        UserError: not permitted, not found, or neither a class nor a function.
    """
    modules = (*PREFIXES[group], *_user_prefixes(allow))
    permitted = f"permitted for {group}: {', '.join(modules)}"
    if not isinstance(name, str) or not _below(name, modules) or _below(name, NEVER) or "._" in name:
        advice = "" if _below(str(name), NEVER) else f"; permit your own with allow=[{str(name).partition('.')[0]}]"
        raise UserError(f"{where}: {name!r} is not permitted ({permitted}){advice}.")
    try:
        found = _locate(name)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(f"{where}: {name!r} cannot be found ({type(cause).__name__}: {first_line(cause)}).") from error
    if not (inspect.isclass(found) or inspect.isroutine(found)) or not isinstance(found.__module__, str):
        raise UserError(f"{where}: {name!r} is neither a class nor a function.")
    real = f"{found.__module__}.{found.__qualname__}"
    if not _below(real, modules) or _below(real, NEVER):
        raise UserError(f"{where}: {name!r} is {real}, which is not permitted ({permitted}).")
    own = (*(prefix for prefix in PREFIXES[group] if prefix.startswith("detlab.")), *_user_prefixes(allow))
    if not inspect.isclass(found) and not _below(real, own):
        if not _below(real, BUILDERS):
            raise UserError(f"{where}: {name!r} is a function; of {real.partition('.')[0]}, classes are permitted.")
        if not partial:
            raise UserError(
                f"{where}: {name!r} by itself would download weights that nobody verifies; give it as model.model, with "
                "_partial_: true, to detlab.models.detectors.wrapped."
            )
    return found


def _parameters(target: Callable[..., Any]) -> tuple[set[str], set[str], bool]:
    """Names that a callable takes, those that it requires, and whether it takes any other name too."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some classes in C tell no signature
        return set(), set(), True
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = {p.name for p in named if p.default is p.empty}
    return {p.name for p in named}, required, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _argument_faults(node: dict[str, Any], target: Callable[..., Any], where: str, passed: Sequence[str]) -> list[str]:
    """Arguments of one target node that are unknown or lacking, a line each."""
    takes, required, takes_any = _parameters(target)
    given = [key for key in node if key not in TARGET_KEYS]
    faults = []
    if not takes_any:
        faults += [
            f"{where}.{key}: {node['_target_']} takes no such argument.{did_you_mean(key, sorted(takes))}"
            for key in given
            if key not in takes
        ]
        faults += [
            f"{where}: {node['_target_']} takes no argument {key!r}, which each run passes to its {where}."
            for key in passed
            if key not in takes and key not in PASSED_WHERE_TAKEN
        ]
    faults += [f"{where}.{key}: each run passes it; leave it out." for key in given if key in passed]
    if "_args_" not in node and "_partial_" not in node:
        lacking = sorted(required - set(given) - set(passed))
        faults += [f"{where}.{key}: {node['_target_']} requires it; give +{where}.{key}=..." for key in lacking]
    return faults


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        yield from ((str(key), child) for key, child in node.items())
    elif isinstance(node, list):
        yield from ((str(index), child) for index, child in enumerate(node))


def _missing(node: Any, where: str) -> Iterator[str]:
    if isinstance(node, str) and node == "???":
        yield where
    for key, child in _children(node):
        yield from _missing(child, f"{where}.{key}")


def _target_faults(node: Any, group: str, allow: Sequence[str], where: str, passed: Sequence[str] = ()) -> list[str]:
    """What is wrong with the targets of a node and of all nodes below it, a line each."""
    faults: list[str] = []
    if isinstance(node, dict) and "_target_" in node and node["_target_"] != "???":
        try:
            partial = bool(node.get("_partial_"))
            target = find_target(node["_target_"], group=group, allow=allow, where=f"{where}._target_", partial=partial)
        except UserError as error:
            faults.append(str(error))
        else:
            faults += _argument_faults(node, target, where, passed)
        if "_recursive_" in node:
            faults.append(f"{where}._recursive_: not supported; what stands in a node is always built.")
    for key, child in _children(node):
        faults += _target_faults(child, group, allow, f"{where}.{key}")
    return faults


def _plain(node: Any, group: str) -> Any:
    """A node with its interpolations resolved, as dicts and lists, without the suggestions to the top level.

    Raises:
        UserError: an interpolation that leads nowhere.
    """
    try:
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise UserError(f"{group}: {first_line(error)}") from error
    if isinstance(plain, dict) and group in SUGGESTIONS:
        return {key: value for key, value in plain.items() if key not in SUGGESTIONS[group]}
    return plain


def _group_faults(cfg: DictConfig, group: str) -> list[str]:
    if OmegaConf.is_missing(cfg, group):
        return []
    try:
        node = _plain(cfg[group], group)
    except UserError as error:
        return [str(error)]
    if not isinstance(node, dict) or "_target_" not in node:
        return [f"{group}: no _target_; name what it builds."]
    return _target_faults(node, group, list(cfg.allow), group, PASSED_BY_RUNNER[group])


def _device_faults(device: str) -> list[str]:
    """A well-formed device that this machine has not."""
    import torch

    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        available.append("cuda")
    if torch.backends.mps.is_available():
        available.append("mps")
    if device == "auto" or device in available:
        return []
    return [f"device: {device!r} is not available here; available: auto, {', '.join(available)}."]


def check(cfg: DictConfig) -> None:
    """Hold a composed configuration against every rule: missing values, ranges, devices, targets and their arguments.

    Raises:
        UserError: a line for each fault, all at once.
    """
    faults = missing_faults(cfg) + value_faults(cfg)
    if rule_fault("device", cfg.device) is None:
        faults += _device_faults(cfg.device)
    for group in PREFIXES:
        faults += _group_faults(cfg, group)
    if not OmegaConf.is_missing(cfg, "optimizer") and "groups" in cfg.optimizer and cfg.optimizer.groups is not None:
        from detlab.parameters import settings_faults

        faults += settings_faults(cfg.optimizer.groups)
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


def _construct(node: Any, group: str, allow: Sequence[str], where: str, passed: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_construct(child, group, allow, f"{where}.{i}", {}) for i, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    built = {
        key: _construct(child, group, allow, f"{where}.{key}", {})
        for key, child in node.items()
        if key not in TARGET_KEYS or key == "_args_"
    }
    if "_target_" not in node:
        return built
    partial = bool(node.get("_partial_"))
    target = find_target(node["_target_"], group=group, allow=allow, where=f"{where}._target_", partial=partial)
    ours = _below(str(getattr(target, "__module__", "")), ("torch", "torchvision", "detlab"))
    positional = built.pop("_args_") if "_args_" in built else []
    takes, _, takes_any = _parameters(target)
    passed = {k: v for k, v in passed.items() if k not in PASSED_WHERE_TAKEN or takes_any or k in takes}
    if partial:
        return functools.partial(target, *positional, **built, **passed)
    try:
        return target(*positional, **{**built, **passed})
    except ValueError as error:
        # Of torch's classes these are about the values given; of a user's own they may be anything.
        if not ours:
            raise
        raise UserError(f"{where}: {first_line(error)}") from error


def build(node: Any, *, group: str, allow: Sequence[str] = (), **arguments: Any) -> Any:
    """Build what a group's node describes: the one place that turns a `_target_` into an object.

    Nested nodes are built first. Containers arrive as dicts and lists (Hydra's `_convert_="all"`); `_args_` and
    `_partial_` mean what they mean in Hydra. Not by `hydra.utils.instantiate`: that resolves names and interpolations
    once more, after any check of ours, and copies what the runner passes (the model's parameters) into config nodes.

    Args:
        node: the group's node, or one below it.
        group: whose allow-list holds; see `PREFIXES`.
        allow: the user's own modules, `cfg.allow`; DETLAB_ALLOW adds to them.
        arguments: what the runner passes beside the YAML; they win.

    Raises:
        UserError: a target that is not permitted or not found, a missing value. What a constructor raises passes
            through as it is.
    """
    plain = _plain(node, group)
    missing = list(_missing(plain, group))
    if missing:
        raise UserError("\n".join(f"{key}: missing; give {key}=..." for key in missing))
    return _construct(plain, group, allow, group, arguments)
