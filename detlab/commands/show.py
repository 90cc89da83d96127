"""`detlab show`: what does a data set look like to the model, and do the model's anchors fit it?"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab import charts, pages
from detlab.commands.output import new_folder, refuse_existing
from detlab.errors import UserError
from detlab.pages import text

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor, nn
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    from detlab.data.statistics import Distribution, Objects, Statistics
    from detlab.models.anchors import Anchors
    from detlab.structures import DetectionDataset, Sample

SAMPLES, PAGE = "samples.png", "statistics.html"
# Of the pictures in the grid: how many a row, pixels of the longer side, and of the line below them.
COLUMNS, PICTURE, CAPTION = 4, 448, 18
# So many classes are printed; the page has all.
PRINTED_CLASSES = 20
# A proposal whose merit is less above that of the anchors at hand is not worth a change.
WORTH_A_CHANGE = 0.01


def main(argv: list[str]) -> int:
    """Draw samples of a data set as the model will see them, and tell its statistics and how well the anchors fit.

    Args:
        argv: the arguments after `detlab show`.

    Returns:
        0.

    Raises:
        UserError: an override that does not fit, data that cannot be read, a part without images, files that are in the way.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.out is not None:
        refuse_existing(arguments.out, (SAMPLES, PAGE), overwrite=arguments.overwrite)
    # Only now: all this takes seconds, which --help should not.
    import torch

    from detlab import parts, storage
    from detlab.config import check, register, safe_name
    from detlab.data.split import check_part
    from detlab.models.anchors import resize_of
    from detlab.pictures import save
    from detlab.preflight import compose_run

    register()
    cfg = compose_run(arguments.overrides)
    check(cfg)
    check_part(arguments.part)
    data = parts.data_sets(cfg)
    if arguments.part not in data or not len(data[arguments.part]):
        raise UserError(f"--part: the part {arguments.part!r} of the data set has no images.")
    dataset = data[arguments.part]
    model = _untrained(cfg, dataset)
    model.train(arguments.part == "train")  # in training the resize draws one of several sizes
    torch.manual_seed(cfg.seed)
    grid = _grid(_samples(cfg, dataset, arguments.part, arguments.count), dataset, resize_of(model))
    findings = _Findings.of(cfg, data, arguments.part, model)
    out = arguments.out or new_folder(Path("show"), safe_name(cfg.name))
    out.mkdir(parents=True, exist_ok=True)
    save(grid, out / SAMPLES)
    storage.write_text(out / PAGE, findings.page())
    print(findings.text())
    print(f"{out / SAMPLES}, {out / PAGE}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab show",
        description=f"Draws samples of a data set as the model will see them ({SAMPLES}: augmented and resized, with boxes, "
        f"masks, keypoints and names), tells its statistics ({PAGE}, and the essentials on the terminal), and how well the "
        "model's anchors can reach its objects, with better ones where there are any.",
        epilog="example: detlab show dataset=pennfudan dataset.root=DIR model=mobilenet augmentation=multiscale",
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides", metavar="OVERRIDE", nargs="*", default=[], help="key=value, group=choice, as of a run"
    )
    parser.add_argument("--part", default="train", help="part of the data set: train (the default), val or test")
    parser.add_argument(
        "--count", type=number_from_1, default=16, help="how many samples to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write; by default a new folder show/<name of the run>"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of DIR where they exist")
    return parser


def number_from_1(text: str) -> int:
    """The number of samples; argparse names this function in its message about a wrong value."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _untrained(cfg: DictConfig, dataset: DetectionDataset) -> nn.Module:
    """The model without its weights, which change neither sizes nor anchors: nothing is downloaded for a picture."""
    from detlab.config import build
    from detlab.models.weights import settle

    settle(cfg.model)
    if "weights" in cfg.model:
        cfg.model.weights = "none"
    points = dataset.keypoints
    counts = {"num_classes": len(dataset.class_map) + 1, "num_keypoints": len(points) if points is not None else None}
    return build(cfg.model, group="model", allow=cfg.allow, **counts)


def _samples(cfg: DictConfig, dataset: DetectionDataset, part: str, count: int) -> Iterator[tuple[str, Sample]]:
    """Names and samples: for training those that lead the first epoch's order, drawn as it will draw them; of other parts some
    from all over them, as evaluation sees them.
    """
    import numpy as np

    from detlab.config import build
    from detlab.data.augmentations import make_ready
    from detlab.data.loader import EpochBatches, EvaluationSamples, TrainingSamples

    if part == "train":
        augmentation = build(cfg.augmentation, group="augmentation", allow=cfg.allow)
        make_ready(augmentation, dataset)
        samples = TrainingSamples(dataset, augmentation, cfg.seed)
        batches = EpochBatches(len(dataset), batch_size=1, accumulate=1, seed=cfg.seed, shuffle=cfg.shuffle)
        found = ((index, samples[0, index]) for index in batches.order(0)[:count])
    else:
        samples = EvaluationSamples(dataset)
        spread = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()
        found = ((index, samples[index]) for index in spread)
    for index, sample in found:
        if isinstance(sample, UserError):
            raise sample
        yield dataset.image_names[index], sample[:2]


def _grid(
    samples: Iterator[tuple[str, Sample]], dataset: DetectionDataset, transform: GeneralizedRCNNTransform | None
) -> Tensor:
    """Pictures of samples after the model's resize, below each its name and the size that it then has; uint8 `[3, H, W]`."""
    import torch
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.transforms.v2 import functional as F
    from torchvision.utils import make_grid

    from detlab.pictures import draw

    fit = GeneralizedRCNNTransform(PICTURE, PICTURE, [0.0] * 3, [1.0] * 3)
    pictures = []
    for name, sample in samples:
        image, target = sample if transform is None else _resized(*sample, transform)
        smaller, target = _resized(image, target, fit)
        # The image again, by averaging: torchvision's resize leaves out pixels.
        smaller = F.resize(image, list(smaller.shape[-2:]), antialias=True)
        picture = draw(smaller, target, dataset.class_map, dataset.keypoints, threshold=0, shorter_side=1)
        pictures.append(_with_caption(picture, name, f"{image.shape[-2]} x {image.shape[-1]}"))
    empty = torch.full((3, CAPTION, PICTURE), 255, dtype=torch.uint8)
    pictures += [empty] * (-len(pictures) % min(COLUMNS, len(pictures)))
    rows = [_padded(pictures[first : first + COLUMNS]) for first in range(0, len(pictures), COLUMNS)]
    grids = [make_grid(row, nrow=min(COLUMNS, len(pictures)), padding=4, pad_value=255) for row in rows]
    return torch.cat(grids, 1)


def _padded(pictures: Sequence[Tensor]) -> list[Tensor]:
    """Pictures with white below them, as high as the highest."""
    from torchvision.transforms.v2 import functional as F

    height = max(picture.shape[-2] for picture in pictures)
    return [F.pad(picture, [0, 0, 0, height - picture.shape[-2]], fill=[255.0]) for picture in pictures]


def _resized(
    image: Tensor, target: Mapping[str, Any], transform: GeneralizedRCNNTransform
) -> tuple[Tensor, dict[str, Any]]:
    """A sample after a detector's resize, without its normalising; image uint8."""
    import torch
    from torch import Tensor

    plain: dict[str, Any] = {
        key: value.as_subclass(Tensor) if isinstance(value, Tensor) else value for key, value in target.items()
    }
    pixels, resized = transform.resize(image.as_subclass(Tensor).float() / 255, plain)
    assert resized is not None
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8), resized


