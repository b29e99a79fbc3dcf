"""Exact per-example Jacobians of the class logits with respect to LoRA weights.

``blocks`` has the types, ``contrasts`` computes the Jacobians of a batch: for many decoders by ``reverse``, the reverse
pass written out, for others by automatic differentiation. ``decoder_forms`` says which decoders and what their layers
are, ``layer_reverse`` has the pass of one layer, ``attention`` that of its attention. ``states`` notes hidden states of
a forward pass, for familiarity. ``many_classes`` chooses fewer directions than contrasts.
"""
