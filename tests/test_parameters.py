"""Groups of parameters: who is in which, with which settings, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RESNET, TINY
from omegaconf import DictConfig
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detlab.config import build, check, register
from detlab.errors import UserError
from detlab.models.weights import settle
from detlab.parameters import parameter_groups, settings_faults, trained_parameters
from detlab.preflight import preflight


def model() -> nn.Module:
    """Every kind of norm; `stem` is frozen."""
    parts = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 4, 1),
            "frozen": FrozenBatchNorm2d(4),
            "body": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)),
            "head": nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2), nn.InstanceNorm1d(2, affine=True)),
        }
    )
    parts["stem"].requires_grad_(False)
    return parts


def named(groups: list[dict[str, Any]], of: nn.Module) -> list[tuple[dict[str, float], list[str]]]:
    """Each group's settings and the names of its parameters."""
    names = {id(parameter): name for name, parameter in of.named_parameters()}
    return [
        ({key: value for key, value in group.items() if key != "params"}, [names[id(p)] for p in group["params"]])
        for group in groups
    ]


def grouped(
    groups: Any, *, lr: float | None = 0.1, weight_decay: float | None = 0.5
) -> list[tuple[dict[str, float], list[str]]]:
    built = model()
    return named(parameter_groups(built, groups, lr=lr, weight_decay=weight_decay), built)


def faults(groups: Any, **optimizer: Any) -> list[str]:
    with pytest.raises(UserError) as error:
        grouped(groups, **optimizer)
    return str(error.value).splitlines()


TRAINED = [name for name, parameter in model().named_parameters() if parameter.requires_grad]
NORM_NAMES = [f"{part}.{i}.{kind}" for part in ("body", "head") for i in (1, 2) for kind in ("weight", "bias")]


@pytest.mark.parametrize("groups", [None, {}])
def test_without_groups_there_is_one_with_all_trained_parameters_and_no_settings(groups: Any) -> None:
    assert grouped(groups) == [({}, TRAINED)]
    assert "stem.weight" not in TRAINED


def test_norms_are_found_by_their_type_and_the_unchanged_come_first() -> None:
    others = [name for name in TRAINED if name not in NORM_NAMES]
    assert grouped({"norms": {"weight_decay": 0}}) == [
        ({"lr": 0.1, "weight_decay": 0.5}, others),
        ({"lr": 0.1, "weight_decay": 0}, NORM_NAMES),
    ]


def test_a_pattern_fits_names_and_multiplies_the_rate() -> None:
    body, head = ([name for name in TRAINED if name.startswith(part)] for part in ("body", "head"))
    assert grouped({"body.*": {"lr_factor": 0.5}}) == [
        ({"lr": 0.1, "weight_decay": 0.5}, head),
        ({"lr": 0.05, "weight_decay": 0.5}, body),
    ]


def test_of_several_patterns_the_later_wins_for_each_setting_by_itself() -> None:
    groups = {
        "body.*": {"lr_factor": 0.5, "weight_decay": 0.25},
        "*.bias": {"weight_decay": 0},
        "body.1.*": {"lr_factor": 2},
    }
    settings = {name: values for values, names in grouped(groups) for name in names}
    assert settings["body.0.weight"] == {"lr": 0.05, "weight_decay": 0.25}
    assert settings["body.0.bias"] == {"lr": 0.05, "weight_decay": 0}
    assert settings["body.1.bias"] == {"lr": 0.2, "weight_decay": 0}
    assert settings["body.1.weight"] == {"lr": 0.2, "weight_decay": 0.25}
    assert settings["head.0.weight"] == {"lr": 0.1, "weight_decay": 0.5}
    reordered = dict(reversed(groups.items()))
    assert {n: v for v, names in grouped(reordered) for n in names}["body.1.weight"] == {
        "lr": 0.05,
        "weight_decay": 0.25,
    }


def test_settings_that_are_the_optimizers_own_make_no_group() -> None:
    assert grouped({"body.*": {"lr_factor": 1}, "norms": {"weight_decay": 0.5}, "head.*": {}}) == [
        ({"lr": 0.1, "weight_decay": 0.5}, TRAINED)
    ]


def test_where_every_parameter_is_changed_there_is_no_empty_group() -> None:
    assert [values["lr"] for values, _ in grouped({"body.*": {"lr_factor": 0.5}, "head.*": {"lr_factor": 2}})] == [
        0.05,
        0.2,
    ]


def test_every_trained_parameter_is_in_one_group_in_the_order_of_the_model() -> None:
    groups = grouped({"norms": {"weight_decay": 0}, "*.bias": {"lr_factor": 2}, "head.*": {"lr_factor": 0.5}})
    assert sorted(name for _, names in groups for name in names) == sorted(TRAINED)
    assert all(names == sorted(names, key=TRAINED.index) for _, names in groups)
    assert [names[0] for _, names in groups[1:]] == sorted((names[0] for _, names in groups[1:]), key=TRAINED.index)


