"""The evidence study: methods at equal labels, by the accepted share at a stated error rate (PLAN.md).

``plan``, ``rows``, ``tasks`` and ``splits`` say what is compared on which rows, ``adapters`` and ``passes`` train and
run models, ``methods`` answers, ``scores``, ``noise``, ``page`` and ``frontier`` make figures of it. EARLIER.md is the
page of the study before, a record.
"""
