"""MoEResNet against mmdet's ResNet and against an image-by-image reference."""

from __future__ import annotations

import logging

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.runner import load_checkpoint
from small_models import blocks_after, log_lines, mmdet_scope, spread_weights
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.models import MoEResNet
from moe_det.routing import find_routers
from moe_det.routing.collection import collect_losses
from moe_det.routing.experts import ExpertGroup

KL = dict(type='KLConstraint', weight=0.25)
TWO_OF_FOUR = dict(num_experts=4, top_k=2)


def resnet(depth: int = 18, moe: dict | None = None, training: bool = False, **kwargs) -> nn.Module:
    """A ResNet with 8 base channels, plain or with experts, whose norms do not pass everything on unchanged."""
    kwargs = {'base_channels': 8, **kwargs}
    with mmdet_scope():
        built = ResNet(depth, **kwargs) if moe is None else MoEResNet(depth, moe=moe, **kwargs)
    generator = torch.Generator().manual_seed(depth)
    spread_weights(built)
    for name, values in built.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    built.train(training)
    return built


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    """Random images of different brightness."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, size, size, generator=generator) * torch.linspace(0.5, 2, count).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('depth, stages', [(18, (1,)), (18, (2, 4)), (34, (3,)), (50, (1, 4)), (101, (2,))])
def test_stages_keep_their_place_and_shape(depth, stages, residual):
    plain = resnet(depth, base_channels=4)
    moe = resnet(depth, dict(**TWO_OF_FOUR, stages=stages, residual=residual), base_channels=4)
    assert sorted(find_routers(moe)) == [f'layer{stage}' for stage in stages]
    for stage in set(range(1, 5)) - set(stages):
        ours, theirs = (m.get_submodule(f'layer{stage}').state_dict() for m in (moe, plain))
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    with torch.no_grad():
        assert [y.shape for y in moe(images())] == [y.shape for y in plain(images())]
    for stage in stages:
        skip = getattr(moe, f'layer{stage}').skip
        if not residual:
            assert skip is None
        elif stage == 1 and depth < 50:
            assert isinstance(skip, nn.Identity)
        else:
            assert [type(m) for m in skip] == [nn.Conv2d, nn.BatchNorm2d]


@pytest.mark.parametrize('top_k', [1, 2])
@pytest.mark.parametrize('residual', [False, True])
def test_a_stage_is_the_weighted_sum_of_its_experts(residual, top_k):
    moe = resnet(18, dict(num_experts=4, top_k=top_k, stages=(2,), residual=residual)).double()
    stage, x = moe.layer2, spread_maps(8)
    gate = stage.router.gate.fc
    chosen_experts = set()
    for n in range(len(x)):
        row = x[n : n + 1]
        logits = gate(row.mean((2, 3)))[0]
        chosen = logits.argsort(descending=True)[:top_k].tolist()
        weights = logits[chosen].softmax(0) if top_k > 1 else logits.softmax(0)[chosen]
        expected = sum(w * stage.expert_group.experts[e](row) for w, e in zip(weights, chosen, strict=True))
        if residual:
            expected = expected + stage.skip(row)
        torch.testing.assert_close(stage(x)[n : n + 1], expected)
        chosen_experts.update(chosen)
    assert len(chosen_experts) >= 2


def spread_maps(channels: int, count: int = 6) -> torch.Tensor:
    """Random maps whose means differ, so that rows are routed differently."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, channels, 8, 8, generator=generator, dtype=torch.float64) + 2 * torch.randn(
        count, channels, 1, 1, generator=generator, dtype=torch.float64
    )


