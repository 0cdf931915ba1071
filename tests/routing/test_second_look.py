"""Rows of an image and of its mirror image are matched by place; a second forward ends with the last decision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEConv2d
from moe_det.routing import find_routers, rows_of
from moe_det.routing.rows import layout_of
from moe_det.routing.second_look import comparable_routers, matched_rows, run_until_decided


@pytest.mark.parametrize('grid', [2, 3, 4])
@pytest.mark.parametrize('sizes', [[(12, 12), (2, 2)], [(12, 24), (1, 2)], [(24, 12), (4, 1)], [(2, 2), (1, 1)]])
def test_each_patch_finds_its_mirrored_place(sizes, grid):
    # cells of equal width: others have no exact mirror image
    # a map that holds its own column number, mirrored: the matched patch has the mirrored mean
    maps = [torch.arange(w).float().expand(2, 1, h, w) + torch.arange(h).float()[:, None] * 100 for h, w in sizes]
    rows, layout = rows_of(maps, 'patch', grid, halo=0)
    mirrored, changed = rows_of([x.flip(3) for x in maps], 'patch', grid, halo=0)
    of_rows, of_mirrored = (torch.cat([x.mean((1, 2, 3)) for x in given]) for given in (rows, mirrored))
    torch.testing.assert_close(of_mirrored[matched_rows(layout, changed, True)], of_rows)


def test_other_rows_are_matched_in_order():
    maps = [torch.zeros(3, 1, 4, 4), torch.zeros(3, 1, 2, 2)]
    for unit, rows in (('level', 6), ('image', 3)):
        layout = layout_of(maps, unit)
        assert matched_rows(layout, layout, True).tolist() == list(range(rows))
    layout = layout_of(maps, 'patch', 2)
    assert matched_rows(layout, layout, False).tolist() == list(range(24))
    with pytest.raises(MoEConfigError, match='smaller than the grid cannot be compared'):
        matched_rows(layout, layout_of([maps[0], maps[1][:, :, :1]], 'patch', 2), False)


def layer() -> MoEConv2d:
    return MoEConv2d(2, 2, 1, num_experts=2, top_k=1, constraint=dict(type='KLConstraint'))


def test_a_forward_ends_with_the_last_decision_and_belongs_to_no_step():
    model = nn.Sequential(layer(), layer()).train()
    routers = find_routers(model)
    x = torch.randn(3, 2, 4, 4)
    model(x)
    steps = [len(router.step.calls) for router in routers.values()]
    ran = [0, 0]
    for number, moe in enumerate(model):
        for expert in moe.expert_group.experts:
            expert.register_forward_hook(lambda *_, number=number: ran.__setitem__(number, ran[number] + 1))
    run_until_decided(lambda: model(x), routers, dict.fromkeys(routers, 1))
    assert ran[0] > 0 and ran[1] == 0  # behind the last gate nothing runs
    assert [len(router.step.calls) for router in routers.values()] == steps
    assert all(router.training and len(router.decided) == 0 for router in routers.values())

    def broken() -> None:
        raise RuntimeError('of a forward')

    with pytest.raises(RuntimeError, match='of a forward'):  # other errors pass, and leave no trace either
        run_until_decided(broken, routers, dict.fromkeys(routers, 1))
    assert all(router.training and len(router.decided) == 0 for router in routers.values())


def test_layers_whose_rows_lie_elsewhere_cannot_be_compared():
    moe = layer()
    moe.router.unit = 'roi'
    with pytest.raises(MoEConfigError, match="units level, image, patch: .*'roi'"):
        comparable_routers(find_routers(moe))
