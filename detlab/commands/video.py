"""A video as images, one after another, and pictures as a video: by PyAV, which `pip install 'detlab[video]'` brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detlab.errors import UserError


def _av(path: Path) -> Any:
    """PyAV, for a file.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise UserError(f"{path}: a video needs PyAV, which is not installed: pip install 'detlab[video]'") from None
    return av


@dataclass(frozen=True)
class Frame:
    """An image of a video: its number from 0, its time in seconds, and its pixels as they are seen, uint8 `[3, H, W]`."""

    number: int
    seconds: float
    image: Tensor


class Video:
    """The images of a video file.

    Args:
        path: the file.
        every: of so many images one is taken, the first to begin with.

    Raises:
        UserError: PyAV is not installed, or the file holds no video that it can open.
    """

    def __init__(self, path: Path, every: int) -> None:
        av = _av(path)
        self.path, self.every = path, every
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise UserError(f"{path}: has no video.")
                stream = container.streams.video[0]
                self.rate = Fraction(stream.average_rate or 25) / every
                self.count = -(-stream.frames // every)  # 0 where the file does not say
        except av.error.FFmpegError as error:
            raise UserError(f"{path}: cannot be opened as a video: {error.strerror}.") from None

    def __iter__(self) -> Iterator[Frame]:
        """Decode the images that are taken.

        Raises:
            UserError: one cannot be decoded; those before it have been given.
        """
        av = _av(self.path)
        number = 0
        try:
            with av.open(str(self.path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number % self.every == 0:
                        yield Frame(number, float(frame.time or 0), upright(frame))
        except av.error.FFmpegError as error:
            raise UserError(f"{self.path}: image {number + 1} cannot be decoded: {error.strerror}.") from None


def upright(frame: Any) -> Tensor:
    """A decoded frame, uint8 `[3, H, W]`, turned as the file says: a telephone records lying, and notes how it was held."""
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


class Film:
    """A video that is written picture by picture; see `filming`."""

    def __init__(self, av: Any, container: Any, rate: Fraction) -> None:
        self._av, self._container, self._rate, self._stream = av, container, rate, None

    def add(self, picture: Tensor) -> None:
        """Write a picture, uint8 `[3, H, W]`; all of a film are of one size. A side that is odd loses its last line."""
        pixels = picture[:, : picture.shape[1] // 2 * 2, : picture.shape[2] // 2 * 2]
        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=self._rate)
            self._stream.height, self._stream.width = pixels.shape[1:]
            self._stream.pix_fmt = "yuv420p"
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return self._stream is None

    def end(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())


@contextmanager
def filming(path: Path, rate: Fraction) -> Iterator[Film]:
    """A film at `path`, of so many pictures a second; also after Ctrl-C what was added can be watched."""
    av = _av(path)
    with av.open(str(path), "w") as container:
        film = Film(av, container, rate)
        try:
            yield film
        finally:
            film.end()
    if film.empty:
        path.unlink(missing_ok=True)
