"""What every job of a run shares.

Read ``run`` first (a configuration with its data and tokenizer), then ``runtime`` (how a job opens one). ``folders``
takes, copies and locks its folder, ``provenance`` says what a result was made from, ``results`` checks what earlier
jobs left, ``members`` names an ensemble's adapters and ``folds`` those that calibrate, ``files`` and ``terminal``
write, ``one_device`` is fine-tuning's.
"""
