"""Box-size histograms against values by hand, and their way into the head's similarity constraint."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import InstanceData
from small_models import head, head_losses, metas, objects, pyramid, spread_weights

from moe_det.models import box_sizes
from moe_det.models.box_sizes import box_size_histograms, patch_box_size_histograms
from moe_det.routing.rows import layout_of, rows_of

SIMILARITY = dict(type='SampleSimilarityConstraint', beta_s=1.0, beta_d=0.0, distance='box_sizes')


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
    moe = dict(num_experts=4, top_k=2, balance_over='level', noise=False, constraint=SIMILARITY)
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


def centred(*boxes: tuple[float, float, float]) -> InstanceData:
    """Square boxes from centre x, y and size."""
    corners = [[x - s / 2, y - s / 2, x + s / 2, y + s / 2] for x, y, s in boxes]
    return InstanceData(bboxes=torch.tensor(corners).reshape(-1, 4))


def bins(*sizes: int) -> list[float]:
    """The histogram of boxes of these sizes, each the place of a bin."""
    return [sizes.count(8 * 2**i) / max(len(sizes), 1) for i in range(7)]


def test_patches_by_hand():
    # maps of 5x6 pixels with stride 8 and of 2x2 with stride 16, 2x2 patches: rows 0-1 and 2-4, columns 0-2 and 3-5
    layout = layout_of([torch.zeros(2, 1, 5, 6), torch.zeros(2, 1, 2, 2)], 'patch', 2)
    images = [
        # the second at the seam: pixel row 2 belongs to the lower patch; the third outside the second map
        centred((23.9, 15.9, 8), (1.0, 16.0, 16), (47.0, 39.0, 32), (40.0, 30.0, 64)),
        centred(),
    ]
    found = patch_box_size_histograms(images, layout, 2, [(8, 8), (16, 16)])
    nothing = [0.0] * 7
    first = [bins(8), nothing, bins(16), bins(32, 64)]  # upper left, upper right, lower left, lower right
    second = [nothing, bins(8), bins(16), bins(32, 64)]  # x = 23.9 is in the right of the two columns
    expected = [*first, *[nothing] * 4, *second, *[nothing] * 4]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_one_patch_is_the_image_and_patches_share_out_its_boxes():
    images = [objects(i, count=5) for i in range(3)]
    maps, strides = pyramid(images=3), [(8 * 2**i, 8 * 2**i) for i in range(5)]
    whole = patch_box_size_histograms(images, layout_of(maps, 'patch', 1), 1, strides)
    torch.testing.assert_close(whole, box_size_histograms(images).repeat(5, 1))
    layout = layout_of(maps, 'patch', 3)
    found = patch_box_size_histograms(images, layout, 3, strides)
    assert len(found) == sum(layout.level_rows) and len({tuple(row.tolist()) for row in found}) > 4
    assert set(found.sum(1).round(decimals=4).tolist()) == {0.0, 1.0}
    # the last level is one pixel: its only patch is the image
    assert layout.patches[-1] == 1
    torch.testing.assert_close(found[-3:], box_size_histograms(images))


def test_the_head_compares_patches_by_the_boxes_in_them():
    moe = dict(num_experts=4, top_k=2, unit='patch', grid=2, balance_over='level', noise=False, constraint=SIMILARITY)
    model = spread_weights(head(moe)).double()
    maps = pyramid(images=2, dtype=torch.float64)
    losses = head_losses(model, maps, count=6)
    strides = model.prior_generator.strides
    points = patch_box_size_histograms(
        [objects(i, count=6) for i in range(2)], layout_of(maps, 'patch', 2), 2, strides
    ).double()
    for branch in ('cls', 'reg'):
        expected, begin = 0, 0
        for windows in rows_of(maps, 'patch', 2)[0]:
            of_level, begin = points[begin : begin + len(windows)], begin + len(windows)
            distances = torch.cdist(of_level, of_level)
            probs = model.routers[branch].gate(windows).softmax(1)
            weighted = distances / distances.max().clamp_min(1e-9) * (probs @ probs.t())
            expected += weighted.sum() / 4 / len(windows) ** 2 / 5
        assert expected > 0.01
        torch.testing.assert_close(
            losses[f'loss_moe_similarity_{branch}'], expected, check_dtype=False, rtol=1e-6, atol=0
        )


@pytest.mark.parametrize('unit', [dict(unit='level'), dict(unit='patch', grid=2)])
def test_both_branches_share_what_is_computed_once(monkeypatch, unit):
    computed = []
    for name in ('box_size_histograms', 'patch_box_size_histograms'):
        found = getattr(box_sizes, name)
        monkeypatch.setattr(box_sizes, name, lambda *args, found=found: computed.append(1) or found(*args))
    model = spread_weights(head(dict(num_experts=4, top_k=2, constraint=SIMILARITY, **unit)))
    losses = head_losses(model, pyramid(images=3), count=2)
    assert computed == [1] and losses['loss_moe_similarity_cls'] != losses['loss_moe_similarity_reg']


@pytest.mark.parametrize('unit', [dict(unit='image'), dict(unit='level', balance_over='level'), dict(unit='level')])
def test_every_unit_is_served(unit):
    model = spread_weights(head(dict(num_experts=4, top_k=2, constraint=SIMILARITY, **unit)))
    losses = head_losses(model, pyramid(images=3), count=2)
    (losses['loss_moe_similarity_cls'] + losses['loss_moe_similarity_reg']).backward()
    for router in model.routers.values():
        assert max(p.grad.abs().max() for p in router.gate.parameters()) > 0


def test_nothing_is_supplied_when_no_constraint_asks(monkeypatch):
    monkeypatch.setattr('moe_det.models.moe_retina_head.supply_box_sizes', lambda *_: pytest.fail('computed'))
    model = head(dict(num_experts=4, top_k=2, constraint=dict(type='KLConstraint')))
    assert 'loss_moe_kl_cls' in model.loss_by_feat(*model(tuple(pyramid())), [objects(0), objects(1)], metas(2))
