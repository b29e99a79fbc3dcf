"""What a scorer holds, loaded once and never evicted in use."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import FakePredictor

from service.backends.ray.held import UNWANTED_S, Held, InUseError
from service.backends.ray.scorer import Wanted
from service.errors import LoadStuckError, ShelfFullError


class Shop:
    """A ``Held`` with a clock that tests move, and what it has loaded."""

    def __init__(self, *, most: int = 2, most_bytes: int = 10_000, most_load_s: float = math.inf) -> None:
        self.now, self.loads = 0.0, list[str]()
        self.held = Held(most=most, most_bytes=most_bytes, most_load_s=most_load_s, clock=lambda: self.now)

    def lease(self, name: str, load: Callable[[], Any] = lambda: None, **options: bool) -> Any:
        def loaded() -> FakePredictor:
            self.loads.append(name)
            load()
            return FakePredictor(name)

        return self.held.lease(f"sha256:{name}", loaded, **options)

    def use(self, name: str, load: Callable[[], Any] = lambda: None) -> None:
        with self.lease(name, load):
            self.now += 1

    def keep(self, names: str) -> None:
        self.held.keep({f"sha256:{name}" for name in names})

    @property
    def names(self) -> set[str]:
        return {digest.removeprefix("sha256:") for digest in self.held.digests}


def test_one_is_loaded_once_however_many_ask_at_once() -> None:
    shop, gate = Shop(), threading.Barrier(8)

    def use() -> None:
        gate.wait()
        shop.use("a")

    with ThreadPoolExecutor(8) as pool:
        for one in [pool.submit(use) for _ in range(8)]:
            one.result()
    assert (shop.loads, shop.names) == (["a"], {"a"})


@pytest.mark.parametrize("most", [{"most": 2}, {"most": 10, "most_bytes": 2 * FakePredictor.own_bytes}])
def test_the_least_recently_used_one_goes_and_never_what_is_in_use(most: dict[str, int]) -> None:
    shop = Shop(**most)
    for name in ("a", "b", "a", "c"):
        shop.use(name)
    assert shop.names == {"a", "c"}
    with shop.lease("a"), shop.lease("c"):
        for _ in range(3):
            with pytest.raises(InUseError), shop.lease("b"):
                pass
        assert (shop.names, shop.loads) == ({"a", "c"}, ["a", "b", "c"]), "nothing of a known size loads in vain"
    shop.use("b")
    assert "b" in shop.names


def test_a_size_that_is_not_known_is_learned_by_one_load() -> None:
    shop = Shop(most=10, most_bytes=2 * FakePredictor.own_bytes)
    with shop.lease("a"), shop.lease("b"):
        for _ in range(2):
            with pytest.raises(InUseError), shop.lease("c"):
                pass
    shop.use("b")
    assert (shop.names, shop.loads) == ({"a", "b"}, ["a", "b", "c"])
    small = Shop(most_bytes=FakePredictor.own_bytes - 1)
    for _ in range(2):
        with pytest.raises(ShelfFullError, match="does not fit") as refused, small.lease("a"):
            pass
        assert not isinstance(refused.value, InUseError), "no wait would help"
    assert small.loads == ["a"]


def test_no_load_waits_for_one_that_hangs_and_what_is_there_is_leased() -> None:
    shop, began, gate = Shop(most_load_s=100), threading.Event(), threading.Event()
    shop.use("a")

    def hang() -> None:
        began.set()
        gate.wait()

    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(shop.use, "b", hang)
        began.wait()
        waiting = pool.submit(shop.use, "c")
        try:
            with pytest.raises(TimeoutError):
                waiting.result(1.0)
            shop.now += 101
            with pytest.raises(LoadStuckError):
                waiting.result()
            shop.use("a")
        finally:
            gate.set()
        hanging.result()
    shop.use("c")
    assert shop.loads == ["a", "b", "c"]


def test_what_nobody_wants_goes_after_a_while_and_not_while_it_is_used() -> None:
    shop = Shop()
    shop.use("a")
    with shop.lease("b"):
        shop.now += UNWANTED_S + 1
        shop.keep("a")
        assert shop.names == {"a", "b"}
    shop.now += UNWANTED_S + 1
    shop.keep("a")
    assert shop.names == {"a"}
    with pytest.raises(ZeroDivisionError):  # a load that fails takes nothing away
        shop.use("b", lambda: 1 / 0)
    assert shop.names == {"a"}


def test_what_is_wanted_stays_while_another_can_go_and_for_what_is_loaded_unasked() -> None:
    shop = Shop(most=2)
    shop.use("a")
    shop.use("b")
    assert shop.held.has_room
    shop.keep("a")
    shop.use("c")
    assert shop.names == {"a", "c"}
    shop.use("a")  # the one that answers
    shop.keep("acd")
    assert not shop.held.has_room
    with pytest.raises(ShelfFullError), shop.lease("d", spare_wanted=True):
        pass
    assert (shop.names, shop.loads) == ({"a", "c"}, ["a", "b", "c"])
    shop.use("d")
    assert shop.names == {"a", "d"}, "wanted ones go by their use"


def test_a_lease_of_what_is_there_never_loads() -> None:
    shop = Shop()
    assert shop.held.lease_if_there("sha256:a") is None
    shop.use("a")
    lease = shop.held.lease_if_there("sha256:a")
    assert lease is not None
    with lease, shop.lease("b"), pytest.raises(ShelfFullError), shop.lease("c"):
        pass
    shop.use("c")
    assert shop.loads == ["a", "b", "c"]


def test_what_does_not_load_is_tried_less_and_less_often() -> None:
    now = 0.0
    wanted = Wanted(lambda: now)
    assert [wanted.begin("a"), wanted.begin("a"), wanted.begin("b")] == [True, False, False]
    pauses = []
    for _ in range(11):
        wanted.end("a", loaded=False)
        begun = now
        while not wanted.begin("a"):
            now += 0.5
        pauses.append(now - begun)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    wanted.end("a", loaded=False)
    assert wanted.begin("b")
    wanted.end("b", loaded=True)
    assert [wanted.begin("a"), wanted.begin("b")] == [False, True]
