"""The metrics of a run: what is written is what is read, and a half-written row is no row."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsram_ppl.errors import InputError
from wsram_ppl.runs.metrics import METRICS, MetricsLog, last_row, read_rows


def write(run: Path, text: str) -> None:
    (run / METRICS).write_bytes(text.encode())


def log(run: Path, after: int = 0) -> None:
    """Two updates, an evaluation after each, and a probe."""
    found = MetricsLog(run, ["bound", "error", "variance"], after)
    for step in range(after + 1, after + 3):
        found.write(step, "train", {"bound": -step / 3, "error": math.nan, "unknown": 7.0})
        found.write(step, "eval", {"bound": -float(step), "error": 0.5})
    found.write(after + 2, "probe", {"variance": 1e-9})
    found.close()


def test_what_was_written_is_read_by_split(tmp_path: Path) -> None:
    log(tmp_path)
    train, held_out, probe = (read_rows(tmp_path, split) for split in ("train", "eval", "probe"))
    assert set(train.columns) == {"bound", "error", "variance"}
    np.testing.assert_array_equal(train.steps, [1, 2])
    np.testing.assert_array_equal(train.columns["bound"], [-0.333333, -0.666667])
    assert train.measured("error") is None and train.measured("unknown") is None
    np.testing.assert_array_equal(held_out.measured("error"), ([1, 2], [0.5, 0.5]))
    np.testing.assert_array_equal(probe.measured("variance"), ([2], [1e-9]))
    assert len(read_rows(tmp_path, "nothing").steps) == 0


def test_going_on_keeps_the_rows_up_to_the_checkpoint(tmp_path: Path) -> None:
    log(tmp_path)
    log(tmp_path, after=1)
    np.testing.assert_array_equal(read_rows(tmp_path, "train").steps, [1, 2, 3])
    np.testing.assert_array_equal(read_rows(tmp_path, "probe").steps, [3])


def test_going_on_without_the_file_begins_a_new_one(tmp_path: Path) -> None:
    log(tmp_path, after=5)
    np.testing.assert_array_equal(read_rows(tmp_path, "eval").steps, [6, 7])


def test_going_on_with_what_is_no_log_is_refused(tmp_path: Path) -> None:
    for text in ("step,split,error\n1,train,0.5,7\n", "step,split\nx,train\n", "split\ntrain\n"):
        write(tmp_path, text)
        with pytest.raises(InputError, match=r"metrics.csv is damaged \(\w+: .*\): remove it to"):
            MetricsLog(tmp_path, ["error"], after=1)


@pytest.mark.parametrize(
    "text",
    [
        "step,error\n1,2\n",
        "step,split,error\nx,train,1\n",
        "step,split,error\n1,train,good\n",
        "step,split\n1,train,2\n",
    ],
)
def test_damaged_metrics(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    with pytest.raises(InputError, match=r"metrics.csv cannot be read: \w+: "):
        read_rows(tmp_path, "train")


def test_an_empty_log_has_no_rows_and_a_missing_one_is_told(tmp_path: Path) -> None:
    write(tmp_path, "")
    assert len(read_rows(tmp_path, "train").steps) == 0
    (tmp_path / METRICS).unlink()
    with pytest.raises(InputError, match=r"metrics.csv cannot be read: FileNotFoundError"):
        read_rows(tmp_path, "train")


def test_the_last_row_of_a_run_at_work(tmp_path: Path) -> None:
    assert last_row(tmp_path) is None
    for text in ("", "step,spl", "step,split,error,ess\n", "step,split,error,ess\n9,train,0.5"):
        write(tmp_path, text)
        assert last_row(tmp_path) is None
    whole = "step,split,error,ess\r\n" + "".join(f"{n},train,0.5,{n / 7}\r\n" for n in range(2000))
    write(tmp_path, whole + "2000,eval,0.25,\r\n")
    assert last_row(tmp_path) == (2000, {"error": 0.25})
    write(tmp_path, whole + "2000,eval,0.2")  # half of it
    assert last_row(tmp_path) == (1999, {"error": 0.5, "ess": pytest.approx(1999 / 7)})


@given(st.binary(max_size=60), st.integers(0, 60))
def test_whatever_is_in_the_file_the_last_row_is_read_or_none(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    rows = b"step,split,error\n1,train,0.5\n2,train,0.25\n"
    (run / METRICS).write_bytes(rows[:cut] + content)
    found = last_row(run)
    assert found is None or isinstance(found[0], int)


def test_a_torn_last_row_is_dropped_though_it_has_all_columns(tmp_path: Path) -> None:
    """As a power failure leaves it: a number cut short would be another number."""
    write(tmp_path, "step,split,error\r\n1,train,0.5\r\n2,train,0.25")
    np.testing.assert_array_equal(read_rows(tmp_path, "train").steps, [1])
    MetricsLog(tmp_path, ["error"], after=2).close()
    assert (tmp_path / METRICS).read_text() == "step,split,error\n1,train,0.5\n"
    write(tmp_path, "step,split,error\r\n1,train,0.5\r\n" + 9 * "\0")
    np.testing.assert_array_equal(read_rows(tmp_path, "train").steps, [1])
