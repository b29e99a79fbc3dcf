"""From Gaussians over class logits to class probabilities: one posterior, mixtures, the distilled covariance."""
