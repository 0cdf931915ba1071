"""MoERetinaHead under an attentive gate, against a reference made of its parts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mmengine.runner import load_checkpoint
from small_models import (
    assert_same_detections,
    batch,
    build,
    detector,
    head,
    head_losses,
    losses_of,
    predictions_of,
    pyramid,
    spread_weights,
)

from moe_det.errors import CheckpointError, MoEConfigError
from moe_det.routing.intervention import Intervention, intervene

GATE = dict(type='AttentiveGate', hidden_channels=6)
FOUR = dict(num_experts=4, top_k=2, gate=GATE)


def attentive_branch(model, branch: str, maps: list[torch.Tensor], placement: str) -> list[torch.Tensor]:
    """One branch for unit='level', with the pooled features of the experts as keys."""
    router, experts = model.routers[branch], model.branch_experts[branch].experts
    results = []
    for x in maps:
        y = x
        convs = list(getattr(model, f'{branch}_convs'))
        if placement == 'last':
            for conv in convs:
                y = conv(y)
        features, outputs = [], []
        for expert in experts:
            h = y
            for conv in expert.convs if placement in ('branch', 'tower') else [expert]:
                h = conv(h)
            features.append(h.mean((2, 3)))
            outputs.append(expert.predictor(h) if placement == 'branch' else h)
        logits = router.gate(x, torch.stack(features, 1))
        kept, chosen = logits.topk(router.top_k)
        weights = torch.zeros_like(logits).scatter(1, chosen, kept.softmax(1))[:, :, None, None, None]
        outputs = torch.stack(outputs, 1)
        if branch == 'cls' and placement == 'branch':
            p = (weights * outputs.sigmoid()).sum(1)
            y = torch.log(p / (1 - p))
        else:
            y = (weights * outputs).sum(1)
        if placement == 'first':
            for conv in convs:
                y = conv(y)
        results.append(y if placement == 'branch' else getattr(model, f'retina_{branch}')(y))
    return results


@pytest.mark.parametrize('placement', ['branch', 'tower', 'first', 'last'])
def test_outputs_match_the_reference(placement):
    model = spread_weights(head(dict(**FOUR, placement=placement))).double().eval()
    maps = pyramid(images=3, dtype=torch.float64)
    for branch, ours in zip(('cls', 'reg'), model(tuple(maps)), strict=True):
        for a, b in zip(ours, attentive_branch(model, branch, maps, placement), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('unit', [dict(unit='patch', grid=2), dict(unit='image'), dict(unit='level', top_k=1)], ids=str)
def test_a_step_reaches_every_expert_and_the_gate(unit):
    constraint = dict(type='EntropyConstraint', weight=0.1)  # sees all probabilities, not the chosen experts' alone
    model = spread_weights(head({**FOUR, 'constraint': constraint, **unit}))
    losses = head_losses(model, pyramid())
    assert {'loss_moe_entropy_cls', 'loss_moe_entropy_reg'} <= losses.keys()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if 'to_key' in name or 'to_query' in name or 'convs.0.conv.weight' in name:
            assert parameter.grad.abs().max() > 0, name


def test_forcing_an_expert_gives_that_expert():
    model = spread_weights(head(FOUR)).eval()
    maps = pyramid()
    with intervene(model, {name: Intervention(forced=2) for name in ('routers.cls', 'routers.reg')}):
        scores, deltas = model(tuple(maps))
    for branch, outputs in (('cls', scores), ('reg', deltas)):
        for x, y in zip(maps, outputs, strict=True):
            torch.testing.assert_close(y, model.branch_experts[branch].experts[2](x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('depth', [18, 50])
def test_it_serves_a_backbone_stage(depth):
    moe = dict(stages=(3,), num_experts=3, top_k=2, gate=GATE)
    backbone = build(dict(type='MoEResNet', depth=depth, base_channels=4, moe=moe))
    backbone.eval()
    stage, x = backbone.layer3, torch.randn(4, backbone.layer3.router.gate.in_channels, 6, 6)
    outputs = torch.stack([expert(x) for expert in stage.expert_group.experts], 1)
    kept, chosen = stage.router.gate(x, outputs.mean((3, 4))).topk(2)
    expected = sum(kept.softmax(1)[:, i, None, None, None] * outputs[range(4), chosen[:, i]] for i in range(2))
    torch.testing.assert_close(stage(x), expected)


def test_one_decision_for_two_groups_of_experts_is_refused():
    with pytest.raises(MoEConfigError, match=r'shared_gate=True: AttentiveGate .* use shared_gate=False'):
        head(dict(**FOUR, shared_gate=True))


@pytest.mark.parametrize('kl_weight', [1.0, 0.0])
def test_a_plain_gate_is_fitted_and_runs_k_experts(kl_weight, tmp_path):
    taught = detector(dict(num_experts=4, top_k=4, soft_mixture=True, gate=GATE))
    spread_weights(taught.bbox_head)
    torch.save(dict(state_dict=taught.state_dict()), tmp_path / 'attentive.pth')
    gate = dict(type='DistilledGate', teacher=GATE, kl_weight=kl_weight)
    model = detector(dict(num_experts=4, top_k=2, gate=gate))
    load_checkpoint(model, str(tmp_path / 'attentive.pth'), map_location='cpu')
    for key, value in taught.bbox_head.branch_experts.state_dict().items():
        assert torch.equal(value, model.bbox_head.branch_experts.state_dict()[key])
    losses = losses_of(model, batch())
    names = {'loss_moe_distillation_cls', 'loss_moe_distillation_reg'}
    assert {key for key in losses if 'moe' in key} == (names if kl_weight else set())
    sum(losses.values()).backward()
    trained = {key for key, p in model.bbox_head.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert trained == {f'routers.{b}.gate.student.fc.{n}' for b in ('cls', 'reg') for n in ('weight', 'bias')}

    rows = []
    for group in model.bbox_head.branch_experts.values():
        for expert in group.experts:
            expert.register_forward_hook(lambda _, args, output: rows.append(len(args[0])))
    found = predictions_of(model, batch())
    assert sum(rows) == 2 * 2 * 5 * 2  # branches, images, levels, k
    for group in model.bbox_head.branch_experts.values():
        group.dispatch = 'all'
    model.bbox_head.settings = dataclasses.replace(model.bbox_head.settings, dispatch='all')
    for ours, theirs in zip(predictions_of(model, batch()), found, strict=True):
        assert_same_detections(ours, theirs)
    # its checkpoint serves the config of the plain gate
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'distilled.pth')
    plain = detector(dict(num_experts=4, top_k=2))
    load_checkpoint(plain, str(tmp_path / 'distilled.pth'), map_location='cpu', strict=True)
    for ours, theirs in zip(predictions_of(plain, batch()), found, strict=True):
        assert_same_detections(ours, theirs)


def test_distillation_needs_an_attentive_source(tmp_path):
    torch.save(dict(state_dict=detector(dict(num_experts=4, top_k=2)).state_dict()), tmp_path / 'plain.pth')
    model = detector(dict(num_experts=4, top_k=2, gate=dict(type='DistilledGate', teacher=GATE)))
    with pytest.raises(CheckpointError, match='plain gate at bbox_head.routers.cls.gate'):
        load_checkpoint(model, str(tmp_path / 'plain.pth'), map_location='cpu')
    with pytest.raises(MoEConfigError, match=r'gate\.student: AttentiveGate needs the features'):
        detector(dict(num_experts=4, top_k=2, gate=dict(type='DistilledGate', student=GATE)))
    with pytest.raises(MoEConfigError, match=r'shared_gate=True: DistilledGate'):
        head(dict(num_experts=4, top_k=2, gate=dict(type='DistilledGate', kl_weight=0), shared_gate=True))
