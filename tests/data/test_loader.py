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


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_of_the_next_epochs_are_the_same_whether_they_were_asked_for_ahead_or_not(workers: int) -> None:
    def taken(ahead: int) -> list[list[Any]]:
        loader = training_loader(
            small(), Flip(p=0.5), batch_size=4, accumulate=2, shuffle=True, seed=3, workers=workers, pin_memory=False
        )
        found = []
        # Whole epochs in order, one that is left in its midst and gone on with, one in the place of another.
        for epoch, first_step, steps in ((0, 0, 2), (1, 0, 1), (1, 1, 1), (2, 0, 2), (5, 1, 1), (6, 0, 2)):
            loader.start(epoch, first_step, ahead=ahead)
            source = iter(loader)
            for _ in range(2 * steps):
                images, targets = next(source)
                found.append([[t["image_id"] for t in targets], torch.stack(images).long().sum().item()])
        loader.close()
        return found

    assert taken(0) == taken(1) == taken(20)


def test_an_epoch_s_first_batch_is_loaded_while_the_one_before_it_is_looked_at() -> None:
    loader = training_loader(
        small(), Flip(p=0.5), batch_size=4, accumulate=1, shuffle=True, seed=3, workers=1, pin_memory=False
    )
    loader.start(0, 0, ahead=2)
    list(loader)
    iterator: Any = loader._loader._iterator
    deadline = time.monotonic() + 20
    while not iterator._worker_result_queue.qsize():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    begun = iterator._send_idx
    loader.start(1, 0)
    next(iter(loader))
    assert loader._loader._iterator is iterator
    assert iterator._send_idx == begun  # all of them had been asked for
    loader.close()


def test_a_last_epoch_that_is_not_whole_goes_on_too_and_says_what_was_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = training_loader(
        small(), Flip(p=0.5), batch_size=4, accumulate=1, shuffle=True, seed=3, workers=1, pin_memory=False
    )
    said = []
    monkeypatch.setattr("detlab.data.loader._say_what_was_dropped", lambda _met, first_step: said.append(first_step))
    loader.start(0, 0, ahead=1)
    list(loader)
    begun: Any = loader._going_on
    loader.start(1, 0, steps=1)
    assert len(list(loader)) == 1
    assert loader._going_on is begun
    assert begun._send_idx == 3  # two steps and one
    assert said == [0, 0]
    loader.close()


def test_after_an_error_the_batches_are_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    loader = training_loader(
        small(), Flip(p=0.5), batch_size=2, accumulate=1, shuffle=True, seed=3, workers=0, pin_memory=False
    )
    wanted = [[t["image_id"] for t in targets] for _, targets in loader]
    loader.start(0, 0, ahead=4)
    source = iter(loader)
    next(source)
    with monkeypatch.context() as patch:
        patch.setattr(module.TrainingSamples, "__getitem__", broken)
        with pytest.raises(ZeroDivisionError):
            next(source)
    loader.start(0, 1, ahead=4)
    assert [[t["image_id"] for t in targets] for _, targets in loader] == wanted[1:]


def test_no_more_batches_are_loaded_than_were_asked_for() -> None:
    later = batches()
    later.ahead = 3
    assert len(later) == 2
    assert [keys[0][0] for keys in later] == [0, 0, 1, 1, 2]


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
