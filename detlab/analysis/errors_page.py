"""How do the errors of a model look as one page: kinds, confusion, curves, calibration, label errors, the worst images?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detlab import charts, pages
from detlab.analysis.errors import MEANING
from detlab.pages import Html, number, table, text

MOST_CLASSES = 24  # of more, the largest confusions are told in place of the matrix
MOST_CONFUSIONS = 20
MOST_ROWS = 50  # of likely label errors; all are in their file
MOST_WORST = 12
Pictures = Mapping[Any, Sequence[tuple[str, str]]]
_NAMED = {"bbox": "Boxes", "segm": "Masks"}
_REVIEW = {"not annotated": "found, but not annotated", "never found": "annotated, but never found"}


def page(
    title: str,
    said: str,
    record: Mapping[str, Any],
    label_errors: Mapping[str, Any],
    worst: Pictures,
    reviewed: Pictures,
) -> str:
    """The page.

    Args:
        title: plain text, as all that follows.
        said: what was evaluated on what.
        record: what errors.json holds.
        label_errors: COCO dict, see `detlab.analysis.label_errors`; empty where no type was judged.
        worst: of the worst images, by id, what each picture shows and its data: URI; empty where none were drawn.
        reviewed: the same of other images with likely label errors.
    """
    anchors = {image_id: f"image-{place}" for place, image_id in enumerate([*worst, *reviewed], start=1)}
    parts = [f"<h1>{text(title)}</h1><p>{text(said)}</p>"]
    if not record["errors"]:
        parts.append("<p>Keypoints have no kinds of errors; there are neither boxes nor masks to be judged.</p>")
    for iou_type in record["errors"]:
        parts += [f"<h2>{_NAMED[iou_type]}</h2>", _kinds(record["errors"][iou_type])]
        parts += [_by_class(iou_type, record), _confusion(record["confusion"][iou_type]), _charts(iou_type, record)]
    if record["worst"]["images"]:
        parts.append(_worst(record["worst"], worst, anchors))
    if label_errors:
        parts.append(_label_errors(label_errors, reviewed, anchors))
    return pages.page(title, parts, scripts=(pages.SORTING,))


def _kinds(told: Mapping[str, Any]) -> str:
    """What is wrong, by kind."""
    kinds = told["kinds"]
    largest = max(kinds, key=lambda kind: kinds[kind]["gain"] or 0.0)
    first = f"AP50 is {number(told['AP50'])}, and {number(told['all'])} with all errors mended"
    first += (
        f". Most would be gained from the kind “{largest}”: {number(kinds[largest]['gain'], sign='+')}."
        if (kinds[largest]["gain"] or 0) > 0
        else "."
    )
    rows = [
        [
            Html(f"{text(kind)}<br><small>{text(MEANING[kind])}</small>"),
            str(one["count"]),
            number(one["AP50"]),
            number(one["gain"]),
        ]
        for kind, one in kinds.items()
    ]
    bars = [(kind, one["gain"] or 0.0, number(one["gain"], sign="+")) for kind, one in kinds.items()]
    note = (
        "Kinds after TIDE (Bolya et al., 2020), at IoU 0.5 and any score: faint detections are counted too, but weigh "
        "little in AP50. Each kind is mended alone, so the gains do not add up."
    )
    return (
        f'<p class="verdict">{text(first)}</p><div class="halves">'
        f"<div>{table(['kind', 'errors', 'AP50 mended', 'gain'], rows)}</div>"
        f"<div>{charts.bars('AP50 gained by mending', bars)}</div></div><p>{note}</p>"
    )


def _by_class(iou_type: str, record: Mapping[str, Any]) -> str:
    """AP50 and the operating threshold of each class."""
    curves, wanted = record["curves"][iou_type], record["precision"]
    by = "of the best F1" if wanted is None else f"lowest with a precision of {wanted:g}"
    rows = [
        [name, number(_ap50(curves[name])), *(number(one[key]) for key in ("threshold", "precision", "recall", "f1"))]
        for name, one in record["thresholds"][iou_type].items()
    ]
    head = ["class", "AP50", "threshold", "precision", "recall", "F1"]
    return (
        f"<h3>Classes and their operating thresholds</h3><p>The threshold is the one {by} on these images at IoU 0.5; precision, "
        "recall and F1 are those of the detections that reach it."
        f"{' A click on a head sorts.' if len(rows) > 1 else ''}</p>{table(head, rows, sortable=len(rows) > 1)}"
    )


def _ap50(curve: Sequence[float] | None) -> float | None:
    return None if curve is None else float(np.mean(curve))


def _confusion(told: Mapping[str, Any]) -> str:
    """Objects by row, what they were taken for by column; of very many classes only what is mistaken most."""
    names, counts = told["classes"], told["counts"]
    title = "<h3>Confusion</h3>"
    note = "Counted are detections that reach their class's threshold."
    if len(names) <= MOST_CLASSES + 1:
        rows = [*names[:-1], "background"]
        columns = [*names[:-1], "not found"]
        note += " A row is what an object is, a column what it was taken for; the last row is what was seen where nothing is."
        # Nothing can be background that was taken for background.
        shown = [[*line[:-1], line[-1] if place < len(names) - 1 else None] for place, line in enumerate(counts)]
        return f"{title}<p>{note}</p>{pages.matrix('object', rows, columns, shown)}"
    pairs = [(count, names[i], names[j]) for i, line in enumerate(counts) for j, count in enumerate(line) if i != j]
    most = sorted((pair for pair in pairs if pair[0]), key=lambda pair: -pair[0])[:MOST_CONFUSIONS]
    note += f" The {len(most)} most frequent of {len(names) - 1} classes; errors.json holds the whole matrix."
    return f"{title}<p>{note}</p>{table(['object', 'taken for', 'number'], [[a, b, str(n)] for n, a, b in most])}"


def _charts(iou_type: str, record: Mapping[str, Any]) -> str:
    """Precision over recall, and scores over precision."""
    curves = {name: curve for name, curve in record["curves"][iou_type].items() if curve is not None}
    worst_first = sorted(curves, key=lambda name: float(np.mean(curves[name])))
    few = len(curves) <= len(charts.INKS)
    coloured = list(curves) if few else worst_first[: len(charts.INKS)]
    others = None if few else f"the other {len(curves) - len(coloured)}"
    lines = [
        (name if name in coloured else str(others), f"{name}: AP50 {number(_ap50(curve))}", _points(curve))
        for name, curve in curves.items()
    ]
    title = "Precision over recall, IoU 0.5" + ("" if few else ", the classes of the lowest AP50 in colour")
    drawn = [charts.curves(title, lines, "recall", faint=others, unit=True)] if lines else []
    told = record["calibration"][iou_type]
    if told["error"] is not None:
        drawn.append(charts.reliability("Reliability: how many of a score are right", told["bins"], "score"))
    note = f"The expected calibration error of the scores is {number(told['error'])}: so far, on average, a score lies from the "
    note += "part that is right. On the dashed line both are equal; bars below it are of scores that promise too much."
    return f'<h3>Precision, recall and scores</h3><p>{note}</p><div class="charts">{"".join(drawn)}</div>'


def _points(curve: Sequence[float]) -> list[tuple[float, float]]:
    return [(place / (len(curve) - 1), value) for place, value in enumerate(curve)]


def _name(image: Mapping[str, Any]) -> str:
    """An image's file, else its number."""
    return str(image["file_name"] if image.get("file_name") is not None else image.get("image_id", image.get("id")))


