"""A run, from the command line to the metric that a sweeper optimises: `python -m detlab.run [overrides]`."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from detlab.config import check, processes_announced
from detlab.errors import UserError
from detlab.jobs import Jobs
from detlab.locks import alone_in
from detlab.preflight import preflight
from detlab.resumption import holds_run
from detlab.signals import Interrupted, exit_status, name_of

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float:
    """Train, score and record one run in Hydra's output folder; returns the best `val/<objective>`.

    Raises:
        UserError: a mistake in the config or in the data.
        NonFiniteLossError: training broke down.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1, after the state was saved.
    """
    # All that brings torch is imported here: --help and --cfg job answer at once.
    from detlab.models.weights import settle
    from detlab.workers import in_processes, processes_for

    check(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.resume is None and holds_run(folder):
        raise UserError(f"{folder}: holds a run already; resume it, or choose another folder.")
    settle(cfg.model)
    processes = processes_for(cfg.devices, cfg.device)
    with alone_in(folder):
        return in_processes(train, cfg, processes=processes) if processes > 1 else train(cfg)


def train(cfg: DictConfig) -> float:
    """The run itself: in this process, or in each of several that do it together."""
    from detlab import distributed, parts, records
    from detlab.allocation import keep_freed_memory
    from detlab.averaging import Average
    from detlab.blackbox import BlackBox
    from detlab.chance import seed_all
    from detlab.checkpoint import Checkpoints, Position, TrainingState, resumed_from
    from detlab.console import Console
    from detlab.engine import only_deterministic, select_device, train_one_epoch
    from detlab.profiling import profiled
    from detlab.stopping import RunStopping
    from detlab.structures import learnable_iou_types
    from detlab.validation import Validation, score_held_out
    from detlab.writer import writing

    folder = Path(HydraConfig.get().runtime.output_dir)
    distributed.wait_at_most(cfg.timeout)
    keep_freed_memory(cfg.keep_freed_memory)
    device = select_device(cfg.device, cfg.precision, cfg.channels_last)
    only_deterministic(cfg.deterministic)
    seed_all(cfg.seed)

    resumed = resumed_from(Path(cfg.resume)) if cfg.resume not in (None, "auto") else None
    data = parts.data_sets(cfg)
    if resumed is not None:
        data = parts.labelled_as(resumed, data)
    batches = parts.training_batches(cfg, data["train"], device)
    model = parts.detector(cfg, data["train"].class_map, data["train"].keypoints)
    iou_types = learnable_iou_types(model, data["train"].iou_types, cfg.objective)
    device.place(model)
    average = Average(model, cfg.ema) if cfg.ema is not None else None
    optimizer = parts.optimizer(cfg, model)
    total_steps = parts.total_steps(cfg, batches.steps)
    schedule = parts.schedule(cfg, optimizer, total_steps=total_steps, steps_per_epoch=batches.steps)
    parts.check_profile(cfg, min(batches.steps, total_steps))
    validation = Validation.of(cfg, data["val"], device, iou_types)

    watched = cfg.profile is not None and distributed.first()
    origin = records.origin(cfg, data)
    checkpoints = Checkpoints(folder, origin, every_minutes=cfg.checkpoint.every_minutes)
    position = Position()
    black_box = BlackBox(cfg.on_nonfinite == "skip", cfg.max_skipped, folder, origin, position, data["train"])
    scaler = device.scaler()
    state = TrainingState(model, optimizer, schedule, average, position, scaler)
    if resumed is not None:
        parts.check_same_data(resumed, origin, data)
        checkpoints.restore(resumed, state, objective=cfg.objective)
        parts.check_same_settings(resumed, origin, batches.steps)
        del resumed  # as large as the model and more
    with (
        closing(batches),
        closing(validation),
        closing(checkpoints),
        RunStopping(max_steps=cfg.max_steps, max_minutes=cfg.max_minutes) as stopping,
        Console(total_steps, bar=distributed.first()).open() as console,
        writing(folder, console, position, log_every=cfg.log_every, device=device.name) as writer,
        records.recording(cfg, writer, data, model, device, position, origin),
    ):
        checkpoints.follow(state, writer)
        log.info("\n  ".join(["classes:", *data["train"].class_map.table()]))
        log.info("%d steps of %d images, %d an epoch; in %s", total_steps, cfg.batch_size, batches.steps, folder)
        while not (
            stopping.interrupted
            or position.epoch >= cfg.epochs
            or validation.over(position)
            or (stopping.at(position.step) and position.evaluated == position.step)
        ):
            first_step = position.step - position.epoch * batches.steps
            steps = min(batches.steps - first_step, total_steps - position.step)
            batches.start(position.epoch, first_step, steps=steps, ahead=total_steps - position.step - steps)
            position.step = train_one_epoch(
                model,
                profiled(batches, folder, cfg) if watched and position.epoch == 0 else batches,
                optimizer,
                schedule,
                writer,
                stopping,
                device=device,
                epoch=position.epoch,
                step=position.step,
                steps=steps,
                accumulate=cfg.accumulate,
                clip_grad_norm=cfg.clip_grad_norm,
                seed=cfg.seed,
                iou_types=iou_types,
                average=average,
                black_box=black_box,
                saving=checkpoints,
                scaler=scaler,
            )
            epoch = position.step // batches.steps
            last = position.step >= total_steps or stopping.reason is not None
            if not stopping.interrupted and (last or epoch % cfg.eval_every == 0):
                checkpoints.at(position.step)
                checkpoints.wait()  # an evaluation starts processes, which should not be forked beside a thread that writes
                validation.run(model, average, position, stopping, writer, checkpoints)
            if not stopping.interrupted:
                position.epoch = epoch
            if last or stopping.interrupted or stopping.reason is not None:
                checkpoints.save()
            else:
                checkpoints.save_in_background()
        stopping.agree()  # a signal while the last evaluation was scored
        batches.close()
        if "test" in data and not stopping.interrupted:
            score_held_out(cfg, model, data["test"], position, stopping, writer, checkpoints, device)
        if stopping.ended_by is not None:
            raise Interrupted(
                f"{name_of(stopping.ended_by)}: the state is saved. Go on with: resume={folder}",
                exit_status(stopping.ended_by),
            )
        writer.hyper_parameters(records.hyper_parameters(cfg), position.last_metrics)
    if position.best is None:
        return float("nan")
    why = f", stopped by {stopping.reason}" if stopping.reason is not None else ""
    log.info("best %s %.4f in step %d%s; %s", cfg.objective, position.best, position.best_step, why, folder)
    return position.best


def main() -> int:
    """`python -m detlab.run` and `detlab train`.

    Returns:
        The exit status: 0 done, 1 failed, 2 the user's mistake, 75 a scheduler's signal, 130 Ctrl-C.
    """
    sys.path.insert(0, os.getcwd())
    # Hydra shortens stack traces and exits by itself, unless told otherwise; both are decided in detlab.jobs.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    jobs = Jobs(run)
    if processes_announced() == 1:
        return jobs.by_hydra(preflight)
    from detlab import workers

    return workers.together(lambda: jobs.by_hydra(workers.preflight))


if __name__ == "__main__":
    # By its own name, under which a launcher's other processes find it too.
    from detlab.run import main as named

    sys.exit(named())
