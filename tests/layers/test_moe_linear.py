"""Linear layers of box heads with experts against a region-by-region reference."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import batch, build, initialise, losses_of, predictions_of, records_of
from small_regions import LAYER, faster_config
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.layers import MoELinear
from moe_det.routing.regions import Regions

KINDS = {
    'two of four': {'num_experts': 4, 'top_k': 2},
    'one of four': {'num_experts': 4, 'top_k': 1},
    'straight through': {'num_experts': 4, 'top_k': 1, 'weighting': 'straight_through'},
    'shared': {'num_experts': 3, 'top_k': 1, 'shared_expert': True},
    'common part': {'num_experts': 4, 'top_k': 2, 'copies_share': True},
}


def layer(dense: nn.Linear | None = None, **moe) -> MoELinear:
    built = MoELinear(dense or nn.Linear(6, 5), 'roi_head.bbox_head.shared_fcs.0', Regions(), **moe).double()
    with torch.no_grad():
        built.router.gate.fc.weight.normal_(std=3.0)
    return built


@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
@pytest.mark.parametrize('kind', KINDS)
def test_it_is_the_sum_over_each_regions_experts(kind, dispatch):
    moe = layer(**KINDS[kind], dispatch=dispatch).train()
    x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    group, router = moe.expert_group, moe.router
    expected = []
    for row in x:
        logits = router.gate.fc.weight @ row + router.gate.fc.bias
        chosen = logits.argsort(descending=True)[: router.top_k].tolist()
        weights = torch.softmax(logits[chosen], 0) if router.top_k > 1 else torch.softmax(logits, 0)[chosen]
        if router.weighting == 'straight_through':
            weights = [1.0]
        total = torch.zeros(5, dtype=torch.float64)
        for weight, expert in zip(weights, chosen, strict=True):
            of_expert = group.weights_of(expert)
            total = total + weight * (of_expert['weight'] @ row + of_expert['bias'])
        if group.shared is not None:
            total = total + group.shared.weight @ row + group.shared.bias
        expected.append(total)
    output, expected = moe(x), torch.stack(expected)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    parameters = list(group.parameters())
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, parameters, upstream, allow_unused=dispatch == 'all')
    theirs = torch.autograd.grad(expected, parameters, upstream, allow_unused=True)
    for our, their in zip(ours, theirs, strict=True):
        their = torch.zeros_like(our) if their is None else their
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('kind', ['two of four', 'straight through', 'common part'])
def test_copies_of_a_dense_layer_compute_what_it_does(kind):
    dense = nn.Linear(6, 5).double()
    moe = layer(**KINDS[kind], copy_noise=0.0)
    stored = {f'x.{key}': value for key, value in dense.state_dict().items()}
    missing, unexpected = nn.ModuleDict({'x': moe}).load_state_dict(stored, strict=False)
    assert not unexpected and all('.router.' in key for key in missing)
    x = torch.randn(7, 6, dtype=torch.float64)
    torch.testing.assert_close(moe(x), dense(x), rtol=1e-12, atol=1e-12)


def test_without_regions():
    moe = layer(**KINDS['two of four']).train()
    output = moe(torch.zeros(0, 6, dtype=torch.float64))
    assert output.shape == (0, 5)
    output.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in moe.parameters())


def test_rows_are_named_by_image_level_and_region():
    """A copy of the detector names them as well: it has regions of its own."""
    torch.manual_seed(0)
    model = copy.deepcopy(initialise(build(faster_config('roi_head.bbox_head.shared_fcs.*').model))).eval()
    given = []
    extractor = model.roi_head.bbox_roi_extractor
    extractor.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    records = records_of(model, [7, 9], predictions_of, model, batch())
    (regions,) = given
    levels = extractor.map_roi_levels(regions, 4)
    assert len(records) == 2 and len(levels.unique()) > 1
    for record in records:
        assert record.unit == 'roi' and torch.equal(record.levels, levels)
        assert torch.equal(record.image_ids, torch.tensor([7, 9])[regions[:, 0].long()])
        first = int((regions[:, 0] == 0).sum())
        assert record.patches.tolist() == [*range(first), *range(len(regions) - first)]


def test_noise_and_constraints_reach_every_region():
    """And the initialiser of the box head, which visits all modules in its layers, leaves them as they start."""
    torch.manual_seed(0)
    similarity = {'type': 'SampleSimilarityConstraint', 'weight': 0.1}
    model = initialise(build(faster_config(constraint=[{'type': 'KLConstraint'}, similarity]).model))
    router = model.get_submodule(LAYER).router
    steps = []
    router.collected.observe(steps.append)
    assert (router.noise.scale.weight == 0).all()
    rows = []
    model.get_submodule(LAYER).register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    losses = losses_of(model, batch())
    added = router.collect()
    assert set(added) == {'kl', 'similarity'} and [usage.rows.tolist() for usage in steps] == [rows]
    (losses['loss_cls'] + sum(added.values())).backward()
    assert all(parameter.grad is not None for parameter in model.get_submodule(LAYER).parameters())


@pytest.mark.parametrize(
    ('moe', 'message'),
    [
        ({'unit': 'token'}, "unit: unknown value 'token'; the names that exist are: roi"),
        ({'balance_over': 'level'}, "regions are balanced together; use 'all'"),
        ({'mixes': 'kernels'}, 'weights of its own for every region; take it out'),
        ({'experts': 3}, "unknown key 'experts'"),
    ],
)
def test_settings_that_cannot_be_built_name_the_layer_and_the_key(moe, message):
    with pytest.raises(MoEConfigError, match=r'^roi_head\.bbox_head\.shared_fcs\.0') as error:
        layer(**moe)
    assert message in str(error.value)


def test_linear_layers_elsewhere_have_no_regions():
    cfg = faster_config('**.fc*')
    cfg.model.experts[0]['modules'] = 'backbone.layer1'
    with pytest.raises(MoEConfigError, match='MoELinear takes linear layers of box heads') as error:
        build(cfg.model)
    assert "'roi_head.bbox_head.shared_fcs.*' (2)" in str(error.value)
