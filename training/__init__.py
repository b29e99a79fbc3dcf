"""The offline jobs: ``python -m training JOB --config FILE``, one job a file; start with ``training.run``."""
