"""Is a command line one that Hydra can run? Every fault at once, before Hydra stops at the first."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import sys
import tempfile
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir, version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from detlab.config import (
    CONF,
    PREFIXES,
    Rule,
    RunConfig,
    claim_run_folder,
    did_you_mean,
    first_line,
    missing_faults,
    processes_announced,
    rule_fault,
    run_folder,
    value_faults,
)
from detlab.errors import UserError
from detlab.launchers import EXTRAS, installed
from detlab.locks import is_taken
from detlab.resumption import HARMLESS, changes, end_of, holds_run, holds_state, plain
from detlab.sweeps import BASIC_SWEEPER
from detlab.untrusted import json_of, saved_config

AUTO = "auto"
# More combinations of swept group choices, and more values of one sweep, than these are not looked at one by one.
MAX_COMBINATIONS = 64
MAX_SWEPT_VALUES = 1000


def _whole_from(least: int) -> Rule:
    return f"a whole number from {least}", lambda value: type(value) is int and value >= least


# Of our sweepers and launchers, by their _target_.
PLUGIN_RULES: dict[str, dict[str, Rule]] = {
    "hydra_plugins.detlab.Optuna": {
        "direction": ("maximize, minimize", lambda value: value in ("maximize", "minimize")),
        "n_trials": _whole_from(1),
        "n_jobs": _whole_from(1),
        "n_startup_trials": _whole_from(0),
        "seed": _whole_from(0),
    },
    "hydra_plugins.detlab.Joblib": {
        "n_jobs": ("auto, -1, a whole number from 1", lambda value: value in ("auto", -1) or _whole_from(1)[1](value)),
    },
}

# In the defaults list, but with nothing chosen and perhaps nothing offered.
OPTIONAL_GROUPS = ("experiment", "sweep", "debug")

# Keys of groups that have a value in YAML, and that null turns off.
NULLABLE = (
    "optimizer.groups", "model.enlarge_to", "model.mask_roi_pool", "model.mask_hidden_channels",
    "dataset.val_annotations", "dataset.train_list", "dataset.val_list",
)  # fmt: skip

WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text", list: "a list", dict: "a mapping"}


def preflight(argv: Sequence[str], *, claim: bool = True) -> list[str]:
    """Check a command line against what it composes, and rewrite `resume=RUN` into RUN's own overrides.

    Flags that only inform (`--help`, `--version`, `--info`, completion) pass untouched. `register()` must have run.

    Args:
        argv: the arguments after the program's name, as Hydra's `main` takes them.
        claim: also try the run folder for real; the default one is created, so that no other run takes it. Never with
            `--cfg`.

    Returns:
        The arguments for Hydra: overrides first, then flags.

    Raises:
        UserError: a line for each fault.
    """
    arguments = list(argv)
    if "--version" in arguments:
        return arguments
    flags, unknown = get_args_parser().parse_known_args(arguments)
    informs = (flags.help, flags.hydra_help, flags.shell_completion, flags.info, flags.experimental_rerun)
    if any(informs):
        return arguments
    faults = [f"{flag}: no such flag; see --hydra-help." for flag in unknown if flag.startswith("-")]
    if flags.multirun and flags.cfg is not None:
        faults.append("--cfg: shows the configuration of one run; leave -m out.")
    if flags.config_path is not None:
        faults.append("--config-path: not supported; put your files into ./conf, or give --config-dir.")
    given = flags.overrides + [word for word in unknown if not word.startswith("-")]
    rest = list(arguments)
    for text in given:
        rest.remove(text)
    texts = _resumed([_readable(text) for text in given], flags)
    faults += _faults(flags, texts, claim=claim and not faults and flags.cfg is None)
    if faults:
        raise UserError("\n".join(faults))
    sweeps = flags.multirun or any(text.startswith("sweep=") for text in texts)
    return texts + (_folders_name_the_swept(texts) if sweeps else []) + rest


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """Compose overrides as a run with them would, for a command that starts none. `register()` must have run.

    Raises:
        UserError: a line for each fault.
    """
    texts = preflight(overrides, claim=False)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", texts, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...} in values
    return cfg


def compose_again(recorded: Sequence[str], given: Sequence[str], *, taken: Sequence[str], source: str) -> DictConfig:
    """Compose a finished run's overrides with new ones, for a command that uses the run; checked as a command line is.

    A group that is chosen anew is composed from the new overrides alone: what the run, or its recipe, had set inside the group
    was meant for another choice. `register()` must have run.

    Args:
        recorded: the run's overrides.
        given: the new ones.
        taken: the keys and groups that may be given. Of the other groups nothing recorded counts: the command does not use
            them, and their choices may be a user's own that are not here.
        source: the file that the recorded ones are from, as an error will name it.

    Raises:
        UserError: a line for each fault.
    """
    faults: list[str] = []
    flags = get_args_parser().parse_args([])
    offer = _Offer(flags)
    new = _parse([_readable(text) for text in given], offer.parser, faults)
    faults += [fault for o in new if (fault := _not_taken(o, taken))]
    new = [o for o in new if _not_taken(o, taken) is None]
    offer.extend(new)
    chosen = {o.key_or_group for o in new if offer.is_group(o)}
    left_out = chosen | (PREFIXES.keys() - set(taken))
    old = [o for o in kept(recorded, new, source) if _top(o) not in left_out]
    texts = [str(o.input_line) for o in (*old, *new)]
    of_the_run = {o.key_or_group for o in old} - {o.key_or_group for o in new}
    for fault in _faults(flags, texts, claim=False):
        faults.append(f"{fault} ({source} says so.)" if fault.partition(":")[0] in of_the_run else fault)
    if faults:
        raise UserError("\n".join(faults))
    cfg = offer.compose(texts)
    if chosen:
        alone = offer.compose([str(o.input_line) for o in new if _top(o) in chosen])
        for group in chosen:
            cfg[group] = alone[group]
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...} in a user's own files
    return cfg


def _not_taken(override: Override, taken: Sequence[str]) -> str | None:
    """Why a command that uses a finished run takes no such override, though a run would; None where it does."""
    key, top = override.key_or_group, _top(override)
    of_a_run = top in (*typing.get_type_hints(RunConfig), *OPTIONAL_GROUPS) or override.is_hydra_override()
    if override.is_sweep_override():
        return f"{key}: several values; a list is written {key}=[...]."
    if of_a_run and top not in taken and key not in taken:
        return f"{key}: stays as the run had it; what can be given is {', '.join(taken)}."
    return None


def _top(override: Override) -> str:
    """The top-level key, or the group, that an override is about."""
    return override.key_or_group.partition(".")[0]


def _folders_name_the_swept(texts: Sequence[str]) -> list[str]:
    """What makes the folders of a sweep's jobs name the values in which they differ, not those that all of them share."""
    shared = [o.key_or_group for o in _parse(texts, OverridesParser.create(), []) if not o.is_sweep_override()]
    names = ",".join(f"'{key}'" for key in shared)
    return [f"hydra.job.config.override_dirname.exclude_keys=[{names}]"] if shared else []


