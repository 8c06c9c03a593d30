"""Everything wrong that a user or a file can do: one clear line, and nothing written.

The messages are in the tables of docs/robustness.md, which is what a user reads and what is tested
here. ``python -m tests.commands.test_bad_input`` writes them again; check what has changed before
you keep it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import cli
from tests.commands.test_cli import TINY
from tests.data.captions.copies import some_captions, some_splits
from tests.data.captions.copies import write as write_photos
from tests.data.digits.test_files import IMAGES, LABELS, cut, flip, idx, small_mnist, tree
from tests.data.digits.test_files import write as write_mnist
from tests.data.images.pictures import write as write_picture
from wsram_ppl.runs.checkpoints import save_checkpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "robustness.md"
BEGIN, END = "<!-- begin: written by tests/commands/test_bad_input.py -->", "<!-- end -->"

Setup = Callable[[Path], None]

OWN = '''
import torch

from wsram_ppl.models import GlimpseClassifier


class NoGuide:
    pass


class Source:
    """Images of which one holds something else than a number, but for those of the first steps."""

    def __init__(self, clean: int = 0, held_out: int = 0) -> None:
        self.clean, self.held_out = clean, held_out

    def training_batch(self, step, size, seed):
        images = torch.full((size, 32, 32), 0.5)
        if step >= self.clean:
            images[0, 3, 4] = float("nan")
        return images, torch.zeros(size, dtype=torch.int64)

    def evaluation_batches(self, size, limit=None):
        yield self.training_batch(self.held_out, 4, 0)

    def to(self, device):
        return self


class Bare(Source):
    """One tensor in place of a tuple."""

    def training_batch(self, step, size, seed):
        return torch.full((size, 32, 32), 0.5)


class Few(Source):
    """Half of what was asked for."""

    def training_batch(self, step, size, seed):
        return super().training_batch(1, size // 2, seed)


class Mean(GlimpseClassifier):
    """A measure that is a mean already."""

    def metrics(self, images, labels, samples):
        return {"error": labels.double().mean()}


class Taken(GlimpseClassifier):
    """A measure with the name of another."""

    def metrics(self, images, labels, samples):
        return {"bound": labels.double()}


class Bright(Source):
    """Images of 0 to 255 and three labels, as they are made by default."""

    def training_batch(self, step, size, seed):
        return torch.full((size, 32, 32), 200.0), torch.arange(size) % 3


class Bytes(Source):
    def training_batch(self, step, size, seed):
        return torch.full((size, 32, 32), 200, dtype=torch.uint8), torch.arange(size) % 3


class Labels(Source):
    """Another range of labels."""

    def training_batch(self, step, size, seed):
        return torch.rand(size, 32, 32), torch.arange(size) + 9


class Colour(Source):
    def __init__(self, last: bool = False) -> None:
        self.shape = (32, 32, 3) if last else (3, 32, 32)

    def training_batch(self, step, size, seed):
        return torch.rand(size, *self.shape), torch.arange(size) % 3

    def evaluation_batches(self, size, limit=None):
        yield self.training_batch(0, 4, 0)


class NothingHeldOut(Source):
    def __init__(self) -> None:
        super().__init__(clean=9)

    def evaluation_batches(self, size, limit=None):
        return iter(())
'''


@dataclass(frozen=True)
class Bad:
    """One mistake.

    Args:
        what: for the reader.
        set: the values of ``--set``.
        setup: prepares the folder in which the command runs; it holds ``tiny.toml`` and ``own.py``.
        args: the whole command, where it is not to train ``tiny.toml`` with ``--out run``.
        more: further options.
        code: with which the command ends.
    """

    what: str
    set: tuple[str, ...] = ()
    setup: Setup | None = None
    args: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    code: int = 2

    @property
    def command(self) -> list[str]:
        overrides = [part for text in self.set for part in ("--set", text)]
        return [*(self.args or ("train", "tiny.toml", "--out", "run")), *overrides, *self.more]


def call(*args: str) -> Result:
    return CliRunner().invoke(cli.main, list(args))


def file(name: str, content: str | bytes) -> Setup:
    def setup(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return setup


def mnist(name: str, damage: Callable[[bytes], bytes] | None, zipped: bool = False) -> Setup:
    """MNIST's files, one of them damaged, or missing."""

    def setup(folder: Path) -> None:
        write_mnist(folder / "mnist", small_mnist()[1], zipped)
        path = folder / "mnist" / "MNIST" / "raw" / (f"{name}.gz" if zipped else name)
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes()))

    return setup


