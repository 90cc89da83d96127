"""`detlab validate`: is a data set fit to be learnt from, and what is wrong with it, image by image?"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from detlab.data.dataset import IndexedDataset
    from detlab.data.faults import Fault, Reading, Severity
    from detlab.data.rules import ClassCount

# So many faults of a kind are printed; --json has all.
EXAMPLES = 3
# The models' keys that say how many objects they report in an image; COCO scores as many as the others do.
LIMIT_KEYS, USUAL_LIMIT = ("box_detections_per_img", "detections_per_img"), 100


def main(argv: list[str]) -> int:
    """Look at every image and object of a data set, and say what is wrong with them.

    Args:
        argv: the arguments after `detlab validate`.

    Returns:
        0; 1 where there are errors.

    Raises:
        UserError: an override that does not fit, files that are not of the format at all.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_intermixed_args(argv)
    # Only now: all this takes seconds, which --help should not.
    from detlab.config import check, register
    from detlab.preflight import compose_run

    register()
    cfg = compose_run(arguments.overrides)
    check(cfg)
    verdict = verdict_on(cfg, decode=arguments.decode)
    print(json.dumps(verdict.as_json()) if arguments.json else "\n".join(verdict.lines()))
    return 1 if verdict.count("error") else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab validate",
        description="Looks at all parts of a data set, its annotations and its files, and prints what is wrong, the worst first: "
        "errors, which a run refuses, drops or clips (dataset.invalid), then warnings and notes. Exit status 1 where there are "
        "errors.",
        epilog="example: detlab validate dataset=coco dataset.root=DIR",
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides", metavar="OVERRIDE", nargs="*", default=[], help="key=value, group=choice, as of a run"
    )
    parser.add_argument(
        "--no-decode",
        dest="decode",
        action="store_false",
        help="read the headers of image files alone: faster, but blind to damage behind them, and to the same picture in two "
        "formats",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, with all faults")
    return parser


@dataclass(frozen=True)
class Found:
    """A fault, and the part of the data set that it is in."""

    part: str
    fault: Fault


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a data set.

    Args:
        images: by part.
        classes: how often each occurs.
        faults: the worst first; of a severity the kind with the most.
        decoded: whether the pixels were looked at too.
    """

    images: dict[str, int]
    classes: Sequence[ClassCount]
    faults: Sequence[Found]
    decoded: bool

    def count(self, severity: Severity) -> int:
        """How many faults there are of that severity."""
        from detlab.data.faults import KINDS

        return sum(KINDS[found.fault.kind].severity == severity for found in self.faults)

    def objects(self, part: str) -> int:
        """How many objects a part has."""
        return sum(count.objects[part] for count in self.classes)

    def as_json(self) -> dict[str, Any]:
        """All of it, in plain values."""
        from detlab.data.faults import KINDS, SEVERITIES

        faults = [
            {
                "severity": KINDS[found.fault.kind].severity,
                "kind": found.fault.kind,
                "part": found.part,
                "image": found.fault.image or None,
                "annotation": found.fault.annotation,
                "said": found.fault.said,
                "remedy": KINDS[found.fault.kind].remedy,
            }
            for found in self.faults
        ]
        return {
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "decoded": self.decoded,
            "parts": {part: {"images": count, "objects": self.objects(part)} for part, count in self.images.items()},
            "classes": [dataclasses.asdict(c) for c in self.classes],
            "faults": faults,
        }

    def lines(self) -> Iterator[str]:
        """The faults by kind with examples, the classes, and the verdict in a line."""
        from detlab.data.faults import KINDS

        by_kind: dict[str, list[Found]] = defaultdict(list)
        for found in self.faults:
            by_kind[found.fault.kind].append(found)
        for kind, some in by_kind.items():
            yield f"{KINDS[kind].severity:<8}{len(some):>7}  {kind}: {KINDS[kind].remedy}"
            yield from (f"{'':<17}{found.part:<5}  {found.fault}" for found in some[:EXAMPLES])
            if len(some) > EXAMPLES:
                yield f"{'':<17}and {len(some) - EXAMPLES} more"
        yield from [""] if by_kind else []
        yield from [*self._class_table(), ""]
        yield self._last_line()

    def _class_table(self) -> Iterator[str]:
        width = max(5, *(len(count.name) for count in self.classes))
        yield f"label  id in the files  {'class':<{width}}" + "".join(
            f"{f'{part} objects':>15}{'images':>9}" for part in self.images
        )
        for count in self.classes:
            numbers = (f"{count.objects[part]:>15}{count.images[part]:>9}" for part in self.images)
            yield f"{count.label:>5}{count.category_id:>17}  {count.name:<{width}}" + "".join(numbers)

    def _last_line(self) -> str:
        counts = ", ".join(
            f"{part} {count} images with {self.objects(part)} objects" for part, count in self.images.items()
        )
        how = "images decoded" if self.decoded else "images not decoded"
        others = f"{self.count('warning')} warning(s), {self.count('note')} note(s)"
        errors = self.count("error")
        return f"{f'{errors} error(s)' if errors else 'No errors'}, {others}. {counts}; {how}."


def verdict_on(cfg: DictConfig, *, decode: bool) -> Verdict:
    """Look at all parts of the data set that a checked configuration describes.

    Args:
        cfg: of a run.
        decode: whether to decode the images; a data set without an index always does.

    Raises:
        UserError: it cannot be built at all.
    """
    from detlab import parts
    from detlab.data.dataset import IndexedDataset, readings_kept
    from detlab.data.faults import object_faults, scale_faults
    from detlab.data.files import look_at_files, same_images
    from detlab.data.invalid import KEEP
    from detlab.data.rules import class_counts, class_faults, oddities
    from detlab.data.samples import walk

    cfg.overfit = None
    if "invalid" in cfg.dataset:
        cfg.dataset.invalid = KEEP
    with readings_kept() as readings:
        data = parts.data_sets(cfg)
        # An own class may have no index: its samples are gone through instead.
        indexed = {part: dataset for part, dataset in data.items() if isinstance(dataset, IndexedDataset)}
        found = list(_reading_faults(readings, indexed))
    walks = {part: walk(dataset, part) for part, dataset in data.items() if part not in indexed}
    looks = look_at_files({part: (set_.index, set_.folder) for part, set_ in indexed.items()}, decode=decode)
    looks += [look for each in walks.values() for look in each.looks]
    indices = {part: indexed[part].index if part in indexed else walks[part].index for part in data}
    found += [Found(part, fault) for part, each in walks.items() for fault in each.faults]
    for part, index in indices.items():
        for rule in (scale_faults(index), object_faults(index), oddities(index, _limit(cfg))):
            found += [Found(part, fault) for fault in rule]
    found += [Found(look.part, fault) for look in looks for fault in look.faults]
    found += [Found(part, fault) for part, fault in same_images(looks)]
    counts = class_counts(indices)
    found += [Found("", fault) for fault in class_faults(indices, counts)]
    images = {part: len(dataset) for part, dataset in data.items()}
    return Verdict(images, counts, _worst_first(found), decode or not indexed)


def _limit(cfg: DictConfig) -> int:
    """How many objects the model reports in an image."""
    return next((cfg.model[key] for key in LIMIT_KEYS if key in cfg.model), USUAL_LIMIT)


def _reading_faults(readings: Mapping[str, Reading], indexed: Mapping[str, IndexedDataset]) -> Iterator[Found]:
    """What the readers of the files found; files that are split are said to be of the part that has the image."""
    for key, reading in readings.items():
        if not reading.faults:
            continue
        parts = {part: set(set_.image_names) for part, set_ in indexed.items() if set_.folder == reading.folder}
        own = key.rpartition(" ")[2]
        for fault in reading.faults:
            # First its own: the images of two files may have the same names.
            having = [part for part in sorted(parts, key=lambda part: part != own) if fault.image in parts[part]]
            yield Found(having[0] if having else own, fault)


def _worst_first(found: Sequence[Found]) -> list[Found]:
    """By severity, then by kind, that with the most first; what two rules have found stands once."""
    from detlab.data.faults import KINDS, SEVERITIES

    once = {(f.part, f.fault.kind, f.fault.image, f.fault.annotation, f.fault.said): f for f in found}
    by_kind: dict[str, list[Found]] = defaultdict(list)
    for each in once.values():
        by_kind[each.fault.kind].append(each)
    kinds = sorted(by_kind, key=lambda kind: (SEVERITIES.index(KINDS[kind].severity), -len(by_kind[kind]), kind))
    return [each for kind in kinds for each in by_kind[kind]]
