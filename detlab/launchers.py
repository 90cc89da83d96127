"""Where do the jobs of a sweep run? In a pool of processes on this machine, or as jobs of a scheduler's, by submitit."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import TaskFunction
from omegaconf import DictConfig

from detlab.errors import BrokenDownError
from detlab.resumption import holds_state
from detlab.signals import SIGNALS, Interrupted, exit_status, handling, leaving_at_once, name_of

# What needs a package beside detlab: its module, and detlab's extra that brings it.
EXTRAS = {
    "hydra_plugins.detlab.Optuna": ("optuna", "optuna"),
    "hydra_plugins.detlab.Joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "hydra_plugins.detlab.SubmititLocal": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "hydra_plugins.detlab.SubmititSlurm": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
}


def installed(module: str) -> bool:
    """Whether a module is there, by its name alone."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class JobInterrupted(Exception):
    """A job of the pool left on a signal, its state saved: as an `Exception`, so that the pool lets the others save theirs."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def jobs_at_a_time(wanted: int | str, gpus: int) -> int:
    """How many jobs a pool does at a time.

    Args:
        wanted: a number; -1 for one a core; `auto`: one for each GPU, without GPUs one for every four cores, two at least.
        gpus: how many there are.
    """
    cores = os.cpu_count() or 1
    if wanted == "auto":
        return gpus or max(2, cores // 4)
    return cores if int(wanted) == -1 else int(wanted)


def gpus_here() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    count = torch.cuda.device_count()
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")[:count]
    return [str(number) for number in range(count)]


def in_grace() -> bool:
    """Whether SLURM has told this job to make room, and still counts it as running.

    A job that ends within the time of grace is done for SLURM, which does not put it back into the queue; one without grace, or
    cancelled, does not count as running once it is told.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("scontrol") is None:
        return False
    said = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
    return "JobState=RUNNING" in said and re.search(r"PreemptTime=\d", said) is not None


_GPU: list[FileLock] = []


def take_gpu(gpus: Sequence[str], scratch: Path) -> None:
    """Let this process see one GPU that no other process of the pool has, from now to its end; all where none is left."""
    if _GPU:
        return
    for gpu in gpus:
        lock = FileLock(scratch / f"gpu-{gpu}")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            _GPU.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return


@dataclass(frozen=True)
class _Share:
    """A job in a process of the pool: with its GPU, and told of signals by the process that the pool belongs to."""

    task: TaskFunction
    scratch: Path
    gpus: tuple[str, ...]
    owner: int

    def __call__(self, cfg: DictConfig) -> Any:
        if os.getpid() == self.owner:
            return self.task(cfg)  # a pool of one process
        mine = self.scratch / str(os.getpid())
        if not mine.exists():
            os.setpgrp()  # out of the terminal's group: Ctrl-C comes from the owner alone, once
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # between jobs
            take_gpu(self.gpus, self.scratch)
            # From joblib 1.6 on it is the pool's own, which starts processes of the pool and no others.
            multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)

        def leave(number: int, _frame: FrameType | None) -> None:
            raise Interrupted(name_of(number), exit_status(number))

        try:
            with handling(SIGNALS, leave):
                mine.touch()
                # The owner says it here before it sends the signal: one of the two reaches every job.
                if (stop := self.scratch / "stop").exists():
                    raise JobInterrupted(int(stop.read_text()))
                return self.task(cfg)
        except Interrupted as left:
            raise JobInterrupted(signal.SIGINT if left.status == 130 else signal.SIGTERM) from None


@contextmanager
def _passed_on(scratch: Path) -> Iterator[list[int]]:
    """The first signal goes on to the pool's processes, so that they save their states; at a second Ctrl-C all leave at once."""
    came: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        told = scratch / ".stop"
        told.write_text(str(number))
        told.rename(scratch / "stop")
        for path in scratch.iterdir():
            if path.name.isdecimal():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.name), number)

    with handling(SIGNALS, pass_on):
        yield came


PLUGINS: dict[str, type] = {}

if installed(EXTRAS["hydra_plugins.detlab.Joblib"][0]):
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

    class Joblib(JoblibLauncher):
        """Hydra's pool by joblib, whose processes share the cores (joblib sees to that) and are given one GPU each."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Do jobs, some at a time.

            Raises:
                Interrupted: a signal, after the jobs at work saved their states.
                BrokenDownError: a process of the pool died, and with it the pool.
            """
            from joblib.externals.loky.process_executor import BrokenProcessPool

            gpus = gpus_here()
            self.joblib["n_jobs"] = jobs_at_a_time(self.joblib["n_jobs"], len(gpus))
            assert self.task_function is not None
            task = self.task_function
            results: Sequence[JobReturn] = []
            with tempfile.TemporaryDirectory(prefix="detlab-") as folder, _passed_on(Path(folder)) as came:
                self.task_function = _Share(task, Path(folder), tuple(gpus), os.getpid())
                try:
                    results = super().launch(job_overrides, initial_job_idx)
                except BrokenProcessPool:
                    if not came:
                        raise BrokenDownError(
                            "a process of the pool died without a word: killed, perhaps for want of memory? "
                            "Fewer at a time: hydra.launcher.n_jobs=1"
                        ) from None
                finally:
                    self.task_function = task
            if came:
                raise Interrupted(f"{name_of(came[0])}: the states of the jobs are saved.", exit_status(came[0]))
            return results

    PLUGINS["hydra_plugins.detlab.Joblib"] = Joblib

if installed(EXTRAS["hydra_plugins.detlab.SubmititLocal"][0]):
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher, SlurmLauncher

    @dataclass(frozen=True)
    class _Again:
        """A job that the scheduler has put back into its queue: goes on from its state."""

        task: TaskFunction

        def __call__(self, cfg: DictConfig) -> Any:
            folder = Path(HydraConfig.get().runtime.output_dir)
            if cfg.resume is None and holds_state(folder):
                cfg.resume = str(folder)
            return self.task(cfg)

    class _Requeued:
        """A job of submitit's that saves its state before it is put back, and goes on from there when it comes again."""

        again = False
        task_function: TaskFunction | None

        def __call__(self, *arguments: Any) -> JobReturn:
            from submitit import JobEnvironment

            if self.again or os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
                assert self.task_function is not None
                self.task_function = _Again(self.task_function)
            asked: list[int] = []
            number = JobEnvironment._usr_sig()

            def leave(number: int, _frame: FrameType | None) -> None:
                asked.append(number)
                signal.raise_signal(signal.SIGTERM)  # which training takes, to save its state

            requeue = signal.getsignal(number)
            try:
                with leaving_at_once(), handling((number,), leave):
                    return super().__call__(*arguments)  # pyright: ignore[reportAttributeAccessIssue]
            except Interrupted as left:
                if (asked or in_grace()) and callable(requeue):
                    requeue(number, None)  # submitit's own; leaves the process
                sys.exit(left.status)

        def checkpoint(self, *arguments: Any, **keywords: Any) -> Any:
            """What comes back from the queue."""
            self.again = True
            return super().checkpoint(*arguments, **keywords)  # pyright: ignore[reportAttributeAccessIssue]

    class SubmititLocal(_Requeued, LocalLauncher):
        """Submitit's executor of this machine."""

    class SubmititSlurm(_Requeued, SlurmLauncher):
        """Submitit's jobs of SLURM."""

    PLUGINS |= {
        "hydra_plugins.detlab.SubmititLocal": SubmititLocal,
        "hydra_plugins.detlab.SubmititSlurm": SubmititSlurm,
    }
