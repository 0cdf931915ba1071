"""MoERetinaHead with dispatch='all' compiles as one graph."""

from __future__ import annotations

import pytest
import torch
from small_models import head, head_outputs, pyramid, spread_weights


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
    plain = spread_weights(head(dict(dispatch='all', **moe))).eval()
    sorted_dispatch = head(moe).eval()
    sorted_dispatch.load_state_dict(plain.state_dict())
    # a break of the graph would be an error
    compiled = torch.compile(plain, fullgraph=True, backend='eager', dynamic=False)
    with torch.no_grad():
        for scale in (1.0, -2.0):  # other values, other choices, the same graph
            maps = [scale * x for x in pyramid()]
            for ours, theirs in zip(head_outputs(compiled, maps), head_outputs(sorted_dispatch, maps), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, theirs.abs().max().item()))
