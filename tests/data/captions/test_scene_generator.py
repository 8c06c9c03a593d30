"""Generated scenes: shapes are where they should be, and the maps tell what they should, no more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.captions.shapes import MANY, TWO, look
from wsram_ppl.data.captions.scene_generator import (
    COLOURS,
    LAYER_SHAPES,
    coverage,
    draw,
    feature_maps,
    generate,
)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**45), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_scene_is_a_function_of_seed_and_number(first: int, count: int, more: int, seed: int) -> None:
    together = generate((seed,), first, count + more)
    parts = [generate((seed,), first, count), generate((seed,), first + count, more)]
    for name in ("count", "size", "colour", "kind", "centre", "radius", "first", "noise"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(together, name), joined), name
    assert not np.array_equal(generate((seed + 1,), first, count).centre, parts[0].centre)


def test_shapes_are_on_the_picture_and_apart() -> None:
    assert (np.abs(MANY.centre) + MANY.radius[..., None])[TWO].max() <= 1 + 1e-12
    alone = MANY.count == 1
    assert (np.abs(MANY.centre) + MANY.radius[..., None])[alone, 0].max() <= 1 + 1e-12
    distance = np.abs(MANY.centre[TWO, 0] - MANY.centre[TWO, 1])
    # Not even the squares around them meet.
    assert (distance.max(1) - MANY.radius[TWO].sum(1)).min() > 0
    # Which of left and above it is is never in doubt.
    assert (distance.min(1) / distance.max(1)).max() < 0.61
    small = MANY.size == 0
    assert MANY.radius[small].max() <= 0.2 < 0.34 <= MANY.radius[~small].min()


def test_no_two_shapes_of_a_scene_look_alike() -> None:
    assert not any(look(MANY, n, 0) == look(MANY, n, 1) for n in TWO)


def test_everything_occurs_about_equally_often() -> None:
    for values, options in (
        (MANY.size[TWO], 2),
        (MANY.colour[TWO], 6),
        (MANY.kind[TWO], 4),
        (MANY.relation[TWO], 4),
        (MANY.first[TWO], 2),
    ):
        counts = np.bincount(values.ravel(), minlength=options)
        expected = values.size / options
        assert len(counts) == options and np.abs(counts - expected).max() < 5 * expected**0.5
    assert abs(len(TWO) / len(MANY.count) - 0.8) < 0.03
    assert abs(MANY.noise.mean()) < 1e-3 and MANY.noise.std() == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------- pictures and maps


def test_pictures_show_the_shapes_where_they_are() -> None:
    scenes = generate((6,), 0, 100)
    pictures = draw(scenes, 96)
    assert pictures.shape == (100, 96, 96, 3) and pictures.dtype == np.uint8
    colours = np.array(list(COLOURS.values()))
    for n in range(100):
        mixed = 0
        for shape in range(scenes.count[n]):
            x, y = ((scenes.centre[n, shape] + 1) / 2 * 96).astype(int)
            assert pictures[n, y, x].tolist() == colours[scenes.colour[n, shape]].tolist()
            left, top = (scenes.centre[n, shape] - scenes.radius[n, shape] + 1) * 48
            right, bottom = (scenes.centre[n, shape] + scenes.radius[n, shape] + 1) * 48
            pictures[n, int(top) : int(bottom) + 1, int(left) : int(right) + 1] = 40
            mixed += 1
        assert mixed == scenes.count[n] and (pictures[n] == 40).all(), "paint outside of the shapes"


def test_coverage_adds_up_to_the_area() -> None:
    area = {0: np.pi, 1: 1.8**2, 2: 2.0, 3: 2 * 2 * 0.66 - 0.66**2}
    for cells in (4, 8, 16):
        shares = coverage(MANY, cells, 48 // cells)
        assert shares.min() >= 0 and shares.max() <= 1
        for kind, factor in area.items():
            chosen = (MANY.kind[:, 0] == kind) & (MANY.size[:, 0] == 1)
            found = shares[chosen, 0].sum((1, 2)) * (2 / cells) ** 2
            assert abs((found / (factor * MANY.radius[chosen, 0] ** 2)).mean() - 1) < 0.02
    assert coverage(MANY, 4)[MANY.count == 1, 1].max() == 0


def readable(cells: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """How often a linear classifier, fitted to half of the cells, names the label of the others."""
    targets = np.eye(labels.max() + 1)[labels]
    inputs = np.concatenate((cells, np.ones((len(cells), 1))), 1)
    half = len(cells) // 2
    weights = np.linalg.lstsq(inputs[:half], targets[:half], rcond=None)[0]
    return float(((inputs[half:] @ weights).argmax(1) == labels[half:]).mean())


def test_each_layer_tells_what_it_should_and_no_more() -> None:
    """Colour in both; the kind of small shapes in the fine layer, of large ones in the coarse."""
    maps = feature_maps(MANY, 0.1)
    assert [m.shape[1:] for m in maps] == list(LAYER_SHAPES)
    assert all(m.dtype == np.float32 and m.flags["C_CONTIGUOUS"] for m in maps)
    row = np.arange(len(MANY.count))
    for layer, features in enumerate(maps):
        cells = LAYER_SHAPES[layer][1]
        best = coverage(MANY, cells)[:, 0].reshape(len(row), -1).argmax(1)
        at_shape = features.reshape(len(row), features.shape[1], -1)[row, :, best]
        for size in (0, 1):
            chosen = MANY.size[:, 0] == size
            assert readable(at_shape[chosen], MANY.colour[chosen, 0]) > 0.97
            kind = readable(at_shape[chosen], MANY.kind[chosen, 0])
            if size == layer:
                assert kind > 0.97
            else:
                assert kind < 0.45  # chance is 0.25; how full a cell is tells a little


def test_a_cell_without_a_shape_is_noise() -> None:
    for layer, features in enumerate(feature_maps(MANY, 0.1)):
        cells = LAYER_SHAPES[layer][1]
        empty = coverage(MANY, cells, 48 // cells).sum(1) == 0
        silent = np.moveaxis(features, 1, -1)[empty]
        assert silent.std() == pytest.approx(0.1, rel=0.01) and abs(silent.mean()) < 1e-3
    assert all((m == 0).any() for m in feature_maps(MANY, 0.0))
