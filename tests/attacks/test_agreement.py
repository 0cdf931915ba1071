"""Routing agreement with a planted gate: the rows that change their experts are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_det.analysis.agreement import AgreementSums, best_experts
from moe_det.attacks.agreement import Choices, KeptChoices
from moe_det.routing.gates import Gate
from moe_det.routing.router import Router
from moe_det.routing.rows import rows_of


class Brightness(Gate):
    """Prefers expert 1 to 0 where the mean exceeds 1, and always least expert 2."""

    def __init__(self) -> None:
        super().__init__(1, 3)
        self.unused = nn.Parameter(torch.zeros(1))

    def logits(self, feature: Tensor) -> Tensor:
        bright = feature.mean(dim=(1, 2, 3)) - 1
        return torch.stack([-bright, bright, torch.full_like(bright, -9.0)], dim=1)


def choices(top_k: int, *means: float) -> dict[str, np.ndarray]:
    model = nn.ModuleDict({'layer': Router(Brightness(), top_k=top_k)}).eval()
    rows, layout = rows_of([torch.stack([torch.full((1, 2, 2), mean) for mean in means])], 'level')
    with Choices(model) as found:
        model['layer'](rows, layout)
    return found.found


@pytest.mark.parametrize('top_k', [1, 2, 3])
def test_one_of_four_rows_changes_its_best_expert_also_where_the_set_of_experts_stays(top_k):
    counted = KeptChoices()
    counted.add(choices(top_k, 0.0, 0.5, 2.0, 3.0), choices(top_k, 0.2, 1.5, 2.0, 1.1))
    assert counted.shares() == {'layer': 0.75}


def test_every_slot_has_a_choice_of_its_own():
    probs = np.array([[0.6, 0.4, 0.3, 0.7], [0.6, 0.4, 0.3, 0.7]])
    again = np.array([[0.6, 0.4, 0.7, 0.3], [0.4, 0.6, 0.3, 0.7]])
    counted = KeptChoices()
    counted.add({'layer': best_experts(probs, 2)}, {'layer': best_experts(again, 2)})
    assert counted.shares() == {'layer': 0.5}


def test_images_add_up_and_rows_without_a_partner_do_not_count():
    counted = KeptChoices()
    counted.add(choices(1, 0.0), choices(1, 2.0))
    counted.add(choices(1, 0.0, 0.0, 0.0), choices(1, 0.0, 0.0, 2.0))
    counted.add(choices(1, 0.0), choices(1, 0.0, 0.0))
    counted.add({}, {})
    assert counted.shares() == {'layer': pytest.approx(2 / 4)}
    assert KeptChoices().shares() == {}


def test_rows_to_which_a_constraint_opens_other_experts_are_counted_and_have_no_divergence():
    """A row of another cluster: its experts have the probability 0 before and after, each in one of them."""
    sums = AgreementSums()
    before, after = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]]), np.array([[0, 0, 0.5, 0.5], [0.25, 0.75, 0, 0]])
    sums.add(before, before, after, after)
    found = sums.mean()
    assert (found.rows, found.unbounded) == (2, 1)
    assert found.divergence == pytest.approx(0.5 * np.log2(2) + 0.5 * np.log2(2 / 3))
    sums = AgreementSums()
    sums.add(before[:1], before[:1], after[:1], after[:1])
    assert sums.mean().to_dict() == dict(rows=1, same_best=0, overlap=0, divergence=None, unbounded=1)
