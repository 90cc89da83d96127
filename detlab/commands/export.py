"""`detlab export`: how does a run's model go where detlab is not?"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import runpy
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from detlab.detector import Detector
    from detlab.exporting.agreement import Agreement

    # What a file's model gives for one image, uint8 `[3, H, W]`: `boxes`, `labels`, `scores`, and more; tensors or arrays.
    Model = Callable[[Tensor], Mapping[str, Any]]

ITS_WEIGHTS = 'Path(__file__).with_suffix(".pth")'  # as the script names the file beside it
IMAGES = 20  # that a file is verified on
SUFFIXES = {"onnx": ".onnx", "state_dict": ".pth"}


def main(argv: list[str]) -> int:
    """Write a run's model in a form that others read, verified, and what it needs to be understood beside it.

    Args:
        argv: the arguments after `detlab export`.

    Returns:
        0; 1 where the file does not agree with detlab's own predictions, and is not kept.

    Raises:
        UserError: no such run or image, a file that is in the way, a package or a form that there is not for this model.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_args(argv)
    if arguments.format not in SUFFIXES:
        raise UserError(
            "--format torch_export: torch.export stops inside torchvision's detectors, where batched_nms asks whether there are "
            "any boxes.\nTake onnx, or state_dict."
        )
    if arguments.format == "onnx":
        _check_packages()
    # Only now: torch takes seconds, which --help should not.
    from detlab.checkpoint import operating_of, read
    from detlab.detector import load
    from detlab.exporting.card import card_of
    from detlab.untrusted import saved_config

    detector = load(arguments.run, device="cpu", threshold=None)
    files = _files(arguments.out, detector.path, arguments.format)
    _refuse(files, overwrite=arguments.overwrite)
    state = read(detector.path)
    config = saved_config(state["config"], detector.path)
    form = _Onnx(detector) if arguments.format == "onnx" else _StateDict(detector, config)
    form.card = card_of(detector, operating_of(state, detector.path))
    return _export(form, detector, _images(detector, config, arguments.images), files)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab export",
        description="Writes a run's best model, or any checkpoint's, for where detlab is not, verified against detlab's own "
        "predictions, object by object. onnx: a file of opset 17 for images of any size; its input is uint8 [3, height, width], "
        "RGB, its outputs are boxes (xyxy in pixels of that image), labels (from 1), scores, and masks or keypoints; it is run in "
        "onnxruntime. state_dict: weights for torchvision's own modules, and a short script beside them that needs torch and "
        "torchvision alone. Class names, thresholds and input size lie in a JSON beside either, and in the ONNX file.",
        epilog="example: detlab export outputs/2026-01-31/12-00-00 --out model.onnx --images photos",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, or a checkpoint file")
    parser.add_argument(
        "--format",
        choices=[*SUFFIXES, "torch_export"],
        default="onnx",
        help="onnx (the default), state_dict; torch_export says why not",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="NAME.onnx or NAME.pth; by default beside the checkpoint, called as it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files where they exist")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help=f"files, folders or patterns, of which the first {IMAGES} images are verified; by default those of the run's "
        "validation part",
    )
    return parser


def _check_packages() -> None:
    """Refuse before any work what needs packages that are not here."""
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(
            f"--format onnx: needs {', '.join(lacking)}, not installed here.\nInstall it: pip install 'detlab[onnx]'"
        )


def _files(out: Path | None, checkpoint: Path, form: str) -> list[Path]:
    """What will be written: the model, the JSON, and for a state dict the script."""
    suffix = SUFFIXES[form]
    model = out if out is not None else checkpoint.with_suffix(suffix)
    if model.suffix != suffix:
        raise UserError(f"--out: {model} is not allowed for --format {form}; its name must end in {suffix}.")
    card = model.with_name(f"{model.name}.json")
    return [model, card] if form == "onnx" else [model, card, model.with_suffix(".py")]


def _refuse(files: Sequence[Path], *, overwrite: bool) -> None:
    existing = [path for path in files if path.exists()]
    if existing and not overwrite:
        raise UserError(f"--out: {existing[0]} exists already; name another file, or add --overwrite.")
    if not files[0].parent.is_dir():
        raise UserError(f"--out: {files[0].parent} is no folder.")


