"""A dense checkpoint becomes one with experts that predicts the same."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.config import Config
from small_files import assert_same_outputs, model_of, write_checkpoint, write_config
from small_models import assert_same_detections, batch, blocks_after, predictions_of

from moe_det.converters.upcycle import upcycle
from moe_det.errors import CheckpointError, MoEConfigError

KL = dict(type='KLConstraint')
EXPERTS = dict(num_experts=3, top_k=2, constraint=KL)
SHARDS = dict(placement='shards', shards=2, copies=3, constraint=KL)
BACKBONE = dict(
    type='MoEResNet',
    moe=dict(stages=(4,), convs=('stem', 3), **EXPERTS),
    plugins=[blocks_after(2, num_experts=2, top_k=1)],
)
GROUPS = dict(bbox_head=dict(norm_cfg=dict(type='GN', num_groups=4)))
NETWORKS = {
    'head': (EXPERTS, {}),
    'first convolutions, one gate': (dict(EXPERTS, placement='first', shared_gate=True), {}),
    'patches for the last box convolution': (
        dict(EXPERTS, branches='reg', placement='last', unit='patch', grid=2),
        {},
    ),
    'a shared expert that starts at zero': (dict(EXPERTS, shared_expert=True), {}),
    'convolutions of the head': (None, dict(bbox_head=dict(conv_cfg=dict(type='MoEConv2d', num_levels=5, **EXPERTS)))),
    'shards': (SHARDS, GROUPS),
    'shards beside a shared slice': (dict(SHARDS, shards=3, shared_expert=True), GROUPS),
    'copies that share, of shards of a norm without statistics in evaluation': (
        dict(SHARDS, shards=4, unit='image', copies_share=True),
        dict(bbox_head=dict(norm_cfg=dict(type='BN'))),
    ),
    'mixed kernels of branches that share': (
        dict(num_experts=3, top_k=3, soft_mixture=True, mixes='kernels', unit='image', copies_share=True),
        GROUPS,
    ),
    'shards per patch': (dict(SHARDS, unit='patch', grid=2, shared_gate=True), {}),
    'one of several, counted in full': (dict(EXPERTS, top_k=1, weighting='straight_through', copies_share=True), {}),
    'stage, stem, convolution and added blocks': (None, dict(depth=50, backbone=BACKBONE)),
}


@pytest.fixture
def dense(tmp_path):
    """Config and checkpoint of the plain detector; ``depth`` of the backbone, ``norm`` of the head."""

    def make(depth: int = 18, norm: dict | None = None):
        head = {} if norm is None else dict(bbox_head=dict(norm_cfg=norm))
        config = write_config(tmp_path / f'dense{depth}.py', depth=depth, **head)
        return config, write_checkpoint(config, tmp_path / f'dense{depth}.pth')

    return make


@pytest.mark.parametrize('name', NETWORKS)
def test_without_noise_the_predictions_are_the_dense_ones(name, dense, tmp_path, capsys):
    moe, changes = NETWORKS[name]
    dense_config, checkpoint = dense(changes.get('depth', 18), changes.get('bbox_head', {}).get('norm_cfg'))
    config = write_config(tmp_path / 'moe.py', moe, **changes)
    report = upcycle(str(config), str(checkpoint), str(tmp_path / 'out.pth'), noise=0)
    ours, theirs = model_of(config, tmp_path / 'out.pth'), model_of(dense_config, checkpoint)
    assert_same_outputs(ours, theirs)
    data = batch()
    for one, other in zip(predictions_of(ours, data), predictions_of(theirs, data), strict=True):
        assert_same_detections(one, other)
    assert not report.problems
    # every tensor of the dense model is accounted for
    assert report.kept + sum(tensors for _, _, tensors in report.experts) == len(theirs.state_dict())
    assert 'before noise: ' in capsys.readouterr().out


def test_report_and_content(dense, tmp_path, capsys):
    _, checkpoint = dense()
    config = write_config(tmp_path / 'moe.py', EXPERTS)
    upcycle(str(config), str(checkpoint), str(tmp_path / 'out.pth'))
    out = capsys.readouterr().out
    # two convolutions and the predictor, weights and biases
    assert 'bbox_head.cls: 6 tensors copied into 3 experts\nbbox_head.reg: 6 tensors copied into 3 experts\n' in out
    # of each router: the gate's weight and bias, the noise's scale, seed and counter, E and K
    assert 'left at their initial value: 12 tensors of gates and constraints' in out
    content = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert content['meta']['dataset_meta'] == dict(classes=('a', 'b', 'c'))
    assert Config.fromstring(content['meta']['cfg'], '.py').model.bbox_head.type == 'MoERetinaHead'
    assert content['meta']['moe_det']['source'] == checkpoint.name


def test_noise_has_the_stated_size_and_the_seed_decides(dense, tmp_path):
    dense_config, checkpoint = dense()
    config = write_config(tmp_path / 'moe.py', EXPERTS)
    states = []
    for number, (noise, seed) in enumerate([(0.1, 3), (0.1, 3), (0.1, 4)]):
        out = tmp_path / f'{number}.pth'
        upcycle(str(config), str(checkpoint), str(out), noise=noise, seed=seed)
        states.append(torch.load(out, weights_only=True)['state_dict'])
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    key = 'bbox_head.branch_experts.cls.experts.{}.convs.0.conv.weight'
    original = model_of(dense_config, checkpoint).bbox_head.cls_convs[0].conv.weight.detach()
    copies = [states[0][key.format(e)] for e in range(3)]
    for copy in copies:  # of 576 values the deviation is known to 3 %
        assert (copy - original).std().item() == pytest.approx(0.1 * original.std().item(), rel=0.12)
    assert not torch.equal(copies[0], copies[1])
    for name in (key.format(0), 'bbox_head.routers.cls.gate.fc.weight'):
        assert not torch.equal(states[2][name], states[0][name])


@pytest.mark.parametrize(
    'moe, message',
    [
        (dict(EXPERTS, width=0.5), r'cls_convs\.0\.conv\.weight: shape \(8, 8, 3, 3\), an expert has \(4, 8, 3, 3\)'),
        (dict(EXPERTS, top_k=1), 'differ .* with top_k=1 .* scaled with its gate probability'),
        (dict(EXPERTS, unit='patch', grid=2), "differ .* with unit='patch' an expert sees one pixel around"),
        (dict(EXPERTS, placement='tower', shared_expert=True), 'differ .* a shared expert adds'),
    ],
    ids=['width', 'top-1', 'patch', 'shared'],
)
def test_what_does_not_predict_the_same_is_refused(moe, message, dense, tmp_path):
    _, checkpoint = dense()
    config = write_config(tmp_path / 'moe.py', moe)
    out = tmp_path / 'out.pth'
    with pytest.raises(CheckpointError, match=message):
        upcycle(str(config), str(checkpoint), str(out))
    assert not out.exists()
    upcycle(str(config), str(checkpoint), str(out), allow_missing=True)
    model_of(config, out)  # loads strictly


def test_tensors_that_are_missing_or_foreign_are_named(dense, tmp_path):
    _, checkpoint = dense()
    config = write_config(tmp_path / 'moe.py', EXPERTS)
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']['backbone.fc.weight'] = torch.zeros(2)
    del content['state_dict']['neck.fpn_convs.0.conv.bias']
    content['state_dict']['neck.fpn_convs.1.conv.bias'] = torch.zeros(5)
    torch.save(content, checkpoint)
    report = upcycle(str(config), str(checkpoint), str(tmp_path / 'out.pth'), allow_missing=True)
    assert report.problems[:3] == (
        'neck.fpn_convs.1.conv.bias: shape (5,), the model has (8,)',
        'backbone.fc.weight: the model has no such tensor',
        'neck.fpn_convs.0.conv.bias: 1 tensors are not in the checkpoint',
    )


def test_wrong_uses(dense, tmp_path):
    dense_config, checkpoint = dense()
    config = write_config(tmp_path / 'moe.py', EXPERTS)
    with pytest.raises(MoEConfigError, match='no experts to fill'):
        upcycle(str(dense_config), str(checkpoint), str(tmp_path / 'out.pth'))
    with pytest.raises(MoEConfigError, match='is the checkpoint that is read'):
        upcycle(str(config), str(checkpoint), str(checkpoint))
    with pytest.raises(MoEConfigError, match=r'ends in \.pth'):
        upcycle(str(config), str(checkpoint), 'out.onnx')
    with pytest.raises(CheckpointError, match='has experts already'):
        upcycle(str(config), str(write_checkpoint(config, tmp_path / 'moe.pth')), str(tmp_path / 'out.pth'))


def test_shards_per_patch_with_a_norm_are_refused(dense, tmp_path):
    _, checkpoint = dense(norm=GROUPS['bbox_head']['norm_cfg'])
    config = write_config(tmp_path / 'moe.py', dict(SHARDS, unit='patch', grid=2), **GROUPS)
    with pytest.raises(CheckpointError, match=r"differ .* with unit='patch' a norm takes its statistics from a patch"):
        upcycle(str(config), str(checkpoint), str(tmp_path / 'out.pth'))


@pytest.mark.parametrize('share', [False, True])
def test_channels_drawn_anew_are_not_part_of_the_measured_difference(share, dense, tmp_path, capsys):
    dense_config, checkpoint = dense()
    config = write_config(tmp_path / 'moe.py', dict(SHARDS, copy_redraw=0.5, copies_share=share))
    upcycle(str(config), str(checkpoint), str(tmp_path / 'out.pth'), noise=0)
    out = capsys.readouterr().out
    assert 'bbox_head.cls: 4 tensors copied into 2 shards of 3 copies\n' in out
    assert float(re.search(r'before noise: (\S+)', out)[1]) < 1e-5
    original = model_of(dense_config, checkpoint).bbox_head.cls_convs[1].conv.weight.detach()
    model = model_of(config, tmp_path / 'out.pth')
    group = model.bbox_head.branch_experts['cls']
    assert (len(group.common) if share else group.common is None) == (2 if share else True)
    for expert in range(6):
        # of each copy's four channels two are the dense ones of its shard
        own = group.weights_of(expert)['conv.conv.weight']
        shard = original[4 * (expert // 3) : 4 * (expert // 3) + 4]
        assert torch.isclose(own, shard, atol=1e-6).flatten(1).all(1).sum() == 2