@pytest.mark.parametrize('stages', [(4,), (1, 2, 3, 4)])
def test_copies_of_a_plain_resnet50_compute_what_it_does(stages):
    plain = resnet(50)
    moe = resnet(50, dict(**TWO_OF_FOUR, stages=stages, copy_noise=0))
    spread_weights(moe, seed=8)
    with log_lines() as lines:
        missing, unexpected = moe.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all('.router.' in key for key in missing)
    tensors = [len(getattr(plain, f'layer{stage}').state_dict()) for stage in stages]
    assert [line.getMessage() for line in lines] == [
        f'layer{stage}: {count} of {count} dense tensors copied into 4 experts with relative noise 0'
        for stage, count in zip(stages, tensors, strict=True)
    ]
    with torch.no_grad():
        for ours, theirs in zip(moe(images()), plain(images()), strict=True):
            assert theirs.std() > 1e-3
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_pretrained_weights_reach_every_expert(tmp_path):
    plain = resnet(50)
    torch.save(plain.state_dict(), tmp_path / 'resnet50.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet50.pth'))
    with mmdet_scope():
        moe = MoEResNet(50, base_channels=8, init_cfg=init_cfg, moe=dict(**TWO_OF_FOUR, stages=(4,), copy_noise=0.1))
        moe.init_weights()
    assert torch.equal(moe.conv1.weight, plain.conv1.weight)
    dense = plain.layer4[1].conv2.weight
    copies = [e[1].conv2.weight for e in moe.layer4.expert_group.experts]
    for i, copy in enumerate(copies):
        assert ((copy - dense).std() / dense.std()).item() == pytest.approx(0.1, rel=0.1)
        assert torch.equal(moe.layer4.expert_group.experts[i][1].bn2.running_var, plain.layer4[1].bn2.running_var)
        assert not any(torch.equal(copy, other) for other in copies[:i])


def test_narrow_experts_warn_of_a_checkpoint_that_does_not_fit(tmp_path):
    torch.save(resnet(18).state_dict(), tmp_path / 'resnet18.pth')
    moe = resnet(18, dict(**TWO_OF_FOUR, stages=(4,)))
    before = {key: value.clone() for key, value in moe.layer4.state_dict().items()}
    with log_lines() as lines:
        load_checkpoint(moe, str(tmp_path / 'resnet18.pth'), map_location='cpu')
    (warning,) = [line for line in lines if line.getMessage().startswith('layer4:')]
    assert warning.levelno == logging.WARNING
    named = 'layer4.0.conv1.weight: shape (64, 32, 3, 3), an expert has (22, 32, 3, 3)'
    assert f'not copied: {named}' in warning.getMessage()
    kept = 'expert_group.experts.0.0.conv1.weight'
    assert torch.equal(moe.layer4.state_dict()[kept], before[kept])
    moe(images())


def test_zero_initialised_blocks_are_so_in_every_expert():
    for depth, last in ((18, 'bn2'), (50, 'bn3')):
        moe = resnet(depth, dict(**TWO_OF_FOUR, stages=(3,), shared_expert=True))
        with mmdet_scope():
            moe.init_weights()
        group = moe.layer3.expert_group
        for stage in (moe.layer2, *group.experts, group.shared):
            for block in stage:
                assert block.get_parameter(f'{last}.weight').abs().max() == 0
                assert block.get_parameter('bn1.weight').abs().min() == 1
        weights = [e[0].conv1.weight for e in group.experts]
        fan_out = weights[0].shape[0] * weights[0][0, 0].numel()
        assert weights[0].std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.2)  # Kaiming
        assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize('frozen_stages', [-1, 1, 4])
def test_frozen_stages_are_frozen_with_their_experts(frozen_stages):
    moe = resnet(18, dict(**TWO_OF_FOUR, stages=(1, 4), constraint=KL), frozen_stages=frozen_stages, training=True)
    outputs = moe(images())
    losses = collect_losses(list(find_routers(moe).values()))
    total = sum(y.sum() for y in outputs) + sum(losses.values())
    assert total.requires_grad == (frozen_stages < 4)
    if total.requires_grad:
        total.backward()
    assert len(losses) == (0 if frozen_stages == 4 else 1)
    for stage in range(1, 5):
        for name, parameter in getattr(moe, f'layer{stage}').named_parameters():
            assert parameter.requires_grad == (stage > frozen_stages), name
            assert (parameter.grad is not None) == (stage > frozen_stages), name
    assert moe.layer1.router.training == (frozen_stages < 1)


