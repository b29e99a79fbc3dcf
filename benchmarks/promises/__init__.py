"""How often an artifact's promises (accepted risk, coverage of label sets) are kept, over draws of calibration rows.

``__main__`` has the commands; ``models`` the tables that rows are dealt from, synthetic and real; ``rules`` fits what
would be served, cross-fitted; ``deals`` judges it. The tables are typed into docs/promises.md.
"""
