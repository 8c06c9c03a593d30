"""``python -m wsram_ppl`` runs the command ``wsram``, and so does running this file by its path."""

import sys

if not __package__:
    from pathlib import Path

    # Run by its path: import the package of this file, and none of its modules as top-level names.
    _here = Path(__file__).resolve().parent
    sys.path = [str(_here.parent), *(path for path in sys.path if path != str(_here))]

from wsram_ppl.commands import main

if __name__ == "__main__":
    main()
