"""The results from a job's rows: the result (``measuring``), downloads (``rows``, the base of the rest), reports."""
