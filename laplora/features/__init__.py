"""What a head reads of an input: states of the frozen base (``frozen``), a sentence encoder's embedding (``encoder``),
and of each option of a question its likelihood and states (``options``).

Start at ``encoding``, which encodes an input without any weights, and ``passes``, which runs a batch of rows. No head
is in here: ``laplora.experts`` has them.
"""
