"""Training, measuring and looking at captioners from the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

import cli
from tests.data.captions.copies import add_photos, some_splits, write
from tests.data.captions.test_flickr8k import CAPTIONS, DEV, options
from wsram_ppl.data.captions.scenes import VOCABULARY

TINY = """
[model]
name = "glimpse-captioner"
hidden = 8

[guide]
name = "caption-inference"

[objective]
name = "wake-sleep"
num_particles = 2

[training]
steps = 2
batch_size = 4
eval_examples = 8
"""
SCENES = '[data]\nsource = "scenes"\nheld_out = 12\n' + TINY
FEW = ["--samples", "2", "--particles", "3", "--examples", "8"]


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def fine(*args: str | Path) -> str:
    result = call(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def complaint(*args: str | Path) -> str:
    """The one line of a command that was given wrong input."""
    result = call(*args)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on scenes, not to be changed."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "tiny.toml").write_text(SCENES)
    fine("train", folder / "tiny.toml", "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A run on a few photos, in ``run`` beside the data."""
    folder = tmp_path_factory.mktemp("photos")
    write(folder, "illinois", CAPTIONS, some_splits(CAPTIONS), photos="Images")
    add_photos(folder / "Images", list(CAPTIONS))
    lines = ['[data]\nsource = "flickr8k"']
    lines += [f"{key} = {json.dumps(v)}" for key, v in options(folder, folder / "c", weights).items()]
    (folder / "tiny.toml").write_text("\n".join(lines) + "\n" + TINY)
    fine("features", folder / "tiny.toml")
    fine("train", folder / "tiny.toml", "--out", folder / "run")
    return folder


def test_a_row_of_metrics_holds_the_loss_per_word(run: Path) -> None:
    head, *rows = (run / "metrics.csv").read_text().splitlines()
    columns = head.split(",")
    found = [dict(zip(columns, row.split(","), strict=True)) for row in rows]
    assert {row["split"] for row in found} == {"train", "eval"}
    for row in found:
        # An untrained model of 20 words.
        assert 2 < float(row["nll_per_word"]) < 4
        assert 5 <= float(row["words"]) <= 12


def test_evaluate_as_json(run: Path) -> None:
    found = json.loads(fine("evaluate", run, *FEW, "--beam", "2", "--json"))
    assert {"bleu1", "bleu4", "bleu4_unpenalised", "brevity_penalty", "tokenisation"} <= found.keys()
    assert (found["sentences"], found["examples"], found["particles"]) == (8, 8, 3)
    assert (found["beam"], found["paths"]) == (2, 0)
    assert "sacrebleu" in found["scorer"]
    per_word = found["bound"] / found["words"]
    assert found["bound_per_word"] == pytest.approx(per_word)
    assert -4 < per_word < -2


def test_evaluate_in_words(run: Path) -> None:
    lines = {line.split()[0]: line for line in fine("evaluate", run, *FEW).splitlines()}
    assert {"bound", "ess", "nll_per_word", "BLEU-1..4", "without", "tokenisation", "scorer"} <= set(
        lines
    )
    assert re.fullmatch(r"  BLEU-1..4 +[\d.]+ / [\d.]+ / [\d.]+ / [\d.]+", lines["BLEU-1..4"])
    assert "without brevity penalty" in lines["without"]


def test_evaluate_on_another_split(run: Path) -> None:
    """What is not asked for is validation, of which dev is another name."""
    found = [
        json.loads(fine("evaluate", run, *FEW, *more, "--json"))
        for more in ([], ["--split", "validation"], ["--split", "dev"], ["--split", "test"])
    ]
    assert found[0] == found[1] == found[2]
    assert [each["split"] for each in found] == ["validation"] * 3 + ["test"]
    assert found[3]["bound"] != found[0]["bound"]


def test_paths_and_sampling_can_be_repeated(run: Path) -> None:
    for more in (["--paths", "3"], ["--beam", "0"]):
        one, two = (fine("evaluate", run, *FEW, *more, "--json") for _ in range(2))
        assert one == two


