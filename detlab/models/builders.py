"""Calling torchvision's own builders of detectors: nothing is downloaded, and no argument is ignored."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detlab.errors import UserError

# torchvision's arguments that name weights: those of today, and those of before 0.13.
WEIGHTS = ("weights", "weights_backbone")
OLD_WEIGHTS = ("pretrained", "pretrained_backbone")


def call_builder(builder: Callable[..., nn.Module], num_classes: int, num_keypoints: int | None) -> nn.Module:
    """What a builder makes of the arguments bound to it, with random weights.

    Args:
        builder: `functools.partial` of a function or class such as `torchvision.models.detection.retinanet_resnet50_fpn`.
        num_classes: with the background.
        num_keypoints: for a builder that takes it, as `keypointrcnn_resnet50_fpn` does; None where the data set has none.

    Raises:
        UserError: an argument that makes torchvision download, or that it would ignore.
    """
    if not isinstance(builder, functools.partial):
        raise UserError("model.model: needs _partial_: true, since it is called with the number of classes.")
    _check_arguments(builder)
    takes = inspect.signature(builder.func).parameters
    # By default torchvision downloads a backbone's weights, even with weights=None.
    none = {key: None for key in WEIGHTS if key in takes}
    points = {"num_keypoints": num_keypoints} if "num_keypoints" in takes else {}
    return builder(num_classes=num_classes, **points, **none)


def _check_arguments(builder: functools.partial[nn.Module]) -> None:
    name, given = builder.func.__name__, builder.keywords
    if builder.args:
        raise UserError(f"model.model._args_: {name} is given its arguments by name only.")
    for key in (*WEIGHTS, *OLD_WEIGHTS):
        if given.get(key):
            raise UserError(
                f"model.model.{key}: {given[key]!r} would make torchvision download what nobody verifies; leave it out, and "
                "give a file in model.weights."
            )
    for key in ("num_classes", "num_keypoints"):
        if key in given:
            raise UserError(f"model.model.{key}: each run passes it; leave it out.")
    heeded = _heeded(builder.func)
    ignored = [key for key in given if heeded is not None and key not in (*heeded, *OLD_WEIGHTS)]
    if heeded is not None and ignored:
        takes = ", ".join(sorted(heeded - {*WEIGHTS, "num_classes", "num_keypoints", "kwargs"}))
        raise UserError(f"model.model.{ignored[0]}: {name} would ignore it; it takes {takes}.")


def _names(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def _heeded(builder: Callable[..., Any]) -> set[str] | None:
    """The arguments that a builder heeds; None for one of somebody else's that takes any name.

    torchvision's builders pass what they do not know to the detector's class, and that to the transform, which ignores
    the rest in silence.
    """
    signature = inspect.signature(builder, eval_str=True)
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return _names(builder)
    detector = builder if inspect.isclass(builder) else signature.return_annotation
    if not inspect.isclass(detector) or not detector.__module__.startswith("torchvision."):
        return None
    heeded = _names(builder) | _names(detector) | _names(GeneralizedRCNNTransform)
    # Frozen layers of random weights make no sense: a builder that loads none trains all, with a warning.
    return heeded - {"trainable_backbone_layers"}
