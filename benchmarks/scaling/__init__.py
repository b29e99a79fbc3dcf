"""Replicas on Ray beside one process: ``replicas`` measures, the command writes docs/ray.md."""
