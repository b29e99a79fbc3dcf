"""True labels that come later, and the watch over calibration.

Read ``records`` first: what is kept and reported. ``labels`` keeps answers and takes their labels, ``series`` holds the
windows of one artifact and predictive, ``figures`` (``several_labels`` where several may be right) computes from them
beside what the artifact records (``references``) and what chance leads to (``limits``), and ``gauges`` shows the
reports to Prometheus.
"""
