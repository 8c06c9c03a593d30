"""Studies: one experiment in several variants and with several seeds, run, tabulated and reported.

``definition`` reads the TOML file, ``jobs`` runs processes, ``comparison`` decides what is to be run,
``results`` reads what was, ``figures`` and ``report`` show it.
"""
