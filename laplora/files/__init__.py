"""Files on disk: written atomically (``atomic``), and JSON read as its standard defines it (``strict_json``)."""
