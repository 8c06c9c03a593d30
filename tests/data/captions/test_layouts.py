"""Reading Flickr8k: every layout gives the same data, every fault its line, and nothing gets lost."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.captions.copies import (
    CAPTION_FILES,
    LAYOUTS,
    SHARED,
    names,
    some_captions,
    some_splits,
    write,
)
from wsram_ppl.data.captions.layouts import Flickr8k, Photo, read_flickr8k
from wsram_ppl.data.pictures import is_lfs_pointer
from wsram_ppl.errors import InputError

CAPTIONS = some_captions(12)
SPLITS = some_splits(CAPTIONS)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def content(data: Flickr8k) -> list[tuple[str, str | None, tuple[str, ...]]]:
    return [(photo.name, photo.split, photo.captions) for photo in data.photos]


def notice(data: Flickr8k, pattern: str) -> str:
    (line,) = [line for line in data.notices if re.search(pattern, line)]
    return line


def told(data: Flickr8k, pattern: str) -> int:
    """The number that the notice with this pattern (a group for the number) tells; 0 without one."""
    found = [match for line in data.notices if (match := re.match(pattern, line))]
    assert len(found) <= 1
    return sum(int(match[1].replace(",", "")) for match in found)


def split(data: Flickr8k, name: str) -> list[Photo]:
    return [photo for photo in data.photos if photo.split == name]


# ---------------------------------------------------------------- whole copies


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("texts", [".", "Flickr8k_text"])
@pytest.mark.parametrize("photos", ["Flicker8k_Dataset", "Images", "Flickr_Data/Images", "."])
def test_every_usual_place(tmp_path: Path, layout: str, texts: str, photos: str) -> None:
    write(tmp_path, layout, CAPTIONS, SPLITS, texts=texts, photos=photos)
    data = read_flickr8k(str(tmp_path))
    assert data.notices == ()
    assert content(data) == [(name, SPLITS[name], tuple(CAPTIONS[name])) for name in sorted(CAPTIONS)]
    assert all(photo.path == tmp_path / photos / photo.name for photo in data.photos)


printable = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\t")
captions_of_photos = st.lists(
    st.lists(st.text(printable, max_size=30), min_size=1, max_size=3), min_size=2, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(captions_of_photos, st.data())
def test_all_layouts_tell_the_same(texts: list[list[str]], data: st.DataObject) -> None:
    texts[0][0] = "a dog"  # one photo to train on
    captions = dict(zip(names(len(texts)), texts, strict=True))
    splits = {name: data.draw(st.sampled_from(["train", "dev", "test"])) for name in captions}
    splits[names(1)[0]] = "train"
    newline = data.draw(st.sampled_from(["\n", "\r\n"]))
    found = []
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), layout, captions, splits, newline)
            read = read_flickr8k(folder)
            found.append(content(read))
            lost = sum(map(len, texts)) - sum(len(photo.captions) for photo in read.photos)
            assert lost == told(read, r"([\d,]+) captions of \S+ are empty: left out$")
    assert found[0] == found[1]
    # In CSV a caption in quotes cannot be told from a quoted caption, but Python quotes those again.
    assert found[0] == found[2]


def test_commas_without_quotes(tmp_path: Path) -> None:
    """Copies of captions.txt that were not written by a CSV library."""
    path = write(tmp_path, "kaggle", CAPTIONS, SPLITS)
    lines = [f"{name},{text}" for name, own in CAPTIONS.items() for text in own]
    path.write_text("image,caption\n" + "\n".join(lines))
    data = read_flickr8k(tmp_path)
    assert {photo.name: list(photo.captions) for photo in data.photos} == CAPTIONS
    assert data.notices == ()


def as_csv(separator: str, quoting: Literal[0, 1], index: bool, titles: bool = True) -> str:
    """Kaggle's captions as a CSV library writes them, some over two lines."""
    file = io.StringIO()
    rows = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator="\n")
    if titles:
        rows.writerow([*([""] if index else []), "image", "caption"])
    captions = [(name, text) for name, own in CAPTIONS.items() for text in own]
    for number, (name, text) in enumerate(captions):
        broken = text.replace(" , ", " ,\n\n", 1)
        rows.writerow([*([number] if index else []), name, broken])
    return file.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_of_every_kind(
    tmp_path: Path, separator: str, quoting: Literal[0, 1], index: bool, newline: str
) -> None:
    path = write(tmp_path, "kaggle", CAPTIONS, SPLITS)
    for titles in (True, False):
        text = as_csv(separator, quoting, index, titles)
        assert "number 0" in text and text.count("\n") > 40
        path.write_bytes(text.replace("\n", newline).encode())
        data = read_flickr8k(tmp_path)
        assert {photo.name: list(photo.captions) for photo in data.photos} == CAPTIONS
        assert data.notices == ()


