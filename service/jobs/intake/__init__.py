"""Uploads that become jobs: bytes cut into ``lines``, each row checked, ``upload`` writes. Begin at ``taking``."""
