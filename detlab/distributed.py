"""Several processes as one: who is who, what they exchange, how they begin and how they end."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import distributed_c10d

from detlab.signals import SIGNALS, Interrupted, exit_status, handling, name_of

# What torch's launcher says of its progress, and of a failure, which is told once, by us.
_TORCH_LOGGERS = (
    "torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing.spawn", "torchelastic-events-null",
)  # fmt: skip


class WorkerFailedError(RuntimeError):
    """One of the processes ended by an error that is nobody's mistake; its own trace is the message."""


def _open() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process among all, from 0."""
    return distributed.get_rank() if _open() else 0


def size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if _open() else 1


def first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, from 0, which is also that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if _open() else 0


@contextmanager
def process_group(minutes: float) -> Iterator[None]:
    """The group of the processes that the environment names (RANK, WORLD_SIZE, ...), open within.

    Opened once in a process, and always closed: gloo aborts where the interpreter ends with its group open.

    Args:
        minutes: how long one process waits for the others.
    """
    # As many processes as GPUs or fewer, else they share the CPU.
    gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Both, so that plain numbers and lists are exchanged without a wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(minutes=minutes))
    try:
        yield
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def wait_at_most(minutes: float) -> None:
    """Change how long one process waits for the others."""
    if size() > 1:
        # The group opens before the config is known. Before torch 2.14 only a private function could change its mind.
        name = "set_timeout" if hasattr(distributed, "set_timeout") else "_set_pg_timeout"
        getattr(distributed if name == "set_timeout" else distributed_c10d, name)(timedelta(minutes=minutes))


def broadcast(value: Any) -> Any:
    """The first process's value, in all of them."""
    if size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns or raises in the first process, in all of them; only the first one calls it."""
    made: Any = None
    failure: Exception | None = None
    if first():
        try:
            made = make()
        except Exception as error:
            failure = error
    made, failure = broadcast((made, failure))
    if failure is not None:
        raise failure
    return made


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order, in the first one; an empty list in the others."""
    if size() == 1:
        return [value]
    values: list[Any] | None = [None] * size() if first() else None
    distributed.gather_object(value, values)
    return values or []


def largest(value: int) -> int:
    """The largest of the processes' values, in all of them."""
    if size() == 1:
        return value
    held = torch.tensor(value)
    distributed.all_reduce(held, distributed.ReduceOp.MAX)
    return int(held)


def mean(values: Tensor) -> Tensor:
    """The mean over the processes of a float tensor that has one shape in all of them."""
    if size() == 1:
        return values
    held = values.detach().clone()
    distributed.all_reduce(held)
    return held / size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes; one that a process lacks counts there as zero.

    In one message after the backward pass. Stands for DistributedDataParallel, which would wrap the model, rename its weights and
    fail where a process leaves a parameter out.
    """
    if size() == 1:
        return
    trained = list(parameters)
    present = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    distributed.all_reduce(present)
    used = [parameter for parameter, count in zip(trained, present.tolist(), strict=True) if count]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    _average([parameter.grad for parameter in used if parameter.grad is not None])


def average_statistics(model: nn.Module) -> None:
    """Replace the running statistics of a model's norms by their mean over the processes, so that all hold one model.

    After every step, so that the first process's state is that of all at any time. As they are linear in the batches', it is what
    one mean at an epoch's end would give.
    """
    if size() > 1:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
        _average([buffer for norm in norms for buffer in norm.buffers() if buffer.is_floating_point()])


def _average(tensors: Sequence[Tensor]) -> None:
    if size() == 1 or not tensors:
        return
    averaged = mean(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, averaged.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def launch(work: Callable[[Any], Any], argument: Any, *, processes: int, minutes: float) -> Any:
    """Do the same work in several new processes of this machine, which form a group, by torch's elastic launcher.

    Ctrl-C, SIGTERM and SIGUSR1 reach them, so that they can save their state; a second Ctrl-C ends them at once. Where one
    fails the others are ended.

    Args:
        work: a function that can be pickled; called with `argument` in each process.
        argument: can be pickled.
        processes: how many.
        minutes: how long one process waits for the others.

    Returns:
        What the first process's work returned.

    Raises:
        Exception: what the first one that failed raised, in its own type where that can be pickled.
        WorkerFailedError: it could not be pickled, or a process died without a word; with its trace.
        Interrupted: a signal, before the work could take it, or a second Ctrl-C.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in _TORCH_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ended: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="detlab-") as scratch:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=Path(scratch).name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )

        def start() -> None:
            try:
                ended["results"] = elastic_launch(config, _worker)(work, argument, minutes, scratch)
            except BaseException as error:
                ended["error"] = error

        # In a thread of its own torch's launcher leaves the signals alone, which it would answer by killing.
        launcher = threading.Thread(target=start, name="launcher")
        with _threads_shared(processes), _signals_passed_on() as came:
            launcher.start()
            while launcher.is_alive():
                launcher.join(0.1)
        if "error" in ended:
            failure = _failure(Path(scratch), ended["error"])
            # Interrupted before it could save, or a second time: no failure, and the end of a sweep too.
            if came and isinstance(failure, WorkerFailedError):
                said = f"{name_of(came[0])}: left at once; resume goes on from the last state."
                raise Interrupted(said, exit_status(came[0])) from failure
            raise failure
    return ended["results"][0]


def _worker(work: Callable[[Any], Any], argument: Any, minutes: float, scratch: str) -> Any:
    """One process: leaves in `scratch` what it failed of."""
    os.setpgrp()  # out of the terminal's group: Ctrl-C comes from the launching process alone, once
    try:
        with process_group(minutes):
            try:
                return work(argument)
            except BaseException as error:
                # Written before the group closes: the others then fail too, of their lost partner, and later than this one.
                said = {"trace": traceback.format_exc(), "error": None}
                with contextlib.suppress(Exception):
                    pickle.loads(pickle.dumps(error))
                    said["error"] = error
                (Path(scratch) / f"failure-{os.environ['RANK']}").write_bytes(pickle.dumps(said))
                raise
    except KeyboardInterrupt:
        sys.exit(130)  # torch would take the interrupt for a quiet end, and wait for a result for ever


def _failure(scratch: Path, error: BaseException) -> BaseException:
    """What a group of processes failed of: the first failure that one of them wrote down, else what the launcher knows."""
    written = sorted(scratch.glob("failure-*"), key=lambda path: path.stat().st_mtime_ns)
    failures = [pickle.loads(path.read_bytes()) for path in written]
    # Those who lost a partner fail of that.
    causes = [failure for failure in failures if "by peer" not in failure["trace"]]
    if not causes:
        codes = [f"process {rank}: {failure.exitcode}" for rank, failure in getattr(error, "failures", {}).items()]
        return WorkerFailedError(
            f"a process died without a word: killed, perhaps for want of memory? (exit codes: {', '.join(codes) or error})"
        )
    said = causes[0]
    own = type(said["error"]).__module__.partition(".")[0] == __package__
    return said["error"] if own or isinstance(said["error"], OSError) else WorkerFailedError(said["trace"])


@contextmanager
def _threads_shared(processes: int) -> Iterator[None]:
    """The cores shared out among the processes, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


@contextmanager
def _signals_passed_on() -> Iterator[list[int]]:
    """The first signal goes on to the processes, a second Ctrl-C kills them. Gives the list of those that came."""
    came: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        at_once = number == signal.SIGINT and len(came) > 1
        for process in multiprocessing.active_children():
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL if at_once else number)

    with handling(SIGNALS, pass_on):
        yield came
