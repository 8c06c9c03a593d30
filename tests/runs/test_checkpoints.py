"""Checkpoints: what is read is what was written, or one clear line."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from scripts.tiny_run import tiny_config
from wsram_ppl import __version__
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.files import write_atomically
from wsram_ppl.runs.checkpoints import load_checkpoint, load_weights, save_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.metrics import MetricsLog
from wsram_ppl.training.loop import train

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
names = st.text(
    st.characters(codec="ascii", categories=["L", "N"], include_characters="._/"), min_size=1
)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    values = torch.randint(
        0, 2**8, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )
    tensor = values.to(dtype)
    return tensor.mT if draw(st.booleans()) and tensor.dim() > 1 else tensor  # not contiguous


json_data = st.dictionaries(
    names, st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@given(contents=st.dictionaries(names, tensors(), max_size=4), data=json_data)
@examples(60)
def test_round_trip(tmp_path: Path, contents: dict[str, Tensor], data: dict[str, Any]) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(path, contents, data)
    loaded = load_checkpoint(path)
    found, found_data = loaded.tensors, loaded.data
    assert found_data == data
    assert found.keys() == contents.keys()
    for name, tensor in contents.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_values_that_are_no_numbers_and_shared_memory_survive(tmp_path: Path) -> None:
    base = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40])
    save_checkpoint(tmp_path / "c", {"a": base, "b": base, "half": base[::2]}, {})
    found = load_checkpoint(tmp_path / "c").tensors
    for name in ("a", "b"):
        assert torch.equal(found[name].view(torch.int32), base.view(torch.int32))
    assert found["half"].shape == (2,)


def test_what_is_saved_is_a_copy_without_a_graph(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    save_checkpoint(tmp_path / "c", {"w": weight}, {})
    assert not load_checkpoint(tmp_path / "c").tensors["w"].requires_grad


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint like that of a small run."""
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    generator = torch.Generator().manual_seed(0)
    weights = {f"model.{n}": torch.randn(3, n + 1, generator=generator) for n in range(4)}
    weights["optimizer.0.step"] = torch.tensor(12.0)
    save_checkpoint(path, weights, {"step": 12, "fingerprint": "abc"})
    return path.read_bytes()


