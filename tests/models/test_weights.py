"""Weights that a model starts from: fetched, verified, wholly loaded, and the norms that go with them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from loopback import Loopback, closed_port, serving
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, get_model
from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights, MaskRCNN, MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from detlab import download, parts, storage
from detlab.checkpoint import load_model
from detlab.config import build, rule_fault
from detlab.errors import UserError
from detlab.models import weights
from detlab.models.backbones import NAMES, backbone
from detlab.models.weights import check_frozen, coco_url, fetched, imagenet_url, load_weights, settle
from detlab.structures import ClassMap, IouType

Composed = Callable[..., DictConfig]
State = dict[str, Tensor]
SMALL = ("model=fasterrcnn", "model.backbone.name=mobilenet_v3_small", "model.box_roi_pool.output_size=1")
MASKS = ("model=maskrcnn", "model.backbone.name=mobilenet_v3_small", "model.box_roi_pool.output_size=1")
POINTS = ("model=keypointrcnn_mobilenet", "model.backbone.name=mobilenet_v3_small", "model.box_roi_pool.output_size=1")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache in an empty folder, a download that does not wait before it tries again, and none by torchvision."""

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"torchvision downloads {url}")

    for module in (torch.hub, torchvision.models._api):
        monkeypatch.setattr(module, "load_state_dict_from_url", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving({}) as running:
        yield running


def as_file(state: Any, tmp_path: Path, **how: Any) -> bytes:
    torch.save(state, tmp_path / "served.pth", **how)
    return (tmp_path / "served.pth").read_bytes()


def named(content: bytes, stem: str) -> str:
    """A path as torchvision's files have it, with the beginning of their sha256."""
    return f"/models/{stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth"


@pytest.fixture
def publish(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Serve a state dict as the ImageNet weights of every backbone; gives its file's name."""

    def publish_it(state: Any, **how: Any) -> str:
        content = as_file(state, tmp_path, **how)
        path = named(content, "weights")
        server.files[path] = content
        monkeypatch.setattr(weights, "imagenet_url", lambda _name: server.url(path))
        return path.rpartition("/")[2]

    return publish_it


@pytest.fixture
def publish_coco(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[State, tuple[str, bool, tuple[IouType, ...]]], str]:
    """Serve a state dict as the COCO weights of a detector; gives its file's name."""

    def publish_it(state: State, detector: tuple[str, bool, tuple[IouType, ...]]) -> str:
        content = as_file(state, tmp_path)
        path = named(content, "detector_coco")
        server.files[path] = content
        monkeypatch.setitem(weights.COCO, detector, server.url(path))
        return path.rpartition("/")[2]

    return publish_it


def classification(name: str) -> State:
    """A state dict of torchvision's classification model with BatchNorm, random in all its parts."""
    torch.manual_seed(1)
    return randomised(get_model(name, weights=None, norm_layer=nn.BatchNorm2d)).state_dict()


def randomised(model: nn.Module) -> nn.Module:
    """Norms as after a training, so that a tensor that is not loaded, or another epsilon, shows."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand_like(value) + (0.5 if name.endswith("var") else 0.0))
    return model


def model_of(composed: Composed, *overrides: str, num_classes: int = 3, num_keypoints: int | None = None) -> nn.Module:
    cfg = composed(*overrides)
    settle(cfg.model)
    return build(cfg.model, group="model", num_classes=num_classes, num_keypoints=num_keypoints)


def norms_of(model: nn.Module) -> tuple[set[type], set[float]]:
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)
    norms = [module for module in model.modules() if isinstance(module, kinds)]
    found = {next(kind for kind in kinds if isinstance(module, kind)) for module in norms}
    return found, {module.eps for module in norms}  # pyright: ignore


# ImageNet weights


@pytest.mark.parametrize(
    ("name", "overrides", "body", "of_classifier"),
    [
        ("resnet18", ("model=fasterrcnn", "model.backbone.name=resnet18"), "body.", 2),
        ("mobilenet_v3_small", ("model=fasterrcnn", "model.backbone.name=mobilenet_v3_small"), "body.", 4),
        ("mobilenet_v2", ("model=mobilenet",), "", 2),
        ("efficientnet_b0", ("model=mobilenet", "model.backbone.name=efficientnet_b0"), "", 2),
    ],
)
def test_imagenet_weights_fill_the_backbones_body_and_nothing_else(
    composed: Composed, publish: Callable[..., str], cache: Path, server: Loopback, caplog: pytest.LogCaptureFixture,
    name: str, overrides: tuple[str, ...], body: str, of_classifier: int,
) -> None:  # fmt: skip
    state = classification(name)
    file = publish(state)
    torch.manual_seed(0)
    untouched = model_of(composed, *overrides).state_dict()
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO):
        model = model_of(composed, *overrides, "model.weights=imagenet")
    own = model.backbone.state_dict()
    theirs = {f"{body}{key.removeprefix('features.')}": value for key, value in state.items()}
    loaded = [key for key in own if key.startswith(body) and "fpn" not in key]
    assert all(torch.equal(own[key], theirs[key]) for key in loaded)
    rest = {key: value for key, value in model.state_dict().items() if key.removeprefix("backbone.") not in loaded}
    assert all(torch.equal(value, untouched[key]) for key, value in rest.items())
    assert norms_of(model) == ({FrozenBatchNorm2d}, {1e-5})
    assert (cache / file).is_file()
    said = [r.message.removeprefix(f"{file}: ") for r in caplog.records if r.name == "detlab.models.weights"]
    assert said[0] == f"loaded {len(loaded)} tensors"
    counters = sum(key.endswith("num_batches_tracked") for key in state)
    assert len(loaded) == len(state) - counters - of_classifier
    assert said[1].startswith(f"skipped as the classifier's {of_classifier}: ")
    assert said[2].startswith(f"missing in the file {len(rest)}: ")
    check_frozen(model, "imagenet")
    trained = [p.requires_grad for p in model.backbone.parameters()]
    assert any(trained)
    assert not all(trained)


def test_weights_in_the_cache_are_used_again_without_a_request(
    composed: Composed, publish: Callable[..., str], server: Loopback
) -> None:
    publish(classification("mobilenet_v3_small"))
    for _ in range(2):
        model_of(composed, *SMALL, "model.weights=imagenet")
    assert len(server.requests) == 1


def test_imagenet_weights_go_into_batch_norms_that_are_all_trained(
    composed: Composed, publish: Callable[..., str]
) -> None:
    state = classification("mobilenet_v3_small")
    publish(state)
    model = model_of(composed, *SMALL, "model.weights=imagenet", "model.norm=batch")
    assert norms_of(model) == ({nn.BatchNorm2d}, {1e-5})
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.backbone.body.get_submodule("0")[1].running_var, state["features.0.1.running_var"])


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_a_file_of_torchs_old_format_without_counters_loads(
    composed: Composed, publish: Callable[..., str], norm: str
) -> None:
    state = {k: v for k, v in classification("mobilenet_v3_small").items() if not k.endswith("num_batches_tracked")}
    publish(state, _use_new_zipfile_serialization=False)
    model = model_of(composed, *SMALL, "model.weights=imagenet", f"model.norm={norm}")
    assert torch.equal(model.backbone.body.get_submodule("0")[0].weight, state["features.0.0.weight"])


@pytest.mark.parametrize(("weights_", "norm"), [("imagenet", "group"), ("coco", "group"), ("coco", "batch")])
def test_weights_are_not_fetched_for_norms_that_they_do_not_fit(
    composed: Composed, publish: Callable[..., str], server: Loopback, weights_: str, norm: str
) -> None:
    publish({})
    overrides = ("model.backbone.name=resnet18", f"model.weights={weights_}", f"model.norm={norm}")
    layers = "model.trainable_backbone_layers=all"
    with pytest.raises(
        UserError, match=rf"model\.norm: {norm} does not go with model\.weights={weights_}; allowed: froz"
    ):
        model_of(composed, *overrides, layers)
    assert server.requests == []


# What may be wrong with a file


def test_a_download_that_is_cut_off_is_said_with_the_address_and_the_place_for_the_file(
    composed: Composed, publish: Callable[..., str], server: Loopback, cache: Path
) -> None:
    file = publish(classification("mobilenet_v3_small"))
    server.faults |= {"cuts": 100, "cut_after": 0}
    with pytest.raises(UserError) as error:
        model_of(composed, *SMALL, "model.weights=imagenet")
    assert "cut off" in str(error.value)
    assert_says_where(str(error.value), server.url(f"/models/{file}"), cache / file)


def test_without_network_the_address_and_the_place_for_the_file_are_said(
    composed: Composed, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    url = f"http://127.0.0.1:{closed_port()}/models/weights-01234567.pth"
    monkeypatch.setattr(weights, "imagenet_url", lambda _name: url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError) as error:
        model_of(composed, *SMALL, "model.weights=imagenet")
    assert_says_where(str(error.value), url, cache / "weights-01234567.pth")


def assert_says_where(said: str, url: str, place: Path) -> None:
    assert len(said.splitlines()) == 2
    assert said.startswith(f"{url}: ")
    assert f"Put the file at {place} by hand, or start from scratch with model.weights=none." in said


def test_what_the_server_sends_with_another_hash_is_refused_and_not_kept(
    composed: Composed, publish: Callable[..., str], server: Loopback, cache: Path
) -> None:
    file = publish(classification("mobilenet_v3_small"))
    server.files[f"/models/{file}"] += b"!"
    with pytest.raises(UserError, match=f"sha256 [0-9a-f]{{8}}, not {file[8:16]}"):
        model_of(composed, *SMALL, "model.weights=imagenet")
    assert not (cache / file).exists()


def test_a_file_in_the_cache_with_another_hash_is_refused_by_its_name(
    composed: Composed, publish: Callable[..., str], server: Loopback, cache: Path
) -> None:
    file = publish(classification("mobilenet_v3_small"))
    cache.mkdir(parents=True)
    (cache / file).write_bytes(server.files[f"/models/{file}"][:-1])
    with pytest.raises(UserError, match=f"{re.escape(str(cache / file))}: damaged, or another file"):
        model_of(composed, *SMALL, "model.weights=imagenet")
    assert server.requests == []


class Harm:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (__import__, ("this_must_not_be_imported",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_objects_in_it_is_refused_though_its_hash_fits(
    composed: Composed, publish: Callable[..., str], zipped: bool
) -> None:
    publish({"features.0.0.weight": Harm()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="holds objects other than tensors and plain values"):
        model_of(composed, *SMALL, "model.weights=imagenet")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("features.0.0.weight"), r"lacks 1: backbone\.body\.0\.0\.weight\."),
        (lambda s: s.update(extra=torch.zeros(1)), r"has unknown 1: backbone\.body\.extra\."),
        (
            lambda s: s.update({"features.0.0.weight": torch.zeros(1), "features.0.1.bias": torch.zeros(2)}),
            r"has in another shape 2: backbone\.body\.0\.0\.weight, backbone\.body\.0\.1\.bias\.",
        ),
    ],
)
def test_weights_that_do_not_fill_the_body_are_refused(
    composed: Composed, publish: Callable[..., str], change: Callable[[State], Any], said: str
) -> None:
    state = dict(classification("mobilenet_v3_small"))
    change(state)
    publish(state)
    with pytest.raises(UserError, match=rf"does not fit this model: it {said}\nLeave the model's structure"):
        model_of(composed, *SMALL, "model.weights=imagenet")


# COCO weights


def detector(composed: Composed, *overrides: str) -> State:
    """A trained detector's state dict, with frozen norms and 91 classes, as torchvision publishes them."""
    torch.manual_seed(1)
    node = composed(*overrides, "model.norm=frozen").model
    settle(node)
    return randomised(build(node, group="model", num_classes=91, num_keypoints=17)).state_dict()


def with_old_names(state: Mapping[str, Tensor]) -> State:
    """The names that torchvision's COCO files have: those of before 0.13."""
    old = {}
    for name, value in state.items():
        name = re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", name).replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        old[re.sub(r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}.", name)] = value
    return old