@pytest.mark.parametrize('norm_eval', [False, True])
def test_norm_eval_holds_for_experts(norm_eval):
    moe = resnet(18, dict(**TWO_OF_FOUR, stages=(3,)), norm_eval=norm_eval, training=True)
    norms = [m for m in moe.layer3.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4 * 6 and all(norm.training != norm_eval for norm in norms)
    before = {key: value.clone() for key, value in moe.layer3.named_buffers()}
    moe(images(4))
    moved = {key for key, value in moe.layer3.named_buffers() if not torch.equal(value, before[key])}
    assert bool(moved) != norm_eval


@pytest.mark.parametrize(
    'moe, kwargs',
    [
        (dict(num_experts=3, top_k=2, stages=(1, 3), constraint=KL), {}),
        (dict(num_experts=3, top_k=1, stages=(2,), constraint=[KL, dict(type='RelativeImportanceConstraint')]), {}),
        # here the router lies inside the checkpointed block and runs twice
        (None, dict(plugins=[blocks_after(3, 4, num_experts=3, top_k=2, constraint=KL)])),
    ],
    ids=['stages', 'hard', 'plugin'],
)
@pytest.mark.filterwarnings('ignore:torch.utils.checkpoint.*use_reentrant')
def test_activation_checkpointing_changes_nothing(moe, kwargs):
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)  # the seed of the gate noise
        built = resnet(50, moe, training=True, with_cp=with_cp, **kwargs).double()
        steps = []
        for _ in range(2):
            built.zero_grad()
            outputs = built(images(3).double())
            losses = collect_losses(list(find_routers(built).values()))
            assert losses
            (sum(y.square().mean() for y in outputs) + sum(losses.values())).backward()
            steps.append({**losses, **{f'out{i}': y for i, y in enumerate(outputs)}})
            steps.append({name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None})
        results.append([*steps, built.state_dict()])
    for plain, checkpointed in zip(*results, strict=True):
        assert plain.keys() == checkpointed.keys() and len(plain) > 0
        for key, value in plain.items():
            torch.testing.assert_close(checkpointed[key], value, msg=lambda text, key=key: f'{key}: {text}')
    gates = [key for key in results[0][1] if 'gate' in key]
    assert gates and all(results[0][1][key].abs().max() > 0 for key in gates if key.endswith('weight'))


@pytest.mark.parametrize('depth', [18, 50])
def test_an_expert_with_one_row_of_one_pixel_trains(depth):
    # 32x32 images: the last stage's map is one pixel; two images that go to different experts leave each one value
    moe = resnet(depth, dict(num_experts=2, top_k=1, stages=(4,)), norm_eval=False, training=True)
    gate = moe.layer4.router.gate.fc
    with torch.no_grad():
        features = moe.layer3(moe.layer2(moe.layer1(moe.maxpool(moe.relu(moe.norm1(moe.conv1(images(2, 32))))))))
        difference = features[0].mean((1, 2)) - features[1].mean((1, 2))
        gate.weight.copy_(torch.stack([difference, -difference]))
        gate.bias.copy_(-gate.weight @ features.mean((0, 2, 3)))
    chosen = []
    moe.layer4.expert_group.register_forward_pre_hook(lambda _, args: chosen.extend(args[1].indices.flatten().tolist()))
    norm = moe.layer4.expert_group.experts[0][0].norm2
    stored = {name: value.clone() for name, value in norm.named_buffers()}
    seen = []
    norm.register_forward_hook(lambda module, args, output: seen.append((args[0], output.clone())))
    y = moe(images(2, 32))[3]
    assert sorted(chosen) == [0, 1] and y.shape[2:] == (1, 1)
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in moe.layer4.parameters())
    # running statistics, and they stay as they are
    ((given, normed),) = seen
    assert given.shape[0] == 1
    values = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, weight, bias = (value.reshape(-1, 1, 1) for value in values)
    torch.testing.assert_close(normed[0], (given[0] - mean) / (variance + norm.eps).sqrt() * weight + bias)
    assert all(torch.equal(value, stored[name]) for name, value in norm.named_buffers())


