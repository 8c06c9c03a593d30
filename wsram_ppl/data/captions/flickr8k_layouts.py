"""Reads Flickr8k (Hodosh, Young, Hockenmaier, 2013) in all common layouts.

=========  ==============================================================  =========================
layout     captions                                                        splits
=========  ==============================================================  =========================
illinois   ``Flickr8k.token.txt``: name, #, number, tab, caption           split files
karpathy   ``dataset_flickr8k.json``                                       in the same file
kaggle     ``captions.txt``: CSV of name, caption, below a line of titles  split files, if any
=========  ==============================================================  =========================

Split files are ``Flickr_8k.trainImages.txt``, ``Flickr_8k.devImages.txt`` and
``Flickr_8k.testImages.txt``, with a name per line; without them, the photos are split at random by a
seed. All files may be in the root folder or in a folder directly below it. The photos are in a folder of
any name (usually ``Flicker8k_Dataset`` or ``Images``) at most three levels below.

Names are matched exactly, or else without regard to case and to the Unicode form of accents, which some
file systems change.

Problems with some photos or lines never stop the reading: they are left out, counted, and reported in
one line per kind. If nothing usable is left, an InputError says so in one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from wsram_ppl.data.pictures import is_lfs_pointer
from wsram_ppl.errors import InputError, nearest, one_line

__all__ = ["Flickr8k", "Layout", "Photo", "Split", "read_flickr8k"]

#: The names in the split files; ``dev`` is the validation split.
Split = Literal["train", "dev", "test"]
#: Which files to read; "auto": those that exist.
Layout = Literal["auto", "illinois", "karpathy", "kaggle"]

_CAPTION_FILES: Final = {
    "illinois": "Flickr8k.token.txt",
    "karpathy": "dataset_flickr8k.json",
    "kaggle": "captions.txt",
}
_SPLIT_FILES: Final[dict[Split, str]] = {
    split: f"Flickr_8k.{split}Images.txt" for split in get_args(Split)
}
#: Karpathy's names of the splits ("restval" is part of training in his other files).
_KARPATHY_SPLITS: Final[dict[str, Split]] = {
    "train": "train",
    "restval": "train",
    "val": "dev",
    "dev": "dev",
    "test": "test",
}
_PHOTO: Final = re.compile(r"(?P<name>.+\.jpe?g)(?P<copy>\.\d+)?", re.IGNORECASE)
_TOKEN_LINE: Final = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)")
#: The first line of a CSV row, for each separator; the row's number may come first. White
#: space and quotes around fields are optional.
_ROWS: Final = [
    re.compile(
        rf"""(?:\s*"?\d+"?\s*{s})?\s*"?(?P<name>[^{s}]+?\.jpe?g(?:\.\d+)?)"?\s*{s}(?P<caption>.*)""",
        re.IGNORECASE | re.DOTALL,
    )
    for s in (",", ";", "\t")
]
#: A quoted field, up to the end of its line.
_QUOTED: Final = re.compile(r"""\s*"(?:[^"]|"")*"[^\S\n]*(?=\n|\Z)""")
_TITLES: Final = re.compile(r"image|file|caption|comment", re.IGNORECASE)
_DEEPEST: Final = 3


class Photo(NamedTuple):
    """A photo with its captions as written, apart from white space.

    ``split`` is None for a photo that no split file names.
    """

    name: str
    path: Path
    split: Split | None
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Flickr8k:
    """What was found.

    Attributes:
        photos: every captioned photo whose file exists, by name.
        layout: the layout that was read.
        notices: a line for each problem, with its count, and for each choice made for the user.
    """

    photos: tuple[Photo, ...]
    layout: str
    notices: tuple[str, ...]


