"""``python -m wsram_ppl`` is the command ``wsram``, and so is this file run by its path."""

import sys

if not __package__:
    from pathlib import Path

    # By its path: import the package that this file is in, and nothing by the names of its modules.
    _here = Path(__file__).resolve().parent
    sys.path = [str(_here.parent), *(path for path in sys.path if path != str(_here))]

from wsram_ppl.commands import main

if __name__ == "__main__":
    main()
