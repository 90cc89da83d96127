"""`detlab init`: starts a project of the user's own, with a data set, a model, a recipe and a test that work."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from detlab.errors import UserError
from detlab.untrusted import printable

if TYPE_CHECKING:
    from detlab.commands.annotations import Annotated


def main(argv: list[str]) -> int:
    """Write a project into a new or an empty folder.

    Args:
        argv: the arguments after `detlab init`.

    Returns:
        0.

    Raises:
        UserError: a folder that is not empty, annotations that cannot be read, images that are not found.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_args(argv)
    folder: Path = arguments.folder
    if arguments.images is not None and arguments.annotations is None:
        raise UserError("--images: of which annotations? Give the COCO file before it.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already, and not an empty folder; name another one.")
    data = None
    if arguments.annotations is not None:
        from detlab.commands.annotations import look_at

        data = look_at(arguments.annotations, arguments.images)
    written = _write(folder, data)
    print("\n".join(printable(line) for line in _account(folder, written, data)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab init",
        description="Starts a project: its own conf and experiments, a data set class and a model as examples, a test, and a "
        "README of the next commands. With a COCO file it is set up for that data, else for some that it draws.",
        epilog="example: detlab init animals labels.json --images photos",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new folder, or an empty one")
    parser.add_argument(
        "annotations", metavar="ANNOTATIONS.json", type=Path, nargs="?", help="your objects, in COCO's format"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of their images; by default it is searched beside the file"
    )
    return parser


def _write(folder: Path, data: Annotated | None) -> list[str]:
    """Write all files; gives their relative names."""
    from detlab.commands.project.texts import copied, texts_for

    texts = texts_for(folder.resolve().name, data)
    texts |= {name: source.read_text(encoding="utf-8") for name, source in copied().items()}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(texts)


def _account(folder: Path, written: list[str], data: Annotated | None) -> list[str]:
    """What was found and written, and what to type next."""
    lines = []
    if data is not None:
        classes = (
            f"{len(data.classes)} class(es): {', '.join(data.classes[:8])}{' ...' if len(data.classes) > 8 else ''}"
        )
        lines += [
            f"{data.file}: {data.count} images with {data.objects} objects of {classes}; {', '.join(data.iou_types)}",
            f"{data.images}: all its images are there",
        ]
        if data.faults:
            lines.append(
                f"{data.faults} thing(s) are wrong with the annotations: detlab validate names each; a run refuses them"
            )
    lines += [f"{folder}: {', '.join(written)}", "next, and README.md there has the rest:"]
    # Classes of mine.py are permitted on the command line alone.
    allow = "" if data is not None else " 'allow=[mine]'"
    return [
        *lines,
        f"  cd {shlex.quote(str(folder))}",
        f"  detlab validate dataset=mine{allow}",
        f"  detlab train experiment=first debug=smoke{allow}",
    ]
