"""The report of a run: tables, plots, and the shift evaluation's pages."""
