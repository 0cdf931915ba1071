"""Box-size histograms against values by hand, and their way into the head's similarity constraint."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import InstanceData
from small_models import head, head_losses, metas, objects, pyramid, spread_weights

from moe_det.models.box_sizes import box_size_histograms


def boxes(*sizes: tuple[float, float]) -> InstanceData:
    return InstanceData(bboxes=torch.tensor([[10.0, 20.0, 10 + w, 20 + h] for w, h in sizes]).reshape(-1, 4))


def test_histograms_by_hand():
    # 8x8 and 4x64 (area 256: 16 pixels); area 2^9: size 2^4.5, half way between 16 and 32; beyond both ends; none
    found = box_size_histograms([boxes((8, 8), (4, 64)), boxes((2**4.5, 2**4.5)), boxes((1, 1), (900, 900)), boxes()])
    expected = torch.zeros(4, 7)
    expected[0, 0] = expected[0, 1] = 0.5
    expected[1, 1] = expected[1, 2] = 0.5
    expected[2, 0] = expected[2, 6] = 0.5
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('count', [3, 0])
def test_the_head_compares_images_by_their_boxes(count):
    similarity = dict(type='SampleSimilarityConstraint', beta_s=1.0, beta_d=0.0, distance='box_sizes')
    moe = dict(num_experts=4, top_k=2, balance_over='level', noise=False, constraint=similarity)
    model = spread_weights(head(moe)).double()
    maps = pyramid(images=3, dtype=torch.float64)
    losses = head_losses(model, maps, count=count)
    points = box_size_histograms([objects(i, count=count) for i in range(3)]).double()
    distances = torch.cdist(points, points)
    for branch in ('cls', 'reg'):
        expected = 0
        for x in maps:  # each level has its own pairs
            probs = model.routers[branch].gate(x).softmax(1)
            expected += (distances / distances.max().clamp_min(1e-9) * (probs @ probs.t())).sum() / 4 / 9 / 5
        torch.testing.assert_close(
            losses[f'loss_moe_similarity_{branch}'], expected, check_dtype=False, rtol=1e-6, atol=0
        )
        assert (expected > 0.01) == (count > 0)


def test_nothing_is_supplied_when_no_constraint_asks(monkeypatch):
    monkeypatch.setattr('moe_det.models.moe_retina_head.box_size_histograms', lambda _: pytest.fail('computed'))
    model = head(dict(num_experts=4, top_k=2, constraint=dict(type='KLConstraint')))
    assert 'loss_moe_kl_cls' in model.loss_by_feat(*model(tuple(pyramid())), [objects(0), objects(1)], metas(2))
