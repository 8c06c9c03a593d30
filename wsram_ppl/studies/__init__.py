"""Studies: one experiment in several variants and with several seeds, run, tabulated and reported.

``definition`` reads the TOML file, ``executors`` run processes here or on a cluster, ``comparison``
decides what is to be run, ``forecast`` says how long that takes, ``results`` reads what was measured,
``statistics`` computes with seeds, ``tables``, ``figures`` (with ``axes``) and ``report`` show it,
``progress`` shows what is at work.
"""
