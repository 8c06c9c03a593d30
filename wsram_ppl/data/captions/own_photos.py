"""The user's own photos, as a captioner sees them: a conv net and words, but no data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from wsram_ppl.data.captions.backbones import Backbone, FeatureRequest
from wsram_ppl.data.captions.batches import Examples, PictureSource
from wsram_ppl.data.captions.feature_extraction import Picture, read_picture
from wsram_ppl.data.captions.vocabulary import Vocabulary
from wsram_ppl.data.pictures import Unreadable
from wsram_ppl.errors import InputError

__all__ = ["OwnPhotos"]


class OwnPhotos(PictureSource):
    """Photos from their files; the net runs on them when they are looked up.

    Args:
        vocabulary: the words to describe them with.
        layer_shapes: (channels, height, width) of each layer's map.
        request: what the net computes.
        weights: the file with its weights; None: downloaded by timm.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        layer_shapes: tuple[tuple[int, int, int], ...],
        request: FeatureRequest,
        weights: Path | None,
    ) -> None:
        self.vocabulary, self.layer_shapes = vocabulary, layer_shapes
        self._request, self._weights = request, weights
        self._device = torch.device("cpu")
        self._backbone: Backbone | None = None

    def look_up(self, names: Sequence[str]) -> Examples:
        """The photos in these files; their names in the result are absolute paths.

        Raises:
            InputError: no name, or a file that cannot be read or is not a picture.
        """
        if not names:
            raise InputError("name at least one photo")
        if self._backbone is None:
            self._backbone = Backbone(self._request, self._weights, self._device)
        files = [os.path.expanduser(name) for name in names]
        pictures = [_read(Path(file), self._request.image_size) for file in files]
        # Rounded like stored features.
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
        maps = tuple(m.half().float() for m in self._backbone(pixels))
        notes = (
            f"{n}: {picture.note}" for n, picture in zip(names, pictures, strict=True) if picture.note
        )
        return Examples([*map(os.path.abspath, files)], maps, [[] for _ in names], tuple(notes))

    def pictures(self, names: Sequence[str]) -> list[npt.NDArray[np.uint8]]:
        """The photos in these files, each [height, width, 3].

        Raises:
            InputError: a file cannot be read or is not a picture.
        """
        return [_read(Path(os.path.expanduser(name))).pixels for name in names]

    def to(self, device: torch.device | str) -> Self:
        """Runs the net on ``device``; returns the source itself."""
        self._device, self._backbone = torch.device(device), None
        return self


def _read(path: Path, size: int | None = None) -> Picture:
    try:
        return read_picture(path, size)
    except Unreadable as error:
        raise InputError(f"cannot read the picture {str(path)!r}: {error}") from error
