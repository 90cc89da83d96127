"""`detlab doctor`: is this machine fit for detlab, and where it is not, what is to be done?"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from detlab.untrusted import printable

Level = Literal["ok", "warning", "error"]
GIB = 2**30
# Below these a run is likely to fail (error), or larger ones are (warning): of the default Mask R-CNN two states of 504 MiB and
# weights of 168 MiB lie side by side; the other bounds are judgement. A container's /dev/shm has 64 MiB unless told otherwise.
DISK_ERROR, DISK_WARNING = 1 * GIB, 5 * GIB
MEMORY_ERROR, MEMORY_WARNING = 2 * GIB, 4 * GIB
SHARED_WARNING = GIB // 4
CGROUP = Path("/sys/fs/cgroup")
MEMINFO, SHARED = Path("/proc/meminfo"), Path("/dev/shm")


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it stands, and what to do where that is not well."""

    name: str
    level: Level
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        return printable(f"{self.level:<8} {self.name:<14} {self.said}{f'; {self.remedy}' if self.remedy else ''}")


def main(argv: list[str]) -> int:
    """Look at the machine, and say what was found.

    Args:
        argv: the arguments after `detlab doctor`.

    Returns:
        0; 1 where there are errors.

    Raises:
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_args(argv)
    findings = list(examine())
    errors = any(finding.level == "error" for finding in findings)
    if arguments.json:
        print(json.dumps({"ok": not errors, "findings": [asdict(finding) for finding in findings]}))
    else:
        print("\n".join(map(str, findings)))
    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab doctor",
        description="Looks at versions, processor, threads, GPU, memory, disk, TensorBoard and permissions, a line each: "
        "ok, warning or error, and what to do. Exit status 1 where there are errors.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object: ok, and findings with name, level, said, remedy"
    )
    return parser


def examine() -> Iterator[Finding]:
    """All that is looked at; what cannot be looked at because torch is broken is left out, that being said."""
    yield packages()
    broken = torch_pair()
    yield broken
    if broken.level != "error":
        yield processor()
        yield threads()
        yield gpu()
        yield tensorboard()
    yield memory()
    yield shared_memory()
    outputs = Path("outputs").absolute()
    yield writable(outputs)
    yield disk(outputs)


def packages() -> Finding:
    """The versions that are installed against those that detlab's own metadata asks for; of the extras what is there."""
    from packaging.requirements import Requirement

    wrong, fine = [], [f"Python {platform.python_version()}"]
    extras = importlib.metadata.metadata("detlab").get_all("Provides-Extra") or []
    for text in importlib.metadata.requires("detlab") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        optional = marker is not None and not marker.evaluate({"extra": ""})
        if marker is not None and optional and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if not optional:
                wrong.append((f"{requirement.name} is not installed", str(requirement)))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fine += [f"{requirement.name} {version}"] if f"{requirement.name} {version}" not in fine else []
        else:
            wrong.append((f"{requirement.name} {version} does not fit {requirement.specifier}", str(requirement)))
    if wrong:
        install = " ".join(f"'{requirement}'" for _, requirement in wrong)
        return Finding("packages", "error", ", ".join(said for said, _ in wrong), f"pip install {install}")
    return Finding("packages", "ok", ", ".join(fine))


def nms_works() -> None:
    """Call one of torchvision's compiled operations: what fails where it was built for another torch."""
    import torch
    import torchvision

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def torch_pair() -> Finding:
    """Whether torch and torchvision can be imported, and fit each other."""
    try:
        nms_works()
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        return Finding(
            "torchvision",
            "error",
            f"torch and torchvision do not work together ({said[0]})",
            "install both at once, so that pip takes a pair: pip install --force-reinstall torch torchvision",
        )
    return Finding("torchvision", "ok", "its compiled operations work with this torch")


