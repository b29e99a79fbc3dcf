"""The Laplace posterior over LoRA weights: curvature, structures, the prior, and its file."""
