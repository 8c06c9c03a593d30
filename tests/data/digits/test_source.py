"""Placing digits on the canvas, and the batches of the digit sources."""

import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch._subclasses import FakeTensorMode

from wsram_ppl.config.catalogue import DATA_SOURCES
from wsram_ppl.data.digits.files import Digits, read_sample
from wsram_ppl.data.digits.placement import draw_placements, place
from wsram_ppl.data.digits.source import MNISTDigits, PlacedDigits, SampleDigits
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import DataSource

MNIST = Path(__file__).resolve().parents[4] / "shared" / "data" / "mnist"
FEW = settings(max_examples=40, deadline=None)
FACTORS = st.floats(0.2, 3.0)


def dense(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(factor: float, left: float, top: float) -> Tensor:
    return torch.tensor([[factor], [left], [top]], dtype=torch.float64)


# ---------------------------------------------------------------- placing


@pytest.mark.parametrize("size", [7, 14, 17, 21, 27, 28, 29, 36, 45, 56])
@pytest.mark.parametrize(("left", "top"), [(0, 0), (3, 30), (44, 44), (41, 0)])
def test_whole_pixels_as_interpolate_does_it(size: int, left: int, top: int) -> None:
    image = dense(1, 28, 28)
    expected = torch.zeros(1, 100, 100, dtype=torch.float64)
    expected[:, top : top + size, left : left + size] = F.interpolate(
        image[None], size=(size, size), mode="bilinear", antialias=True
    )[0]
    torch.testing.assert_close(place(image, at(size / 28, left, top), 100), expected)


@FEW
@given(st.floats(1.0, 3.0), st.floats(0, 16), st.floats(0, 16), st.integers(0, 99))
def test_between_pixels_as_grid_sample_does_it(
    factor: float, left: float, top: float, seed: int
) -> None:
    image = dense(1, 28, 28, seed=seed)
    centre = torch.arange(100, dtype=torch.float64) + 0.5
    x, y = (centre - left) / (28 * factor), (centre - top) / (28 * factor)
    grid = torch.stack(torch.broadcast_tensors(2 * x - 1, 2 * y[:, None] - 1), -1)[None]
    sampled = F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
    inside = ((y > 0) & (y < 1))[:, None] & ((x > 0) & (x < 1))
    torch.testing.assert_close(place(image, at(factor, left, top), 100), sampled * inside)


@FEW
@given(st.floats(0.2, 1.0), st.floats(0, 70), st.floats(0, 70), st.integers(0, 99))
def test_shrinking_weighs_by_a_widened_triangle(
    factor: float, left: float, top: float, seed: int
) -> None:
    image = dense(1, 28, 28, seed=seed)
    found = place(image, at(factor, left, top), 100)[0]
    row, column = np.random.default_rng(seed).integers(0, 28, 2) * factor
    row, column = min(int(row + top + 0.5), 99), min(int(column + left + 0.5), 99)
    u, v = (row + 0.5 - top) / factor, (column + 0.5 - left) / factor
    if not (0 < u < 28 and 0 < v < 28):
        assert found[row, column] == 0
        return
    total = weight = 0.0
    for i in range(28):
        for j in range(28):
            near = max(0.0, 1 - factor * abs(i + 0.5 - u)) * max(0.0, 1 - factor * abs(j + 0.5 - v))
            total, weight = total + near * image[0, i, j].item(), weight + near
    assert found[row, column].item() == pytest.approx(total / weight, abs=1e-9)


@FEW
@given(FACTORS, st.floats(0, 1), st.floats(0, 1))
def test_white_fills_its_square_and_nothing_else(factor: float, x: float, y: float) -> None:
    room = 100 - 28 * factor
    found = place(torch.full((1, 28, 28), 255, dtype=torch.uint8), at(factor, x * room, y * room), 100)
    centre = torch.arange(100, dtype=torch.float64) + 0.5
    columns = (centre > x * room) & (centre < x * room + 28 * factor)
    rows = (centre > y * room) & (centre < y * room + 28 * factor)
    # A pixel's centre may lie on the very edge: those may go either way.
    edges = [x * room, x * room + 28 * factor, y * room, y * room + 28 * factor]
    if min(abs(edge - 0.5 - round(edge - 0.5)) for edge in edges) > 1e-9:
        torch.testing.assert_close(found[0], (rows[:, None] & columns).to(found.dtype))
    assert found.min() >= 0 and found.max() <= 1


@FEW
@given(FACTORS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_the_centre_of_mass_moves_along(factor: float, x: float, y: float, seed: int) -> None:
    # Smooth and black at its border, as digits are.
    image = F.avg_pool2d(F.pad(dense(1, 20, 20, seed=seed), (6, 6, 6, 6)), 5, 1)

    def centre(picture: Tensor) -> Tensor:
        at = torch.arange(picture.shape[-1], dtype=torch.float64) + 0.5
        return torch.stack(((picture.sum(-2) @ at), (picture.sum(-1) @ at))) / picture.sum()

    room = 100 - 28 * factor
    left, top = x * room, y * room
    found = centre(place(image, at(factor, left, top), 100)[0])
    expected = centre(image[0]) * factor + torch.tensor([left, top], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=0.12, rtol=0)


def test_a_shrunken_checkerboard_is_grey() -> None:
    board = ((torch.arange(28)[:, None] + torch.arange(28)) % 2).double()[None]
    inner = place(board, at(0.3, 10.2, 30.7), 60)[0, 33:37, 13:16]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.03, rtol=0)


def test_bytes_and_fractions_are_the_same_picture() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
    placements = draw_placements(np.random.default_rng(0), 3, 16, (0.5, 2.0), 50)
    found = place(images, placements, 50)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, place(images.float() / 255, placements, 50))


