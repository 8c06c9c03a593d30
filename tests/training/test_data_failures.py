"""Data that fail: held-out data before the first update, and reading at any time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from scripts.survive_kills import equal
from tests.training.test_loop import make_config, rows
from wsram_ppl.config import ExperimentConfig
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.data.digits.source import SampleDigits
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.runs.checkpoints import load_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training import measurements
from wsram_ppl.training.loop import train

#: What fails, by name; a file that is missing, or a mistake.
broken: dict[str, Exception] = {}


def gone(name: str) -> OSError:
    try:
        open(name)  # noqa: SIM115
    except OSError as error:
        return error
    raise AssertionError


class Digits(SampleDigits):
    """A source of one's own; training fails from step 5 on, evaluation at its first or second time."""

    def __init__(self) -> None:
        super().__init__(canvas=32, scale=(0.8, 1.0))
        self.evaluated = 0

    def training_rows(self, step: int, size: int, seed: int, rows: slice) -> tuple[Tensor, Tensor]:
        if step >= 5 and "training" in broken:
            raise broken["training"]
        return super().training_rows(step, size, seed, rows)

    def evaluation_batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        self.evaluated += 1
        if "empty" in broken:
            return
        if "later" in broken and self.evaluated > 1:
            raise broken["later"]
        if "nan" in broken:
            yield torch.full((2, 32, 32), torch.nan), torch.zeros(2, dtype=torch.int64)
        if "held-out" in broken:
            raise broken["held-out"]
        yield from super().evaluation_batches(size, limit)
        if "late nan" in broken:
            yield torch.full((2, 32, 32), torch.nan), torch.zeros(2, dtype=torch.int64)


@pytest.fixture(autouse=True)
def mend() -> Iterator[None]:
    yield
    broken.clear()


def config(*overrides: str) -> ExperimentConfig:
    return make_config(f"data={{source='{__name__}:Digits'}}", *overrides)


@pytest.mark.parametrize(
    ("what", "error", "kind", "message"),
    [
        ("empty", ValueError(), InputError, r"data '.*:Digits' has no held-out data"),
        ("nan", ValueError(), InputError, r"part 0 of held-out batch 1 is not finite"),
        ("late nan", ValueError(), InputError, r"part 0 of held-out batch 2 is not finite"),
        ("held-out", gone("dev.json"), RunError, r"data '.*:Digits' cannot read dev.json: No such file"),
        (
            "held-out",
            KeyError("dev"),
            RunError,
            r"data '.*:Digits': KeyError: 'dev' \(WSRAM_TRACEBACK=1",
        ),
        (
            "held-out",
            InputError("the dev split holds no photos"),
            InputError,
            r"^the dev split holds no",
        ),
    ],
)
def test_held_out_data_are_looked_at_before_the_first_update(
    what: str, error: Exception, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    broken[what] = error
    with pytest.raises(kind, match=message):
        train(config(), RunDirectory(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("every", [0, 5], ids=["last evaluation", "one on the way"])
def test_what_there_was_no_time_to_look_at_costs_no_update(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of data that take long to read only the first are looked at before the first update."""
    monkeypatch.setattr(measurements, "LOOK", 0.0)
    settings = config(f"training.eval_every={every}")
    run, whole = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole")
    broken["late nan"] = ValueError()
    with pytest.raises(InputError, match=r"part 0 of held-out batch 2 is not finite: look at the data"):
        train(settings, run)
    assert load_checkpoint(run.checkpoint).step == (every or 8)
    broken.clear()
    train(settings, run)
    train(settings, whole)
    assert equal(run, whole)


@pytest.mark.parametrize("prefetch", ["true", "false"])
@pytest.mark.parametrize("what", ["training", "later"])
@pytest.mark.parametrize("every", [0, 5], ids=["last evaluation", "one on the way"])
def test_what_cannot_be_read_at_work_is_named_and_costs_no_update(
    prefetch: str, what: str, every: int, tmp_path: Path
) -> None:
    """With the data back, the run ends as one that nothing has happened to, metrics included."""
    settings = config(f"training.eval_every={every}", f"training.prefetch={prefetch}")
    broken[what] = gone("photo.jpg")
    run, whole = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole")
    with pytest.raises(RunError, match=r"^data '.*:Digits' cannot read photo.jpg: No such file or dir"):
        train(settings, run)
    saved = load_checkpoint(run.checkpoint).step
    assert saved == (5 if what == "training" or every else 8)
    broken.clear()
    train(settings, run)
    train(settings, whole)
    assert equal(run, whole)
    assert [row["split"] for row in rows(run)].count("eval") == (2 if every else 1)


def test_what_is_made_up_for_is_what_it_would_have_been(tmp_path: Path) -> None:
    """A probe with the exploration of its update; and TensorBoard gets the evaluation, too."""
    settings = config(
        "training.eval_every=4",
        "training.probe_every=4",
        "training.probe_repeats=2",
        "exploration.temperature=3.0",
    )
    broken["later"] = gone("photo.jpg")
    run, whole = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole")
    with pytest.raises(RunError, match=r"cannot read photo.jpg"):
        train(settings, run)
    broken.clear()
    train(settings, run)
    train(settings, whole)
    assert equal(run, whole)
    found = []
    for each in (run, whole):
        events = EventAccumulator(str(each.path / "tensorboard"))
        events.Reload()
        found.append(
            {
                tag: [(s.step, s.value) for s in events.Scalars(tag)]
                for tag in events.Tags()["scalars"]
                if not tag.endswith(("seconds", "per_second"))
            }
        )
    assert found[0] == found[1]
    assert [step for step, _ in found[0]["eval/bound"]] == [4, 8]


def test_a_checkpoint_after_a_failure_is_that_of_its_last_update(tmp_path: Path) -> None:
    """Buffers that are scheduled have its values, not the next one's."""
    run = RunDirectory(tmp_path / "run")
    broken["training"] = gone("photo.jpg")
    with pytest.raises(RunError, match=r"cannot read photo.jpg"):
        train(config(), run)
    saved = load_checkpoint(run.checkpoint)
    assert saved.step == 5
    expected = Schedule(start=0.3, end=0.1).value(4 / 7)
    assert float(saved.tensors["model.location_std"]) == pytest.approx(expected)
