"""A job in several processes: what the one that Hydra started hands to its workers."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from detlab import distributed
from detlab import preflight as of_one_process
from detlab.config import processes_announced, register, run_folder, use_run_folder
from detlab.errors import NonFiniteLossError, UserError
from detlab.signals import Interrupted

# How long one process waits for the others until the configuration, which says it, is known.
DEFAULT_MINUTES = 30.0


def processes_for(devices: int | str, device: str) -> int:
    """How many processes a job starts for itself.

    Args:
        devices: a number, or `auto`: one for each GPU where `device` is one, else one.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `mps`.

    Raises:
        UserError: more than there are GPUs, more than one on a single named device, or beside torchrun's own.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    wanted = max(1, gpus) if devices == "auto" else int(devices)
    if processes_announced() > 1:
        if devices not in ("auto", 1):
            raise UserError(f"devices: {devices} under torchrun, which has started the processes; leave devices out.")
        return 1
    if wanted > 1 and device not in ("auto", "cpu", "cuda"):
        raise UserError(f"devices: {wanted} processes on device={device}; give devices=1, or device=auto.")
    if gpus and wanted > gpus:
        raise UserError(f"devices: {wanted}, but this machine has {gpus} GPUs; give at most {gpus}, or device=cpu.")
    return wanted


def together(main: Callable[[], int]) -> int:
    """Under torchrun: a whole process's work, with the group of all of them open; its exit status.

    The group opens once, before Hydra; a process that failed does not wait for the others.
    """
    if int(os.environ["RANK"]):
        logging.disable(logging.INFO)
    try:
        with distributed.process_group(DEFAULT_MINUTES):
            status = main()
            if status:
                sys.exit(status)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def preflight(argv: list[str]) -> list[str]:
    """The first process's preflight for all: one run folder, and its faults said once.

    Raises:
        UserError: in the first process; the others leave without a word.
    """

    def look() -> tuple[list[str], str]:
        try:
            return of_one_process.preflight(argv), run_folder("run")
        except SystemExit:  # argparse's, which the other processes would not hear of
            raise UserError("the command line cannot be read; see --hydra-help.") from None

    try:
        arguments, folder = distributed.from_first(look)
    except UserError:
        if distributed.first():
            raise
        sys.exit(2)
    use_run_folder("run", folder)
    # What Hydra itself writes into a run's folder comes from the first process alone.
    silence = [] if distributed.first() else ["hydra.output_subdir=null", "hydra/job_logging=disabled"]
    return [*silence, *arguments]


@dataclass(frozen=True)
class _Share:
    """What a worker is given: the job's config, resolved, Hydra's own, and what to do."""

    work: Callable[[DictConfig], float]
    config: dict[Any, Any]
    hydra: Any
    path: list[str]


def in_processes(work: Callable[[DictConfig], float], cfg: DictConfig, *, processes: int) -> float:
    """Do a job's work in several processes of this machine; what the first of them returns.

    Raises:
        Exception: what a process raised; see `distributed.launch`.
    """
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    share = _Share(work, config, HydraConfig.get(), sys.path[:])
    ended = distributed.launch(_do, share, processes=processes, minutes=cfg.timeout)
    if isinstance(ended, BaseException):
        raise ended
    return ended


def _do(share: _Share) -> float | BaseException:
    """One worker's part. What all of them end with together is returned, so that none is killed while another saves."""
    sys.path[:] = share.path
    register()
    HydraConfig.instance().set_config(OmegaConf.create({"hydra": share.hydra}))
    if distributed.first():
        configure_log(share.hydra.job_logging, share.hydra.verbose)
    else:
        logging.disable(logging.INFO)
    try:
        return share.work(OmegaConf.create(share.config))
    except (Interrupted, NonFiniteLossError) as ended:
        return ended
