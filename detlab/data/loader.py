"""How samples reach the model: checked, transformed, in batches, whatever the number of workers."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detlab import distributed
from detlab.allocation import keep_freed_memory
from detlab.chance import derived_seed, seed_host
from detlab.data.augmentations import checked_sample, make_ready
from detlab.data.grouping import groups_by_aspect_ratio, in_groups
from detlab.data.transforms import Tally, Transform, apply, trainable_objects
from detlab.errors import UserError
from detlab.structures import Batch, DetectionDataset, Sample, Target

log = logging.getLogger(__name__)

_SECONDS_AFTER_SIGTERM = 20

TalliedSample = tuple[torch.Tensor, Target, Tally]


@contextmanager
def _chance(seed: int) -> Iterator[None]:
    """Draws of torch, numpy and random from `seed`; what they would have drawn outside is not touched."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            seed_host(seed)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


class TrainingSamples(Dataset[Any]):
    """Checked and transformed samples, indexed by (epoch, index): what a sample draws depends on (seed, epoch, index) alone.

    A user's mistake in a sample is returned, not raised: a DataLoader would bury its two lines in a worker's stack trace.
    """

    def __init__(self, dataset: DetectionDataset, transform: Transform, seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> TalliedSample | UserError:
        epoch, index = key
        try:
            # The data set's own draws too: a tutorial's class may hold random transforms.
            with _chance(derived_seed(self.seed, epoch, index)):
                sample = checked_sample(self.dataset, index)
                image, target, transformed = apply(self.transform, *sample, self.dataset.keypoints)
            target, sanitised = trainable_objects(image, target)
            return image, target, transformed + sanitised
        except UserError as error:
            return error


class EvaluationSamples(Dataset[Any]):
    """Checked samples without transforms; with only what training would learn of them where losses are asked for."""

    def __init__(self, dataset: DetectionDataset, *, trainable: bool = False) -> None:
        self.dataset = dataset
        self.trainable = trainable

    def __getitem__(self, index: int) -> Sample | UserError:
        try:
            with _chance(derived_seed(index)):
                image, target = checked_sample(self.dataset, index)
            return image, trainable_objects(image, target)[0] if self.trainable else target
        except UserError as error:
            return error


class EpochBatches:
    """The order of an epoch, a function of (seed, epoch): lists of (epoch, index), as many as make whole optimizer steps.

    An iteration gives the `wanted` steps from `first_step` of `epoch` on (None: all that are left of it), which are its length, and
    then the `ahead` next ones.

    The images of a step are the same for any number of processes: it is cut into micro-batches, which are dealt out in turn.

    Args:
        count: images in the data set.
        batch_size: images per optimizer step over all processes.
        accumulate: micro-batches per step and process.
        seed: of the order.
        shuffle: whether to draw an order at all.
        group_of: of each image, where the images of a step shall be of one group; see `in_groups`.

    Raises:
        UserError: fewer images than one step takes, or a step that cannot be cut into equal micro-batches.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
        shuffle: bool,
        group_of: Sequence[int] | None = None,
    ) -> None:
        if count < batch_size:
            raise UserError(
                f"batch_size: {batch_size} images a step, but the training part has {count}; give at most {count}."
            )
        parts = distributed.size() * accumulate
        if batch_size % parts:
            raise UserError(
                f"batch_size: {batch_size} images a step cannot be shared by {distributed.size()} processes with "
                f"accumulate={accumulate}; give a multiple of {parts}."
            )
        self.count = count
        self.accumulate = accumulate
        self.batch_size = batch_size
        self.micro_batch = batch_size // parts
        self.steps = count // batch_size
        self.left_out = count - self.steps * batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.group_of = group_of
        self.epoch = 0
        self.first_step = 0
        self.wanted: int | None = None
        self.ahead = 0
        self._rank, self._size = distributed.rank(), distributed.size()

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch in order, the last partial batch dropped."""
        order = list(range(self.count))
        if self.shuffle:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            order = torch.randperm(self.count, generator=generator).tolist()
        kept = order[: self.steps * self.batch_size]
        return kept if self.group_of is None else in_groups(kept, self.group_of, self.batch_size)

    def __len__(self) -> int:
        wanted = self.steps - self.first_step if self.wanted is None else self.wanted
        return wanted * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        wanted = len(self) + self.ahead * self.accumulate
        return itertools.islice(self._from(self.epoch, self.first_step), wanted)

    def _from(self, epoch: int, first_step: int) -> Iterator[list[tuple[int, int]]]:
        """Micro-batches of this process, from a step on, without an end."""
        first = first_step * self.batch_size + self._rank * self.micro_batch
        while True:
            order = self.order(epoch)
            for start in range(first, len(order), self._size * self.micro_batch):
                yield [(epoch, index) for index in order[start : start + self.micro_batch]]
            epoch, first = epoch + 1, self._rank * self.micro_batch


def collate(samples: Sequence[TalliedSample | Sample | UserError]) -> tuple[Batch, Tally] | UserError:
    """Samples of any size side by side in lists, their tallies in one; the first mistake among them instead, if there is one."""
    images, targets, tally = [], [], Tally()
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        images.append(sample[0])
        targets.append(sample[1])
        if len(sample) == 3:
            tally += sample[2]
    return (images, targets), tally


def _begin_worker(_worker: int) -> None:
    """Begin a process that loads: it gives back what it frees, and goes on at signals until the run, which saves first, ends it."""

    def first_one(number: int, _frame: FrameType | None) -> None:
        # A second one is the DataLoader's own, to a worker that hangs; Python's, when a process ends, comes once.
        signal.signal(number, signal.SIG_DFL)
        # With 0: to torch, a worker that ended otherwise is an error, in the midst of whatever the run does, saving perhaps.
        signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(0))
        signal.alarm(_SECONDS_AFTER_SIGTERM)

    keep_freed_memory(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, first_one)


