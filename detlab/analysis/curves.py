"""How precision falls as recall rises: a curve for each class, at IoU 0.5."""

from __future__ import annotations

import numpy as np

from detlab.analysis.judged import Judged
from detlab.evaluation.scoring import precision_over_recall


def curves_of(judged: Judged) -> list[list[float] | None]:
    """The best precision at each of COCO's 101 recalls (0, 0.01, ... 1) or above, of each class.

    Returns:
        101 numbers for each class, in the order of the categories' ids; their mean is its AP50. None of a class without objects.
    """
    detections, objects = judged.detections, judged.objects_by_class
    curves: list[list[float] | None] = []
    for k, count in enumerate(objects.tolist()):
        own = np.flatnonzero((detections.classes == k) & ~judged.excused)
        own = own[np.argsort(-detections.scores[own], kind="stable")]
        if not count:
            curves.append(None)
        else:
            curves.append(precision_over_recall(judged.right[own], count).tolist())
    return curves
