"""The wheel of this checkout, installed where the checkout is not: it holds all that detlab needs, and a user's own beside it."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import TINY, lines_of

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[1]
# What pyproject.toml makes the wheel of.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "detlab", "conf", "experiments")
# Variables that could lead Python, pip or Hydra out of the environment under test.
FOREIGN = ("PYTHON", "PIP_", "DETLAB", "HYDRA", "VIRTUAL_ENV")


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that must end with status 0."""
    done = subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@dataclass(frozen=True)
class Installed:
    """An environment into which the wheel alone is installed; torch and the others come from the environment of the tests."""

    folder: Path
    python: Path
    detlab: Path  # the console script


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from a copy: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "copy"
    copy.mkdir()
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, copy / name)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    call(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, copy, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A new virtual environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    # After the install, lest pip take the outer detlab for the one it is asked for. A folder that a .pth file names comes
    # after the new environment's own, and its own .pth files, the outer editable install's among them, are not read.
    query = "import site; print(site.getsitepackages()[0])"
    packages = Path(call(python, "-c", query, cwd=folder).stdout.strip())
    (packages / "outer.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return Installed(folder, python, scripts / "detlab")


def test_the_wheel_holds_every_module_and_every_yaml_of_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        for name in held:
            source = CHECKOUT / (name.removeprefix("detlab/") if name.endswith(".yaml") else name)
            assert archive.read(name) == source.read_bytes(), name
    modules = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "detlab").rglob("*.py")}
    choices = {
        f"detlab/{path.relative_to(CHECKOUT).as_posix()}"
        for folder in ("conf", "experiments")
        for path in (CHECKOUT / folder).rglob("*.yaml")
    }
    assert {"detlab/run.py", "detlab/conf/config.yaml", "detlab/conf/model/maskrcnn.yaml"} <= modules | choices
    assert held == modules | choices


def test_the_checkout_stays_clean(wheel: Path) -> None:
    assert not (CHECKOUT / "build").exists()
    assert not list(CHECKOUT.rglob("*.whl"))
    assert wheel.name.startswith("detlab-")


def test_detlab_is_imported_from_the_wheel(installed: Installed, tmp_path: Path) -> None:
    said = call(installed.python, "-c", "import detlab; print(detlab.__file__)", cwd=tmp_path).stdout.strip()
    assert Path(said).is_relative_to(installed.folder)


def test_help_and_config_are_the_same_from_the_script_and_from_python_m(installed: Installed, tmp_path: Path) -> None:
    assert "train" in call(installed.detlab, "--help", cwd=tmp_path).stdout
    assert "maskrcnn" in call(installed.detlab, "train", "--help", cwd=tmp_path).stdout
    by_module = call(installed.python, "-m", "detlab.run", "--cfg", "job", cwd=tmp_path).stdout
    assert call(installed.detlab, "train", "--cfg", "job", cwd=tmp_path).stdout == by_module
    assert yaml.safe_load(by_module)["model"]["_target_"] == "detlab.models.detectors.rcnn"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", ["experiment", "sweep"])
def test_each_recipe_and_sweep_of_the_checkout_composes_from_the_wheel(
    installed: Installed, tmp_path: Path, group: str
) -> None:
    recipes = [path.stem for path in (CHECKOUT / "experiments" / group).glob("*.yaml")]
    shipped = [path.stem for path in installed.folder.rglob(f"detlab/experiments/{group}/*.yaml")]
    assert sorted(shipped) == sorted(recipes)
    for recipe in shipped:
        call(installed.detlab, "train", f"{group}={recipe}", "--cfg", "all", cwd=tmp_path)


MINE = """
import torch
from PIL import Image, ImageDraw


class Squares(torch.utils.data.Dataset):
    def __init__(self, *, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image, x = Image.new("RGB", (80, 60), "navy"), 5 + 4 * index
        ImageDraw.Draw(image).rectangle((x, 10, x + 19, 29), fill="white")
        boxes = torch.tensor([[x, 10.0, x + 20.0, 30.0]])
        return image, {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64), "image_id": index}
"""

MINE_YAML = """
defaults:
  - custom
  - _self_
dataset:
  _target_: mine.Squares
  count: 8
classes: [square]
val_size: 2
image_size: {min: 60, max: 80}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder: a data set class, its YAML, an optimizer under a shipped name, and a recipe."""
    files = {
        "mine.py": MINE,
        "conf/dataset/mine.yaml": MINE_YAML,
        "conf/optimizer/adamw.yaml": "_target_: torch.optim.AdamW\nlr: 0.00123\n",
        "experiments/experiment/own.yaml": "# @package _global_\ndefaults:\n  - override /dataset: mine\nepochs: 7\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_users_own_conf_comes_before_the_shipped_one(installed: Installed, own: Path) -> None:
    for command in ((installed.detlab, "train"), (installed.python, "-m", "detlab.run")):
        config = yaml.safe_load(call(*command, "experiment=own", "--cfg", "job", cwd=own).stdout)
        assert config["optimizer"] == {"_target_": "torch.optim.AdamW", "lr": 0.00123}
        assert config["dataset"]["dataset"]["_target_"] == "mine.Squares"
        assert config["epochs"] == 7
        assert config["model"]["_target_"] == "detlab.models.detectors.rcnn"


def test_a_users_own_data_set_trains_from_the_installed_script(installed: Installed, own: Path) -> None:
    small = [override for override in TINY if override.startswith("model.")]
    chosen = ("debug=smoke", "dataset=mine", "allow=[mine]", "model=fasterrcnn", "hydra.run.dir=a")
    done = call(installed.detlab, "train", *chosen, *small, cwd=own)
    assert "best bbox/AP" in done.stdout + done.stderr
    lines = lines_of(own / "a")
    assert (lines[-1]["step"], "val/bbox/AP" in lines[-1]) == (3, True)
    assert yaml.safe_load((own / "a" / "config.yaml").read_text())["optimizer"]["lr"] == 0.00123


def test_a_class_that_is_not_allowed_is_refused_there_too(installed: Installed, own: Path) -> None:
    command = (installed.detlab, "train", "debug=smoke", "dataset=mine")
    done = subprocess.run(command, cwd=own, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "allow=[mine]" in done.stderr
