"""Exact per-example Jacobians of the class logits with respect to LoRA weights."""
