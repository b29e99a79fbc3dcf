"""Every expert alone at equal labels, beside the rivals that a user would try first, on the development tasks.

In the order of a run (``python -m benchmarks.experts``): ``cells`` (tasks, seeds and rows), ``passes`` (training, and
what one pass over the rows gives, kept on the disk), ``methods`` and ``rivals`` (honest answers of the labelled rows,
and those of the test rows), ``scores`` (the committed figures), ``page``.
"""
