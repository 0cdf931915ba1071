"""What a detector's own initialisation leaves of experts, gates and noise, and what it gives the experts."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import build, family, initialise, with_experts
from torch import Tensor, nn

from moe_det.layers import MoEConv2d, MoEFFN
from moe_det.routing.router import find_routers

COPY_NOISE = 0.02
SHARING = {'modules': 'decoder.layers.*.ffn', 'type': 'MoEFFN', 'num_experts': 3, 'top_k': 1, 'copies_share': True}
SHARING['constraint'] = {'type': 'KLConstraint'}
SHARDS = {'modules': 'encoder.layers.*.ffn', 'type': 'MoEFFN', 'placement': 'shards', 'shards': 4, 'copies': 2}
SHARDS['constraint'] = {'type': 'KLConstraint'}
# each has an init_weights of its own
DETRS = [
    'detr/detr_r50_8xb2-150e_coco.py',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'dino/dino-4scale_r50_8xb2-12e_coco.py',
]


def detector(name: str, *experts: dict, **changes) -> nn.Module:
    cfg = family(name)
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    return build(with_experts(cfg.model, list(experts)) if experts else cfg.model)


def weights_of_routers(model: nn.Module) -> dict[str, Tensor]:
    """Gates' and noise's parameters by name."""
    return {
        f'{path}.{name}': value.detach().clone()
        for path, router in find_routers(model).items()
        for name, value in router.named_parameters()
    }


def assert_gates_as_built(model: nn.Module) -> None:
    """Initialises a model: gates keep what they were built with, noise its zeros."""
    before = weights_of_routers(model)
    initialise(model)
    after = weights_of_routers(model)
    assert before and after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    assert all(router.noise is None or not router.noise.scale.weight.any() for router in find_routers(model).values())


def assert_common_and_noise(group: nn.Module) -> None:
    """Differences of the experts' matrices are noise of the size that is promised, and no two are the same."""
    for slot, common in enumerate(group.common):
        for name, value in common.named_parameters():
            if value.dim() < 2:
                continue
            differences = [group.experts[slot * group.copies + i].get_parameter(name) for i in range(group.copies)]
            for difference in differences:
                assert (difference.std() / value.std()).item() == pytest.approx(COPY_NOISE, rel=0.15)
            assert not torch.equal(differences[0], differences[1])


@pytest.mark.parametrize('name', DETRS)
def test_detr_family(name):
    model, dense = detector(name, SHARING, SHARDS), initialise(detector(name))
    assert_gates_as_built(model)
    for ours, theirs in zip(model.decoder.layers, dense.decoder.layers, strict=True):
        group = ours.ffn.expert_group
        assert_common_and_noise(group)
        for layer in ('layers.0.0.weight', 'layers.1.weight'):
            drawn, expected = group.common[0].get_parameter(layer), theirs.ffn.get_parameter(layer)
            assert drawn.std().item() == pytest.approx(expected.std().item(), rel=0.05)
    for ours, theirs in zip(model.encoder.layers, dense.encoder.layers, strict=True):
        group = ours.ffn.expert_group
        drawn = {
            name: [e.get_parameter(name) for e in group.experts] for name, _ in group.experts[0].named_parameters()
        }
        for layer in ('layers.0.0.weight', 'layers.1.weight'):  # slices of what the dense layer starts with
            expected = theirs.ffn.get_parameter(layer)
            deviation = torch.cat([p.flatten() for p in drawn[layer]]).std().item()
            assert deviation == pytest.approx(expected.std().item(), rel=0.05)
            assert not torch.equal(drawn[layer][0], drawn[layer][1])
        largest = theirs.ffn.layers[1].bias.abs().max()
        assert sum(drawn['layers.1.bias'][::2]).abs().max() <= 1.3 * largest  # of the first copies


def test_factorised_experts_keep_the_start_of_their_factors():
    factorised = {'modules': 'encoder.layers.*.ffn', 'type': 'MuFFN', 'num_experts': 8}
    model = detector(DETRS[0], factorised)
    factors = {n: p.detach().clone() for n, p in model.named_parameters() if '.of_' in n}
    initialise(model)
    assert factors
    for name, value in factors.items():
        assert torch.equal(model.get_parameter(name), value), name


