"""Base models, their adapters and the class logits read from them."""
