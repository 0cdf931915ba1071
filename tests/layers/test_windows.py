"""Experts of Swin's FFNs that decide window by window."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from small_models import batch_for, build, family, initialise, losses_of, predictions_of, records_of, with_experts
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEFFN
from moe_det.routing.windows import Windows

SWIN = 'swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'
FFNS = 'backbone.stages.*.blocks.*.ffn'


def window_of(token: int, width: int, size: int) -> tuple[int, int]:
    """Row and column of a token's window."""
    return token // width // size, token % width // size


@pytest.mark.parametrize('map_size', [(4, 6), (5, 7), (2, 2)])
def test_a_window_holds_the_tokens_of_its_place(map_size):
    windows = Windows(3)
    windows.map_size = map_size
    height, width = map_size
    tokens = torch.arange(2.0 * height * width * 4).reshape(2, height * width, 4) + 1
    rows = windows.cut(tokens)
    grid = math.ceil(height / 3), math.ceil(width / 3)
    assert rows.shape == (2 * grid[0] * grid[1], 9, 4) and windows.layout(2).level_rows == (len(rows),)
    for number, (image, row, column) in enumerate(itertools.product(range(2), *map(range, grid))):
        inside = [i for i in range(height * width) if window_of(i, width, 3) == (row, column)]
        own = rows[number][rows[number, :, 0] > 0]
        torch.testing.assert_close(own, tokens[image, inside])
        torch.testing.assert_close(windows.means(rows)[number], tokens[image, inside].mean(0))
    torch.testing.assert_close(windows.join(rows), tokens)
    with pytest.raises(ValueError, match=f'tokens of a map of {height} x {width}, got 3'):
        windows.cut(tokens[:, :3])


@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
def test_all_tokens_of_a_window_run_its_experts(dispatch):
    windows = Windows(3)
    windows.map_size = (4, 5)
    dense = FFN(embed_dims=6, feedforward_channels=12, ffn_drop=0.0)
    moe = MoEFFN(dense, 'ffn', windows, unit='window', num_experts=3, top_k=2, dispatch=dispatch).double().train()
    with torch.no_grad():
        moe.router.gate.fc.weight.normal_(std=3.0)
    x = torch.randn(2, 20, 6, dtype=torch.float64, requires_grad=True)
    expected = []
    for image in x:
        for token in range(20):
            mates = [i for i in range(20) if window_of(i, 5, 3) == window_of(token, 5, 3)]
            logits = moe.router.gate.fc.weight @ image[mates].mean(0) + moe.router.gate.fc.bias
            chosen = logits.argsort(descending=True)[:2]
            weights = logits[chosen].softmax(0)
            outputs = [moe.expert_group.experts[int(e)](image[token]) for e in chosen]
            expected.append(image[token] + sum(w * y for w, y in zip(weights, outputs, strict=True)))
    output, expected = moe(x), torch.stack(expected).reshape(2, 20, 6)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(output)
    (ours,) = torch.autograd.grad(output, x, upstream)
    (theirs,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def with_windows(**moe) -> nn.Module:
    """A small RetinaNet on Swin whose FFNs decide per window."""
    experts = [{'modules': FFNS, 'type': 'MoEFFN', 'unit': 'window', 'num_experts': 3, 'top_k': 1, **moe}]
    return initialise(build(with_experts(family(SWIN).model, experts)))


def test_swin_starts_as_the_dense_one_and_every_window_is_a_row():
    torch.manual_seed(0)
    cfg = family(SWIN).model
    cfg.backbone.drop_path_rate = 0.0
    dense = initialise(build(cfg))
    model = with_windows(weighting='straight_through', copy_noise=0.0)
    missing, unexpected = model.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected and all('.router.' in key for key in missing)
    expected, found = (predictions_of(one, batch_for(one)) for one in (dense, model))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
    records = records_of(model, [3, 5], predictions_of, model, batch_for(model))
    sides = {0: 16, 1: 8, 2: 4, 3: 2}  # of the stages' maps, for images of 64 pixels
    for record in records:
        count = math.ceil(sides[int(record.layer.split('.')[2])] / 7) ** 2
        assert record.unit == 'window' and record.patches.tolist() == [*range(count)] * 2
        assert record.image_ids.tolist() == [3] * count + [5] * count
    assert len(records) == 12
    losses = losses_of(model, batch_for(model))
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    experts = [p for name, p in model.named_parameters() if '.expert_group.' in name]
    assert all(parameter.grad is not None for parameter in experts)


def test_other_ffns_have_no_windows():
    cfg = family('detr/detr_r50_8xb2-150e_coco.py').model
    experts = [{'modules': 'encoder.layers.*.ffn', 'type': 'MoEFFN', 'unit': 'window'}]
    with pytest.raises(MoEConfigError, match=r"^encoder\.layers\.0\.ffn\.unit='window': its tokens lie in no windows"):
        build(with_experts(cfg, experts))
