"""Which jobs does a sweep consist of? Beside Hydra's own sweeper: those of another sweep that are not done, and Optuna's."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from detlab.errors import UserError
from detlab.locks import alone_in
from detlab.resumption import holds_state
from detlab.sweeps import SETTLED, jobs_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


class _WithLauncher(Sweeper):
    """A sweeper as Hydra sets it up."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self._folder = Path(str(config.hydra.sweep.dir))
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self._parser = OverridesParser.create(config_loader=hydra_context.config_loader)

    def _in(self, folder: Path) -> list[str]:
        """What makes a job run in a folder of the sweep that has its name already, and go on from its state, if any."""
        again = [f"hydra.sweep.subdir={_quoted(folder.name)}"]
        return [*again, f"resume={_quoted(str(folder))}"] if holds_state(folder) else again


class Repeat(_WithLauncher):
    """The jobs of the sweep in `hydra.sweep.dir` that are not done, each in its own folder, from its state where it has one."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params  # of a recipe that sweeps; they are in the jobs' own overrides

    def sweep(self, arguments: list[str]) -> Any:
        """Do them; `arguments` are put behind each one's own overrides."""
        from detlab.preflight import kept

        new = self._parser.parse_overrides(arguments)
        batch = []
        for job in jobs_of(self._folder, self._parser):
            if job.outcome.state not in SETTLED:
                own = [str(o.input_line) for o in kept(job.overrides, new, f"{self._folder}/multirun.yaml")]
                batch.append([*own, *arguments, *self._in(job.folder)])
        if not batch:
            return []
        results = self._launcher.launch(batch, initial_job_idx=0)
        for result in results:
            _ = result.return_value  # raises what a job failed of
        return results


class Optuna(_WithLauncher):
    """Trials that Optuna's tree-structured Parzen estimator proposes; the study is kept in the sweep's folder.

    What a trial proposes is drawn from `seed` and the trial's number, so that a sweep that was stopped goes on as it would have.
    Runs report no values before their end, so no trial is pruned. Source: Bergstra et al., Algorithms for Hyper-Parameter
    Optimization, 2011.

    Args:
        n_trials: in all, those of earlier calls and failed ones included.
        n_jobs: trials at a time, for a launcher that does several.
        n_startup_trials: drawn at random, before the estimator has anything to go by.
        seed: of the proposals.
        direction: `maximize` or `minimize` what the run returns.
        params: of a recipe that sweeps.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        n_startup_trials: int,
        seed: int,
        direction: Literal["maximize", "minimize"],
        params: dict[str, str] | None = None,
    ) -> None:
        self.n_trials, self.n_jobs, self.n_startup_trials = n_trials, n_jobs, n_startup_trials
        self.seed, self.params = seed, params or {}
        self.direction: Literal["maximize", "minimize"] = direction

    def sweep(self, arguments: list[str]) -> Any:
        """Do the trials that are left.

        Raises:
            UserError: the folder holds a study of something else, or another process is at work on it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        given = self._parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        last = {o.get_key_element(): o for o in given}  # the command line's, where a recipe has the key too
        self._space = {key: _distribution(o) for key, o in last.items() if o.is_sweep_override()}
        self._fixed = [str(o.input_line) for o in last.values() if not o.is_sweep_override()]
        if not self._space:
            raise UserError("hydra/sweeper=optuna: nothing to search; give a key several values, or an interval(a, b).")
        with alone_in(self._folder):
            OmegaConf.save(self.config, self._folder / "multirun.yaml")
            return self._search()

    def _search(self) -> list[JobReturn]:
        import optuna

        study = self._study()
        results: list[JobReturn] = []
        # Those that an earlier call left without an end.
        for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            results += self._do(study, [trial])
        while (left := self.n_trials - len(study.get_trials(deepcopy=False))) > 0:
            results += self._do(study, [self._ask(study) for _ in range(min(left, self.n_jobs))])
        finished = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
        if finished:
            best = study.best_trial
            print(f"best of {len(finished)} trials: {best.number}  {best.value:.4f}  {' '.join(_texts(best))}")
        return [result for result in results if result.status == JobStatus.FAILED and result.return_value] or results

    def _study(self) -> Study:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(self._folder / "optuna.journal")))
        study = optuna.create_study(storage=storage, study_name="detlab", direction=self.direction, load_if_exists=True)
        wanted = {"space": {key: repr(space) for key, space in self._space.items()}, "fixed": self._fixed}
        if study.user_attrs and study.user_attrs != wanted:
            raise UserError(
                f"hydra.sweep.dir: {str(self._folder)!r} holds a study with other overrides: "
                f"{study.user_attrs}; give the same ones, or another folder."
            )
        for key, value in wanted.items():
            study.set_user_attr(key, value)
        return study

    def _ask(self, study: Study) -> FrozenTrial:
        from numpy.random import SeedSequence
        from optuna.samplers import TPESampler

        number = len(study.get_trials(deepcopy=False))
        (seed,) = SeedSequence([self.seed, number]).generate_state(1)
        study.sampler = TPESampler(
            seed=int(seed), n_startup_trials=self.n_startup_trials, constant_liar=self.n_jobs > 1
        )
        trial = study.ask(self._space)
        return study.get_trials(deepcopy=False)[trial.number]

    def _do(self, study: Study, trials: Sequence[FrozenTrial]) -> list[JobReturn]:
        """Let the launcher do trials of consecutive numbers, and tell the study what came of them."""
        from optuna.trial import TrialState

        first = trials[0].number
        batch = []
        for trial in trials:
            begun = sorted(path for path in self._folder.glob(f"{trial.number}-*") if path.is_dir())
            batch.append([*self._fixed, *_texts(trial), *(self._in(begun[0]) if begun else [])])
        results = list(self._launcher.launch(batch, initial_job_idx=first))
        for trial, result in zip(trials, results, strict=True):
            if result.status == JobStatus.COMPLETED and math.isfinite(result.return_value):
                study.tell(trial.number, float(result.return_value))
            else:
                study.tell(trial.number, state=TrialState.FAIL)
        return results


def _texts(trial: FrozenTrial) -> list[str]:
    """A trial's values as overrides."""
    return [f"{key}={value}" for key, value in trial.params.items()]


def _distribution(override: Override) -> BaseDistribution:
    """What Optuna draws an override's value from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        logarithmic = "log" in value.tags
        if "int" in value.tags:
            return IntDistribution(int(value.start), int(value.end), log=logarithmic)
        return FloatDistribution(value.start, value.end, log=logarithmic)
    if isinstance(value, RangeSweep) and not value.shuffle and "log" not in value.tags:
        steps = [float(text) for text in override.sweep_string_iterator()]
        if len(steps) > 1 and all(step.is_integer() for step in steps) and steps[0] < steps[-1]:
            return IntDistribution(int(steps[0]), int(steps[-1]), step=int(steps[1] - steps[0]))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


PLUGINS = {"hydra_plugins.detlab.Repeat": Repeat, "hydra_plugins.detlab.Optuna": Optuna}