def test_quotes_that_are_never_closed_cost_a_row_at_most(tmp_path: Path) -> None:
    path = write(tmp_path, "kaggle", CAPTIONS, SPLITS)
    first, second, third = names(3)
    lines = [
        "image,caption",
        f'{first},"A dog runs .',
        f'{first},"big" dogs .',
        f'{second},"A dog',
        "",
        ' runs ""fast"" ."',
        "lost",
        f'{second},"A cat',
        "lost too",
        f'{third},"An ""odd"" one"',
    ]
    path.write_text("\n".join(lines))
    data = read_flickr8k(tmp_path)
    assert {photo.name: list(photo.captions) for photo in data.photos} == {
        first: ['"A dog runs .', '"big" dogs .'],
        second: ['A dog runs "fast" .', '"A cat'],
        third: ['An "odd" one'],
    }
    assert notice(data, "lines of") == (
        "2 lines of captions.txt are not NAME.jpg,a caption: left out (the first: line 7)"
    )


def test_a_long_file_without_a_row_is_read_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "kaggle", CAPTIONS, SPLITS)
    path.write_text(f'{names(1)[0]},"A dog .\n' + 'no " row\n' * 100_000)
    assert "100,000 lines of captions.txt are not" in notice(read_flickr8k(tmp_path), "lines of")


def test_tokens_where_karpathys_file_has_no_raw_text(tmp_path: Path) -> None:
    path = write(tmp_path, "karpathy", CAPTIONS, SPLITS)
    table = json.loads(path.read_text())
    for image in table["images"]:
        for sentence in image["sentences"]:
            del sentence["raw"]
    path.write_text(json.dumps(table))
    assert read_flickr8k(tmp_path).photos[0].captions[0] == "a dog , number 0 , runs ."


# ---------------------------------------------------------------- choices, announced


def test_a_seeded_split_where_there_is_none(tmp_path: Path) -> None:
    captions = some_captions(80)
    write(tmp_path, "kaggle", captions)
    data = read_flickr8k(tmp_path)
    assert [len(split(data, s)) for s in ("train", "dev", "test")] == [60, 10, 10]
    assert "60 photos for train, 10 for dev and 10 for test are drawn with split_seed 0" in notice(
        data, "comes without splits"
    )
    assert content(read_flickr8k(tmp_path)) == content(data)
    other = read_flickr8k(tmp_path, split_seed=1)
    assert content(other) != content(data) and len(split(other, "dev")) == 10
    # A photo less moves hardly any other.
    (tmp_path / "captions.txt").write_text("\n".join(f"{name},a dog" for name in list(captions)[:-1]))
    before = {photo.name: photo.split for photo in data.photos}
    after = read_flickr8k(tmp_path).photos
    assert sum(before[photo.name] != photo.split for photo in after) <= 3


def test_split_files_beside_kaggles_captions(tmp_path: Path) -> None:
    write(tmp_path, "kaggle", CAPTIONS, SPLITS)
    assert {photo.name: photo.split for photo in read_flickr8k(tmp_path).photos} == SPLITS


