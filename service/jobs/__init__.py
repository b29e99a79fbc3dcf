"""Large files of inputs, with labels or without: uploaded, answered in the background, kept across restarts.

``board`` is what the routes and the application call. ``intake`` checks an upload and makes it a job, ``running`` takes
jobs through, chunk by chunk, ``reading`` makes results, downloads and reports, and ``store`` has them: in memory, in a
database and as files. Start with ``store.records``, which says what a job is.
"""
