"""Remote files: an address, and a store that they are read from and written to.

Read ``address`` first (which addresses there are, and what of them may be shown), then ``stores``. ``objects`` and
``hub`` are the two kinds of store; ``places`` are single files and objects, read by range. ``client`` is what all that
reads and writes objects has of obstore. Nothing here knows what an artifact is.
"""
