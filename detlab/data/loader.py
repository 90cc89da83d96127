"""How samples reach the model: checked, transformed, in batches, whatever the number of workers."""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detlab.chance import derived_seed
from detlab.data.transforms import Transform, apply, trainable_objects
from detlab.errors import UserError
from detlab.structures import DetectionDataset, Sample, check_sample

log = logging.getLogger(__name__)

Batch = tuple[list[torch.Tensor], list[Any]]  # images uint8 [3, H, W], targets


@contextmanager
def _chance(seed: int) -> Iterator[None]:
    """Draws of torch, numpy and random from `seed`; what they would have drawn outside is not touched."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
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

    def __getitem__(self, key: tuple[int, int]) -> Sample | UserError:
        epoch, index = key
        try:
            # The data set's own draws too: a tutorial's class may hold random transforms.
            with _chance(derived_seed(self.seed, epoch, index)):
                image, target = apply(self.transform, *checked_sample(self.dataset, index))
            return image, trainable_objects(image, target)
        except UserError as error:
            return error


class EvaluationSamples(Dataset[Any]):
    """Checked samples as they are, crowd objects too."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | UserError:
        try:
            with _chance(derived_seed(index)):
                return checked_sample(self.dataset, index)
        except UserError as error:
            return error


def checked_sample(dataset: DetectionDataset, index: int) -> Sample:
    """One sample, held against the contract; the error names data set, image and object."""
    image, target = dataset[index]
    where = f"{type(dataset).__name__}, image {dataset.image_names[index]}"
    check_sample(image, target, dataset.class_map, dataset.iou_types, where)
    return image, target


class EpochBatches:
    """The order of an epoch, a function of (seed, epoch): lists of (epoch, index), as many as make whole optimizer steps.

    Args:
        count: images in the data set.
        batch_size: images per optimizer step.
        accumulate: micro-batches per step.
        seed: of the order.
        shuffle: whether to draw an order at all.

    Raises:
        UserError: fewer images than one step takes.
    """

    def __init__(self, count: int, *, batch_size: int, accumulate: int, seed: int, shuffle: bool) -> None:
        if count < batch_size:
            raise UserError(
                f"batch_size: {batch_size} images a step, but the training part has {count}; give at most {count}."
            )
        self.count = count
        self.accumulate = accumulate
        self.micro_batch = batch_size // accumulate
        self.steps = count // batch_size
        self.left_out = count - self.steps * batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.first_step = 0

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch in order, the last partial batch dropped."""
        kept = self.steps * self.micro_batch * self.accumulate
        if not self.shuffle:
            return list(range(kept))
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        return torch.randperm(self.count, generator=generator).tolist()[:kept]

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.order(self.epoch)
        size = self.micro_batch
        for start in range(self.first_step * self.accumulate * size, len(order), size):
            yield [(self.epoch, index) for index in order[start : start + size]]


def collate(samples: Sequence[Sample | UserError]) -> Batch | UserError:
    """Samples of any size side by side in lists; the first mistake among them instead, if there is one."""
    mistake = next((sample for sample in samples if isinstance(sample, UserError)), None)
    if mistake is not None:
        return mistake
    return [sample[0] for sample in samples], [sample[1] for sample in samples]  # type: ignore[index]


def _leave_interrupts_to_the_run(_worker: int) -> None:
    """Ctrl-C on a terminal reaches the workers too; they go on until the run, which saves its state first, ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Loader:
    """Batches of a DataLoader, with a sample's mistake raised here as it was made there.

    For training, `start(epoch, first_step)` says which batches the next iteration gives.
    """

    def __init__(self, samples: Dataset[Any], batches: EpochBatches | None, *, workers: int, pin_memory: bool) -> None:
        self.batches = batches
        order: dict[str, Any] = {"batch_size": 1} if batches is None else {"batch_sampler": batches}
        self._loader: DataLoader[Any] = DataLoader(
            samples,
            **order,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            pin_memory=pin_memory,
            worker_init_fn=_leave_interrupts_to_the_run,
            # An iterator draws the base seed of its workers, and must not draw it from the training's chance.
            generator=torch.Generator().manual_seed(0),
        )

    def start(self, epoch: int, first_step: int) -> None:
        """Make the next iteration that of an epoch, from a step on."""
        assert self.batches is not None
        self.batches.epoch, self.batches.first_step = epoch, first_step

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole epoch."""
        assert self.batches is not None
        return self.batches.steps

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


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
) -> Loader:
    """Micro-batches for training, `accumulate` of them a step; see `EpochBatches` and `TrainingSamples`."""
    batches = EpochBatches(len(dataset), batch_size=batch_size, accumulate=accumulate, seed=seed, shuffle=shuffle)
    if batches.left_out:
        log.info(
            "the last %d images of each epoch's order make no whole batch of %d and are left out",
            batches.left_out,
            batch_size,
        )
    return Loader(TrainingSamples(dataset, transform, seed), batches, workers=workers, pin_memory=pin_memory)


def evaluation_loader(dataset: DetectionDataset, *, workers: int, pin_memory: bool) -> Loader:
    """Images one by one, in order: an image batched with a wider one gets other scores."""
    return Loader(EvaluationSamples(dataset), None, workers=workers, pin_memory=pin_memory)
