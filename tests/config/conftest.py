"""The components of these tests, by names that only they see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.config.components import NAMES


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for registry, classes in NAMES.items():
            for name, cls in classes.items():
                patch.setitem(registry.classes, name, cls)
        yield