def processor() -> Finding:
    """The instructions that torch uses, and whether bf16 is faster than fp32, by measure."""
    import torch

    from detlab.engine import bf16_ratio

    capability = torch.backends.cpu.get_cpu_capability()
    ratio = bf16_ratio(torch.device("cpu"))
    said = f"{platform.machine()}, {capability}; products in bf16 take {1 / ratio:.2f} times as long as in fp32"
    if capability in ("DEFAULT", "NO AVX") and platform.machine().lower() in ("x86_64", "amd64"):
        return Finding("processor", "warning", said, "torch finds no AVX2: training will be slow; take another machine")
    return Finding("processor", "ok", f"{said}{', so precision=auto takes it' if ratio > 1.5 else ''}")


def cores() -> float:
    """Processor cores that this process may use: by its affinity, and by its control group's quota."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return here
    return here if quota == "max" else min(here, int(quota) / int(period))


def threads() -> Finding:
    """Torch's threads against the cores there are."""
    import torch

    count, have = torch.get_num_threads(), cores()
    given = f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else ""
    said = f"{count} of torch's on {have:g} cores{given}"
    if count > max(1, have):
        return Finding(
            "threads", "warning", said, f"they wait for each other: export OMP_NUM_THREADS={max(1, int(have))}"
        )
    return Finding("threads", "ok", said)


def gpu() -> Finding:
    """The GPUs that torch can use, and a driver without any."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("gpu", "ok", f"{', '.join(names)}; CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        return Finding("gpu", "ok", "Apple's, by device=mps")
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", "ok", "none; runs train on the processor")
    if torch.version.cuda is None:
        said = "there is a driver, but this torch is for processors only"
        return Finding("gpu", "warning", said, "install torch with CUDA: https://pytorch.org/get-started/locally")
    return Finding(
        "gpu",
        "warning",
        f"there is a driver, but torch (CUDA {torch.version.cuda}) cannot use it",
        "nvidia-smi says whether it works, and which CUDA it serves; update the driver, or take a torch for it",
    )


def tensorboard() -> Finding:
    """Whether runs can be recorded for TensorBoard."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter  # noqa: F401
    except Exception as error:
        said = f"cannot be imported ({type(error).__name__}: {error})"
        return Finding("tensorboard", "error", said, "pip install --force-reinstall tensorboard")
    return Finding("tensorboard", "ok", "tensorboard --logdir outputs")


def memory_limit() -> int | None:
    """Bytes that this process may come to use: what is free, or what its control group leaves; None where nobody says."""
    known = []
    try:
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        known.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            known.append(int(limit) - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(known)) if known else None


def memory() -> Finding:
    """The memory that is free."""
    free = memory_limit()
    if free is None:
        return Finding("memory", "ok", "this system does not tell how much is free")
    remedy = "a smaller model (mobilenet_fpn), batch_size=2, a smaller image_size, workers=0; or end other programs"
    return _enough("memory", free, f"{free / GIB:.1f} GiB free", remedy, MEMORY_ERROR, MEMORY_WARNING)


def shared_memory() -> Finding:
    """Where the processes that load images hand them over."""
    if not SHARED.is_dir():
        return Finding("shared memory", "ok", f"no {SHARED} here, and none needed")
    free = shutil.disk_usage(SHARED).free
    remedy = "workers=0, or more of it: docker run --shm-size=2g"
    return _enough("shared memory", free, f"{free / GIB:.2f} GiB free in {SHARED}", remedy, 0, SHARED_WARNING)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def writable(outputs: Path) -> Finding:
    """Whether runs can be written, by writing."""
    place = _existing(outputs)
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        said = f"{place}: cannot be written ({error.strerror})"
        return Finding("permission", "error", said, "work in a folder of your own, or give hydra.run.dir=DIR")
    return Finding("permission", "ok", f"{outputs} can be written")


def disk(outputs: Path) -> Finding:
    """The room for runs."""
    free = shutil.disk_usage(_existing(outputs)).free
    remedy = "delete old runs, or give hydra.run.dir on another disk"
    return _enough("disk", free, f"{free / GIB:.1f} GiB free for {outputs}", remedy, DISK_ERROR, DISK_WARNING)


def _enough(name: str, free: int, said: str, remedy: str, error: int, warning: int) -> Finding:
    if free < error:
        return Finding(name, "error", said, remedy)
    return Finding(name, "warning", said, remedy) if free < warning else Finding(name, "ok", said)
