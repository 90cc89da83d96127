from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detlab.config import forget_run_folders, register, run_folder
from detlab.errors import UserError
from detlab.preflight import preflight

APP = """
import sys
import hydra
from detlab.config import CONF, register
from detlab.preflight import preflight
from hydra.core.hydra_config import HydraConfig

def job(cfg):
    print("job", HydraConfig.get().runtime.output_dir, cfg.optimizer.lr, cfg.model.min_size)

register()
sys.argv[1:] = preflight(sys.argv[1:])
try:
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""

RECIPES = "pennfudan, pennfudan_mobilenet, pennfudan_offline, pennfudan_scratch, synthetic, synthetic_keypoints, synthetic_quick"
MODELS = "fasterrcnn, keypointrcnn, keypointrcnn_mobilenet, maskrcnn, maskrcnn_mobilenet, mobilenet, mobilenet_fpn, retinanet"


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    register()
    forget_run_folders()


def faults(*argv: str) -> list[str]:
    with pytest.raises(UserError) as error:
        preflight(argv)
    return str(error.value).splitlines()


def app(*argv: str) -> subprocess.CompletedProcess[str]:
    """The arguments through preflight and Hydra, in a process and a folder of their own."""
    Path("app.py").write_text(APP)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-W", "error", "app.py", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def recorded_run(overrides: list[str]) -> Path:
    """A run's folder with what resuming needs."""
    run = Path("outputs/run=1")
    write(f"{run}/run.json", json.dumps({"overrides": overrides}))
    write(f"{run}/checkpoints/last.pt", "")
    write(f"{run}/checkpoints/previous.pt", "")
    return run


def everything() -> list[str]:
    return sorted(str(path) for path in Path.cwd().rglob("*"))


