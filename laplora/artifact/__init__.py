"""The artifact: a folder that holds everything a served answer depends on, except the base weights.

Read ``manifest`` first (what an artifact records), then ``folder`` (reading, verifying, writing, in the folder of
``partial``) and ``fetched`` (what lies elsewhere). ``adapted`` compares an artifact with a base model and puts its
adapter on it.
"""
