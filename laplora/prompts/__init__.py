"""Prompts: templates, label tokens, left-padded batches, bounds before tokenising, orders of options."""
