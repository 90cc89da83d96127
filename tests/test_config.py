from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import MISSING, DictConfig, OmegaConf

from detlab.config import (
    CONF,
    NEVER,
    PREFIXES,
    RunConfig,
    build,
    check,
    find_target,
    forget_run_folders,
    missing_faults,
    register,
    run_folder,
    safe_name,
)
from detlab.errors import UserError

GROUPS = {folder.name: sorted(f.stem for f in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()}


@pytest.fixture(autouse=True)
def _composing() -> Iterator[None]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=list(overrides))


def tiny(**keys: Any) -> DictConfig:
    """The default configuration with each group replaced by something of torch's own, and changed."""
    cfg = composed()
    OmegaConf.set_struct(cfg, False)
    cfg.objective = "bbox/AP"
    cfg.dataset = {"_target_": "torchvision.transforms.Grayscale", "image_size": {"min": 8, "max": 9}}
    for key, value in keys.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def faults(cfg: DictConfig) -> list[str]:
    with pytest.raises(UserError) as error:
        check(cfg)
    return str(error.value).splitlines()


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A user's own module."""
    module = types.ModuleType("my_detlab_parts")
    source = """
import os, subprocess
class Part:
    def __init__(self, size, name="part"):
        self.size, self.name = size, name
def broken(): raise ValueError("inside")
def refusing():
    from detlab.errors import UserError
    raise UserError("root: no such folder")
"""
    exec(compile(source, "my_detlab_parts.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


ALLOW = ["my_detlab_parts"]


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group in GROUPS for choice in GROUPS[group]])
def test_every_choice_of_every_group_composes(group: str, choice: str) -> None:
    cfg = composed(f"{group}={choice}")
    assert group == "debug" or "_target_" in cfg[group]


def test_the_issues_groups_have_their_choices() -> None:
    expected = {
        "model": {"maskrcnn", "fasterrcnn", "mobilenet"},
        "dataset": {"synthetic", "pennfudan"},
        "augmentation": {"flip", "none"},
        "optimizer": {"sgd", "adamw"},
        "schedule": {"constant", "step", "multistep", "cosine"},
        "evaluator": {"coco"},
        "debug": {"smoke"},
    }
    assert all(choices <= set(GROUPS[group]) for group, choices in expected.items())


@pytest.mark.parametrize("group", [group for group in GROUPS if group in PREFIXES])
def test_every_target_of_the_shipped_groups_takes_its_arguments(group: str) -> None:
    for choice in GROUPS[group]:
        if choice != "custom":  # its inner data set is the user's
            cfg = composed(f"{group}={choice}")
            for fault in missing_faults(cfg):
                OmegaConf.update(cfg, fault.partition(":")[0], "given")
            check(cfg)


def test_the_schema_names_every_key_and_gives_no_default() -> None:
    keys = set(OmegaConf.load(CONF / "config.yaml")) - {"defaults", "hydra"}  # pyright: ignore[reportArgumentType]
    fields = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    assert set(fields) == keys | set(PREFIXES)
    assert set(fields.values()) == {MISSING}