@pytest.mark.parametrize("names", [dict, with_old_names])
@pytest.mark.parametrize(
    ("overrides", "iou_types", "num_keypoints", "replaced"),
    [
        (SMALL, ("bbox",), None, 4),
        (MASKS, ("bbox", "segm"), None, 8),
        (POINTS, ("bbox", "keypoints"), 17, 4),  # the keypoints' predictor stays
        (POINTS, ("bbox", "keypoints"), 5, 6),
    ],
)
def test_coco_weights_fill_all_but_the_predictors(
    composed: Composed, publish_coco: Callable[..., str], caplog: pytest.LogCaptureFixture,
    overrides: tuple[str, ...], iou_types: tuple[IouType, ...], num_keypoints: int | None, replaced: int,
    names: Callable[[State], State],
) -> None:  # fmt: skip
    state = detector(composed, *overrides)
    publish_coco(names(state), ("mobilenet_v3_small", True, iou_types))
    with caplog.at_level(logging.INFO):
        # As many classes as COCO: the predictors would fit, but know other classes.
        model = model_of(composed, *overrides, "model.weights=coco", num_classes=91, num_keypoints=num_keypoints)
    kept = ("keypoint_predictor",) if num_keypoints == 17 else ()
    predictors = {key for key in state if "predictor" in key and not any(part in key for part in kept)}
    same = {key for key, value in model.state_dict().items() if torch.equal(value, state[key])}
    assert same == state.keys() - predictors
    assert len(predictors) == replaced
    assert norms_of(model) == ({FrozenBatchNorm2d}, {0.0})
    assert f"skipped as the replaced predictors' {len(predictors)}: " in caplog.text
    assert f"missing in the file {len(predictors)}: " in caplog.text
    check_frozen(model, "coco")


