"""Studies: one experiment in several variants and with several seeds, run, tabulated and reported.

``definition`` reads the TOML file, ``executors`` runs processes, ``comparison`` decides what has to
run, ``results`` reads what was measured, ``tables``, ``figures`` and ``report`` show it, ``progress``
shows what is running.
"""
