"""The features of an input for heads: states of the frozen base (``frozen``), a sentence encoder's embedding
(``encoder``), and the likelihood and states of each option of a question (``options``).

Start at ``encoding``, which encodes an input without any weights, and ``passes``, which runs a batch of rows. No head
is in here: ``laplora.experts`` has them.
"""
