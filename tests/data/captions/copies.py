"""Small copies of Flickr8k, in each of its layouts, to be read or to be spoiled."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsram_ppl.data.captions.backbones import FeatureRequest

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
#: A small net of timm's, made for tests.
NET = "test_efficientnet"
#: Of the pictures that it is given.
SIZE = 64

LAYOUTS = ("illinois", "karpathy", "kaggle")
CAPTION_FILES = {
    "illinois": "Flickr8k.token.txt",
    "karpathy": "dataset_flickr8k.json",
    "kaggle": "captions.txt",
}

Captions = Mapping[str, Sequence[str]]
Splits = Mapping[str, str]


def names(count: int) -> list[str]:
    return [f"{1000 + n}_{n:04x}.jpg" for n in range(count)]


def some_captions(count: int) -> dict[str, list[str]]:
    """Two captions for each of ``count`` photos, with commas, quotes and capitals."""
    return {
        name: [f"A dog , number {n} , runs .", f'The "{"big" if n % 2 else "small"}" dog\'s day .']
        for n, name in enumerate(names(count))
    }


def some_splits(captions: Captions) -> dict[str, str]:
    """Every fourth photo for dev, every fourth for test."""
    return {name: ("train", "dev", "train", "test")[n % 4] for n, name in enumerate(captions)}


def write(
    root: Path,
    layout: str,
    captions: Captions,
    splits: Splits | None = None,
    newline: str = "\n",
    texts: str = ".",
    photos: str = "Flicker8k_Dataset",
) -> Path:
    """Writes a copy whose photos are empty files; returns the file of the captions.

    Args:
        splits: split of each photo, where it has one; None: no split files.
        texts: folder of the text files, below the root.
        photos: folder of the photos, below the root.
    """
    folder = root / texts
    folder.mkdir(parents=True, exist_ok=True)
    (root / photos).mkdir(parents=True, exist_ok=True)
    for name in captions:
        (root / photos / name).touch()
    path = folder / CAPTION_FILES[layout]
    if layout == "karpathy":
        images = [
            {
                "filename": name,
                "imgid": n,
                "split": {"dev": "val"}.get((splits or {})[name], (splits or {})[name]),
                "sentences": [{"raw": text, "tokens": text.lower().split()} for text in own],
            }
            for n, (name, own) in enumerate(captions.items())
        ]
        path.write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
        return path
    if layout == "illinois":
        lines = [f"{name}#{n}\t{text}" for name, own in captions.items() for n, text in enumerate(own)]
        path.write_bytes("".join(line + newline for line in lines).encode())
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator=newline)
            rows.writerow(["image", "caption"])
            rows.writerows([name, text] for name, own in captions.items() for text in own)
    if splits is not None:
        for split in ("train", "dev", "test"):
            own = [name + newline for name in splits if splits[name] == split]
            (folder / f"Flickr_8k.{split}Images.txt").write_bytes("".join(own).encode())
    return path


def add_photos(folder: Path, wanted: Sequence[str], size: int = 64) -> None:
    """Real photos under other names where there is a copy of Flickr8k, else generated pictures."""
    real = SHARED / "flickr8k" / "Images"
    sources: list[Path] = []
    if real.is_dir():
        listed = (SHARED / "flickr8k" / "Flickr_8k.devImages.txt").read_text().split()
        sources = [real / name for name in listed[:8]]
    for n, name in enumerate(wanted):
        if n < len(sources):
            shutil.copy(sources[n], folder / name)
            continue
        rng = np.random.default_rng(n)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((size + n % 7, size), Image.Resampling.BICUBIC).save(folder / name, quality=85)


def feature_request(weights: Path, /, **changes: Any) -> FeatureRequest:
    """For maps of two layers of the small net."""
    options: dict[str, Any] = {
        "backbone": NET,
        "layers": (2, 3),
        "image_size": SIZE,
        "mean": [127.0],
        "std": [128.0],
        "weights": weights,
    }
    return FeatureRequest.make(**{**options, **changes})


def files(folder: Path) -> dict[str, bytes]:
    """The content of each file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
