"""Which replica is to hold what, where one does not hold all: every artifact has a place, and few move."""

from __future__ import annotations

import pytest

from service.backends.ray.placement import Places, placed

DIGESTS = [f"sha256:{number}" for number in range(20)]
REPLICAS = [f"replica{number}" for number in range(10)]


def test_all_are_everywhere_where_there_is_room() -> None:
    assert placed(DIGESTS, REPLICAS, 20) == dict.fromkeys(REPLICAS, frozenset(DIGESTS))


@pytest.mark.parametrize("most", [2, 3, 4, 6, 19])
def test_all_room_is_used_and_each_artifact_has_its_share_of_it(most: int) -> None:
    place = placed(DIGESTS, REPLICAS, most)
    assert {len(held) for held in place.values()} == {most}
    copies = [sum(digest in held for held in place.values()) for digest in DIGESTS]
    # The last copies may find room only where the artifact is already.
    assert min(copies) >= max(1, len(REPLICAS) * most // len(DIGESTS) - 1)


@pytest.mark.parametrize("most", [3, 4, 6])
@pytest.mark.parametrize("gone", REPLICAS[:3])
def test_a_replica_that_goes_moves_few_others(most: int, gone: str) -> None:
    before = placed(DIGESTS, REPLICAS, most)
    after = placed(DIGESTS, [one for one in REPLICAS if one != gone], most)
    stay = [digest in after[replica] for replica, held in before.items() if replica != gone for digest in held]
    assert sum(stay) > 2 / 3 * len(stay)


def test_more_artifacts_than_places_leave_some_without_one() -> None:
    place = placed(DIGESTS, REPLICAS[:3], 4)
    assert sum(map(len, place.values())) == len(frozenset().union(*place.values())) == 12


def test_what_comes_keeps_its_place_whatever_is_asked_for_meanwhile() -> None:
    now = iter(range(100))
    places = Places(2, lambda: next(now))
    places.answers("base")
    with places.coming("c", "base"):
        for digest in "abab":
            places.used(digest)
        assert places.of(dict.fromkeys("ab", "base"), frozenset({"one"})) == {"one": {"c", "b"}}