def _readable(text: str) -> str:
    """An override with its value in quotes where it holds a `=`, as the folders of a sweep's jobs do.

    Hydra's grammar reads no such value: `resume=outputs/x-sweep/0-optimizer.lr=0.1`.
    """
    key, _, value = text.partition("=")
    return f"{key}={_quoted(value)}" if re.fullmatch(r"[\w./~:@+-]*=[\w./~:@+=-]*", value) else text


def _parse(texts: Sequence[str], parser: OverridesParser, faults: list[str]) -> list[Override]:
    """The overrides that can be read; those that cannot become faults."""
    overrides: list[Override] = []
    for text in texts:
        try:
            overrides += parser.parse_overrides([text])
        except (HydraException, ValueError) as error:
            said = first_line(error).removeprefix(f"Error parsing override '{text}'").strip()
            faults.append(f"{text!r}: not a key=value that Hydra can read{f' ({said})' if said else ''}.")
    return overrides


def _resumed(texts: list[str], flags: argparse.Namespace) -> list[str]:
    """With `resume=RUN` among the overrides: RUN's recorded ones, then these, to run in RUN's folder."""
    overrides = _parse(texts, OverridesParser.create(), [])
    given = [o for o in overrides if o.key_or_group == "resume" and o.value() is not None]
    if not given:
        return texts
    place = given[-1].value()
    if flags.multirun or not isinstance(place, str):
        raise UserError(f"resume: {given[-1].input_line!r} names one run; it does not go with -m or several values.")
    own = [o for o in overrides if o.key_or_group == "hydra.run.dir"]
    if place == AUTO:
        found = _run_to_go_on_with(texts, own, flags)
        said = f"goes on with {found}" if found is not None else "finds no run to go on with, and starts one"
        print(f"detlab: resume=auto {said}.", file=sys.stderr)
        if found is None:
            return texts
        place = str(found)
        given += own
    elif own:
        raise UserError("hydra.run.dir: a resumed run goes on in its own folder; leave hydra.run.dir out.")
    run = _run_of(Path(place))
    new = [text for text in texts if text not in {o.input_line for o in given}]
    again = recorded_and_new(run, new)
    return [*again, f"hydra.run.dir={_quoted(str(run))}", f"resume={_quoted(place)}"]