def photos(layout: str = "illinois", captions: str | bytes | None = None) -> Setup:
    """A copy of Flickr8k with empty photos, with another file of captions."""

    def setup(folder: Path) -> None:
        names = some_captions(4)
        path = write_photos(folder / "photos", layout, names, some_splits(names))
        if captions is not None:
            path.write_bytes(captions.encode() if isinstance(captions, str) else captions)

    return setup


def some_of_mnist(folder: Path) -> None:
    """MNIST's files but one, in no folders of their own."""
    for name, content in small_mnist()[1].items():
        if name != LABELS:
            (folder / name).write_bytes(content)


def weights(content: Any) -> Setup:
    """A copy of Flickr8k, and ``net.pth``."""

    def setup(folder: Path) -> None:
        photos()(folder)
        torch.save(content, folder / "net.pth")

    return setup


def pictures(*names: str, broken: str = "") -> Setup:
    """Small pictures below ``photos``; those of one folder are none."""

    def setup(folder: Path) -> None:
        for name in names:
            write_picture(folder / "photos" / name)
            if broken and name.startswith(broken):
                (folder / "photos" / name).write_bytes(b"no picture")

    return setup


def arrays(**content: Any) -> Setup:
    def setup(folder: Path) -> None:
        np.savez(folder / "data.npz", **content)

    return setup


_finished: dict[str, bytes] = {}


def run(damage: Callable[[Path], None], finished: bool = False) -> Setup:
    """A run in ``run``, of which the summary is missing unless finished, with something done to it."""

    def setup(folder: Path) -> None:
        path = folder / "run"
        if not _finished:
            result = call("train", "tiny.toml", "--out", "run", "--set", "training.checkpoint_every=1")
            assert result.exit_code == 0, result.output
            _finished.update({p.name: p.read_bytes() for p in path.iterdir() if p.is_file()})
        path.mkdir(exist_ok=True)
        for name, content in _finished.items():
            (path / name).write_bytes(content)
        if not finished:
            (path / "summary.json").unlink()
        damage(path)

    return setup