def refused(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_a_changed_byte_anywhere_is_refused(tmp_path: Path, content: bytes, flip: int) -> None:
    path = tmp_path / "c"
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= flip
        path.write_bytes(altered)
        refused(path)


@given(position=st.integers(0, 10**6), extra=st.binary(min_size=1, max_size=20))
@examples(50)
def test_bytes_put_in_anywhere_are_refused(
    tmp_path: Path, content: bytes, position: int, extra: bytes
) -> None:
    path = tmp_path / "c"
    at = position % (len(content) + 1)
    path.write_bytes(content[:at] + extra + content[at:])
    refused(path)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_is_refused_and_does_not_run(
    tmp_path: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    with open(tmp_path / "c", "wb") as file:
        write(Bomb(), file)
    assert "is not an intact checkpoint" in refused(tmp_path / "c")
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == f"there is no checkpoint {tmp_path / 'nowhere'}"
    assert "there is no checkpoint" in refused(tmp_path)  # a directory
    (tmp_path / "empty").touch()
    assert "is not an intact checkpoint" in refused(tmp_path / "empty")
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign", {"format": "pt"})
    assert "is not a checkpoint of this library" in refused(tmp_path / "foreign")
    save_file({"w": torch.zeros(1)}, tmp_path / "bare")
    assert "is not a checkpoint of this library" in refused(tmp_path / "bare")


# Writing.


def fail(function: str, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(os, function, failing)


FULL = OSError(errno.ENOSPC, "No space left on device")
DENIED = PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [FULL, DENIED], ids=["full", "denied"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, function: str, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"w": torch.zeros(3)}, {"step": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        fail(function, error, patch)
        with pytest.raises(RunError) as caught:
            save_checkpoint(path, {"w": torch.ones(3)}, {"step": 2})
    assert str(caught.value) == f"cannot write {path}: {error.strerror}"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c"]
    save_checkpoint(path, {"w": torch.ones(3)}, {"step": 2})
    assert load_checkpoint(path).data == {"step": 2}


def test_a_full_disk_is_told_in_one_line() -> None:
    """A real one: every write to /dev/full fails for want of space."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    from wsram_ppl import files

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open", lambda path, mode: open("/dev/full", mode), raising=False)  # noqa: SIM115
        with pytest.raises(RunError, match="cannot write /nowhere/c: No space left on device"):
            write_atomically(Path("/nowhere/c"), b"x" * 100_000)


def test_a_directory_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*: No such file or directory"):
        write_atomically(tmp_path / "nowhere" / "c", b"")


def test_a_write_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """What a killed process leaves behind is under another name, and does not stand in the way."""
    path = tmp_path / "c"
    save_checkpoint(path, {"w": torch.zeros(3)}, {"step": 1})
    (tmp_path / ".c.partial").write_bytes(b"half a file")
    assert load_checkpoint(path).data == {"step": 1}
    save_checkpoint(path, {"w": torch.zeros(3)}, {"step": 2})
    assert load_checkpoint(path).data == {"step": 2}
    assert os.listdir(tmp_path) == ["c"]


# A run's checkpoint.

SETTINGS = ("training.steps=2", "training.batch_size=4", "training.eval_examples=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(*SETTINGS), RunDirectory(path))
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_loads_with_its_weights_and_running_estimates(run: RunDirectory) -> None:
    config, parts, step = run.load()
    loaded = load_checkpoint(run.checkpoint)
    tensors, data = loaded.tensors, loaded.data
    assert (step, data["fingerprint"]) == (2, config.fingerprint())
    for prefix, module in (("model.", parts.model), ("guide.", parts.guide)):
        for name, value in module.state_dict().items():
            assert torch.equal(value, tensors[prefix + name])
    running = parts.objective.state_dict()
    assert running and all(torch.equal(v, tensors[f"objective.{k}"]) for k, v in running.items())
    assert any(name.startswith("optimizer.") for name in tensors)


def test_a_checkpoint_of_another_spec_is_refused(run: RunDirectory) -> None:
    config = tiny_config(*SETTINGS, "model.location_std=0.3")
    (run.path / "config.toml").write_text(config.to_toml())
    with pytest.raises(
        InputError, match=r"last.safetensors belongs to another config than .*config.toml"
    ):
        run.load()


@given(
    name=st.sampled_from(["metrics.csv", "summary.json", "config.toml", "last.safetensors"]),
    edits=st.lists(
        st.tuples(st.integers(0, 10**5), st.integers(0, 9), st.binary(max_size=9)), max_size=4
    ),
    kept=st.floats(0, 1) | st.just(1.0),
)
@examples(60)
def test_whatever_is_in_a_runs_files_there_is_no_traceback(
    trained: Path, tmp_path: Path, name: str, edits: list[tuple[int, int, bytes]], kept: float
) -> None:
    """Bytes put in, taken out and changed anywhere, files cut short: read, or refused in one line."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run = RunDirectory(shutil.copytree(trained, tmp_path / "run"))
    content = (run.path / name).read_bytes()
    for place, gone, new in edits:
        at = place % (len(content) + 1)
        content = content[:at] + new + content[at + gone :]
    (run.path / name).write_bytes(content[: int(kept * len(content))])
    try:
        config = run.config()
        run.summary()
        run.saved(config)
        MetricsLog(run.path, ["bound"], after=1).close()
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and str(run.path) in str(error)


def test_what_does_not_change_the_weights_may_differ(run: RunDirectory) -> None:
    others = ("training.log_every=7", "training.eval_examples=9", "training.device=auto")
    config = tiny_config(*SETTINGS, *others)
    (run.path / "config.toml").write_text(config.to_toml())
    assert run.load()[0] == config


def test_a_damaged_run_is_refused(run: RunDirectory) -> None:
    damaged = bytearray(run.checkpoint.read_bytes())
    damaged[-5] ^= 1
    run.checkpoint.write_bytes(damaged)
    with pytest.raises(InputError, match="is damaged: its checksum does not match"):
        run.load()
    run.checkpoint.unlink()
    with pytest.raises(InputError, match="there is no checkpoint"):
        run.load()
    (run.path / "config.toml").unlink()
    with pytest.raises(InputError, match=r"is not a run: it has no config.toml"):
        run.load()


def test_weights_of_another_shape_are_refused_in_one_line() -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"the checkpoint does not fit the model: .*weight") as caught:
        load_weights(module, "model", {"model.weight": torch.zeros(3, 3)})
    assert "\n" not in str(caught.value)


# What other versions wrote.


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (1, f"was written by wsram_ppl 0.1, whose checkpoints {__version__} cannot read: use that"),
        (3, rf"was written by a later version than {__version__} of wsram_ppl, which cannot"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused(
    written: int, message: str, run: RunDirectory
) -> None:
    with safe_open(run.checkpoint, framework="pt") as file:
        metadata = file.metadata() | {"format": f"wsram_ppl checkpoint {written}"}
    save_file(load_checkpoint(run.checkpoint).tensors, run.checkpoint, metadata)
    with pytest.raises(InputError, match=message):
        run.load()


def test_a_run_of_an_earlier_version_is_refused_with_its_version(run: RunDirectory) -> None:
    (run.path / "config.toml").rename(run.path / "spec.toml")
    message = f"run was written by wsram_ppl 0.1, whose runs {__version__} cannot read: use that"
    for use in (run.load, run.config, lambda: run.claim(tiny_config(*SETTINGS)).__enter__()):
        with pytest.raises(InputError, match=message):
            use()


def test_a_config_that_another_version_wrote_is_told_with_that_version(run: RunDirectory) -> None:
    path = run.path / "config.toml"
    assert path.read_text().startswith(f"# wsram_ppl {__version__}\n")
    path.write_text("# wsram_ppl 9.9\n[training]\nmomentum = 1\n")
    with pytest.raises(InputError, match=r"config of the run .*run, written by wsram_ppl 9\.9: .*unk"):
        run.config()
    path.write_text(f"# wsram_ppl {__version__}\n[training]\nmomentum = 1\n")
    with pytest.raises(InputError, match=r"the config of the run .*run: .*unknown key"):
        run.config()


def test_older_weights_than_the_last_are_told_of(run: RunDirectory) -> None:
    """Where they are measured or started from, as where the run is resumed."""
    shutil.copy(run.checkpoint, run.path / "previous.safetensors")
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-5])
    told = r"last.safetensors is not .*; these are the weights of .*previous.*, after update 2$"
    for use in (run.load, run.load_model, run.weights):
        with pytest.warns(UserWarning, match=told):
            use()


def test_rows_are_on_the_disk_before_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure may take whatever was not waited for."""
    written: list[str] = []
    sync = os.fsync

    def noted(file: int) -> None:
        written.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    train(tiny_config("training.checkpoint_every=4"), RunDirectory(tmp_path / "run"))
    saved = [place for place, name in enumerate(written) if "last.safetensors" in name]
    assert len(saved) == 2 and all(written[place - 1] == "metrics.csv" for place in saved)