def test_several_layouts_in_one_folder(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        write(tmp_path, layout, {name: [layout] for name in CAPTIONS}, SPLITS)
    data = read_flickr8k(tmp_path)
    assert data.photos[0].captions == ("illinois",)
    assert data.notices == (
        f"captions and splits are read from {tmp_path / 'Flickr8k.token.txt'}; dataset_flickr8k.json "
        "and captions.txt is also there (layout chooses another)",
    )
    for layout in LAYOUTS:
        chosen = read_flickr8k(tmp_path, layout=layout)  # type: ignore[arg-type]
        assert (chosen.photos[0].captions, chosen.notices) == ((layout,), ())


def test_a_layout_with_splits_before_one_without(tmp_path: Path) -> None:
    """The published split of Karpathy's file, not a random one of the token file."""
    for layout in LAYOUTS:
        write(tmp_path, layout, CAPTIONS, SPLITS if layout == "karpathy" else None)
    data = read_flickr8k(tmp_path)
    assert {photo.name: photo.split for photo in data.photos} == SPLITS
    assert data.notices == (
        f"captions and splits are read from {tmp_path / 'dataset_flickr8k.json'}; Flickr8k.token.txt "
        "and captions.txt is also there (layout chooses another)",
    )
    (tmp_path / "dataset_flickr8k.json").unlink()
    assert notice(read_flickr8k(tmp_path), "layout chooses").startswith(
        f"captions, without splits, are read from {tmp_path / 'Flickr8k.token.txt'}; captions.txt is"
    )


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_split_is_told_with_the_remedy(tmp_path: Path, layout: str, split: str) -> None:
    splits = {name: "train" if SPLITS[name] == split else SPLITS[name] for name in CAPTIONS}
    write(tmp_path, layout, CAPTIONS, splits)
    remedy = f"name its photos in Flickr_8k.{split}Images.txt"
    if layout == "karpathy":
        remedy = f'give its photos "split": "{split}" in dataset_flickr8k.json'
    assert read_flickr8k(tmp_path).notices == (f"the {split} split is empty: {remedy}",)


def test_a_missing_split_file(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, SPLITS)
    (tmp_path / "Flickr_8k.testImages.txt").unlink()
    data = read_flickr8k(tmp_path)
    assert data.notices == (
        "3 photos with captions are in no split: not used (the first: 1003_0003.jpg)",
        "the test split is empty: name its photos in Flickr_8k.testImages.txt",
    )
    assert [photo.name for photo in data.photos if photo.split is None] == names(12)[3::4]


# ---------------------------------------------------------------- known traps, one line each


def test_windows_line_ends(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, SPLITS, newline="\r\n")
    data = read_flickr8k(tmp_path)
    assert content(data) == [(name, SPLITS[name], tuple(CAPTIONS[name])) for name in sorted(CAPTIONS)]
    assert data.notices == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_downloads_name(tmp_path: Path, layout: str) -> None:
    """2258277193_586949ec62.jpg.1, as the original token file has it."""
    captions = {"2258277193_586949ec62.jpg.1": ["A dog .", "Two dogs ."], **CAPTIONS}
    splits = {"2258277193_586949ec62.jpg": "train", "2258277193_586949ec62.jpg.1": "train", **SPLITS}
    write(tmp_path, layout, captions, splits)
    folder = tmp_path / "Flicker8k_Dataset"
    (folder / "2258277193_586949ec62.jpg.1").rename(folder / "2258277193_586949ec62.jpg")
    data = read_flickr8k(tmp_path)
    assert data.notices == ()
    (photo,) = [photo for photo in data.photos if photo.name.startswith("2258")]
    assert photo == Photo(
        "2258277193_586949ec62.jpg", folder / photo.name, "train", ("A dog .", "Two dogs .")
    )


def test_captions_of_missing_photos(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, SPLITS)
    for name in names(2):
        (tmp_path / "Flicker8k_Dataset" / name).unlink()
    data = read_flickr8k(tmp_path)
    assert data.notices == (
        f"4 captions are of photos that are not in {tmp_path}: left out (the first: 1000_0000.jpg)",
    )


def test_photos_in_no_split(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, {name: SPLITS[name] for name in names(9)})
    data = read_flickr8k(tmp_path)
    assert data.notices == (
        "3 photos with captions are in no split: not used (the first: 1009_0009.jpg)",
    )
    assert [photo.split for photo in data.photos[-3:]] == [None] * 3


def test_photos_in_two_splits_are_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, SPLITS)
    with open(tmp_path / "Flickr_8k.trainImages.txt", "a") as file:
        file.write(f"{names(2)[1]}\n{names(4)[3]}\n")
    data = read_flickr8k(tmp_path)
    assert data.notices == (
        "2 photos are in two splits: kept in the later of train, dev, test, so never trained on (the "
        "first: 1001_0001.jpg)",
    )
    assert {photo.name: photo.split for photo in data.photos} == SPLITS


