"""`detlab doctor`: each fault of a machine, faked, is found and comes with what to do."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from detlab import cli
from detlab.commands import doctor

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])


def test_a_line_is_said_of_each_thing_and_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    names = [
        "packages",
        "torchvision",
        "processor",
        "threads",
        "gpu",
        "tensorboard",
        "memory",
        "shared memory",
        "permission",
        "disk",
    ]
    assert [line[9:23].strip() for line in lines] == names
    assert cli.main(["doctor", "--json"]) == status
    told = json.loads(capsys.readouterr().out)
    assert [finding["name"] for finding in told["findings"]] == names
    assert told["ok"] == (status == 0)
    assert all(finding["level"] == "ok" or finding["remedy"] for finding in told["findings"])


def test_a_version_outside_of_our_own_range_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.0" if name == "hydra-core" else real(name))
    found = doctor.packages()
    assert (found.level, "hydra-core 1.2.0 does not fit <1.4,>=1.3.8" in found.said) == ("error", True)
    assert found.remedy == "pip install 'hydra-core<1.4,>=1.3.8'"


def test_a_package_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "pycocotools":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = doctor.packages()
    assert (found.level, found.said) == ("error", "pycocotools is not installed")


def test_a_torchvision_for_another_torch_is_an_error_and_the_rest_is_still_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "nms_works", broken)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert (
        "error    torchvision    torch and torchvision do not work together (operator torchvision::nms does not exist)"
        in said
    )
    assert "permission" in said
    assert "threads" not in said


@pytest.mark.parametrize(("quota", "have"), [("150000 100000", 1.5), ("max 100000", 4), ("nonsense", 4)])
def test_cores_are_those_of_the_affinity_and_of_the_control_group(
    quota: str, have: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert doctor.cores() == have


def test_more_threads_than_cores_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(doctor, "cores", lambda: 2.5)
    assert (doctor.threads().level, doctor.threads().remedy[-17:]) == ("warning", "OMP_NUM_THREADS=2")
    monkeypatch.setattr(doctor, "cores", lambda: 8)
    assert doctor.threads().level == "ok"


def test_a_processor_without_avx2_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert doctor.processor().level == "warning"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert doctor.processor().level == "ok"


@pytest.mark.parametrize(("cuda", "said"), [(None, "for processors only"), ("12.8", "torch (CUDA 12.8) cannot use it")])
def test_a_driver_that_torch_cannot_use_is_a_warning(
    cuda: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert doctor.gpu().level == "ok"
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert (doctor.gpu().level, said in doctor.gpu().said) == ("warning", True)


def test_a_tensorboard_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    assert doctor.tensorboard().level == "error"


@pytest.mark.parametrize(
    ("available", "limit", "used", "level"),
    [
        (64, "max", 0, "ok"),
        (64, str(8 * 2**30), 5, "warning"),
        (64, str(2 * 2**30), 1, "error"),
        (1, "max", 0, "error"),
    ],
)
def test_memory_is_what_is_free_and_what_the_control_group_leaves(
    available: int, limit: str, used: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available * 2**20} kB\n")
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(f"{used * 2**30}\n")
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    assert doctor.memory().level == level


@pytest.mark.parametrize(("free", "level"), [(100 * 2**20, "error"), (2 * 2**30, "warning"), (50 * 2**30, "ok")])
def test_a_disk_that_is_nearly_full_is_told(free: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    assert doctor.disk(Path("outputs").absolute()).level == level


def test_a_containers_small_shared_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**26, 0, 2**26))
    assert (doctor.shared_memory().level, "workers=0" in doctor.shared_memory().remedy) == ("warning", True)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.writable(tmp_path / "outputs").level == "ok"
    assert list(tmp_path.iterdir()) == []

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    found = doctor.writable(tmp_path / "outputs")
    assert (found.level, found.said) == ("error", f"{tmp_path}: cannot be written (Permission denied)")