def recorded_and_new(run: Path, new: Sequence[str]) -> list[str]:
    """The overrides of a run that hold beside new ones, and these.

    Args:
        run: its folder.
        new: overrides that can be read.

    Raises:
        UserError: its run.json is not there, or damaged.
    """
    try:
        # Not .hydra/overrides.yaml: Hydra writes that before a refusal too.
        recorded = [str(line) for line in json_of(run / "run.json")["overrides"]]
    except OSError:
        raise UserError(f"{run}: holds no run.json; it is no run's folder.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run}/run.json is damaged ({error}).") from None
    still = [str(o.input_line) for o in kept(recorded, _parse(new, OverridesParser.create(), []), f"{run}/run.json")]
    # A job of `sweep=lr` goes on by itself; its recipe would start a sweep again.
    return [*still, *new, *(["hydra.mode=RUN"] if any(text.startswith("sweep=") for text in still) else [])]


def _run_to_go_on_with(texts: Sequence[str], own: Sequence[Override], flags: argparse.Namespace) -> Path | None:
    """What `resume=auto` means: the folder that `hydra.run.dir` names, where it holds a state; else the newest unfinished run of
    the same configuration below `outputs` that nobody is at work on.

    Raises:
        UserError: the folder holds a finished run without its state, which a new one would write over.
    """
    if own:
        folder = Path(str(own[-1].value()))
        if holds_state(folder):
            return folder
        if end_of(folder) == "done":
            raise UserError(
                f"hydra.run.dir: {str(folder)!r} holds a finished run without last.pt; choose another folder."
            )
    unfinished = [
        path.parent
        for path in Path("outputs").glob("*/*/run.json")
        if holds_state(path.parent) and end_of(path.parent) != "done" and not is_taken(path.parent)
    ]
    if not unfinished:
        return None
    offer = _Offer(flags)
    faults: list[str] = []
    overrides = _parse(texts, offer.parser, faults)
    offer.extend(overrides)
    try:
        cfg = offer.compose([str(o.input_line) for o in overrides])
        HydraConfig.instance().set_config(cfg)  # for ${hydra:...} in values
        now = plain(cfg)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError):
        return None  # its faults are told with all others
    unfinished.sort(key=lambda folder: (folder / "run.json").stat().st_mtime, reverse=True)
    return next((folder for folder in unfinished if _is_run_of(folder, now)), None)


def _is_run_of(folder: Path, now: dict[str, Any]) -> bool:
    """Whether a run had this configuration, but for keys that change no result; other places are another run."""
    path = folder / "config.yaml"
    try:
        then = plain(saved_config(path.read_text(encoding="utf-8"), path))
    except (OSError, ValueError, UserError):
        return False
    # A run writes down what it took `auto` for.
    return all(value == "auto" for _, value in changes(then, now, passed_over=HARMLESS).values())