@pytest.mark.parametrize(
    ("groups", "fault"),
    [
        ({"bodi.*": {}}, "Did you mean body.*?"),
        ({"norm": {}}, "Did you mean norms?"),
        ({"head.0.wieght": {}}, "Did you mean head.0.weight?"),
        ({"stem.*": {}}, "fits no trained parameter; their names are like body.0.weight, body.0.bias, body.1.weight."),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused_with_help(groups: Any, fault: str) -> None:
    (line,) = faults(groups)
    assert line.startswith(f"optimizer.groups.{next(iter(groups))}: fits no trained parameter; their names are like ")
    assert line.endswith(fault)


def test_norms_of_a_model_that_trains_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.groups\.norms: .* no normalisation layer"):
        parameter_groups(nn.Sequential(nn.Linear(2, 2), FrozenBatchNorm2d(2)), {"norms": {}}, lr=0.1, weight_decay=0)
    with pytest.raises(UserError, match="this model trains none"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), {"*": {}}, lr=0.1, weight_decay=0)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "fast", True, None])
def test_settings_out_of_range_are_refused_all_at_once(value: Any) -> None:
    lines = faults({"norms": {"weight_decay": value, "lr_factor": value, "momentum": 0}, "body.*": 3})
    assert lines == [
        f"optimizer.groups.norms.weight_decay: {value!r} is not allowed; allowed: 0 or more.",
        f"optimizer.groups.norms.lr_factor: {value!r} is not allowed; allowed: a finite number above 0.",
        "optimizer.groups.norms.momentum: no such setting; allowed: lr_factor, weight_decay.",
        "optimizer.groups.body.*: 3 is no mapping; give lr_factor, weight_decay, or both.",
    ]


def test_a_factor_of_zero_and_groups_that_are_no_mapping_are_refused() -> None:
    assert settings_faults({"norms": {"lr_factor": 0}}) != []
    assert faults("norms") == [
        "optimizer.groups: 'norms' is no mapping; give patterns, such as {norms: {weight_decay: 0}}."
    ]


def test_an_optimizer_without_the_setting_is_named() -> None:
    assert faults({"norms": {"weight_decay": 0}}, weight_decay=None) == [
        "optimizer.groups.norms.weight_decay: the optimizer has no weight_decay to change; if it takes one, give "
        "+optimizer.weight_decay=..."
    ]
    assert "no lr to change" in faults({"norms": {"lr_factor": 2}}, lr=None)[0]
    assert grouped({"norms": {"lr_factor": 2}}, weight_decay=None)[1] == ({"lr": 0.2}, NORM_NAMES)


@pytest.mark.parametrize("choice", ["adamw", "sgd"])
def test_the_documented_command_line_groups_a_detector(
    choice: str, composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [
        f"optimizer={choice}",
        "optimizer.groups={norms: {weight_decay: 0}, backbone.*: {lr_factor: 0.1}}",
        *TINY,
        *RESNET,
    ]
    register()
    assert preflight(argv, claim=False) == argv
    cfg = composed(*argv)
    check(cfg)
    settle(cfg.model)
    detector = build(cfg.model, group="model", num_classes=2)
    optimizer = build(cfg.optimizer, group="optimizer", params=trained_parameters(detector, cfg.optimizer))
    lr, decay = cfg.optimizer.lr, cfg.optimizer.weight_decay
    settings = {
        name: (values["lr"], values["weight_decay"])
        for values, names in named(optimizer.param_groups, detector)
        for name in names
    }
    assert settings["backbone.body.conv1.weight"] == (lr * 0.1, decay)
    assert settings["backbone.body.bn1.weight"] == (lr * 0.1, 0)
    assert settings["roi_heads.box_predictor.cls_score.weight"] == (lr, decay)
    assert optimizer.param_groups[0]["lr"] == lr
    assert len(settings) == len(list(detector.parameters()))


def test_a_recipe_may_group_and_the_command_line_add_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = '# @package _global_\noptimizer:\n  groups:\n    "*.bias": {lr_factor: 2}\n    "*[0-9].weight": {lr_factor: 3}\n'
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "experiment").mkdir(parents=True)
    (tmp_path / "experiments" / "experiment" / "mine.yaml").write_text(recipe)
    register()
    argv = ["experiment=mine", "+optimizer.groups={norms: {weight_decay: 0}}"]
    assert preflight(argv, claim=False) == argv


def test_a_users_own_optimizer_needs_no_groups_key(composed: Callable[..., DictConfig]) -> None:
    node: Any = {"_target_": "torch.optim.Rprop", "lr": 0.01}
    built = model()
    optimizer = build(node, group="optimizer", params=trained_parameters(built, node))
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(TRAINED)]
    assert trained_parameters(built, composed().optimizer)[0].keys() == {"params"}


def test_a_schedule_moves_every_groups_rate_alike(composed: Callable[..., DictConfig]) -> None:
    node = composed("optimizer=sgd", "schedule=cosine").optimizer
    node.groups = {"body.*": {"lr_factor": 0.1}}
    built = model()
    optimizer = build(node, group="optimizer", params=trained_parameters(built, node))
    schedule = build(
        composed("schedule=cosine").schedule, group="schedule", optimizer=optimizer, total_steps=60, steps_per_epoch=10
    )
    for _ in range(40):
        optimizer.step()
        schedule.step()
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first * 0.1)
    assert 0 < first < node.lr


def test_one_group_trains_as_a_plain_list_of_parameters_does() -> None:
    weights = []
    for as_groups in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        given: Any = parameter_groups(net, None, lr=0.1, weight_decay=0.1) if as_groups else list(net.parameters())
        optimizer = torch.optim.SGD(given, lr=0.1, weight_decay=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        weights.append(net.weight.detach().clone())
    assert torch.equal(*weights)
