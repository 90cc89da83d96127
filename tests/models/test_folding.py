"""Norms folded into convolutions against norms that run by themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from detlab.models.backbones import backbone
from detlab.models.folding import FoldedConv2d

# One of each kind: plain and bottleneck blocks, the MobileNets, EfficientNet.
KINDS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")


def _backbone(name: str, norm: str, *, fold: bool) -> nn.Module:
    torch.manual_seed(0)
    built = backbone(name=name, fpn=False, norm=norm, norm_eps=1e-5, trainable_layers="all", fold_norms=fold)
    generator = torch.Generator().manual_seed(1)
    for key, value in built.state_dict().items():  # as if it had been trained: no norm is the identity
        if key.endswith(("running_var", "bn3.weight", "bn2.weight")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif key.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator) / 10)
    return built


@pytest.mark.parametrize("name", KINDS)
def test_every_backbone_is_the_same_in_evaluation(name: str) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    plain, folded = (_backbone(name, "batch", fold=fold).eval() for fold in (False, True))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert sum(isinstance(module, FoldedConv2d) for module in folded.modules()) == norms
    assert list(plain.state_dict()) == list(folded.state_dict())
    with torch.inference_mode():
        expected, found, again = plain(images), folded(images), folded(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(found, again)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_training_with_frozen_norms_has_the_same_gradients(name: str) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    gradients = []
    for fold in (False, True):
        model = _backbone(name, "frozen", fold=fold).double().train()
        model(images.double()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-8)


def test_batch_norms_learn_and_gather_statistics_as_ever() -> None:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    models = [_backbone("mobilenet_v2", "batch", fold=fold).train() for fold in (False, True)]
    for model in models:
        torch.manual_seed(3)
        model(images).square().sum().backward()
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=0, atol=0)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)


@torch.no_grad()
def test_what_is_kept_follows_the_weights() -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    plain, folded = (_backbone("resnet18", "batch", fold=fold).eval() for fold in (False, True))
    folded(images)
    changed = {key: value * 1.1 for key, value in plain.state_dict().items() if value.is_floating_point()}
    for model in (plain, folded):
        model.load_state_dict(changed, strict=False)
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-4, atol=1e-4)
    folded.bn1.running_mean.add_(1)  # pyright: ignore
    plain.bn1.running_mean.add_(1)  # pyright: ignore
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_an_evaluation_after_a_step_is_that_of_the_new_weights(norm: str, fused: bool) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    found = []
    for fold in (False, True):
        model = _backbone("resnet18", norm, fold=fold)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
        for _ in range(2):
            with torch.inference_mode():
                before = model.eval()(images)
            model.train()(images).mean().backward()
            optimizer.step()
        with torch.inference_mode():
            found.append(model.eval()(images))
        assert not torch.equal(found[-1], before)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_a_copy_has_its_own_norms() -> None:
    images = torch.randn(1, 3, 64, 64)
    model = _backbone("resnet18", "batch", fold=True).eval()
    with torch.inference_mode():
        before = model(images)
        twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(twin(images), before)
