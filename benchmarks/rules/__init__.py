"""Checks of decision rules, each run by hand; their tables are typed into the pages that benchmarks/README.md names.

On synthetic models: ``choices`` and ``needless_fits`` (what to recommend), ``quadrature`` (the two-class integral) and
``promises`` (accepted risk and coverage). On stored predictions of the study: ``choices_study`` and ``coverage_study``.
On the default artifact: ``feedback_drift``.
"""
