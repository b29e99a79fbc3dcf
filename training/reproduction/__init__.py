"""The report's experiments: every checkpoint of a fine-tuning with its Laplace posterior, for models and tasks."""
