"""What a batch holds depends on seed, epoch and index, and on nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

import pytest
import torch

from detlab.data import loader as module
from detlab.data.loader import EpochBatches, evaluation_loader, training_loader
from detlab.data.synthetic import Synthetic
from detlab.data.transforms import Flip
from detlab.errors import UserError


def small(part: str = "train") -> Synthetic:
    return Synthetic(
        part=part, difficulty="easy", seed=0, train_size=9, val_size=3, test_size=0, folds=None, fold=None, fraction=1.0
    )


def batches(**changes: Any) -> EpochBatches:
    return EpochBatches(**{"count": 9, "batch_size": 4, "accumulate": 1, "seed": 0, "shuffle": True, **changes})


def test_an_epoch_holds_each_image_once_and_drops_the_last_partial_batch() -> None:
    order = [index for batch in batches() for _, index in batch]
    assert len(order) == len(set(order)) == 8
    assert batches().left_out == 1


def test_epochs_and_seeds_differ_and_the_same_ones_agree() -> None:
    orders = [tuple(batches(seed=seed).order(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(batches().order(1)) == orders[1]
    assert batches(shuffle=False).order(3) == list(range(8))


def test_an_epoch_that_starts_later_gives_the_batches_that_were_left() -> None:
    later = batches(accumulate=2)
    whole = list(later)
    assert [len(batch) for batch in whole] == [2, 2, 2, 2]
    later.first_step = 1
    assert list(later) == whole[2:]
    assert len(later) == 2


def test_fewer_images_than_a_step_takes_are_refused() -> None:
    with pytest.raises(UserError, match="batch_size: 10 images a step, but the training part has 9"):
        batches(batch_size=10)


def test_images_and_targets_are_the_same_for_any_number_of_workers_and_draw_nothing_outside() -> None:
    seen = []
    for workers in (0, 1, 2):
        loader = training_loader(
            small(), Flip(p=0.5), batch_size=4, accumulate=1, shuffle=True, seed=3, workers=workers, pin_memory=False
        )
        torch.manual_seed(5)
        loader.start(1, 0)
        seen.append([(torch.stack(images).sum(0), targets) for images, targets in loader])
        assert float(torch.rand(())) == float(torch.rand((), generator=torch.Generator().manual_seed(5)))
    for other in seen[1:]:
        for (images, targets), (same_images, same_targets) in zip(other, seen[0], strict=True):
            assert torch.equal(images, same_images)
            assert [t["boxes"].tolist() for t in targets] == [t["boxes"].tolist() for t in same_targets]
            assert all(torch.equal(a["keypoints"], b["keypoints"]) for a, b in zip(targets, same_targets, strict=True))


def test_a_flip_is_drawn_anew_in_each_epoch() -> None:
    loader = training_loader(
        small(), Flip(p=0.5), batch_size=8, accumulate=1, shuffle=False, seed=0, workers=0, pin_memory=False
    )
    epochs = []
    for epoch in range(4):
        loader.start(epoch, 0)
        epochs.append(torch.stack([image.float().mean(0)[:, 0].sum() for image in next(iter(loader))[0]]).tolist())
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_evaluation_gives_every_image_once_in_order_one_by_one() -> None:
    batches = list(evaluation_loader(small("val"), workers=0, pin_memory=False))
    assert [[t["image_id"] for t in targets] for _, targets in batches] == [[1], [2], [3]]


class Faulty:
    """A data set whose third image has a box of no width."""

    def __init__(self) -> None:
        self._good = small()
        self.class_map, self.image_names = self._good.class_map, self._good.image_names
        self.iou_types = ("bbox",)
        self.keypoints = self._good.keypoints

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        image, target = self._good[index]
        if index == 2:
            target["boxes"] = torch.tensor([[5.0, 5, 5, 9]])
            target = {
                **target,
                "labels": torch.ones(1, dtype=torch.int64),
                "area": torch.ones(1),
                "iscrowd": torch.zeros(1),
            }
            del target["masks"], target["keypoints"]
        return image, target

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        return self._good.get_height_and_width(index)

    def ground_truth(self) -> dict[str, Any]:
        return self._good.ground_truth()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_named_in_one_line_from_any_process(workers: int) -> None:
    loader = training_loader(
        Faulty(), Flip(p=0.0), batch_size=2, accumulate=1, shuffle=False, seed=0, workers=workers, pin_memory=False
    )
    with pytest.raises(UserError, match=r"^Faulty, image train-0002: object 0 has a box of zero") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="the workers would not know of the shorter time"
)
def test_a_worker_that_ends_by_itself_after_sigterm_does_not_disturb_what_the_run_still_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As where a whole group is told, and saving takes long.
    monkeypatch.setattr(module, "_SECONDS_AFTER_SIGTERM", 1)
    loader = evaluation_loader(small("val"), workers=1, pin_memory=False)
    next(iter(loader))
    (worker,) = loader._loader._iterator._workers  # pyright: ignore
    os.kill(worker.pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while worker.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert worker.exitcode == 0
    loader.close()
