"""What every job of a run shares.

Read ``run`` first (a configuration with its data and tokenizer), then ``runtime`` (how a job opens one). ``folders``
takes, copies and locks its folder, ``provenance`` says what a result was made from, ``results`` checks what earlier
jobs left, ``folds`` are runs without a fold's rows,
``student`` says whose answers a run learns and ``targets`` what it is trained towards, ``same_rows`` compares an
artifact's rows, ``terminal`` writes. ``selection`` says which rows choose the step that is kept, ``filled_in`` what a
configuration leaves open of its training, ``class_weights`` how much a row counts, ``base_size`` how large the base is,
and ``held_base`` keeps it for all steps.
``launcher`` says how many processes were started for the job, and ``processes`` joins them.
"""
