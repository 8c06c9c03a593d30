"""Flickr8k as a data source: features of a pretrained conv net, and captions."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from wsram_ppl.data.captions.backbones import FeatureRequest
from wsram_ppl.data.captions.batches import (
    CaptionBatch,
    CaptionSource,
    EncodedCaptions,
    Examples,
    LengthBuckets,
    Rows,
)
from wsram_ppl.data.captions.feature_extraction import Progress, extract
from wsram_ppl.data.captions.feature_store import FeatureStore, store_folder
from wsram_ppl.data.captions.layouts import Flickr8k, Layout, Photo, read_flickr8k
from wsram_ppl.data.captions.own_photos import OwnPhotos
from wsram_ppl.data.captions.vocabulary import Vocabulary, normalize
from wsram_ppl.data.epochs import check_held_out, generator, moved
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import HeldOut

__all__ = ["FlickrCaptions"]

_log = logging.getLogger(__name__)

#: The data set's name of each split.
_SPLITS: Final = {"train": "train", "validation": "dev", "test": "test"}
#: Determines which photos and captions are used when only some are measured.
_SUBSET: Final = 0

Layers = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


class _Split(NamedTuple):
    """Photos of a split with their rows in the store, and their captions as data."""

    photos: list[Photo]
    captions: EncodedCaptions
    #: Index in ``photos`` of each caption's photo, [captions].
    photo_of: Rows
    #: Row in the store of each photo, [photos].
    rows: Rows


class FlickrCaptions(CaptionSource):
    """Flickr8k: photos with five captions each, as maps of a pretrained conv net.

    The features are computed once, by ``wsram features`` (:meth:`compute_features`), and read from disk
    here. See :mod:`wsram_ppl.data.captions` for the batch. Photos that cannot be read are left out.

    Training: every epoch is a new shuffle of all captions of the train split, in batches of about
    equal length (:class:`~wsram_ppl.data.captions.batches.LengthBuckets`). Evaluation: each caption of
    the dev split is a validation datum; the test split is Flickr8k's.

    Args:
        root: the folder of Flickr8k, in any layout (:mod:`wsram_ppl.data.captions.layouts`).
        layout: which layout to read, if there are several.
        split_seed: seed of the split, if the layout has none.
        cache: the folder of the feature stores.
        backbone: timm's name of the conv net.
        layers: which of its maps, as timm's ``out_indices``; one layer of attention each.
        weights: a file with the net's weights; "": those that timm downloads.
        image_size: side in pixels of the square that photos are resized to.
        mean, std: subtracted from a pixel (0..255), and its divisor: three numbers,
            one for all colours, or none for timm's values.
        minimum_count: how often a word must occur in the training captions to be known.

    Attributes:
        vocabulary: the words of the training captions.
        layer_shapes: (channels, height, width) of each layer.
        notices: a line for each problem found in the data, and for each choice made.

    Raises:
        InputError: the data are missing or not usable, their features are not computed, or an option
            is out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path = "data/flickr8k",
        layout: Layout = "auto",
        split_seed: NonNegativeInt = 0,
        cache: str | Path = "features",
        backbone: str = "tf_efficientnet_lite0",
        layers: Layers = (3, 4),
        weights: str | Path = "",
        image_size: PositiveInt = 224,
        mean: tuple[float, ...] = (),
        std: tuple[PositiveFloat, ...] = (),
        minimum_count: PositiveInt = 5,
    ) -> None:
        data = read_flickr8k(root, layout=layout, split_seed=split_seed)
        self._weights = _path(weights)
        self._request = FeatureRequest.make(backbone, layers, image_size, mean, std, self._weights)
        paths = _used(data)
        folder = store_folder(Path(os.path.expanduser(cache)), self._request, paths)
        self._store = FeatureStore.open(folder, paths)
        self.notices = (*data.notices, *self._store.notices())
        for line in self.notices:
            _log.info(line)
        photos = [photo for photo in data.photos if photo.path.name in self._store.rows]
        self._photos, self._paths = photos, {photo.name: photo.path for photo in photos}
        self.vocabulary = Vocabulary.of_captions(
            (text for photo in photos if photo.split == "train" for text in photo.captions),
            minimum_count,
        )
        self.layer_shapes = self._store.shapes
        self._splits = self._read_splits()
        self._order = LengthBuckets(self._splits["train"].captions.lengths)
        self._device = torch.device("cpu")
        self._own_photos = OwnPhotos(self.vocabulary, self.layer_shapes, self._request, self._weights)

    @classmethod
    def compute_features(
        cls,
        options: Mapping[str, Any],
        *,
        device: torch.device | str = "cpu",
        progress: Progress = lambda done, total: None,
    ) -> tuple[FeatureStore, tuple[str, ...]]:
        """Computes the features that a source with these options reads.

        Args:
            options: of the constructor; defaults apply to those left out.
            progress: called before each chunk, and at the end, with the photos done and their total.

        Returns:
            The store, and a line for each problem found in the data.

        Raises:
            InputError, RunError: as for the constructor and
                :func:`~wsram_ppl.data.captions.feature_extraction.extract`.
        """
        given = {**(cls.__init__.__kwdefaults__ or {}), **options}
        data = read_flickr8k(given["root"], layout=given["layout"], split_seed=given["split_seed"])
        request, weights = _request(given)
        store = extract(
            request,
            _used(data),
            Path(os.path.expanduser(given["cache"])),
            weights=weights,
            device=device,
            progress=progress,
        )
        return store, (*data.notices, *store.notices())

    @property
    def record(self) -> dict[str, Any]:
        """Also includes which weights the net has: a file of weights may move, but not change."""
        return {**super().record, "weights": self._request.weights}

    @classmethod
    def for_pictures(cls, options: Mapping[str, Any], record: Mapping[str, Any]) -> OwnPhotos:
        """Looks up photos for a run; the data set is not needed.

        Raises:
            InputError: the net has other weights than the run's had.
        """
        given = {**(cls.__init__.__kwdefaults__ or {}), **options}
        request, weights = _request(given)
        if request.weights != record["weights"]:
            raise InputError(
                f"data.weights are {request.weights}, but the run was trained with {record['weights']}: "
                "name the file of these with --set data.weights=FILE"
            )
        shapes = tuple((c, h, w) for c, h, w in record["layer_shapes"])
        return OwnPhotos(Vocabulary(record["words"]), shapes, request, weights)

    def adopt(self, record: Mapping[str, Any]) -> None:
        """Reads the captions by the words of a run, as its record has them."""
        self.vocabulary = self._own_photos.vocabulary = Vocabulary(record["words"])
        self._splits = self._read_splits()

    def training_batch(self, step: int, size: int, seed: int) -> CaptionBatch:
        """The batch of update ``step``: ``size`` captions; a pure function of its arguments.

        Raises:
            InputError: an argument is out of range.
        """
        return self.training_rows(step, size, seed, slice(0, size))

    def training_rows(self, step: int, size: int, seed: int, rows: slice) -> CaptionBatch:
        """Some rows of that batch, padded like the whole batch; only their features are read."""
        return self._batch(self._splits["train"], self._order.rows(step, size, seed), rows)

    def evaluation_batches(
        self, size: int, limit: int | None = None, split: HeldOut = "validation"
    ) -> Iterator[CaptionBatch]:
        """The captions of a held-out split, or a fixed random ``limit`` of them, shortest first.

        Raises:
            InputError: ``size`` or ``limit`` is below 1, or the split is empty.
        """
        held_out = self._held_out(split, size, limit)
        chosen = _subset(len(held_out.captions), limit)
        chosen = chosen[np.argsort(held_out.captions.lengths[chosen], kind="stable")]
        parts = (chosen[first : first + size] for first in range(0, len(chosen), size))
        return (self._batch(held_out, part) for part in parts)

    def examples(
        self, size: int, limit: int | None = None, split: HeldOut = "validation"
    ) -> Iterator[Examples]:
        """The photos of a held-out split, or a fixed random ``limit`` of them, by name.

        Raises:
            InputError: ``size`` or ``limit`` is below 1, or the split is empty.
        """
        held_out = self._held_out(split, size, limit)
        chosen = np.sort(_subset(len(held_out.photos), limit))
        parts = (chosen[first : first + size] for first in range(0, len(chosen), size))
        return (
            Examples(
                [held_out.photos[place].name for place in part],
                self._maps(held_out.rows[part]),
                [[*map(normalize, held_out.photos[place].captions)] for place in part],
            )
            for part in parts
        )

    def look_up(self, names: Sequence[str]) -> Examples:
        """The user's own photos (:class:`~wsram_ppl.data.captions.own_photos.OwnPhotos`).

        Their names in the result are absolute paths, unlike those of the data set's photos.

        Raises:
            InputError: no name, or a file that cannot be read or is not a picture.
        """
        return self._own_photos.look_up(names)

    def pictures(self, names: Sequence[str]) -> list[npt.NDArray[np.uint8]]:
        """The photos, each [height, width, 3]: those of the data set by name, others by path.

        Raises:
            InputError: a file cannot be read or is not a picture.
        """
        return self._own_photos.pictures([str(self._paths.get(name, name)) for name in names])

    def to(self, device: torch.device | str) -> Self:
        """Puts batches on ``device``; features stay on disk. Returns the source itself."""
        self._device = torch.device(device)
        self._own_photos.to(device)
        return self

    def _read_splits(self) -> dict[str, _Split]:
        return {name: self._split(theirs) for name, theirs in _SPLITS.items()}

    def _split(self, name: str) -> _Split:
        own = [photo for photo in self._photos if photo.split == name]
        sentences = [self.vocabulary.encode(text) for photo in own for text in photo.captions]
        return _Split(
            own,
            EncodedCaptions(sentences),
            np.repeat(np.arange(len(own)), [len(photo.captions) for photo in own]),
            np.array([self._store.rows[photo.path.name] for photo in own], dtype=np.int64),
        )

    def _held_out(self, name: str, size: int, limit: int | None) -> _Split:
        check_held_out(size, limit, "held-out examples", name)
        if not self._splits[name].photos:
            raise InputError(f"the {name} split holds no photos")
        return self._splits[name]

    def _batch(self, split: _Split, rows: Rows, part: slice = slice(None)) -> CaptionBatch:
        words, mask = (moved(x[part], self._device) for x in split.captions.batch(rows))
        return words, mask, *self._maps(split.rows[split.photo_of[rows[part]]])

    def _maps(self, rows: Rows) -> tuple[Tensor, ...]:
        # Half the bytes to move; converted to float32 on the device.
        return tuple(moved(part, self._device).float() for part in self._store.read(rows))


def _used(data: Flickr8k) -> list[Path]:
    """The photos in a split whose features are computed."""
    return [photo.path for photo in data.photos if photo.split is not None]


def _request(options: Mapping[str, Any]) -> tuple[FeatureRequest, Path | None]:
    """What a source with all these options asks of the conv net, and the file with its weights."""
    weights = _path(options["weights"])
    settings = {name: options[name] for name in ("backbone", "layers", "image_size", "mean", "std")}
    return FeatureRequest.make(**settings, weights=weights), weights


def _path(weights: str | Path) -> Path | None:
    return Path(weights) if os.fspath(weights).strip() else None


def _subset(count: int, limit: int | None) -> Rows:
    """A fixed random choice of ``limit`` out of ``count``, or all."""
    return generator(_SUBSET).permutation(count)[:limit]
