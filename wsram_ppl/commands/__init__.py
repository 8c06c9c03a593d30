"""The command ``wsram``, also ``python -m wsram_ppl`` and, in a checkout, ``python cli.py``.

``options`` and ``shared`` hold what several commands take and do, ``program`` puts them together and
turns failures into exit codes, ``extra`` knows what must be installed. The other modules hold the
commands. What is slow to import, torch first of all, is imported when one of them runs: ``wsram --help``
does not wait for it.
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
except KeyboardInterrupt:  # told as when a command runs; before this line Python alone is at work
    print("stopped", file=sys.stderr)
    raise SystemExit(130) from None