def test_caption_says_and_draws(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    lines = fine("caption", run, "0", "11", "0", "--paths", "4", "--out", out).splitlines()
    assert lines[1::2] == [f"  {out / name}" for name in ("0.png", "11.png", "0-2.png")]
    for line, name in zip(lines[::2], ("0", "11", "0"), strict=True):
        number, text = line.split(": ", 1)
        assert number == name
        assert set(text.split()) <= set(VOCABULARY.words[3:])
    with Image.open(out / "0.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 300


def test_caption_describes_photos_of_the_users_own(photos: Path, tmp_path: Path) -> None:
    mine = tmp_path / "my photo.jpg"
    shutil.copy(photos / "Images" / DEV[0], mine)
    lines = fine("caption", photos / "run", mine).splitlines()
    assert lines[0].startswith(f"{mine}: ")
    assert lines[1] == f"  {photos / 'run' / 'captions' / 'my photo.png'}"
    assert (photos / "run" / "captions" / "my photo.png").is_file()
    found = json.loads(fine("evaluate", photos / "run", *FEW, "--json"))
    assert found["sentences"] == 8


def test_caption_draws_the_photo_that_it_describes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one with the name of a photo in the data set; and each to a file of its own."""
    mine = [tmp_path / name for name in (DEV[0], f"b/{DEV[0]}", f"a/{Path(DEV[0]).stem}-2.png")]
    for colour, path in zip(("red", "lime", "blue"), mine, strict=True):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), colour).save(path, "png")
    monkeypatch.chdir(tmp_path)
    paths = [str(path.relative_to(tmp_path)) for path in mine]
    lines = fine("caption", photos / "run", *paths, "--out", tmp_path / "out").splitlines()
    stem = Path(DEV[0]).stem
    drawn = [tmp_path / "out" / f"{stem}{more}.png" for more in ("", "-2", "-2-2")]
    assert lines[1::2] == [f"  {path}" for path in drawn]
    assert [line.split(": ")[0] for line in lines[::2]] == paths
    for path, colour in zip(drawn, ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True):
        with Image.open(path) as picture:
            assert picture.convert("RGB").getpixel((90, 90)) == colour


def test_caption_says_what_it_did_to_a_picture(photos: Path, tmp_path: Path) -> None:
    deep, clear = tmp_path / "deep.png", tmp_path / "clear.png"
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(deep)
    Image.new("RGBA", (64, 64)).save(clear)
    result = call("caption", photos / "run", deep, clear, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"note: {deep}: its pixels, from 0 to 65,535, are scaled to 8 bits",
        f"note: {clear}: its transparent parts are shown on white",
    ]
    for path, grey in ((deep, 156), (clear, 255)):
        with Image.open(tmp_path / "out" / path.name) as picture:
            assert picture.convert("RGB").getpixel((90, 90)) == (grey,) * 3


def test_the_vocabulary_is_saved_with_the_run(photos: Path, tmp_path: Path) -> None:
    kept = json.loads((photos / "run" / "data.json").read_text())
    assert "dog" in kept["words"]
    # Another word is frequent now: the numbers of words are others.
    other = shutil.copytree(photos / "run", tmp_path / "run")
    kept["words"].remove("dog")
    (other / "data.json").write_text(json.dumps(kept))
    line = complaint("evaluate", other)
    assert f"the data have changed since {other} was started (words not as in" in line
    assert "restore the old data, or train again" in line
    mine = photos / "Images" / DEV[0]
    for text, why in (("no JSON", "cannot read"), ("{}", f"{other / 'data.json'} is damaged")):
        (other / "data.json").write_text(text)
        assert why in complaint("caption", other, mine)
    (other / "data.json").unlink()
    assert f"there is no {other / 'data.json'}, which a model is built" in complaint(
        "caption", other, mine
    )


def test_a_run_is_measured_on_other_photos_by_its_own_words(photos: Path, tmp_path: Path) -> None:
    """Their vocabulary is another; the words of the run's count."""
    said = {name: [f"{text} with a zebra" for text in own] for name, own in CAPTIONS.items()}
    write(tmp_path, "illinois", said, some_splits(said), photos="Images")
    add_photos(tmp_path / "Images", list(said))
    place = f"data.root={tmp_path}"
    fine("features", photos / "tiny.toml", "--set", place)
    found = json.loads(fine("evaluate", photos / "run", *FEW, "--json", "--set", place))
    own = json.loads(fine("evaluate", photos / "run", *FEW, "--json"))
    assert found["words"] > own["words"]  # three more, the zebra unknown


def test_a_run_that_goes_on_must_have_the_data_that_it_began_with(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SCENES)
    out = tmp_path / "run"
    fine("train", tmp_path / "tiny.toml", "--out", out)
    (out / "summary.json").unlink()
    (out / "data.json").write_text(json.dumps({"words": ["a"]}))
    line = complaint("train", "--resume", out)
    assert "the data have changed" in line
    assert "words, layer_shapes not as in" in line


def test_wrong_input(run: Path, tmp_path: Path) -> None:
    assert "Missing argument 'PHOTOS...'" in complaint("caption", run)
    assert "there is no held-out scene '12'; there are 0 to 11" in complaint("caption", run, "12")
    assert "is not a run: it has no config.toml" in complaint("caption", tmp_path, "0")
    assert "-1 is not in the range" in complaint("evaluate", run, "--beam", "-1")
    (tmp_path / "file").write_text("")
    result = call("caption", run, "0", "--out", tmp_path / "file")
    assert result.exit_code == 1
    assert f"cannot write {tmp_path / 'file' / '0.png'}" in result.stderr
    assert "there is no held-out scene" in complaint("caption", run, "9" * 5000)


def test_what_is_no_photo(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no photo")
    assert "cannot read the picture" in complaint("caption", photos / "run", tmp_path / "a.jpg")
    assert "No such file" in complaint("caption", photos / "run", tmp_path / "b.jpg")


def test_captions_of_own_photos_need_no_data_set(photos: Path, weights: Path, tmp_path: Path) -> None:
    """A run that was passed on, without photos and features; only the conv net's weights have moved."""
    run, mine, gone = tmp_path / "run", tmp_path / "mine.jpg", tmp_path / "gone"
    shutil.copytree(photos / "run", run)
    shutil.copy(photos / "Images" / DEV[0], mine)
    config = run / "config.toml"
    text = config.read_text()
    for place in (photos, photos / "c", weights):
        assert f'"{place}"' in text
        text = text.replace(f'"{place}"', f'"{gone}"')
    config.write_text(text)
    assert f"{gone}" in complaint("caption", run, mine)
    said = fine("caption", run, mine, "--set", f"data.weights={weights}").splitlines()
    assert said == [
        fine("caption", photos / "run", mine).splitlines()[0],
        f"  {run / 'captions' / 'mine.png'}",
    ]
    assert f'root = "{gone}"' in config.read_text()
    line = complaint("evaluate", run)
    assert f"data.root = '{gone}'" in line and "not found, seen from " in line


def test_other_weights_of_the_net_are_refused(photos: Path, weights: Path, tmp_path: Path) -> None:
    state = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(state, tmp_path / "other.safetensors")
    line = complaint(
        "caption", photos / "run", photos / "Images" / DEV[0],
        "--set", f"data.weights={tmp_path / 'other.safetensors'}",
    )  # fmt: skip
    assert "but the run was trained with sha256:" in line


def test_a_model_without_attention_writes_captions(run: Path, tmp_path: Path) -> None:
    """It reports no looks: sentences are printed, and nothing is drawn."""
    (tmp_path / "blind.py").write_text(
        "from wsram_ppl.models.captioner import GlimpseCaptioner, GlimpseSpeaker\n\n\n"
        "class Speaker(GlimpseSpeaker):\n"
        "    def looks(self, state, chosen):\n"
        "        return None\n\n\n"
        "class Blind(GlimpseCaptioner):\n"
        "    def speaker(self, paths=None):\n"
        "        return Speaker(self, paths)\n"
    )
    (tmp_path / "blind.toml").write_text(SCENES.replace("glimpse-captioner", "blind:Blind"))

    def run_here(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "wsram_ppl", *args], cwd=tmp_path, capture_output=True, text=True,
            check=True, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent)},
        )  # fmt: skip

    run_here("train", "blind.toml", "--out", "run")
    found = run_here("caption", "run", "3", "4")
    assert [line.split(":")[0] for line in found.stdout.splitlines()] == ["3", "4"]
    assert "note: model 'blind:Blind' does not report where it looks: nothing is drawn" in found.stderr
    assert not (tmp_path / "run" / "captions").exists()