def test_names_without_captions_and_photos_without_captions(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, {**SPLITS, "999.jpg": "dev"})
    (tmp_path / "Flicker8k_Dataset" / "spare.jpg").touch()
    (tmp_path / "Flicker8k_Dataset" / "._spare.jpg").touch()
    (tmp_path / "Flicker8k_Dataset" / "Thumbs.db").touch()
    data = read_flickr8k(tmp_path)
    assert data.notices == (
        "1 names in the split files have no captions in Flickr8k.token.txt: left out (the first: "
        "999.jpg)",
        "1 photos in the same folders have no captions (the first: spare.jpg)",
    )


def test_lines_that_are_none(tmp_path: Path) -> None:
    path = write(tmp_path, "illinois", CAPTIONS, SPLITS)
    lines = path.read_text().splitlines()
    lines[3:3] = ["no tab here", "", "   ", "x.jpg\tno number"]
    lines += [f"{names(1)[0]}#9\t  "]
    path.write_text("\n".join(lines))
    data = read_flickr8k(tmp_path)
    assert data.notices == (
        "2 lines of Flickr8k.token.txt are not NAME.jpg#0, a tab, a caption: left out (the first: "
        "line 4)",
        "1 captions of Flickr8k.token.txt are empty: left out",
    )


def test_a_photo_with_empty_captions_alone(tmp_path: Path) -> None:
    """A caption of punctuation has no word either: it would train the end mark alone."""
    write(tmp_path, "illinois", {**CAPTIONS, "z.jpg": ["", " ...!"]}, {**SPLITS, "z.jpg": "dev"})
    data = read_flickr8k(tmp_path)
    assert data.notices == (
        "2 captions of Flickr8k.token.txt are empty: left out",
        "1 photos have only empty captions: left out (the first: z.jpg)",
    )
    assert len(data.photos) == 12


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path, "illinois", CAPTIONS, SPLITS)
    path.write_bytes(path.read_bytes() + f"{names(1)[0]}#7\tA caf\xe9 .\n".encode("latin-1"))
    data = read_flickr8k(tmp_path)
    assert data.photos[0].captions[-1] == "A café ."
    assert data.notices == ("Flickr8k.token.txt is not UTF-8: read as Latin-1",)


def test_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "illinois", CAPTIONS, SPLITS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert content(read_flickr8k(tmp_path))[0][0] == names(1)[0]


def test_odd_entries_of_karpathys_file(tmp_path: Path) -> None:
    path = write(tmp_path, "karpathy", CAPTIONS, SPLITS)
    table = json.loads(path.read_text())
    table["images"] += [7, {"filename": "x.jpg"}, {"filename": None, "sentences": []}]
    table["images"][0]["sentences"] += [{"raw": 3}, {"raw": " "}, "text"]
    table["images"][1]["split"] = "holdout"
    path.write_text(json.dumps(table))
    data = read_flickr8k(tmp_path)
    file = "dataset_flickr8k.json"
    assert data.notices == (
        f"5 entries of {file} lack a filename, sentences or a sentence's text: left out",
        f"1 captions of {file} are empty: left out",
        f"1 photos of {file} are in splits other than train, val and test (the first: 'holdout')",
        "1 photos with captions are in no split: not used (the first: 1001_0001.jpg)",
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_in_other_capitals_and_unicode_forms(tmp_path: Path, layout: str) -> None:
    """As a copy by way of Windows or macOS leaves them."""
    composed, decomposed = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))
    captions = {**CAPTIONS, composed: ["A café ."]}
    splits = {**SPLITS, composed: "train"}
    write(tmp_path, layout, captions, splits)
    folder = tmp_path / "Flicker8k_Dataset"
    (folder / composed).rename(folder / decomposed)
    for name in names(2):
        (folder / name).rename(folder / name.upper())
    data = read_flickr8k(tmp_path)
    assert content(data) == [(name, splits[name], tuple(captions[name])) for name in sorted(captions)]
    assert [photo.path.name for photo in data.photos[:2]] == [name.upper() for name in names(2)]
    assert data.photos[-1].path == folder / decomposed
    assert data.notices == ()


