"""A plain RetinaNet's checkpoint fills the experts of MoERetinaHead."""

from __future__ import annotations

import itertools
import logging
import re

import pytest
import torch
from mmengine.runner import load_checkpoint
from small_models import assert_same_detections, batch, detector, head, log_lines, predictions_of, spread_weights

PLACEMENTS = ('branch', 'tower', 'first', 'last')
# number of tensors of one branch that experts replace: two convolutions and the predictor, with biases
REPLACED = dict(branch=6, tower=4, first=2, last=2)


def expert_tensors(moe: torch.nn.Module, placement: str) -> list[tuple[str, list[torch.Tensor]]]:
    """Key of a tensor in a plain head with two convolutions -> the same tensor in each expert, written out by hand."""
    names = {
        'branch': {'convs.0.conv': '{}_convs.0.conv', 'convs.1.conv': '{}_convs.1.conv', 'predictor': 'retina_{}'},
        'tower': {'convs.0.conv': '{}_convs.0.conv', 'convs.1.conv': '{}_convs.1.conv'},
        'first': {'conv': '{}_convs.0.conv'},
        'last': {'conv': '{}_convs.1.conv'},
    }[placement]
    return [
        (f'{dense.format(branch)}.{kind}', [e.get_parameter(f'{name}.{kind}').data for e in group.experts])
        for branch, group in moe.branch_experts.items()
        for name, dense in names.items()
        for kind in ('weight', 'bias')
    ]


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_copies_differ_by_the_stated_noise(placement):
    torch.manual_seed(0)
    plain = spread_weights(head())
    dense = plain.state_dict()
    before = {key: value.clone() for key, value in dense.items()}
    moe = spread_weights(head(dict(num_experts=4, top_k=2, placement=placement, copy_noise=0.1)), seed=5)
    with log_lines() as lines:
        missing, unexpected = moe.load_state_dict(dense, strict=False)
    assert not unexpected and all(key.startswith('routers.') for key in missing)
    assert [line.getMessage() for line in lines] == [
        f'{branch}: {REPLACED[placement]} of {REPLACED[placement]} dense tensors copied into 4 experts with relative '
        'noise 0.1'
        for branch in ('cls', 'reg')
    ]
    assert all(line.levelno == logging.INFO for line in lines)
    for key, value in before.items():
        assert torch.equal(dense[key], value), 'the given state dict was changed'
    for key, copies in expert_tensors(moe, placement):
        relative = [((copy - dense[key]).std() / dense[key].std()).item() for copy in copies]
        # of n normal values the deviation is known to about 1 / sqrt(2 n): 3 % for the smallest weight (576 values)
        expected = pytest.approx([0.1] * 4, rel=0.12 if key.endswith('weight') else 1.0)
        assert relative == expected, key
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(copies, 2)), key
    # what stays dense is exact
    own = moe.state_dict()
    shared = own.keys() & dense.keys()
    assert len(shared) == 12 - 2 * REPLACED[placement]
    assert all(torch.equal(own[key], dense[key]) for key in shared)


def test_constant_biases_and_buffers_are_copied_as_they_are():
    norm = dict(norm_cfg=dict(type='BN'))
    plain = spread_weights(head(**norm))
    plain.retina_cls.bias.data.fill_(-4.6)
    for name, buffer in plain.named_buffers():
        buffer.fill_(7 if 'num_batches' in name else 0.3)
    moe = head(dict(num_experts=2, top_k=1, copy_noise=0.1), **norm)
    moe.load_state_dict(plain.state_dict(), strict=False)
    for expert in moe.branch_experts['cls'].experts:
        assert torch.equal(expert.predictor.bias, plain.retina_cls.bias)
        for name, buffer in plain.cls_convs.named_buffers():
            assert torch.equal(expert.convs.get_buffer(name), buffer)
        assert not torch.equal(expert.convs[0].bn.weight, plain.cls_convs[0].bn.weight)


def test_one_branch_leaves_the_other_dense():
    plain = spread_weights(head())
    moe = head(dict(num_experts=2, top_k=1, branches=('reg',)))
    missing, unexpected = moe.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('routers.') for key in missing)
    assert torch.equal(moe.retina_cls.weight, plain.retina_cls.weight)
    assert not hasattr(moe, 'retina_reg')


def test_a_single_expert_loads_strictly():
    plain = spread_weights(head())
    moe = head(dict(num_experts=1, top_k=1, copy_noise=0))
    moe.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(moe.branch_experts['cls'].experts[0].predictor.weight, plain.retina_cls.weight)


@pytest.mark.parametrize(
    'moe, changes, copied, total, named',
    [
        # of an expert with 4 of 8 channels only the predictor's bias has the dense shape
        (dict(width=0.5), {}, 1, 6, r'cls_convs\.0\.conv\.weight: shape \(8, 8, 3, 3\), an expert has \(4, 8, 3, 3\)'),
        ({}, dict(num_classes=5), 4, 6, r'retina_cls\.weight: shape \(27, 8, 3, 3\), an expert has \(45, 8, 3, 3\)'),
        ({}, dict(stacked_convs=1), 4, 6, r'cls_convs\.1\.conv\.weight: an expert has no convs\.1\.conv\.weight'),
    ],
    ids=['width', 'classes', 'convs'],
)
def test_tensors_that_do_not_fit_are_reported(moe, changes, copied, total, named):
    plain = spread_weights(head())
    moe = head({'num_experts': 2, 'top_k': 1, 'branches': 'cls', **moe}, **changes)
    before = {key: value.clone() for key, value in moe.branch_experts.state_dict().items()}
    with log_lines() as lines:
        missing, _ = moe.load_state_dict(plain.state_dict(), strict=False)
    (line,) = lines
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith(f'cls: {copied} of {total} dense tensors copied into 2 experts')
    assert re.search(f'not copied: {named}', line.getMessage())
    kept = [key.removeprefix('branch_experts.') for key in missing if key.startswith('branch_experts.')]
    own = len(before) // 2
    assert len(kept) == 2 * (own - copied)
    assert all(torch.equal(moe.branch_experts.state_dict()[key], before[key]) for key in kept)


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_own_checkpoint_is_loaded_as_it_is(placement):
    settings = dict(num_experts=3, top_k=2, placement=placement, constraint=dict(type='KLConstraint'))
    saved = spread_weights(head(settings)).state_dict()
    other = spread_weights(head(settings), seed=1)
    with log_lines() as lines:
        other.load_state_dict(saved, strict=True)
    assert not lines
    assert all(torch.equal(value, saved[key]) for key, value in other.state_dict().items())


def test_a_file_of_a_plain_detector_fills_the_experts(tmp_path):
    plain = detector()
    spread_weights(plain.bbox_head, seed=3)
    torch.save(dict(meta={}, state_dict=plain.state_dict()), tmp_path / 'dense.pth')
    moe = detector(dict(num_experts=4, top_k=2, copy_noise=0))
    with log_lines() as lines:
        load_checkpoint(moe, str(tmp_path / 'dense.pth'), map_location='cpu')
    text = '\n'.join(line.getMessage() for line in lines)
    assert 'bbox_head.cls: 4 of 4 dense tensors copied into 4 experts with relative noise 0' in text
    assert 'unexpected key' not in text
    data = batch(((64, 96), (64, 64)))
    for ours, theirs in zip(predictions_of(moe, data), predictions_of(plain, data), strict=True):
        assert_same_detections(ours, theirs)
