"""`python -m detlab.benchmark.first_batch [overrides]`: detlab.run itself, ended at its first batch; tells what took how long."""

from __future__ import annotations

import time

_MARKS = [("", time.perf_counter())]  # before any other import, whose time counts

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from itertools import pairwise  # noqa: E402
from typing import Any  # noqa: E402

from detlab import run  # noqa: E402

_whole_train = run.train


def _mark(step: str) -> None:
    """The end of a step, which began where the last one ended."""
    _MARKS.append((step, time.perf_counter()))


def _steps() -> dict[str, float]:
    return {step: at - before for (_, before), (step, at) in pairwise(_MARKS)}


def _before(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, at whose call a step ends."""

    def called(*arguments: Any, **named: Any) -> Any:
        _mark(step)
        return function(*arguments, **named)

    return called


def _take_one(_model: Any, batches: Any, *_: Any, **__: Any) -> int:
    """In the place of training: take the first batch, say so, and end."""
    from detlab.benchmark.turns import peak_memory

    _mark("model")
    next(iter(batches))
    _mark("first batch")
    print(json.dumps({"steps": _steps(), "memory": peak_memory()}), flush=True)
    batches.close()
    raise SystemExit(0)


def _train(cfg: Any) -> float:
    """`detlab.run.train`, with `_take_one` in it."""
    from detlab import engine, parts

    data_sets = parts.data_sets

    def timed(cfg: Any) -> Any:
        _mark("imports")
        found = data_sets(cfg)
        _mark("data")
        return found

    parts.data_sets = timed
    engine.train_one_epoch = _take_one
    return _whole_train(cfg)


def main() -> int:
    """Start a run in a folder that nobody keeps."""
    run.train = _train
    run.run = _before("config", run.run)
    with tempfile.TemporaryDirectory() as folder:
        sys.argv[1:] = [*sys.argv[1:], f"hydra.run.dir={os.path.join(folder, 'run')}"]
        return run.main()


if __name__ == "__main__":
    sys.exit(main())
