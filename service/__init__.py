"""The server: ``python -m service --artifact PATH``. Start with ``service.app``; ``service.http`` faces the client."""