def kept(recorded: Sequence[str], overrides: Sequence[Override], source: str) -> list[Override]:
    """Of a run's recorded overrides those that hold beside new ones.

    `allow` and `hydra.*` do not: what a saved file may not say is which code runs.

    Raises:
        UserError: one that cannot be read; names `source`.
    """
    faults: list[str] = []
    old = _parse(recorded, OverridesParser.create(), faults)
    if faults:
        raise UserError(f"{source} is damaged. {' '.join(faults)}")
    replaced = {o.get_key_element() for o in overrides}
    return [
        o
        for o in old
        if _top(o) not in ("resume", "allow") and not o.is_hydra_override() and o.get_key_element() not in replaced
    ]


def _run_of(place: Path) -> Path:
    """The run folder that a `resume=` names, by itself or by a checkpoint in it."""
    run = place.parent.parent if place.is_file() and place.parent.name == "checkpoints" else place
    if not run.is_dir():
        raise UserError(f"resume: {str(place)!r} is neither a run's folder nor a checkpoint in RUN/checkpoints.")
    for needed in (("run.json",), ("checkpoints/last.pt", "checkpoints/previous.pt")):
        if not any((run / name).is_file() for name in needed):
            raise UserError(f"resume: {str(run)!r} holds no {needed[0]}; nothing to go on from.")
    return run


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _values(override: Override) -> list[Any]:
    """The values that an override gives its key, one by one where it sweeps; of an interval its ends."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [int(end) if "int" in value.tags else end for end in (value.start, value.end) if end is not None]
    if not override.is_sweep_override():
        return [value]
    swept = itertools.islice(override.sweep_iterator(), MAX_SWEPT_VALUES)
    return [Override._convert_value(element) for element in swept]


def _empty_sweep(override: Override, allowed: str = "") -> list[str]:
    """A sweep without a value, such as `glob(x*)` that fits no choice: Hydra would start no job at all."""
    if not override.is_sweep_override() or _values(override):
        return []
    text = str(override.input_line).partition("=")[2]
    return [f"{override.key_or_group}: {text} gives no value{allowed}."]


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    hint = typing.get_origin(hint) or hint
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str | int | float)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    said = ["null" if part is types.NoneType else WORDS[typing.get_origin(part) or part] for part in parts]
    return " or ".join(said)


def _keys(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config in dots, with the type that its value asks for; interpolations are followed."""
    names: Sequence[Any] = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for name in names:
        key = f"{prefix}{name}"
        if OmegaConf.is_missing(node, name):
            yield key, Any
            continue
        try:
            value = node[name]
        except OmegaConfBaseException:  # an interpolation that leads nowhere yet
            yield key, Any
            continue
        if isinstance(value, DictConfig | ListConfig):
            yield key, dict if isinstance(value, DictConfig) else list
            yield from _keys(value, f"{key}.")
        elif value is None:
            yield key, Any
        elif OmegaConf.is_interpolation(node, name):
            # A size that follows the top level may become torchvision's list of sizes.
            yield key, (type(value) | list if isinstance(value, int | float) else type(value))
        else:
            yield key, type(value)