def test_other_slices_use_the_statistics_of_their_rows():
    moe = resnet(18, dict(num_experts=2, top_k=1, stages=(4,)), norm_eval=False)
    expert = moe.layer4.expert_group.experts[0].train()
    norm = expert[0].norm1
    plain = nn.BatchNorm2d(norm.num_features)
    plain.load_state_dict(norm.state_dict())
    for shape in ((2, 1, 1), (1, 1, 2), (3, 2, 2)):
        x = torch.randn(shape[0], norm.num_features, *shape[1:])
        assert torch.equal(norm(x), plain(x))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(
    'moe, kwargs, message',
    [
        (dict(stages=()), {}, r'backbone\.moe\.stages=\(\): expected at least one stage number from 1 to 4'),
        ({}, {}, r'backbone\.moe\.stages=\(\)'),
        (dict(stages=(5,)), {}, r'backbone\.moe\.stages=\(5,\)'),
        (dict(stages=(0,)), {}, r'backbone\.moe\.stages=\(0,\)'),
        (dict(stages=(True,)), {}, r'backbone\.moe\.stages=\(True,\)'),
        (dict(stages=4), {}, r'backbone\.moe\.stages=4'),
        (dict(stages=(3, 3)), {}, r'backbone\.moe\.stages=\(3, 3\)'),
        (
            dict(stages=(4,)),
            dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0,)),
            r'from 1 to 3',
        ),
        (dict(stages=(2,), unit='patch', grid=2), {}, r"backbone\.moe \(stage 2\).*unit='patch'.*stride 2"),
        (dict(stages=(2,), residual='no'), {}, r"backbone\.moe\.residual='no': expected True or False"),
        (dict(stages=(2,), placement='last'), {}, r"backbone\.moe: unknown key 'placement'"),
        (dict(stages=(2,), width=-1), {}, r'backbone\.moe \(stage 2\)\.width=-1'),
        (dict(stages=(2,), top_k=9), {}, r'backbone\.moe\.top_k=9'),
        (dict(stages=(2,)), dict(norm_cfg=dict(type='SyncBN')), r"backbone\.moe: norm_cfg type 'SyncBN'"),
        (dict(stages=(2,)), dict(depth=19), r'backbone\.depth: unknown depth 19.*18'),
        (None, {}, r'backbone\.moe=None: expected a dict'),
        (dict(convs=('steam',)), {}, r"backbone\.moe\.convs=\('steam',\): expected a tuple of 'stem' and stage num"),
        (dict(convs=(0,)), {}, r'convs=\(0,\)'),
        (dict(convs='stem'), {}, r"convs='stem'"),
        (dict(convs=(4, 4)), {}, r'each at most once'),
        (dict(convs=(4,), stages=(4,)), {}, r'stage 4 is in stages=\(4,\) and in convs=\(4,\)'),
        (dict(convs=(4,), residual=True), {}, r'residual=True: is about whole stages'),
        (dict(convs=(4,), width=0.5), {}, r'width=0\.5: is about whole stages'),
        (dict(convs=('stem',)), dict(deep_stem=True), r"'stem' needs a stem of one convolution"),
        (dict(stages=(4,)), dict(small_images=True, deep_stem=True), r'deep_stem=True: the stem for small images'),
        (dict(stages=(4,)), dict(small_images=1), r'backbone\.small_images=1: expected True or False'),
        (dict(convs=(2,), unit='patch', grid=2), dict(conv_cfg=dict(type='ConvWS')), r'stage 2.*ConvWS'),
    ],
)
def test_wrong_keys_are_named(moe, kwargs, message):
    with pytest.raises(MoEConfigError, match=message), mmdet_scope():
        MoEResNet(**{'depth': 18, 'base_channels': 8, 'moe': moe, **kwargs})


def test_patches_fit_a_stage_without_stride():
    moe = resnet(18, dict(num_experts=3, top_k=1, stages=(1,), unit='patch', grid=2))
    outputs = moe(images())
    assert [y.shape[2] for y in outputs] == [16, 8, 4, 2]


def test_copies_that_share_compute_as_independent_ones_and_start_alike():
    moe = dict(num_experts=3, top_k=1, stages=(4,), copy_noise=0.0, copies_share=True)
    shared = resnet(moe=moe)
    with mmdet_scope():
        shared.init_weights()
    group = next(module for module in shared.modules() if isinstance(module, ExpertGroup))
    for name, parameter in group.common[0].named_parameters():
        assert parameter.abs().sum() > 0 or name.endswith('bias') or 'bn2' in name  # zero last norm of every block
        assert all(expert.get_parameter(name).abs().sum() == 0 for expert in group.experts)
    apart = resnet(moe={**moe, 'copies_share': False})
    apart.load_state_dict(shared.state_dict())
    with torch.no_grad():
        for ours, theirs in zip(shared(images()), apart(images()), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_share_of_the_channels_of_a_copied_stage_is_drawn_anew():
    plain = resnet()
    moe = resnet(moe=dict(num_experts=2, top_k=1, stages=(4,), width=1, copy_noise=0.0, copy_redraw=0.5))
    moe.load_state_dict(plain.state_dict(), strict=False)
    dense = plain.layer4[0].conv1.weight
    for expert in moe.layer4.expert_group.experts:
        same = (expert[0].conv1.weight == dense).flatten(1).all(1)
        assert same.sum() == len(same) // 2