def test_a_good_command_line_passes_unchanged() -> None:
    argv = ["model=mobilenet", "optimizer.lr=0.01", "max_minutes=3", "max_steps=null", "image_size.min=100"]
    assert preflight(argv) == argv


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("optimzer.lr=0.1", "optimzer.lr: no such key. Did you mean optimizer.lr?"),
        ("lr=0.1", "lr: no such key. Did you mean optimizer.lr?"),
        ("model.lr=0.1", "model.lr: no such key. Did you mean optimizer.lr?"),
        ("epoch=3", "epoch: no such key. Did you mean epochs?"),
        ("modl=mobilenet", "modl: no such key. Did you mean model?"),
        ("xyzzy=3", "xyzzy: no such key."),
        ("model=mobilnet", f"model: no choice 'mobilnet'; allowed: {MODELS}. Did you mean mobilenet?"),
        ("experiment=x", f"experiment: no choice 'x'; allowed: {RECIPES}."),
        ("debug=null", "debug: null is no choice; leave it out with ~debug."),
        ("+debug=smoke", "+debug: the group is there already; drop the +."),
        ("hydra/launcher=slurm", "hydra/launcher: no choice 'slurm'; allowed: basic, joblib, ray, submitit_local, submitit_slurm."),
        ("hydra.job.nam=x", "hydra.job.nam: Key 'nam' not in 'JobConf'"),
        ("epochs=x", "epochs: 'x' is not an integer."),
        ("epochs=1.5", "epochs: 1.5 is not an integer."),
        ("epochs=true", "epochs: True is not an integer."),
        ("epochs=null", "epochs: null is not an integer."),
        ("max_minutes=soon", "max_minutes: 'soon' is not a number or null."),
        ("shuffle=1", "shuffle: 1 is not true or false."),
        ("allow=mine", "allow: 'mine' is not a list; write allow=[mine]."),
        ("name=[a]", "name: ['a'] is not a text."),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' is not a number."),
        ("dataset.val_size=0.5", "dataset.val_size: 0.5 is not an integer."),
        ("model.image_mean=0.5", "model.image_mean: 0.5 is not a list; write model.image_mean=[0.5]."),
        ("model.min_size=small", "model.min_size: 'small' is not an integer or a list."),
        ("optimizer={lr: fast}", "optimizer.lr: 'fast' is not a number."),
        ("optimizer={lrr: 1}", "optimizer.lrr: no such key. Did you mean optimizer.lr?"),
        ("epochs=-1", "epochs: -1 is not allowed; allowed: 1 or more."),
        ("batch_size=0", "batch_size: 0 is not allowed; allowed: 1 or more."),
        ("precision=fp8", "precision: 'fp8' is not allowed; allowed: auto, fp32, bf16, fp16."),
        ("accumulate=3", "accumulate: 3 does not divide batch_size=4."),
        ("devices=3", "devices: 3 times accumulate=1 does not divide batch_size=4."),
        ("devices=two", "devices: 'two' is not allowed; allowed: auto, or a whole number from 1."),
        ("stop_at=2", "stop_at: 2 is not allowed; allowed: 0 to 1."),
        ("optimizer.lr=???", "optimizer.lr: missing; give optimizer.lr=..."),
        ("+mine=1", "+mine: keys can be added only inside model, dataset, augmentation, optimizer, schedule, evaluator."),
        ("+optimizer.lr=1", "+optimizer.lr: the key exists; drop the +."),
        ("~optimizer.lrr", "optimizer.lrr: no such key. Did you mean optimizer.lr?"),
        ("~epochs", "~epochs: every run needs it; it cannot be deleted."),
        ("a=[1", "'a=[1': not a key=value that Hydra can read (no viable alternative at input '[1')."),
        ("mobilenet", "'mobilenet': not a key=value that Hydra can read."),
        ("optimizer.lr=1,2", "optimizer.lr: several values need -m; a list is written optimizer.lr=[...]."),
        ("--modle", "--modle: no such flag; see --hydra-help."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_to_do(override: str, fault: str) -> None:
    assert faults(override) == [fault]


def test_every_fault_is_reported_at_once() -> None:
    lines = faults(
        "model=mobilnet", "optimzer.lr=1", "epochs=x", "batch_size=0", "a=[1", "schedule.warmup_steps=???", "--bogus"
    )
    named = {line.split(":")[0] for line in lines}
    assert named == {"model", "optimzer.lr", "epochs", "batch_size", "'a=[1'", "schedule.warmup_steps", "--bogus"}


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=1e-3",
        "optimizer.lr=1",
        "optimizer.lr=${optimizer.weight_decay}",
        "dataset.split_seed=${seed}",
        "model.min_size=[96,128]",
        "model.weights=some/file.pt",
        "+optimizer.nesterov=true",
        "++optimizer.nesterov=true",
        "++optimizer.lr=0.1",
        "~optimizer.weight_decay",
        "model.mask_roi_pool=null",
        "~debug",
        "optimizer={lr: 0.1}",
        "model.anchor_generator.sizes.0=[16]",
        "hydra.job.chdir=false",
    ],
)
def test_what_hydra_takes_passes(override: str) -> None:
    argv = ["dataset=pennfudan", "dataset.root=x", override, "dataset.root=y"]
    if override == "~debug":
        argv.append("debug=smoke")
        argv.remove(override)
    assert preflight(argv) == argv


def test_each_value_of_a_sweep_is_checked() -> None:
    lines = faults(
        "-m", "optimizer.lr=0.1,fast,-1", "model=mobilenet,maskrcn", "epochs=choice(1,x)", "seed=range(-1,2)"
    )
    assert lines == [
        f"model: no choice 'maskrcn'; allowed: {MODELS}. Did you mean maskrcnn?",
        "optimizer.lr: 'fast' is not a number.",
        "optimizer.lr: -1 is not allowed; allowed: a finite number above 0.",
        "epochs: 'x' is not an integer.",
        "seed: -1 is not allowed; allowed: a whole number from 0 to 2^63 - 1.",
    ]


def test_a_key_is_checked_against_each_combination_of_swept_groups() -> None:
    assert faults("-m", "optimizer=glob(*)", "optimizer.momentum=0.5") == [
        "optimizer.momentum: no such key. (with optimizer=adamw)"
    ]


def test_a_good_sweep_passes() -> None:
    argv = ["model=glob(*)", "optimizer.lr=0.1,0.2", "seed=range(0,3)", "-m"]
    assert preflight(argv) == argv


