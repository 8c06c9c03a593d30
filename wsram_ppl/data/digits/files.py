"""Reads handwritten digits: the sample inside the package, and the four files of MNIST.

Every fault in a file raises an InputError whose one line names the file and says what to do.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import zlib
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsram_ppl.errors import InputError, one_line

__all__ = ["DIGIT_SIZE", "NUM_CLASSES", "Digits", "read_mnist", "read_sample"]

#: Side of a digit, in pixels.
DIGIT_SIZE = 28
#: Labels are 0 to 9.
NUM_CLASSES = 10
MNIST_FILES = {"training": "train", "test": "t10k"}


class Digits(NamedTuple):
    """Digits as stored: images [N, 28, 28] uint8 (0 is black), labels [N] int64, 0..9."""

    images: Tensor
    labels: Tensor

    def part(self, rows: slice) -> Digits:
        """A selection of the digits."""
        return Digits(self.images[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> Digits:
        """The same digits on a device."""
        return Digits(self.images.to(device), self.labels.to(device))


def read_sample() -> tuple[Digits, Digits]:
    """The training and the test digits that come with the package (see DIGITS.md beside them).

    Raises:
        InputError: the file is missing or damaged.
    """
    with resources.as_file(resources.files("wsram_ppl.data.digits") / "digits.npz") as path:
        return read_archive(path)


def read_archive(path: Path) -> tuple[Digits, Digits]:
    """The training and the test digits of a file written by scripts/build_sample.py.

    Raises:
        InputError: the file is missing or damaged.
    """
    advice = "install wsram_ppl again, or build the file with scripts/build_sample.py"
    try:
        # From memory: numpy leaves an invalid file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {
                name: np.asarray(file[name])
                for split in MNIST_FILES
                for name in (f"{split}_images", f"{split}_labels")
            }
    except Exception as error:  # zip, zlib and numpy each raise their own
        raise InputError(f"{path} cannot be read ({one_line(error)}); {advice}") from error
    training, test = (
        _digits(arrays[f"{split}_images"], arrays[f"{split}_labels"], path, path, advice)
        for split in MNIST_FILES
    )
    return training, test


def read_mnist(root: str | os.PathLike[str]) -> tuple[Digits, Digits]:
    """The training and the test digits of MNIST, from the folder of ``torchvision.datasets.MNIST``.

    The files are ``root/MNIST/raw/train-images-idx3-ubyte`` and its three companions, gzipped
    (``.gz``, read first since it contains a checksum) or not; they may also have Kaggle's names
    (``train-images.idx3-ubyte``) and be in ``root/raw`` or in the root itself. They are only read, so
    the folder may be write-protected. Torchvision is needed only if files are missing: it then
    downloads them.

    Raises:
        InputError: a file is missing and cannot be downloaded, or is damaged.
    """
    names = [
        f"{p}-{kind}-ubyte" for p in MNIST_FILES.values() for kind in ("images-idx3", "labels-idx1")
    ]
    top = Path(os.path.expanduser(root))
    # The folder with most of the files; for ties, or if there are none, torchvision's.
    raw = max(
        (top, top / "raw", top / "MNIST" / "raw"),
        key=lambda each: (sum(_find(each, n) is not None for n in names), _is_torchvisions(each)),
    )
    if any(_find(raw, name) is None for name in names):
        _download(raw, names)
    training, test = (_read_split(raw, prefix) for prefix in MNIST_FILES.values())
    return training, test


def _read_split(raw: Path, prefix: str) -> Digits:
    images = _require(raw, f"{prefix}-images-idx3-ubyte")
    labels = _require(raw, f"{prefix}-labels-idx1-ubyte")
    return _digits(_read_idx(images, 3), _read_idx(labels, 1), images, labels, _advice(raw, "there"))


def _read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array of bytes in an IDX file: two zeros, type 8, the number of dimensions, the sizes
    (big-endian, 32 bits each), then the bytes themselves, the last index running fastest."""
    advice = _advice(path.parent, f"of {path.name} there")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}); {advice}") from error
    start = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if len(content) < start or content[:4] != magic:
        raise InputError(
            f"{path} is not an IDX file of bytes in {dimensions} dimension(s): it starts with "
            f"0x{content[:4].hex()}, not 0x{magic.hex()}; {advice}"
        )
    sizes = [int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4)]
    expected = start + math.prod(sizes)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        raise InputError(
            f"{path} is {fault}: {len(content):,} bytes where its header promises {expected:,}; {advice}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _digits(
    images: npt.NDArray[Any], labels: npt.NDArray[Any], image_path: Path, label_path: Path, advice: str
) -> Digits:
    """Checks the two arrays of a split and converts them to tensors."""
    fault = ""
    path = image_path
    if images.dtype != np.uint8 or images.shape[1:] != (DIGIT_SIZE, DIGIT_SIZE):
        size = " x ".join(map(str, images.shape[1:]))
        fault = f"holds {images.dtype} images of {size}, not uint8 of {DIGIT_SIZE} x {DIGIT_SIZE}"
    elif len(images) == 0:
        fault = "holds no digits"
    elif labels.shape != images.shape[:1]:
        path = label_path
        fault = f"holds {labels.size:,} labels for {len(images):,} images"
    elif labels.dtype != np.uint8:
        path = label_path
        fault = f"holds {labels.dtype} labels, not uint8"
    elif labels.max() >= NUM_CLASSES:
        path = label_path
        wrong = int(np.argmax(labels >= NUM_CLASSES))
        fault = f"has label {labels[wrong]} at position {wrong:,}, outside 0..{NUM_CLASSES - 1}"
    if fault:
        raise InputError(f"{path} {fault}; {advice}")
    # Copies: torch needs writable memory.
    return Digits(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))


def _find(raw: Path, name: str) -> Path | None:
    for each in (name, name.replace("-idx", ".idx")):
        for path in (raw / f"{each}.gz", raw / each):
            if os.path.isfile(path):  # unlike Path.is_file, False without permission
                return path
    return None


def _require(raw: Path, name: str) -> Path:
    path = _find(raw, name)
    if path is None:
        raise InputError(f"no {name}.gz in {raw}, even after a download; put the file there")
    return path


def _download(raw: Path, names: list[str]) -> None:
    """Lets torchvision download missing files; existing ones are left alone."""
    missing = [f"{name}.gz" for name in names if _find(raw, name) is None]
    expected = f"no {', '.join(missing)} in {raw}"
    if not _is_torchvisions(raw):
        raise InputError(f"{expected}, where the others are; put the missing files of MNIST there")
    try:
        from torchvision.datasets import MNIST
    except Exception as error:  # a torchvision that does not match torch may raise anything
        raise InputError(
            f"{expected}; put the files of MNIST there, or have them downloaded by torchvision, "
            f"which cannot be imported ({one_line(error)}): pip install torchvision"
        ) from error
    made = [path for path in (raw, *raw.parents) if not os.path.exists(path)]
    try:
        MNIST(str(raw.parent.parent), download=True)
    except Exception as error:
        for path in made:
            with contextlib.suppress(OSError, ValueError):  # removes only folders that are still empty
                path.rmdir()
        raise InputError(
            f"{expected}, and downloading failed ({one_line(error)}); put the files of MNIST there"
        ) from error


def _is_torchvisions(raw: Path) -> bool:
    """Whether torchvision would download into this folder."""
    return Path(os.path.abspath(raw)).parts[-2:] == ("MNIST", "raw")


def _advice(raw: Path, copy: str) -> str:
    again = " (or let it be downloaded again)" if _is_torchvisions(raw) else ""
    return f"delete it and put a good copy {copy}{again}"
