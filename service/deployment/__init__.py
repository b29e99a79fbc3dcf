"""A deployment's servers share by the database of jobs: what they serve, and the answers that labels are for.

``following`` holds a server to what its deployment serves, which ``served`` keeps. ``feedback`` keeps predictions and
labels of feedback beside the memory of ``service.feedback``; ``answers`` has them in the database.
"""
