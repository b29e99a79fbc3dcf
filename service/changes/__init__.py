"""Changes of what is loaded: each goes on after its request was answered, and has a status that can be asked for.

Start with ``board``, which begins changes and knows how they are; ``table`` keeps that in the database of jobs.
"""
