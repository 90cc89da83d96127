"""Which parameters train with which learning rate and weight decay?"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from detlab.errors import UserError

# The reserved pattern for the weights and biases of normalisation layers, and what those are: BatchNorm, InstanceNorm and
# SyncBatchNorm share the first class, torchvision's LayerNorm2d is a LayerNorm. Frozen norms have no parameters.
NORMS = "norms"
NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def trained_parameters(model: nn.Module, optimizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trained parameters of a model, in the groups that an optimizer's node asks for: see `parameter_groups`.

    Args:
        model: trains the parameters that require gradients.
        optimizer: the node; of a user's own it need not have `groups`, `lr` and `weight_decay`.

    Raises:
        UserError: groups that are not well formed, or fit nothing.
    """
    groups, lr, weight_decay = (
        optimizer[key] if key in optimizer else None for key in ("groups", "lr", "weight_decay")
    )
    return parameter_groups(model, groups, lr=lr, weight_decay=weight_decay)


def parameter_groups(
    model: nn.Module, groups: Mapping[str, Any] | None, *, lr: float | None, weight_decay: float | None
) -> list[dict[str, Any]]:
    """The trained parameters of a model in groups that share settings, as torch's optimizers take them.

    Args:
        model: trains the parameters that require gradients.
        groups: pattern to settings: `lr_factor` (above 0, times `lr`) and `weight_decay` (0 or more), both optional. A pattern is
            a glob on names of parameters (`backbone.*`), or `norms`. Of several that fit a parameter the last one wins, for each
            setting by itself.
        lr: the optimizer's; None where it has none in its node.
        weight_decay: the same.

    Returns:
        Without groups one, `{"params": [...]}`, in the order of the model. With groups first the one of unchanged settings, where
        any parameter has them (its rate is the one that a run logs), then the others in the order of the model, each with `lr`
        and `weight_decay`.

    Raises:
        UserError: settings that are unknown or out of range, that change what the optimizer has not, or a pattern that fits no
            trained parameter; a line each.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not groups:
        return [{"params": list(named.values())}]
    defaults = {"lr": lr, "weight_decay": weight_decay}
    faults = settings_faults(groups)
    fits: dict[str, set[str]] = {}
    if not faults:
        fits = {pattern: _fitting(str(pattern), model, named) for pattern in groups}
        faults += _foreign_faults(groups, defaults)
        faults += [_unused(str(pattern), list(named)) for pattern, names in fits.items() if not names]
    if faults:
        raise UserError("\n".join(faults))
    unchanged = tuple(defaults.values())
    sharing: dict[tuple[float | None, ...], list[nn.Parameter]] = {unchanged: []}
    for name, parameter in named.items():
        settings: dict[str, Any] = {}
        for pattern, names in fits.items():
            settings |= dict(groups[pattern]) if name in names else {}
        rate = lr * settings["lr_factor"] if lr is not None and "lr_factor" in settings else lr
        decay = settings["weight_decay"] if "weight_decay" in settings else weight_decay
        sharing.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, **{key: value for key, value in zip(defaults, values, strict=True) if value is not None}}
        for values, parameters in sharing.items()
        if parameters
    ]


def settings_faults(groups: Any) -> list[str]:
    """What is wrong with `optimizer.groups` whatever the model, a line each."""
    if not isinstance(groups, Mapping):
        return [f"optimizer.groups: {groups!r} is no mapping; give patterns, such as {{norms: {{weight_decay: 0}}}}."]
    faults = []
    for pattern, settings in groups.items():
        where = f"optimizer.groups.{pattern}"
        if not isinstance(settings, Mapping):
            faults.append(f"{where}: {settings!r} is no mapping; give lr_factor, weight_decay, or both.")
            continue
        for key, value in settings.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if key not in ("lr_factor", "weight_decay"):
                faults.append(f"{where}.{key}: no such setting; allowed: lr_factor, weight_decay.")
            elif key == "lr_factor" and not (number and value > 0):
                faults.append(f"{where}.lr_factor: {value!r} is not allowed; allowed: a finite number above 0.")
            elif key == "weight_decay" and not (number and value >= 0):
                faults.append(f"{where}.weight_decay: {value!r} is not allowed; allowed: 0 or more.")
    return faults


def _foreign_faults(groups: Mapping[str, Any], defaults: Mapping[str, float | None]) -> list[str]:
    """Settings that change what the optimizer's node has not, and that the optimizer may not know: torch would say nothing."""
    return [
        f"optimizer.groups.{pattern}.{key}: the optimizer has no {own} to change; if it takes one, give +optimizer.{own}=..."
        for pattern, settings in groups.items()
        for key, own in (("lr_factor", "lr"), ("weight_decay", "weight_decay"))
        if key in settings and defaults[own] is None
    ]


def _fitting(pattern: str, model: nn.Module, named: Mapping[str, nn.Parameter]) -> set[str]:
    """Names of the trained parameters that a pattern means."""
    if pattern != NORMS:
        return {name for name in named if fnmatchcase(name, pattern)}
    norms = [module for module in model.modules() if isinstance(module, NORM_LAYERS)]
    theirs = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    return {name for name, parameter in named.items() if id(parameter) in theirs}


def _unused(pattern: str, names: list[str]) -> str:
    """That a pattern fits nothing, with the name, or the part of the model, that is most like it."""
    said = f"optimizer.groups.{pattern}: fits no trained parameter"
    if pattern == NORMS:
        return f"{said}: no normalisation layer of this model is trained."
    if not names:
        return f"{said}: this model trains none."
    parts = {".".join(name.split(".")[:depth]) + ".*" for name in names for depth in range(1, name.count(".") + 1)}
    alike = difflib.get_close_matches(pattern, sorted(parts | {*names, NORMS}), n=1)
    hint = f" Did you mean {alike[0]}?" if alike else ""
    return f"{said}; their names are like {', '.join(names[:3])}.{hint}"
