"""What became of the jobs of a process, one or those of a sweep, and with which exit status it ends."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from detlab.config import CONF, processes_announced, register
from detlab.errors import BrokenDownError, UserError
from detlab.signals import Interrupted, leaving_at_once
from detlab.sweeps import FAILED, Outcome, brief, note_failure, outcome_of, stamps
from detlab.untrusted import printable

log = logging.getLogger(__name__)


class SweepStart(Callback):
    """Told by Hydra, in the process that a sweep begins in, where its jobs' folders lie; those may be other processes' work."""

    folder: Path | None = None
    before: ClassVar[dict[Path, int]] = {}

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remember the folder and what it holds already."""
        SweepStart.folder = Path(str(config.hydra.sweep.dir))
        SweepStart.before = stamps(SweepStart.folder)

    @staticmethod
    def outcomes() -> list[Outcome]:
        """What became of the jobs that began since."""
        if SweepStart.folder is None:
            return []
        now = stamps(SweepStart.folder)
        return [outcome_of(job) for job, stamp in now.items() if SweepStart.before.get(job) != stamp]


class Jobs:
    """The jobs that Hydra starts, in this process or, by a launcher, in others.

    Args:
        run: does one job, and returns its metric.
    """

    def __init__(self, run: Callable[[DictConfig], float]) -> None:
        self._run = run
        self._failure: Exception | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a launcher's process, where nobody has told Hydra of our resolvers.
        self.__dict__.update(state)
        register()

    def by_hydra(self, prepare: Callable[[list[str]], list[str]]) -> int:
        """Let Hydra compose and start the jobs of this process's command line; the exit status.

        Args:
            prepare: makes of the arguments those for Hydra, or refuses them.
        """
        ended_with = None
        SweepStart.folder = None
        try:
            register()
            sys.argv[1:] = prepare(sys.argv[1:])
            with leaving_at_once():
                hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(self.job)()
        except Interrupted as interrupted:
            print(f"detlab: {interrupted}{_rest_of_sweep()}", file=sys.stderr)
            return interrupted.status
        except KeyboardInterrupt:
            print(f"detlab: interrupted{_rest_of_sweep()}", file=sys.stderr)
            return 130
        except Exception as error:
            ended_with = error
        return self.status(ended_with)

    def job(self, cfg: DictConfig) -> float:
        """One job: in a sweep a failure is told to Hydra, and the others go on. Its reason stays in its folder."""
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        writes = processes_announced() == 1 or os.environ["RANK"] == "0"
        try:
            if writes:
                (folder / FAILED).unlink(missing_ok=True)
            return self._run(cfg)
        except Exception as error:
            if writes:
                note_failure(folder, error, list(hydra_config.overrides.task), status_of(error))
            if hydra_config.mode == RunMode.MULTIRUN:
                in_words = isinstance(error, UserError | BrokenDownError)
                log.error("%s", error if in_words else traceback.format_exc())
                raise _that_can_be_sent(error) from error
            # Not raised in a single run: Hydra would print a line of its own before ours.
            self._failure = error
            return float("nan")

    def status(self, error: Exception | None) -> int:
        """Say what became of the jobs; the exit status.

        Args:
            error: what Hydra ended with.
        """
        error = error or self._failure
        outcomes = SweepStart.outcomes()
        undone = [outcome for outcome in outcomes if outcome.state != "done"]
        if error is not None and (len(outcomes) < 2 or not undone):
            return explain(error)
        if len(outcomes) < 2:
            return 1 if undone else 0
        self._summary(outcomes, undone)
        if error is not None and any(outcome.state != "failed" for outcome in undone):
            explain(error)
        return 1 if undone else 0

    def _summary(self, outcomes: list[Outcome], undone: list[Outcome]) -> None:
        done = [printable(f"{o.folder.name}  {o.best}") for o in outcomes if o.state == "done"]
        print("jobs done:", *done or ["none"], sep="\n  ")
        if undone:
            said = [printable(f"{o.folder.name}: {brief(o.why) if o.why else o.state}") for o in undone]
            print("detlab: failed jobs, the others are done:", *said, sep="\n  ", file=sys.stderr)
            print(f"repeat these alone: detlab rerun {SweepStart.folder} --failed", file=sys.stderr)


def _rest_of_sweep() -> str:
    folder = SweepStart.folder
    return "" if folder is None else f"\nThe sweep's jobs that are not done: detlab rerun {folder} --failed"


def _that_can_be_sent(error: Exception) -> Exception:
    """An error that another process can read: itself, else its trace."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(traceback.format_exc())
    return error


def status_of(error: Exception) -> int:
    """The exit status of a process that ends with an error: 2 for the user's mistake, else 1."""
    return 2 if isinstance(error, UserError | HydraException) else 1


def explain(error: Exception) -> int:
    """Say what went wrong: a mistake or a broken-down run in its own words, ours with its trace. The exit status."""
    if status_of(error) == 2:
        print(f"detlab: {printable(str(error))}", file=sys.stderr)
        return 2
    of_the_disk = isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EEXIST,  # a file in the place of a folder
        errno.ENOTDIR,
    )
    if isinstance(error, BrokenDownError) or of_the_disk:
        print(f"detlab: {printable(str(error))}", file=sys.stderr)
        return 1
    traceback.print_exception(error)
    return 1
