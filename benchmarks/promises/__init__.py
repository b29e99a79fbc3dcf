"""How often an artifact's promises (accepted risk, coverage of label sets) are kept, over draws of calibration rows.

``__main__`` has the commands. On synthetic models: ``models`` the tables that rows are dealt from, ``rules`` what would
be served, cross-fitted, ``deals`` judges it; its tables are typed into docs/promises.md. On answers of the developing
tasks' experts: ``populations``, and ``page`` writes RESULTS.md.
"""
