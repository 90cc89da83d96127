"""What a run's folder tells of the run itself: on what, from what, with which end."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from detlab import distributed, storage
from detlab.checkpoint import Origin, Position
from detlab.data.fingerprint import fingerprint
from detlab.engine import Device
from detlab.provenance import repositories
from detlab.structures import DetectionDataset
from detlab.writer import Writer

_PACKAGES = (
    "detlab",
    "torch",
    "torchvision",
    "hydra-core",
    "omegaconf",
    "pycocotools",
    "pillow",
    "numpy",
    "tensorboard",
)


def _choices() -> dict[str, str]:
    """The group choices of the job, less Hydra's own and those not taken."""
    choices = HydraConfig.get().runtime.choices
    return {key: value for key, value in choices.items() if not key.startswith("hydra/") and value is not None}


def origin(cfg: DictConfig, parts: Mapping[str, DetectionDataset]) -> Origin:
    """Where this run's checkpoints come from."""
    train = parts["train"]
    batches = {"batch_size": cfg.batch_size, "accumulate": cfg.accumulate, "images": len(train), "seed": cfg.seed}
    overrides = list(HydraConfig.get().overrides.task)
    data = {part: {"images": len(images), "fingerprint": fingerprint(images)} for part, images in parts.items()}
    return Origin(cfg, overrides, _choices(), train.class_map, train.keypoints, batches, data)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of parameters: all, and those that are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def _hardware(device: Device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device.name) if device.name.type == "cuda" else None
    return {
        "device": str(device.name),
        "gpu": gpu,
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "processes": distributed.size(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def recording(
    cfg: DictConfig,
    writer: Writer,
    parts: dict[str, DetectionDataset],
    model: nn.Module,
    device: Device,
    position: Position,
    origin: Origin,
) -> Iterator[None]:
    """Keep the record of a run: config.yaml (resolved), split.json and run.json at its start, run.json again at its end.

    Beside them, for each repository whose code ran with uncommitted changes, code-0.patch, code-1.patch.

    The end is `done`, `interrupted`, or `failed` with its reason; whatever it is, the final and best values stand beside it.
    Processes beside the first one leave that to it.
    """
    if not distributed.first():
        yield
        return
    resolved = OmegaConf.to_yaml(cfg, resolve=True)
    storage.write_text(writer.folder / "config.yaml", resolved)
    names = {part: list(data.image_names) for part, data in parts.items()}
    storage.write_text(writer.folder / "split.json", json.dumps(names, indent=0) + "\n")
    writer.text("config", resolved)
    record = {**_beginning(cfg, model, device, origin), "code": _code(writer.folder), "first_step": position.step}
    writer.record({**record, "state": "running"})
    try:
        yield
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        writer.record({**record, "state": state, "why": str(error), "ended": _now(), "position": asdict(position)})
        raise
    writer.record({**record, "state": "done", "ended": _now(), "position": asdict(position)})


def code_now() -> list[dict[str, Any]]:
    """The repositories of the working folder and of detlab itself; `patch` is what differs from their commits."""
    return [{**record, "patch": patch} for record, patch in repositories([Path.cwd(), Path(__file__).parent])]


def _code(folder: Path) -> list[dict[str, Any]]:
    """The same with each patch in a file of the run's folder, and its name in its place; None where nothing differs."""
    for old in folder.glob("code-*.patch"):
        old.unlink()
    records = []
    for number, code in enumerate(code_now()):
        name = f"code-{number}.patch" if code["patch"] else None
        if name is not None:
            (folder / name).write_text(code["patch"], encoding="utf-8", errors="surrogateescape")
        records.append({**code, "patch": name})
    return records


def circumstances(device: Device) -> dict[str, Any]:
    """On what a run runs: `python`, `versions` of the packages, `hardware`."""
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "hardware": _hardware(device),
    }


def _beginning(cfg: DictConfig, model: nn.Module, device: Device, origin: Origin) -> dict[str, Any]:
    """What is known when a run begins: what runs, on what, from what."""
    parameters, trained = count_parameters(model)
    return {
        "name": cfg.name,
        "tags": list(cfg.tags),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "overrides": list(HydraConfig.get().overrides.task),
        "choices": _choices(),
        "seed": cfg.seed,
        "started": _now(),
        "images": {part: known["images"] for part, known in origin.data.items()},
        "fingerprints": {part: known["fingerprint"] for part, known in origin.data.items()},
        "classes": list(origin.class_map.names),
        "parameters": parameters,
        "trained_parameters": trained,
        **circumstances(device),
    }


def hyper_parameters(cfg: DictConfig) -> dict[str, Any]:
    """What TensorBoard's HPARAMS tab compares: the choices, the plain values, those of the small groups, the overrides."""

    def flat(prefix: str, node: DictConfig) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if not isinstance(value, DictConfig) and not str(key).startswith("_"):
                yield f"{prefix}{key}", value

    small = ("optimizer", "schedule", "augmentation")
    groups = [pair for group in small for pair in flat(f"{group}.", cfg[group])]
    given = [override.partition("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task]
    values = {key: OmegaConf.select(cfg, key) for key in given if not key.startswith("~")}
    overridden = {key: value for key, value in values.items() if not isinstance(value, DictConfig)}
    tags = {"tags": " ".join(cfg.tags)}
    return overridden | _choices() | dict(flat("", cfg)) | dict(groups) | tags
