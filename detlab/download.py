"""Files from the web: fetched once for all processes, verified each time, unpacked without writing elsewhere."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PureWindowsPath
from urllib.error import HTTPError, URLError

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from detlab import __version__
from detlab.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds in which a server must answer, and say more
PAUSES = (1.0, 2.0, 4.0)  # seconds before a download that was cut off is tried again, once for each
SECONDS_A_LINE = 5.0  # between the lines that stand for a progress bar
CHUNK = 2**18  # bytes


def cache_folder() -> Path:
    """Where downloads are kept: DETLAB_CACHE, else `detlab` in the platform's folder for caches."""
    if own := os.environ.get("DETLAB_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "detlab"


@dataclass(frozen=True)
class Checksum:
    """What a file's content must hash to.

    Args:
        algorithm: a name that hashlib knows, such as `md5` or `sha256`.
        digest: hexadecimal digits: all of them, or the first 8 or more, as in the names of torchvision's weights
            (`resnet50-0676ba61.pth` has the beginning of its sha256).

    Raises:
        UserError: `digest` is not that.
    """

    algorithm: str
    digest: str

    def __post_init__(self) -> None:
        length = 2 * hashlib.new(self.algorithm, usedforsecurity=False).digest_size
        if not re.fullmatch(rf"[0-9a-fA-F]{{8,{length}}}", str(self.digest)):
            allowed = f"its {length} hexadecimal digits, or the first 8 or more"
            raise UserError(f"{self.algorithm}: {self.digest!r} is not allowed; allowed: {allowed}.")

    def of(self, path: Path) -> str:
        """The digest that a file has, in as many digits as `digest`."""
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.new(self.algorithm, usedforsecurity=False))
        return found.hexdigest()[: len(self.digest)]

    def fits(self, path: Path) -> bool:
        """Whether a file's content has this digest."""
        return self.of(path) == self.digest.lower()


def fetch(url: str, path: Path, *, checksum: Checksum, by_hand: str) -> Path:
    """A file from the web, downloaded to `path` where it is not there yet; its checksum is verified each time.

    What has come so far lies beside it in `NAME.part`, from which the next try, or the next run, goes on. Of several
    processes one downloads, the others wait. Does what torch.hub.download_url_to_file does, which neither resumes nor
    verifies what is there already.

    Args:
        url: http or https.
        path: where the file is kept; its folder is created.
        checksum: of the whole file.
        by_hand: what else the user may do, as the end of a sentence "..., or {by_hand}."

    Returns:
        `path`.

    Raises:
        UserError: it cannot be downloaded, what came or what is there has another checksum, the folder cannot be written.
        OSError: with the file's name: the disk is full, or the like.
    """
    if not str(url).lower().startswith(("http://", "https://")):
        raise UserError(f"{url!r}: not an address that is downloaded from; allowed: http://... and https://...")
    if not path.exists():
        with _alone(path):
            if not path.exists():  # else another process has downloaded it meanwhile
                part = path.with_name(f"{path.name}.part")
                log.info("downloading %s to %s", url, path)
                try:
                    _download_verified(url, part, checksum)
                except _Failed as failure:
                    raise UserError(f"{url}: {failure}.\nPut the file at {path} by hand, or {by_hand}.") from None
                part.replace(path)
                return path
    if not checksum.fits(path):
        raise UserError(
            f"{path}: damaged, or another file: its {checksum.algorithm} is {checksum.of(path)}, not {checksum.digest}.\n"
            f"Delete it, and it is downloaded again from {url}; or {by_hand}."
        )
    return path


def extract(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> Path:
    """A zip's content as `folder`, which is there whole or not at all; a folder that is there already is left as it is.

    An archive that holds one top folder, called like `folder`, becomes that folder, not one within it.

    Args:
        archive: the zip.
        folder: what it becomes; of several processes one extracts, the others wait.
        max_bytes: of the files in all, counted as they are written, since an archive's header may lie.
        max_files: entries, folders included.

    Returns:
        `folder`.

    Raises:
        UserError: no zip, damaged, larger than allowed, or with an entry that would be written elsewhere, stands in it
            twice, or is a link; nothing is left of it then.
        OSError: with the folder's name: the disk is full, or the like.
    """
    if folder.is_dir():
        return folder
    with _alone(folder):
        if folder.is_dir():  # another process has extracted it meanwhile
            return folder
        unfinished = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        log.info("extracting %s to %s", archive, folder)
        try:
            with _named(folder):
                unfinished.mkdir()
                _unpack(archive, unfinished, max_bytes, max_files)
            top = unfinished / folder.name
            content = top if top.is_dir() and list(unfinished.iterdir()) == [top] else unfinished
            content.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


class _Failed(Exception):
    """Why a download failed, in words that follow its address.

    Args:
        said: the words.
        passing: it may go better after a pause.
    """

    def __init__(self, said: str, *, passing: bool = False) -> None:
        super().__init__(" ".join(said.split()))  # urllib's words on redirects fill three lines
        self.passing = passing


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of all processes that want to make `path`, let in one at a time."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process, which makes %s", path)
            lock.acquire()
    except OSError as error:
        advice = "; set DETLAB_CACHE to a folder that can be" if path.is_relative_to(cache_folder()) else ""
        raise UserError(f"{path.parent}: cannot be written ({error.strerror}){advice}.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give the system's errors in writing the name that they lack."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _download_verified(url: str, part: Path, checksum: Checksum) -> None:
    """Download to `part` what fits the checksum; what was put together from pieces and does not fit, once more whole."""
    in_pieces = _download(url, part)
    if in_pieces and not checksum.fits(part):
        log.warning("%s: the pieces that came do not fit together; downloading it once more", url)
        part.unlink()
        _download(url, part)
    if not checksum.fits(part):
        found, size = checksum.of(part), part.stat().st_size
        part.unlink()
        raise _Failed(f"the {size} bytes that came have the {checksum.algorithm} {found}, not {checksum.digest}")


def _download(url: str, part: Path) -> bool:
    """Download to `part`, going on with what is there, in several tries. Whether earlier bytes were kept."""
    for pause in PAUSES:
        try:
            return _receive(url, part)
        except _Failed as failure:
            if not failure.passing:
                raise
            log.warning("%s: %s; trying again in %g s", url, failure, pause)
        time.sleep(pause)
    return _receive(url, part)


def _receive(url: str, part: Path) -> bool:
    """Append to `part` what it lacks, or write it anew. Whether earlier bytes were kept."""
    response, start, total = _open(url, part.stat().st_size if part.exists() else 0)
    done = start
    name = part.name.removesuffix(".part")
    with response, _named(part), part.open("ab" if start else "wb") as file, _shown(name, start, total) as show:
        while total is None or done < total:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, HTTPException) as error:
                raise _Failed(f"cut off after {_of(done, total)} ({error})", passing=True) from error
            if not chunk and total is not None:
                raise _Failed(f"cut off after {_of(done, total)}", passing=True)
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            show(done)
    if total is not None and done > total:
        raise _Failed(f"the server sent {done} bytes, but had announced {total}")
    return start > 0