def test_split_files_with_other_capitals(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, SPLITS)
    path = tmp_path / "Flickr_8k.devImages.txt"
    path.write_text(path.read_text().upper())
    data = read_flickr8k(tmp_path)
    assert {photo.name: photo.split for photo in data.photos} == SPLITS
    assert data.notices == ()


def test_names_that_only_capitals_tell_apart(tmp_path: Path) -> None:
    """Which of two is meant is not guessed."""
    captions = {**CAPTIONS, "A.jpg": ["One ."], "a.jpg": ["Another ."]}
    write(tmp_path, "illinois", captions, {**SPLITS, "A.jpg": "train"})
    data = read_flickr8k(tmp_path)
    assert content(data) == [(name, SPLITS[name], tuple(CAPTIONS[name])) for name in sorted(CAPTIONS)]
    assert notice(data, "names occur twice") == (
        "1 names occur twice, apart from folder or case: left out; photos need names of their own (the "
        "first: 'A.jpg' and 'a.jpg')"
    )


def test_files_that_only_capitals_or_a_copys_number_tell_apart(tmp_path: Path) -> None:
    """The one whose name is written is taken; the other is told."""
    write(tmp_path, "illinois", CAPTIONS, SPLITS)
    folder = tmp_path / "Flicker8k_Dataset"
    first, second = names(2)
    (folder / f"{first}.1").touch()
    (folder / second.upper()).touch()
    data = read_flickr8k(tmp_path)
    assert [photo.path.name for photo in data.photos] == names(12)
    assert data.notices == (
        "2 more photos have the name of a captioned one, apart from folder or case: not used (the "
        f"first: '{folder / first}.1' beside '{folder / first}')",
    )


def test_links_to_nowhere_and_to_themselves(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, SPLITS)
    folder = tmp_path / "Flicker8k_Dataset"
    for path in (tmp_path / "loop", folder / "loop.jpg", tmp_path / "captions.txt"):
        path.symlink_to(path.name)
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "up").symlink_to("..")
    (folder / names(1)[0]).unlink()
    (folder / names(1)[0]).symlink_to(names(1)[0])
    data = read_flickr8k(tmp_path)
    assert [photo.name for photo in data.photos] == names(12)[1:]
    assert data.notices == (
        f"2 captions are of photos that are not in {tmp_path}: left out (the first: {names(1)[0]})",
    )


def test_a_thumbnail_folder_beside_the_photos(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, SPLITS, photos="Images")
    (tmp_path / "A").mkdir()
    for name in names(5):
        (tmp_path / "A" / name).touch()
    data = read_flickr8k(tmp_path)
    assert {photo.path.parent for photo in data.photos} == {tmp_path / "Images"}
    assert data.notices == (
        "5 more photos have the name of a captioned one, apart from folder or case: not used (the "
        f"first: '{tmp_path / 'A' / names(1)[0]}' beside '{tmp_path / 'Images' / names(1)[0]}')",
    )


# ---------------------------------------------------------------- where photos are, and their names


