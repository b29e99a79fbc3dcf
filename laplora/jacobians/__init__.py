"""Exact per-example Jacobians of the class logits with respect to LoRA weights.

``blocks`` has the types, ``contrasts`` computes the Jacobians of a batch. For decoders like Llama's they come from
``reverse``, the reverse pass written out, with ``attention`` for its attention; for others from automatic
differentiation. ``states`` notes hidden states of a forward pass, for the distilled covariance.
"""
