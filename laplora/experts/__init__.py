"""Experts: ways to answer that learn from labels, one file each, with one protocol.

Start with ``base``: what an expert reads, what it gives. ``of_head`` is what all experts with a head share.
"""
