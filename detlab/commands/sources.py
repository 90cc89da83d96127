"""Which images does a command line name, and what are they called?"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detlab.commands.score import read_json
from detlab.data.folders import SUFFIXES
from detlab.errors import UserError

# What `detlab predict` writes beside its pictures, by which its folders are known: COCO results, and the images that they are of.
RESULTS, INDEX = "predictions.json", "images.json"
TABLE = "predictions.csv"  # the same for a spreadsheet, where it is asked for
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


@dataclass(frozen=True)
class Source:
    """An image to be looked at: its file, its name in the results, its id, and what the ground truth says of its size."""

    path: Path
    name: str  # relative, with forward slashes
    image_id: int
    size: tuple[int, int] | None = None  # height, width in pixels; None where nobody has said

    @property
    def picture(self) -> str:
        """The relative name of its picture: its own, with .png behind it where it is neither PNG nor JPEG."""
        return self.name if self.name.lower().endswith((".png", ".jpg", ".jpeg")) else f"{self.name}.png"


def film_of(video: Path) -> str:
    """The name of the film that shows what is seen in a video."""
    return f"{video.stem}.mp4"


def videos_apart(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The video files that a command line names, each once, and the words of it without them; folders are not searched for videos.

    Raises:
        UserError: two videos of one name, whose films would overwrite each other.
    """
    videos, rest = dict[Path, None](), list[str]()
    for text in given:
        paths = _expanded(text)
        here = [path for path in paths if path.is_file() and path.suffix.lower() in VIDEOS]
        videos |= dict.fromkeys(here)
        rest += [str(path) for path in paths if path not in here] if here else [text]
    first: dict[str, Path] = {}
    for video in videos:
        if first.setdefault(film_of(video), video) != video:
            raise UserError(
                f"{video}: its film would be called {film_of(video)}, and so would that of {first[film_of(video)]}; predict one of "
                "them apart."
            )
    return list(videos), rest


def find_images(given: Sequence[str]) -> list[Source]:
    """The images that files, folders and patterns name, each once, in the order of their names, with ids from 1.

    An image's name is its path below the folder that all of them share, so that no two are the same. Hidden files and folders, and
    what `detlab predict` wrote itself, are passed over in folders.

    Raises:
        UserError: something that is not there, or holds no image; a line for each.
    """
    faults, roots, found = [], [], dict[Path, None]()
    for text in given:
        paths = _expanded(text)
        if not paths:
            faults.append(
                f"{text}: no such file or folder." if not glob.has_magic(text) else f"{text}: matches no file."
            )
        for path in paths:
            images = _images_below(path) if path.is_dir() else [path]
            if not images:
                faults.append(f"{path}: a folder without images; they end in {', '.join(SUFFIXES)}.")
            # Not resolved: a link is called by its own name.
            found |= dict.fromkeys(Path(os.path.abspath(image)) for image in images)
            roots.append(os.path.abspath(path if path.is_dir() else path.parent))
    if faults:
        raise UserError("\n".join(faults))
    root = os.path.commonpath(roots)
    named = sorted((path.relative_to(root).as_posix(), path) for path in found)
    sources = [Source(path, name, i) for i, (name, path) in enumerate(named, start=1)]
    _refuse_equal_pictures(sources)
    return sources


def _expanded(text: str) -> list[Path]:
    """What a word of the command line names; patterns are expanded for shells that do not."""
    path = Path(text).expanduser()
    return [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]


def _images_below(folder: Path) -> list[Path]:
    """The images in a folder and the folders below it."""
    images = []
    for place, folders, files in os.walk(folder):
        if Path(place) != folder and RESULTS in files and INDEX in files:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [Path(place, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return images


def _refuse_equal_pictures(sources: Sequence[Source]) -> None:
    """Two images of one picture's name (`a.tif` and `a.tif.png`) would overwrite each other."""
    seen: dict[str, Source] = {}
    for source in sources:
        if source.picture in seen:
            raise UserError(
                f"{source.path}: its picture would be called {source.picture}, and so would that of {seen[source.picture].path}; "
                "predict one of them apart."
            )
        seen[source.picture] = source


def as_in_ground_truth(sources: Sequence[Source], path: Path) -> tuple[list[Source], list[dict[str, Any]]]:
    """The images with the ids that a COCO file gives them, and the file's categories.

    Raises:
        UserError: no COCO file, an image that it does not list, or two that it lists as one.
    """
    said = "a COCO ground truth is an object with images (id, file_name) and categories (id, name)"
    content = read_json(path, dict, said)
    try:
        by_name = {str(image["file_name"]): image for image in content["images"]}
        ids = [int(image["id"]) for image in content["images"]]
        categories = [{"id": int(c["id"]), "name": str(c["name"])} for c in content["categories"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {type(error).__name__} {error}; {said}.") from None
    if len(by_name) != len(ids):
        raise UserError(f"{path}: a file_name stands twice among its images; an image's id could not be told.")
    listed = {source: _listed_name(source.path, by_name) for source in sources}
    unknown = [str(source.path) for source, name in listed.items() if name is None]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(f"{unknown[0]}{more}: not in {path}, whose images are listed by file_name.")
    first: dict[str | None, Source] = {}
    for source, name in listed.items():
        if name in first:
            raise UserError(f"{source.path}: is {name!r} in {path}, and so is {first[name].path}; predict one of them.")
        first[name] = source
    images = [(source, by_name[str(name)]) for source, name in listed.items()]
    return [Source(s.path, s.name, int(image["id"]), _size_of(image)) for s, image in images], categories


def _listed_name(path: Path, names: Mapping[str, Any]) -> str | None:
    """The longest of the names that is the end of a path."""
    ends = (path.as_posix(), *("/".join(path.parts[i:]) for i in range(1, len(path.parts))))
    return next((end for end in ends if end in names), None)


def _size_of(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in pixels as a COCO file says, where it does."""
    return (int(image["height"]), int(image["width"])) if "height" in image and "width" in image else None
