"""Which weights a model starts from, what that means for its norms, and what became of each tensor."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)
from torchvision.ops import FrozenBatchNorm2d

from detlab import storage
from detlab.download import Checksum, fetch
from detlab.errors import UserError
from detlab.models.norms import norm_of_keys
from detlab.structures import IouType
from detlab.untrusted import saved_config

log = logging.getLogger(__name__)

# torchvision's detectors trained on COCO whose modules are ours: the backbone's name, pyramid, what it predicts.
COCO: dict[tuple[str, bool, tuple[IouType, ...]], str] = {
    ("resnet50", True, ("bbox",)): FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url,
    ("resnet50", True, ("bbox", "segm")): MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url,
    ("resnet50", True, ("bbox", "keypoints")): KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.url,
}
# What depends on the classes, and is new in every fine-tuning; as in torchvision's tutorial with the mask's hidden layer.
PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.")
# What depends on the number of points, and is kept where that is COCO's: it looks for a point's place, whatever the class.
KEYPOINT_PREDICTOR = "roi_heads.keypoint_predictor."
CLASSIFIERS = ("fc.", "classifier.")
# The norms that weights load into. Those of COCO were trained with frozen ones, as in torchvision.
NORMS = {"imagenet": ("frozen", "batch"), "coco": ("frozen",)}
# Names of torchvision before 0.13, which its COCO files still have, and those of today.
_RENAMED = (
    (re.compile(r"(\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
    *((re.compile(rf"^(roi_heads\.mask_head)\.mask_fcn{i + 1}\.(weight|bias)$"), rf"\1.{i}.0.\2") for i in range(4)),
)


def settle(model: DictConfig) -> None:
    """Replace, in a composed model node, each `auto` by the value that its `weights` ask for.

    | weights  | norm               | norm_eps             | trainable_backbone_layers  |
    |----------|--------------------|----------------------|----------------------------|
    | none     | batch              | 1e-5                 | all                        |
    | imagenet | frozen             | 1e-5                 | 3; all with norm=batch     |
    | coco     | frozen             | 0.0                  | 3                          |
    | a file   | that of its names  | its config's or 1e-5 | all                        |

    As in torchvision's detectors. With COCO weights its frozen norms have no epsilon, since those were trained so. What is
    written down afterwards (config.yaml, checkpoints) rebuilds the model without its weights' source.

    Args:
        model: `cfg.model`; changed in place. A node without `weights`, or without any of the three keys, stays as it is.

    Raises:
        UserError: `weights` is a file that cannot be read.
    """
    keys = ("norm", "norm_eps", "trainable_backbone_layers")
    autos = [key for key in keys if key in model and model[key] == "auto"]
    if "weights" not in model or not autos:
        return
    settings: dict[str, Any]
    if model.weights == "none":
        settings = {"norm": "batch", "norm_eps": 1e-5, "trainable_backbone_layers": "all"}
    elif model.weights in NORMS:
        norm, eps = "frozen", 0.0 if model.weights == "coco" else 1e-5
        # Half-trained BatchNorm is refused: who asks for it trains all.
        layers = "all" if "norm" in model and model.norm == "batch" else 3
        settings = {"norm": norm, "norm_eps": eps, "trainable_backbone_layers": layers}
    else:
        norm, eps = _trained_with(weights_file(model.weights))
        settings = {"norm": norm, "norm_eps": eps, "trainable_backbone_layers": "all"}
    for key in autos:
        model[key] = settings[key]


def weights_file(weights: str) -> Path:
    """The file that `model.weights` names.

    Raises:
        UserError: there is none.
    """
    path = Path(str(weights)).expanduser()
    if not path.is_file():
        raise UserError(f"model.weights: {weights!r} is neither none, imagenet, coco nor a file that exists.")
    return path


def _trained_with(path: Path) -> tuple[str, float]:
    """The norm that a file's weights were trained with, and its epsilon: 1e-5 where the file does not say."""
    content = storage.load(path, checked=False)
    norm, eps = norm_of_keys(_tensors(content, path)), 1e-5
    if "config" in content:
        model = saved_config(content["config"], path).model
        eps = float(model.norm_eps) if "norm_eps" in model else eps
    return norm, eps


@dataclass
class LoadReport:
    """What became of each tensor: names as in the model."""

    loaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # for their shape: "name [file's shape] against [model's shape]"
    missing: list[str] = field(default_factory=list)
    why: str = "for their shape"

    def lines(self) -> list[str]:
        """Three lines to print."""
        return [
            f"loaded {len(self.loaded)} tensors",
            f"skipped {self.why} {_some(self.skipped)}",
            f"missing in the file {_some(self.missing)}",
        ]


