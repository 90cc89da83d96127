"""A cluster of one node on this machine, from SLURM's own daemons, as Debian packages them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "scancel", "squeue")
# Jobs of the partition `high` take the node from those of `low`, which are put back into the queue.
CONF = """\
ClusterName=detlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=1,sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=node0 Default=YES PriorityTier=1 MaxTime=60 GraceTime={grace} State=UP
PartitionName=high Nodes=node0 PriorityTier=10 MaxTime=60 PreemptMode=OFF State=UP
"""


def missing() -> list[str]:
    """The programs that are not there; that they need root counts as missing."""
    return [name for name in NEEDED if shutil.which(name) is None] + ([] if os.geteuid() == 0 else ["root"])


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody listens on."""
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def cluster(folder: Path, *, grace: int = 0) -> Iterator[dict[str, str]]:
    """Start the daemons and wait until the node is idle.

    Args:
        folder: an empty one, which only its owner may read.
        grace: seconds between the warning that a job is preempted and its end.

    Yields:
        The environment in which SLURM's commands find this cluster.
    """
    folder.chmod(0o700)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o400)
    controller, node = free_ports(2)
    values = {"host": socket.gethostname(), "user": "root", "folder": folder, "controller": controller, "node": node}
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(**values, grace=grace))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    files = {name: f"--{name}-file={folder / f'munge.{name}'}" for name in ("key", "pid", "log", "seed")}
    commands = (
        ["munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}", *files.values()],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "node0"],
    )
    # The last daemon is stopped first.
    with ExitStack() as stack, (folder / "said.log").open("w") as said:
        for command in commands:
            process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            time.sleep(1)
        deadline = time.monotonic() + 60
        while set(_said(["sinfo", "--noheader", "--format=%T"], environment).split()) != {"idle"}:
            assert time.monotonic() < deadline, (folder / "said.log").read_text()
            time.sleep(0.2)
        stack.callback(_cancel_all, environment)
        yield environment


def _cancel_all(environment: dict[str, str]) -> None:
    """End what still runs, since it would outlive the daemons."""
    _said(["scancel", "--state=RUNNING"], environment)
    _said(["scancel", "--state=PENDING"], environment)
    deadline = time.monotonic() + 60
    while _said(["squeue", "--noheader"], environment) and time.monotonic() < deadline:
        time.sleep(0.2)


def jobs(environment: dict[str, str]) -> dict[str, dict[str, str]]:
    """Of each job, by its id, its state and how often it was put back into the queue."""
    said = _said(["scontrol", "show", "job", "--oneliner"], environment)
    found = [dict(field.partition("=")[::2] for field in line.split()) for line in said.splitlines() if line]
    return {job["JobId"]: {key: job[key] for key in ("Restarts", "JobState")} for job in found}


def _said(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
