"""Routing agreement with a planted gate: the rows that change their experts are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moe_det.attacks.agreement import Agreement, Choices
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


def choices(top_k: int, *means: float) -> dict[str, Tensor]:
    model = nn.ModuleDict({'layer': Router(Brightness(), top_k=top_k)}).eval()
    rows, layout = rows_of([torch.stack([torch.full((1, 2, 2), mean) for mean in means])], 'level')
    with Choices(model) as found:
        model['layer'](rows, layout)
    return found.found


def agreement(top_k: int, before: tuple, after: tuple) -> dict[str, float]:
    counted = Agreement()
    counted.add(choices(top_k, *before), choices(top_k, *after))
    return counted.shares()


def test_one_of_four_rows_changes_its_expert():
    assert agreement(1, (0.0, 0.5, 2.0, 3.0), (0.2, 1.5, 2.0, 1.1)) == {'layer': 0.75}


def test_the_set_of_experts_counts_and_not_their_order():
    assert agreement(2, (0.0, 0.5, 2.0, 3.0), (0.2, 1.5, 2.0, 1.1)) == {'layer': 1.0}


def test_where_all_experts_run_the_best_one_counts():
    assert agreement(3, (0.0, 0.5, 2.0, 3.0), (0.2, 1.5, 2.0, 1.1)) == {'layer': 0.75}


def test_images_add_up_and_rows_without_a_partner_do_not_count():
    counted = Agreement()
    counted.add(choices(1, 0.0), choices(1, 2.0))
    counted.add(choices(1, 0.0, 0.0, 0.0), choices(1, 0.0, 0.0, 2.0))
    counted.add(choices(1, 0.0), choices(1, 0.0, 0.0))
    counted.add({}, {})
    assert counted.shares() == {'layer': pytest.approx(2 / 4)}
    assert Agreement().shares() == {}
