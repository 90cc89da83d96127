"""RoIAlign by matrix products against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import ops

from detlab.errors import UserError
from detlab.ops import roi_align as module
from detlab.ops.roi_align import METHODS, MultiScaleRoIAlign, cells_by_output, clearly_fastest, fastest, roi_align

PRODUCTS = [method for method in METHODS if method != "torchvision"]


def _boxes(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Boxes of all sizes, some of them partly outside of an image."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([width, height])
    corner = (torch.rand(count, 2, generator=generator) * 1.2 - 0.1) * extent
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) ** 2 * extent], 1)


def _image(count: int, image: int, boxes: Tensor) -> Tensor:
    return torch.cat([torch.full((count, 1), float(image)), boxes], 1)


@pytest.mark.parametrize("method", PRODUCTS)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, 1, 3, 0, -1])
@pytest.mark.parametrize("output_size", [7, (3, 5)])
def test_values_and_gradients_are_torchvisions(
    method: str, aligned: bool, sampling_ratio: int, output_size: int | tuple[int, int]
) -> None:
    maps = torch.randn(2, 5, 13, 17, generator=torch.Generator().manual_seed(1))
    rois = torch.cat([_image(9, 1, _boxes(9, 104, 136)), _image(4, 0, _boxes(4, 104, 136, 2))])
    gradients, values = [], []
    for chosen in ("torchvision", method):
        leaf = maps.clone().requires_grad_()
        pooled = roi_align(leaf, rois, output_size, 1 / 8, sampling_ratio, aligned, method=chosen)
        values.append(pooled)
        (pooled * torch.arange(pooled.numel()).reshape(pooled.shape).sin()).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", PRODUCTS)
def test_the_plain_method_is_torchvisions_function(method: str) -> None:
    maps, boxes = torch.randn(2, 3, 8, 8), [_boxes(3, 64, 64), _boxes(2, 64, 64, 5)]
    expected = ops.roi_align(maps, boxes, 4, 1 / 8, 2)
    torch.testing.assert_close(roi_align(maps, boxes, 4, 1 / 8, 2, method="torchvision"), expected, rtol=0, atol=0)
    torch.testing.assert_close(roi_align(maps, boxes, 4, 1 / 8, 2, method=method), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", PRODUCTS)
@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_gradients_are_right_in_double_precision(method: str, sampling_ratio: int) -> None:
    maps = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.cat([_image(2, 0, _boxes(2, 40, 48)), _image(2, 1, _boxes(2, 40, 48, 3))]).double()
    assert torch.autograd.gradcheck(
        lambda leaf: roi_align(leaf, rois, 3, 1 / 8, sampling_ratio, method=method), (maps,), raise_exception=True
    )


@pytest.mark.parametrize("method", PRODUCTS)
@pytest.mark.parametrize("levels", [1, 4])
def test_a_pool_over_levels_is_torchvisions(method: str, levels: int) -> None:
    names = [str(i) for i in range(levels)]
    maps = {name: torch.randn(2, 4, 64 >> i, 80 >> i) for i, name in enumerate(names)} | {
        "pool": torch.randn(2, 4, 4, 5)
    }
    boxes = [_boxes(40, 256, 320).clamp(min=0), _boxes(1, 256, 320, 7).clamp(min=0)]
    results = []
    for pool in (ops.MultiScaleRoIAlign(names, 7, 2), MultiScaleRoIAlign(names, 7, 2, method=method)):
        leaves = {name: value.clone().requires_grad_() for name, value in maps.items()}
        pooled = pool(leaves, boxes, [(256, 320), (250, 300)])
        pooled.square().sum().backward()
        results.append((pooled, [leaves[name].grad for name in names]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_regions_pools_nothing_and_trains_on(method: str) -> None:
    maps = {name: torch.randn(1, 4, size, size, requires_grad=True) for name, size in (("0", 16), ("1", 8))}
    pooled = MultiScaleRoIAlign(["0", "1"], 7, 2, method=method)(maps, [torch.zeros(0, 4)], [(64, 64)])
    assert pooled.shape == (0, 4, 7, 7)
    pooled.sum().backward()


@pytest.mark.parametrize("method", PRODUCTS)
def test_bfloat16_maps_give_bfloat16_bins_read_at_precise_places(method: str) -> None:
    maps = torch.randn(1, 4, 40, 40)
    rois = _image(20, 0, _boxes(20, 1280, 1280).clamp(min=0))
    expected = ops.roi_align(maps, rois, 7, 1 / 32, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = roi_align(maps.bfloat16(), rois, 7, 1 / 32, 2, method=method)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_the_type_of_the_maps_stays_under_autocast(method: str) -> None:
    maps, rois = torch.randn(1, 4, 8, 8), _image(3, 0, _boxes(3, 64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert roi_align(maps, rois, 7, 1 / 8, 2, method=method).dtype == torch.float32


def test_the_fastest_is_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, told = torch.zeros(1, 3, 8, 8), {"torchvision": 1.0, "dense": 0.5, "sparse": 0.6}
    monkeypatch.setattr(module, "_chosen", {})
    monkeypatch.setattr(module, "_seconds", lambda method, *_: told[method])
    assert fastest([maps], 10, (7, 7), 2) == "sparse"  # not by so little
    told["dense"] = 0.2
    assert fastest([maps], 10, (7, 7), 2) == "sparse"  # measured once
    assert fastest([maps.double()], 10, (7, 7), 2) == "dense"
    told["torchvision"] = 0.1
    assert fastest([maps], 30, (7, 7), 2) == "torchvision"


def test_a_deterministic_run_does_not_choose_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_chosen", {})
    monkeypatch.setattr(module, "_seconds", lambda method, *_: {"sparse": 9.0}.get(method, 1.0))
    maps = [torch.zeros(1, 16, 9, 12)]
    torch.use_deterministic_algorithms(True)
    try:
        assert fastest(maps, 10, (7, 7), 2) == "sparse"
    finally:
        torch.use_deterministic_algorithms(False)
    assert fastest(maps, 10, (7, 7), 2) != "sparse"


def test_what_hits_one_measurement_of_the_usual_winner_does_not_change_the_choice() -> None:
    """Other work on the machine lengthens the times of one method, several times in a row."""
    hit = iter([9.0] * 5)
    assert clearly_fastest(lambda method: next(hit, 0.5) if method == "sparse" else 0.4) == "sparse"
    assert clearly_fastest(lambda method: 0.9 if method == "sparse" else 0.4) == "torchvision"


def test_the_choice_draws_nothing_from_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_chosen", {})
    state = torch.get_rng_state()
    assert fastest([torch.zeros(1, 16, 9, 12)], 10, (7, 7), 2) in METHODS
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_method_is_the_users_mistake() -> None:
    with pytest.raises(
        UserError, match=r"^method: 'quick' is not allowed; allowed: auto, torchvision, dense, sparse, deferred\.$"
    ):
        MultiScaleRoIAlign(["0"], 7, 2, method="quick")


def test_weights_where_they_lie_give_the_product_of_turned_ones() -> None:
    torch.manual_seed(0)
    cells, weight = torch.randn(6, 5), torch.randn(7, 5, 4)
    plain = (cells @ weight.permute(1, 2, 0).flatten(1)).view(-1, 7)
    torch.testing.assert_close(cells_by_output(cells, weight), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grad", [True, False])
def test_deferred_bins_give_a_layer_the_product_of_pooled_ones(grad: bool) -> None:
    torch.manual_seed(0)
    maps, boxes = {"0": torch.randn(2, 5, 3, 4)}, [_boxes(30, 96, 128), _boxes(20, 96, 128, 3)]
    sizes, layer = [(96, 128), (96, 128)], torch.nn.Linear(5 * 49, 6)
    pool = MultiScaleRoIAlign(["0"], 7, 2, method="deferred")
    pool.defers = True
    with torch.set_grad_enabled(grad):
        deferred = pool(maps, boxes, sizes)
        assert isinstance(deferred, module.DeferredBins)
        found = deferred.linear(layer.weight, layer.bias)
        pooled = MultiScaleRoIAlign(["0"], 7, 2, method="torchvision")(maps, boxes, sizes)
        assert isinstance(pooled, torch.Tensor)
        torch.testing.assert_close(found, layer(pooled.flatten(1)), rtol=1e-5, atol=1e-5)


def test_cells_lie_together_whatever_the_order_of_the_maps() -> None:
    """`embedding_bag` reads strided rows many times slower; a single image's maps are such rows without a copy."""
    maps = torch.randn(1, 8, 3, 4)
    assert module._cells(maps).is_contiguous()
    assert torch.equal(module._cells(maps), maps[0].flatten(1).T)