class Loader:
    """Batches of a DataLoader, with a sample's mistake raised here as it was made there.

    For training, `start(epoch, first_step)` says which batches the next iteration gives. Workers load its first ones during the
    iteration before, where that one was started with `ahead`. With the last of them the log says what the augmentation dropped in
    all processes.

    Args:
        samples: by the keys that `batches` gives.
        batches: lists of keys.
        workers: processes that load.
        pin_memory: for the way to a GPU.
    """

    def __init__(
        self,
        samples: Dataset[Any],
        batches: EpochBatches | Sequence[list[int]],
        *,
        workers: int,
        pin_memory: bool,
    ) -> None:
        self.batches = batches
        self._loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            pin_memory=pin_memory,
            worker_init_fn=_begin_worker,
            # An iterator draws the base seed of its workers, and must not draw it from the training's chance.
            generator=torch.Generator().manual_seed(0),
        )
        self._going_on: Iterator[Any] | None = None
        self._next: tuple[int, int] | None = None  # what it gives next: of which epoch, which micro-batch
        self._left = 0  # how many more it gives

    def start(self, epoch: int, first_step: int, *, steps: int | None = None, ahead: int = 0) -> None:
        """Say what the next iteration gives.

        Args:
            epoch: of which epoch.
            first_step: from which step of it on.
            steps: so many; None for all that are left of it.
            ahead: steps that will be wanted of the iterations after it, which go on where it ends.
        """
        batches = self.batches
        assert isinstance(batches, EpochBatches)
        batches.epoch, batches.first_step, batches.wanted, batches.ahead = epoch, first_step, steps, ahead

    def close(self) -> None:
        """End the workers, which otherwise end with the last who remembers an iteration, an exception perhaps."""
        iterator = self._loader._iterator
        if iterator is not None and self._loader.num_workers:
            iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]
            self._loader._iterator = None
        self._going_on = None

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole epoch."""
        assert isinstance(self.batches, EpochBatches)
        return self.batches.steps

    def _loaded(self) -> Iterator[Any]:
        """What the DataLoader gives for the iteration that is wanted, which may have begun to load with an earlier one."""
        if not isinstance(self.batches, EpochBatches):
            yield from self._loader
            return
        epoch, given, wanted = self.batches.epoch, self.batches.first_step * self.batches.accumulate, len(self.batches)
        if not wanted:
            return
        if self._going_on is None or self._next != (epoch, given) or self._left < wanted:
            self._going_on, self._left = iter(self._loader), wanted + self.batches.ahead * self.batches.accumulate
        source = self._going_on
        for _ in range(wanted):
            self._next = None  # after an error nothing goes on
            loaded = next(source)
            given += 1
            over = given == self.steps * self.batches.accumulate
            self._next, self._left = (epoch + 1, 0) if over else (epoch, given), self._left - 1
            yield loaded

    def __iter__(self) -> Iterator[Batch]:
        met, left = Tally(), len(self.batches)
        for loaded in self._loaded():
            if isinstance(loaded, UserError):
                raise loaded
            batch, tally = loaded
            met, left = met + tally, left - 1
            # Before the batch, not after: the loop over an epoch asks for no more than it needs.
            if not left and isinstance(self.batches, EpochBatches):
                _say_what_was_dropped(met, self.batches.first_step)
            yield batch


def _say_what_was_dropped(met: Tally, first_step: int) -> None:
    """One line for the log, where objects were not learnt; all processes call it."""
    said = sum(distributed.gather(met), Tally()).said()
    if said:
        # A checkpoint keeps no tally: what the epoch met before it was resumed is not in this one.
        log.info("augmentation%s: %s", f", from step {first_step + 1} of the epoch on" if first_step else "", said)


def training_loader(
    dataset: DetectionDataset,
    transform: Transform,
    *,
    batch_size: int,
    accumulate: int,
    shuffle: bool,
    seed: int,
    workers: int,
    pin_memory: bool,
    aspect_ratio_groups: int | None = None,
) -> Loader:
    """Micro-batches for training, `accumulate` of them a step; see `EpochBatches`, `TrainingSamples`, `groups_by_aspect_ratio`.

    Raises:
        UserError: batches that cannot be formed, or a transform that is wrong for the data set.
    """
    make_ready(transform, dataset)
    group_of = None if aspect_ratio_groups is None else groups_by_aspect_ratio(dataset, aspect_ratio_groups)
    batches = EpochBatches(
        len(dataset), batch_size=batch_size, accumulate=accumulate, seed=seed, shuffle=shuffle, group_of=group_of
    )
    if batches.left_out:
        log.info(
            "the last %d images of each epoch's order make no whole batch of %d and are left out",
            batches.left_out,
            batch_size,
        )
    return Loader(TrainingSamples(dataset, transform, seed), batches, workers=workers, pin_memory=pin_memory)


def evaluation_loader(dataset: DetectionDataset, *, workers: int, pin_memory: bool, trainable: bool = False) -> Loader:
    """Images one by one, in order, every process its own: an image batched with a wider one gets other scores.

    Args:
        dataset: what is evaluated.
        workers: processes that load.
        pin_memory: for the way to a GPU.
        trainable: leave of each target what training would learn, without crowd regions: for losses.
    """
    mine = [[index] for index in range(distributed.rank(), len(dataset), distributed.size())]
    samples = EvaluationSamples(dataset, trainable=trainable)
    return Loader(samples, mine, workers=workers, pin_memory=pin_memory)
