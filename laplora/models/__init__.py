"""Base models, their adapters, and the class logits read from them.

Read ``base`` first (locate and load), then ``adapters`` and ``lora`` (which adapters are covered), ``readout`` (the
class logits) and ``probe`` (models that are refused). Classifiers: ``classifier_head``. Weights: ``held_weights`` (in
4 bit or not), ``shared_base``, ``hashes``. Several devices: ``spread`` (what a person states), ``placement`` (where
things are). Models without a hub: ``offline``, ``wheels``, ``gguf_files``. ``beginning``: rows that begin alike.
``sentence_encoder``: texts as vectors. ``quiet`` keeps loading silent.
"""
