"""Pictures: read back from the files, windows are where the glimpses were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageSequence

from wsram_ppl.drawing import glimpses
from wsram_ppl.drawing.glimpses import draw_gaze, draw_look
from wsram_ppl.drawing.pages import COLOURS
from wsram_ppl.interfaces import Gaze

SIDE, ZOOM, GAP = 60, 3, 10
Pixel = tuple[int, ...]

# Left, top and side of each glimpse's window in image pixels: apart, so that none covers another.
WINDOWS = [[4.0, 6.0, 8.0], [30.0, 4.0, 16.0], [8.0, 30.0, 24.0]]


def make_gaze(count: int = 1, windows: list[list[float]] = WINDOWS, correct: bool = True) -> Gaze:
    """Black images (grey ones, further to the right) and bright patches."""
    images = torch.zeros(count, SIDE, SIDE)
    images[1:] = 0.5
    seen = torch.full((count, len(windows), 4, 4), 0.25)
    captions = [f"a {n}, read as 7 (81%)" for n in range(count)]
    return Gaze(images, torch.tensor([windows] * count), seen, captions, [correct] * count)


def still(gaze: Gaze, folder: Path, columns: int = 4) -> Image.Image:
    png, _ = draw_gaze(gaze, folder / "a.png", columns, ZOOM)
    with Image.open(png) as image:
        image.load()
        return image.convert("RGB")


def outline(window: list[float], x0: int = GAP, y0: int = GAP) -> list[tuple[int, int]]:
    """Points on the four sides of a window's frame, in pixels of the picture, off its number."""
    left, top, side = (ZOOM * value for value in window)
    at = [0.5, 0.75, 0.9]
    right, low = left + side - 1, top + side - 1
    points = [(left + side * t, top) for t in at] + [(left + side * t, low) for t in at]
    points += [(left, top + side * t) for t in at] + [(right, top + side * t) for t in at]
    return [(x0 + round(x), y0 + round(y)) for x, y in points]


def close(a: Pixel | float | None, b: Pixel, tolerance: int) -> bool:
    assert isinstance(a, tuple)
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def test_files_and_sizes(tmp_path: Path) -> None:
    files = draw_gaze(make_gaze(6), tmp_path / "where.png", columns=4, zoom=ZOOM)
    assert files == [tmp_path / "where.png", tmp_path / "where.gif"]
    with Image.open(files[0]) as png, Image.open(files[1]) as gif:
        assert (png.format, gif.format) == ("PNG", "GIF")
        assert png.size == gif.size
        patch = (SIDE * ZOOM - 2 * 4) // 3
        cell = SIDE * ZOOM, SIDE * ZOOM + patch + 28
        assert png.size == (4 * (cell[0] + GAP) + GAP, 2 * (cell[1] + GAP) + GAP)


@pytest.mark.parametrize(("images", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 4, 1), (5, 4, 2)])
def test_the_grid_is_as_wide_as_it_has_to_be(
    images: int, columns: int, rows: int, tmp_path: Path
) -> None:
    width, height = still(make_gaze(images), tmp_path).size
    one = still(make_gaze(1), tmp_path).size
    assert width == columns * (one[0] - GAP) + GAP
    assert height == rows * (one[1] - GAP) + GAP


def test_windows_are_drawn_where_the_glimpses_were(tmp_path: Path) -> None:
    picture = still(make_gaze(2), tmp_path)
    width = SIDE * ZOOM + GAP
    for x0, background in ((GAP, (0, 0, 0)), (GAP + width, (128, 128, 128))):
        for window, colour in zip(WINDOWS, COLOURS, strict=False):
            for point in outline(window, x0):
                assert picture.getpixel(point) == ImageColor.getrgb(colour)
            left, top, side = window
            inside = x0 + round(ZOOM * (left + side * 0.8)), GAP + round(ZOOM * (top + side * 0.8))
            assert picture.getpixel(inside) == background
        assert picture.getpixel((x0 + ZOOM * (SIDE - 2), GAP + ZOOM * (SIDE - 2))) == background


def test_the_image_itself_is_drawn(tmp_path: Path) -> None:
    gaze = make_gaze(1, [[0.0, 0.0, 1.0]])
    gaze.images[0, 40, 20] = 1.0  # row 40, column 20
    gaze.images[0, 41, 20] = 2.0  # beyond white is white
    picture = still(gaze, tmp_path)
    for row, column, value in ((40, 20, 255), (41, 20, 255), (40, 21, 0), (39, 20, 0)):
        for corner in (0, ZOOM - 1):
            at = GAP + ZOOM * column + corner, GAP + ZOOM * row + corner
            assert picture.getpixel(at) == (value,) * 3