def read_flickr8k(
    root: str | os.PathLike[str], *, layout: Layout = "auto", split_seed: int = 0
) -> Flickr8k:
    """Reads captions and splits, and finds the photos without opening them.

    Args:
        root: the folder that holds all of it.
        layout: which files to read; "auto" takes the first of illinois, karpathy and kaggle that
            exists.
        split_seed: seed of the split, if the captions come without one: an eighth of the photos for
            dev, an eighth for test.

    Raises:
        InputError: the folder, the captions or the photos are missing, or nothing in them is usable.
    """
    if layout not in get_args(Layout):
        raise InputError(
            f"unknown layout {layout!r};{nearest(str(layout), get_args(Layout))} "
            f"there are {', '.join(get_args(Layout))}"
        )
    folder = Path(os.path.expanduser(os.fspath(root)))
    files = _listing(folder)
    notes = _Notes()
    chosen, path = _choose_layout(folder, files, layout, notes)
    if chosen == "karpathy":
        table = _read_karpathy(path, notes)
    else:
        captions = _read_lines_of_captions(path, chosen, notes)
        table = _Table(captions, _read_splits(files, captions, split_seed, path, notes))
    return Flickr8k(_join(folder, table, notes), chosen, tuple(notes.lines))


# ---------------------------------------------------------------- collected while reading


class _Notes:
    """A line for each problem found so far, and for each choice made."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, text: str, count: int = 1) -> None:
        """Adds the text as a line, unless the problem occurred 0 times."""
        if count:
            self.lines.append(" ".join(text.split()))


class _Table(NamedTuple):
    """Captions by the photo's name, and the split of each photo that has one."""

    captions: dict[str, list[str]]
    splits: dict[str, Split]


# ---------------------------------------------------------------- finding files


def _listing(root: Path) -> dict[str, Path]:
    """The files in ``root`` and the folders directly below it, by lower-case name; root's come first."""
    if not os.path.isdir(root):
        state = "is not a folder" if os.path.exists(root) else "does not exist"
        raise InputError(f"{str(root)!r} {state}; {_expected()}")
    found: dict[str, Path] = {}
    for folder in [root, *_subfolders(root)]:
        for entry in _entries(folder):
            if _holds(entry.is_file):
                found.setdefault(entry.name.lower(), Path(entry.path))
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The contents of a folder, by name, without hidden files and what macOS adds to archives.

    Empty for a folder without read permission, such as lost+found.
    """
    try:
        with os.scandir(folder) as entries:
            shown = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
    except PermissionError:
        return []
    except OSError as error:
        raise InputError(f"cannot list {str(folder)!r}: {error.strerror}") from None
    return sorted(shown, key=lambda entry: entry.name)


def _subfolders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if _holds(entry.is_dir)]


def _holds(question: Callable[[], bool]) -> bool:
    """The answer, or False if even checking fails, as for a link to itself."""
    try:
        return question()
    except OSError:
        return False


def _expected() -> str:
    files = ", ".join(_CAPTION_FILES.values())
    return (
        f"the root of Flickr8k should hold one of {files}, and a folder of photos "
        "(Flicker8k_Dataset or Images)"
    )


def _choose_layout(
    root: Path, files: Mapping[str, Path], layout: Layout, notes: _Notes
) -> tuple[str, Path]:
    there = {name: files[file.lower()] for name, file in _CAPTION_FILES.items() if file.lower() in files}
    if layout != "auto":
        if layout not in there:
            hint = f"; there is {', '.join(there)}" if there else ""
            raise InputError(
                f"no {_CAPTION_FILES[layout]} in {str(root)!r} or a folder directly below it, which "
                f"layout {layout!r} needs{hint}"
            )
        return layout, there[layout]
    if not there:
        raise InputError(f"no captions in {str(root)!r} or a folder directly below it; {_expected()}")
    chosen = next(iter(there))
    if len(there) > 1:
        others = " and ".join(_CAPTION_FILES[name] for name in there if name != chosen)
        notes.tell(
            f"captions are read from {there[chosen]}; {others} is also there (layout chooses another)"
        )
    return chosen, there[chosen]


def _photo_files(root: Path, captioned: set[str]) -> tuple[Path, dict[str, Path]]:
    """The folder with most of the captioned photos, and its photos by name."""
    best: tuple[tuple[int, int], Path, dict[str, Path]] = ((0, 0), root, {})
    forms = set(map(_form, captioned))
    folders = [(root, 0)]
    for folder, depth in folders:
        photos = {
            entry.name: Path(entry.path)
            for entry in _entries(folder)
            if _PHOTO.fullmatch(entry.name) and _holds(entry.is_file)
        }
        # The photo itself may be stored as "x.jpg.1".
        photos = {**{_plain_name(name): path for name, path in photos.items()}, **photos}
        known = len(forms & set(map(_form, photos))), len(captioned & photos.keys())
        if known > best[0]:
            best = known, folder, photos
        if depth < _DEEPEST:
            folders += [(below, depth + 1) for below in _subfolders(folder)]
    return best[1:]


def _plain_name(name: str) -> str:
    """The name without the ".1" that a second download appends to ".jpg"."""
    match = _PHOTO.fullmatch(name)
    return match["name"] if match and match["copy"] else name


def _form(name: str) -> str:
    """The name in a form that ignores case and the Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _matched(
    wanted: Set[str], wanted_in: str, there: Set[str], there_in: str, notes: _Notes
) -> dict[str, str]:
    """For each wanted name, the existing name that it means, if there is exactly one.

    Args:
        wanted_in, there_in: where the names come from, for the note.
    """
    matched = {name: name for name in wanted & there}
    sought, found = _by_form(wanted - there), _by_form(there - wanted)
    loose = {
        names[0]: found[form][0]
        for form, names in sought.items()
        if len(names) == len(found.get(form, ())) == 1
    }
    if loose:
        first = min(loose)
        notes.tell(
            f"{len(loose):,} names in {wanted_in} are in {there_in} with different case or in another "
            f"Unicode form: taken as the same (the first: {first!a} as {loose[first]!a})"
        )
    return matched | loose


