"""The alternatives of the study, computed from what the model gave.

``posteriors`` fits structures on stored Jacobians, ``alternatives`` turns them into predictives with cross-fitted
losses, ``methods`` lists every row of the tables, ``choose`` is what an artifact would serve. ``approximation``
compares the structures with the exact posterior.
"""
