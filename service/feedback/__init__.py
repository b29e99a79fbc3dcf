"""True labels that come later, and the watch over calibration.

Read ``records`` first: what is stored and reported. ``labels`` stores answers and takes their labels, ``series`` holds
the windows of one artifact and predictive, ``figures`` computes from them beside what the artifact records
(``references``), and ``gauges`` shows the reports to Prometheus. Nothing here knows HTTP.
"""
