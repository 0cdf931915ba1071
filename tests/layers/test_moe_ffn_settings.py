"""Keys of MoEFFN that cannot be built from, and what its width means."""

from __future__ import annotations

import pytest
from small_ffn import ffn, layer

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEFFN


@pytest.mark.parametrize(
    ('moe', 'message'),
    [
        ({'unit': 'level'}, "unit: unknown value 'level'; the names that exist are: image, token, window"),
        ({'unit': 'patch', 'grid': 2}, "unknown value 'patch'"),
        ({'balance_over': 'level'}, 'tokens are balanced together'),
        ({'mixes': 'kernels'}, 'weights of its own for every token; take it out'),
        ({'copies': 3}, "copies=3: applies to placement='shards' alone"),
        ({'placement': 'shards', 'shards': 5}, 'shards=5: 5 slices do not divide 12 hidden channels'),
        ({'placement': 'shards', 'top_k': 3}, 'top_k=3: follows from shards=2'),
        ({'placement': 'tower'}, "placement: unknown value 'tower'"),
        ({'experts': 3}, "unknown key 'experts'"),
        ({'width': 9}, 'width=9: expected a factor'),
        ({'num_experts': 2, 'top_k': 3}, 'top_k=3: expected at most num_experts=2'),
    ],
    ids=str,
)
def test_settings_that_cannot_be_built_name_the_layer_and_the_key(moe, message):
    with pytest.raises(MoEConfigError, match=r'^decoder\.layers\.0\.ffn') as error:
        layer(**moe)
    assert message in str(error.value)


def test_matched_experts_cost_what_the_ffn_costs():
    moe = MoEFFN(ffn(feedforward_channels=64), 'ffn', num_experts=8, top_k=2, width='matched')
    assert moe.expert_group.experts[0].layers[0][0].out_features == 32