def test_a_path_with_an_equals_sign_is_quoted_for_hydra() -> None:
    assert preflight(["model.weights=x-sweep/0-lr=0.1/best.pt"]) == ["model.weights='x-sweep/0-lr=0.1/best.pt'"]


def test_overrides_after_a_flag_are_taken_too() -> None:
    name = "hydra.job.config.override_dirname.exclude_keys=['epochs']"
    assert preflight(["epochs=2", "-m", "seed=1,2"]) == ["epochs=2", "seed=1,2", name, "-m"]


def test_a_recipe_that_sweeps_is_checked_like_a_command_line() -> None:
    recipe = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      optimizer.lr: 0.1,fast\n"
    write("experiments/sweep/mine.yaml", recipe + "      model: mobilenet,maskrcn\n")
    assert [line.split(";")[0] for line in faults("sweep=mine")] == [
        "model: no choice 'maskrcn'",
        "optimizer.lr: 'fast' is not a number.",
    ]
    preflight(["sweep=mine", "optimizer.lr=0.1", "model=mobilenet"])
    assert Path(run_folder("sweep")).is_dir()


def test_the_working_folders_choices_come_first() -> None:
    write("conf/optimizer/mine.yaml", "_target_: torch.optim.RMSprop\nlr: 0.125\n")
    write("conf/optimizer/adamw.yaml", "_target_: torch.optim.AdamW\nlr: 0.0625\n")
    write("experiments/experiment/try.yaml", "# @package _global_\noptimizer:\n  lr: 0.5\n")
    assert "0.125" in app("optimizer=mine").stdout
    assert "0.0625" in app().stdout
    assert "0.5" in app("experiment=try").stdout


def test_a_broken_recipe_is_one_line() -> None:
    write("experiments/experiment/typo.yaml", "# @package _global_\nepoch: 3\n")
    write("experiments/experiment/type.yaml", "# @package _global_\nepochs: many\n")
    assert len(faults("experiment=typo")) == len(faults("experiment=type")) == 1
    assert "'epoch' not in 'RunConfig'" in faults("experiment=typo")[0]
    assert "'many'" in faults("experiment=type")[0]
    write("experiments/experiment/yaml.yaml", "optimizer:\n  lr: [\n")
    (line,) = faults("experiment=yaml")
    assert "experiments/experiment/yaml.yaml" in line


def test_another_projects_conf_in_the_working_folder_is_pointed_at() -> None:
    write("conf/config.yaml", "a: 1\n")
    assert "./conf/config.yaml stands in for detlab's" in faults("model=mobilenet")[0]


def test_a_recipe_may_not_allow_modules() -> None:
    write("experiments/experiment/evil.yaml", "# @package _global_\nallow: [evil]\n")
    assert faults("experiment=evil") == [
        "allow: ['evil'] stands in a configuration file; give it on the command line."
    ]  # fmt: skip
    preflight(["allow=[mine]"])


@pytest.mark.parametrize("flag", ["--help", "--version", "--info", "--hydra-help", "--shell-completion"])
def test_flags_that_only_inform_pass_untouched(flag: str) -> None:
    assert preflight(["optimzer.lr=3", flag]) == ["optimzer.lr=3", flag]


def test_showing_the_configuration_needs_no_missing_value_and_no_folder() -> None:
    before = everything()
    assert preflight(["dataset=custom", "--cfg", "job"]) == ["dataset=custom", "--cfg", "job"]
    assert everything() == before
    assert faults("optimzer.lr=3", "--cfg", "job")


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_a_run_folder_that_cannot_be_written_is_named(flags: list[str]) -> None:
    Path("file").write_text("")
    key = "hydra.sweep.dir" if flags else "hydra.run.dir"
    before = everything()
    for folder in ("file/below", "/proc/below"):
        (line,) = faults(*flags, f"{key}={folder}")
        assert line.startswith(f"{key}: '{folder}' cannot be written (")
    assert everything() == before


