"""Common to sources of labelled pictures: splits, the order of data, and the record of a run."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from wsram_ppl.data.epochs import (
    Epochs,
    Rows,
    check_batch,
    check_held_out,
    generator,
    moved,
)
from wsram_ppl.data.images.splitting import draw_split
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import HeldOut

__all__ = ["SPLITS", "LabelledImages", "count_of", "listed"]

_log = logging.getLogger(__name__)

#: The splits of every source of images.
SPLITS: Final = ("train", "validation", "test")
# Each use of random numbers has its own stream.
_ORDER, _SPLIT, _SPLIT_OF_TRAINING, _VALIDATION_ORDER, _TEST_ORDER = range(5)
_HELD_OUT_ORDER: Final = {"validation": _VALIDATION_ORDER, "test": _TEST_ORDER}


class LabelledImages(ABC):
    """A data source of pictures, each with a number and a label.

    Training: every epoch is a new permutation of the training pictures, given by the run's seed.
    Evaluation: the pictures of a held-out split in a fixed random order.

    Args:
        labels: [N], of all pictures, indices into ``class_names``.
        splits: numbers of the pictures of each split that the data have; {} to draw the split.
        class_names: the meaning of the labels.
        channels: 1, or 3 in colour.
        split_seed: seed of the split, if it is drawn, and of the order of held-out pictures.
        held_out: fraction of all pictures that each held-out split gets, if it is drawn.
        notices: lines about what was found in the data.

    Attributes:
        notices: a line for each problem found in the data, and for each choice made for the user.
        record: what is kept with a run.

    Raises:
        InputError: there is nothing to train on, or only one class.
    """

    def __init__(
        self,
        labels: Rows,
        splits: Mapping[str, Rows],
        class_names: Sequence[str],
        *,
        channels: int,
        split_seed: int,
        held_out: float,
        notices: Sequence[str],
    ) -> None:
        if len(class_names) < 2:
            raise InputError(
                f"there is only one class, {class_names[0]!r}: a classifier needs at least two"
            )
        self.class_names, self.channels = tuple(class_names), channels
        self._labels = torch.from_numpy(labels)
        found, said = _complete(splits, labels, split_seed, held_out)
        self.notices = (*notices, said)
        for line in self.notices:
            _log.info(line)
        self._train = found["train"]
        self._held_out = {
            name: found[name][generator(_HELD_OUT_ORDER[name], split_seed).permutation(len(found[name]))]
            for name in _HELD_OUT_ORDER
        }
        self._epochs = Epochs(len(self._train), partial(generator, _ORDER))
        self._device = torch.device("cpu")
        self.record: dict[str, Any] = {
            "classes": list(class_names),
            "channels": channels,
            "training": self._digest(),
        }

    @property
    def model_options(self) -> dict[str, Any]:
        """Options of a model that follow from the data."""
        return self.implied_options(self.record)

    @staticmethod
    def implied_options(record: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a model for data with this record."""
        names = tuple(record["classes"])
        return {"classes": len(names), "class_names": names, "image_channels": record["channels"]}

    def training_batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """The batch of update ``step``: ``size`` pictures; a pure function of its arguments.

        Raises:
            InputError: an argument is out of range.
        """
        return self.training_rows(step, size, seed, slice(0, size))

    def training_rows(self, step: int, size: int, seed: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Some rows of that batch; only their pictures are read."""
        check_batch(step, size, seed, len(self._train), "training pictures")
        chosen = self._train[self._epochs.span(step * size, size, seed)[rows]]
        return self._batch(self._read_for_training(chosen), chosen)

    def evaluation_batches(
        self, size: int, limit: int | None = None, split: HeldOut = "validation"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The pictures of a held-out split, or the first ``limit`` of them in their random order.

        Raises:
            InputError: ``size`` or ``limit`` is below 1, or there is no such split.
        """
        check_held_out(size, limit, f"{split} pictures", split)
        if not len(self._held_out[split]):
            raise InputError(f"there are no {split} pictures")
        return self._evaluation_batches(self._held_out[split][:limit], size)

    def _evaluation_batches(self, chosen: Rows, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(chosen), size):
            images, readable = self._read_held_out(chosen[first : first + size])
            if len(readable):
                yield self._batch(images, readable)

    def to(self, device: torch.device | str) -> Self:
        """Puts batches on ``device``; the data stay where they are. Returns the source itself."""
        self._device = torch.device(device)
        return self

    @abstractmethod
    def _read_for_training(self, chosen: Rows) -> Tensor:
        """Images [B, height, width] or [B, channels, height, width]: uint8, or float32 in [0, 1]."""

    def _read_held_out(self, chosen: Rows) -> tuple[Tensor, Rows]:
        """The same, and the numbers of these pictures: those of the chosen ones that can be read."""
        return self._read_for_training(chosen), chosen

    @abstractmethod
    def _identity(self, chosen: Rows) -> Iterable[bytes]:
        """The names of these pictures."""

    def _digest(self) -> str:
        """The training pictures."""
        digest = hashlib.sha256(self._labels[torch.from_numpy(self._train)].numpy().tobytes())
        for part in self._identity(self._train):
            digest.update(part + b"\0")
        return digest.hexdigest()

    def _batch(self, images: Tensor, chosen: Rows) -> tuple[Tensor, Tensor]:
        images = moved(images, self._device)
        if images.dtype == torch.uint8:
            images = images.float().mul_(1 / 255)
        return images, moved(self._labels[torch.from_numpy(chosen)], self._device)


def _complete(
    splits: Mapping[str, Rows], labels: Rows, seed: int, share: float
) -> tuple[dict[str, Rows], str]:
    """All three splits, and a line about where they come from."""
    if not splits:
        parts = draw_split(labels, (share, share), _SPLIT, seed)
        found = dict(zip(SPLITS, parts, strict=True))
        how = f"drawn from each class alike, with data.split_seed {seed}"
    else:
        found = {name: splits.get(name, np.empty(0, np.int64)) for name in SPLITS}
        how = "as in the data"
        if not len(found["validation"]):
            train, validation = draw_split(labels[found["train"]], (share,), _SPLIT_OF_TRAINING, seed)
            found |= {"train": found["train"][train], "validation": found["train"][validation]}
            how = f"the second drawn from the training pictures, with data.split_seed {seed}"
    if not len(found["train"]):
        raise InputError("there are no training pictures")
    first = count_of(len(found["train"]), "picture")
    others = f"{len(found['validation']):,} for validation, {len(found['test']):,} for test"
    return found, f"{first} for training, {others}: {how}"


def listed(classes: Sequence[str]) -> str:
    """How many classes there are, and the names of the first."""
    more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
    return f"{count_of(len(classes), 'class')}: {', '.join(classes[:8])}{more}"


def count_of(count: int, what: str) -> str:
    """A count with its noun."""
    return f"{count:,} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"
