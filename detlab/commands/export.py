"""`detlab export`: how does a run's model go where detlab is not?"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from detlab.detector import Detector
    from detlab.exporting.agreement import Agreement

IMAGES = 20  # that a file is verified on


def main(argv: list[str]) -> int:
    """Write a run's model as an ONNX file that was verified, and what it needs to be understood beside it.

    Args:
        argv: the arguments after `detlab export`.

    Returns:
        0; 1 where the file does not agree with detlab's own predictions, and is not kept.

    Raises:
        UserError: no such run or image, a file that is in the way, a package or a form that there is not for this model.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_args(argv)
    _check_packages()
    # Only now: torch takes seconds, which --help should not.
    from detlab.detector import load

    detector = load(arguments.run, device="cpu", threshold=None)
    out: Path = arguments.out or detector.path.with_suffix(".onnx")
    beside = out.with_suffix(".json")
    existing = [path for path in (out, beside) if path.exists()]
    if existing and not arguments.overwrite:
        raise UserError(f"--out: {existing[0]} exists already; name another file, or add --overwrite.")
    if not out.parent.is_dir():
        raise UserError(f"--out: {out.parent} is no folder.")
    return _export(detector, _images(detector, arguments.images), out, beside)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab export",
        description="Writes a run's best model, or any checkpoint's, as an ONNX file (opset 17) for images of any size, and "
        "verifies it in onnxruntime against detlab's own predictions, box by box. The input is uint8 [3, height, width], RGB; the "
        "outputs are boxes (xyxy in pixels of that image), labels (from 1), scores, and masks or keypoints. Class names and "
        "input size lie in the file and in a JSON beside it.",
        epilog="example: detlab export outputs/2026-01-31/12-00-00 --out model.onnx --images photos",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, or a checkpoint file")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="onnx (the default)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default beside the checkpoint, called as it")
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


def _images(detector: Detector, given: Sequence[str] | None) -> list[Tensor]:
    """The images to verify on, uint8 `[3, H, W]`: those given, else of the run's validation part."""
    from detlab.checkpoint import read
    from detlab.commands.sources import find_images
    from detlab.config import build
    from detlab.data.images import read_image
    from detlab.untrusted import saved_config

    if given is not None:
        return [read_image(source.path) for source in find_images(given)[:IMAGES]]
    config = saved_config(read(detector.path)["config"], detector.path)
    try:
        dataset = build(config.dataset, group="dataset", allow=(), part="val")
    except UserError as error:
        raise UserError(
            f"{error}\nThe run's validation images cannot be had; give some to verify on with --images."
        ) from None
    return [dataset[i][0] for i in range(min(IMAGES, len(dataset)))]


def _export(detector: Detector, images: Sequence[Tensor], out: Path, beside: Path) -> int:
    """Export, verify, and only then write; the exit status."""
    import sys

    from detlab import storage
    from detlab.exporting.agreement import limits
    from detlab.exporting.card import card_of, with_card
    from detlab.exporting.graph import onnx_bytes

    content, fields = onnx_bytes(detector.model)
    card = card_of(detector)
    content = with_card(content, card)
    agreement = _verified(detector, images, content, fields, *limits(detector.model))
    if not agreement.holds:
        why = "no object was found in them; give others with --images" if not agreement.objects else str(agreement)
        print(f"detlab: not written, since it is not verified to see what detlab sees: {why}.", file=sys.stderr)
        return 1
    with storage.replacing(out) as file:
        file.write(content)
    storage.write_text(beside, json.dumps(card, indent=1) + "\n")
    print(
        f"{out}: ONNX of opset {card['opset']}, {len(content) / 2**20:.0f} MiB; outputs {', '.join(fields)}; {beside} beside it"
    )
    print(f"verified in onnxruntime on {agreement}")
    return 0


def _verified(
    detector: Detector, images: Sequence[Tensor], content: bytes, fields: Sequence[str], least: float, most: int
) -> Agreement:
    """How an ONNX model's predictions for some images agree with the detector's."""
    import onnxruntime

    from detlab.exporting.agreement import Agreement
    from detlab.exporting.graph import INPUT

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    agreement = Agreement()
    for image in images:
        theirs: Any = session.run(None, {INPUT: image.numpy()})
        ours = detector(image)[0]
        agreement.add(ours, dict(zip(fields, theirs, strict=True)), least=least, most=most)
    return agreement
