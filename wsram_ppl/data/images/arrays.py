"""Arrays of images and labels, in a file or memory-mapped from a folder, as a data source."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from wsram_ppl.data.epochs import Rows, check_whole
from wsram_ppl.data.images.files import read_files
from wsram_ppl.data.images.fitting import Fit, describe_fit, fit_images
from wsram_ppl.data.images.source import LabelledImages, count_of, listed
from wsram_ppl.data.images.splitting import SPLIT_NAMES
from wsram_ppl.errors import InputError, one_line

__all__ = ["ArrayImages"]

Array = npt.NDArray[Any]

#: The most channels that an image may have; other dimensions are taken to be larger.
_CHANNELS: Final = 4
_CHUNK: Final = 1024
#: Beyond it, floats do not hold every whole number.
_EXACT: Final = 2.0**53

_ADVICE: Final = (
    "save images [N, height, width] or [N, height, width, channels] and labels [N] with "
    "numpy.savez(FILE, images=images, labels=labels)"
)


class ArrayImages(LabelledImages):
    """Images and labels in arrays: an .npz file, or a folder with images.npy and labels.npy.

    Arrays in a folder are memory-mapped and may be larger than memory. Both may have splits:
    ``train_images`` and ``train_labels``, ``validation_...`` (or ``val_...``) and ``test_...`` in a
    file, and folders of these names with both arrays in a folder. They may be of different dtypes.

    Images are [N, height, width], [N, height, width, channels] or [N, channels, height, width], of uint8
    from 0 to 255, or of floats from 0 to 1. Labels are whole numbers or texts; each distinct one is a
    class. An array ``classes`` names the labels from 0 on.

    Args:
        path: the file or the folder.
        canvas: side of the square that images are fitted into, in pixels; 0: they are unchanged.
        fit: "resize" to the canvas, or "pad", which only shrinks larger images; aspect ratios are kept.
        split_seed: seed of the split, if there is none, and of the order of held-out images.
        held_out: fraction of the images drawn for validation, and for test, if there is no
            split.

    Raises:
        InputError: the arrays are missing or not usable, or an option is out of range.
    """

    def __init__(
        self,
        *,
        path: str | Path = "",
        canvas: NonNegativeInt = 0,
        fit: Fit = "resize",
        split_seed: NonNegativeInt = 0,
        held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.1,
    ) -> None:
        if not os.fspath(path).strip():
            raise InputError("path is empty; name the file or folder of arrays: --set data.path=PATH")
        check_whole("canvas", canvas, at_least=0)
        place = os.path.expanduser(path)
        parts, names, unused = _read_folder(place) if os.path.isdir(place) else _read_file(place)
        if len({part.images.shape[1:] for part in parts}) > 1:
            shapes = " and ".join(str(part.images.shape) for part in parts)
            raise InputError(f"the splits of {place} hold images of different shapes: {shapes}")
        usable = [np.flatnonzero(part.usable) for part in parts]
        self._arrays = [part.images for part in parts]
        alike = len({images.dtype for images in self._arrays}) == 1
        self._dtype = self._arrays[0].dtype if alike else np.dtype(np.float32)
        # The position of each image that is used.
        self._part = np.repeat(np.arange(len(parts)), [len(rows) for rows in usable])
        self._row = np.concatenate(usable)
        values = [part.labels[rows] for part, rows in zip(parts, usable, strict=True)]
        labels, classes = _classes(values, names, place)
        self.canvas, self._fit = canvas, fit
        channels, *size = parts[0].images.shape[1:]
        sizes = f"{size[0]} x {size[1]} pixels" + (
            f", {channels} channels" if channels > 1 else ", grey"
        )
        notices = [f"{count_of(len(labels), 'image')} of {sizes}, and of {listed(classes)}"]
        if lost := sum(len(part.usable) for part in parts) - len(labels):
            notices.append(f"{count_of(lost, 'image')} left out: pixels or label are not finite")
        if unused:
            notices.append(f"arrays not used: {', '.join(unused)}")
        if canvas:
            notices.append(f"images are {describe_fit(canvas, fit)}")
        super().__init__(
            labels,
            {part.split: np.flatnonzero(self._part == n) for n, part in enumerate(parts) if part.split},
            classes,
            channels=channels,
            split_seed=split_seed,
            held_out=held_out,
            notices=notices,
        )
        self.record["image_size"] = [canvas, canvas] if canvas else size

    @classmethod
    def read_pictures(
        cls, files: Sequence[str], options: Mapping[str, Any], record: Mapping[str, Any]
    ) -> tuple[Tensor, list[str]]:
        """Pictures from files, in the size of the arrays' images.

        Raises:
            InputError: a file is not a picture, or the images are not pictures.
        """
        given = {**(cls.__init__.__kwdefaults__ or {}), **options}
        height, width = record["image_size"]
        return read_files(files, record["channels"], (height, width), given["fit"])

    def _read_for_training(self, chosen: Rows) -> Tensor:
        part, row = self._part[chosen], self._row[chosen]
        pixels = np.empty((len(chosen), *self._arrays[0].shape[1:]), self._dtype)
        for number in np.unique(part):
            of_part = part == number
            values = self._arrays[number][row[of_part]]
            if values.dtype == np.uint8 and self._dtype != np.uint8:
                values = values / np.float32(255)
            pixels[of_part] = values
        images = torch.from_numpy(pixels)
        if images.dtype == torch.bool:
            images = images.float()
        elif images.dtype != torch.uint8:
            images = images.to(torch.float32)
        if self.canvas:
            if images.dtype == torch.uint8:
                images = images.float().mul_(1 / 255)
            images = fit_images(images, self.canvas, self._fit)
        return images.squeeze(1) if self.channels == 1 else images

    def _identity(self, chosen: Rows) -> Iterator[bytes]:
        """A few images represent all: there may be too many to read."""
        some = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), 64)).astype(np.int64)]
        for part, row in zip(self._part[some], self._row[some], strict=True):
            yield self._arrays[part][row].tobytes()


class _Part(NamedTuple):
    """The images and labels of a split, checked.

    Attributes:
        split: its name; "" for images that are not split yet.
        images: [N, channels, height, width].
        labels: [N], whole numbers or texts.
        usable: [N], whether pixels and label are finite.
    """

    split: str
    images: Array
    labels: Array
    usable: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, split: str, images: Array, labels: Array, where: str) -> _Part:
        """From the stored arrays.

        Args:
            where: their location, for messages.

        Raises:
            InputError: they are not images and labels.
        """
        labels, has_label = _checked_labels(labels, where)
        images = _with_channels(images, where)
        if len(images) != len(labels):
            raise InputError(f"{where} holds {len(labels):,} labels for {len(images):,} images")
        if not len(images):
            raise InputError(f"{where} holds no images")
        return cls(split, images, labels, has_label & _checked_pixels(images, where))


def _with_channels(images: Array, where: str) -> Array:
    """``[N, channels, height, width]``, a view."""
    shape = images.shape
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        last, second = shape[3] <= _CHANNELS, shape[1] <= _CHANNELS
        if last and second and shape[1] != shape[3]:
            raise InputError(
                f"{where} holds images of shape {shape}: which dimension holds the channels is not "
                "clear; save them as [N, height, width] or with larger images"
            )
        if last or second:
            return np.moveaxis(images, 3, 1) if last else images
    raise InputError(
        f"{where} holds images of shape {shape}, not [N, height, width], or with 1 to {_CHANNELS} "
        "channels as last or second dimension"
    )


def _checked_pixels(images: Array, where: str) -> npt.NDArray[np.bool_]:
    """Whether all pixels of each image are finite."""
    kind, advice = images.dtype.kind, "save them as uint8 from 0 to 255, or as floats from 0 to 1"
    chunks = range(0, len(images), _CHUNK)  # they may not fit into memory
    if images.dtype == np.uint8 and all(images[n : n + _CHUNK].max() <= 1 for n in chunks):
        raise InputError(f"{where} holds uint8 images with nothing above 1, which is black: {advice}")
    if images.dtype == np.uint8 or kind == "b":
        return np.ones(len(images), bool)
    if kind != "f":
        raise InputError(f"{where} holds images of {images.dtype}: {advice}")
    finite = np.ones(len(images), bool)
    low, high = np.inf, -np.inf
    for first in chunks:
        chunk = np.asarray(images[first : first + _CHUNK]).reshape(
            len(images[first : first + _CHUNK]), -1
        )
        good = np.isfinite(chunk).all(1)
        finite[first : first + _CHUNK] = good
        if good.any():
            low, high = min(low, float(chunk[good].min())), max(high, float(chunk[good].max()))
    if low < 0 or high > 1:
        remedy = "divide them by 255" if low >= 0 and 1 < high <= 255 else "scale them to 0 to 1"
        raise InputError(f"{where} holds {images.dtype} images from {low:g} to {high:g}: {remedy}")
    if not finite.any():
        raise InputError(f"{where} holds no image whose pixels are all finite")
    return finite


def _checked_labels(labels: Array, where: str) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Whole numbers or texts [N], and the distinct ones."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iubfUS":
        raise InputError(
            f"{where} holds labels of {labels.dtype} and shape {labels.shape}: save a whole number or a "
            "text for each image, [N]"
        )
    there = np.ones(len(labels), bool)
    if labels.dtype.kind == "f":
        there = np.isfinite(labels)
        numbers = np.where(there, labels, 0)
        odd = numbers[(numbers != np.rint(numbers)) | (np.abs(numbers) > _EXACT)]
        if len(odd):
            raise InputError(f"{where} holds a label {odd[0]:g}: labels are whole numbers or texts")
        labels = numbers
    return labels.astype(str if labels.dtype.kind in "US" else np.int64), there


def _classes(values: list[Array], names: Array | None, place: str) -> tuple[Rows, list[str]]:
    """Labels as indices into class names, and these names."""
    if len({each.dtype.kind for each in values}) > 1:
        raise InputError(f"the splits of {place} hold numbers and texts as labels: save one kind")
    every = np.concatenate(values)
    if names is not None:
        if names.ndim != 1 or len(np.unique(names)) < len(names):
            raise InputError(f"{place}: its array of classes should be a list of different names")
        bad = every[(every < 0) | (every >= len(names))] if every.dtype.kind == "i" else every[:1]
        if len(bad):
            raise InputError(
                f"{place} holds a label {bad[0]!s}, but its array of classes has 0 to {len(names) - 1}"
            )
        named = np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names
        return every, [str(name) for name in named]
    found, labels = np.unique(every, return_inverse=True)
    if missing := set(found.tolist()) - set(values[0].tolist()):
        raise InputError(f"{place}: there is no training image with label {min(missing)}")
    return labels.astype(np.int64).reshape(-1), [str(value) for value in found]


# Files.


def _prefixes(there: Collection[str], whole: str, of_split: str, where: str) -> dict[str, str]:
    """What each split's images are called; {"": whole} if there are no splits.

    Args:
        there: all names.
        whole: the name of images that are not split.
        of_split: a pattern for the name of a split's.

    Raises:
        InputError: two of them mean the same.
    """
    found = {
        split: [name for name in map(of_split.format, names) if name in there]
        for split, names in SPLIT_NAMES.items()
    }
    if whole in there and found["train"]:
        raise InputError(f"{where} holds {whole} and {found['train'][0]}: keep one of them")
    for split, names in found.items():
        if len(names) > 1:
            raise InputError(f"{where} holds {' and '.join(names)}, which both mean {split}: keep one")
    if not found["train"]:
        return {"": whole}
    return {split: names[0] for split, names in found.items() if names}


def _read_file(path: str) -> tuple[list[_Part], Array | None, list[str]]:
    """The parts of an .npz file, its names of classes, and the names of what is not used."""
    try:
        # Not from the path: NumPy leaves an invalid file open.
        with open(path, "rb") as content:
            begin = content.read(6)
            if begin == b"\x93NUMPY":
                raise InputError(f"{path} holds one array: {_ADVICE}")
            if not begin.startswith(b"PK"):  # of a zip; NumPy's error would mention pickles
                raise InputError(f"{path} is not an .npz file: {_ADVICE}")
            content.seek(0)
            file = np.load(content, allow_pickle=False)
            images = _prefixes(file.files, "images", "{}_images", path)
            prefixes = {split: name.removesuffix("images") for split, name in images.items()}
            missing = [
                f"{prefix}{what}"
                for prefix in prefixes.values()
                for what in ("images", "labels")
                if f"{prefix}{what}" not in file
            ]
            if missing:
                there = ", ".join(file) or "nothing"
                raise InputError(f"{path} holds {there}, not {' and '.join(missing)}; {_ADVICE}")
            parts = [
                _Part.of(split, file[f"{prefix}images"], file[f"{prefix}labels"], _where(path, prefix))
                for split, prefix in prefixes.items()
            ]
            used = [f"{prefix}{what}" for prefix in prefixes.values() for what in ("images", "labels")]
            unused = sorted(set(file.files) - {*used, "classes"})
            return parts, file.get("classes"), unused
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or one_line(error)}") from error
    except Exception as error:  # zip, zlib and numpy each have their own
        raise InputError(f"{path} is not a file of arrays ({one_line(error)}); {_ADVICE}") from error


def _where(path: str, prefix: str) -> str:
    return f"{path} ({prefix.removesuffix('_')})" if prefix else path


def _read_folder(path: str) -> tuple[list[_Part], Array | None, list[str]]:
    """The same for a folder of .npy files, memory-mapped."""
    splits = [name for names in SPLIT_NAMES.values() for name in names]
    there = {name for name in splits if os.path.isdir(os.path.join(path, name))}
    if os.path.isfile(os.path.join(path, "images.npy")):
        there.add("images.npy")
    names = _prefixes(there, "images.npy", "{}", path)
    if not there & {*names.values()}:
        raise InputError(
            f"{path} holds no images.npy, nor folders train, validation and test with one each: "
            "save images [N, height, width] or [N, height, width, channels] there, and labels.npy"
        )
    folders = {split: os.path.join(path, name) if split else path for split, name in names.items()}
    parts = [
        _Part.of(split, _load(folder, "images"), _load(folder, "labels"), folder)
        for split, folder in folders.items()
    ]
    classes = os.path.isfile(os.path.join(path, "classes.npy"))
    unused = sorted(there - {*names.values()})
    return parts, np.array(_load(path, "classes")) if classes else None, unused


def _load(folder: str, name: str) -> Array:
    path = os.path.join(folder, f"{name}.npy")
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no {path}") from None
    except Exception as error:  # numpy raises several
        raise InputError(f"{path} is not an array ({one_line(error)})") from error
    return array
