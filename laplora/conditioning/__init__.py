"""How labelled rows that training did not see correct the answers to others, without training.

``kernel`` has the kernel between rows by their last states (``last_layer``), ``mode`` what the labels make of it by its
matrix, and ``weights_mode`` the same of many rows without it. ``left_out`` has each row without its own label,
``choice`` how wide the kernel is; ``labelled`` is what they take.
"""
