"""MoEConv2d in the slot of a convolution."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import BaseModule, normal_init
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEConv2d
from moe_det.routing.collection import attach_collection

MOE = {'type': 'MoEConv2d', 'num_experts': 4, 'top_k': 2}

# arguments of a convolution, and the size of the map
CONVS = [
    {'kernel_size': 3, 'padding': 1},
    {'kernel_size': 1},
    {'kernel_size': 3, 'stride': 2, 'padding': 1},
    {'kernel_size': (1, 3), 'padding': (0, 1), 'bias': False},
    {'kernel_size': 3, 'padding': 2, 'dilation': 2},
    {'kernel_size': 3, 'padding': 1, 'groups': 2},
    {'kernel_size': 5, 'padding': 2, 'padding_mode': 'reflect'},
]


def expected_output(layer: MoEConv2d, x: torch.Tensor) -> torch.Tensor:
    """One image after the other: the sorted top-2 of the gate's linear layer, softmax, convolutions."""
    outputs = []
    for image in x:
        logits = F.linear(image.mean((1, 2)), layer.router.gate.fc.weight, layer.router.gate.fc.bias)
        kept = logits.sort(descending=True, stable=True).indices[: layer.router.top_k]
        weights = torch.softmax(logits[kept], 0)
        experts = [layer.expert_group.experts[e] for e in kept]
        outputs.append(sum(w * expert(image[None])[0] for w, expert in zip(weights, experts, strict=True)))
    return torch.stack(outputs)


@pytest.mark.parametrize('settings', CONVS, ids=str)
def test_it_takes_the_arguments_of_a_convolution(settings):
    plain = nn.Conv2d(4, 6, **settings)
    layer = MoEConv2d(4, 6, **settings).double().eval()
    x = torch.randn(3, 4, 8, 9, dtype=torch.float64)
    output = layer(x)
    assert output.shape == plain.double()(x).shape
    torch.testing.assert_close(output, expected_output(layer, x), rtol=1e-12, atol=1e-12)
    for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'transposed'):
        assert getattr(layer, name) == getattr(plain, name), name
    assert layer.output_padding == (0, 0)
    assert all((expert.bias is None) == (plain.bias is None) for expert in layer.expert_group.experts)


def test_it_takes_positional_arguments_in_the_order_of_a_convolution():
    layer = MoEConv2d(4, 6, 3, 2, 1, 1, 2, False, 'zeros')
    expert = layer.expert_group.experts[0]
    assert (expert.stride, expert.padding, expert.dilation, expert.groups) == ((2, 2), (1, 1), (1, 1), 2)
    assert expert.bias is None


@pytest.mark.parametrize(
    'settings',
    [
        {'padding': 1},
        {'padding': 1, 'norm_cfg': {'type': 'BN'}},
        {'padding': 1, 'norm_cfg': {'type': 'GN', 'num_groups': 2}, 'act_cfg': None},
        {'padding': 1, 'norm_cfg': {'type': 'SyncBN'}},  # outside the experts: allowed
        {'stride': 2, 'act_cfg': {'type': 'LeakyReLU', 'negative_slope': 0.2}},
        {'padding': 1, 'bias': False, 'inplace': False},
        {'padding': 2, 'dilation': 2, 'groups': 2, 'bias': True},
        {'padding': 1, 'padding_mode': 'reflect', 'act_cfg': {'type': 'Sigmoid'}},
        {'padding': 1, 'padding_mode': 'circular'},
        {'padding': 1, 'norm_cfg': {'type': 'BN'}, 'order': ('norm', 'act', 'conv')},
    ],
    ids=str,
)
def test_conv_module_holds_it(settings):
    module = ConvModule(4, 4, 3, conv_cfg=MOE, **settings).eval()
    plain = ConvModule(4, 4, 3, **settings).eval()
    x = torch.randn(2, 4, 8, 9)
    if settings.get('norm_cfg', {}).get('type') != 'SyncBN':
        # the plain module with one expert's weights is the module whose gate and experts agree on it
        state = {name.removeprefix('conv.'): v for name, v in plain.state_dict().items() if name.startswith('conv.')}
        for expert in module.conv.expert_group.experts:
            expert.load_state_dict(state)
        torch.testing.assert_close(module(x), plain(x))
    for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'transposed', 'groups'):
        assert getattr(module, name) == getattr(plain, name), name
    assert module.output_padding == (0, 0)
    assert (module.conv.expert_group.experts[0].bias is None) == (plain.conv.bias is None)


def test_each_config_builds_its_own():
    first, second = build_conv_layer(MOE, 4, 4, 3), build_conv_layer(MOE, 4, 4, 3)
    assert not torch.equal(first.expert_group.experts[0].weight, second.expert_group.experts[0].weight)
    assert MOE == {'type': 'MoEConv2d', 'num_experts': 4, 'top_k': 2}  # the config is not changed


