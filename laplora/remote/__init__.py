"""What lies elsewhere: an address, and a store that its files are read from and written to.

Read ``address`` first (which addresses there are, and what of them may be shown), then ``stores``. ``objects`` and
``hub`` are the two kinds of store. Nothing here knows what an artifact is.
"""
