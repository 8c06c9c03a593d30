"""Studies: one experiment in several variants and with several seeds, run, tabulated and reported.

``definition`` reads the TOML file with its ``overrides`` of an experiment, ``comparison`` decides what
is to be run and ``search`` with which of the candidates, ``run_folders`` keeps what was run,
``executors`` run processes here or on a cluster, ``forecast`` says how long that takes and ``progress``
what is at work, ``results`` reads what was measured, ``statistics`` computes with seeds, ``tables``,
``figures`` and ``report`` show it.
"""
