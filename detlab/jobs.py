"""What became of the jobs of a process, one or those of a sweep, and with which exit status it ends."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from detlab.config import CONF, register
from detlab.errors import BrokenDownError, UserError
from detlab.signals import Interrupted, leaving_at_once
from detlab.untrusted import printable

log = logging.getLogger(__name__)


class Jobs:
    """The jobs that Hydra starts in this process.

    Args:
        run: does one job, and returns its metric.
    """

    def __init__(self, run: Callable[[DictConfig], float]) -> None:
        self._run = run
        self._done: list[str] = []
        self._failed: list[tuple[str, Exception]] = []

    def by_hydra(self, prepare: Callable[[list[str]], list[str]]) -> int:
        """Let Hydra compose and start the jobs of this process's command line; the exit status.

        Args:
            prepare: makes of the arguments those for Hydra, or refuses them.
        """
        ended_with = None
        try:
            register()
            sys.argv[1:] = prepare(sys.argv[1:])
            with leaving_at_once():
                hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(self.job)()
        except Interrupted as interrupted:
            print(f"detlab: {interrupted}", file=sys.stderr)
            return interrupted.status
        except KeyboardInterrupt:
            print("detlab: interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            ended_with = error
        return self.status(ended_with)

    def job(self, cfg: DictConfig) -> float:
        """One job: in a sweep its end is noted, a failure is told to Hydra, and the others go on."""
        hydra_config = HydraConfig.get()
        sweep = hydra_config.mode == RunMode.MULTIRUN
        name = f"{hydra_config.job.num if sweep else 0}  {hydra_config.job.override_dirname}"
        try:
            best = self._run(cfg)
        except Exception as error:
            self._failed.append((name, error))
            if sweep:
                log.error("%s", error if isinstance(error, UserError) else traceback.format_exc())
                raise
            # Not raised in a single run: Hydra would print a line of its own before ours.
            return float("nan")
        self._done.append(f"{name}  {cfg.objective} {best:.4f}")
        return best

    def status(self, error: Exception | None) -> int:
        """Say what became of the jobs; the exit status.

        Args:
            error: what Hydra ended with.
        """
        if error is not None and not self._failed:
            return explain(error)
        if len(self._done) + len(self._failed) > 1:
            return self._summary()
        return explain(self._failed[0][1]) if self._failed else 0

    def _summary(self) -> int:
        print("jobs done:", *self._done or ["none"], sep="\n  ")
        if self._failed:
            failed = [printable(f"{name}: {error}") for name, error in self._failed]
            print("detlab: failed jobs, the others are done:", *failed, sep="\n  ", file=sys.stderr)
        return 1 if self._failed else 0


def explain(error: Exception) -> int:
    """Say what went wrong: a mistake or a broken-down run in its own words, ours with its trace. The exit status."""
    if isinstance(error, UserError | HydraException):
        print(f"detlab: {printable(str(error))}", file=sys.stderr)
        return 2
    full_or_read_only = isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
    )
    if isinstance(error, BrokenDownError) or full_or_read_only:
        print(f"detlab: {printable(str(error))}", file=sys.stderr)
        return 1
    traceback.print_exception(error)
    return 1
