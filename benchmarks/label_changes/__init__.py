"""Changes of labels, beside a fit of the same rows, and logistic regression on embeddings."""