class Head(BaseModule):
    """A head of mmdet: towers of ConvModules under one init_cfg."""

    def __init__(self, conv_cfg, init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.tower = nn.ModuleList([ConvModule(64, 64, 3, padding=1, conv_cfg=conv_cfg)])
        self.direct = build_conv_layer(conv_cfg, 64, 64, 3, padding=1)


def deviations(head: Head) -> list[float]:
    layers = [head.tower[0].conv, head.direct]
    return [expert.weight.std().item() for layer in layers for expert in layer.expert_group.every_expert]


@pytest.mark.parametrize('initialised', [False, True])
def test_experts_start_as_conv_module_starts_a_convolution(initialised):
    # kaiming, fan out, ReLU: normal with deviation sqrt(2 / (C' * 9)), and zero bias
    head = Head({**MOE, 'shared_expert': True})
    if initialised:
        head.init_weights()
    assert deviations(head) == pytest.approx([math.sqrt(2 / (64 * 9))] * 10, rel=0.03)
    plain = ConvModule(64, 64, 3, padding=1).conv
    assert plain.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.03)
    for layer in (head.tower[0].conv, head.direct):
        weights = [expert.weight for expert in layer.expert_group.experts]
        assert not torch.equal(weights[0], weights[1])
        assert all((expert.bias == 0).all() for expert in layer.expert_group.experts)


@pytest.mark.parametrize('shared', [1, 2])
def test_a_heads_own_initialisation_reaches_the_experts_and_stays(shared):
    head = Head({**MOE, 'shared_expert': shared}, init_cfg={'type': 'Normal', 'layer': 'Conv2d', 'std': 0.5})
    head.init_weights()
    assert deviations(head) == pytest.approx([0.5] * 2 * (4 + shared), rel=0.03)


def test_an_initialiser_that_asks_for_the_weight_reaches_every_expert():
    layer = MoEConv2d(4, 4, 3, padding=1, num_experts=4, top_k=2, shared_expert=2)
    with layer.starting():
        torch.nn.init.constant_(layer.weight, 3.0)
    assert [expert.weight.unique().tolist() for expert in layer.expert_group.every_expert] == [[3.0]] * 6


@pytest.mark.parametrize(
    ('conv', 'message'),
    [
        (dict(stride=2), 'a convolution with stride'),
        (dict(stride=(1, 2)), 'a convolution with stride'),
        (dict(padding_mode='circular'), "padding_mode='circular'"),
    ],
)
def test_strides_and_borders_that_are_joined_do_not_go_with_patches(conv, message):
    with pytest.raises(MoEConfigError, match=f"unit='patch' does not fit {message}"):
        MoEConv2d(4, 4, 3, padding=1, **conv, unit='patch', grid=2)
    MoEConv2d(4, 4, 3, padding=1, **conv)


def test_a_convolution_that_shrinks_patches_says_so():
    layer = MoEConv2d(4, 4, 3, unit='patch', grid=2)
    with pytest.raises(ValueError, match='experts that keep the spatial size'):
        layer(torch.randn(1, 4, 8, 8))


REACHES = [
    dict(kernel_size=3, padding=1, stride=(1, 1)),
    dict(kernel_size=1),
    dict(kernel_size=5, padding=2),
    dict(kernel_size=7, padding=3),
    dict(kernel_size=3, padding=2, dilation=2),
    dict(kernel_size=(1, 5), padding=(0, 4), dilation=(1, 2)),
    dict(kernel_size=2, padding=1, dilation=2),
    dict(kernel_size=5, padding=2, padding_mode='replicate'),
    dict(kernel_size=4, padding='same'),
]


