"""Which weights a model starts from: loaded, skipped for their shape, missing, and never into other norms."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detlab import storage
from detlab.errors import UserError
from detlab.models.norms import norm_of_keys

log = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What became of each tensor: names as in the model."""

    loaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # "name [file's shape] against [model's shape]"
    missing: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Three lines to print."""

        def some(names: list[str]) -> str:
            return ": " + ", ".join(names[:3]) + (" ..." if len(names) > 3 else "") if names else ""

        return [
            f"loaded {len(self.loaded)} tensors",
            f"skipped for their shape {len(self.skipped)}{some(self.skipped)}",
            f"missing in the file {len(self.missing)}{some(self.missing)}",
        ]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The model's tensors of a file: a detlab checkpoint or a plain state dict.

    Raises:
        UserError: no such file, damaged, with pickled objects in it, or neither of the two kinds.
    """
    content = storage.load(path, checked=False)
    if isinstance(content, dict) and "format" in content and "model" in content:
        content = content["model"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise UserError(f"{path}: neither a detlab checkpoint nor a state dict (names to tensors).")
    return content


def _check_norms(path: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """A state dict fits `strict` into norms that compute something else; say so instead."""
    theirs, ours = norm_of_keys(state), norm_of_keys(model.state_dict())
    if theirs == ours:
        return
    if (theirs, ours) == ("batch", "frozen"):
        log.info("%s: its batch norms are taken as frozen ones (model.norm=frozen)", path)
        return
    raise UserError(f"{path}: trained with {theirs} norms, but model.norm={ours}; set model.norm={theirs}.")


def load_weights(model: nn.Module, path: Path) -> LoadReport:
    """Load what fits from a file and say in three lines what did not.

    Raises:
        UserError: the file is unreadable, has other norms, or nothing in it fits.
    """
    state = read_state_dict(path)
    report = LoadReport()
    fitting: dict[str, Tensor] = {}
    for name, own in model.state_dict().items():
        if name not in state:
            report.missing.append(name)
        elif state[name].shape != own.shape:
            report.skipped.append(f"{name} {list(state[name].shape)} against {list(own.shape)}")
        else:
            report.loaded.append(name)
            fitting[name] = state[name]
    if not any(model.state_dict()[name].ndim > 1 for name in fitting):
        raise UserError(
            f"{path}: nothing in it fits this model; it is from another one (first name: {next(iter(state))})."
        )
    _check_norms(path, state, model)
    model.load_state_dict(fitting, strict=False)
    for line in report.lines():
        log.info("%s: %s", path.name, line)
    return report


def check_frozen(model: nn.Module, weights: str) -> None:
    """Refuse to train a model whose frozen parts were never trained by anybody.

    Raises:
        UserError: `weights` is `none`, and a parameter or a norm is frozen.
    """
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    frozen += [name for name, module in model.named_modules() if isinstance(module, FrozenBatchNorm2d)]
    if weights == "none" and frozen:
        raise UserError(
            f"model.trainable_backbone_layers, model.norm: with model.weights=none {frozen[0]} and {len(frozen) - 1} more "
            "would stay random for ever; train all layers with norm batch or group, or give weights."
        )
