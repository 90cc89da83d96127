"""A run, from the command line to the metric that a sweeper optimises: `python -m detlab.run [overrides]`."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from detlab.config import CONF, build, check, register
from detlab.errors import UserError
from detlab.jobs import Jobs
from detlab.preflight import preflight

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float:
    """Train, score and record one run in Hydra's output folder; returns the best `val/<objective>`.

    Raises:
        UserError: a mistake in the config or in the data.
        NonFiniteLossError: training broke down.
        Interrupted: Ctrl-C, after the state was saved.
    """
    # All that brings torch is imported here: --help and --cfg job answer at once.
    import torch

    from detlab import records
    from detlab.checkpoint import Checkpoints, Position, state_file
    from detlab.console import Console
    from detlab.data.loader import evaluation_loader, training_loader
    from detlab.engine import evaluate, select_device, train_one_epoch
    from detlab.models.weights import check_frozen
    from detlab.pictures import comparison_of
    from detlab.stopping import Interrupted, RunStopping
    from detlab.structures import learnable_iou_types
    from detlab.writer import RunWriter

    check(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.resume is None and any(folder.glob("checkpoints/*.pt")):
        raise UserError(f"{folder}: holds a run already; resume it, or choose another folder.")
    device = select_device(cfg.device, cfg.precision)
    torch.manual_seed(cfg.seed)

    train_set, val_set = (build(cfg.dataset, group="dataset", allow=cfg.allow, part=part) for part in ("train", "val"))
    augmentation = build(cfg.augmentation, group="augmentation", allow=cfg.allow)
    train_loader = training_loader(
        train_set,
        augmentation,
        batch_size=cfg.batch_size,
        accumulate=cfg.accumulate,
        shuffle=cfg.shuffle,
        seed=cfg.seed,
        workers=cfg.workers,
        pin_memory=device.name.type == "cuda",
    )
    val_loader = evaluation_loader(val_set, workers=cfg.workers, pin_memory=device.name.type == "cuda")

    classes = train_set.class_map
    model = build(cfg.model, group="model", allow=cfg.allow, num_classes=len(classes) + 1)
    if "weights" in cfg.model:
        check_frozen(model, cfg.model.weights)
    iou_types = learnable_iou_types(model, train_set.iou_types, cfg.objective)
    device.place(model)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build(cfg.optimizer, group="optimizer", allow=cfg.allow, params=trained)
    epoch_steps = train_loader.steps
    total_steps = min(cfg.epochs * epoch_steps, cfg.max_steps or sys.maxsize)
    schedule = build(
        cfg.schedule,
        group="schedule",
        allow=cfg.allow,
        optimizer=optimizer,
        total_steps=total_steps,
        steps_per_epoch=epoch_steps,
    )
    evaluator = build(
        cfg.evaluator,
        group="evaluator",
        allow=cfg.allow,
        ground_truth=val_set.ground_truth(),
        class_map=classes,
        iou_types=iou_types,
    )

    checkpoints = Checkpoints(folder, records.origin(cfg, train_set))
    position = Position()
    if cfg.resume is not None:
        position = checkpoints.restore(state_file(Path(cfg.resume)), model, optimizer, schedule)
    with (
        RunStopping(max_steps=cfg.max_steps, max_minutes=cfg.max_minutes) as stopping,
        Console(total_steps).open() as console,
        RunWriter(folder, console, log_every=cfg.log_every, step=position.step, device=device.name) as writer,
        records.recording(cfg, writer, {"train": train_set, "val": val_set}, model, device, position),
    ):
        log.info("%d steps of %d images, %d an epoch; in %s", total_steps, cfg.batch_size, epoch_steps, folder)
        while not (
            stopping.interrupted
            or position.epoch >= cfg.epochs
            or (stopping.at(position.step) and position.evaluated == position.step)
        ):
            first_step = position.step - position.epoch * epoch_steps
            train_loader.start(position.epoch, first_step)
            position.step = train_one_epoch(
                model,
                train_loader,
                optimizer,
                schedule,
                writer,
                stopping,
                device=device,
                epoch=position.epoch,
                step=position.step,
                steps=min(epoch_steps - first_step, total_steps - position.step),
                accumulate=cfg.accumulate,
                clip_grad_norm=cfg.clip_grad_norm,
                seed=cfg.seed,
                iou_types=iou_types,
            )
            epoch = position.step // epoch_steps
            last = position.step >= total_steps or stopping.reason is not None
            if not stopping.interrupted and (last or epoch % cfg.eval_every == 0):
                started = time.perf_counter()
                metrics = evaluate(model, val_loader, evaluator, stopping, device=device)
                if metrics is not None:
                    writer.evaluation(position.step, position.epoch, metrics, time.perf_counter() - started)
                    writer.picture("val/predictions", comparison_of(model, val_set, device), position.step)
                    if position.improve(metrics, cfg.objective):
                        checkpoints.save_best(model, position)
                        writer.predictions(evaluator.results())
            if not stopping.interrupted:
                position.epoch = epoch
            checkpoints.save_last(model, optimizer, schedule, position)
        if stopping.interrupted:
            raise Interrupted(f"interrupted; the state is saved. Go on with: resume={folder}")
        writer.hyper_parameters(records.hyper_parameters(cfg), position.last_metrics)
    if position.best is None:
        return float("nan")
    log.info("best %s %.4f in step %d; %s", cfg.objective, position.best, position.best_step, folder)
    return position.best


def main() -> int:
    """`python -m detlab.run` and `detlab train`.

    Returns:
        The exit status: 0 done, 1 failed, 2 the user's mistake, 130 Ctrl-C.
    """
    sys.path.insert(0, os.getcwd())
    # Hydra shortens stack traces and exits by itself, unless told otherwise; both are decided in detlab.jobs.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    jobs = Jobs(run)
    ended_with = None
    try:
        register()
        sys.argv[1:] = preflight(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(jobs.job)()
    except KeyboardInterrupt as interrupt:
        print(f"detlab: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        ended_with = error
    return jobs.status(ended_with)


if __name__ == "__main__":
    sys.exit(main())
