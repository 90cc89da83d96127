"""The files of a new project that are not Python: its configuration, its README, what git leaves out."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detlab.untrusted import printable

if TYPE_CHECKING:
    from detlab.commands.annotations import Annotated

SHAPES = """\
# @TITLE@: the class Shapes in mine.py.
defaults:
  - custom
  - _self_
dataset:
  _target_: mine.Shapes
  count: 40
  height: 96
  width: 128
classes: [disc, square]
val_size: 10
image_size:
  min: 96
  max: 128
"""

COCO = """\
# Your data: @COUNT@ images with @OBJECTS@ objects of @CLASSES@. All keys: detlab's own conf/dataset/coco.yaml
defaults:
  - coco
  - _self_
root: @ROOT@
train_annotations: @FILE@
train_images: @IMAGES@
val_annotations: null # part of the images above, drawn by split_seed
val_size: @VAL_SIZE@ # a number, or a fraction, of the images
split_seed: 0
iou_types: @IOU_TYPES@
image_size: # in pixels, of the images as the model sees them: smaller is faster, larger finds smaller objects
  min: @MIN@ # shorter side
  max: @MAX@ # longest side
"""

MODEL = """\
# Your own model: the function `detector` in mine.py. Command: detlab train experiment=first model=mine 'allow=[mine]'
_target_: mine.detector
min_size: ${image_size.min}
max_size: ${image_size.max}
anchor_sizes: [16, 32, 64] # one for each map of the pyramid, in pixels
objective: bbox/AP
"""

FIRST = """\
# @package _global_
# The first run: @WHAT@.
# Command: detlab train experiment=first@ALLOW@
# Cost: @STEPS@ steps of 2 images. With network, model.weights=imagenet begins from a trained backbone and needs fewer.
# Expected: not known yet. Write down here what you got, so that the next run can be held against it.
defaults:
  - override /model: @MODEL@
  - override /dataset: mine
  - override /augmentation: flip

epochs: @EPOCHS@
eval_every: @EVAL_EVERY@
batch_size: 2
"""

README = """\
# @NAME@

A project of detlab, begun by `detlab init`. All commands are typed in this folder.

@ALLOW@    detlab doctor                                     # is this machine fit for it
    detlab validate dataset=mine                      # what is wrong with the data, image by image
    detlab show experiment=first --out show           # show/samples.png and show/statistics.html: what the model will see
    detlab train experiment=first debug=smoke         # the whole run, small, in under a minute
    detlab train experiment=first hydra.run.dir=outputs/first
    tensorboard --logdir outputs                      # curves and pictures, also while it trains
    detlab evaluate outputs/first --errors --out errors   # its numbers again; errors/errors.html: what it still gets wrong
    detlab predict outputs/first @PHOTOS@ --out pictures
    detlab report outputs                             # outputs/report.html: all runs side by side
    detlab export outputs/first                       # an ONNX file, for where detlab is not

| file | what |
|---|---|
| `conf/dataset/mine.yaml` | the data: where it lies, how it is split, at which size it is seen |
| `experiments/experiment/first.yaml` | the first run; copy it to try something else: `experiment=second` |
| `mine.py` | a data set class and a model of your own, as examples |
| `conf/model/mine.yaml`@SHAPES@ | build them: `detlab train experiment=first model=mine 'allow=[mine]'` |
| `tests/test_mine.py` | do they work: `pip install pytest`, then `python -m pytest` |

What `allow=[mine]` says: classes of `mine.py` may be called. Without it, a configuration can name those of detlab,
torch and torchvision alone. To say it once for a shell: `export DETLAB_ALLOW=mine`.

Any value can be changed on the command line (`optimizer.lr=0.0005`, `epochs=20`), several side by side with `-m`
(`detlab train -m experiment=first optimizer.lr=0.0003,0.001`); `detlab train --help` shows the groups, `--cfg job` all keys.
"""

IGNORED = "outputs/\nshow/\nerrors/\npictures/\n__pycache__/\n.pytest_cache/\n"
# Steps of 2 images from scratch in which a small set is learnt to some use, and how often they are evaluated.
_STEPS, _EVALUATIONS = 400, 5
_VAL_SIZE = 0.2
_MODELS = {"segm": "maskrcnn_mobilenet", "keypoints": "keypointrcnn_mobilenet", "bbox": "mobilenet_fpn"}


def _filled(text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def _quoted(text: str) -> str:
    """A text as YAML and OmegaConf read it back."""
    return json.dumps(text.replace("${", r"\${"))


def _in_words(names: Sequence[str]) -> str:
    """Names for a comment: on one line, whatever characters they have, and not all of hundreds."""
    said = ", ".join(printable(name).replace("\n", r"\n") for name in names[:8])
    return f"{len(names)} class(es): {said}{', ...' if len(names) > 8 else ''}"


def texts_for(name: str, data: Annotated | None) -> dict[str, str]:
    """The texts of a project's files, by their relative names.

    Args:
        name: of the project.
        data: the user's; None draws some.
    """
    kind = "segm" if data is None else next(kind for kind in ("keypoints", "segm", "bbox") if kind in data.iou_types)
    train = 30 if data is None else data.count - max(1, round(_VAL_SIZE * data.count))
    epochs = max(1, min(50, math.ceil(_STEPS / max(1, train // 2))))
    first = _filled(
        FIRST,
        WHAT=f"a small model from scratch on {'drawn shapes' if data is None else 'your data'}",
        MODEL=_MODELS[kind],
        ALLOW="" if data is not None else " 'allow=[mine]'",  # which no file can say
        STEPS=epochs * max(1, train // 2),
        EPOCHS=epochs,
        EVAL_EVERY=max(1, epochs // _EVALUATIONS),
    )
    readme = _filled(
        README,
        NAME=printable(name).replace("\n", " "),
        ALLOW="" if data is not None else "    export DETLAB_ALLOW=mine                          # see below\n",
        PHOTOS="photo.jpg" if data is None else shlex.quote(str(data.images)),
        SHAPES="" if data is None else ", `conf/dataset/shapes.yaml`",
    )
    texts = {
        "README.md": readme,
        ".gitignore": IGNORED,
        "conf/model/mine.yaml": MODEL,
        "experiments/experiment/first.yaml": first,
        "conf/dataset/mine.yaml": _filled(SHAPES, TITLE="Your data") if data is None else _coco(data),
    }
    if data is not None:
        texts["conf/dataset/shapes.yaml"] = _filled(SHAPES, TITLE="An example of a data set of your own")
    return texts


def _coco(data: Annotated) -> str:
    root = data.root
    return _filled(
        COCO,
        COUNT=data.count,
        OBJECTS=data.objects,
        CLASSES=_in_words(data.classes),
        ROOT=_quoted(root.as_posix()),
        FILE=_quoted(data.file.relative_to(root).as_posix()),
        IMAGES=_quoted(data.images.relative_to(root).as_posix()),
        VAL_SIZE=_VAL_SIZE if round(_VAL_SIZE * data.count) else 1,
        IOU_TYPES=f"[{', '.join(data.iou_types)}]",
        # As torchvision does, but for images that are smaller.
        MIN=min(800, data.shorter_side),
        MAX=min(1333, data.longest_side),
    )


def copied() -> dict[str, Path]:
    """The files that are copied, by their relative names."""
    here = Path(__file__).parent
    return {"mine.py": here / "mine.py", "tests/test_mine.py": here / "test_mine.py"}
