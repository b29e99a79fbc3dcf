"""What a head reads of an input: states of the frozen base (``frozen``), a sentence encoder's embedding (``encoder``),
and of each option of a question its likelihood and states (``options``).

Start at ``frozen``; ``layers`` names the layers that are read, ``sentence_encoder`` loads an encoder. No head is in
here: ``laplora.experts`` has them.
"""