def test_an_image_size_given_at_the_top_reaches_the_model() -> None:
    cfg = composed("image_size.min=100", "image_size.max=200")
    assert (cfg.model.min_size, cfg.model.max_size) == (100, 200)
    assert composed().model.min_size == composed().dataset.image_size.min


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", -1),
        ("epochs", 0),
        ("batch_size", 0),
        ("accumulate", 0),
        ("max_steps", 0),
        ("max_minutes", 0.0),
        ("max_minutes", float("nan")),
        ("workers", -1),
        ("log_every", 0),
        ("eval_every", 0),
        ("clip_grad_norm", -1.0),
        ("seed", -1),
        ("precision", "fp8"),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("model.rpn_batched", "maybe"),
        ("image_size.min", 0),
        ("optimizer.lr", 0),
        ("optimizer.lr", float("inf")),
        ("optimizer.lr", "fast"),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.momentum", 1.0),
        ("schedule.warmup_steps", -1),
        ("schedule.warmup_factor", 2),
        ("schedule.final_factor", -0.5),
        ("objective", "bbox/AP51"),
        ("objective", "AP"),
        ("objective", "keypoints/APs"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(key: str, value: Any) -> None:
    cfg = tiny()
    OmegaConf.update(cfg, key, value)
    assert [line for line in faults(cfg) if line.startswith(f"{key}: {value!r} is not allowed; allowed: ")]


def test_all_faults_are_reported_at_once() -> None:
    lines = faults(tiny(epochs=-1, batch_size=0, optimizer__lr=-2.0, schedule__gama=3, dataset___target_="os.system"))
    named = [line.split(": ")[0] for line in lines]
    assert named == ["epochs", "batch_size", "optimizer.lr", "dataset._target_", "schedule.gama"]


def test_fields_that_contradict_each_other_are_refused() -> None:
    lines = faults(tiny(batch_size=4, accumulate=3, image_size={"min": 20, "max": 10}))
    assert "accumulate: 3 does not divide batch_size=4." in lines
    assert "image_size.min: 20 is above image_size.max=10." in lines


def test_a_device_that_this_machine_has_not_is_refused() -> None:
    lines = faults(tiny(device="cuda:99"))
    assert any(line.startswith("device: 'cuda:99' is not available here; available: auto, cpu") for line in lines)


def test_a_missing_value_is_named() -> None:
    assert "dataset.root: missing; give dataset.root=..." in faults(tiny(dataset__root="???"))


def test_an_interpolation_that_leads_nowhere_is_named() -> None:
    assert any("nowhere" in line for line in faults(tiny(optimizer__lr="${nowhere}")))


def test_an_unknown_argument_is_named_with_the_one_meant() -> None:
    lines = faults(tiny(optimizer__weight_decai=0.9))
    assert "optimizer.weight_decai: torch.optim.AdamW takes no such argument. Did you mean weight_decay?" in lines


def test_the_arguments_of_a_nested_target_are_checked() -> None:
    name = "torchvision.ops.MultiScaleRoIAlign"
    lines = faults(tiny(model__extra={"_target_": name, "output_sise": 7}))
    assert f"model.extra.output_sise: {name} takes no such argument. Did you mean output_size?" in lines
    assert f"model.extra.sampling_ratio: {name} requires it; give +model.extra.sampling_ratio=..." in lines


def test_an_argument_that_the_runner_passes_may_not_be_given() -> None:
    assert "optimizer.params: each run passes it; leave it out." in faults(tiny(optimizer__params=[]))


def test_a_data_set_that_cannot_be_told_its_part_is_refused() -> None:
    assert any("'part'" in line for line in faults(tiny()) if line.startswith("dataset: "))


@pytest.mark.parametrize("name", ["os.system", "builtins.getattr", "builtins.eval", "torch.load", "subprocess.run"])
@pytest.mark.parametrize("group", PREFIXES)
def test_a_target_outside_the_allow_list_is_refused(group: str, name: str) -> None:
    with pytest.raises(UserError, match="not permitted"):
        find_target(name, group=group)
    with pytest.raises(UserError, match="not permitted"):
        build({"_target_": name}, group=group)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("model", "torchvision.models.detection.faster_rcnn.torch.load"),
        ("model", "torch.nn.modules.module.torch.hub.load"),
        ("model", "torch.nn.Module.__init__.__globals__.get"),
        ("model", "torch.nn.Linear.__class__"),
        ("model", "torchvision.models.resnet.ResNet50_Weights.IMAGENET1K_V2.get_state_dict"),
        ("model", "torch.nn"),
        ("dataset", "torchvision.datasets.folder.os.system"),
        ("dataset", "torchvision.datasets.utils.download_and_extract_archive"),
        ("dataset", "torchvision.datasets.mnist.shutil.rmtree"),
        ("optimizer", "torch.optim.sgd.torch.load"),
        ("augmentation", "torchvision.transforms.v2._utils.Any"),
    ],
)
def test_a_name_with_an_allowed_beginning_is_judged_by_what_it_leads_to(group: str, name: str) -> None:
    with pytest.raises(UserError):
        find_target(name, group=group)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "pickle.loads", "torch.serialization.load"])
def test_what_runs_code_is_refused_even_where_a_user_allows_it(name: str) -> None:
    with pytest.raises(UserError, match="not permitted"):
        find_target(name, group="model", allow=[name.partition(".")[0], name])


def test_an_allowed_module_does_not_lend_its_imports(mine: types.ModuleType) -> None:
    for name in ("my_detlab_parts.os.system", "my_detlab_parts.subprocess.run"):
        with pytest.raises(UserError, match="not permitted"):
            find_target(name, group="model", allow=ALLOW)


def test_a_refused_name_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_on_import.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"permit your own with allow=\[evil_on_import\]"):
        find_target("evil_on_import.Thing", group="model")


