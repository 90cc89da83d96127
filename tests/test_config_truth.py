"""Whatever a user sets has an effect: each key of each configuration is read by the run that composes it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from omegaconf import DictConfig, OmegaConf

from detlab import run as detlab_run
from detlab.config import CONF, PREFIXES, SUGGESTIONS, TARGET_KEYS, find_target

Detlab = Callable[..., int]
# Read by a run that goes on, and by no other.
ON_RESUME = {"resume_anyway"}
GROUPS = (*PREFIXES, "experiment", "sweep", "debug")


class Reads:
    """The keys that a run asks its configuration for by name; what writes all of it down, or hands it on, does not count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: set[str] = set()
        self._running = False
        real = detlab_run.run
        monkeypatch.setattr(detlab_run, "run", lambda cfg: self._during(real, cfg))
        for name in ("__getattr__", "__getitem__"):
            monkeypatch.setattr(DictConfig, name, self._noting(getattr(DictConfig, name)))
        monkeypatch.setattr("detlab.records.hyper_parameters", lambda _: {})

    def _during(self, run: Callable[[DictConfig], float], cfg: DictConfig) -> float:
        self._running = True  # preflight, before it, reads all keys
        try:
            return run(cfg)
        finally:
            self._running = False

    def _noting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(config: DictConfig, key: Any) -> Any:
            if self._running and not str(key).startswith("_"):
                self.keys.add(str(config._get_full_key(key)))
            return real(config, key)

        return noted


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def interpolated(node: Any) -> Iterator[str]:
    """The keys that values of a plain node point to."""
    if isinstance(node, dict):
        for value in node.values():
            yield from interpolated(value)
    elif isinstance(node, str) and node.startswith("${") and ":" not in node:
        yield node[2:-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [TINY, (*(o for o in TINY if not o.startswith("model.backbone")), "model=mobilenet", "model.enlarge_to=96")],
    ids=["maskrcnn", "mobilenet"],
)
def test_each_key_of_the_top_level_is_read_by_the_run(
    detlab: Detlab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    composed: Callable[..., DictConfig],
    overrides: tuple[str, ...],
) -> None:
    reads = Reads(monkeypatch)
    assert detlab(*overrides, "epochs=2", "max_steps=5", "hydra.run.dir=a") == 0
    raw = OmegaConf.to_container(composed(*overrides), resolve=False)
    assert isinstance(raw, dict)
    wanted = set(leaves({key: value for key, value in raw.items() if key not in GROUPS})) - ON_RESUME
    taken_up = set(interpolated({key: raw[key] for key in PREFIXES}))
    assert wanted - reads.keys - taken_up == set()
    assert ON_RESUME & reads.keys == set()
    assert detlab("resume=a", "optimizer.lr=0.3", "resume_anyway=true") == 0
    assert reads.keys >= ON_RESUME


def nodes_of(group: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The nodes with a target in the files of a group."""

    def below(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict):
            if "_target_" in node and node["_target_"] != "???":
                yield where, node
            for key, child in node.items():
                yield from below(child, f"{where}.{key}")
        elif isinstance(node, list):
            for i, child in enumerate(node):
                yield from below(child, f"{where}.{i}")

    for path in sorted((CONF / group).glob("*.yaml")):
        yield from below(OmegaConf.to_container(OmegaConf.load(path), resolve=False), f"{group}/{path.stem}")


NODES = [pytest.param(group, node, id=where) for group in PREFIXES for where, node in nodes_of(group)]


@pytest.mark.parametrize(("group", "node"), NODES)
def test_each_key_of_a_group_is_an_argument_that_its_target_uses(group: str, node: dict[str, Any]) -> None:
    target = find_target(node["_target_"], group=group, partial="_partial_" in node)
    given = set(node) - set(TARGET_KEYS) - set(SUGGESTIONS[group] if group in SUGGESTIONS else ())
    parameters = inspect.signature(target).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        # torchvision's builders: detlab.models.builders refuses what they would ignore.
        assert "_partial_" in node
        return
    assert given <= {parameter.name for parameter in parameters}
    if not target.__module__.startswith("detlab."):
        return
    function = target.__init__ if inspect.isclass(target) else target
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    read = {n.id for n in ast.walk(body) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    by_nodes_within = {key.removeprefix(f"{group}.") for key in interpolated(node)}
    assert given - read - by_nodes_within == set()