def both_checkpoints(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        for name in ("last.safetensors", "previous.safetensors"):
            (path / name).write_bytes(change((path / name).read_bytes()))

    return damage


def foreign(path: Path) -> None:
    (path / "previous.safetensors").unlink()
    save_file({"w": torch.zeros(1)}, path / "last.safetensors")


def foreign_run(folder: Path) -> None:
    """Weights of another model."""
    (folder / "other").mkdir()
    save_checkpoint(folder / "other" / "last.safetensors", {"model.w": torch.zeros(1)}, {"step": 0})


def another_config(path: Path) -> None:
    (path / "config.toml").write_text((path / "config.toml").read_text().replace("seed = 0", "seed = 1"))


FOLDER = ("data={source='folder', root='photos'}",)
ARRAYS = ("data={source='arrays', path='data.npz'}",)
LABELS_OF_IMAGES = np.arange(40) % 4
GREY = np.random.default_rng(0).integers(0, 256, (40, 32, 32), dtype=np.uint8)
START = ("training.init=other",)
MNIST = ("data.source=mnist", "data.root=mnist")
PHOTOS = ("data.source=flickr8k", "data.root=photos", "data.cache=cache")
NET = (
    "data.backbone=test_efficientnet",
    "data.layers=[1]",
    "data.image_size=32",
    "data.mean=[0.0]",
    "data.std=[1.0]",
)
CAPTIONER = ("data={source='scenes'}", "model={name='glimpse-captioner'}", "guide.name=prior")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FEATURES = ("features", "tiny.toml")
WEIGHTS = (*PHOTOS, *NET, "data.weights=net.pth")
STATE = {"weight": torch.zeros(2)}
RESUME = ("train", "--resume", "run")

TABLES: dict[str, list[Bad]] = {
    "Experiments and options": [
        Bad("an unknown key", ("model.hiden=3",)),
        Bad("an unknown table", ("modle.hidden=3",)),
        Bad("an unknown name", ("objective.name=wake-slep",)),
        Bad("an import path to no module", ("model.name=missing_module:Net",)),
        Bad("an import path to nothing", ("model.name=own:Missing",)),
        Bad("an import path to another kind of class", ("guide.name=own:NoGuide",)),
        Bad(
            "a module that cannot be imported",
            ("model.name=broken_module:Net",),
            file("broken_module.py", "1 / 0"),
        ),
        Bad("text instead of a number", ("training.steps=many",)),
        Bad("a number instead of text", ("training.optimizer=3",)),
        Bad("a fraction instead of a whole number", ("model.hidden=2.5",)),
        Bad("a negative size", ("model.hidden=-1",)),
        Bad("a size of zero", ("training.batch_size=0",)),
        Bad("a value that is not a number", ("training.weight_decay=nan",)),
        Bad("a schedule without an end", ("training.learning_rate={start=1.0}",)),
        Bad("an empty list", ("model.scales=[]",)),
        Bad("a choice given twice", ("model.scales=[1,1]",)),
        Bad("a tracker that there is not", ('training.loggers=["tensorbord"]',)),
        Bad("a tracker twice", ('training.loggers=["wandb", "wandb"]',)),
        Bad("half a list", ("model.scales=[1",)),
        Bad("an override without a key", ("steps",)),
        Bad("an option that does not exist", more=("--bogus",)),
        Bad("no such file", args=("train", "nowhere.toml")),
        Bad("a folder instead of a file", args=("train", ".")),
        Bad("broken TOML", (), file("bad.toml", "[data\n"), ("train", "bad.toml")),
        Bad("bytes that are not text", (), file("bad.toml", b"\xff\xfe\0\1"), ("train", "bad.toml")),
        Bad("an empty file", (), file("bad.toml", ""), ("train", "bad.toml")),
        Bad("nothing to train", args=("train",)),
        Bad("an unknown command", args=("trian",)),
    ],
    "Options that contradict each other": [
        Bad("sleep-q with the prior as guide", ("guide={name='prior'}", "objective.insomnia=0.5")),
        Bad(
            "a learning rate for a guide without parameters",
            ("guide={name='prior'}", "training.guide_learning_rate=0.1"),
        ),
        Bad("normalised weights of one particle", ("objective.num_particles=1",)),
        Bad("a digit larger than its canvas", ("data.canvas=20",)),
        Bad("a minibatch larger than the data", ("training.batch_size=20000",)),
        Bad("a schedule for a fixed option", ("model.hidden={start=8, end=9}",)),
        Bad("a value set twice", ("training.seed=1",), more=("--seed", "2")),
        Bad("an experiment and a run to resume", (), None, ("train", "tiny.toml", "--resume", "run")),
        Bad("a run to resume elsewhere", (), None, (*RESUME, "--out", "other")),
    ],
    "Devices and processes": [
        Bad("no such device", ("training.device=tpu",)),
        Bad("a GPU that does not exist", ("training.device=cuda:63",)),
        Bad("GPUs that do not exist", ("training.device=cuda", "training.devices=64")),
        Bad("a minibatch that cannot be divided", ("training.batch_size=9", "training.devices=2")),
        Bad("no processes", ("training.devices=0",)),
        Bad("several machines without a launcher", ("training.num_nodes=2",)),
        Bad("a recorded update without a GPU", ("training.cuda_graph=true",)),
        Bad("a compiled update with validation", ("training.compile=true", "training.validate=true")),
    ],
    "Directories and checkpoints": [
        Bad("another run's directory", ("training.seed=1",), run(lambda path: None, finished=True)),
        Bad("a directory with other files", (), file("run/thesis.tex", "mine")),
        Bad("a file instead of a directory", (), file("run", "mine")),
        Bad("a name that is too long", args=("train", "tiny.toml", "--out", "a" * 300)),
        Bad("nothing to resume", args=RESUME),
        Bad("a run to resume with another model", ("model.hidden=9",), run(lambda path: None), RESUME),
        Bad("a run to resume for longer", ("training.steps=3",), run(lambda path: None), RESUME),
        Bad(
            "a run to resume for fewer updates than it has",
            ("training.steps=1", "training.schedule_steps=2"),
            run(lambda path: None),
            RESUME,
        ),
        Bad("truncated checkpoints", (), run(both_checkpoints(cut)), RESUME),
        Bad("checkpoints with a changed byte", (), run(both_checkpoints(flip)), RESUME),
        Bad("a pickle", (), run(both_checkpoints(lambda _: b"\x80\x04cos\nsystem\n.")), RESUME),
        Bad("a file of another library", (), run(foreign), RESUME),
        Bad("a checkpoint of another experiment", (), run(another_config), RESUME),
        Bad("an invalid metrics file", (), run(file("metrics.csv", "step,split\n3,\0\nx,y\n")), RESUME),
        Bad("a broken summary", (), run(file("summary.json", "{")), RESUME),
        Bad("no run to evaluate", args=("evaluate", "nowhere")),
        Bad("no run to draw", args=("glimpses", "nowhere")),
        Bad("no run to start from", ("training.init=nowhere",)),
        Bad(
            "initial weights of which none fit",
            ("model.hidden=9", "model.classes=3", *START),
            foreign_run,
        ),
        Bad("a missing picture to look at", (), run(lambda path: None), ("look", "run", "nowhere.png")),
        Bad(
            "a file to look at that is not a picture",
            (),
            run(file("text.png", "hello")),
            ("look", "run", "run/text.png"),
        ),
    ],
    "MNIST's files": [
        Bad("a truncated file", MNIST, mnist(IMAGES, cut)),
        Bad("a file that is too long", MNIST, mnist(IMAGES, lambda content: content + b"x")),
        Bad("an empty file", MNIST, mnist(IMAGES, lambda content: b"")),
        Bad("a web page", MNIST, mnist(IMAGES, lambda content: b"<!DOCTYPE html>" * 9)),
        Bad("images of another size", MNIST, mnist(IMAGES, lambda _: idx(np.zeros((12, 27, 28))))),
        Bad("no images", MNIST, mnist(IMAGES, lambda _: idx(np.zeros((0, 28, 28))))),
        Bad("labels for other images", MNIST, mnist(LABELS, lambda _: idx(np.zeros(6)))),
        Bad("a label out of range", MNIST, mnist(LABELS, lambda _: idx(np.arange(4, 11)))),
        Bad("a truncated gzip file", MNIST, mnist(IMAGES, cut, zipped=True)),
        Bad("a gzip file with a changed byte", MNIST, mnist(IMAGES, flip, zipped=True)),
        Bad("a file that is not gzip", MNIST, mnist(IMAGES, lambda content: b"not gzip", zipped=True)),
        Bad("one missing file", ("data.source=mnist", "data.root=."), some_of_mnist),
        Bad("an empty folder name", ("data.source=mnist", "data.root=")),
    ],
    "Photos and captions": [
        Bad("no folder", PHOTOS),
        Bad("no captions", PHOTOS, file("photos/readme.txt", "")),
        Bad("a Git LFS pointer", PHOTOS, photos(captions=POINTER)),
        Bad("another file of that name", PHOTOS, photos(captions="Roses are red.\n")),
        Bad("titles that do not tell the columns", PHOTOS, photos("kaggle", "a,b,c\n1.jpg,x,A dog\n")),
        Bad("half a JSON file", PHOTOS, photos("karpathy", '{"images": [')),
        Bad("JSON of another structure", PHOTOS, photos("karpathy", "[]")),
        Bad("an unknown layout", (*PHOTOS, "data.layout=kagle"), photos()),
        Bad("a captioner for other data", (*CAPTIONER, "model.vocabulary=50")),
        Bad("a layout that does not exist", (*PHOTOS, "data.layout=kaggle"), photos()),
        Bad("features that are not computed", (*PHOTOS, *NET), photos()),
        Bad("weights without a net's state", WEIGHTS, weights({"state_dict": {}, "epoch": 3}), FEATURES),
        Bad("weights of several nets", WEIGHTS, weights({"net": STATE, "ema": STATE}), FEATURES),
    ],
    "Pictures in folders": [
        Bad("no folder", FOLDER),
        Bad("an empty folder name", ("data={source='folder', root=''}",)),
        Bad("pictures outside class folders", FOLDER, pictures("1.png", "2.png")),
        Bad("one class", FOLDER, pictures("cat/1.png", "cat/2.png")),
        Bad("only a test set", FOLDER, pictures("test/cat/1.png", "test/dog/1.png")),
        Bad(
            "two folders for one split", FOLDER, pictures("train/a/1.png", "val/a/1.png", "dev/a/1.png")
        ),
        Bad("fewer pictures than a minibatch", FOLDER, pictures("cat/1.png", "dog/1.png")),
        Bad(
            "a class without readable pictures",
            FOLDER,
            pictures(*(f"{name}/{n}.png" for n in range(4) for name in ("cat", "dog")), broken="dog"),
        ),
    ],
    "Images in arrays": [
        Bad("no file", ARRAYS),
        Bad("arrays with other names", ARRAYS, arrays(x_train=GREY, y_train=LABELS_OF_IMAGES)),
        Bad("another file", ARRAYS, file("data.npz", "hello")),
        Bad("labels for other images", ARRAYS, arrays(images=GREY, labels=LABELS_OF_IMAGES[:9])),
        Bad("images of integers", ARRAYS, arrays(images=GREY.astype(int), labels=LABELS_OF_IMAGES)),
        Bad(
            "floats from 0 to 255",
            ARRAYS,
            arrays(images=GREY.astype(np.float32), labels=LABELS_OF_IMAGES),
        ),
        Bad("bytes from 0 to 1", ARRAYS, arrays(images=GREY // 200, labels=LABELS_OF_IMAGES)),
        Bad("labels that are fractions", ARRAYS, arrays(images=GREY, labels=LABELS_OF_IMAGES / 2)),
        Bad("images of another shape", ARRAYS, arrays(images=GREY[0], labels=LABELS_OF_IMAGES)),
    ],
    "Your own data": [
        Bad("images with NaN", ("data={source='own:Source'}",)),
        Bad(
            "held-out images with NaN",
            ("data={source='own:Source', clean=99, held_out=99}",),
        ),
        Bad("no held-out data", ("data={source='own:NothingHeldOut'}",)),
        Bad("a class that is not a source", ("data={source='own:NoGuide'}",)),
        Bad("a batch that is no tuple", ("data={source='own:Bare'}",)),
        Bad("fewer rows than asked for", ("data={source='own:Few', clean=99}",)),
        Bad("a measure that is a mean", ("model.name=own:Mean",)),
        Bad("a measure with a taken name", ("model.name=own:Taken",)),
        Bad("images from 0 to 255", ("data={source='own:Bright'}",)),
        Bad("images of bytes", ("data={source='own:Bytes'}",)),
        Bad("more labels than the model has classes", ("data={source='own:Labels'}",)),
        Bad("images in colour for a grey model", ("data={source='own:Colour'}",)),
        Bad(
            "channels last",
            ("data={source='own:Colour', last=true}", "model.image_channels=3"),
        ),
    ],
    "Failures during training (exit code 1)": [
        Bad("images with NaN, later", ("data={source='own:Source', clean=1}",), code=1),
        Bad(
            "a learning rate that makes training diverge",
            ("training.learning_rate=1e38", "training.gradient_clip=0", "training.steps=9"),
            code=1,
        ),
        Bad(
            "an impossible directory",
            (),
            file("a", ""),
            ("train", "tiny.toml", "--out", "a/run"),
            code=1,
        ),
    ],
}
#: Parts of messages that differ between machines, library versions, or catalogues of names.
_VARYING = {
    r"sees \d+ CUDA": "sees N CUDA",
    r"available: [\w, -]*, or": "available: ..., or",
    r"(not an intact checkpoint|not valid TOML|JSONDecodeError|UnicodeDecodeError): [^;]*": r"\1: ...",
    r"(summary\.json): [^;]*": r"\1: ...",
    r"(is damaged) \([^)]*\(\)[^)]*\)": r"\1 (...)",
    r"seen from [^:]*:": "seen from ...:",
    r"(EOFError|BadGzipFile): [^;]*\);": r"\1: ...);",
    r"(No such (option|command) '[-\w]+').*": r"\1 ...",
}


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[None]:
    """The folder in which a command runs, with what is imported from it forgotten afterwards."""
    (folder / "tiny.toml").write_text(TINY)
    (folder / "own.py").write_text(OWN)
    here, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name in ("own", "broken_module"):
                del sys.modules[name]


def message(row: Bad, folder: Path) -> str:
    """What the user is told, checked to be one line; what is there must stay as it is."""
    with workplace(folder), mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
        if row.setup is not None:
            row.setup(folder)
        before = tree(folder)
        result = call(*row.command)
        after = tree(folder)
    assert result.exit_code == row.code, (row.what, result.output)
    assert result.stdout == "", row.what
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("note: ", "warning: "))]
    assert len(lines) == 1 and lines[0].startswith("error: "), (row.what, result.stderr)
    if row.code == 2:
        assert {name: at for name, at in after.items() if "__pycache__" not in name} == before, row.what
    text = lines[0].removeprefix("error: ")
    for pattern, stands_for in _VARYING.items():
        text = re.sub(pattern, stands_for, text)
    return text


def written() -> dict[tuple[str, str], str]:
    """The messages in the page, by table and mistake."""
    found, title = {}, ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            title = line.removeprefix("### ")
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if title in TABLES and len(cells) == 2 and cells[1].startswith("`"):
            found[title, cells[0]] = cells[1].strip("`").strip().replace("\\|", "|")
    return found


@pytest.mark.parametrize(
    ("title", "row"),
    [pytest.param(t, row, id=f"{t}: {row.what}") for t, rows in TABLES.items() for row in rows],
)
def test_the_message_is_the_pages(title: str, row: Bad, tmp_path: Path) -> None:
    assert message(row, tmp_path) == written()[title, row.what]


def test_the_page_has_no_other_rows() -> None:
    assert list(written()) == [(title, row.what) for title, rows in TABLES.items() for row in rows]


def page() -> str:
    """The tables as they should be."""
    parts = []
    for title, rows in TABLES.items():
        parts += [f"### {title}", "", "| problem | message |", "| --- | --- |"]
        for row in rows:
            with tempfile.TemporaryDirectory() as folder:
                said = message(row, Path(folder).resolve())
            fence = "``" if "`" in said else "`"
            pad = " " if fence == "``" else ""
            parts.append(f"| {row.what} | {fence}{pad}{said.replace('|', chr(92) + '|')}{pad}{fence} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{page()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
