"""The server under load for a long time (benchmarks.soak) and past its capacity (benchmarks.open_loop)."""
