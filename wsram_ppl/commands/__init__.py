"""The command ``wsram``, also ``python -m wsram_ppl`` and, in a checkout, ``python cli.py``.

``options`` and ``shared`` hold what several commands have in common, ``program`` puts them together and
turns failures into exit codes, ``extra`` knows what must be installed. The other modules hold the
commands. Slow imports, above all torch, happen only when a command runs: ``wsram --help`` does not wait
for them.
"""

import sys

__all__ = ["main"]

try:
    from typing import NoReturn

    from wsram_ppl.commands import extra

    def _without_click() -> NoReturn:
        extra.advise()
        raise SystemExit(2)

    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        main = _without_click
    else:
        from wsram_ppl.commands.program import main
except KeyboardInterrupt:  # reported as for a running command; until here only Python itself runs
    print("stopped", file=sys.stderr)
    raise SystemExit(130) from None
