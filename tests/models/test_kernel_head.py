"""MoERetinaHead with mixes='kernels' against mmdet's RetinaHead and the converters."""

from __future__ import annotations

import pytest
import torch
from small_models import head, head_outputs, multiply_adds, pyramid, spread_weights

from moe_det.cost.model_cost import experts_in_words
from moe_det.routing.intervention import Intervention, intervene

GN = dict(norm_cfg=dict(type='GN', num_groups=4))
KERNELS = dict(num_experts=4, top_k=4, soft_mixture=True, mixes='kernels', noise=False)


@pytest.mark.parametrize(
    'moe',
    [
        {},
        dict(unit='image', shared_gate=True),
        dict(placement='tower'),
        dict(placement='last', unit='image', copies_share=True),
        dict(top_k=2, soft_mixture=False, dispatch='sorted', constraint=dict(type='KLConstraint')),
        dict(top_k=1, soft_mixture=False, weighting='straight_through'),
        dict(top_k=2, soft_mixture=False, width='matched'),
    ],
    ids=str,
)
def test_a_loaded_plain_head_gives_its_outputs(moe):
    dense, maps = spread_weights(head(**GN)).eval(), pyramid(images=2, size=256)
    copies = spread_weights(head({**KERNELS, 'copy_noise': 0, **moe}, **GN), seed=1).eval()
    missing, unexpected = copies.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith('routers.') or '.common.' in key for key in missing), missing
    with torch.no_grad():
        for a, b in zip(head_outputs(copies, maps), head_outputs(dense, maps), strict=True):
            assert b.std() > 0.01
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_forced_copies_are_plain_heads_of_their_own():
    model, dense, maps = spread_weights(head(KERNELS, **GN)).eval(), head(**GN).eval(), pyramid(images=2)
    forced = {'cls': 1, 'reg': 3}
    state = {
        model.dense_name(branch, name): value
        for branch, expert in forced.items()
        for name, value in model.branch_experts[branch].experts[expert].state_dict().items()
    }
    dense.load_state_dict(state)
    with torch.no_grad(), intervene(model.routers, {key: Intervention(forced=e) for key, e in forced.items()}):
        for a, b in zip(head_outputs(model, maps), head_outputs(dense, maps), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_cost_is_that_of_the_plain_head_and_of_mixing_its_weights():
    maps = tuple(pyramid(images=2))
    model, dense = head({**KERNELS, 'unit': 'image'}, **GN).eval(), head(**GN).eval()
    weights = sum(p.numel() for p in dense.parameters())
    gates = 2 * 5 * 2 * 8 * 4  # two gates, five levels, two images, 8 channels, 4 logits
    assert multiply_adds(model, maps) == multiply_adds(dense, maps) + gates + 2 * 4 * weights
    assert experts_in_words(model) == 'unconstrained, one of the mixed kernels of 4 of 4 per image'
