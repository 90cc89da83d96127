"""What is timed: detlab's own way and the plain one, with the same images, weights and regions."""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from detlab import parts
from detlab.allocation import keep_freed_memory
from detlab.benchmark import plain
from detlab.benchmark.turns import host_memory, peak_memory
from detlab.config import build, register
from detlab.data.loader import EpochBatches, Loader
from detlab.engine import Device, StepReport, predict, select_device, train_one_epoch
from detlab.evaluation.results import prediction_to_results
from detlab.models.weights import settle
from detlab.ops.timing import clock
from detlab.profiling import activities, table
from detlab.stopping import RunStopping
from detlab.structures import Batch, DetectionDataset

# Batches whose statistics become those of norms that are frozen without weights to take them from.
_CALIBRATION_BATCHES = 4
# More than any benchmark trains.
_MANY_EPOCHS = 1000


def _model(cfg: DictConfig, node: Any, data: Any) -> nn.Module:
    points = len(data.keypoints) if data.keypoints is not None else None
    return build(node, group="model", allow=cfg.allow, num_classes=len(data.class_map) + 1, num_keypoints=points)


def write_weights(cfg: DictConfig, path: Path) -> None:
    """The weights that both begin with: random ones, or those that the configuration names.

    Norms that are frozen without weights get the statistics of a few batches, as any weights would have them.
    """
    data = parts.data_sets(cfg)["train"]
    torch.manual_seed(cfg.seed)
    cfg = copy.deepcopy(cfg)
    node = cfg.model
    calibrated = "weights" in node and node.weights == "none" and node.get("norm") == "frozen"
    if calibrated:
        node.norm, node.trainable_backbone_layers = "batch", "all"
    settle(node)
    model = _model(cfg, node, data)
    if calibrated:
        _calibrate(cfg, model, data)
    weights = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(weights if calibrated else model.state_dict(), path)


@torch.no_grad()
def _calibrate(cfg: DictConfig, model: Any, data: Any) -> None:
    """Let the norms gather the statistics of some batches, with every residual branch at work."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
            if name.endswith("bn3"):
                nn.init.ones_(module.weight)
    device = Device(torch.device("cpu"), "fp32")
    batches = parts.training_batches(OmegaConf.merge(cfg, {"workers": 0}), data, device)  # pyright: ignore
    for number, (images, _targets) in enumerate(batches):
        if number == _CALIBRATION_BATCHES:
            break
        model.backbone.train()(model.transform(device.images(images))[0].tensors)


class _Silence:
    """A writer that keeps the last report."""

    last: StepReport | None = None

    def training_step(self, report: StepReport) -> None:
        self.last = report


class _Endless:
    """The batches of epoch after epoch, from one iteration to the next."""

    def __init__(self, loader: Any) -> None:
        self._batches = self._all(loader)

    def _all(self, loader: Any) -> Iterator[Batch]:
        epoch = 0
        while True:
            loader.start(epoch, 0, ahead=_MANY_EPOCHS * loader.steps)
            yield from loader
            epoch += 1

    def __iter__(self) -> Iterator[Batch]:
        return self._batches


class _Timed(ABC):
    """What all contestants share: how a round is timed and profiled."""

    units: int

    @abstractmethod
    def work(self) -> None:
        """Do a round's work, `units` of it."""

    def warm_up(self) -> None:
        """A round that does not count: memory is taken, kernels are chosen."""
        self.work()

    def round(self) -> float:
        """Seconds of a unit of the work."""
        started = clock()
        self.work()
        return (clock() - started) / self.units

    def profile(self) -> str:
        """The operations that took the most time in one more round, by torch's profiler."""
        with torch.profiler.profile(activities=activities()) as profiler:
            self.work()
            clock()
        return table(profiler, 20)

    def result(self) -> dict[str, Any]:
        """Nothing: each learns and predicts in its own arithmetic."""
        return {}


