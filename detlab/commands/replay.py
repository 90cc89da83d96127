"""`detlab replay`: where in the model did a step break down?"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


def main(argv: list[str]) -> int:
    """Repeat the step of a `crash.pt` with torch's anomaly detection, and say where it stops being finite.

    Args:
        argv: the arguments after `detlab replay`.

    Returns:
        0 where the losses are those of the file; 1 where they are not.

    Raises:
        UserError: no such file, or none that a step that broke down has left.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_args(argv)
    from detlab.blackbox import NAME

    path = arguments.crash / NAME if arguments.crash.is_dir() else arguments.crash
    if arguments.crash.is_dir() and not path.exists():
        raise UserError(f"{arguments.crash}: holds no {NAME}; none of its steps broke down, or it is no run's folder.")
    told = replay(path, device=arguments.device)
    if arguments.json:
        print(json.dumps(told))
    else:
        print(*_lines(path, told), sep="\n")
    return 0 if told["reproduced"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab replay",
        description="Repeats a training step whose loss or gradient was not finite, from what the run kept of it.",
        epilog="example: detlab replay outputs/2026-01-31/12-00-00/crash.pt",
        allow_abbrev=False,
    )
    parser.add_argument("crash", metavar="CRASH", type=Path, help="a crash.pt, or the run's folder that holds one")
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, cuda:1, mps")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def replay(path: Path, *, device: str) -> dict[str, Any]:
    """Repeat a kept step.

    Returns:
        `step`; `losses`, each process's and micro-batch's in turn, and `recorded`, as they were; `culprits`, the losses of images
        that are not finite alone, by image id; `forward`, the first module whose result was not finite; `backward`, what torch's
        anomaly detection found; `reproduced`, whether all losses are equal.

    Raises:
        UserError: see `main`.
    """
    import torch

    from detlab.chance import seed_all
    from detlab.checkpoint import model_of, read
    from detlab.engine import losses_of, select_device

    state = read(path)
    if "crash" not in state:
        raise UserError(
            f"{path}: holds no step that broke down; a run writes {path.parent / 'crash.pt'} when one does."
        )
    crash = state["crash"]
    model = model_of(state, path, ())[0].train()
    place = select_device(device, crash["precision"], crash["channels_last"] if "channels_last" in crash else None)
    place.place(model)
    losses: list[dict[str, Tensor]] = []
    backward: str | None = None
    with torch.autograd.set_detect_anomaly(True), _first_not_finite(model) as modules:
        for share in crash["processes"]:
            seed_all(share["seed"])
            for batch in share["batches"]:
                parts = losses_of(model, batch["images"], batch["targets"], place, crash["iou_types"])
                losses.append({name: value.detach().cpu() for name, value in parts.items()})
                backward = backward or _anomaly(torch.stack(list(parts.values())).sum() / len(share["batches"]))
    recorded = [part for share in crash["processes"] for part in share["losses"]]
    return {
        "step": crash["step"],
        "losses": [_numbers(part) for part in losses],
        "recorded": [_numbers(part) for part in recorded],
        "culprits": {str(i): names for share in crash["processes"] for i, names in share["culprits"].items()},
        "forward": modules[0] if modules else None,
        "backward": backward,
        "reproduced": _same(losses, recorded),
    }


@contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Gives a list of the names of modules whose results are not finite, in the order in which they end."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _given: Any, result: Any) -> None:
            if not _finite(result):
                found.append(name or type(model).__name__)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _finite(value: Any) -> bool:
    import torch

    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True


def _anomaly(loss: Tensor) -> str | None:
    """What torch finds on the way back; None where all is finite."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trace of the forward pass, which the names of modules stand for
        try:
            loss.backward()
        except RuntimeError as error:
            if "returned nan values" not in str(error):
                raise
            return str(error)
    return None


def _numbers(losses: Mapping[str, Tensor]) -> dict[str, float | str]:
    """Losses as JSON can have them: what is not finite as a word."""
    values = {name: float(value) for name, value in losses.items()}
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}


def _same(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> bool:
    import torch

    pairs = list(zip(ours, theirs, strict=True))
    return all(a.keys() == b.keys() for a, b in pairs) and all(
        torch.allclose(a[name], b[name], rtol=1e-5, atol=0, equal_nan=True) for a, b in pairs for name in a
    )


def _lines(path: Path, told: Mapping[str, Any]) -> list[str]:
    lines = [f"{path}: step {told['step']}"]
    for now, then in zip(told["losses"], told["recorded"], strict=True):
        lines.append("  losses now:   " + "  ".join(f"{name}={value}" for name, value in now.items()))
        lines.append("  losses then:  " + "  ".join(f"{name}={value}" for name, value in then.items()))
    alone = [f"{i}: {', '.join(names)}" for i, names in told["culprits"].items()]
    lines.append(f"  images that do it alone: {'; '.join(alone) or 'none'}")
    lines.append(f"  first module with a result that is not finite: {told['forward'] or 'none'}")
    lines.append(f"  on the way back: {told['backward'] or 'all finite'}")
    lines.append("reproduced" if told["reproduced"] else "not reproduced: the losses differ from those of the run")
    return lines
