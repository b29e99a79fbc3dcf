"""What is measured beyond the tests; README.md names every table and the command that makes it.

- ``structures``: each structure of the posterior beside the exact one, docs/results.md;
``before_after.py`` draws README's picture.
- ``peers``: other packages on the same weights and rows, docs/evidence.md.
- ``speed``: times and memory as ratios, and ``gpu.py``, the same on a GPU: RESULTS.md.
- ``load``: a server for a long time (``soak.py``) and past its capacity.
- ``promises``: how often what an answer promises is kept, docs/promises.md.
- ``harness``: what these share: subjects, a server process, timing, records and their page.
"""