def test_a_users_own_module_is_allowed_by_argument_and_by_environment(
    mine: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "my_detlab_parts.Part"
    with pytest.raises(UserError, match="not permitted"):
        find_target(name, group="dataset")
    assert find_target(name, group="dataset", allow=ALLOW) is mine.Part
    monkeypatch.setenv("DETLAB_ALLOW", "other, my_detlab_parts")
    assert find_target(name, group="dataset") is mine.Part
    with pytest.raises(UserError, match="not permitted"):
        find_target("my_detlab_parts_too.Part", group="dataset")


def test_a_target_that_does_not_exist_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: types.ModuleType
) -> None:
    with pytest.raises(UserError, match=r"optimizer\._target_: 'torch\.optim\.SDG' cannot be found .*SDG"):
        find_target("torch.optim.SDG", group="optimizer", where="optimizer._target_")
    (tmp_path / "half_a_module.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no_such_dependency"):
        find_target("half_a_module.Thing", group="model", allow=["half_a_module"])


def test_every_never_allowed_module_that_exists_is_spelt_right() -> None:
    for name in set(NEVER) - {"nt"}:
        importlib.import_module(name)


def test_build_makes_an_optimizer_of_the_very_parameters_it_is_given() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = build(composed("optimizer=adamw").optimizer, group="optimizer", params=weights)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["params"][0] is weights[0]
    assert optimizer.param_groups[0]["lr"] == 0.001


def test_build_leaves_out_what_torchs_own_schedules_do_not_take() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    node = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 3}
    schedule = build(node, group="schedule", optimizer=optimizer, total_steps=10, steps_per_epoch=5)
    assert schedule.step_size == 3


def test_build_makes_nested_nodes_first_and_drops_suggestions(mine: types.ModuleType) -> None:
    node = OmegaConf.create(
        {
            "_target_": "my_detlab_parts.Part",
            "size": [{"_target_": "my_detlab_parts.Part", "size": "${..name}", "name": "inner"}, {"plain": [1, 2]}],
            "image_size": {"min": 1, "max": 2},
        }
    )
    node.size[0].size = 7
    part = build(node, group="dataset", allow=ALLOW, name="outer")
    assert (part.name, part.size[0].name, part.size[0].size, part.size[1]) == ("outer", "inner", 7, {"plain": [1, 2]})


def test_build_keeps_a_partial_for_later(mine: types.ModuleType) -> None:
    later = build({"_target_": "my_detlab_parts.Part", "_partial_": True}, group="model", allow=ALLOW)
    assert later(size=3).size == 3
    assert build({"_target_": "my_detlab_parts.Part", "_args_": [4]}, group="model", allow=ALLOW).size == 4


def test_build_refuses_a_nested_target_however_it_came_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", "os.system")
    hidden = "${oc.create:'{_target_: os.system, command: \"true\"}'}"
    for inner in ({"_target_": "${oc.env:EVIL}", "command": "true"}, hidden):
        node = OmegaConf.create({"_target_": "torch.nn.Sequential", "_args_": [inner]})
        with pytest.raises(UserError, match=r"os\.system"):
            build(node, group="model")
    literal = OmegaConf.create({"_target_": "torch.nn.Identity", "_args_": ["\\" + hidden]})
    assert isinstance(build(literal, group="model"), torch.nn.Identity)


def test_build_names_a_missing_value() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr: missing; give optimizer\.lr="):
        build(composed("optimizer.lr=???").optimizer, group="optimizer", params=[])


def test_what_a_constructor_raises_passes_through(mine: types.ModuleType) -> None:
    with pytest.raises(ValueError, match="inside"):
        build({"_target_": "my_detlab_parts.broken"}, group="model", allow=ALLOW)
    with pytest.raises(UserError, match="root: no such folder"):
        build({"_target_": "my_detlab_parts.refusing"}, group="model", allow=ALLOW)


def test_one_process_has_one_run_folder_and_the_next_of_the_second_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        @staticmethod
        def now() -> Any:
            import datetime

            return datetime.datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detlab.config.datetime", Clock)
    forget_run_folders()
    assert run_folder("run") == "outputs/2026-01-02/03-04-05"
    assert run_folder("sweep") == "outputs/2026-01-02/03-04-05-sweep"
    Path(run_folder("run")).mkdir(parents=True)
    assert run_folder("run") == "outputs/2026-01-02/03-04-05"
    forget_run_folders()
    assert run_folder("run") == "outputs/2026-01-02/03-04-05-2"
    forget_run_folders()


def test_a_safe_name_is_short_and_readable() -> None:
    assert safe_name("model=mobilenet,optimizer.lr=0.001") == "model=mobilenet_optimizer.lr=0.001"
    assert safe_name("a.sizes=[1,2],dataset.root='/x y/z'") == "a.sizes=1_2_dataset.root=x_y_z"
    assert safe_name("") == "defaults"
    long = [safe_name("dataset.root=" + "/very/long" * 20 + end) for end in "ab"]
    assert [len(name) for name in long] == [80, 80]
    assert long[0] != long[1]
    assert "/" not in long[0]
