"""One small function per endpoint. ``dependencies`` lists the parts that they are given.

A new endpoint also needs a line in ``_NATIVE`` of ``service.app`` and one in ``ACCESS`` of ``service.security.access``
(CONTRIBUTING.md, "Add an endpoint").

``predict`` answers POST /predict and, through ``systemone``, clients of decision models. ``planning`` is what it, POST
/evaluate and POST /suggest do alike.
"""
