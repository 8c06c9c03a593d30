"""Karpathy's layout: JSON with an entry for each photo, which also tells its split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from wsram_ppl.data.captions.layouts.table import Row, Split
from wsram_ppl.data.captions.layouts.text import Notes, read_text
from wsram_ppl.errors import InputError, one_line

#: Karpathy's names of the splits ("restval" is part of training in his other files).
_SPLITS: Final[dict[Any, Split]] = {
    "train": "train",
    "restval": "train",
    "val": "dev",
    "dev": "dev",
    "test": "test",
}


def read_karpathy(path: Path, notes: Notes) -> Iterator[Row]:
    """The rows of ``dataset_flickr8k.json``; names begin with their ``filepath``, if they have one.

    Raises:
        InputError: it is not JSON, or has another structure.
    """
    text = read_text(path, notes)
    try:
        content = json.loads(text)
    except RecursionError:
        raise InputError(f"{path} is not Karpathy's JSON: it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {one_line(error)}; download it again") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise InputError(f'{path} should hold {{"images": [...]}}, as dataset_flickr8k.json does')
    for image in images:
        entry = image if isinstance(image, dict) else {}
        name, sentences, split = (entry.get(key) for key in ("filename", "sentences", "split"))
        if not isinstance(name, str) or not name.strip() or not isinstance(sentences, list):
            sentences = []
        elif split not in (None, *_SPLITS):
            what = f"photos of {path.name} are in splits other than train, val and test"
            notes.count(what, f"{str(split)[:20]!r}")
            split = None
        for caption in map(_caption, sentences or [None]):
            if caption is None:
                lack = "lack a filename, sentences or a sentence's text: left out"
                notes.count(f"entries of {path.name} {lack}")
            else:
                yield Row(f"{entry.get('filepath', '')}/{name}", caption, _SPLITS.get(split))


def _caption(sentence: Any) -> str | None:
    """A sentence's text, or else its words; None if it has neither."""
    known = sentence if isinstance(sentence, dict) else {}
    raw, tokens = known.get("raw"), known.get("tokens")
    if isinstance(raw, str):
        return raw
    if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
        return " ".join(tokens)
    return None
