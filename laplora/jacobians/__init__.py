"""Exact per-example Jacobians of the class logits with respect to LoRA weights.

``blocks`` has the types, ``contrasts`` computes the Jacobians of a batch, for decoders like Llama's by ``reverse``, the
reverse pass written out, with ``attention``. ``states`` notes hidden states, for the distilled covariance.
"""
