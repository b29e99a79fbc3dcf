"""Layers removed before fine-tuning: what each number of them costs in quality, and saves in time and memory."""
