"""What the tests of captions need too."""

from tests.data.captions.conftest import weights

__all__ = ["weights"]