class _Training(_Timed):
    """What both sides of training share: what holds the memory."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    before: int  # bytes that the process held before there was a model

    def profile(self) -> str:
        """Where time and memory go: the operations of one more round, and what is held in the midst of one more step."""
        peak = peak_memory()  # the profiler takes some too
        table = super().profile()
        return f"{table}\n{self._held(peak)}" if peak else table

    def _held(self, peak: int) -> str:
        units, self.units = self.units, 1
        try:
            with saved_for_backward(self.model) as saved:
                self.work()
        finally:
            self.units = units
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        held = {
            "before the model": self.before,
            "weights": _bytes([*self.model.parameters(), *self.model.buffers()]),
            "gradients": _bytes([p.grad for p in self.model.parameters() if p.grad is not None]),
            "optimizer": _bytes([value for value in states if isinstance(value, torch.Tensor)]),
            "kept for the backward pass": saved.most,
        }
        held["else and at other times"] = peak - sum(held.values())
        parts = ", ".join(f"{name} {number / 2**20:.0f}" for name, number in held.items())
        return f"memory: {peak / 2**20:.0f} MiB at its peak; {parts}"


class Saved:
    """The bytes that autograd keeps for a backward pass: a block of memory counts once, for as long as anything keeps it.

    Attributes:
        now: at present.
        most: the most at any time.
    """

    def __init__(self) -> None:
        self.now = self.most = 0
        self._keepers: Counter[int] = Counter()

    def keep(self, tensor: torch.Tensor) -> _Kept:
        """Count a tensor's memory until what is returned is forgotten."""
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not self._keepers[address]:
            self.now += size
            self.most = max(self.most, self.now)
        self._keepers[address] += 1
        kept = _Kept(tensor)
        weakref.finalize(kept, self._forget, address, size)
        return kept

    def _forget(self, address: int, size: int) -> None:
        self._keepers[address] -= 1
        if not self._keepers[address]:
            self.now -= size


class _Kept:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@contextmanager
def saved_for_backward(model: nn.Module) -> Iterator[Saved]:
    """What autograd keeps within for backward passes; weights do not count."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found = Saved()

    def packed(tensor: torch.Tensor) -> torch.Tensor | _Kept:
        return tensor if tensor.untyped_storage().data_ptr() in weights else found.keep(tensor)

    def unpacked(saved: torch.Tensor | _Kept) -> torch.Tensor:
        return saved.tensor if isinstance(saved, _Kept) else saved

    with torch.autograd.graph.saved_tensors_hooks(packed, unpacked):
        yield found


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Ours(_Timed):
    """What detlab's contestants share: the parts of a run."""

    loader: Loader

    def __init__(self, config: str, weights: Path) -> None:
        self.cfg = begin(config)
        keep_freed_memory(self.cfg.keep_freed_memory)
        self.device = select_device(self.cfg.device, self.cfg.precision, self.cfg.channels_last)
        self.data = parts.data_sets(self.cfg)
        self.before = 0 if self.device.name.type == "cuda" else host_memory("VmRSS")
        self.model = _placed(self.cfg, self.cfg.model, self.data["train"], weights)
        self.device.place(self.model)

    def close(self) -> None:
        """End the processes that load images."""
        self.loader.close()


class _Theirs(_Timed):
    """What the plain contestants share: torchvision's modules, fp32."""

    source: Generator[Any, None, None]

    def __init__(self, config: str, weights: Path) -> None:
        self.cfg = begin(config)
        self.device = select_device(self.cfg.device, "fp32").name
        self.data = parts.data_sets(self.cfg)
        self.before = 0 if self.device.type == "cuda" else host_memory("VmRSS")
        node = plain.plain_model(OmegaConf.to_container(self.cfg.model, resolve=True))
        self.model = _placed(self.cfg, OmegaConf.create(node), self.data["train"], weights).to(self.device)

    def close(self) -> None:
        """End the processes that load images."""
        self.source.close()


