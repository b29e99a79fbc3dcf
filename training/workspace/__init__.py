"""What every job of a run shares: its folder, its stages, its model and its provenance."""
