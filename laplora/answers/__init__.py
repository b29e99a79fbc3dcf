"""From what a model gives for a batch to the answer of each row.

Read ``prediction`` first: probabilities, uncertainty, flags, sets and decisions of one predictive. ``review_scores``
decides for a risk that a request states, and ``golden`` compares answers with recorded ones. ``written`` is an answer
as JSON; ``evaluation`` and ``reporting`` measure answers by true ``labels``.
"""