@pytest.mark.parametrize("end", [".jpeg", ".png", ".PNG", ".webp", ".bmp", ".gif"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_of_every_usual_kind(tmp_path: Path, layout: str, end: str) -> None:
    captions = {name.replace(".jpg", end): own for name, own in CAPTIONS.items()}
    write(tmp_path, layout, captions, some_splits(captions))
    data = read_flickr8k(tmp_path)
    assert {photo.name: list(photo.captions) for photo in data.photos} == captions
    assert data.notices == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_with_folders_and_with_spaces(tmp_path: Path, layout: str) -> None:
    """The folder does not matter, and nothing else of the name is changed."""
    captions = {"a  big dog.jpg": ["A dog ."], **CAPTIONS}
    splits = some_splits(captions)
    path = write(tmp_path, layout, captions, splits, photos="Pictures")
    for file in [path, *tmp_path.glob("*Images.txt")]:
        text = file.read_text()
        for n, name in enumerate(captions):
            text = text.replace(name, ["Images/", "./", "C:\\\\Images\\\\"][n % 3] + name)
        file.write_text(text)
    data = read_flickr8k(tmp_path)
    assert content(data) == [(name, splits[name], tuple(captions[name])) for name in sorted(captions)]
    assert data.notices == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_photos_in_several_folders(tmp_path: Path, layout: str) -> None:
    write(tmp_path, layout, CAPTIONS, SPLITS, photos="all")
    for name in CAPTIONS:
        folder = tmp_path / "photos" / SPLITS[name]
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).rename(folder / name)
    (tmp_path / "photos" / "dev" / "spare.png").touch()
    (tmp_path / "logo.png").touch()
    data = read_flickr8k(tmp_path)
    assert all(photo.path.parent.name == photo.split for photo in data.photos)
    assert data.notices == ("1 photos in the same folders have no captions (the first: spare.png)",)


def test_karpathys_folders(tmp_path: Path) -> None:
    """As his file about COCO has them; they decide where a name is in two folders."""
    path = write(tmp_path, "karpathy", CAPTIONS, SPLITS, photos="train2014")
    table = json.loads(path.read_text())
    (tmp_path / "val2014").mkdir()
    for image in table["images"][:3]:
        image["filepath"] = "val2014"
        (tmp_path / "val2014" / image["filename"]).touch()
    path.write_text(json.dumps(table))
    data = read_flickr8k(tmp_path)
    assert [photo.path.parent.name for photo in data.photos] == ["val2014"] * 3 + ["train2014"] * 9
    assert [photo.name for photo in data.photos] == names(12)
    assert notice(data, "3 more photos").endswith(
        f"'{tmp_path / 'train2014' / names(1)[0]}' beside '{tmp_path / 'val2014' / names(1)[0]}')"
    )


def test_photos_with_one_name_in_two_folders(tmp_path: Path) -> None:
    """Their captions are not mixed."""
    path = write(tmp_path, "kaggle", CAPTIONS, SPLITS)
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").touch()
    path.write_text(path.read_text() + "train/1.jpg,A dog .\nval/1.jpg,A cat .\n")
    data = read_flickr8k(tmp_path)
    assert [photo.name for photo in data.photos] == names(12)
    assert notice(data, "names occur twice").endswith("(the first: 'train/1.jpg' and 'val/1.jpg')")


@pytest.mark.parametrize("form", ["{stem}", "{stem}.jpg#0", "{stem}#3", "Images/{stem}.JPG "])
def test_split_files_that_name_photos_otherwise(tmp_path: Path, form: str) -> None:
    write(tmp_path, "illinois", CAPTIONS, SPLITS)
    for path in tmp_path.glob("*Images.txt"):
        stems = [name.removesuffix(".jpg") for name in path.read_text().split()]
        path.write_text("\n".join(form.format(stem=stem) for stem in stems))
    data = read_flickr8k(tmp_path)
    assert {photo.name: photo.split for photo in data.photos} == SPLITS
    assert data.notices == ()


def test_a_split_files_name_without_suffix_that_two_photos_have(tmp_path: Path) -> None:
    captions = {**CAPTIONS, "x.jpg": ["A dog ."], "x.png": ["A cat ."]}
    write(tmp_path, "illinois", captions, {**SPLITS, "x": "train"})
    data = read_flickr8k(tmp_path)
    assert "(the first: x)" in notice(data, "1 names in the split files have no captions")
    assert [photo.split for photo in data.photos[-2:]] == [None, None]


# ---------------------------------------------------------------- titles of columns


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image_name,comment_number,comment", "{name},{n},{text}"),
        ('"image_name"|"comment_number"|"comment"', " {name}| {n}| {text}"),
        ("id;file;caption_id;caption", "{n};{name};{n};{text}"),
        ("", "{name},{n},{text}"),
        ("", "{n},{name},{n},{text}"),
        ("image,caption", "{name},{n},{text}"),
        ("image,caption", "{n},{name},{text}"),
        ("id,bild,text", "{n},{name},{text}"),
        ("caption,image", '"{text}",{name}'),
        ("image,caption,split,width", '{name},"{text}",train,"1,5"'),
        ("split,sentence,photo", 'train,"{text}",{name}'),
    ],
)
def test_columns_are_found_by_their_titles(tmp_path: Path, header: str, row: str) -> None:
    """Captions hold commas; they need no quotes in the last column."""
    path = write(tmp_path, "kaggle", CAPTIONS, SPLITS)
    captions = {name: [text.replace('"', "") for text in own] for name, own in CAPTIONS.items()}
    rows = [
        row.format(name=name, n=n, text=text)
        for name, own in captions.items()
        for n, text in enumerate(own)
    ]
    path.write_text("\n".join([header, *rows]))
    data = read_flickr8k(tmp_path)
    assert {photo.name: list(photo.captions) for photo in data.photos} == captions
    assert data.notices == ()


