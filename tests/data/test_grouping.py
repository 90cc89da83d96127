"""Images of like shape stand in a step together, and none is lost for it."""

from __future__ import annotations

from itertools import chain

import pytest

from detlab import distributed
from detlab.data.grouping import groups_by_aspect_ratio, in_groups
from detlab.data.loader import EpochBatches


class Sizes:
    """As much of a data set as grouping asks for."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        return self._sizes[index]


def test_groups_are_those_of_the_references() -> None:
    # create_aspect_ratio_groups with k=1: bounds 0.5, 1, 2, by bisect_right; k=0: bound 1.
    data = Sizes((100, 40), (100, 50), (100, 99), (100, 100), (100, 199), (100, 200))
    assert groups_by_aspect_ratio(data, 1) == [0, 1, 1, 2, 2, 3]  # type: ignore[arg-type]
    assert groups_by_aspect_ratio(data, 0) == [0, 0, 0, 1, 1, 1]  # type: ignore[arg-type]
    assert groups_by_aspect_ratio(Sizes((10, 9), (10, 11)), 3) == [3, 4]  # type: ignore[arg-type]


def test_every_image_stays_and_all_but_the_last_batches_hold_one_group() -> None:
    group_of = [0] * 9 + [1] * 6 + [2]
    order = [(7 * i) % 16 for i in range(16)]
    arranged = in_groups(order, group_of, 4)
    assert sorted(arranged) == list(range(16))
    groups = [[group_of[i] for i in arranged[start : start + 4]] for start in range(0, 16, 4)]
    assert [len(set(batch)) for batch in groups] == [1, 1, 1, 3]
    assert groups[-1] == sorted(groups[-1])


def test_groups_smaller_than_a_batch_make_batches_too() -> None:
    assert len(in_groups(range(6), [0, 1, 2, 3, 4, 5], 3)) == 6


def test_one_group_leaves_the_order_as_it_is() -> None:
    order = [3, 1, 2, 0]
    assert in_groups(order, [5] * 4, 2) == order


def epoch(group_of: list[int] | None, *, first_step: int = 0, rank: int = 0, size: int = 1) -> list[list[int]]:
    """Indices of the micro-batches of epoch 3, as one of several processes sees them."""
    batches = EpochBatches(19, batch_size=4, accumulate=1, seed=0, shuffle=True, group_of=group_of)
    batches.micro_batch //= size
    batches._rank, batches._size = rank, size
    batches.epoch, batches.first_step = 3, first_step
    return [[index for _, index in batch] for batch in batches]


GROUPS = [i % 3 for i in range(19)]


def test_an_epoch_has_the_images_that_it_has_without_groups() -> None:
    grouped, plain = epoch(GROUPS), epoch(None)
    assert sorted(chain(*grouped)) == sorted(chain(*plain))
    assert grouped != plain
    assert sum(len({GROUPS[i] for i in batch}) == 1 for batch in grouped) >= len(grouped) - 2


@pytest.mark.parametrize("first_step", [1, 3])
def test_a_resumed_epoch_goes_on_with_the_same_batches(first_step: int) -> None:
    assert epoch(GROUPS, first_step=first_step) == epoch(GROUPS)[first_step:]


def test_two_processes_share_the_same_steps() -> None:
    assert distributed.size() == 1
    both = [a + b for a, b in zip(epoch(GROUPS, size=2), epoch(GROUPS, rank=1, size=2), strict=True)]
    assert both == epoch(GROUPS)
