"""Replicas on a Ray cluster: the ingress has no weights, and sends tickets to scorers. Needs the extra ``ray``.

Read in this order: ``messages`` (what travels), ``scorer`` (a replica with a device), ``held`` (what it has
loaded), ``present`` and ``router`` (which replicas there are, and how one is addressed),
``placement`` (what a replica is to hold), ``replicas`` (the backend: who gets which ticket, and what is tried
again), ``autoscaling`` (how many replicas).
``service.ray_serve`` puts them into an application of Ray Serve.
"""
