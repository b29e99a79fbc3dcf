"""A server under load.

For a long time: ``traffic`` (the clients), ``known_rows`` (what is right), ``tally``, ``watch``, ``trend`` and
``soak_report``, run by ``benchmarks.soak``. Past its capacity: ``overload`` (the protocol) and ``open_arrivals`` (its
clients), run by ``benchmarks.speed``.
"""