def test_coco_weights_must_fill_a_changed_model_too(composed: Composed, publish_coco: Callable[..., str]) -> None:
    publish_coco(detector(composed, *SMALL), ("mobilenet_v3_small", True, ("bbox",)))
    with pytest.raises(UserError, match=r"has in another shape 1: roi_heads\.box_head\.fc6\.weight\."):
        model_of(composed, *SMALL, "model.box_roi_pool.output_size=2", "model.weights=coco")


def test_where_there_are_no_coco_weights_those_that_there_are_are_named(composed: Composed) -> None:
    with pytest.raises(UserError) as error:
        model_of(composed, "model.backbone.name=resnet18", "model.weights=coco")
    assert str(error.value) == (
        "model.weights: no COCO weights for resnet18 with a pyramid, for bbox and segm; there are some for: "
        "resnet50 with a pyramid, for bbox; resnet50 with a pyramid, for bbox and segm; resnet50 with a pyramid, for bbox and "
        "keypoints."
    )


@pytest.mark.slow
def test_torchvisions_mask_rcnn_from_coco_weights_computes_the_same(
    composed: Composed, publish_coco: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    plain = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
    theirs = randomised(MaskRCNN(plain, num_classes=91)).eval()
    state = with_old_names(theirs.state_dict())
    theirs.load_state_dict(state, strict=True)  # torchvision knows these names
    torchvision.models.detection._utils.overwrite_eps(theirs, 0.0)
    publish_coco(state, ("resnet50", True, ("bbox", "segm")))
    ours = model_of(composed, "model=maskrcnn", "model.weights=coco", "model.backbone.fold_norms=false").eval()
    image = torch.rand(1, 3, 128, 160)
    with torch.no_grad():
        mine, plain = ours.backbone(image), theirs.backbone(image)
        assert all(torch.equal(mine[key], plain[key]) for key in plain)
        for one, other in zip(ours.rpn.head(list(mine.values())), theirs.rpn.head(list(plain.values())), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        regions = torch.rand(3, 256, 7, 7)
        assert torch.equal(ours.roi_heads.box_head(regions), theirs.roi_heads.box_head(regions))
        assert torch.equal(ours.roi_heads.mask_head(regions), theirs.roi_heads.mask_head(regions))
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in theirs.named_parameters() if p.requires_grad}


def test_a_model_from_coco_weights_is_rebuilt_from_its_checkpoint_without_them(
    composed: Composed, publish_coco: Callable[..., str], server: Loopback, cache: Path, tmp_path: Path
) -> None:
    file = publish_coco(detector(composed, *SMALL), ("mobilenet_v3_small", True, ("bbox",)))
    cfg = composed(*SMALL, "model.weights=coco")
    settle(cfg.model)
    model = build(cfg.model, group="model", num_classes=3).eval()
    path = tmp_path / "best.pt"
    as_checkpoint(cfg, model, path)
    (cache / file).unlink()
    rebuilt, classes, _ = load_model(path)
    assert len(server.requests) == 1
    assert classes.names == ("cat", "dog")
    assert norms_of(rebuilt) == ({FrozenBatchNorm2d}, {0.0})
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(rebuilt.backbone(image)[k], v) for k, v in model.backbone(image).items())


