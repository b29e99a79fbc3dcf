"""How many labels the rule of a shadow needs, and how often it is wrong: ``python -m benchmarks.shadow``."""
