"""Experts that choose rows, against a loop over images, experts and patches (pMoE, arXiv 2306.04073)."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import batch, detector, head, losses_of, pyramid, records_of
from torch import Tensor, nn

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEBlock, MoEConv2d, MoESettings
from moe_det.models import MoEResNet
from moe_det.routing import RowLayout, find_routers
from moe_det.routing.expert_choice import ExpertChoice
from moe_det.routing.intervention import Intervention, intervene

MOE = {'num_experts': 3, 'top_k': 3, 'unit': 'patch', 'grid': 3, 'rows_per_expert': 2, 'shared_expert': True}
EXACT = {'rtol': 1e-12, 'atol': 1e-12}


def by_loop(logits: list[list[float]], blocks: list[tuple[int, int]], chosen: int) -> list[list[float]]:
    """Weight of every row and expert in plain Python; 0 where the expert did not take the row."""
    weights = [[0.0] * len(logits[0]) for _ in logits]
    first = 0
    for images, rows in blocks:
        for _ in range(images):
            own = range(first, first + rows)
            for expert in range(len(logits[0])):
                total = sum(math.exp(logits[row][expert]) for row in own)
                for row in sorted(own, key=lambda row: -logits[row][expert])[:chosen]:
                    weights[row][expert] = math.exp(logits[row][expert]) / total
            first += rows
    return weights


def layer_of(**changes) -> MoEConv2d:
    torch.manual_seed(0)
    layer = MoEConv2d(4, 5, 3, padding=1, **{**MOE, **changes}).double()
    nn.init.normal_(layer.router.gate.fc.weight, std=2)
    return layer


def maps(images: int = 3) -> Tensor:
    return torch.randn(images, 4, 9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize('chosen', [1, 2, 5, 20])
def test_choice_and_weights_are_those_of_a_loop(chosen):
    layout = RowLayout('patch', 2, (9, 4, 1))
    logits = torch.randn(28, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    indices, log_weights = ExpertChoice(chosen, layout)(logits, logits, 3)
    spread = torch.zeros(28, 4, dtype=torch.float64).scatter(1, indices, log_weights.exp())
    expected = torch.tensor(by_loop(logits.tolist(), layout.blocks(), chosen), dtype=torch.float64)
    torch.testing.assert_close(spread[:, :3], expected, **EXACT)
    counts = (spread[:18, :3] > 0).reshape(2, 9, 3).sum(1)
    assert (counts == min(chosen, 9)).all()  # no expert is idle in any image


def test_a_row_keeps_its_largest_values():
    # expert 0 takes rows 0 and 1, expert 1 rows 0 and 1 as well; with K = 1 each row keeps the larger value
    logits = torch.tensor([[3.0, 5.0], [2.0, 1.0], [0.0, 0.0]]).double()
    indices, log_weights = ExpertChoice(2, RowLayout('patch', 1, (3,)))(logits, logits, 1)
    assert indices.tolist() == [[1], [0], [2]]
    expected = [logits[:, 1].softmax(0)[0], logits[:, 0].softmax(0)[1], 0.0]
    torch.testing.assert_close(log_weights.exp()[:, 0], torch.tensor(expected).double())


@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
def test_a_layer_is_the_shared_expert_and_the_chosen_ones(dispatch):
    layer = layer_of(dispatch=dispatch).eval()
    x = maps()
    (record,) = records_of(layer, range(3), layer, x)
    expected = layer.expert_group.shared(x)
    outputs = [expert(x) for expert in layer.expert_group.experts]
    for image in range(3):
        for patch in range(9):
            y, column = divmod(patch, 3)
            cell = (image, slice(None), slice(3 * y, 3 * y + 3), slice(2 * column, 2 * column + 2))
            for expert in range(3):
                expected[cell] += record.weights[9 * image + patch, expert] * outputs[expert][cell]
    torch.testing.assert_close(layer(x), expected, **EXACT)
    assert ((record.weights > 0).sum(0) == 6).all()  # two patches of each of three images
    assert (record.weights.sum(1) == 0).any()


def test_images_do_not_influence_each_other_also_in_training():
    layer = layer_of().train()
    x = maps()
    spoilt = x.clone()
    spoilt[1] = float('nan')
    whole = layer(x)
    torch.testing.assert_close(layer(x[:1]), whole[:1], **EXACT)
    torch.testing.assert_close(layer(spoilt)[[0, 2]], whole[[0, 2]], **EXACT)


def test_every_expert_and_the_gate_learn():
    layer = layer_of().train()
    layer(maps(1)).square().sum().backward()
    for expert in layer.expert_group.experts:
        assert expert.weight.grad.abs().sum() > 0
    assert (layer.router.gate.fc.weight.grad.abs().sum(1) > 0).all()


def test_experts_can_be_forced_and_knocked_out():
    layer = layer_of().eval()
    model = nn.ModuleDict({'layer': layer})
    for intervention, check in (
        (Intervention(knocked_out=1), lambda weights, own: (weights[:, 1] == 0).all() and (own[:, 1] > 0).any()),
        (Intervention(forced=2), lambda weights, own: torch.allclose(weights[:, 2], own.sum(1))),
        (Intervention(top_k=1), lambda weights, own: torch.equal(weights.amax(1), own.amax(1))),
    ):
        records = []
        for changes in ({}, {'layer': intervention}):
            with intervene(model, changes):
                records.append(records_of(model, range(3), layer, maps())[0].weights)
        assert check(records[1], records[0])


def test_a_retina_head_trains_and_every_level_has_its_own_choice():
    moe = {**MOE, 'grid': 2, 'rows_per_expert': 1, 'placement': 'last'}
    built = head(moe).eval()
    for record in records_of(built, [0, 1], built, tuple(pyramid())):
        for level in range(5):
            for image in range(2):
                at = (record.levels == level) & (record.image_ids == image)
                assert ((record.weights[at] > 0).sum(0) == 1).all()
    model = detector(moe)
    losses = losses_of(model, batch())
    assert not any('moe' in key for key in losses) and all(torch.isfinite(loss).all() for loss in losses.values())
    sum(losses.values()).backward()
    for router in find_routers(model).values():
        assert router.gate.fc.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: MoEBlock(8, rows_per_expert=2), "rows_per_expert=2.*unit='level' has one.*'patch'"),
        (lambda: MoEBlock(8, **{**MOE, 'rows_per_expert': 0}), 'rows_per_expert=0: expected an integer >= 1'),
        (lambda: MoEBlock(8, **{**MOE, 'rows_per_expert': 10}), 'rows_per_expert=10: grid=3 .* at most 9 patches'),
        (lambda: layer_of(shared_expert=False), 'no output here; add shared_expert=True'),
        (lambda: layer_of(mixes='kernels'), 'rows_per_expert=2: mixed kernels'),
        (lambda: layer_of(weighting='entmax'), 'rows_per_expert=2: .*take shards and weighting out'),
        (lambda: head({**MOE}), "no class probability; use class_mixture='logits'"),
        (lambda: head({**MOE, 'placement': 'tower', 'shared_expert': False}), 'add shared_expert=True'),
        (
            lambda: head(dict(placement='shards', shards=1, unit='patch', grid=2, rows_per_expert=1)),
            'rows_per_expert=1: every row runs one copy',
        ),
        (
            lambda: MoEResNet(18, dict(MOE, stages=(1,), shared_expert=False), small_images=True),
            'add shared_expert=True',
        ),
    ],
)
def test_what_cannot_be_built_is_refused(build, message):
    with pytest.raises(MoEConfigError, match=message):
        build()


def test_a_block_needs_no_shared_expert_and_cost_counts_the_patches_that_run():
    MoEBlock(8, **{**MOE, 'shared_expert': False})
    settings = MoESettings.from_config(MOE, 'moe')
    assert settings.experts_run == pytest.approx(3 * 2 / 9 + 1)
    assert MoESettings(num_experts=4, top_k=2, shared_expert=2).experts_run == 4