def _worst(told: Mapping[str, Any], drawn: Pictures, anchors: Mapping[Any, str]) -> str:
    """The images with most errors: their pictures, or a table where none were drawn."""
    images = told["images"][:MOST_WORST]
    note = (
        f"By the number of errors in {_NAMED[told['iou_type']].lower()} at IoU 0.5 among what reaches its class's threshold: "
        f"objects that are not found, and detections that are wrong. {len(told['images'])} images have one or more; "
        f"these are the first {len(images)}."
    )
    title = f"<h2>The worst images</h2><p>{note}</p>"
    if not drawn:
        rows = [[_name(one), str(one["errors"]), _errors_of(one)] for one in images]
        return title + table(["image", "errors", ""], rows, kind="reasons")
    captions = {one["image_id"]: f"{_name(one)}: {_errors_of(one)}" for one in images}
    return title + _KEY + _figures(captions, drawn, anchors)


def _errors_of(one: Mapping[str, Any]) -> str:
    """The errors of an image in words."""
    said = [f"{one['not_found']} not found"] if one["not_found"] else []
    if one["wrong"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in one["wrong"].items())
        said.append(f"{sum(one['wrong'].values())} wrong ({kinds})")
    return ", ".join(said)


def _figures(captions: Mapping[Any, str], drawn: Pictures, anchors: Mapping[Any, str]) -> str:
    return "".join(
        pages.pictures(captions[image_id], shown, anchor=anchors[image_id]) for image_id, shown in drawn.items()
    )


def _label_errors(told: Mapping[str, Any], drawn: Pictures, anchors: Mapping[Any, str]) -> str:
    """What somebody should look at again, with links to the pictures."""
    images = {image["id"]: image for image in told["images"]}
    classes = {category["id"]: category["name"] for category in told["categories"]}
    rows = []
    for row in told["annotations"][:MOST_ROWS]:
        name, place = text(_name(images[row["image_id"]])), anchors.get(row["image_id"])
        rows.append(
            [
                name if place is None else Html(f'<a href="#{place}">{name}</a>'),
                _REVIEW[row["review"]],
                classes[row["category_id"]],
                number(row.get("score")),
                ", ".join(f"{value:.0f}" for value in row["bbox"]) if "bbox" in row else pages.ABSENT,
            ]
        )
    count = len(told["annotations"])
    note = f"{count} in all{f', here the first {MOST_ROWS}' if count > MOST_ROWS else ''}; label_errors.json holds them for a "
    note += "labelling tool. Confident detections where nothing is annotated come first, then objects that no detection of any "
    note += "class and score found."
    captions = {image_id: _name(images[image_id]) for image_id in drawn}
    shown = f"<h3>Their images, where they are not among the worst</h3>{_KEY}{_figures(captions, drawn, anchors)}"
    return (
        f"<h2>Likely label errors</h2><p>{note if count else 'None.'}</p>"
        + (table(["image", "what", "class", "score", "box (x, y, width, height)"], rows) if count else "")
        + (shown if drawn else "")
    )


_KEY = (
    '<ul class="legend"><li><i style="background:rgb(0 158 115)"></i>right, found</li>'
    '<li><i style="background:rgb(213 94 0)"></i>wrong, not found</li>'
    '<li><i style="background:rgb(150 150 150)"></i>counts for nothing (crowd)</li></ul>'
    "<p>First the prediction, with what reaches its class's threshold, then the ground truth.</p>"
)
