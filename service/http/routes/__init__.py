"""One small function per endpoint. ``dependencies`` lists the parts that they are given.

``planning`` is what POST /predict and POST /evaluate do alike, ``answers`` how a prediction is written.
"""