def _by_form(names: Iterable[str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(_form(name), []).append(name)
    return grouped


# ---------------------------------------------------------------- reading text


def _read_text(path: Path, notes: _Notes) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if is_lfs_pointer(content):
        raise InputError(
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull where it came from, or "
            "download the file"
        )
    try:
        text = content.decode("utf-8-sig")
    except ValueError:
        text = content.decode("latin-1")
        notes.tell(f"{path.name} is not UTF-8: read as Latin-1")
    return text


def _lines(path: Path, notes: _Notes) -> Iterator[tuple[int, str]]:
    """The non-empty lines, numbered."""
    text = _read_text(path, notes)
    ends = text.count("\r\n")
    notes.tell(f"{path.name}: {ends:,} lines end in CR LF (Windows); read normally", ends)
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if line.strip():
            yield number, line


def _read_lines_of_captions(path: Path, layout: str, notes: _Notes) -> dict[str, list[str]]:
    lines = [(number, line.strip("\x00 ")) for number, line in _lines(path, notes)]
    example = "NAME.jpg,a caption" if layout == "kaggle" else "NAME.jpg#0, a tab, a caption"
    rows, bad = (_csv_rows if layout == "kaggle" else _token_rows)(lines)
    captions: dict[str, list[str]] = {}
    empty = renamed = 0
    for field, text in rows:
        written, caption = _one_spaced(field), _one_spaced(text)
        name = _plain_name(written)
        renamed += name != written
        own = captions.setdefault(name, [])
        if caption:
            own.append(caption)
        empty += not caption
    if not captions:
        raise InputError(f"{path} holds no captions: a line should be {example}")
    if bad:
        notes.tell(
            f"{path.name}: {len(bad):,} lines are not {example} (the first: line {bad[0]}): left out"
        )
    _note_captions(path, renamed, empty, notes)
    return captions


def _token_rows(lines: list[tuple[int, str]]) -> tuple[list[tuple[str, str]], list[int]]:
    """Name and caption of each line, and the numbers of the lines without them."""
    found = [(number, _TOKEN_LINE.fullmatch(line)) for number, line in lines]
    rows = [(match["name"], match["caption"]) for _, match in found if match]
    return rows, [number for number, match in found if not match]


def _csv_rows(lines: list[tuple[int, str]]) -> tuple[list[tuple[str, str]], list[int]]:
    """Name and caption of each CSV row, and the numbers of the lines that belong to no row.

    Python's reader is not used: many copies have unquoted captions with commas and quotes, and a stray
    quote should spoil one row, not the rest of the file. A quoted caption may continue on the next
    lines, up to the next row.
    """
    begins = max(_ROWS, key=lambda form: sum(bool(form.fullmatch(line)) for _, line in lines))
    parts: list[list[tuple[int, str]]] = []
    for line in lines:
        if not parts or begins.fullmatch(line[1]):
            parts.append([])
        parts[-1].append(line)
    rows: list[tuple[str, str]] = []
    bad: list[int] = []
    for (number, first), *more in parts:
        match = begins.fullmatch(first)
        if match is None:  # before the first row
            bad += [] if _TITLES.search(first) else [number]
        else:
            field = _QUOTED.match("\n".join([match["caption"], *(line for _, line in more)]))
            caption = field[0] if field else match["caption"]
            more = more[caption.count("\n") :]
            rows.append((match["name"], _unquoted(caption)))
        bad += [number for number, _ in more]
    return rows, bad


def _note_captions(path: Path, renamed: int, empty: int, notes: _Notes) -> None:
    text = f"{path.name}: {renamed:,} captions are of NAME.jpg.1 or similar: taken as NAME.jpg"
    notes.tell(text, renamed)
    notes.tell(f"{path.name}: {empty:,} captions are empty: left out", empty)


def _unquoted(field: str) -> str:
    """A CSV field; quotes around it are optional, whether or not it contains commas."""
    field = field.strip()
    if len(field) >= 2 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"')
    return field


def _one_spaced(text: str) -> str:
    """The text with single spaces, and without anything that UTF-8 cannot encode."""
    return " ".join(text.encode("utf-8", "replace").decode().replace("\x00", " ").split())


# ---------------------------------------------------------------- Karpathy's JSON


def _read_karpathy(path: Path, notes: _Notes) -> _Table:
    try:
        content = json.loads(_read_text(path, notes))
    except RecursionError:
        raise InputError(f"{path} is not Karpathy's JSON: it is nested too deeply") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {one_line(error)}; download it again") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise InputError(f'{path} should hold {{"images": [...]}}, as dataset_flickr8k.json does')
    captions: dict[str, list[str]] = {}
    splits: dict[str, Split] = {}
    odd_splits: Counter[str] = Counter()
    malformed = empty = renamed = conflicts = 0
    for image in images:
        written, sentences = _karpathy_entry(image)
        if written is None:
            malformed += 1
            continue
        name = _plain_name(written)
        own = captions.setdefault(name, [])
        for sentence in sentences:
            caption = _karpathy_caption(sentence)
            renamed += name != written
            if caption is None:
                malformed += 1
            elif caption:
                own.append(caption)
            else:
                empty += 1
        split = image.get("split")
        if isinstance(split, str) and split in _KARPATHY_SPLITS:
            conflicts += _assign(splits, name, _KARPATHY_SPLITS[split])
        elif split is not None:
            odd_splits[_one_spaced(str(split))[:20]] += 1
    if not captions:
        raise InputError(
            f"{path} holds no captions: an image should be "
            '{"filename": "NAME.jpg", "split": "train", "sentences": [{"raw": "..."}]}'
        )
    lack = "lack a filename, sentences or a sentence's text"
    notes.tell(f"{path.name}: {malformed:,} entries {lack}: left out", malformed)
    _note_captions(path, renamed, empty, notes)
    names = ", ".join(repr(name) for name, _ in odd_splits.most_common(3))
    odd = odd_splits.total()
    notes.tell(
        f"{path.name}: {odd:,} photos are in splits other than train, val and test ({names})", odd
    )
    _note_conflicts(conflicts, notes)
    return _Table(captions, splits)


def _karpathy_entry(image: Any) -> tuple[str | None, list[Any]]:
    """The file name (None if not usable) and the sentences of an entry."""
    if not isinstance(image, dict):
        return None, []
    name, sentences = image.get("filename"), image.get("sentences")
    if not isinstance(name, str) or not _one_spaced(name) or not isinstance(sentences, list):
        return None, []
    return _one_spaced(name), sentences


def _karpathy_caption(sentence: Any) -> str | None:
    if not isinstance(sentence, dict):
        return None
    raw, tokens = sentence.get("raw"), sentence.get("tokens")
    if isinstance(raw, str):
        return _one_spaced(raw)
    if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
        return _one_spaced(" ".join(tokens))
    return None


# ---------------------------------------------------------------- splits


def _assign(splits: dict[str, Split], name: str, split: Split) -> bool:
    """Assigns a photo to a split, the later of train, dev, test if it has two; returns whether so."""
    known = splits.setdefault(name, split)
    order = get_args(Split)
    splits[name] = max(known, split, key=order.index)
    return known != split


def _note_conflicts(conflicts: int, notes: _Notes) -> None:
    kept = "kept in the later of train, dev, test, so never trained on"
    notes.tell(f"{conflicts:,} photos are in two splits: {kept}", conflicts)


def _read_splits(
    files: Mapping[str, Path],
    captions: Mapping[str, list[str]],
    seed: int,
    caption_file: Path,
    notes: _Notes,
) -> dict[str, Split]:
    there = {split: files.get(file.lower()) for split, file in _SPLIT_FILES.items()}
    if not any(there.values()):
        return _random_splits(captions, seed, caption_file, notes)
    splits: dict[str, Split] = {}
    conflicts = unknown = 0
    for split, path in there.items():
        if path is None:
            notes.tell(f"there is no {_SPLIT_FILES[split]}: the {split} split is empty")
            continue
        names = [_plain_name(_one_spaced(line)) for _, line in _lines(path, notes)]
        meant = _matched(set(names), path.name, captions.keys(), caption_file.name, notes)
        conflicts += sum(_assign(splits, meant[name], split) for name in names if name in meant)
        unknown += sum(name not in meant for name in names)
    where = f"in the split files have no captions in {caption_file.name}"
    notes.tell(f"{unknown:,} names {where}: left out", unknown)
    _note_conflicts(conflicts, notes)
    return splits


def _random_splits(
    captions: Mapping[str, list[str]], seed: int, caption_file: Path, notes: _Notes
) -> dict[str, Split]:
    """An eighth each for dev and test, by the rank of a hash of each name.

    By a hash, so that adding or removing a photo hardly moves any other between splits.
    """
    ranked = sorted(captions, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    share = len(ranked) // 8
    splits: dict[str, Split] = {
        name: "dev" if place < share else "test" if place < 2 * share else "train"
        for place, name in enumerate(ranked)
    }
    notes.tell(
        f"{caption_file.name} comes without splits: {len(ranked) - 2 * share:,} photos for train, "
        f"{share:,} for dev and {share:,} for test are drawn with split_seed {seed}; scores are not "
        "comparable with those on the published split"
    )
    return splits


# ---------------------------------------------------------------- the whole data set


def _join(root: Path, table: _Table, notes: _Notes) -> tuple[Photo, ...]:
    folder, there = _photo_files(root, set(table.captions))
    if not there:
        raise InputError(
            f"none of the {len(table.captions):,} captioned photos is in {str(root)!r} or at most "
            f"{_DEEPEST} folders below; {_expected()}"
        )
    meant = _matched(table.captions.keys(), "the captions", there.keys(), str(folder), notes)
    files = {name: there[file] for name, file in meant.items()}
    missing = [name for name in table.captions if name not in files]
    lost = sum(len(table.captions[name]) for name in missing)
    if lost:
        notes.tell(
            f"{lost:,} captions are of {len(missing):,} photos that are not in {folder}: left out "
            f"(the first: {min(missing)})"
        )
    bare = [name for name, own in table.captions.items() if not own]
    notes.tell(f"{len(bare):,} photos have only empty captions: left out", len(bare))
    spare = set(there.values()) - set(files.values())
    notes.tell(f"{len(spare):,} photos in {folder} have no captions", len(spare))
    photos = tuple(
        Photo(name, files[name], table.splits.get(name), tuple(own))
        for name, own in sorted(table.captions.items())
        if own and name in files
    )
    stray = sum(photo.split is None for photo in photos)
    notes.tell(f"{stray:,} photos with captions are in no split: not used", stray)
    if not any(photo.split == "train" for photo in photos):
        raise InputError(
            f"{str(root)!r} holds no photo of the train split with a caption"
            + (f": {notes.lines[-1]}" if notes.lines else "")
        )
    return photos
