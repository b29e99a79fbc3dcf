"""A loaded artifact that answers a share of live requests beside the active one, and is never what a client gets.

Start with ``candidate``, which takes requests and answers them while the server has nothing else to do. ``terms`` has
what was asked of it, ``seen`` counts, and ``compared`` says whether the candidate is better.
"""
