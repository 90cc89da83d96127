"""Where do the jobs of a sweep run? In a pool of processes on this machine, as tasks of Ray's, or as jobs of SLURM, by submitit."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from detlab.errors import BrokenDownError, UserError
from detlab.resumption import holds_state
from detlab.signals import SIGNALS, Interrupted, exit_status, handling, leaving_at_once, name_of

# What needs a package beside detlab: its module, and detlab's extra that brings it.
EXTRAS = {
    "hydra_plugins.detlab.Optuna": ("optuna", "optuna"),
    "hydra_plugins.detlab.Joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "hydra_plugins.detlab.Ray": ("ray", "ray"),
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


@contextmanager
def _interruptible() -> Iterator[None]:
    """A job within leaves with `JobInterrupted` on a signal, after training, if it is at that, saved its state."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(name_of(number), exit_status(number))

    try:
        with handling(SIGNALS, leave):
            yield
    except Interrupted as left:
        raise JobInterrupted(signal.SIGINT if left.status == 130 else signal.SIGTERM) from None


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

        with _interruptible():
            mine.touch()
            # The owner says it here before it sends the signal: one of the two reaches every job.
            if (stop := self.scratch / "stop").exists():
                raise JobInterrupted(int(stop.read_text()))
            return self.task(cfg)


@contextmanager
def _once(tell: Callable[[int], None]) -> Iterator[list[int]]:
    """The first signal is told, so that the jobs save their states; at a second Ctrl-C all leave at once.

    Yields:
        The signals that came.
    """
    came: list[int] = []

    def take(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            tell(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    with handling(SIGNALS, take):
        yield came


def _tell_pool(scratch: Path, number: int) -> None:
    """Pass a signal on to the pool's processes."""
    told = scratch / ".stop"
    told.write_text(str(number))
    told.rename(scratch / "stop")
    for path in scratch.iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name), number)


def _saved(number: int) -> Interrupted:
    """What a sweep leaves with, once the jobs that a signal was passed on to have ended."""
    return Interrupted(f"{name_of(number)}: the states of the jobs are saved.", exit_status(number))


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
            with (
                tempfile.TemporaryDirectory(prefix="detlab-") as folder,
                _once(partial(_tell_pool, Path(folder))) as came,
            ):
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
                raise _saved(came[0])
            return results

    PLUGINS["hydra_plugins.detlab.Joblib"] = Joblib


def shares(wanted: Mapping[str, Any], cores: float, gpus: float) -> dict[str, Any]:
    """What each job of a cluster is given, with numbers for `auto`.

    Args:
        wanted: the arguments of `ray.remote`, of which `num_cpus` and `num_gpus` may be `auto`: a GPU each, where there are any,
            and as many cores as there are for each of them; without GPUs four cores, or half of them where there are fewer.
        cores: of the cluster.
        gpus: of the cluster.
    """
    each = {"num_cpus": int(cores // gpus) if gpus >= 1 else min(4, int(cores // 2)), "num_gpus": min(1, int(gpus))}
    own = {name: max(number, 1) if name == "num_cpus" else number for name, number in each.items()}
    return {name: own[name] if value == "auto" else value for name, value in wanted.items()}


class Ray(Launcher):
    """Jobs as tasks of Ray: on this machine, or on a cluster whose machines all see the working folder."""

    def __init__(self, ray: DictConfig) -> None:
        self._ray: Any = OmegaConf.to_container(ray, resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's, before `launch`."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Do jobs, as many at a time as there are cores and GPUs for.

        Raises:
            Interrupted: a signal, after the jobs at work saved their states.
            BrokenDownError: a job's process died; the others were done.
            UserError: a job asks for more than any machine has.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_COLOR_PREFIX", str(int(sys.stderr.isatty())))
        ray: Any = importlib.import_module("ray")

        here = not ray.is_initialized()
        if here:
            ray.init(**self._ray["init"])
        try:
            resources = ray.cluster_resources()
            remote = shares(self._ray["remote"], resources.get("CPU", 1), resources.get("GPU", 0))
            _check_room(remote, [node["Resources"] for node in ray.nodes()])
            job = ray.remote(**remote)(_ray_job)
            with _once(lambda _: None) as came:
                jobs = [
                    job.options(name=config.hydra.sweep.subdir).remote(
                        self._context, self._task, config, Singleton.get_state(), os.getcwd()
                    )
                    for config in self._configs(job_overrides, initial_job_idx)
                ]
                return _results(jobs, came)
        finally:
            if here:
                ray.shutdown()

    def _configs(self, job_overrides: Sequence[Sequence[str]], first: int) -> Iterator[DictConfig]:
        """Each job's own config."""
        Path(self._config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        for number, overrides in enumerate(job_overrides, first):
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with open_dict(config):
                config.hydra.job.id, config.hydra.job.num = f"ray_{number}", number
            yield config


PLUGINS["hydra_plugins.detlab.Ray"] = Ray


def _check_room(remote: Mapping[str, Any], machines: Sequence[Mapping[str, float]]) -> None:
    """Refuse jobs that no machine is large enough for: Ray would wait for one for ever.

    Raises:
        UserError: with the larger key, and what there is.
    """
    for key, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        most = max((machine.get(resource, 0) for machine in machines), default=0)
        if (remote.get(key) or 0) > most:
            raise UserError(
                f"hydra.launcher.ray.remote.{key}={remote[key]}: no machine has more than {most:g}. "
                "Ask for fewer, or say auto."
            )


def _ray_job(
    context: HydraContext, task: TaskFunction, config: DictConfig, singletons: dict[Any, Any], folder: str
) -> JobReturn:
    """A job, in a process of Ray's, which began in a folder of its own if Ray was there before."""
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(singletons)
    HydraConfig.instance().set_config(config)

    def interruptible(cfg: DictConfig) -> Any:
        with _interruptible():
            return task(cfg)

    return run_job(
        hydra_context=context,
        task_function=interruptible,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _results(jobs: Sequence[Any], came: Sequence[int]) -> list[JobReturn]:
    """Wait for Ray's tasks; pass a signal on to them.

    Raises:
        Interrupted: after a signal.
        BrokenDownError: a task's process died.
    """
    ray: Any = importlib.import_module("ray")
    waiting = list(jobs)
    while waiting and not came:
        # In turns, since Python calls a signal's handler only when Ray has given the thread back.
        waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.2)[1]
    for job in waiting:
        ray.cancel(job, force=False)
    results, dead = [], 0
    for job in jobs:
        try:
            results.append(ray.get(job))
        except ray.exceptions.RayError:
            dead += 1
    if came:
        raise _saved(came[0])
    if dead:
        raise BrokenDownError(
            f"the processes of {dead} job(s) died without a word: killed, perhaps for want of memory? The others are done."
        )
    return results


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

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Put jobs into the queue and wait for them.

            Raises:
                BrokenDownError: the queue takes none.
            """
            from submitit.core.utils import FailedJobError

            try:
                return super().launch(job_overrides, initial_job_idx)
            except FailedJobError as error:
                if not isinstance(error.__cause__, subprocess.CalledProcessError):
                    raise
                said = " ".join(str(error.__cause__.stderr or error).split())
                raise BrokenDownError(
                    f"SLURM took no job: {said}\nIs it up (sinfo), and do partition and limits fit?"
                ) from None

    PLUGINS |= {
        "hydra_plugins.detlab.SubmititLocal": SubmititLocal,
        "hydra_plugins.detlab.SubmititSlurm": SubmititSlurm,
    }
