"""The loaded artifacts: bounds, who goes for whom, and leases that nothing takes away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from serving import FakePredictor

from service.artifacts.shelf import Shelf
from service.errors import ArtifactActiveError, ArtifactNotLoadedError, ShelfFullError


def predictor(name: str, size_bytes: int = 10) -> Any:
    fake = FakePredictor(name, path=Path("root") / name)
    fake.own_bytes = size_bytes
    return fake


def shelf_of(active: str, *others: str, most: int = 3, max_bytes: int = 100) -> Shelf:
    shelf = Shelf(max_artifacts=most, max_bytes=max_bytes)
    for name in (active, *others):
        shelf.put(predictor(name), activate=name == active)
    return shelf


def names(shelf: Shelf) -> list[str]:
    return [place.name for place in shelf.places]


def test_activation_may_send_away_the_former_one_only_where_nothing_else_helps() -> None:
    shelf = shelf_of("a", most=1)
    with shelf.lease("a") as held:
        assert shelf.put(predictor("b"), activate=True) == ["a"]
        assert held.artifact.name == "a"
    assert names(shelf) == ["b"]
    roomy = shelf_of("a", "b", most=2)
    assert roomy.put(predictor("c"), activate=True) == ["b"]
    assert names(roomy) == ["c", "a"]


NUMBERS = st.integers(0, 6)


class AnyOrder(RuleBasedStateMachine):
    """Whatever the order: bounds hold, the active one is there, and nothing leased is ever sent away unasked."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = shelf_of("n0", max_bytes=50)
        self.leases: list[tuple[Any, Any]] = []

    @rule(number=NUMBERS, size=st.integers(1, 30), activate=st.booleans())
    def put(self, number: int, size: int, activate: bool) -> None:
        before, active = set(names(self.shelf)), self.shelf.active
        held = {place.name for place in self.shelf.places if place.leases}
        try:
            gone = self.shelf.put(predictor(f"n{number}", size), activate=activate)
        except ShelfFullError:
            assert set(names(self.shelf)) == before
            assert self.shelf.active is active
            return
        assert active is not None
        former = {active.artifact.name} if activate else set()
        assert not set(gone) & (held - former)
        assert set(names(self.shelf)) == (before - set(gone)) | {f"n{number}"}

    @rule(number=NUMBERS)
    def take(self, number: int) -> None:
        context = self.shelf.lease(f"n{number}")
        try:
            self.leases.append((context, context.__enter__()))
        except ArtifactNotLoadedError:
            assert f"n{number}" not in names(self.shelf)

    @precondition(lambda self: self.leases)
    @rule(choice=st.randoms(use_true_random=False))
    def release(self, choice: Any) -> None:
        context, _ = self.leases.pop(choice.randrange(len(self.leases)))
        context.__exit__(None, None, None)

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        try:
            self.shelf.remove(f"n{number}")
        except (ArtifactNotLoadedError, ArtifactActiveError):
            return
        assert f"n{number}" not in names(self.shelf)

    @invariant()
    def bounded(self) -> None:
        places = self.shelf.places
        assert len(places) <= 3
        assert sum(p.size_bytes for p in places) <= 50
        assert self.shelf.active is places[0].model
        for place in places:
            assert place.leases == sum(held is place.model for _, held in self.leases)


TestAnyOrder = AnyOrder.TestCase


@given(st.lists(st.sampled_from("abcdef"), max_size=30))
def test_order_of_leaving_is_order_of_use(uses: list[str]) -> None:
    shelf = shelf_of("z", *"abcdef", most=7, max_bytes=1000)
    for name in uses:
        with shelf.lease(name):
            pass
    last_use = {name: i for i, name in enumerate([*"abcdef", *uses])}
    gone = [shelf.put(predictor(f"new{i}"), activate=False)[0] for i in range(6)]
    assert gone == sorted("abcdef", key=lambda name: last_use[name])
