"""What the command needs besides the library: the extra ``cli`` of the distribution."""

from __future__ import annotations

import sys
from typing import Final

#: The modules of the extra.
_MODULES: Final = ("click", "tqdm", "lightning_fabric", "tensorboard", "matplotlib", "jinja2", "PIL")


def is_missing(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is that a module of the extra is not installed."""
    while error is not None:
        name = error.name if isinstance(error, ModuleNotFoundError) else None
        if name is not None and name.partition(".")[0] in _MODULES:
            return True
        error = error.__cause__
    return False


def advise() -> None:
    """Prints in one line what to install."""
    print("wsram needs its command-line extra: pip install 'wsram_ppl[cli]'", file=sys.stderr)
