"""Flickr8k as a data source, and the command that computes its features."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import cli
from tests.data.captions.copies import NET, SHARED, add_photos, some_captions, some_splits, write
from wsram_ppl.config import build, load_config
from wsram_ppl.config.catalogue import DATA_SOURCES
from wsram_ppl.data.captions.batches import CaptionSource
from wsram_ppl.data.captions.flickr8k import FlickrCaptions
from wsram_ppl.data.captions.vocabulary import END, START, UNKNOWN, normalize
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import ComputesFeatures, DataSource

#: The second caption of each photo is like no other, by words that occur in many.
CAPTIONS = {
    name: [
        f"A {colour} dog runs .",
        f"The dog , number {n} {' '.join('yes' if bit == '1' else 'no' for bit in f'{n:06b}')}"
        f"{' barks' * (n % 5)} .",
    ]
    for (name, _), colour, n in zip(
        some_captions(40).items(), ["black", "white"] * 20, range(40), strict=True
    )
}
SPLITS = some_splits(CAPTIONS)
TRAIN = [name for name in CAPTIONS if SPLITS[name] == "train"]
DEV = [name for name in CAPTIONS if SPLITS[name] == "dev"]
BAD = {TRAIN[2]: b"", DEV[1]: b"not a photo"}


def options(root: Path, cache: Path, weights: Path) -> dict[str, Any]:
    return {
        "root": str(root),
        "cache": str(cache),
        "backbone": NET,
        "layers": [2, 3],
        "weights": str(weights),
        "image_size": 48,
        "mean": [127.0],
        "std": [128.0],
        "minimum_count": 5,
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> dict[str, Any]:
    """Options of a source whose features are computed; two of its photos cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    write(folder, "illinois", CAPTIONS, SPLITS, newline="\r\n", photos="Images")
    add_photos(folder / "Images", list(CAPTIONS))
    for name, content in BAD.items():
        (folder / "Images" / name).write_bytes(content)
    given = options(folder, folder / "cache", weights)
    FlickrCaptions.compute_features(given)
    return given


@pytest.fixture(scope="module")
def source(copy: dict[str, Any]) -> FlickrCaptions:
    return FlickrCaptions(**copy)


def said(source: FlickrCaptions, batch: Sequence[torch.Tensor]) -> list[str]:
    return [source.vocabulary.decode(row) for row in batch[0].tolist()]


def known(source: FlickrCaptions, text: str) -> str:
    words = normalize(text).split()
    return " ".join(word if word in source.vocabulary.words else "<unknown>" for word in words)


# ---------------------------------------------------------------- the source


def test_it_is_a_source_of_captions(source: FlickrCaptions) -> None:
    assert DATA_SOURCES.resolve("flickr8k") is FlickrCaptions
    assert isinstance(source, DataSource) and isinstance(source, CaptionSource)
    assert isinstance(FlickrCaptions, ComputesFeatures)
    assert source.layer_shapes == ((32, 6, 6), (48, 3, 3))
    assert source.to("cpu") is source
    # Numbers occur once each, so they are unknown; counted are training captions alone.
    assert set(source.vocabulary.words[3:]) == {
        *("a", "the", "black", "dog", "runs", "number", "yes", "no", "barks"),
    }


def test_problems_are_counted_and_told(source: FlickrCaptions) -> None:
    assert source.notices == (
        "2 photos cannot be read: left out, with their captions (the first: "
        f"{min(BAD)}: {'the file is empty' if min(BAD) == TRAIN[2] else 'not a picture'})",
    )


def test_a_training_batch(source: FlickrCaptions, copy: dict[str, Any]) -> None:
    words, mask, *maps = batch = source.training_batch(5, 8, 1)
    assert [part.dtype for part in batch] == [torch.int64, torch.bool, torch.float32, torch.float32]
    assert words.shape == mask.shape and (words[:, 0] == START).all() and not mask[:, 0].any()
    assert [m.shape for m in maps] == [(8, 32, 6, 6), (8, 48, 3, 3)]
    for row, counts in zip(words.tolist(), mask.tolist(), strict=True):
        length = row.index(END)
        assert counts == [False] + [True] * length + [False] * (len(row) - length - 1)
        assert set(row[length:]) == {END}
    assert words.shape[1] == int(mask.sum(1).max()) + 1
    fresh = FlickrCaptions(**copy)
    assert all(map(torch.equal, fresh.training_batch(5, 8, 1), batch))
    assert not torch.equal(fresh.training_batch(5, 8, 2)[2], maps[0])


def test_an_epoch_is_every_training_caption_with_its_photo(source: FlickrCaptions) -> None:
    good = [name for name in TRAIN if name not in BAD]
    # 19 photos with two captions each.
    batches = [source.training_batch(step, 19, 0) for step in range(2)]
    texts = sorted(text for batch in batches for text in said(source, batch))
    assert texts == sorted(known(source, text) for name in good for text in CAPTIONS[name])
    # A caption's maps are those of its photo: the net runs on the file again.
    root = source._splits["train"].photos[0].path.parent
    fresh = source.look_up([str(root / name) for name in good])
    of_text: dict[str, list[int]] = {}
    for place, name in enumerate(good):
        for text in CAPTIONS[name]:
            of_text.setdefault(known(source, text), []).append(place)
    for batch in batches:
        for row, text in enumerate(said(source, batch)):
            near = [
                all(
                    torch.allclose(batch[2 + k][row], fresh.maps[k][place], atol=5e-3, rtol=5e-3)
                    for k in (0, 1)
                )
                for place in of_text[text]
            ]
            assert sum(near) >= 1
            assert text == "a black dog runs" or near == [True]


