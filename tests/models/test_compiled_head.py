"""MoERetinaHead with dense dispatch compiles as one graph."""

from __future__ import annotations

import pytest
import torch
from small_models import head, pyramid, spread_weights


@pytest.mark.parametrize(
    'moe',
    [
        dict(num_experts=3, top_k=2, constraint=dict(type='SelectionBiasConstraint')),
        dict(num_experts=3, top_k=2, branches='cls', gate=dict(type='AttentiveGate')),
    ],
    ids=['level', 'attentive gate'],
)
def test_the_head_is_one_graph(moe):
    torch._dynamo.reset()
    plain = spread_weights(head(dict(dispatch='dense', **moe))).eval()
    sorted_dispatch = head(moe).eval()
    sorted_dispatch.load_state_dict(plain.state_dict())
    # a break of the graph would be an error
    compiled = torch.compile(plain, fullgraph=True, backend='eager', dynamic=False)
    maps = tuple(pyramid())
    with torch.no_grad():
        for scale in (1.0, -2.0):  # other values, other choices, the same graph
            scaled = tuple(scale * x for x in maps)
            for ours, theirs in zip(compiled(scaled), sorted_dispatch(scaled), strict=True):
                for one, other in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))