def _leaves(key: str, value: Any, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """An override as single values: `optimizer={lr: 1}` is `optimizer.lr=1` where `optimizer` is a mapping."""
    if isinstance(value, dict) and key in known and known[key] is dict:
        for name, child in value.items():
            yield from _leaves(f"{key}.{name}", child, known)
    else:
        yield key, value


class _Offer:
    """What the search path offers: groups, their choices, and what composes from them."""

    def __init__(self, flags: argparse.Namespace) -> None:
        version.setbase("1.3")
        setup_globals()
        search_path = create_config_search_path(str(CONF))
        if flags.config_dir is not None:
            folder = Path(flags.config_dir).resolve()
            if not folder.is_dir():
                raise UserError(f"--config-dir: {flags.config_dir!r} is not a folder.")
            search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
        self.config_name: str = flags.config_name or "config"
        self.loader = ConfigLoaderImpl(search_path)
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.repository: IConfigRepository = self.loader.repository
        self.searchpath: list[str] = []

    def extend(self, overrides: Sequence[Override]) -> None:
        """Take up `hydra.searchpath=[...]`, which changes what is on offer."""
        self.searchpath = [str(o.input_line) for o in overrides if o.key_or_group == "hydra.searchpath"]
        if self.searchpath:
            parse = self.loader._parse_overrides_and_create_caching_repo
            self.repository = parse(self.config_name, self.searchpath)[1]

    def is_group(self, override: Override) -> bool:
        """Whether an override chooses from a group, rather than giving a value."""
        key = override.key_or_group
        known = key in OPTIONAL_GROUPS or self.repository.group_exists(key)
        return known and not isinstance(override.value(), dict)

    def compose(self, choices: Sequence[str]) -> DictConfig:
        """The configuration of these group choices, before any value is changed."""
        return self.loader.load_configuration(
            self.config_name, [*self.searchpath, *choices], RunMode.RUN, validate_sweep_overrides=False
        )

    def choice_faults(self, override: Override) -> list[str]:
        """The choices of one group override that nobody offers, a line each."""
        group = override.key_or_group
        if override.is_delete():
            return []
        if override.is_add() and group in (*PREFIXES, *OPTIONAL_GROUPS):
            return [f"+{group}: the group is there already; drop the +."]
        offered = self.repository.get_group_options(group)
        faults = _empty_sweep(override, f"; allowed: {', '.join(offered) or 'none yet'}")
        for value in _values(override):
            for choice in value if isinstance(value, list) else [value]:
                if choice is None:
                    faults.append(f"{group}: null is no choice; leave it out with ~{group}.")
                elif not self.repository.config_exists(f"{group}/{choice}"):
                    allowed = ", ".join(offered) or "none yet"
                    hint = did_you_mean(str(choice), offered)
                    faults.append(f"{group}: no choice {str(choice)!r}; allowed: {allowed}.{hint}")
        return faults


def _faults(flags: argparse.Namespace, texts: Sequence[str], claim: bool) -> list[str]:
    """All that is wrong with a command line; takes the run folder where nothing is."""
    faults: list[str] = []
    offer = _Offer(flags)
    overrides = _parse(texts, offer.parser, faults)
    offer.extend(overrides)
    overrides = _without_faults(overrides, offer, faults)
    combinations = _combinations([o for o in overrides if offer.is_group(o)])
    try:
        cfg = offer.compose(combinations[0])
        multirun = flags.multirun or _mode(cfg, overrides) == RunMode.MULTIRUN
        if multirun and (params := _sweeper_params(cfg, overrides, offer, faults)):
            overrides += params
            combinations = _combinations([o for o in overrides if offer.is_group(o)])
            cfg = offer.compose(combinations[0])
        faults += _plugin_faults(cfg, overrides) if multirun else _sweeps_without_multirun(overrides)
        if multirun and (processes := processes_announced()) > 1:
            faults.append(f"-m: no sweep under torchrun; start detlab by itself, and give devices={processes}.")
        values = [o for o in overrides if not offer.is_group(o)]
        found = {}
        for choices in combinations:
            composed = cfg if choices is combinations[0] else offer.compose(choices)
            found[" ".join(choices)] = _composed_faults(composed, values, missing=flags.cfg is None)
        faults += _by_combination(found)
        faults += _plugin_value_faults(cfg) if multirun else []
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        return [*faults, _composition_fault(error)]
    if claim and not faults:
        faults += _folder_faults(cfg, "sweep" if multirun else "run")
    return list(dict.fromkeys(faults))


def _without_faults(overrides: list[Override], offer: _Offer, faults: list[str]) -> list[Override]:
    """The overrides less the group choices that nobody offers, which become faults: what is left may still compose."""
    kept = []
    for override in overrides:
        found = offer.choice_faults(override) if offer.is_group(override) else []
        faults += found
        kept += [] if found else [override]
    return kept


def _composition_fault(error: Exception) -> str:
    """Why a configuration does not compose: Hydra's first line, and what it ends in where that says more."""
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if isinstance(error, YAMLError):
        said = " ".join(lines)
    elif isinstance(error.__cause__, OmegaConfBaseException):
        said = f"{said} {first_line(error.__cause__)}"
    own = Path("conf/config.yaml")
    if own.is_file() and not own.samefile(CONF / "config.yaml"):
        said = f"{said} (The working folder's ./conf/config.yaml stands in for detlab's.)"
    return f"The configuration does not compose: {said}"


def _combinations(groups: Sequence[Override]) -> list[list[str]]:
    """The group choices of each job of a sweep, or of the one run, as overrides without sweeps."""
    options = [
        [f"{o.get_key_element()}={choice}" for choice in _values(o)] if o.is_sweep_override() else [str(o.input_line)]
        for o in groups
    ]
    return [list(chosen) for chosen in itertools.islice(itertools.product(*options), MAX_COMBINATIONS)]


def _by_combination(found: dict[str, list[str]]) -> list[str]:
    """The faults of all combinations, each once; one that only some have says the first of these."""
    where: dict[str, list[str]] = {}
    for choices, faults in found.items():
        for fault in faults:
            where.setdefault(fault, []).append(choices)
    return [fault if len(some) == len(found) else f"{fault} (with {some[0]})" for fault, some in where.items()]


def _mode(cfg: DictConfig, overrides: Sequence[Override]) -> RunMode | None:
    given = [o.value() for o in overrides if o.key_or_group == "hydra.mode"]
    return RunMode[str(given[-1])] if given and str(given[-1]) in RunMode.__members__ else cfg.hydra.mode


def _sweeper_params(cfg: DictConfig, overrides: Sequence[Override], offer: _Offer, faults: list[str]) -> list[Override]:
    """What a recipe sweeps over (`hydra.sweeper.params`), less what the command line gives itself."""
    params = OmegaConf.select(cfg, "hydra.sweeper.params")
    given = {o.get_key_element() for o in overrides}
    found = _parse([f"{key}={value}" for key, value in (params or {}).items()], offer.parser, faults)
    return _without_faults([o for o in found if o.get_key_element() not in given], offer, faults)


def _sweeps_without_multirun(overrides: Sequence[Override]) -> list[str]:
    return [
        f"{o.key_or_group}: several values need -m; a list is written {o.key_or_group}=[...]."
        for o in overrides
        if o.is_sweep_override()
    ]


def _plugin_faults(cfg: DictConfig, overrides: Sequence[Override]) -> list[str]:
    """A sweeper or launcher that is not installed, and values that the sweeper cannot draw."""
    faults = []
    for part in ("sweeper", "launcher"):
        target = OmegaConf.select(cfg, f"hydra.{part}._target_")
        if target in EXTRAS and not installed(EXTRAS[target][0]):
            faults.append(
                f"hydra/{part}: needs a package that is not installed.\nInstall it: pip install 'detlab[{EXTRAS[target][1]}]'"
            )
    if OmegaConf.select(cfg, "hydra.sweeper._target_") == BASIC_SWEEPER:
        faults += [
            f"{o.key_or_group}: an interval has no end of values; draw from it with hydra/sweeper=optuna, or give values: a,b,c."
            for o in overrides
            if o.is_interval_sweep()
        ]
    return faults


def _plugin_value_faults(cfg: DictConfig) -> list[str]:
    """Values of our sweepers and launchers that these would stumble over."""
    faults = []
    for part in ("sweeper", "launcher"):
        node = OmegaConf.select(cfg, f"hydra.{part}")
        target = OmegaConf.select(cfg, f"hydra.{part}._target_")
        for key, (allowed, fits) in (PLUGIN_RULES[target] if target in PLUGIN_RULES else {}).items():
            if not fits(value := OmegaConf.select(node, key)):
                faults.append(f"hydra.{part}.{key}: {value!r} is not allowed; allowed: {allowed}.")
    return faults


def overrides_parser() -> OverridesParser:
    """A parser that knows the groups on offer, for `glob(*)`. `register()` must have run."""
    return _Offer(get_args_parser().parse_args([])).parser


def _composed_faults(cfg: DictConfig, values: Sequence[Override], *, missing: bool) -> list[str]:
    """What is wrong with the values given to one composition; applies those that fit to `cfg`."""
    faults = []
    if cfg.allow:
        faults.append(f"allow: {list(cfg.allow)} stands in a configuration file; give it on the command line.")
    for override in values:
        faults += _override_faults(cfg, override)
    faults += missing_faults(cfg) if missing else []
    return faults + value_faults(cfg)


def _override_faults(cfg: DictConfig, override: Override) -> list[str]:
    """Apply one value override, of a sweep its first value; say what is wrong where it does not fit."""
    key = override.key_or_group
    if override.is_hydra_override():
        return _applied(cfg, override)
    known = _known(cfg)
    faults = _key_faults(override, known) + _empty_sweep(override)
    if key in known and not faults and not override.is_delete() and not override.is_add():
        leaves = [leaf for value in _values(override) for leaf in _leaves(key, value, known)]
        for leaf, value in leaves:
            faults += _value_faults(leaf, value, known)
    if not faults:
        faults += _applied(cfg, override)
    return faults


def _known(cfg: DictConfig) -> dict[str, Any]:
    """Every key of a composed configuration, with the type that it asks for: the schema's, else its default's."""
    hints = typing.get_type_hints(RunConfig)
    known = {key: hint for key, hint in _keys(cfg) if key != "hydra" and not key.startswith("hydra.")}
    known |= {key: hint for key, hint in hints.items() if key in known and hint is not Any}
    known |= {key: Any for key in known if key.startswith("optimizer.groups.")}  # checked where the model is known
    return known | {key: known[key] | types.NoneType for key in NULLABLE if key in known and known[key] is not Any}


def _key_faults(override: Override, known: dict[str, Any]) -> list[str]:
    """What is wrong with an override's key."""
    key = override.key_or_group
    exists = key in known
    if override.is_add() and exists and not {dict, list} & {known[key], *typing.get_args(known[key])}:
        return [f"+{key}: the key exists; drop the +."]
    if (override.is_add() or override.is_force_add()) and not exists:
        inside = "." in key and key.partition(".")[0] in PREFIXES
        return [] if inside else [f"+{key}: keys can be added only inside {', '.join(PREFIXES)}."]
    if override.is_delete() and "." not in key:
        return [f"~{key}: every run needs it; it cannot be deleted."]
    if not exists:
        return [f"{key}: no such key.{did_you_mean(key, [*known, *OPTIONAL_GROUPS])}"]
    return []


def _value_faults(key: str, value: Any, known: dict[str, Any]) -> list[str]:
    """What is wrong with the type or range of one value."""
    if key not in known:
        return [f"{key}: no such key.{did_you_mean(key, list(known))}"]
    if isinstance(value, str) and ("${" in value or value == "???"):
        return []
    hint = known[key]
    if not _fits(value, hint):
        advice = f"; write {key}=[{value}]" if hint is list or typing.get_origin(hint) is list else ""
        shown = "null" if value is None else repr(value)
        return [f"{key}: {shown} is not {_in_words(hint)}{advice}."]
    fault = rule_fault(key, value)
    return [fault] if fault else []


def _applied(cfg: DictConfig, override: Override) -> list[str]:
    """Change the configuration as Hydra will; what it refuses is a fault."""
    key = override.key_or_group
    values = _values(override)
    try:
        if override.is_delete():
            ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
        elif values:
            adds = override.is_add() or override.is_force_add()
            OmegaConf.update(cfg, key, values[0], merge=True, force_add=adds)
    except (HydraException, OmegaConfBaseException) as error:
        return [f"{key}: {first_line(error)}"]
    return []


def _folder_faults(cfg: DictConfig, kind: str) -> list[str]:
    """Try the run folder for real: permission bits say little to root, and nothing about a full or foreign disk."""
    key, folder = f"hydra.{kind}.dir", ""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...} in the folder's name
    try:
        folder = str(OmegaConf.select(cfg, key))
        if folder == run_folder(kind):
            folder = str(claim_run_folder(kind))
        elif cfg.resume is None and kind == "run" and holds_run(Path(folder)):
            return [
                f"{key}: {folder!r} holds a run already; resume={folder} goes on with it, or choose another folder."
            ]
        else:
            _write_into(Path(folder))
    except OmegaConfBaseException as error:
        return [f"{key}: {first_line(error)}"]
    except OSError as error:
        return [f"{key}: {str(error.filename or folder)!r} cannot be written ({error.strerror}); choose another {key}."]
    finally:
        HydraConfig.instance().cfg = before
    return []


def _write_into(folder: Path) -> None:
    """Create a folder and a file in it, and remove what was created.

    Raises:
        OSError: it cannot be done.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()
