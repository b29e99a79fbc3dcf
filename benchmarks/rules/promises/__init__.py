"""How often an artifact's promises (accepted risk, coverage of label sets) are kept, over draws of calibration rows.

``__main__.py`` has the commands; ``models.py`` the tables that rows are dealt from, synthetic and real; ``rules.py``
fits what would be served, cross-fitted and with one fit; ``deals.py`` judges it.
"""