def test_images_and_patches_in_colour(tmp_path: Path) -> None:
    gaze = make_gaze(1)
    images = torch.zeros(1, 3, SIDE, SIDE)
    images[0, 0] = 1.0
    patches = torch.zeros(1, 3, 3, 4, 4)
    patches[0, 1, 2] = 1.0
    picture = still(Gaze(images, gaze.windows, patches, gaze.captions, gaze.correct), tmp_path)
    assert picture.getpixel((GAP + ZOOM * (SIDE - 2), GAP + ZOOM * (SIDE - 2))) == (255, 0, 0)
    side = (SIDE * ZOOM - 2 * 4) // 3
    for n, colour in enumerate([(0, 0, 0), (0, 0, 255), (0, 0, 0)]):
        assert (
            picture.getpixel((GAP + n * (side + 4) + side // 2, GAP + SIDE * ZOOM + 4 + side // 2))
            == colour
        )
    two = Gaze(images[:, :2], gaze.windows, patches[:, :, :2], gaze.captions, gaze.correct)
    assert still(two, tmp_path).getpixel((GAP + ZOOM * (SIDE - 2),) * 2) == (128, 128, 128)  # their mean


def test_patches_stand_below_in_order(tmp_path: Path) -> None:
    gaze = make_gaze(1)
    for n in range(3):
        gaze.patches[0, n] = (n + 1) / 4
    picture = still(gaze, tmp_path)
    side = (SIDE * ZOOM - 2 * 4) // 3
    for n in range(3):
        left, top = GAP + n * (side + 4), GAP + SIDE * ZOOM + 4
        assert picture.getpixel((left, top)) == ImageColor.getrgb(COLOURS[n])
        centre = picture.getpixel((left + side // 2, top + side // 2))
        assert centre == (round(255 * (n + 1) / 4),) * 3


def test_the_animation_adds_one_glimpse_at_a_time(tmp_path: Path) -> None:
    _, gif = draw_gaze(make_gaze(1), tmp_path / "a.png", 4, ZOOM)
    with Image.open(gif) as moving:
        assert moving.info["loop"] == 0  # for ever
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(moving)]
        durations = []
        for index in range(moving.n_frames):  # type: ignore[attr-defined]
            moving.seek(index)
            durations.append(moving.info["duration"])
    assert len(frames) == len(WINDOWS) + 1
    assert durations == [700, 700, 700, 1400]  # time to read the answer
    for shown, frame in enumerate(frames):
        for n, window in enumerate(WINDOWS):
            wanted = ImageColor.getrgb(COLOURS[n]) if n < shown else (0, 0, 0)
            # A GIF has 256 colours.
            assert all(close(frame.getpixel(point), wanted, 40) for point in outline(window))


@pytest.mark.parametrize(("correct", "channel"), [(True, 1), (False, 0)])
def test_the_answer_is_green_when_right_and_red_when_wrong(
    correct: bool, channel: int, tmp_path: Path
) -> None:
    picture = still(make_gaze(1, correct=correct), tmp_path)
    below = picture.crop((GAP, picture.height - GAP - 24, picture.width - GAP, picture.height - GAP))
    pixels = np.asarray(below, dtype=int).reshape(-1, 3)
    assert pixels[pixels.sum(1).argmin()].argmax() == channel


@pytest.mark.parametrize(
    "window", [[-30.0, -30.0, 20.0], [500.0, 10.0, 48.0], [-100.0, -100.0, 300.0], [0.5, 0.25, 0.1]]
)
def test_windows_may_lie_outside(window: list[float], tmp_path: Path) -> None:
    """Locations are samples of a Normal: some reach over the edge, or lie beyond."""
    picture = still(make_gaze(1, [window, WINDOWS[0]]), tmp_path)
    assert picture.getpixel(outline(WINDOWS[0])[0]) == ImageColor.getrgb(COLOURS[1])


def test_many_glimpses_on_a_small_image(tmp_path: Path) -> None:
    """More glimpses than colours, and than patches of a decent size fit below."""
    gaze = make_gaze(2, [[float(n), float(n), 4.0] for n in range(20)])
    picture = still(gaze, tmp_path)
    assert picture.width == 2 * (20 * 16 - 4 + GAP) + GAP
    small = Gaze(gaze.images[:, :8, :8], gaze.windows, gaze.patches, gaze.captions, gaze.correct)
    files = draw_gaze(small, tmp_path / "small.png")
    with Image.open(files[1]) as moving:
        assert moving.n_frames == 21  # type: ignore[attr-defined]


@pytest.mark.parametrize(("side", "zoom"), [(100, 2), (28, 7), (300, 1)])
def test_images_are_drawn_nearly_200_pixels_wide(side: int, zoom: int, tmp_path: Path) -> None:
    gaze = make_gaze(1)
    one = Gaze(torch.zeros(1, side, side), gaze.windows, gaze.patches, gaze.captions, gaze.correct)
    with Image.open(draw_gaze(one, tmp_path / "a.png")[0]) as picture:
        assert picture.width == side * zoom + 2 * GAP


def test_a_window_as_large_as_the_image_has_all_its_sides(tmp_path: Path) -> None:
    whole = [[0.0, 0.0, float(SIDE)]]
    picture = still(make_gaze(1, whole), tmp_path)
    colour = ImageColor.getrgb(COLOURS[0])
    assert all(close(picture.getpixel(point), colour, 0) for point in outline(whole[0]))


def test_a_long_caption_has_two_lines(tmp_path: Path) -> None:
    gaze = make_gaze(2)
    captions = ["a golden_retriever, read as labrador_retriever (83%)", gaze.captions[1]]
    pictures = [still(replace(gaze, captions=each), tmp_path) for each in (gaze.captions, captions)]
    assert pictures[1].height > pictures[0].height
    ink = np.asarray(pictures[1].convert("L"))[-GAP - 14 : -GAP]  # the second line of both captions
    for left in (GAP, GAP + pictures[1].width // 2):
        assert (ink[:, left : left + 60] < 128).any()


def test_a_page_too_large_for_a_gif_is_still_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glimpses, "_LARGEST_GIF", 100)
    assert draw_gaze(make_gaze(1), tmp_path / "a.png") == [tmp_path / "a.png"]
    assert not (tmp_path / "a.gif").exists()


def test_the_legend_of_a_narrow_image_is_whole(tmp_path: Path) -> None:
    gaze = make_gaze(1)
    narrow = Gaze(torch.zeros(1, 100, 10), gaze.windows, gaze.patches, gaze.captions, gaze.correct)
    with Image.open(draw_look(narrow, tmp_path / "a.png", gaze.windows)) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert (pixels[:, -GAP - 2 :] == 255).all()  # its text ends before the edge


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        draw_gaze(make_gaze(1), tmp_path / "missing" / "a.png")


@given(
    st.lists(
        st.tuples(st.floats(-50, 150), st.floats(-50, 150), st.floats(2, 80)), min_size=1, max_size=5
    )
)
def test_numbers_stand_apart_and_within_the_picture(windows: list[tuple[float, float, float]]) -> None:
    taken: list[tuple[int, int, int, int]] = []
    for left, top, side in windows:
        box = glimpses._free_corner([left, top, left + side, top + side], 13, (200, 200), taken)
        assert box[0] >= 0 and box[1] >= 0 and box[2] < 200 and box[3] < 200
        for other in taken:
            assert box[2] < other[0] or other[2] < box[0] or box[3] < other[1] or other[3] < box[1]
        taken.append(box)


def test_numbers_can_be_read_where_frames_lie_on_each_other(tmp_path: Path) -> None:
    picture = still(make_gaze(1, [[20.0, 20.0, 16.0]] * 4), tmp_path)
    pixels = np.asarray(picture)[: SIDE * ZOOM]
    for colour in COLOURS[:4]:
        assert (pixels == ImageColor.getrgb(colour)).all(-1).sum() > 60, "the box of a number"


def test_an_answer_that_nobody_knows_to_be_right_is_in_ink(tmp_path: Path) -> None:
    gaze = make_gaze(1)
    unknown = Gaze(gaze.images, gaze.windows, gaze.patches, ["cat (81%)"], [None])
    picture = still(unknown, tmp_path)
    below = picture.crop((GAP, picture.height - GAP - 24, picture.width - GAP, picture.height - GAP))
    pixels = np.asarray(below, dtype=int).reshape(-1, 3)
    darkest = pixels[pixels.sum(1).argmin()]
    assert darkest.max() - darkest.min() < 10
    with Image.open(tmp_path / "a.gif") as moving:
        first = np.asarray(moving.convert("RGB"))[-GAP - 20 : -GAP]
    assert first.min() > 250, "the answer comes with the last glimpse"


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 999))
def test_the_share_of_sequences_that_saw_a_pixel(sequences: int, looks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    windows = torch.rand(sequences, looks, 3, generator=generator) * torch.tensor([12.0, 9.0, 7.0]) - 2
    found = glimpses.seen_share(windows, (8, 11))
    for row in range(8):
        for column in range(11):
            saw = 0
            for sequence in windows.tolist():
                saw += any(
                    x <= column + 0.5 < x + side and y <= row + 0.5 < y + side for x, y, side in sequence
                )
            assert found[row, column].item() == pytest.approx(saw / sequences)


def test_a_look_at_one_image_with_and_without_a_map(tmp_path: Path) -> None:
    gaze = make_gaze(1)
    one = draw_look(gaze, tmp_path / "one.png")
    sampled = torch.tensor([[[0.0, 0.0, 30.0]], [[0.0, 0.0, 60.0]]])
    two = draw_look(gaze, tmp_path / "two.png", sampled)
    with Image.open(one) as alone, Image.open(two) as both:
        side = SIDE * (400 // SIDE)
        assert alone.width == side + 2 * GAP and both.width == 2 * (side + GAP) + GAP
        assert both.height == alone.height
        right = np.asarray(both.convert("RGB"), dtype=int)[GAP : GAP + side, side + 2 * GAP :]
        looked_at, half_as_much = (
            right[side // 4, side // 4].sum(),
            right[3 * side // 4, side // 4].sum(),
        )
        assert looked_at > half_as_much > 0


def test_a_map_is_dark_where_nobody_looked(tmp_path: Path) -> None:
    gaze = make_gaze(1)
    file = draw_look(gaze, tmp_path / "a.png", torch.tensor([[[0.0, 0.0, 20.0]]]))
    with Image.open(file) as picture:
        side = SIDE * (400 // SIDE)
        assert picture.convert("RGB").getpixel((2 * GAP + side + side - 5, GAP + side - 5)) == (0, 0, 0)