def _open(url: str, have: int) -> tuple[HTTPResponse, int, int | None]:
    """Ask for a file from byte `have` on: the answer, the byte at which it starts, the whole file's bytes where told.

    Raises:
        _Failed: no server, or none that gives the file.
    """
    opener = urllib.request.OpenerDirector()
    # HTTP alone, wherever redirects lead: urllib's own opener reads files and FTP too.
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    headers = {"User-Agent": f"detlab/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response: HTTPResponse = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if have and error.code == 416:  # the server's file ends before
            return _open(url, 0)
        raise _Failed(
            f"the server answers {error.code} {error.reason}", passing=error.code == 429 or error.code >= 500
        ) from error
    except URLError as error:
        # What has been reached once will be again.
        raise _Failed(f"cannot be reached ({error.reason})", passing=have > 0) from error
    except (OSError, HTTPException) as error:
        raise _Failed(f"no answer ({error})", passing=True) from error
    except ValueError as error:
        raise _Failed(f"not an address ({error})") from error
    if response.status == 200:
        return response, 0, response.length
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
    if response.status == 206 and have and found and int(found[1]) == have:
        return response, have, int(found[2])
    response.close()
    if have:
        return _open(url, 0)
    raise _Failed(f"the server answers {response.status} {response.reason}")


def _of(done: int, total: int | None) -> str:
    return f"{done / 1e6:.1f} MB" if total is None else f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"


@contextmanager
def _shown(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far a download is, a bar on a terminal and a line now and then elsewhere; gives what is told its bytes."""
    if not sys.stderr.isatty():
        said = time.monotonic()

        def say(done: int) -> None:
            nonlocal said
            if time.monotonic() - said >= SECONDS_A_LINE:
                said = time.monotonic()
                log.info("%s: %s", name, _of(done, total))

        yield say
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(text, *columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=total, completed=start)
        yield lambda done: progress.update(task, completed=done)


def _unpack(archive: Path, folder: Path, max_bytes: int, max_files: int) -> None:
    """Write the entries of a zip into an empty folder."""
    try:
        source = zipfile.ZipFile(archive)
    except Exception as error:  # a damaged archive raises whatever its reader stumbles over
        raise UserError(f"{archive}: not a zip, or cut off ({error}).") from None
    with source:
        entries = source.infolist()
        if len(entries) > max_files:
            raise UserError(f"{archive}: holds {len(entries)} entries; not extracted, since {max_files} are the most.")
        for entry in entries:
            if refusal := _refusal(entry):
                raise UserError(f"{archive}: not extracted, since its entry {entry.orig_filename!r} {refusal}.")
        room = max_bytes
        for entry in entries:
            room -= _write(source, entry, folder, room, f"{archive}: not extracted, since its entry {entry.filename!r}")


def _write(source: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, room: int, where: str) -> int:
    """Write one entry below `folder`, if it has no more bytes than `room`; the bytes written."""
    target = folder / entry.filename
    try:
        (target if entry.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
        if entry.is_dir():
            return 0
        file = target.open("xb")
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{where} stands in it twice, or is file and folder both.") from None
    written = 0
    with file:
        for chunk in _content(source, entry, where):
            written += len(chunk)
            if written > room:
                raise UserError(f"{where} has more bytes than the {room} that are left of those allowed.")
            file.write(chunk)
    return written


def _content(source: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> Iterator[bytes]:
    try:
        with source.open(entry) as content:
            while chunk := content.read(CHUNK):
                yield chunk
    except Exception as error:  # a damaged archive raises whatever its reader stumbles over
        raise UserError(f"{where} is damaged, or encrypted ({error}).") from None


def _refusal(entry: zipfile.ZipInfo) -> str | None:
    """Why an entry must not be written, as the end of a sentence; None where it may be."""
    name = entry.orig_filename
    # By the rules of Windows, which know drives and both slashes: a zip refused there is refused everywhere.
    path = PureWindowsPath(name)
    if path.drive or path.root or ".." in path.parts:
        return "leads out of its folder"
    if "\\" in name or "\0" in name:
        return "has a backslash or a null in its name"
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    return None
