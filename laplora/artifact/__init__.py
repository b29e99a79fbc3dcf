"""The artifact: a folder that holds everything a served answer depends on, except the base weights.

Read ``manifest`` first (what an artifact records), then ``folder`` (reading, verifying, writing). ``base_check``
compares an artifact with the base model at hand, ``members`` puts its adapters and posteriors on it, ``strict_json``
reads JSON as its standard has it.
"""
