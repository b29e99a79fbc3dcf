"""The HTTP layer. Start with ``routes``, one file for each group of endpoints.

Around every request, outermost first: ``connections`` (uvicorn's protocol, bounded), ``headers``, ``request_context``
(id, log, count; then the keys of ``service.security``), ``in_flight`` (places). ``body`` and ``json_parsing`` read what
may be hostile. A request is refused by ``service.security.access`` (401, 403), ``in_flight`` (429, 503), ``body`` and
``schemas`` (413, 415, 422), and the queue's room (``service.scoring.admission``). ``error_answers`` writes what went
wrong. ``schemas`` is the contract, ``openapi`` its document.
"""