def test_evaluation_is_every_caption_of_the_split(source: FlickrCaptions) -> None:
    good = [name for name in DEV if name not in BAD]
    batches = list(source.evaluation_batches(4))
    assert [len(batch[0]) for batch in batches] == [4, 4, 4, 4, 2]
    texts = sorted(text for batch in batches for text in said(source, batch))
    assert texts == sorted(known(source, text) for name in good for text in CAPTIONS[name])
    lengths = torch.cat([batch[1].sum(1) for batch in batches])
    assert torch.equal(lengths, lengths.sort().values)
    some = [batch for batch in source.evaluation_batches(4, 7)]
    assert [len(batch[0]) for batch in some] == [4, 3]
    again = torch.cat([batch[2] for batch in source.evaluation_batches(7, 7)])
    assert torch.equal(torch.cat([batch[2] for batch in some]), again)
    test = list(source.evaluation_batches(100, split="test"))
    assert [len(batch[0]) for batch in test] == [20]


def test_examples_are_photos_with_all_their_captions(source: FlickrCaptions) -> None:
    good = sorted(name for name in DEV if name not in BAD)
    parts = list(source.examples(4))
    assert [len(part.names) for part in parts] == [4, 4, 1]
    assert [name for part in parts for name in part.names] == good
    references = [own for part in parts for own in part.references]
    # Whole: a word that the model does not know still counts in a score.
    assert references == [[normalize(text) for text in CAPTIONS[name]] for name in good]
    root = source._splits["validation"].photos[0].path.parent
    looked_up = source.look_up([str(root / name) for name in good])
    assert looked_up.references == [[] for _ in good]
    for k in (0, 1):
        stored = torch.cat([part.maps[k] for part in parts])
        assert torch.allclose(stored, looked_up.maps[k], atol=5e-3, rtol=5e-3)
    (some,) = source.examples(10, 3)
    assert len(some.names) == 3 and set(some.names) <= set(good)
    assert [n for part in source.examples(1, 3) for n in part.names] == some.names
    pictures = source.pictures([good[0], str(root / good[1])])
    assert all(p.dtype == np.uint8 and p.ndim == 3 and p.shape[2] == 3 for p in pictures)


