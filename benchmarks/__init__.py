"""Scripts behind the figures in docs/lab-notes.md; each is run by hand and prints its table."""