def test_the_default_run_folder_that_cannot_be_written_is_named() -> None:
    Path("outputs").write_text("")
    (line,) = faults()
    assert line.startswith("hydra.run.dir: 'outputs/")


def test_trying_a_run_folder_leaves_nothing() -> None:
    Path("there").mkdir()
    before = everything()
    preflight(["hydra.run.dir=there/new/deep/${name}"])
    preflight(["hydra.run.dir=there"])
    preflight([], claim=False)
    assert everything() == before


def test_two_runs_of_one_second_never_share_a_folder() -> None:
    folders = []
    for _ in range(5):
        preflight([])
        folders.append(run_folder("run"))
    assert len(set(folders)) == 5
    assert all(Path(folder).is_dir() for folder in folders)


def test_a_faulty_command_line_takes_no_folder() -> None:
    faults("epochs=0")
    faults("--bogus")
    assert everything() == []


def test_resuming_composes_from_the_recorded_and_the_new_overrides() -> None:
    recorded = ["model=mobilenet", "optimizer.lr=0.1", "resume=outputs/old", "allow=[evil]", "hydra.job.chdir=true"]
    run = recorded_run(recorded)
    expected = ["model=mobilenet", "epochs=3", "optimizer.lr=0.2", f"hydra.run.dir='{run}'", f"resume='{run}'"]
    assert preflight([f"resume={run}", "epochs=3", "optimizer.lr=0.2"]) == expected
    checkpoint = f"{run}/checkpoints/previous.pt"
    assert preflight([f"resume={checkpoint}"])[-2:] == [f"hydra.run.dir='{run}'", f"resume='{checkpoint}'"]


def test_a_resumed_run_goes_on_in_its_folder() -> None:
    run = recorded_run(["optimizer.lr=0.25"])
    assert f"{run} 0.25" in app(f"resume={run}").stdout
    assert f"{run} 0.25" in app(f"resume={run}").stdout  # Hydra has written the overrides of the resumed run by now


def test_a_run_that_cannot_be_resumed_is_refused() -> None:
    run = recorded_run([])
    assert "neither a run's folder nor a checkpoint" in faults("resume=nowhere")[0]
    assert "-m" in faults("-m", f"resume={run}")[0]
    assert faults(f"resume={run}", "hydra.run.dir=other")[0].startswith("hydra.run.dir: ")
    write(f"{run}/run.json", '{"overrides": ["--config-dir=/evil"]}')
    assert "is damaged" in faults(f"resume={run}")[0]
    (run / "checkpoints" / "last.pt").unlink()
    (run / "checkpoints" / "previous.pt").unlink()
    assert "holds no checkpoints/last.pt" in faults(f"resume={run}")[0]
    (run / "run.json").unlink()
    assert "holds no run.json" in faults(f"resume={run}")[0]


def test_resume_null_is_no_resume() -> None:
    assert preflight(["resume=null"]) == ["resume=null"]


@pytest.mark.parametrize("argv", [["--help"], ["--cfg", "job"], ["--cfg", "job", "model=mobilenet"], ["epochs=2"]])
def test_nothing_imports_torch_before_the_job(argv: list[str]) -> None:
    done = app(*argv)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "False")


def test_completion_imports_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "app.py model=mo")
    monkeypatch.setenv("COMP_POINT", "15")
    done = app("-sc", "query=bash")
    assert done.stdout.split() == ["model=mobilenet", "model=mobilenet_fpn"]
    assert done.stderr.splitlines()[-1] == "False"


def test_help_shows_the_groups_and_five_examples() -> None:
    text = app("--help").stdout
    assert f"model: {MODELS}" in text
    assert text.count("python -m detlab.run") == 5
    assert "--cfg job" in text
    assert "outputs/<date>/<time>" in text


def test_a_sweeps_jobs_stand_side_by_side_under_one_folder() -> None:
    done = app("-m", "optimizer.lr=0.1,0.2", "image_size.max=200")
    assert done.returncode == 0, done.stderr
    (sweep,) = Path("outputs").glob("*/*")
    assert sweep.name.endswith("-sweep")
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == [
        "0-optimizer.lr=0.1",
        "1-optimizer.lr=0.2",
    ]
