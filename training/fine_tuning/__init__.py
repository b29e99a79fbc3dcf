"""The loop that trains an adapter.

Read ``label_trainer`` first: transformers' Trainer with a run's loss and settings. ``shared_steps`` shares
its batches among processes, ``new_adapter`` makes the adapter, ``one_device`` keeps it on one device, and ``trial``
times one step of each kind.
"""
