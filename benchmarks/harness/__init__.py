"""The tools of every benchmark.

Read ``record`` first (a figure, its conditions, and results.json) and ``page`` (RESULTS.md made of it). ``subject`` and
``random_models`` (of ``shapes`` and ``architectures``) are the models, ``process`` a server of its own, ``timing`` and
``allocation`` the meters, ``provenance`` the date, commit, hardware and versions.
"""