def test_mixed_precision_leaves_the_pixels_alone() -> None:
    images, placements = dense(2, 28, 28).float(), at(1.3, 5.5, 7.25).float().repeat(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = place(images, placements, 60)
    assert found.dtype == torch.float32 and found.equal(place(images, placements, 60))


@FEW
@given(st.integers(0, 1000), st.floats(0.1, 2), st.floats(0, 1.5), st.integers(0, 50))
def test_every_placement_is_whole_and_within_range(
    seed: int, low: float, more: float, room: int
) -> None:
    canvas = math.ceil(28 * (low + more)) + room
    rng = np.random.default_rng(seed)
    factor, left, top = draw_placements(rng, 500, 28, (low, low + more), canvas).double()
    assert (factor >= low - 1e-6).all() and (factor <= low + more + 1e-6).all()
    assert (left >= 0).all() and (left + 28 * factor <= canvas + 1e-4).all()
    assert (top >= 0).all() and (top + 28 * factor <= canvas + 1e-4).all()


def test_placements_are_uniform() -> None:
    factor, left, top = draw_placements(np.random.default_rng(0), 20_000, 28, (0.6, 1.6), 100)
    room = 100 - 28 * factor
    for uniform in (factor - 0.6, left / room, top / room):
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand seeds
        steps = torch.arange(1, 20_001) / 20_000
        assert (uniform.sort().values - steps).abs().max() < 1.95 / math.sqrt(20_000)
    correlation = torch.corrcoef(torch.stack((factor, left / room, top / room)))
    assert (correlation - torch.eye(3)).abs().max() < 0.03


# ---------------------------------------------------------------- batches


def tell_tale(count: int = 10, tests: int = 7) -> tuple[Digits, Digits, Digits]:
    """Digits that can be told apart by their grey level.

    Training from 1, validation from 150 and test from 200 on.
    """

    def digits(levels: Tensor) -> Digits:
        images = levels.to(torch.uint8)[:, None, None].expand(-1, 28, 28).contiguous()
        return Digits(images, levels % 10)

    firsts = {150: tests, 200: tests}
    held_out = (digits(torch.arange(number) + first) for first, number in firsts.items())
    return digits(torch.arange(count) + 1), *held_out


def source(count: int = 10, tests: int = 7, **options: Any) -> PlacedDigits:
    """On a canvas with room for nothing but the digit: images come out as they are."""
    options = {"scale": (1.0, 1.0), "canvas": 28, "test_seed": 0} | options
    return PlacedDigits(*tell_tale(count, tests), **options)


def levels(batch: tuple[Tensor, ...]) -> list[int]:
    images, labels = batch
    found = (images.amax((-2, -1)) * 255).round().long()
    assert labels.equal(found % 10), "images and labels do not belong together"
    return found.tolist()


@FEW
@given(st.integers(1, 25), st.data(), st.integers(0, 2**63))
def test_every_epoch_holds_every_digit_once(count: int, data: st.DataObject, seed: int) -> None:
    size = data.draw(st.integers(1, count))
    digits = source(count)
    stream: list[int] = []
    for step in range(-(-3 * count // size)):
        stream += levels(digits.training_batch(step, size, seed))
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(1, count + 1))


def test_epochs_and_seeds_differ_in_order() -> None:
    digits = source(100)
    orders = [levels(digits.training_batch(e, 100, s)) for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    # neighbouring seeds and epochs must not meet: (seed, epoch) is not seed + epoch
    assert orders[1] != orders[2]


def test_a_batch_depends_on_its_arguments_alone() -> None:
    one, other = SampleDigits(), SampleDigits()
    expected = {step: one.training_batch(step, 48, 3) for step in range(5)}
    for step in (4, 0, 3, 3, 1, 2):
        other.training_batch(step + 300, 32, 7)
        images, labels = other.training_batch(step, 48, 3)
        assert images.equal(expected[step][0]) and labels.equal(expected[step][1])


def test_random_numbers_elsewhere_are_not_touched() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    digits = SampleDigits()
    digits.training_batch(0, 16, 0)
    next(digits.evaluation_batches(16))
    assert before[0].equal(torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_placements_are_fresh_for_each_step_and_seed() -> None:
    digits = source(4, scale=(0.5, 1.5), canvas=60)
    batches = [digits.training_batch(step, 4, seed)[0] for seed in (0, 1) for step in (0, 1, 2)]
    extents = {tuple(batch.gt(0).sum((-2, -1)).tolist()) for batch in batches}
    assert len(extents) == 6


def test_the_batches_of_the_sample() -> None:
    images, labels = SampleDigits().training_batch(0, 64, 0)
    assert images.shape == (64, 100, 100) and images.dtype == torch.float32
    assert labels.shape == (64,) and labels.dtype == torch.int64
    assert images.min() == 0 and 0.99 < images.max() <= 1
    seen = images.gt(0).sum((-2, -1)).float()
    assert (seen < 45 * 45).all() and (seen > 10).all()


def test_the_epoch_after_a_million_steps_costs_no_more() -> None:
    digits = source(10)
    assert len(levels(digits.training_batch(10**9, 7, 0))) == 7
    for step in range(100):
        digits.training_batch(step, 7, step)
    assert len(digits._epochs._orders) <= 2, "permutations pile up"


def test_evaluation_goes_through_a_split_once() -> None:
    """Through validation, unless it is asked for the test set."""
    digits = source(tests=7)
    for first, split in ((150, {}), (150, {"split": "validation"}), (200, {"split": "test"})):
        batches = [levels(batch) for batch in digits.evaluation_batches(3, **split)]
        assert [len(batch) for batch in batches] == [3, 3, 1]
        assert sorted(level for batch in batches for level in batch) == list(range(first, first + 7))


@FEW
@given(st.integers(1, 12), st.integers(1, 12))
def test_a_test_digit_and_its_place_are_fixed(size: int, limit: int) -> None:
    digits = source(tests=9, scale=(0.5, 1.5), canvas=60)
    [(images, labels)] = digits.evaluation_batches(9)
    batches = list(digits.evaluation_batches(size, limit))
    assert all(len(batch[1]) == size for batch in batches[:-1])
    found = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    assert len(found[0]) == min(limit, 9)
    # to rounding: the matrix product may add up in another order
    torch.testing.assert_close(found[0], images[:limit])
    assert found[1].equal(labels[:limit])


def test_the_test_seed_fixes_the_test_set() -> None:
    first, again, other = (SampleDigits(test_seed=seed) for seed in (3, 3, 4))
    images, labels = next(first.evaluation_batches(32))
    same = next(again.evaluation_batches(32))
    assert images.equal(same[0]) and labels.equal(same[1])
    assert not images.equal(next(other.evaluation_batches(32))[0])
    # neither the training batches nor their seed have a part in it
    assert first.training_batch(0, 8, 0)[0].equal(other.training_batch(0, 8, 0)[0])


def test_the_whole_of_the_sample_is_evaluated() -> None:
    batches = SampleDigits().evaluation_batches(300, split="test")
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [200] * 10
    assert sum(len(labels) for _, labels in SampleDigits().evaluation_batches(300)) == 1000


def test_validation_digits_are_the_last_of_the_training_digits() -> None:
    """Nothing of them is trained on."""
    training, _ = read_sample()
    digits = SampleDigits(scale=(1.0, 1.0), canvas=28)
    assert digits.num_training == 9000
    images = torch.cat([images for images, _ in digits.evaluation_batches(500)])

    def rows(images: Tensor) -> list[bytes]:
        return sorted(image.numpy().tobytes() for image in (images.float() * 255).round().byte())

    assert rows(images) == rows(training.images[-1000:].float() / 255)
    epoch = [digits.training_batch(step, 900, 0)[0] for step in range(10)]
    assert rows(torch.cat(epoch)) == rows(training.images[:9000].float() / 255)


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no copy of MNIST in {MNIST}")
def test_the_batches_of_mnist() -> None:
    digits = MNISTDigits(root=MNIST, canvas=60)
    assert digits.num_training == 50_000
    for split in ("validation", "test"):
        assert sum(len(y) for _, y in digits.evaluation_batches(2000, split=split)) == 10_000
    images, labels = digits.training_batch(781, 64, 0)  # the end of the first epoch
    assert images.shape == (64, 60, 60) and labels.shape == (64,)
    assert sum(len(labels) for _, labels in digits.evaluation_batches(64, 100)) == 100


def test_on_a_gpu_every_batch_is_there_and_nothing_waits() -> None:
    with FakeTensorMode():
        digits = source(50, scale=(0.6, 1.6), canvas=100)
        assert digits.to("cuda") is digits
        for step in (0, 1):  # the second holds the end of an epoch
            images, labels = digits.training_batch(step, 32, 0)
            assert images.shape == (32, 100, 100) and images.device.type == "cuda"
            assert labels.shape == (32,) and labels.device.type == "cuda"
        for images, labels in digits.evaluation_batches(3):
            assert images.device.type == labels.device.type == "cuda"


def test_placing_leaves_mixed_precision_of_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """To leave an autocast context, even one that is off, empties the cache of all threads."""
    monkeypatch.setattr(torch, "clear_autocast_cache", None)
    SampleDigits().training_batch(0, 4, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images, _ = SampleDigits().training_batch(0, 4, 0)
        assert images.dtype == torch.float32
        monkeypatch.undo()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cpu_and_gpu_give_the_same_batches() -> None:
    here, there = SampleDigits(), SampleDigits().to("cuda")
    for one, other in (
        (here.training_batch(5, 64, 1), there.training_batch(5, 64, 1)),
        (next(here.evaluation_batches(64)), next(there.evaluation_batches(64))),
    ):
        torch.testing.assert_close(one[0], other[0].cpu(), atol=1e-5, rtol=0)
        assert one[1].equal(other[1].cpu())


# ---------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (1.6, 0.6)}, "scale must be the smallest and the largest factor"),
        ({"scale": (0.0, 1.0)}, "0 < smallest <= largest"),
        ({"scale": (-1.0, 1.0)}, "0 < smallest <= largest"),
        ({"scale": (1.0, float("inf"))}, "0 < smallest <= largest"),
        ({"scale": (float("nan"), 1.0)}, "0 < smallest <= largest"),
        ({"scale": (1.0,)}, "scale must be two numbers, such as"),
        ({"scale": (1.0, 2.0, 3.0)}, "scale must be two numbers"),
        ({"scale": 1.0}, "scale must be two numbers"),
        ({"scale": ("a", "b")}, "scale must be two numbers"),
        (
            {"canvas": 44},
            "a digit resized by 1.6 is 44.8 pixels wide and does not fit on a canvas of 44",
        ),
        ({"canvas": 44}, "use a canvas of at least 45 or a largest scale of at most 1.57$"),
        ({"canvas": 0}, "canvas must be a whole number of at least 1, not 0"),
        ({"canvas": 100.5}, "canvas must be a whole number of at least 1, not 100.5"),
        ({"test_seed": -1}, "test_seed must be a whole number of at least 0, not -1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SampleDigits(**options)
    assert "\n" not in str(caught.value)


def test_the_largest_digit_may_fill_the_canvas() -> None:
    digits = SampleDigits(scale=(2.0, 2.0), canvas=56)
    assert digits.training_batch(0, 4, 0)[0].shape == (4, 56, 56)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.training_batch(0, 11, 0), "a batch of 11 cannot be drawn from 10 training digits"),
        (lambda d: d.training_batch(0, 0, 0), "the batch size must be a whole number of at least 1"),
        (lambda d: d.training_batch(-1, 5, 0), "the step must be a whole number of at least 0, not -1"),
        (lambda d: d.training_batch(0, 5, -3), "the seed must be a whole number of at least 0, not -3"),
        (lambda d: d.training_batch(0, 2.5, 0), "the batch size must be a whole number"),
        (lambda d: d.training_batch(0, True, 0), "the batch size must be a whole number"),
        # at the call, not at the first batch
        (lambda d: d.evaluation_batches(0), "the batch size must be a whole number of at least 1"),
        (lambda d: d.evaluation_batches(5, 0), "the number of validation digits must be a whole n"),
        (lambda d: d.evaluation_batches(5, split="train"), "unknown split 'train'; held-out splits are"),
    ],
)
def test_wrong_arguments(call: Callable[[PlacedDigits], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(source(10))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("root", ["", "  "])
def test_an_empty_root(root: str) -> None:
    with pytest.raises(InputError, match="root is empty"):
        MNISTDigits(root=root)


# ---------------------------------------------------------------- as a data source


def test_registered_as_data_sources() -> None:
    assert DATA_SOURCES.resolve("sample") is SampleDigits
    assert DATA_SOURCES.resolve("mnist") is MNISTDigits
    described = DATA_SOURCES.describe()
    assert "MNIST" in described["sample"] and "MNIST" in described["mnist"]
    digits: DataSource = SampleDigits()
    assert isinstance(digits, DataSource)


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("scale", [0.6, 1.6], [0, 1.6]),
        ("scale", [1, 1], [1.0]),
        ("canvas", 60, -5),
        ("test_seed", 0, -1),
    ],
)
def test_options_can_be_checked_from_the_signature(option: str, good: object, bad: object) -> None:
    for cls in (SampleDigits, MNISTDigits):
        hints = typing.get_type_hints(cls.__init__, include_extras=True)
        check = TypeAdapter(hints[option])
        check.validate_python(good)
        with pytest.raises(ValidationError):
            check.validate_python(bad)
