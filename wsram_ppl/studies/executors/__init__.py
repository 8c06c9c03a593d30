"""Where the runs of a study are trained: on this machine, or on a Ray cluster.

``jobs`` says what a run is and what an executor does, ``loop`` runs what can be claimed, ``claims``
keeps processes off each other's runs, ``local`` and ``cluster`` are the executors, ``gpus`` and ``mps``
share this machine's GPUs.
"""
