"""The glimpse sensor against grid_sample, and the properties that any sensor must have."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from wsram_ppl.errors import InputError
from wsram_ppl.primitives.glimpses import Levels, build_pyramid, extract, window

SIZES = st.integers(1, 33)
FEW = settings(max_examples=40, deadline=None)


def images_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(*shape: int, seed: int = 0) -> Tensor:
    """Places inside, at the edges and outside."""
    normal = torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed))
    return normal.to(torch.float64)


def averaged(images: Tensor, scale: int) -> Tensor:
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % scale, 0, -height % scale))
    return F.avg_pool2d(padded[:, None], scale)[:, 0]


def by_grid_sample(images: Tensor, scale: int, location: Tensor, patch: int) -> Tensor:
    """Patches [B, k * k] of images [B, H, W] at location [B, 2], all at one scale."""
    height, width = images.shape[-2:]
    level = averaged(images, scale)
    size = torch.tensor([level.shape[-1], level.shape[-2]], dtype=torch.float64)
    centre = (location + 1) / 2 * torch.tensor([width, height], dtype=torch.float64) / scale
    steps = torch.arange(patch, dtype=torch.float64) + 0.5 - patch / 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    grid = (centre[:, None, None] + torch.stack((x, y), -1)) / size * 2 - 1
    found = F.grid_sample(level[:, None], grid, padding_mode="zeros", align_corners=False)
    return found.flatten(1)


def one_scale(images: Tensor, scale: int, location: Tensor, patch: int) -> Tensor:
    pyramid = build_pyramid(images, (scale,), patch)
    return extract(pyramid, location, torch.zeros(location.shape[:-1], dtype=torch.long))


@FEW
@given(
    SIZES,
    SIZES,
    st.lists(st.integers(1, 7), min_size=1, max_size=4, unique=True),
    st.integers(1, 13),
    st.integers(0, 1000),
)
def test_patches_are_those_of_grid_sample(
    height: int, width: int, scales: list[int], patch: int, seed: int
) -> None:
    images, location = images_of(3, height, width, seed=seed), places(3, seed=seed)
    pyramid = build_pyramid(images, scales, patch)
    for index, scale in enumerate(scales):
        found = extract(pyramid, location, torch.full((3,), index))
        torch.testing.assert_close(found, by_grid_sample(images, scale, location, patch))


def test_single_precision_at_the_size_of_the_digits() -> None:
    images, location = images_of(64, 100, 100).float(), places(5, 64).float()
    index = torch.randint(0, 3, (5, 64), generator=torch.Generator().manual_seed(0))
    found = extract(build_pyramid(images, (1, 2, 4), 12), location, index)
    assert found.dtype == torch.float32 and found.shape == (5, 64, 144)
    for particle in range(5):
        for level, scale in enumerate((1, 2, 4)):
            chosen = index[particle] == level
            expected = by_grid_sample(
                images[chosen].double(), scale, location[particle][chosen].double(), 12
            )
            torch.testing.assert_close(found[particle][chosen].double(), expected, atol=2e-5, rtol=0)


def test_a_patch_in_line_with_the_pixels_is_a_crop() -> None:
    images = images_of(2, 20, 24)
    centre = torch.zeros(2, 2, dtype=torch.float64)
    assert one_scale(images, 1, centre, 4).equal(images[:, 8:12, 10:14].flatten(1))
    # x to the right, y downwards, -1 and +1 the outer edges
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    found = one_scale(images, 1, corners, 4).view(2, 4, 4)
    assert found[0, 2:, 2:].equal(images[0, :2, :2]) and found[0, :2].eq(0).all()
    assert found[1, 2:, :2].equal(images[1, :2, -2:]) and found[1, :, 2:].eq(0).all()


@pytest.mark.parametrize("scales", [(1, 2, 4), (4, 1, 2), (3,), (6, 4, 3, 2), (50, 1)])
def test_levels_are_averages_filled_up_with_zeros(scales: tuple[int, ...]) -> None:
    images = images_of(2, 3, 25, 31)
    pyramid = build_pyramid(images, scales, 5)
    for index, scale in enumerate(scales):
        level = pyramid.level(index)
        assert level.shape == (2, 3, -(-25 // scale), -(-31 // scale))
        torch.testing.assert_close(level.flatten(0, 1), averaged(images.flatten(0, 1), scale))


def test_scale_one_keeps_the_pixels_exactly() -> None:
    images = images_of(2, 9, 9)
    assert build_pyramid(images, (2, 1), 3).level(1).equal(images)


@FEW
@given(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, 2, 3]), st.integers(0, 99))
def test_moving_image_and_place_together_changes_nothing(
    right: int, down: int, scale: int, seed: int
) -> None:
    images = F.pad(images_of(2, 12, 18, seed=seed), (30, 30, 30, 30))
    location = places(2, seed=seed) * 0.2
    moved = torch.roll(images, (down * scale, right * scale), (-2, -1))
    by = torch.tensor([right, down]) * scale * 2 / torch.tensor([78.0, 72.0], dtype=torch.float64)
    torch.testing.assert_close(
        one_scale(moved, scale, location + by, 5), one_scale(images, scale, location, 5)
    )


@FEW
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(0, 99))
def test_linear_in_the_image(a: float, b: float, seed: int) -> None:
    first, second, location = images_of(4, 15, 11), images_of(4, 15, 11, seed=1), places(4, seed=seed)
    torch.testing.assert_close(
        one_scale(a * first + b * second, 2, location, 6),
        a * one_scale(first, 2, location, 6) + b * one_scale(second, 2, location, 6),
    )


@FEW
@given(st.sampled_from([1, 2, 3, 4]), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
def test_a_constant_image_gives_constant_patches(scale: int, x: float, y: float) -> None:
    # A 7-pixel patch of scale 4 is 28 pixels wide: well inside of the 60 for these places.
    found = one_scale(torch.full((1, 60, 60), 0.7), scale, torch.tensor([[x, y]]), 7)
    torch.testing.assert_close(found, torch.full((1, 49), 0.7))


@pytest.mark.parametrize("scale", [2, 4, 6])
def test_a_checkerboard_seen_coarsely_is_grey(scale: int) -> None:
    row, column = torch.arange(60)[:, None], torch.arange(60)
    board = ((row + column) % 2).double().expand(20, 60, 60)
    found = one_scale(board, scale, places(20).clamp(-1, 1) * 0.3, 5)
    torch.testing.assert_close(found, torch.full_like(found, 0.5))


@pytest.mark.parametrize("far", [1e6, -1e6, 1e30, float("inf"), float("-inf"), 3.4e38])
@pytest.mark.parametrize("axis", [0, 1])
def test_far_away_there_is_nothing(far: float, axis: int) -> None:
    location = torch.zeros(3, 2)
    location[1, axis] = far
    pyramid = build_pyramid(torch.ones(3, 30, 20), (1, 2, 4), 6)
    for index in range(3):
        found = extract(pyramid, location, torch.full((3,), index))
        assert found[1].eq(0).all()
        assert found[0].any() and found[2].any()


def test_outside_by_less_than_a_patch_is_zero_too() -> None:
    # 10 pixels and a 4-pixel patch of scale 2, 8 pixels wide: nothing is seen from 4 pixels beyond
    # the edge.
    images = torch.ones(1, 10, 10)
    beyond = torch.tensor([[1 + 2 * 4 / 10, 0.0]])
    assert one_scale(images, 2, beyond, 4).eq(0).all()
    assert one_scale(images, 2, beyond - 0.01, 4).any()


def test_a_place_that_is_not_a_number_gives_a_patch_that_is_not_a_number() -> None:
    location = torch.tensor([[0.0, float("nan")], [0.0, 0.0]])
    found = one_scale(torch.ones(2, 8, 8), 1, location, 4)
    assert found[0].isnan().all() and found[1].eq(1).all()


def test_dimensions_that_are_missing_on_the_left_are_filled_in() -> None:
    images, location = images_of(7, 16, 12), places(3, 2, 7)
    index = torch.randint(0, 2, (3, 2, 7), generator=torch.Generator().manual_seed(0))
    pyramid = build_pyramid(images, (1, 2), 5)
    found = extract(pyramid, location, index)
    assert found.shape == (3, 2, 7, 25)
    for i in range(3):
        for j in range(2):
            alone = extract(pyramid, location[i, j], index[i, j])
            assert alone.shape == (7, 25) and found[i, j].equal(alone)
    # either of the two may be shared by all particles
    assert extract(pyramid, location[0, 0], index).equal(
        extract(pyramid, location[0, 0].expand(3, 2, 7, 2), index)
    )
    assert extract(pyramid, location, index[0, 0]).equal(
        extract(pyramid, location, index[0, 0].expand(3, 2, 7))
    )
    # enumerated scales: a dimension of size one in the place
    every = extract(pyramid, location[0, :1], torch.arange(2)[:, None])
    assert every.shape == (2, 7, 25)
    assert every[1].equal(extract(pyramid, location[0, 0], torch.ones(7, dtype=torch.long)))


def test_images_may_have_no_batch_dimension_or_several() -> None:
    images = images_of(2, 3, 16, 12)
    location, index = places(5, 2, 3), torch.ones(5, 2, 3, dtype=torch.long)
    found = extract(build_pyramid(images, (1, 2), 5), location, index)
    alone = extract(build_pyramid(images[1, 2], (1, 2), 5), location[:, 1, 2], index[:, 1, 2])
    assert found.shape == (5, 2, 3, 25) and alone.shape == (5, 25)
    assert found[:, 1, 2].equal(alone)


def test_gradients_reach_the_image_and_places_that_ask_for_them() -> None:
    images, location = images_of(2, 9, 7), places(3, 2)
    index = torch.tensor([[0, 1], [1, 1], [0, 0]])

    def read(images: Tensor, location: Tensor) -> Tensor:
        return extract(build_pyramid(images, (1, 3), 4), location, index)

    assert torch.autograd.gradcheck(read, (images.requires_grad_(), location.requires_grad_()))
    read(images, location.detach()).sum().backward()
    assert images.grad is not None and location.grad is None


def test_far_outside_a_place_has_no_gradient() -> None:
    images, location = images_of(1, 9, 7), torch.tensor([[[9.0, -9.0]]]).double().requires_grad_()
    read = extract(build_pyramid(images, (1, 3), 4), location, torch.zeros(1, 1, dtype=torch.long))
    assert torch.equal(*torch.autograd.grad(read.sum(), location), torch.zeros_like(location))


def test_mixed_precision_leaves_the_pixels_alone() -> None:
    images, location, index = images_of(4, 20, 20).float(), places(4).float(), torch.ones(4).long()
    expected = extract(build_pyramid(images, (1, 2), 6), location, index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert extract(build_pyramid(images, (1, 2), 6), location, index).equal(expected)
    # a place in bfloat16 is exact as such, and not rounded again to a pixel
    coarse = location.bfloat16()
    found = extract(build_pyramid(images, (1, 2), 6), coarse, index)
    assert found.equal(extract(build_pyramid(images, (1, 2), 6), coarse.float(), index))


def test_on_a_gpu_nothing_waits_and_everything_is_there() -> None:
    with FakeTensorMode():
        images = torch.rand(4, 30, 31, device="cuda")
        location = torch.rand(5, 4, 2, device="cuda")
        index = torch.randint(0, 3, (5, 4), device="cuda")
        pyramid = build_pyramid(images, (1, 2, 4), 12)
        found = extract(pyramid, location, index)
        assert found.device.type == "cuda" and found.shape == (5, 4, 144)
        assert pyramid.level(2).device.type == "cuda"
        assert all(part.device.type == "cuda" for part in window(location, 2, (30, 31), 12))


@FEW
@given(st.integers(-3, 3), st.integers(-3, 3), st.sampled_from([1, 2, 4]))
def test_the_window_is_what_the_glimpse_averages(right: int, down: int, scale: int) -> None:
    images = images_of(1, 64, 80)
    location = torch.tensor([[right * 2 * scale / 80, down * 2 * scale / 64]], dtype=torch.float64)
    left, top, side = (int(n.round()) for n in window(location, scale, (64, 80), 4))
    assert side == 4 * scale
    seen = images[:, top : top + side, left : left + side]
    torch.testing.assert_close(one_scale(images, scale, location, 4), averaged(seen, scale).flatten(1))


def test_the_window_of_many_places_and_scales() -> None:
    location = torch.tensor([[[-1.0, 1.0], [0.0, 0.0]]]).expand(3, 2, 2)
    left, top, side = window(location, torch.tensor([1, 4]), (50, 100), 12)
    assert left.shape == top.shape == side.shape == (3, 2)
    assert left[0].tolist() == [-6, 26] and top[0].tolist() == [44, 1] and side[0].tolist() == [12, 48]


@pytest.mark.parametrize(
    ("shape", "dtype", "scales", "patch", "message"),
    [
        ((4, 8, 8), torch.uint8, (1,), 4, "glimpses need floating-point images"),
        ((8,), torch.float32, (1,), 4, r"not torch.float32 of shape \(8,\)"),
        ((4, 0, 8), torch.float32, (1,), 4, r"of shape \(4, 0, 8\)"),
        ((4, 8, 8), torch.float32, (), 4, "scales must be one or more"),
        ((4, 8, 8), torch.float32, (0, 1), 4, r"numbers from 1, not \[0, 1\]"),
        ((4, 8, 8), torch.float32, (2, 2), 4, "different whole numbers"),
        ((4, 8, 8), torch.float32, (1.5,), 4, "whole numbers from 1"),
        ((4, 8, 8), torch.float32, (1,), 0, "patch must be a whole number of at least 1, not 0"),
        ((4, 8, 8), torch.float32, (1,), 2.0, "patch must be a whole number"),
    ],
)
def test_wrong_arguments(
    shape: tuple[int, ...], dtype: torch.dtype, scales: tuple[int, ...], patch: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_pyramid(torch.zeros(shape, dtype=dtype), scales, patch)
    assert "\n" not in str(caught.value)


def test_levels_serve_all_images_of_a_size() -> None:
    """And the pyramid is the one that is made from the scales themselves."""
    images = torch.rand(3, 2, 13, 10)
    levels = Levels.of(images, (1, 2, 4))
    again = torch.rand(5, 13, 10)
    one, other = build_pyramid(again, levels, 4), build_pyramid(again, (1, 2, 4), 4)
    assert one.levels is levels and torch.equal(one.buffer, other.buffer)
    assert levels.fit(again) and levels.fit(again.to(torch.bfloat16))
    assert not levels.fit(torch.rand(5, 10, 13)) and not levels.fit(again.double())
    with FakeTensorMode(), torch.device("cuda"):
        assert not levels.fit(torch.rand(5, 13, 10))


def test_levels_of_other_images_are_refused() -> None:
    """Also of as many pixels otherwise arranged, and of whole numbers."""
    levels = Levels.of(torch.rand(3, 13, 10), (1, 2))
    for images in (torch.rand(3, 10, 13), torch.rand(3, 13, 10).double(), torch.ones(3, 13, 10).int()):
        assert not levels.fit(images)
        with pytest.raises(InputError, match="these levels are not for images of torch"):
            build_pyramid(images, levels, 4)


def test_nothing_of_a_pyramid_is_left_unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is not zeroed first: frames and levels fill it."""
    filled = lambda self, *shape: torch.full(shape, torch.nan)  # noqa: E731
    monkeypatch.setattr(Tensor, "new_empty", filled)
    pyramid = build_pyramid(torch.rand(2, 13, 10), (1, 3, 2), 4)
    assert pyramid.buffer.isfinite().all()


@FEW
@given(
    SIZES,
    SIZES,
    st.lists(st.integers(1, 7), min_size=1, max_size=3, unique=True),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_a_patch_in_colour_is_the_patches_of_all_channels(
    height: int, width: int, scales: list[int], patch: int, channels: int, seed: int
) -> None:
    images = images_of(3, channels, height, width, seed=seed)
    location = places(4, 3, seed=seed)  # four particles
    index = torch.randint(len(scales), (4, 3), generator=torch.Generator().manual_seed(seed))
    colour = build_pyramid(images, scales, patch, colour=True)
    grey = [build_pyramid(images[:, c], scales, patch) for c in range(channels)]
    found = extract(colour, location, index)
    assert found.shape == (4, 3, channels * patch * patch)
    assert found.equal(torch.cat([extract(each, location, index) for each in grey], -1))
    level = torch.stack([each.level(0) for each in grey], 1)
    assert colour.level(0).equal(level)


def test_images_in_colour_have_channels() -> None:
    with pytest.raises(
        InputError, match=r"in colour are \[..., channels, height, width\], not of shape"
    ):
        build_pyramid(torch.zeros(5, 5), (1,), 2, colour=True)