def test_an_unquoted_caption_that_is_not_in_the_last_column(tmp_path: Path) -> None:
    path = write(tmp_path, "kaggle", CAPTIONS, SPLITS)
    first = names(1)[0]
    path.write_text(f"image,caption,split\n{first},A dog .,train\n{first},A dog , a cat .,train\n")
    data = read_flickr8k(tmp_path)
    assert content(data) == [(first, "train", ("A dog .",))]
    assert "1 lines of captions.txt are not NAME.jpg,a caption: left out (the first: line 3)" in (
        data.notices
    )


@pytest.mark.parametrize(
    "header", ["a,b,c", "image,caption,caption", "image,filename,caption", "id,a,b,c"]
)
def test_titles_that_do_not_tell_the_columns(tmp_path: Path, header: str) -> None:
    path = write(tmp_path, "kaggle", CAPTIONS, SPLITS)
    path.write_text(f"{header}\n{names(1)[0]},x,A dog .\n")
    assert refused(tmp_path) == (
        f"{path}: its first line should be the titles of its columns, one of them image and one of them "
        f"caption, not '{header}'"
    )


# ---------------------------------------------------------------- what leaves nothing to work with


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_flickr8k(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    message = refused(tmp_path / "nowhere")
    assert "nowhere' does not exist; the root of Flickr8k should hold one of" in message
    assert "Flickr8k.token.txt, dataset_flickr8k.json, captions.txt" in message
    (tmp_path / "file").touch()
    assert "file' is not a folder" in refused(tmp_path / "file")
    assert "does not exist" in refused(Path("a\0b"))


def test_no_captions(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith(f"no captions in '{tmp_path}' or at most 3 folders below; ")


def test_a_layout_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "kaggle", CAPTIONS)
    message = refused(tmp_path, layout="karpathy")
    assert message.startswith("no dataset_flickr8k.json in ") and message.endswith("there is kaggle")
    assert "unknown layout 'karpaty'; did you mean 'karpathy'?" in refused(tmp_path, layout="karpaty")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_lfs_pointer(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path, layout, CAPTIONS, SPLITS)
    path.write_bytes(POINTER)
    assert is_lfs_pointer(POINTER)
    assert refused(tmp_path) == (
        f"{path} is a Git LFS pointer, not the file itself: run git lfs pull where it came from, or "
        "download the file"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON: JSONDecodeError: Expecting property name"),
        ("[]", 'should hold {"images": [...]}, as dataset_flickr8k.json does'),
        ('{"images": []}', "holds no captions: an image should be"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"images": ' + "1" * 5000 + "}", "is not valid JSON: ValueError: Exceeds the limit"),
    ],
)
def test_json_that_is_not_karpathys(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "karpathy", CAPTIONS, SPLITS)
    path.write_text(text)
    assert message in refused(tmp_path)


@pytest.mark.parametrize("layout", ["illinois", "kaggle"])
def test_another_file_of_that_name(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path, layout, CAPTIONS, SPLITS)
    path.write_text("Roses are red.\nViolets are blue.\n")
    assert refused(tmp_path).startswith(f"{path} holds no captions: a line should be NAME.jpg")


def test_no_photos(tmp_path: Path) -> None:
    write(tmp_path, "illinois", CAPTIONS, SPLITS, photos="a/b/c/d")
    message = refused(tmp_path)
    assert message.startswith(f"none of the 12 captioned photos is in '{tmp_path}' or at most 3 folders")
    assert message.endswith(
        "and a folder of photos (Flicker8k_Dataset or Images): 24 captions are of photos that are not "
        f"in {tmp_path}: left out (the first: 1000_0000.jpg)"
    )


def test_nothing_to_train_on(tmp_path: Path) -> None:
    """The error quotes every notice, since any of them may be the reason."""
    write(tmp_path, "illinois", {**CAPTIONS, "z.jpg": ["..."]}, {"y.jpg": "train", names(1)[0]: "dev"})
    assert refused(tmp_path) == (
        f"'{tmp_path}' holds no photo of the train split with a caption; name its photos in "
        "Flickr_8k.trainImages.txt: 1 captions of Flickr8k.token.txt are empty: left out; 1 names in "
        "the split files have no captions in Flickr8k.token.txt: left out (the first: y.jpg); 11 photos "
        "with captions are in no split: not used (the first: 1001_0001.jpg); 1 photos have only empty "
        "captions: left out (the first: z.jpg)"
    )
    write(tmp_path, "karpathy", CAPTIONS, dict.fromkeys(CAPTIONS, "holdout"))
    message = refused(tmp_path, layout="karpathy")
    assert 'caption; give its photos "split": "train" in dataset_flickr8k.json: 12 photos of' in message


def test_nothing_but_empty_captions(tmp_path: Path) -> None:
    write(tmp_path, "kaggle", {name: ["..."] for name in CAPTIONS}, SPLITS)
    message = refused(tmp_path)
    assert (
        "holds no photo of the train split" in message and "12 captions of captions.txt are" in message
    )


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without permission is passed over; other failures end the reading."""
    write(tmp_path, "illinois", CAPTIONS, SPLITS)
    (tmp_path / "lost+found").mkdir()
    real, failure = os.scandir, errno.EACCES

    def scandir(place: str) -> Any:
        if str(place).endswith("lost+found"):
            raise OSError(failure, os.strerror(failure), place)
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(read_flickr8k(tmp_path).photos) == 12
    failure = errno.EIO
    assert refused(tmp_path) == f"cannot list '{tmp_path / 'lost+found'}': Input/output error"


# ---------------------------------------------------------------- mangled files

edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=20)), min_size=1, max_size=8
)


def mangle(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for where, removed, added in changes:
        at = int(where * len(content))
        content = content[:at] + added + content[at + removed :]
    return content


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(LAYOUTS), edits, st.booleans())
def test_mangled_files_never_give_a_traceback(
    layout: str, changes: list[tuple[float, int, bytes]], splits_too: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), layout, CAPTIONS, SPLITS)
        if splits_too and layout != "karpathy":
            path = Path(folder) / "Flickr_8k.devImages.txt"
        path.write_bytes(mangle(path.read_bytes(), changes))
        try:
            data = read_flickr8k(folder)
        except InputError as error:
            assert "\n" not in str(error)
            return
        assert all("\n" not in line and len(line) < 1000 for line in data.notices)
        json.dumps([*content(data), *data.notices]).encode()
        for photo in data.photos:
            " ".join(photo.captions).encode()


@settings(deadline=None, max_examples=100)
@given(edits)
def test_no_line_is_lost_without_being_told(changes: list[tuple[float, int, bytes]]) -> None:
    """Every line with something in it is a caption that is there, or in the number of a notice."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "illinois", CAPTIONS, SPLITS)
        path.write_bytes(mangle(path.read_bytes(), changes))
        try:
            data = read_flickr8k(folder)
        except InputError:
            return
        raw = path.read_bytes()
        latin = any(line.startswith("Flickr8k.token.txt is not UTF-8") for line in data.notices)
        text = raw.decode("latin-1" if latin else "utf-8-sig")
        lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
        kept = sum(len(photo.captions) for photo in data.photos)
        lost = (
            r"([\d,]+) lines of Flickr8k.token.txt are not NAME.jpg#0, a tab, a caption",
            r"([\d,]+) captions of Flickr8k.token.txt are empty: left out$",
            r"([\d,]+) captions are of photos that are not in ",
        )
        assert kept + sum(told(data, pattern) for pattern in lost) == len(lines)


# ---------------------------------------------------------------- the real thing


def test_the_copy_at_hand() -> None:
    root = SHARED / "flickr8k"
    if not root.is_dir():
        pytest.skip(f"no copy of Flickr8k in {root}")
    data = read_flickr8k(root)
    assert (len(split(data, "train")), len(split(data, "dev"))) == (6000, 1000)
    assert all(len(photo.captions) == 5 for photo in data.photos)
    assert data.notices == ("the test split is empty: name its photos in Flickr_8k.testImages.txt",)
    assert set(CAPTION_FILES) == set(LAYOUTS)
