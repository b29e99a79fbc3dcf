"""The common parts of a run's jobs.

Read ``run`` first (a configuration with its data and tokenizer), then ``runtime`` (how a job opens one) and ``folders``
(who has the run's folder, and what lies in it).
"""