def _with_caption(picture: Tensor, name: str, size: str) -> Tensor:
    """A picture in the middle of its column, with a line below it; a name that is too long loses its beginning."""
    from PIL import Image, ImageDraw, ImageFont
    from torchvision.transforms.v2 import functional as F

    height, width = picture.shape[-2:]
    canvas = Image.new("RGB", (PICTURE, height + CAPTION), "white")
    canvas.paste(F.to_pil_image(picture), ((PICTURE - width) // 2, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    shown = name
    while pen.textlength(f"{shown}   {size}", font=font) > PICTURE and len(shown) > 1:
        shown = "\N{HORIZONTAL ELLIPSIS}" + shown[2:]
    pen.text((2, height + 1), f"{shown}   {size}", fill="black", font=font)
    return F.pil_to_tensor(canvas)


@dataclass(frozen=True)
class _Table:
    """Rows of texts, for the terminal and for the page."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    more: str = ""  # a line below it

    def text(self) -> str:
        """In columns, all but the first to the right."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        shown = [
            "  ".join(
                [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in lines
        ]
        return "\n".join(
            [self.title, *(f"  {line.rstrip()}" for line in shown), *([f"  {self.more}"] if self.more else [])]
        )

    def html(self) -> str:
        """The same, with its title."""
        more = f"<p>{text(self.more)}</p>" if self.more else ""
        return f"<h2>{text(self.title)}</h2>{pages.table(self.head, self.rows)}{more}"


@dataclass(frozen=True)
class _Findings:
    """All that is told of a data set beside its pictures."""

    title: str
    summary: list[str]
    classes: _Table
    shapes: _Table
    sizes: _Table
    statistics: Statistics
    anchors: _Table | None
    advice: list[str]  # on anchors
    overrides: str  # of better anchors; empty where there are none

    @classmethod
    def of(cls, cfg: DictConfig, data: Mapping[str, DetectionDataset], part: str, model: nn.Module) -> _Findings:
        """What the data sets and the model say."""
        from hydra.core.hydra_config import HydraConfig

        from detlab.data.statistics import objects_of, statistics
        from detlab.models.anchors import resize_of, resized

        objects = {name: objects_of(dataset) for name, dataset in data.items()}
        transform = resize_of(model)
        shown = objects[part]
        if transform is not None:
            shown = shown.resized(resized(shown.sizes, transform))
        numbers = statistics(shown)
        anchors, advice, overrides = _anchors(cfg, shown, model)
        choices = HydraConfig.get().runtime.choices
        return cls(
            title=f"{part} of dataset={choices['dataset']}, as model={choices['model']} sees it",
            summary=_summary(numbers, shown, transform),
            classes=_classes({name: statistics(found) for name, found in objects.items()}, data[part]),
            shapes=_shapes(numbers),
            sizes=_sizes(numbers),
            statistics=numbers,
            anchors=anchors,
            advice=advice,
            overrides=overrides,
        )

    def text(self) -> str:
        """For the terminal."""
        classes = self.classes
        hidden = len(classes.rows) - PRINTED_CLASSES
        if hidden > 0:
            more = f"and {hidden} more, in {PAGE}"
            classes = _Table(classes.title, classes.head, classes.rows[:PRINTED_CLASSES], more)
        tables = [table.text() for table in (classes, self.shapes, self.sizes, self.anchors) if table is not None]
        end = [*self.advice, *([f"  {self.overrides}"] if self.overrides else [])]
        return "\n".join([self.title, *(f"  {line}" for line in self.summary), *tables, *end])

    def page(self) -> str:
        """As HTML that needs nothing but the picture beside it."""
        numbers = self.statistics
        charts = [
            _chart("box widths, pixels", numbers.widths),
            _chart("box heights, pixels", numbers.heights),
            _chart("square roots of box areas, pixels", numbers.scales),
            _chart("aspect ratios, height / width", numbers.aspect_ratios),
            _chart("objects per image", numbers.objects_per_image, whole=True),
        ]
        body = [
            f"<h1>{text(self.title)}</h1>",
            *(f"<p>{text(line)}</p>" for line in self.summary),
            f'<a href="{SAMPLES}"><img src="{SAMPLES}" alt="samples, augmented and resized"></a>',
            self.classes.html(),
            self.shapes.html(),
            f'<div class="charts">{"".join(charts)}</div>',
            self.sizes.html(),
            self.anchors.html() if self.anchors is not None else "<h2>anchors</h2>",
            *(f"<p>{text(line)}</p>" for line in self.advice),
            f"<pre>{text(self.overrides)}</pre>" if self.overrides else "",
        ]
        return pages.page(self.title, body, beside=True)


def _summary(numbers: Statistics, objects: Objects, transform: GeneralizedRCNNTransform | None) -> list[str]:
    """What was counted, and in which pixels."""
    from detlab.models.anchors import shorter_sides

    lines = [f"{numbers.images} images, {numbers.empty_images} of them without an object; {numbers.objects} objects"]
    if numbers.left_out:
        lines.append(f"{numbers.left_out} crowd regions or the like are not learnt, and not counted below")
    if transform is None:
        return [*lines, "sizes are those of the images as loaded: this model has no resize that detlab knows"]
    sides = " and ".join(
        f"{low} to {high} {way}" if low < high else f"{low} {way}"
        for low, high, way in zip(objects.sizes.min(0), objects.sizes.max(0), ("high", "wide"), strict=True)
    )
    shorter = shorter_sides(transform)
    drawn = f" (as in evaluation; training draws the shorter side from {shorter})" if len(shorter) > 1 else ""
    return [*lines, f"sizes are those after the model's resize, before augmentation: images become {sides}{drawn}"]


def _classes(numbers: Mapping[str, Statistics], dataset: DetectionDataset) -> _Table:
    """Images and objects by class and part, in the order of the labels."""
    head = ["class", *(f"{part} {what}" for part in numbers for what in ("images", "objects"))]
    rows = [
        [name, *(str(c[k]) for found in numbers.values() for c in (found.images_by_class, found.objects_by_class))]
        for k, name in enumerate(dataset.class_map.names)
    ]
    return _Table("images and objects by class", head, rows)


def _shapes(numbers: Statistics) -> _Table:
    """The least, some quantiles and the largest of each measure."""
    from detlab.data.statistics import QUANTILES

    named = {0.0: "least", 0.5: "median", 1.0: "largest"}
    head = ["boxes", *(named[q] if q in named else f"{q:.0%}" for q in QUANTILES)]
    measures = {
        "width": (numbers.widths, ".0f"),
        "height": (numbers.heights, ".0f"),
        "square root of area": (numbers.scales, ".0f"),
        "height / width": (numbers.aspect_ratios, ".2f"),
        "objects per image": (numbers.objects_per_image, ".0f"),
    }
    rows = [[name, *(format(q, spec) for q in spread.quantiles)] for name, (spread, spec) in measures.items()]
    return _Table("shapes of boxes", head, rows)


def _sizes(numbers: Statistics) -> _Table:
    """Objects by size."""
    from detlab.data.statistics import SIZE_BOUNDS, SIZES

    low, high = (round(bound**0.5) for bound in SIZE_BOUNDS)
    ranges = (f"below {low}^2", f"{low}^2 to {high}^2", f"{high}^2 and more")
    counts = numbers.objects_by_size.tolist()
    rows = [
        [f"{name} ({range_})", str(count), f"{count / max(1, numbers.objects):.1%}"]
        for name, range_, count in zip(SIZES, ranges, counts, strict=True)
    ]
    return _Table("sizes, by the area of the box", ["size", "objects", "part"], rows)


def _anchors(cfg: DictConfig, objects: Objects, model: nn.Module) -> tuple[_Table | None, list[str], str]:
    """How well the model's anchors and better ones reach the objects: a table, what to make of it, overrides to paste."""
    from detlab.models import anchors as reaching

    found = reaching.anchor_model(model)
    if found is None:
        return None, ["this model has no anchors that are matched by their overlap with objects; nothing to reach"], ""
    if not len(objects.labels):
        return None, ["no objects, so nothing for the model's anchors to reach"], ""
    thresholds = reaching.thresholds_of(found.fg_iou_thresh)
    grids = reaching.grids(found.backbone, objects.sizes, divisor=found.transform.size_divisible)
    proposal = reaching.propose(objects.boxes, objects.image_of, grids, found.anchors, thresholds)
    both = [
        reaching.best_iou(objects.boxes, objects.image_of, grids, anchors.cells())
        for anchors in (found.anchors, proposal)
    ]
    gain = reaching.merit(reaching.reach(both[1], thresholds)) - reaching.merit(reaching.reach(both[0], thresholds))
    better = gain >= WORTH_A_CHANGE
    table = _reach_table(objects, both if better else both[:1], thresholds)
    advice = [
        "at: the part of the objects that some anchor overlaps by that IoU, each image alone on the model's own cells.",
        f"An anchor learns an object from {found.fg_iou_thresh:g} on; an object that none overlaps so much, its best one learns.",
    ]
    if not better:
        return table, [*advice, "The anchors fit: none of the same structure were found that reach clearly more."], ""
    overrides = _overrides(cfg, proposal)
    if not overrides:
        said = f"sizes={_listed(proposal.sizes)}, aspect_ratios={_listed(proposal.aspect_ratios)}"
        return table, [*advice, f"Anchors that reach more, which no key of this model's configuration sets: {said}"], ""
    return (
        table,
        [*advice, "The proposed anchors, as many a cell, to paste behind a command:"],
        overrides,
    )


def _reach_table(objects: Objects, ious: Sequence[Any], thresholds: Sequence[float]) -> _Table:
    """Recall by size: of the configured anchors and, where given, of the proposed ones."""
    from detlab.data.statistics import SIZES
    from detlab.models.anchors import reach

    kinds = ["", "proposed: "][: len(ious)]
    head = ["objects", "number"]
    head += [f"{kind}{what}" for kind in kinds for what in (*(f"at {t:g}" for t in thresholds), "mean IoU")]
    groups = [(name, objects.size_of == place) for place, name in enumerate(SIZES)]
    rows = []
    for name, chosen in [("all", objects.size_of >= 0), *groups]:
        cells = [name, str(int(chosen.sum()))]
        for one in ious:
            found = reach(one[chosen], thresholds)
            cells += ["-" if not found.objects else f"{value:.3f}" for value in (*found.recall, found.mean_iou)]
        rows.append(cells)
    return _Table("best possible recall of the model's anchors", head, rows)


def _overrides(cfg: DictConfig, anchors: Anchors) -> str:
    """The proposal as overrides, quoted for a shell; empty where the configuration has no place for them."""
    sizes, ratios = _listed(anchors.sizes), _listed(anchors.aspect_ratios)
    if "anchor_generator" in cfg.model:
        key = "model.anchor_generator"
        return f"{shlex.quote(f'{key}.sizes={sizes}')} {shlex.quote(f'{key}.aspect_ratios={ratios}')}"
    if cfg.model._target_ == "detlab.models.detectors.wrapped" and "anchor_generator" not in cfg.model.model:
        target = "torchvision.models.detection.anchor_utils.AnchorGenerator"
        node = f"{{_target_:{target},sizes:{sizes},aspect_ratios:{ratios}}}"
        return shlex.quote(f"+model.model.anchor_generator={node}")
    return ""


def _listed(levels: Sequence[Sequence[float]]) -> str:
    """Tuples of numbers as a list that Hydra reads."""
    return "[" + ",".join("[" + ",".join(f"{number:g}" for number in level) + "]" for level in levels) + "]"


def _chart(title: str, spread: Distribution, *, whole: bool = False) -> str:
    """A distribution as upright bars; `whole`: of whole numbers, which stand below their bars and not between them."""
    return charts.columns(title, spread.counts.tolist(), spread.edges.tolist(), whole=whole)
