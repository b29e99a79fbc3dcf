"""The server on a Ray cluster, by Ray Serve; needs the extra ``ray``, and nothing else imports it.

``cluster`` has its sizes and flags, ``app`` the builder, ``service.ray_serve.app:build``; ``__main__`` runs it on one
machine or on a cluster.
"""