def as_checkpoint(cfg: DictConfig, model: nn.Module, path: Path) -> None:
    config = OmegaConf.to_yaml(OmegaConf.create({"model": OmegaConf.to_container(cfg.model, resolve=True)}))
    class_map = {"names": ["cat", "dog"], "category_ids": [1, 2]}
    lists = {"overrides": [], "choices": {}}
    content = {"format": 1, "config": config, "class_map": class_map, "model": model.state_dict(), **lists}
    storage.save(content, path)


# Where torchvision's files lie


@pytest.mark.parametrize("name", NAMES)
def test_each_backbone_has_imagenet_weights_with_their_hash_in_the_name(name: str) -> None:
    url = imagenet_url(name)
    assert re.fullmatch(r"https://download\.pytorch\.org/models/\w+-[0-9a-f]{8}\.pth", url)


def test_the_weights_are_those_of_torchvisions_detectors() -> None:
    assert imagenet_url("resnet50") == ResNet50_Weights.IMAGENET1K_V1.url
    assert coco_url("resnet50", fpn=True, iou_types=("bbox", "segm")) == MaskRCNN_ResNet50_FPN_Weights.DEFAULT.url
    points = coco_url("resnet50", fpn=True, iou_types=("bbox", "keypoints"))
    assert points == KeypointRCNN_ResNet50_FPN_Weights.DEFAULT.url