def _images(detector: Detector, config: DictConfig, given: Sequence[str] | None) -> list[Tensor]:
    """The images to verify on, uint8 `[3, H, W]`: those given, else of the run's validation part."""
    from detlab.commands.sources import find_images
    from detlab.config import build
    from detlab.data.images import read_image

    if given is not None:
        return [read_image(source.path) for source in find_images(given)[:IMAGES]]
    try:
        dataset = build(config.dataset, group="dataset", allow=(), part="val")
    except UserError as error:
        raise UserError(
            f"{error}\nThe run's validation images cannot be had; give some to verify on with --images."
        ) from None
    return [dataset[i][0] for i in range(min(IMAGES, len(dataset)))]


class _Onnx:
    """A model as an ONNX file."""

    where = "onnxruntime"
    loader = ""
    card: dict[str, Any]

    def __init__(self, detector: Detector) -> None:
        from detlab.exporting.graph import onnx_bytes

        self.content, self.fields = onnx_bytes(detector.model)

    def contents(self) -> list[bytes]:
        """Of the files, in their order."""
        from detlab.exporting.card import with_card
        from detlab.exporting.graph import OPSET

        self.card = {"opset": OPSET, **self.card}
        return [with_card(self.content, self.card), _json(self.card)]

    def opened(self, contents: Sequence[bytes]) -> Model:
        """What the files' model does."""
        import onnxruntime
        import torch

        from detlab.exporting.graph import INPUT

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(contents[0], options, providers=["CPUExecutionProvider"])
        return lambda image: dict(zip(self.fields, session.run(None, {INPUT: image.numpy()}), strict=True))

    def __str__(self) -> str:
        return f"ONNX of opset {self.card['opset']}, outputs {', '.join(self.fields)}"


class _StateDict:
    """A model's weights, and the script that builds torchvision's modules for them."""

    where = "torchvision's modules alone"
    card: dict[str, Any]

    def __init__(self, detector: Detector, config: DictConfig) -> None:
        from detlab.exporting.plain import script_of

        self.script, self.loader = script_of(detector, config)
        self.weights = detector.model.state_dict()

    def contents(self) -> list[bytes]:
        """Of the files, in their order."""
        import torch

        file = io.BytesIO()
        torch.save(self.weights, file)
        return [file.getvalue(), _json(self.card), self.script.encode()]

    def opened(self, contents: Sequence[bytes]) -> Model:
        """What the files' model does."""
        with tempfile.TemporaryDirectory() as folder:
            weights, script = Path(folder, "model.pth"), Path(folder, "model.py")
            weights.write_bytes(contents[0])
            script.write_bytes(contents[2])
            return runpy.run_path(str(script))["detect"]

    def __str__(self) -> str:
        return f"a state dict of {len(self.weights)} tensors under torchvision's names"


def _json(card: Mapping[str, Any]) -> bytes:
    return (json.dumps(card, indent=1) + "\n").encode()


def _export(form: _Onnx | _StateDict, detector: Detector, images: Sequence[Tensor], files: Sequence[Path]) -> int:
    """Verify, and only then write; the exit status."""
    from detlab import storage

    contents = form.contents()
    agreement = _agreement(detector, form.opened(contents), images)
    if not agreement.holds:
        why = "no object was found in them; give others with --images" if not agreement.objects else str(agreement)
        print(f"detlab: not written, since it is not verified to see what detlab sees: {why}.", file=sys.stderr)
        return 1
    for path, content in zip(files, contents, strict=True):
        with storage.replacing(path) as file:
            file.write(content)
    beside = " and ".join(str(path) for path in files[1:])
    print(f"{files[0]}: {form}, {len(contents[0]) / 2**20:.0f} MiB; beside it {beside}")
    print(f"verified in {form.where} on {agreement}")
    if form.loader:
        loader = form.loader.replace(ITS_WEIGHTS, repr(str(files[0])))
        print(f"what loads it, and with its imports {files[-1]}:\n\n{textwrap.indent(loader.strip(), '    ')}")
    return 0


def _agreement(detector: Detector, theirs: Model, images: Sequence[Tensor]) -> Agreement:
    """How an exported model's predictions for some images agree with the detector's."""
    from detlab.exporting.agreement import Agreement, limits

    agreement, limited = Agreement(), limits(detector.model)
    for image in images:
        agreement.add(detector(image)[0], theirs(image), **limited)
    return agreement