def begin(config: str) -> DictConfig:
    """The configuration that a contestant's process was given as YAML, of a model with random weights, and its seed set."""
    register()
    cfg = OmegaConf.create(config)
    assert isinstance(cfg, DictConfig)
    torch.manual_seed(cfg.seed)
    settle(cfg.model)
    cfg.model.weights = "none"  # both begin with those that were written for them
    return cfg


def _placed(cfg: DictConfig, node: Any, data: Any, weights: Path) -> nn.Module:
    """The model with the weights that both have."""
    model = _model(cfg, node, data)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


class OurTraining(_Ours, _Training):
    """Steps of `train_one_epoch`."""

    def __init__(self, config: str, weights: Path, units: int) -> None:
        super().__init__(config, weights)
        self.units, self.done = units, 0
        self.loader = parts.training_batches(self.cfg, self.data["train"], self.device)
        self.batches = _Endless(self.loader)
        self.optimizer = parts.optimizer(self.cfg, self.model)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _step: 1.0)
        self.scaler = self.device.scaler()
        self.stopping = RunStopping(max_steps=None, max_minutes=None)

    def work(self) -> None:
        self.done = train_one_epoch(
            self.model,
            self.batches,
            self.optimizer,
            self.schedule,
            _Silence(),
            self.stopping,
            device=self.device,
            epoch=0,
            step=self.done,
            steps=self.units,
            accumulate=self.cfg.accumulate,
            clip_grad_norm=self.cfg.clip_grad_norm,
            seed=self.cfg.seed,
            iou_types=self.model.iou_types,  # type: ignore[arg-type]
            scaler=self.scaler,
        )


class TheirTraining(_Theirs, _Training):
    """The references' loop over the same batches."""

    def __init__(self, config: str, weights: Path, units: int) -> None:
        super().__init__(config, weights)
        self.units = units
        images = plain.TutorialDataset(self.data["train"], self.model.iou_types, train=True)  # type: ignore[arg-type]
        order = _orders(self.cfg, self.data["train"])
        self.source = plain.batches(images, order, self.cfg.workers)
        node = {key: value for key, value in self.cfg.optimizer.items() if key not in ("groups", "fused")}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build(OmegaConf.create(node), group="optimizer", allow=self.cfg.allow, params=trained)

    def work(self) -> None:
        plain.train_steps(self.model, self.source, self.optimizer, self.device, self.units)


def _orders(cfg: DictConfig, data: DetectionDataset) -> list[list[int]]:
    """The images of the batches of the first epochs, as detlab's loader has them."""
    batches = parts.training_batches(cfg, data, Device(torch.device("cpu"), "fp32")).batches
    assert isinstance(batches, EpochBatches)
    found = []
    for epoch in range(100):
        batches.epoch = epoch
        found += [[index for _, index in keys] for keys in batches]
    return found


class OurPrediction(_Ours):
    """Images through `predict`, to the rows of COCO's results."""

    def __init__(self, config: str, weights: Path, units: int) -> None:
        super().__init__(config, weights)
        self.units = units
        self.loader = parts.evaluation_batches(self.cfg, self.data["val"], self.device)
        self.source = self._all()

    def _all(self) -> Iterator[Batch]:
        while True:
            yield from self.loader

    def work(self) -> None:
        for _ in range(self.units):
            images, _targets = next(self.source)
            found = predict(self.model, images, self.device, paste_masks=False)[0]
            prediction_to_results(0, found, self.data["val"].class_map, self.model.iou_types)  # type: ignore[arg-type]


class TheirPrediction(_Theirs):
    """The references' loop of prediction, to what their evaluator makes rows of COCO's results of."""

    def __init__(self, config: str, weights: Path, units: int) -> None:
        super().__init__(config, weights)
        self.units = units
        samples = plain.TutorialDataset(self.data["val"], self.model.iou_types, train=False)  # type: ignore[arg-type]
        self.source = plain.batches(samples, [[index] for index in range(len(samples))], self.cfg.workers)

    def work(self) -> None:
        plain.predict_images(self.model, self.source, self.device, self.units)
