"""From a plan to its predictions. Knows no HTTP, no jobs, and not which artifacts are loaded.

Read in this order, which is the way of a plan:

1. ``plan``: what is wanted of which artifact, by whom and by when, and what became of it so far.
2. ``scorer``: the way in five steps: expect, enter, encode, put, await.
3. ``tokenizing``: what the prompts are expected to have, then their rows, off the event loop.
4. ``queue``: which plans hold how much, which rows wait. Each of its rules is a file without clock, lock or thread:
   ``admission`` (how much may wait), ``fairness`` (whose turn it is) and ``batching`` (who shares a batch).
5. ``device``: the one thread that runs batches, with its retries; ``device_faults`` says what a fault is.
"""