@pytest.mark.parametrize('size', [(8, 8), (17, 13), (7, 5), (2, 9), (1, 1)])
@pytest.mark.parametrize('conv', REACHES, ids=str)
def test_patches_with_equal_experts_are_the_plain_convolution(size, conv):
    layer = MoEConv2d(4, 6, **conv, unit='patch', grid=3).double()
    for expert in layer.expert_group.experts:
        expert.load_state_dict(layer.expert_group.experts[0].state_dict())
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.expert_group.experts[0](x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_decision_in_full_precision(dtype):
    layer = MoEConv2d(4, 4, 3, padding=1, constraint=[{'type': 'KLConstraint'}, {'type': 'ZLossConstraint'}]).train()
    seen = []
    layer.router.decided.observe(lambda routing, layout: seen.append(routing))
    with torch.autocast('cpu', dtype=dtype):
        output = layer(torch.randn(3, 4, 6, 6))
        losses = layer.router.collect()
    assert output.dtype == dtype
    assert seen[0].logits.dtype == seen[0].log_weights.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    (output.float().sum() + sum(losses.values())).backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


LEVELS = {'num_experts': 3, 'top_k': 1, 'balance_over': 'level', 'constraint': {'type': 'SelectionBiasConstraint'}}


def test_a_tower_convolution_counts_its_levels():
    constraint = {'type': 'RelativeImportanceConstraint'}
    layer = MoEConv2d(3, 3, 1, num_levels=3, **{**LEVELS, 'constraint': constraint}).train()
    layer.router.gate.load_state_dict({'fc.weight': 50 * torch.eye(3), 'fc.bias': torch.zeros(3)})
    relative = layer.router.constraints['relative_importance'].relative
    for _ in range(2):
        relative.zero_()
        for level in range(3):
            x = torch.zeros(2, 3, 4, 4)
            x[:, level] = 1.0  # level l goes to expert l
            layer(x)
        layer.router.collect()
        # I = (w, 0, 0) on its level: (w - w/3) / (w/3) = 2 for the used expert, -1 for the others
        torch.testing.assert_close(relative, 3 * torch.eye(3) - 1)


def test_it_can_be_copied_saved_and_loaded_in_the_middle_of_a_step():
    constraints = [{'type': 'KLConstraint'}, {'type': 'MeanImportanceConstraint'}]
    layer = MoEConv2d(4, 4, 3, constraint=constraints, noise=True).train()
    x = torch.randn(3, 4, 6, 6)
    layer(x)
    twin = copy.deepcopy(layer)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = MoEConv2d(4, 4, 3, constraint=constraints, noise=True).train()
    loaded.load_state_dict(torch.load(file))
    layer.router.start_step()
    expected = layer(x)
    assert torch.equal(twin(x), expected)  # the same draw of noise
    assert torch.equal(loaded(x), expected)


@pytest.mark.parametrize('shape', [(0, 4, 6, 6), (0, 4, 1, 1)])
@pytest.mark.parametrize('training', [True, False])
def test_no_images(training, shape):
    # a head over regions of interest meets batches without any
    layer = MoEConv2d(4, 5, 3, padding=1, constraint={'type': 'KLConstraint'}).train(training)
    output = layer(torch.zeros(shape))
    assert output.shape == (0, 5, *shape[2:])
    if training:
        (output.sum() + sum(layer.router.collect().values())).backward()
        assert all(torch.isfinite(p.grad).all() for p in layer.expert_group.parameters())


@pytest.mark.parametrize(
    'settings',
    [{}, {'unit': 'patch', 'grid': 2}, {'balance_over': 'level', 'num_levels': 3}, {'shared_expert': True, 'top_k': 1}],
    ids=str,
)
def test_running_all_experts_compiles_as_one_graph(settings):
    torch._dynamo.reset()
    layer = MoEConv2d(
        4, 4, 3, padding=1, dispatch='all', constraint={'type': 'SelectionBiasConstraint'}, **settings
    ).eval()
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        for _ in range(12):
            x = torch.randn(2, 4, 6, 5)
            torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-6)


def test_another_number_of_calls_than_levels_is_refused_in_training():
    layer = MoEConv2d(3, 3, 1, num_levels=5, **LEVELS).train()
    for _ in range(4):
        layer(torch.randn(2, 3, 4, 4))
    with pytest.raises(MoEConfigError, match=r'MoEConv2d\(3, 3\): num_levels=5, but a step brings 4\.'):
        layer.router.collect()
    for _ in range(5):
        layer(torch.randn(2, 3, 4, 4))
    layer.router.collect()


class FourLevels(nn.Module):
    """A detector whose one layer serves four maps in each forward."""

    def __init__(self, layer: MoEConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, mode: str = 'predict') -> list[torch.Tensor]:
        return [self.layer(x) for _ in range(4)]


def test_in_evaluation_every_forward_begins_at_the_first_level():
    # five levels with a bias of their own, of which a forward brings four
    model = FourLevels(MoEConv2d(3, 3, 1, num_levels=5, **LEVELS)).eval()
    model.layer.router.constraints['selection_bias'].bias.copy_(torch.arange(15.0).reshape(5, 3) % 4)
    attach_collection(model)
    x = torch.randn(1, 3, 4, 4)
    first = model(x, mode='predict')
    for _ in range(3):
        again = model(x, mode='predict')
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    assert not all(torch.equal(y, first[0]) for y in first)


def test_a_detector_that_computes_with_the_weight_is_told_what_to_do():
    class Decomposition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduction = ConvModule(4, 4, 1, conv_cfg=MOE)

        def forward(self) -> torch.Tensor:
            return self.reduction.conv.weight.sum()

    with pytest.raises(MoEConfigError, match=r'Decomposition reads the weight of MoEConv2d\(4, 4\).*WithExperts'):
        Decomposition()()
    layer = MoEConv2d(4, 6, 3, padding=1, padding_mode='reflect')
    assert layer.padding_mode == 'reflect'
    normal_init(layer, std=9.0)  # asks whether there is a weight
    assert all(expert.weight.std() < 1 for expert in layer.expert_group.experts)
    with pytest.raises(AttributeError, match='no attribute .groupss'):
        layer.groupss  # noqa: B018
