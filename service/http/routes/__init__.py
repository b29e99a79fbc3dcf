"""One small function per endpoint. ``dependencies`` lists the parts that they are given.

A new endpoint also needs a line in ``_ROUTERS`` of ``service.app`` and one in ``ACCESS`` of ``service.security.access``
(CONTRIBUTING.md, "Add an endpoint").

``predicting`` is how POST /predict is answered in every protocol, ``planning`` what it and POST /evaluate do alike,
``answers`` how a prediction is written.
"""
