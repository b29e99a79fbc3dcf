"""The cost of a run, before anything is loaded: the memory of every step.

The library's own code runs once on the meta device, where tensors have shapes and no memory. Read ``run`` first, then
``shapes`` (the model) and ``trace`` (the meter). ``architectures`` has four large models.
"""
