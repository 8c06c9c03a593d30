"""Studies: one experiment in several variants and with several seeds, run, tabulated and reported.

``definition`` reads the TOML file, ``executors`` run processes here or on a cluster, ``comparison``
decides what is to be run, ``results`` reads what was measured, ``tables``, ``figures`` and ``report``
show it, ``progress`` shows what is at work.
"""