def test_a_file_lies_where_torchvision_itself_looks_for_it(server: Loopback, cache: Path) -> None:
    path = named(b"content", "resnet50")
    server.files[path] = b"content"
    assert fetched(server.url(path)) == cache / path.rpartition("/")[2]
    assert fetched(server.url(path)).read_bytes() == b"content"


# What auto stands for


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ("batch", 1e-5, "all")),
        (("model.weights=imagenet",), ("frozen", 1e-5, 3)),
        (("model.weights=coco",), ("frozen", 0.0, 3)),
        (("model.weights=imagenet", "model.norm=batch"), ("batch", 1e-5, "all")),
        (("model.norm=group",), ("group", 1e-5, "all")),
        (("model.weights=coco", "model.norm_eps=1e-3"), ("frozen", 1e-3, 3)),
        (("model.weights=coco", "model.trainable_backbone_layers=5"), ("frozen", 0.0, 5)),
    ],
)
def test_auto_is_settled_by_the_weights_and_flows_into_the_backbone(
    composed: Composed, overrides: tuple[str, ...], expected: tuple[str, float, Any]
) -> None:
    node = composed(*overrides).model
    settle(node)
    assert (node.norm, node.norm_eps, node.trainable_backbone_layers) == expected
    assert (node.backbone.norm, node.backbone.norm_eps, node.backbone.trainable_layers) == expected
    before = OmegaConf.to_yaml(node)
    settle(node)
    assert OmegaConf.to_yaml(node) == before


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_auto_follows_the_norms_of_a_file(composed: Composed, tmp_path: Path, norm: str) -> None:
    path = tmp_path / "state.pt"
    torch.save(backbone_of(norm).state_dict(), path)
    node = composed(f"model.weights={path}").model
    settle(node)
    assert (node.norm, node.norm_eps, node.trainable_backbone_layers) == (norm, 1e-5, "all")


def test_auto_follows_the_epsilon_that_a_checkpoint_was_trained_with(composed: Composed, tmp_path: Path) -> None:
    cfg = composed(*SMALL, "model.norm=frozen", "model.norm_eps=0.0", "model.trainable_backbone_layers=all")
    donor = build(cfg.model, group="model", num_classes=3)
    as_checkpoint(cfg, donor, tmp_path / "best.pt")
    model = model_of(composed, *SMALL, f"model.weights={tmp_path / 'best.pt'}")
    assert norms_of(model) == ({FrozenBatchNorm2d}, {0.0})
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.rpn.head.bbox_pred.weight, donor.rpn.head.bbox_pred.weight)


@pytest.mark.parametrize("text", ["{_target_: mine.Model}", "{_target_: mine.Model, norm: auto}", "{weights: coco}"])
def test_a_node_without_weights_or_without_autos_is_left_as_it_is(text: str) -> None:
    node = OmegaConf.create(text)
    settle(node)
    assert node == OmegaConf.create(text)


def test_a_node_with_some_of_the_keys_gets_those(composed: Composed) -> None:
    node = OmegaConf.create("{_target_: mine.Model, weights: coco, norm_eps: auto}")
    settle(node)
    assert node == OmegaConf.create("{_target_: mine.Model, weights: coco, norm_eps: 0.0}")