def _some(names: list[str]) -> str:
    """How many names, and the first of them."""
    first = ": " + ", ".join(names[:3]) if names else ""
    return f"{len(names)}{first}{' ...' if len(names) > 3 else ''}"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The model's tensors of a file: a detlab checkpoint or a plain state dict.

    Raises:
        UserError: no such file, damaged, with pickled objects in it, or neither of the two kinds.
    """
    return _tensors(storage.load(path, checked=False), path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and "format" in content and "model" in content:
        content = content["model"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise UserError(f"{path}: neither a detlab checkpoint nor a state dict (names to tensors).")
    return content


def _as_named_today(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """A state dict with those names of before 0.13 that the model (`own`) does not have put into today's."""

    def today(name: str) -> str:
        for old, new in _RENAMED:
            name = old.sub(new, name)
        return name

    return {name if name in own else today(name): value for name, value in state.items()}


def _check_norms(path: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """A state dict fits `strict` into norms that compute something else; say so instead."""
    theirs, ours = norm_of_keys(state), norm_of_keys(model.state_dict())
    if theirs == ours:
        return
    if (theirs, ours) == ("batch", "frozen"):
        log.info("%s: its batch norms are taken as frozen ones (model.norm=frozen)", path)
        return
    raise UserError(
        f"{path}: trained with {theirs} norms, but model.norm={ours}; set model.norm={theirs} (a wrapped model's norms are its "
        "builder's)."
    )


def load_weights(model: nn.Module, path: Path) -> LoadReport:
    """Load what fits from a file and say in three lines what did not.

    Raises:
        UserError: the file is unreadable, has other norms, or nothing in it fits.
    """
    own = model.state_dict()
    state = _as_named_today(read_state_dict(path), own)
    report = LoadReport()
    fitting: dict[str, Tensor] = {}
    for name, value in own.items():
        if name not in state:
            report.missing.append(name)
        elif state[name].shape != value.shape:
            report.skipped.append(f"{name} {list(state[name].shape)} against {list(value.shape)}")
        else:
            report.loaded.append(name)
            fitting[name] = state[name]
    if not any(own[name].ndim > 1 for name in fitting):
        raise UserError(
            f"{path}: nothing in it fits this model; it is from another one (first name: {next(iter(state))})."
        )
    _check_norms(path, state, model)
    model.load_state_dict(fitting, strict=False)
    _log_report(report, path)
    return report


# The tensors of torchvision's R-CNNs with rows for each class, the background first: rows a class, and how widely they begin.
CLASS_ROWS = {
    "roi_heads.box_predictor.cls_score": (1, 0.01),
    "roi_heads.box_predictor.bbox_pred": (4, 0.001),
    "roi_heads.mask_predictor.mask_fcn_logits": (1, 0.001),
}


def match_classes(model: nn.Module, weights: str, names: Sequence[str]) -> None:
    """Give the predictors of a model that began with a detlab checkpoint the rows of its classes, by name.

    Loaded by shape alone, as many classes in another order would have each other's weights, without a word.

    Args:
        model: has loaded the file.
        weights: `model.weights`; whatever is no detlab checkpoint's file knows no names, and nothing is done.
        names: of the model's classes; one that the checkpoint does not have begins small, as in an untrained model.

    Raises:
        UserError: other classes, and predictors that are no R-CNN's.
    """
    if weights in ("none", *NORMS):
        return
    path = weights_file(weights)
    content = storage.load(path, checked=False)
    if "class_map" not in content:
        return
    theirs = list(content["class_map"]["names"])
    if theirs == list(names):
        return
    state, own = _tensors(content, path), model.state_dict()
    if "roi_heads.box_predictor.cls_score.weight" not in own:
        raise UserError(
            f"{path}: trained on {', '.join(theirs)}, but the data set has {', '.join(names)}; for this model both need the same "
            "classes in the same order (dataset.classes)."
        )
    for module, (rows, spread) in CLASS_ROWS.items():
        for kind in ("weight", "bias"):
            name = f"{module}.{kind}"
            if name in own and name in state and state[name].shape[1:] == own[name].shape[1:]:
                _copy_rows(own[name], state[name], theirs, names, rows, spread if kind == "weight" else 0.0)
    known = [name for name in names if name in theirs]
    new = [name for name in names if name not in theirs]
    said = (f"{len(known)} classes by name ({', '.join(known)})", f"new: {', '.join(new) or 'none'}")
    log.info("%s: %s", path.name, "; ".join(said))


def _copy_rows(
    own: Tensor, state: Tensor, theirs: Sequence[str], names: Sequence[str], rows: int, spread: float
) -> None:
    """Fill a tensor of `rows` rows for the background and each of `names` from one that has them for `theirs`."""
    own[:rows] = state[:rows]
    for label, name in enumerate(names, 1):
        place = own[label * rows : (label + 1) * rows]
        if name in theirs:
            begin = (theirs.index(name) + 1) * rows
            place.copy_(state[begin : begin + rows])
        else:
            nn.init.normal_(place, std=spread)


def imagenet_url(name: str) -> str:
    """Where torchvision's classification weights for a backbone lie: those that its detectors with a backbone of it take."""
    return get_model_weights(name)["IMAGENET1K_V1"].url


def coco_url(name: str, *, fpn: bool, iou_types: Sequence[IouType]) -> str:
    """Where torchvision's COCO weights for a detector lie.

    Raises:
        UserError: there are none for this one.
    """
    detector = (name, fpn, tuple(iou_types))
    if detector not in COCO:
        raise UserError(
            f"model.weights: no COCO weights for {_in_words(*detector)}; there are some for: "
            f"{'; '.join(_in_words(*known) for known in COCO)}."
        )
    return COCO[detector]


def _in_words(name: str, fpn: bool, iou_types: Sequence[IouType]) -> str:
    return f"{name} {'with' if fpn else 'without'} a pyramid, for {' and '.join(iou_types)}"


def fetched(url: str) -> Path:
    """A file of torchvision's in torch's cache, where torchvision itself looks for it, verified by the hash in its name.

    Raises:
        UserError: it cannot be downloaded, or has another hash.
    """
    name = url.rpartition("/")[2]
    digest = name.rpartition("-")[2].partition(".")[0]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    return fetch(url, path, checksum=Checksum("sha256", digest), by_hand="start from scratch with model.weights=none")


def start_from(model: nn.Module, weights: str) -> None:
    """Give a detector the weights that it starts from.

    Args:
        model: with `iou_types`, and for `imagenet` and `coco` with a `backbone` by `detlab.models.backbones.backbone`.
        weights: `none`, `imagenet` (the backbone's), `coco` (all but the predictors; that of 17 keypoints too), or a file.

    Raises:
        UserError: weights that there are none of, that cannot be had, or that do not fit.
    """
    if weights == "none":
        return
    if weights not in NORMS:
        load_weights(model, weights_file(weights))
        return
    backbone: Any = getattr(model, "backbone", None)
    name: str | None = getattr(backbone, "name", None)
    if name is None:
        raise UserError(
            f"model.weights: {weights} needs a backbone by detlab.models.backbones.backbone, and this model has another; take "
            "none or a file."
        )
    norm = norm_of_keys(model.state_dict())
    if norm not in NORMS[weights]:
        raise UserError(
            f"model.norm: {norm} does not go with model.weights={weights}; allowed: {', '.join(NORMS[weights])}, auto."
        )
    if weights == "imagenet":
        _load_imagenet(model, fetched(imagenet_url(name)))
    else:
        iou_types: Any = model.iou_types
        _load_coco(model, fetched(coco_url(name, fpn=hasattr(backbone, "fpn"), iou_types=iou_types)))


def _load_imagenet(model: nn.Module, path: Path) -> None:
    """Load a classification model's weights into the backbone's body; the classifier is left out."""
    body = "backbone.body." if hasattr(model.backbone, "fpn") else "backbone."
    state = read_state_dict(path)
    classifier = [name for name in state if name.startswith(CLASSIFIERS)]
    state = {f"{body}{name.removeprefix('features.')}": state[name] for name in state.keys() - set(classifier)}
    wanted = {name for name in model.state_dict() if name.startswith(body)}
    _load_wholly(model, state, path, wanted, LoadReport(skipped=classifier, why="as the classifier's"))


def _load_coco(model: nn.Module, path: Path) -> None:
    """Load a detector's weights; the predictors, which know COCO's classes, are left out, and that of another number of points."""
    own = model.state_dict()
    state = _as_named_today(read_state_dict(path), own)
    points = [name for name in state.keys() & own.keys() if name.startswith(KEYPOINT_PREDICTOR)]
    fits = all(state[name].shape == own[name].shape for name in points)
    predictors = PREDICTORS if fits else (*PREDICTORS, KEYPOINT_PREDICTOR)
    replaced = [name for name in state if name.startswith(predictors)]
    state = {name: state[name] for name in state.keys() - set(replaced)}
    wanted = {name for name in own if not name.startswith(predictors)}
    _load_wholly(model, state, path, wanted, LoadReport(skipped=replaced, why="as the replaced predictors'"))


def _load_wholly(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, wanted: Collection[str], report: LoadReport
) -> None:
    """Load tensors of which each must be used, and which must fill all that is wanted.

    Raises:
        UserError: they do not.
    """
    own = model.state_dict()
    # BatchNorm's counters: frozen norms have none, nor have files of before 2018, and nothing here reads them.
    compared = {name for name in {*state, *wanted} if not name.endswith(".num_batches_tracked")}
    faults = {
        "lacks": sorted(compared - state.keys()),
        "has unknown": sorted(compared - set(wanted)),
        "has in another shape": sorted(
            name for name in compared & state.keys() & set(wanted) if state[name].shape != own[name].shape
        ),
    }
    said = [f"{what} {_some(names)}" for what, names in faults.items() if names]
    if said:
        raise UserError(
            f"{path}: does not fit this model: it {'; '.join(said)}.\nLeave the model's structure as its file in conf/model "
            "has it, or take model.weights=none."
        )
    report.loaded = [name for name in own if name in state]
    report.missing = [name for name in own if name not in state]
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    _log_report(report, path)


def _log_report(report: LoadReport, path: Path) -> None:
    for line in report.lines():
        log.info("%s: %s", path.name, line)


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
