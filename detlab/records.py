"""What a run's folder tells of the run itself: on what, from what, with which end."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from detlab import storage
from detlab.checkpoint import Origin, Position
from detlab.engine import Device
from detlab.models.detectors import count_parameters
from detlab.structures import ClassMap, DetectionDataset
from detlab.writer import RunWriter

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


def origin(cfg: DictConfig, class_map: ClassMap) -> Origin:
    """Where this run's checkpoints come from."""
    return Origin(cfg, list(HydraConfig.get().overrides.task), _choices(), class_map)


def _hardware(device: Device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device.name) if device.name.type == "cuda" else None
    return {
        "device": str(device.name),
        "gpu": gpu,
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def start(
    cfg: DictConfig,
    folder: Path,
    writer: RunWriter,
    *,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    model: nn.Module,
    device: Device,
    position: Position,
) -> None:
    """Write config.yaml (resolved), split.json, run.json, and the config as text for TensorBoard."""
    resolved = OmegaConf.to_yaml(cfg, resolve=True)
    storage.write_text(folder / "config.yaml", resolved)
    names = {"train": list(train_set.image_names), "val": list(val_set.image_names)}
    storage.write_text(folder / "split.json", json.dumps(names, indent=0) + "\n")
    writer.text("config", resolved)
    parameters, trained = count_parameters(model)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    writer.record(
        {
            "state": "running",
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "overrides": list(HydraConfig.get().overrides.task),
            "choices": _choices(),
            "seed": cfg.seed,
            "started": _now(),
            "first_step": position.step,
            "images": {part: len(listed) for part, listed in names.items()},
            "classes": list(train_set.class_map.names),
            "parameters": parameters,
            "trained_parameters": trained,
            "python": platform.python_version(),
            "versions": versions,
            "hardware": _hardware(device),
        }
    )


def end(writer: RunWriter, position: Position, *, state: str) -> None:
    """Complete run.json with how the run ended and its final and best values."""
    record = json.loads((writer.folder / "run.json").read_text(encoding="utf-8"))
    writer.record({**record, "state": state, "ended": _now(), "position": asdict(position)})


def hyper_parameters(cfg: DictConfig) -> dict[str, Any]:
    """What TensorBoard's HPARAMS tab compares: the group choices, the plain top-level values, the values of the small groups."""

    def flat(prefix: str, node: DictConfig) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if not isinstance(value, DictConfig) and not str(key).startswith("_"):
                yield f"{prefix}{key}", value

    small = ("optimizer", "schedule", "augmentation")
    groups = [pair for group in small for pair in flat(f"{group}.", cfg[group])]
    return {**_choices(), **dict(flat("", cfg)), **dict(groups)}
