"""What every job of a run shares.

Read ``run`` first (a configuration with its data and tokenizer), then ``runtime`` (how a job opens one). ``folders``
takes, copies and locks its folder, ``provenance`` says what a result was made from, ``results`` checks what earlier
jobs left, ``members`` names an ensemble's adapters and ``folds`` those that calibrate, ``student`` says whose
answers a run learns and ``targets`` what it is trained towards, ``same_rows`` compares an artifact's rows, ``terminal``
writes. ``label_trainer`` is fine-tuning's loop, of a ``new_adapter``, on ``one_device``, with ``reporters``;
``selection`` says which rows choose the step, ``filled_in`` what a configuration leaves open of its training,
``base_size`` how large the base is, ``held_base`` keeps it for all steps, and ``trial`` times one step of each.
"""
