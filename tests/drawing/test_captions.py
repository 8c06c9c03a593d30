"""Pictures of captions: the names of their files."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsram_ppl.drawing.pages import distinct


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["x", "y"], ["x", "y"]),
        (["x", "x", "x"], ["x", "x-2", "x-3"]),
        (["x", "x", "x-2"], ["x", "x-2", "x-2-2"]),
        (["x-2", "x", "x"], ["x-2", "x", "x-3"]),
        (["x", "X", "x"], ["x", "X-2", "x-3"]),
        (["\u00e9", "e\u0301"], ["\u00e9", "e\u0301-2"]),
    ],
)
def test_no_picture_has_the_name_of_another(names: list[str], files: list[str]) -> None:
    assert list(distinct(names)) == files


@given(st.lists(st.text("xX2-\u00e9\u0301e", max_size=4)))
def test_on_no_disk(names: list[str]) -> None:
    files = [unicodedata.normalize("NFC", name).casefold() for name in distinct(names)]
    assert len(set(files)) == len(names)
