"""Read-outs: how class logits are read from a model, one form a file.

Read ``base`` first (the protocol), then ``label_tokens`` (the common form: the logits of one token a label)
and ``label_sequences`` (the log probability of a text a label). ``classification_head`` is of other models: decoders
and encoders with a trained head.
"""
