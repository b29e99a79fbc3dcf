"""Request and response bodies, a file for each router of ``service.http.routes``.

Requests are strict: no coercion, no unknown options, no NaN. Read ``base`` and ``inputs`` first; ``errors`` is the one
shape of every error.
"""
