"""What is made of a job's rows: the result (``measuring``), downloads (``rows``, which the rest stands on), reports."""
