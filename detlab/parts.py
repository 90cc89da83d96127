"""What a run is put together from: each part that the configuration describes, built with what the others know."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from detlab.checkpoint import Origin, Resumed
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
from detlab.resumption import check_config, check_data
from detlab.structures import ClassMap, DetectionDataset, IouType, Keypoints
from detlab.untrusted import saved_config


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


def labelled_as(resumed: Resumed, data: dict[str, DetectionDataset]) -> dict[str, DetectionDataset]:
    """The parts with the labels that a resumed run's model has learnt, classes matched by name.

    Raises:
        UserError: other classes than the run's.
    """
    source = str(resumed.path)
    return {part: with_classes(images, resumed.class_names, source, all_needed=True) for part, images in data.items()}


def total_steps(cfg: DictConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    return min(cfg.epochs * steps_per_epoch, cfg.max_steps or sys.maxsize)


def same_rates(then: DictConfig, now: DictConfig, steps_per_epoch: int) -> bool:
    """Whether two runs that differ in their length alone have the same rate in each step that both make."""
    return _rates(then, then, now, steps_per_epoch) == _rates(now, then, now, steps_per_epoch)


def _rates(cfg: DictConfig, one: DictConfig, other: DictConfig, steps_per_epoch: int) -> list[float]:
    """The factors of up to a thousand steps that both runs make; of a schedule that knows no formula, its length."""
    lengths = {"total_steps": total_steps(cfg, steps_per_epoch), "steps_per_epoch": steps_per_epoch}
    rehearsed = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    made: LRScheduler = build(cfg.schedule, group="schedule", allow=cfg.allow, optimizer=rehearsed, **lengths)
    if not isinstance(made, LambdaLR):
        return [lengths["total_steps"] if "total_steps" in vars(made) else 0]
    both = min(total_steps(config, steps_per_epoch) for config in (one, other))
    return [made.lr_lambdas[0](step) for step in range(0, both, max(1, both // 1000))]


def check_same_data(resumed: Resumed, origin: Origin, data: dict[str, DetectionDataset]) -> None:
    """Refuse to go on from a state with other data; see `detlab.resumption`.

    Raises:
        UserError: says what differs.
    """
    names = {part: list(images.image_names) for part, images in data.items()}
    check_data(resumed.path, resumed.content["data"], origin.data, names)


def check_same_settings(resumed: Resumed, origin: Origin, steps_per_epoch: int) -> None:
    """Refuse to go on from a state with settings that change the result, unless told to; see `detlab.resumption`.

    Raises:
        UserError: says what differs.
    """
    then = saved_config(resumed.content["config"], resumed.path)
    # Where the schedule itself changed, that is a change of its own; only the present one, which is allowed, is built.
    rehearsed = cast(
        DictConfig, OmegaConf.create({**then, "schedule": origin.config.schedule, "allow": origin.config.allow})
    )
    rates = same_rates(rehearsed, origin.config, steps_per_epoch)
    check_config(resumed.path, resumed.content["config"], origin.config, same_rates=rates)


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
