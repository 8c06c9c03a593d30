#!/usr/bin/env python
"""Builds wsram_ppl/data/digits/digits.npz: 10,000 training and 2,000 test digits of MNIST.

    python scripts/build_sample.py ROOT

ROOT is a folder that holds MNIST/raw/train-images-idx3-ubyte.gz and its three companions, as
torchvision.datasets.MNIST lays them out; torchvision downloads missing files.

The digits are drawn with a fixed seed, 1,000 (200) of each class from the official training (test)
set, never mixed, and stored unchanged (28 x 28 bytes each). With the same numpy and zlib, the same
input gives the same file, byte for byte.

MNIST was made by Yann LeCun and Corinna Cortes (with Christopher Burges) and is available under the
Creative Commons Attribution-Share Alike 3.0 licence; the sample is under that licence too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from wsram_ppl.data.digits.files import NUM_CLASSES, Digits, read_mnist
from wsram_ppl.errors import InputError

SEED = 150906812
SPLITS = {"training": (1000, 0), "test": (200, 3)}  # digits per class, stream of random numbers
TARGET = Path(__file__).resolve().parents[1] / "wsram_ppl" / "data" / "digits" / "digits.npz"


def choose(digits: Digits, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of ``per_class`` digits of every class, in random order."""
    labels = digits.labels.numpy()
    chosen = []
    for label in range(NUM_CLASSES):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise InputError(f"only {len(members)} digits of class {label}, {per_class} are needed")
        chosen.append(rng.choice(members, per_class, replace=False))
    return rng.permutation(np.concatenate(chosen))


def build(root: str, target: Path) -> None:
    """Reads MNIST below ``root`` and writes the sample to ``target``."""
    arrays = {}
    for (split, (per_class, stream)), digits in zip(SPLITS.items(), read_mnist(root), strict=True):
        positions = choose(digits, per_class, np.random.default_rng((SEED, stream)))
        arrays[f"{split}_images"] = digits.images.numpy()[positions]
        arrays[f"{split}_labels"] = digits.labels.numpy()[positions].astype(np.uint8)
        # The position of each digit in the official set, so that anyone can check.
        arrays[f"{split}_positions"] = positions.astype(np.uint16)
    np.savez_compressed(target, **arrays)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the sample of MNIST inside wsram_ppl.")
    parser.add_argument("root", help="folder of MNIST, as torchvision.datasets.MNIST expects it")
    parser.add_argument("--out", type=Path, default=TARGET, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        build(arguments.root, arguments.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
