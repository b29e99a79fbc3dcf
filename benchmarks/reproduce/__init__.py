"""The report's experiments: every checkpoint of a fine-tuning with its Laplace posterior, for models and tasks.

``subjects`` says what is run, ``checkpoint`` answers, ``record`` measures, and ``page`` writes the page from ``tables``
and ``figure``.
"""