def test_batches_of_several_epochs_keep_to_the_vocabulary(source: FlickrCaptions) -> None:
    for step in (0, 3, 10**6, 2**40):
        words = source.training_batch(step, 38, 3)[0]
        assert int(words.max()) < len(source.vocabulary) and (words == UNKNOWN).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: s.training_batch(0, 39, 0),
            "a batch of 39 cannot be drawn from 38 training",
        ),
        (lambda s: s.training_batch(-1, 3, 0), "the step must be"),
        (lambda s: s.evaluation_batches(0), "the batch size must be"),
        (lambda s: s.examples(3, 0), "the number of held-out examples must be"),
        (
            lambda s: s.examples(3, split="train"),
            "unknown split 'train'; held-out splits are validation",
        ),
        (lambda s: s.look_up([]), "name at least one photo"),
        (lambda s: s.look_up(["nowhere.jpg"]), "cannot read the picture 'nowhere.jpg': No such file"),
        (lambda s: s.pictures([__file__]), "cannot read the picture '.*py': not a picture"),
    ],
)
def test_out_of_range(source: FlickrCaptions, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(source)


def test_a_photo_of_the_data_sets_name_is_still_the_users(
    source: FlickrCaptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / DEV[0]
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(mine, "png")
    monkeypatch.chdir(tmp_path)
    found = source.look_up([DEV[0]])
    assert found.names == [str(mine)]
    assert found.notes == (f"{DEV[0]}: its transparent parts are shown on white",)
    (picture,) = source.pictures(found.names)
    assert picture.shape == (10, 20, 3) and (picture == 255).all()
    (stored,) = source.pictures([DEV[0]])
    assert stored.shape != picture.shape


def test_photos_under_other_names_are_not_lost(
    copy: dict[str, Any], tmp_path: Path, weights: Path
) -> None:
    """Files whose names are not quite those in the captions."""
    shutil.copytree(copy["root"], tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    folder = tmp_path / "copy" / "Images"
    (folder / TRAIN[0]).rename(folder / TRAIN[0].upper())
    (folder / DEV[0]).rename(folder / f"{DEV[0]}.1")
    given = options(tmp_path / "copy", tmp_path / "cache", weights)
    FlickrCaptions.compute_features(given)
    source = FlickrCaptions(**given)
    assert [name for part in source.examples(100) for name in part.names] == [
        name for name in DEV if name not in BAD
    ]
    assert len(source._splits["train"].photos) == len(TRAIN) - 1


def test_a_split_without_photos(copy: dict[str, Any], tmp_path: Path, weights: Path) -> None:
    shutil.copytree(copy["root"], tmp_path / "copy")
    (tmp_path / "copy" / "Flickr_8k.testImages.txt").unlink()
    given = options(tmp_path / "copy", tmp_path / "cache", weights)
    with pytest.raises(InputError, match="there are no features of these 30 photos with these settings"):
        FlickrCaptions(**given)
    FlickrCaptions.compute_features(given)
    with pytest.raises(InputError, match="the test split holds no photos"):
        FlickrCaptions(**given).examples(3, split="test")


# ---------------------------------------------------------------- in an experiment

CONFIG = """
[data]
source = "flickr8k"
{data}
[model]
name = "glimpse-classifier"

[guide]
name = "inference"

[objective]
name = "wake-sleep"
"""


def config(folder: Path, given: dict[str, Any]) -> Path:
    lines = [f"{key} = {value!r}" for key, value in given.items()]
    path = folder / "photos.toml"
    path.write_text(CONFIG.format(data="\n".join(lines)))
    return path


def features(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["features", *map(str, arguments)])


def test_features_then_the_source_of_a_spec(tmp_path: Path, copy: dict[str, Any]) -> None:
    path = config(tmp_path, {**copy, "cache": str(tmp_path / "cache")})
    result = CliRunner().invoke(cli.main, ["train", str(path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "there are no features of these 40 photos" in result.output
    assert "compute them with wsram features EXPERIMENT" in result.output

    result = features(path)
    assert result.exit_code == 0, result.output
    notes, (line,) = result.stderr.splitlines(), result.stdout.splitlines()
    assert all(note.startswith(("note: ", "photo ")) for note in notes)
    assert re.fullmatch(r"photo \d+ of 40: [\d:]+ left", next(n for n in notes if n.startswith("photo")))
    assert any(note.startswith("note: 2 photos cannot be read") for note in notes)
    place = re.escape(str(tmp_path / "cache" / NET))
    assert re.fullmatch(
        rf"{place}-[0-9a-f]{{16}}: 38 photos, maps of 32 x 6 x 6, 48 x 3 x 3; "
        r"40 computed in \d+ s \([\d.]+ per second\)",
        line,
    )
    assert "computed before" in features(path).stdout
    assert "computed before" not in features(path, "--set", "data.layers=[1]").stdout

    built = build(load_config(path)).data
    assert isinstance(built, FlickrCaptions)
    assert torch.equal(
        built.training_batch(0, 4, 0)[2], FlickrCaptions(**copy).training_batch(0, 4, 0)[2]
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.root=nowhere",
            "error: 'nowhere' does not exist; the root of Flickr8k should hold",
        ),
        ("data.layers=[7]", "error: test_efficientnet does not have all of the layers [7]: it has 0"),
        ("data.layers=[]", "error: data.layers = []: "),
        ("data.weights=nowhere", "error: there is no file of weights 'nowhere'"),
        ("data.layout=kaggle", "error: no captions.txt in "),
        ("data.layout=kagle", "error: data.layout = 'kagle': should be 'auto', 'illinois', 'karpathy'"),
        ("data.source=sample", "error: data source 'sample' has no features to compute: train directly"),
    ],
)
def test_wrong_input_to_features(
    copy: dict[str, Any], tmp_path: Path, override: str, message: str
) -> None:
    result = features(config(tmp_path, copy), "--set", override)
    assert result.exit_code == 2 and message in result.output
    assert len([line for line in result.stderr.splitlines() if line.startswith("error")]) == 1
    assert os.listdir(tmp_path) == ["photos.toml"]


def test_the_real_copy(tmp_path: Path) -> None:
    """A few of the real photos with ImageNet's weights, as a user's experiment names them."""
    real, net = SHARED / "flickr8k", SHARED / "tf_efficientnet_lite0.safetensors"
    if not (real.is_dir() and net.is_file()):
        pytest.skip(f"no copy of Flickr8k or no weights in {SHARED}")
    (tmp_path / "Images").mkdir()
    for split, count in (("train", 6), ("dev", 2)):
        names = (real / f"Flickr_8k.{split}Images.txt").read_text().split()
        shutil.copy(real / f"Flickr_8k.{split}Images.txt", tmp_path)
        for name in names[:count]:
            shutil.copy(real / "Images" / name, tmp_path / "Images")
    shutil.copy(real / "Flickr8k.token.txt", tmp_path)
    given = {
        "root": str(tmp_path),
        "cache": str(tmp_path / "cache"),
        "weights": str(net),
        "mean": [127.0],
        "std": [128.0],
        "minimum_count": 2,
    }
    FlickrCaptions.compute_features(given)
    source = FlickrCaptions(**given)
    assert source.layer_shapes == ((112, 14, 14), (320, 7, 7))
    assert [line.split(":")[0] for line in source.notices] == [
        f"34,960 captions are of photos that are not in {tmp_path}",
        "the test split is empty",
    ]
    assert len(next(iter(source.evaluation_batches(100)))[0]) == 10
