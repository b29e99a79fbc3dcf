"""The evidence study: on which tasks, and with how many labels, a posterior is worth its price.

In the order of a run (``python -m benchmarks.evidence``): ``plan`` (what is compared, fixed before any result),
``rows``, ``tasks`` and ``splits`` (the data), ``adapters`` (training), ``gather`` (one forward pass over the rows),
the passes that are left out unless asked for (``jacobians`` with ``grams``, ``layers``, ``passes``, ``retrained``,
``folds``, ``student``), ``outputs`` (what they gave), ``methods`` (every alternative, on those arrays alone) with
``answers``, ``scores`` and ``results`` (the committed figures), ``decision``, and ``page`` with ``plots``.
"""