@pytest.mark.parametrize("settled", [True, False])
def test_weights_that_are_no_file_are_refused_with_what_is_allowed(composed: Composed, settled: bool) -> None:
    explicit = () if settled else (
        "model.norm=batch", "model.norm_eps=1e-5", "model.trainable_backbone_layers=all", "model.backbone.name=resnet18",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"model\.weights: 'imagenett' is neither none, imagenet, coco nor a file"):
        model_of(composed, "model.weights=imagenett", *explicit)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("norm", ["batch", "frozen", "group", "auto"], ["layer", 1]),
        ("norm_eps", ["auto", 0, 0.0, 1e-3], ["all", -1e-5, float("nan"), True]),
        ("trainable_backbone_layers", ["auto", "all", 0, 5], ["some", -1, 2.5, True]),
    ],
)
def test_the_keys_that_weights_settle_have_rules(key: str, good: list[Any], bad: list[Any]) -> None:
    assert [rule_fault(f"model.{key}", value) for value in good] == [None] * len(good)
    for value in bad:
        assert str(rule_fault(f"model.{key}", value)).startswith(f"model.{key}: {value!r} is not allowed; allowed: ")


# Files


def backbone_of(norm: str) -> nn.Module:
    return backbone(name="resnet18", fpn=True, norm=norm, norm_eps=1e-5, trainable_layers="all")


def test_weights_load_with_three_lines_and_replaced_heads_are_skipped_for_their_shape(
    composed: Composed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "four_classes.pt"
    donor = model_of(composed, *SMALL, num_classes=5)
    torch.save(donor.state_dict(), path)
    with caplog.at_level(logging.INFO):
        model = model_of(composed, *SMALL, f"model.weights={path}")
    assert torch.equal(
        model.backbone.body.get_submodule("0")[0].weight, donor.backbone.body.get_submodule("0")[0].weight
    )
    assert model.roi_heads.box_predictor.cls_score.out_features == 3
    said = [record.message for record in caplog.records]
    assert len(said) == 3
    assert "skipped for their shape 4" in said[1]
    assert "missing in the file 0" in said[2]


def test_a_file_with_torchvisions_old_names_loads_wholly(
    composed: Composed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = detector(composed, *MASKS)
    torch.save(with_old_names(state), tmp_path / "coco.pth")
    with caplog.at_level(logging.INFO):
        model = model_of(composed, *MASKS, f"model.weights={tmp_path / 'coco.pth'}", num_classes=91)
    assert "missing in the file 0" in caplog.text
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_state_dict_does_not_load_into_other_norms(tmp_path: Path) -> None:
    kinds = {norm: backbone_of(norm) for norm in ("batch", "frozen", "group")}
    for norm, model in kinds.items():
        torch.save(model.state_dict(), tmp_path / f"{norm}.pt")
    load_weights(kinds["frozen"], tmp_path / "batch.pt")
    for file, into in (("frozen", "batch"), ("group", "batch"), ("batch", "group"), ("frozen", "group")):
        with pytest.raises(UserError, match=f"trained with {file} norms, but model.norm={into}; set model.norm={file}"):
            load_weights(kinds[into], tmp_path / f"{file}.pt")


def test_the_classes_of_a_checkpoint_are_matched_by_name(tmp_path: Path, composed: Callable[..., DictConfig]) -> None:
    cfg = composed(
        "model.backbone.name=resnet18", "model.norm=batch", "model.norm_eps=1e-5", "model.trainable_backbone_layers=all"
    )
    torch.manual_seed(0)
    cats = parts.detector(cfg, ClassMap(("cat", "dog")), None)
    saved = {"format": 1, "class_map": {"names": ["cat", "dog"]}, "model": cats.state_dict()}
    torch.save(saved, tmp_path / "cats.pt")
    cfg.model.weights = str(tmp_path / "cats.pt")
    other = parts.detector(cfg, ClassMap(("dog", "cow", "cat")), None).state_dict()
    own = cats.state_dict()
    for module, rows in (
        ("box_predictor.cls_score", 1),
        ("box_predictor.bbox_pred", 4),
        ("mask_predictor.mask_fcn_logits", 1),
    ):
        then, now = own[f"roi_heads.{module}.weight"], other[f"roi_heads.{module}.weight"]
        for before, after in ((0, 0), (1, 3), (2, 1)):  # background, cat, dog
            assert torch.equal(then[before * rows : (before + 1) * rows], now[after * rows : (after + 1) * rows])
        assert 0 < now[2 * rows : 3 * rows].std() < 0.02
    swapped = parts.detector(cfg, ClassMap(("dog", "cat")), None).state_dict()
    score = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(swapped[score], own[score][[0, 2, 1]])
