"""What a run is put together from: each part that the configuration describes, built with what the others know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detlab import distributed
from detlab.checkpoint import read, state_file
from detlab.config import build
from detlab.data.dataset import readings_kept
from detlab.data.loader import Loader, evaluation_loader, training_loader
from detlab.data.relabel import with_classes
from detlab.data.subset import FirstImages
from detlab.engine import Device
from detlab.errors import UserError
from detlab.models.weights import check_frozen, match_classes
from detlab.parameters import trained_parameters
from detlab.profiling import WARMUP_STEPS
from detlab.structures import ClassMap, DetectionDataset, IouType, Keypoints


def data_sets(cfg: DictConfig) -> dict[str, DetectionDataset]:
    """The parts `train` and `val`, and `test` where images are held out."""
    # A data set without the key knows of no third part.
    parts = ("train", "val", "test") if "test_size" in cfg.dataset else ("train", "val")
    with readings_kept():
        data: dict[str, DetectionDataset] = {
            part: build(cfg.dataset, group="dataset", allow=cfg.allow, part=part) for part in parts
        }
    if "test" in data and not len(data["test"]):
        del data["test"]
    if cfg.overfit is not None:
        data["train"] = data["val"] = FirstImages(data["train"], cfg.overfit)
    return data


def labelled_as(run: Path, data: dict[str, DetectionDataset]) -> dict[str, DetectionDataset]:
    """The parts with the labels that a run's model has learnt, classes matched by name.

    Args:
        run: a run's folder, or one of its states.
        data: by part.

    Raises:
        UserError: other classes than the run's.
    """
    path = state_file(run)
    names = distributed.from_first(lambda: read(path)["class_map"]["names"])
    return {part: with_classes(images, names, str(path), all_needed=True) for part, images in data.items()}


def check_profile(cfg: DictConfig, steps: int) -> None:
    """Refuse to profile more steps than an epoch has.

    Raises:
        UserError: too few steps.
    """
    if cfg.profile is not None and steps < cfg.profile + WARMUP_STEPS:
        raise UserError(
            f"profile: {cfg.profile} steps after {WARMUP_STEPS} of warm-up, but this run's first epoch has {steps}; "
            f"give {steps - WARMUP_STEPS} or less, or more images."
        )


def training_batches(cfg: DictConfig, dataset: DetectionDataset, device: Device) -> Loader:
    """The augmented micro-batches of this process."""
    return training_loader(
        dataset,
        build(cfg.augmentation, group="augmentation", allow=cfg.allow),
        batch_size=cfg.batch_size,
        accumulate=cfg.accumulate,
        shuffle=cfg.shuffle,
        seed=cfg.seed,
        workers=cfg.workers,
        pin_memory=device.name.type == "cuda",
        aspect_ratio_groups=cfg.aspect_ratio_groups,
    )


def evaluation_batches(
    cfg: DictConfig, dataset: DetectionDataset, device: Device, *, trainable: bool = False
) -> Loader:
    """The images that this process scores, one by one; `trainable` for losses."""
    on_gpu = device.name.type == "cuda"
    return evaluation_loader(dataset, workers=cfg.workers, pin_memory=on_gpu, trainable=trainable)


def detector(cfg: DictConfig, class_map: ClassMap, keypoints: Keypoints | None) -> nn.Module:
    """The model, for the classes and keypoints at hand, with the weights that it starts from."""
    counts = {"num_classes": len(class_map) + 1, "num_keypoints": len(keypoints) if keypoints is not None else None}
    model: nn.Module = build(cfg.model, group="model", allow=cfg.allow, **counts)
    if "weights" in cfg.model:
        match_classes(model, cfg.model.weights, class_map.names)
        check_frozen(model, cfg.model.weights)
    return model


def optimizer(cfg: DictConfig, model: nn.Module) -> Optimizer:
    """The optimizer over the model's trainable parameters, in the groups that the configuration asks for."""
    return build(cfg.optimizer, group="optimizer", allow=cfg.allow, params=trained_parameters(model, cfg.optimizer))


def schedule(cfg: DictConfig, optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int) -> LRScheduler:
    """The learning rate over the steps of the run."""
    length = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    return build(cfg.schedule, group="schedule", allow=cfg.allow, optimizer=optimizer, **length)


def evaluator(cfg: DictConfig, dataset: DetectionDataset, iou_types: tuple[IouType, ...]) -> Any:
    """What scores predictions for a data set."""
    return build(
        cfg.evaluator,
        group="evaluator",
        allow=cfg.allow,
        ground_truth=dataset.ground_truth(),
        class_map=dataset.class_map,
        iou_types=iou_types,
        keypoint_sigmas=dataset.keypoints.sigmas if dataset.keypoints is not None else None,
    )
