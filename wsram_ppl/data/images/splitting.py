"""The splits of labelled data: their names, and a seeded one where there is none."""

from __future__ import annotations

from typing import Final

import numpy as np

from wsram_ppl.data.epochs import Rows, generator

__all__ = ["SPLIT_NAMES", "draw_split"]

#: The splits of a folder or a file of data, and the names that each may have, in lower case.
SPLIT_NAMES: Final = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


def draw_split(labels: Rows, shares: tuple[float, ...], *key: int) -> list[Rows]:
    """Splits data at random, in the same proportions for each class.

    For a class with n data each share is rounded to a whole number of data, but at least 1, in the order
    of the shares, as long as one is left over for training.

    Args:
        labels: [N].
        shares: fractions of the data, one for each held-out part.
        key: key of the random numbers.

    Returns:
        Indices of data, in order: those left for training, then each part.
    """
    # Each datum's rank in a random order of its class.
    order = np.lexsort((generator(*key).permutation(len(labels)), labels))
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(first, counts)
    of_class = np.empty(len(labels), np.int64)
    of_class[order] = np.repeat(counts, counts)
    parts, taken = [], np.zeros_like(place)
    for share in shares:
        wanted = np.maximum(np.rint(share * of_class), 1).astype(np.int64)
        end = np.minimum(taken + wanted, np.maximum(of_class - 1, 0))
        parts.append(np.flatnonzero((place >= taken) & (place < end)))
        taken = end
    return [np.flatnonzero(place >= taken), *parts]