def test_shards_start_as_the_slices_of_a_whole_ffn_does():
    shards = {**SHARDS, 'shared_expert': True, 'shards': 3, 'copies': 1, 'constraint': None}
    model = detector(DETRS[0], shards)
    initialise(model)
    x = torch.randn(2, 50, 32)
    for layer in model.eval().encoder.layers:
        group, parts = layer.ffn.expert_group, [*layer.ffn.expert_group.experts, layer.ffn.expert_group.shared]
        first = torch.cat([part.layers[0][0].weight for part in parts])
        last = torch.cat([part.layers[1].weight for part in parts], dim=1)
        bound = (6 / (32 + 256)) ** 0.5  # xavier_uniform_ of the whole matrix
        assert 0.97 * bound < first.abs().max() <= bound and 0.97 * bound < last.abs().max() <= bound
        assert len(parts) == group.slices and torch.isfinite(layer.ffn(x)).all()


SWIN = 'swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'
OF_SWIN = {'modules': 'backbone.stages.*.blocks.*.ffn', 'type': 'MoEFFN', 'copies_share': True}
OF_SWIN |= {'num_experts': 2, 'top_k': 1, 'weighting': 'straight_through', 'constraint': {'type': 'KLConstraint'}}


def test_a_backbone_that_draws_every_linear_layer():
    model = detector(SWIN, OF_SWIN)
    assert_gates_as_built(model)
    for path, layer in model.named_modules():
        if isinstance(layer, MoEFFN):
            assert_common_and_noise(layer.expert_group)
            # trunc_normal_ of 0.02, its tails cut at 100 deviations
            assert layer.expert_group.common[0].layers[1].weight.std().item() == pytest.approx(0.02, rel=0.1), path


@pytest.mark.parametrize('shards', [False, True])
def test_a_backbones_checkpoint_stays_as_it_was_loaded(shards, tmp_path):
    moe = dict(OF_SWIN)
    if shards:
        moe = {'modules': moe['modules'], 'type': 'MoEFFN', 'placement': 'shards', 'copies_share': True}
    dense = initialise(detector(SWIN)).eval().backbone
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save({f'backbone.{key}': value for key, value in dense.state_dict().items()}, tmp_path / 'swin.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'swin.pth')}
    changes = {'backbone.init_cfg': init_cfg, 'backbone.convert_weights': False}
    model = detector(SWIN, {**moe, 'copy_noise': 0.0}, **changes).eval()
    assert_gates_as_built(model)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(model.backbone(x), dense(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gates_with_convolutions_keep_their_own_start_in_a_head():
    # FCOS: every convolution of the head by its type; RTMDet: in a loop over modules
    gate = {'gate': {'type': 'ConvGAPGate', 'hidden_channels': 6}, 'copies_share': True, 'num_experts': 3, 'top_k': 1}
    for name, modules in (
        ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'bbox_head.cls_convs.*'),
        ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'bbox_head.cls_convs.*.*'),
    ):
        model = detector(name, {'modules': modules, 'type': 'MoEConv2d', **gate})
        assert_gates_as_built(model)
        layers = [layer for layer in model.modules() if isinstance(layer, MoEConv2d)]
        for layer in layers:
            assert_common_and_noise(layer.expert_group)
            assert layer.expert_group.common[0].weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert layers


def test_a_head_that_names_its_convolutions_reaches_every_expert():
    tower = {'modules': 'bbox_head.inter_convs.*', 'type': 'MoEConv2d', 'num_experts': 3, 'top_k': 1}
    scores = {**tower, 'modules': 'bbox_head.tood_cls', 'shared_expert': True}
    model = initialise(detector('tood/tood_r50_fpn_1x_coco.py', tower, scores))
    dense = initialise(detector('tood/tood_r50_fpn_1x_coco.py'))
    for layer in model.bbox_head.inter_convs:
        experts = layer.conv.expert_group.experts
        assert all(expert.weight.std().item() == pytest.approx(0.01, rel=0.1) for expert in experts)
        assert not torch.equal(experts[0].weight, experts[1].weight)
    group, theirs = model.bbox_head.tood_cls.expert_group, dense.bbox_head.tood_cls
    for expert in group.experts:
        assert torch.equal(expert.bias, theirs.bias)  # the focal prior
        assert expert.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.2)
    assert not group.shared.bias.any()
    with pytest.raises(AttributeError, match='reads the weight of MoEConv2d'):
        model.bbox_head.tood_cls.weight  # noqa: B018 - afterwards there is no single one again


def test_a_copy_initialises_itself():
    model = detector(DETRS[0], SHARING)
    twin = copy.deepcopy(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    initialise(twin)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not torch.equal(
        twin.decoder.layers[0].ffn.expert_group.common[0].layers[1].weight,
        before['decoder.layers.0.ffn.expert_group.common.0.layers.1.weight'],
    )
