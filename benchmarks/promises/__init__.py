"""How often an artifact's promises (accepted risk, coverage of label sets) are kept, over draws of calibration rows.

``__main__.py`` has the commands; ``settings_table.py`` is what both synthetic models and real rows become; ``rules.py``
fits the thresholds as they were and as they are.
"""
