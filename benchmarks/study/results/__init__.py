"""What is published of the study.

``predictions`` reads what the job left, ``scores`` pools differences over rows and seeds, ``seed_ensembles`` averages
models, ``records`` is the published file, and ``targets`` judges its figures.
"""
