"""How often an artifact's promises (accepted risk, coverage of label sets) are kept, over draws of calibration rows.

``__main__`` has the command; ``populations`` what rows are drawn from, and what a draw comes to; ``page`` RESULTS.md.
"""
