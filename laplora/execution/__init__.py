"""How a long call runs: ``progress``, the processes that share it (``workers``), a Ray cluster (``ray_cluster``)."""
