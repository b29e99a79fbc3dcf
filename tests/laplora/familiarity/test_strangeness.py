"""Strangeness: what layers and logits say together, and that no scale of either matters."""

from __future__ import annotations

import pytest
import torch
from shown_states import states_of

from laplora.errors import NonFiniteError
from laplora.familiarity.strangeness import Strangeness, divergence, fit_strangeness
from laplora.jacobians.states import States
from laplora.linearised import contrast_mean

LABELS = torch.arange(80) % 3


def rows(count: int, seed: int) -> States:
    """Return random rows of two layers and three classes."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 2, 12, generator=draw)
    return states_of(hidden, contrast_mean(3 * torch.randn(count, 3, generator=draw).double()))


def test_divergence_is_that_of_uniform_probabilities_from_the_labels() -> None:
    logits = 4 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = torch.full_like(logits, 1 / 5)
    expected = torch.nn.functional.kl_div(logits.log_softmax(1), uniform, reduction="none").sum(1)
    found = divergence(states_of(torch.zeros(30, 1, 2), contrast_mean(logits)))
    torch.testing.assert_close(found, expected)
    shifted = divergence(states_of(torch.zeros(30, 1, 2), contrast_mean(logits + 100)))
    torch.testing.assert_close(shifted, expected)
    assert float(divergence(states_of(torch.zeros(1, 1, 2), torch.zeros(1, 4)))) == pytest.approx(0, abs=1e-12)


def test_it_is_the_mean_of_the_layers_less_the_weighted_divergence() -> None:
    train, new = rows(80, 0), rows(20, 2)
    found = fit_strangeness(train, LABELS)
    each = [distance.squared(new.hidden[:, place]).log() for place, distance in enumerate(found.distances)]
    torch.testing.assert_close(found.of(new), (each[0] + each[1]) / 2 - found.weight * divergence(new))
    # Over the training rows the divergence varies half as much as the distance.
    far = Strangeness(found.layers, found.distances).of(train)
    assert float(far.std()) / 2 == pytest.approx(found.weight * float(divergence(train).std()))


def test_where_several_labels_may_be_right_or_logits_are_all_the_same_there_is_no_divergence() -> None:
    several = (torch.rand(80, 4, generator=torch.Generator().manual_seed(3)) > 0.5).long()
    found = fit_strangeness(rows(80, 0), several)
    assert found.weight == 0
    assert all(len(distance.class_centers) == 1 for distance in found.distances)
    assert fit_strangeness(states_of(rows(80, 0).hidden, torch.ones(80, 2)), LABELS).weight == 0


def test_layers_are_found_among_those_that_were_watched() -> None:
    train = rows(80, 0)
    last = fit_strangeness(train.after((1,)), LABELS)
    assert last.layers == (1,)
    assert torch.equal(last.of(rows(20, 2)), last.of(rows(20, 2).after((1,))))


@pytest.mark.parametrize("part", ["hidden", "contrast_mean"])
def test_what_is_not_finite_is_refused(part: str) -> None:
    train = rows(80, 0)
    getattr(train, part)[3] = torch.nan
    with pytest.raises(NonFiniteError):
        fit_strangeness(train, LABELS)
