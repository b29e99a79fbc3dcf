"""Which replica is to hold which artifacts, where one does not hold them all: rendezvous hashing with bounded room.

Each artifact ranks the replicas by a hash of both names (Thaler and Ravishankar, IEEE/ACM Transactions on Networking
1998) and takes the first with room. So a replica that comes or goes moves few artifacts but its own, and whoever works
it out comes to the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import lru_cache


def placed(digests: Collection[str], replicas: Collection[str], most: int) -> Mapping[str, frozenset[str]]:
    """Return the artifacts that each replica is to hold, by its name: at most ``most``, and as many copies as fit.

    Every artifact has a place before one has a second, so that none is without as long as there is room for all.
    """
    return _placed(frozenset(digests), frozenset(replicas), most)


@lru_cache(maxsize=16)
def _placed(digests: frozenset[str], replicas: frozenset[str], most: int) -> Mapping[str, frozenset[str]]:
    if len(digests) <= most:
        return dict.fromkeys(replicas, digests)
    ranked = {digest: _ranked(digest, replicas) for digest in sorted(digests)}
    held: dict[str, set[str]] = {replica: set() for replica in replicas}
    for _ in replicas:
        for digest, order in ranked.items():
            for replica in order:
                if len(held[replica]) < most and digest not in held[replica]:
                    held[replica].add(digest)
                    break
    return {replica: frozenset(those) for replica, those in held.items()}


def _ranked(digest: str, replicas: Collection[str]) -> list[str]:
    return sorted(replicas, key=lambda replica: hashlib.sha256(f"{digest} {replica}".encode()).digest())