def test_a_run_without_captions(tmp_path: Path) -> None:
    text = SCENES.replace("scenes", "sample").replace("held_out = 12", "canvas = 32\nscale = [1.0, 1.0]")
    text = text.replace("glimpse-captioner", "glimpse-classifier").replace("caption-inference", "prior")
    (tmp_path / "digits.toml").write_text(text)
    fine("train", tmp_path / "digits.toml", "--out", tmp_path / "run")
    line = complaint("caption", tmp_path / "run", "0")
    assert "data source 'sample' has no captions" in line
    line = complaint("evaluate", tmp_path / "run", "--longest", "3")
    assert f"--longest is for captions, and {tmp_path / 'run'} writes none: leave it out" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"glimpse-captioner": "glimpse-classifier"}, "proposes for 'glimpse-captioner', not for"),
        ({"hidden = 8": "hidden = 8\nlocation = 'here'"}, "model.location = 'here': should be"),
        (
            {'"caption-inference"': '"caption-inference"\nword = "next"'},
            "guide.word = 'next': should be",
        ),
        (
            {"hidden = 8": "hidden = 8\nchannels = [16]"},
            "model.channels = (16,) does not fit the data, which have (16, 24): leave it to them",
        ),
        (
            {"hidden = 8": "hidden = 8\nvocabulary = 50"},
            "model.vocabulary = 50 does not fit the data, which have ",
        ),
        (
            {"hidden = 8": "hidden = 8\nlocation_std = 0.3"},
            "location_std = 0.3 has no effect with location = 'grid': leave it out",
        ),
    ],
)
def test_a_config_that_cannot_be(change: dict[str, str], message: str, tmp_path: Path) -> None:
    text = SCENES
    for old, new in change.items():
        text = text.replace(old, new)
    (tmp_path / "bad.toml").write_text(text)
    assert message in complaint("train", tmp_path / "bad.toml", "--out", tmp_path / "run")
