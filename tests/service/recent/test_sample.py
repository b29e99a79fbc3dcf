"""The sample of distinct inputs: against sorting all that came by hash, uniform, and in its bounds."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

import pytest

from service.recent.sample import LARGEST_SHARE, Sample

KEY = b"k" * 32


def hashed(line: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(line, digest_size=16, key=KEY).digest())


def lines_of(sample: Sample, caller: str | None = None) -> set[bytes]:
    return {line for _, line in sample.of(caller)}


def filled(sample: Sample, lines: Sequence[bytes], caller: str = "one") -> Sample:
    for line in lines:
        sample.add(line, caller)
    return sample


@pytest.mark.parametrize("seed", range(5))
def test_kept_are_the_smallest_hashes_in_whatever_order_and_however_often_they_come(seed: int) -> None:
    draw = random.Random(seed)
    lines = [f"text {draw.randrange(60)}".encode() for _ in range(300)]
    expected = set(sorted(set(lines), key=hashed)[:20])
    sample = filled(Sample(20, 10_000, KEY), lines)
    assert lines_of(sample) == expected
    assert lines_of(filled(Sample(20, 10_000, KEY), draw.sample(lines, len(lines)))) == expected
    assert (len(sample), sample.size_bytes) == (20, sum(map(len, expected)))


@pytest.mark.parametrize("seed", range(5))
def test_bytes_are_bounded_and_no_larger_hash_comes_in_behind_one_that_left(seed: int) -> None:
    draw = random.Random(seed)
    lines = [f"{i} {'x' * draw.randrange(10)}".encode() for i in range(2000)]
    sample = Sample(1000, 2000, KEY)
    for line in lines:
        sample.add(line, "one")
        assert sample.size_bytes <= 2000
    kept = lines_of(sample)
    largest = max(map(hashed, kept))
    assert kept == {line for line in lines if hashed(line) <= largest}
    assert sample.size_bytes > 1900


def test_an_input_that_would_take_the_place_of_many_is_not_kept() -> None:
    most = int(10_000 * LARGEST_SHARE)
    sample = filled(Sample(10, 10_000, KEY), [b"x" * most, b"y" * (most + 1)])
    assert lines_of(sample) == {b"x" * most}


def test_each_distinct_input_is_as_likely_as_any_other() -> None:
    """One of ten inputs is half of what comes. In 2,000 samples of 3, each is there 600 times within 5 deviations."""
    lines = [b"busy"] * 9 + [f"text {i}".encode() for i in range(9)]
    counts = dict.fromkeys(lines, 0)
    for draw in range(2000):
        for line in lines_of(filled(Sample(3, 10_000, draw.to_bytes(8)), lines)):
            counts[line] += 1
    deviation = math.sqrt(2000 * 0.3 * 0.7)
    assert all(abs(count - 600) < 5 * deviation for count in counts.values()), counts


def test_an_input_belongs_to_all_who_sent_it_until_each_has_it_forgotten() -> None:
    sample = filled(Sample(10, 10_000, KEY), [b"a", b"b"], "one")
    filled(sample, [b"b", b"b", b"c"], "two")
    assert (lines_of(sample, "one"), lines_of(sample, "two")) == ({b"a", b"b"}, {b"b", b"c"})
    sample.forget("one")
    assert (lines_of(sample, "one"), lines_of(sample, "two"), sample.size_bytes) == (set(), {b"b", b"c"}, 2)
    filled(sample, [str(i).encode() for i in range(100)], "three")
    assert len(sample) == 10
    sample.forget("two")
    sample.forget("three")
    assert (len(sample), sample.size_bytes, lines_of(sample)) == (0, 0, set())


def test_who_has_all_of_it_forgotten_begins_anew() -> None:
    """Inputs that are gone say nothing of those that come: else of 2,000 inputs after 20,000 only 5 would be kept."""
    sample = filled(Sample(500, 10**6, KEY), [f"early {i}".encode() for i in range(20_000)])
    assert sample.forget("one") == 500
    filled(sample, [f"late {i}".encode() for i in range(2000)])
    assert len(sample) == 500
    assert sample.forget("nobody") == 0
    assert len(sample) == 500
