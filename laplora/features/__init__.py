"""What a head reads of an input: states of the frozen base (``frozen``), at layers that ``layers`` names.

Start at ``frozen``. No head is in here: ``laplora.experts`` has them.
"""
