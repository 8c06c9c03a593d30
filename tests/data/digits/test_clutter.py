"""Clutter: pieces of other digits, the same for the same seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.data.digits.test_source import source
from wsram_ppl.config import parse_config
from wsram_ppl.data.digits.clutter import Clutter, add_clutter, draw_clutter
from wsram_ppl.data.digits.source import SampleDigits
from wsram_ppl.errors import InputError

FEW = settings(max_examples=30)


def by_hand(images: Tensor, drawn: Tensor, digits: Tensor, own: Tensor, size: int) -> Tensor:
    """One piece after the other."""
    found = images.clone()
    for image, pieces, mine in zip(found, drawn.tolist(), own.tolist(), strict=True):
        for further, row, column, top, left in pieces:
            other = (mine + 1 + further) % len(digits)
            piece = digits[other, row : row + size, column : column + size].to(images) / 255
            image[top : top + size, left : left + size] += piece
    return found.clamp(max=1.0)


@FEW
@given(
    st.integers(0, 5), st.integers(1, 28), st.integers(2, 6), st.integers(28, 40), st.integers(0, 999)
)
def test_pieces_are_added_where_they_were_drawn(
    pieces: int, size: int, count: int, canvas: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    digits = torch.from_numpy(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
    own = torch.from_numpy(rng.integers(0, count, 4))
    images = torch.from_numpy(rng.random((4, canvas, canvas)))
    drawn = draw_clutter(rng, 4, count, Clutter(pieces, size), canvas)
    found = add_clutter(images.clone(), drawn, digits, own, size)
    torch.testing.assert_close(found, by_hand(images, drawn, digits, own, size))
    # What is added in another order is the same to the bit, as on a GPU.
    order = torch.from_numpy(rng.permutation(pieces))
    assert found.equal(add_clutter(images.clone(), drawn[:, order], digits, own, size))


@FEW
@given(st.integers(2, 9), st.integers(1, 28), st.integers(28, 100), st.integers(0, 999))
def test_pieces_are_of_other_digits_and_lie_wholly_inside(
    digits: int, size: int, canvas: int, seed: int
) -> None:
    drawn = draw_clutter(np.random.default_rng(seed), 50, digits, Clutter(8, size), canvas)
    assert drawn.shape == (50, 8, 5) and drawn.min() >= 0
    assert drawn[..., 0].max() <= digits - 2, "one digit further than all others is the digit itself"
    assert drawn[..., 1:3].max() <= 28 - size and drawn[..., 3:].max() <= canvas - size


def test_pieces_are_uniform() -> None:
    drawn = draw_clutter(np.random.default_rng(0), 5000, 8, Clutter(4, 8), 60).flatten(0, 1)
    for column, choices in zip(drawn.unbind(1), (7, 21, 21, 53, 53), strict=True):
        expected = len(column) / choices
        chi_squared = ((column.bincount(minlength=choices) - expected) ** 2 / expected).sum()
        assert chi_squared < choices - 1 + 4 * (2 * choices) ** 0.5
    assert (torch.corrcoef(drawn.T.double()) - torch.eye(5)).abs().max() < 0.04


CLUTTERED = {"canvas": 60, "scale": (1.0, 1.0), "clutter": {"pieces": 4, "size": 8}}


def test_the_same_seeds_give_the_same_images() -> None:
    """Steps and seeds have their own; rows are those of the whole batch; digits lie where they did."""
    one, other, clean = source(20, **CLUTTERED), source(20, **CLUTTERED), source(20, canvas=60)
    images, labels = one.training_batch(3, 8, 5)
    other.training_batch(9, 8, 5)
    again, _ = other.training_batch(3, 8, 5)
    assert images.equal(again)
    assert one.training_rows(3, 8, 5, slice(2, 5))[0].equal(images[2:5])
    without, plain_labels = clean.training_batch(3, 8, 5)
    assert labels.equal(plain_labels)
    assert (images >= without - 1e-6).all() and not images.equal(without)
    added = {(one.training_batch(s, 8, seed)[0].sum().item()) for s in (0, 1) for seed in (0, 1)}
    assert len(added) == 4


def test_held_out_clutter_is_fixed_by_the_test_seed() -> None:
    one, other = source(tests=9, **CLUTTERED), source(tests=9, **CLUTTERED, test_seed=1)
    [(images, _)] = one.evaluation_batches(9)
    parts = torch.cat([batch[0] for batch in one.evaluation_batches(2, 5)])
    torch.testing.assert_close(parts, images[:5])
    assert not images.equal(next(other.evaluation_batches(9))[0])
    assert not images.equal(next(one.evaluation_batches(9, split="test"))[0])


def test_pieces_are_of_the_same_split() -> None:
    """Grey levels tell the split that a piece is from."""
    for split, levels in (("validation", range(150, 157)), ("test", range(200, 207))):
        digits = source(tests=7, **{**CLUTTERED, "clutter": {"pieces": 1, "size": 4}})
        [(images, labels)] = digits.evaluation_batches(7, split=split)
        for image, label in zip((images * 255).round().int(), labels.tolist(), strict=True):
            found = set(image.unique().tolist()) - {0, 255}  # white where the piece lies on the digit
            assert len(found) in (1, 2) and found <= set(levels)
            assert label in {level % 10 for level in found}


def test_the_option_in_an_experiment() -> None:
    def config(*overrides: str) -> Any:
        tables = {
            "data": {"source": "sample"},
            "model": {"name": "glimpse-classifier"},
            "guide": {"name": "prior"},
            "objective": {"name": "importance"},
        }
        return parse_config(tables, overrides)

    plain = config()
    assert "clutter" not in plain.data.options
    some = config("data.clutter.pieces=3")
    assert SampleDigits(**some.data.arguments).clutter == Clutter(3, 8)
    assert some.fingerprint() != plain.fingerprint()
    both = config("data.clutter={pieces=8, size=5}")
    assert SampleDigits(**both.data.arguments).clutter == Clutter(8, 5)
    for wrong, message in (
        ("data.clutter.peices=3", r"data.clutter.peices = 3: should be 'pieces' or 'size'"),
        ("data.clutter=3", r"data.clutter = 3: should be an object"),
        ("data.clutter.pieces=-1", r"data.clutter.pieces = -1: should be greater than or equal to 0"),
        ("data.clutter.size=0.5", r"data.clutter.size = 0.5: should be a valid integer"),
    ):
        with pytest.raises(InputError, match=message):
            config(wrong)


@pytest.mark.parametrize(
    ("clutter", "message"),
    [
        ({"size": 29}, "clutter.size = 29: a piece of a digit has at most 28 pixels a side here"),
        ({"size": 0}, "clutter.size must be a whole number of at least 1, not 0"),
        ({"pieces": -1}, "clutter.pieces must be a whole number of at least 0, not -1"),
        ({"peices": 1}, "clutter has no 'peices'; it has pieces and size"),
    ],
)
def test_wrong_clutter(clutter: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        source(**{**CLUTTERED, "clutter": clutter})


def test_a_piece_needs_another_digit() -> None:
    with pytest.raises(InputError, match="clutter is made of other digits, but there is only one"):
        source(1, **CLUTTERED)
    assert source(1, **{**CLUTTERED, "clutter": {"pieces": 0}}).training_batch(0, 1, 0)[0].sum() > 0


def test_on_a_gpu_nothing_waits() -> None:
    with FakeTensorMode():
        digits = source(50, **CLUTTERED).to("cuda")
        for images, labels in (digits.training_batch(0, 8, 0), next(digits.evaluation_batches(4))):
            assert images.shape[1:] == (60, 60)
            assert images.device.type == labels.device.type == "cuda"
