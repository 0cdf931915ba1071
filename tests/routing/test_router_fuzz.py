"""Random router steps: extreme logits, masks, row counts, E and K in three precisions stay finite.

``MOE_DET_FUZZ_STEPS=10000 python -m pytest tests/routing/test_router_fuzz.py`` runs the long version.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_det.routing import (
    EntropyConstraint,
    GAPLinearGate,
    ImportanceConstraint,
    KLConstraint,
    MeanImportanceConstraint,
    RelativeImportanceConstraint,
    Router,
    SelectionBiasConstraint,
    SwitchConstraint,
    ZLossConstraint,
    rows_of,
)
from moe_det.routing.constraint import Constraint

STEPS = int(os.environ.get('MOE_DET_FUZZ_STEPS', '300'))
STEPS_PER_ROUTER = 2
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0.0, 1e-30, 1e-3, 1.0, 30.0, 1e4, 6e4)  # the last is near the largest fp16
LARGE = (1e15, 1e30, 1e38)
SETS = (
    (),
    (ImportanceConstraint, KLConstraint, SwitchConstraint, EntropyConstraint),
    (ZLossConstraint,),
    (RelativeImportanceConstraint,),
    (MeanImportanceConstraint, KLConstraint),
    (SelectionBiasConstraint,),
)


class RandomMask(Constraint):
    """Forbids what a random generator says, sometimes all experts of a row."""

    key = 'random'

    def __init__(self, seed: int, share: float) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.share = share

    def mask(self, logits: Tensor, groups: Tensor) -> Tensor:
        forbidden = torch.rand(logits.shape, generator=self.generator) < self.share
        return logits.masked_fill(forbidden, float('-inf'))


def planted(generator: torch.Generator, rows: int, experts: int, sizes: list[float]) -> Tensor:
    """(R, E, 1, 1) maps whose logits have the given magnitudes, one per row, with ties here and there."""
    size = torch.tensor(sizes)[torch.randint(len(sizes), (rows, 1), generator=generator)]
    values = (torch.rand(rows, experts, generator=generator) * 2 - 1) * size
    tied = torch.rand(rows, 1, generator=generator) < 0.2
    return torch.where(tied, values[:, :1], values)[..., None, None]


@pytest.mark.parametrize('dtype', DTYPES, ids=lambda dtype: str(dtype).removeprefix('torch.'))
@settings(
    max_examples=max(1, STEPS // len(DTYPES) // STEPS_PER_ROUTER),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_router_steps_stay_finite(dtype, data):
    experts = data.draw(st.sampled_from((1, 2, 3, 4, 8, 64)), label='E')
    top_k = data.draw(st.integers(1, min(experts, 5)), label='K')
    seed = data.draw(st.integers(0, 2**31), label='seed')
    kinds = data.draw(st.sampled_from(SETS), label='constraints')
    share = data.draw(st.sampled_from((0.0, 0.3, 0.9, 1.0)), label='masked')
    unit = data.draw(st.sampled_from(('level', 'image')), label='unit')
    levels = data.draw(st.integers(1, 3), label='levels')
    images = data.draw(st.sampled_from((1, 2, 7, 40)), label='images')
    # the z-loss squares logits: beyond 1e19 it is infinite in fp32, and FiniteHook's to report
    large = () if dtype == torch.float16 else LARGE[:1] if ZLossConstraint in kinds else LARGE
    sizes = data.draw(st.lists(st.sampled_from(SIZES + large), min_size=1, max_size=4), label='magnitudes')
    balance = data.draw(st.sampled_from(('all', 'level')), label='balance')

    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    gate = GAPLinearGate(experts, experts)
    with torch.no_grad():
        gate.fc.weight.copy_(torch.eye(experts))
        gate.fc.bias.zero_()
    constraints = [kind() for kind in kinds] + ([RandomMask(seed, share)] if share else [])
    router = Router(gate, constraints, top_k=top_k, unit=unit, balance_over=balance, num_levels=levels).train()
    for _ in range(STEPS_PER_ROUTER):
        maps = [planted(generator, images, experts, sizes).to(dtype) for _ in range(levels)]
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            rows, layout = rows_of(maps, unit)
            routing = router(rows, layout)
        weights = routing.log_weights.exp()
        assert routing.logits.dtype == torch.float32  # also under autocast
        assert weights.isfinite().all()
        sums = weights.sum(1)
        if top_k > 1:
            torch.testing.assert_close(sums, torch.ones_like(sums))
        else:
            assert (sums > 0).all() and (sums <= 1 + 1e-6).all()
        chosen = routing.indices
        assert ((chosen >= 0) & (chosen <= experts)).all() and (chosen[:, 0] < experts).all()
        assert (weights[chosen == experts] == 0).all()
        for row in chosen.tolist():
            taken = [expert for expert in row if expert < experts]
            assert len(set(taken)) == len(taken)
        losses = router.collect()
        assert all(loss.isfinite() for loss in losses.values()), losses
        gate.zero_grad()
        (weights.square().sum() + sum(losses.values())).backward()
        assert all(p.grad.isfinite().all() for p in router.parameters() if p.grad is not None)
        assert all(buffer.isfinite().all() for buffer in router.buffers() if buffer.is_floating_point())
