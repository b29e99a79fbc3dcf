"""The page at ``/``: a playground, the artifacts, jobs, calibration in production and the server's state, in a browser.

``shell`` reads ``templates/`` and ``static/`` once. The HTML holds no data: its scripts ask the API, as any client.
"""
