"""The command of a checkout: ``python cli.py`` is ``wsram`` without installation."""

from wsram_ppl.commands import main

if __name__ == "__main__":
    main()
