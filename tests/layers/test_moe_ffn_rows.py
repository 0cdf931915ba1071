"""Tokens as rows of MoEFFN: their names, interventions, constraints, and what many of them cost."""

from __future__ import annotations

import pytest
import torch
from small_ffn import TOP2, layer
from small_models import records_of
from torch import nn

from moe_det.errors import UncollectedConstraintError
from moe_det.routing import dispatch
from moe_det.routing.intervention import Intervention, intervene


def test_rows_are_named_by_image_and_token():
    moe = nn.ModuleDict({'ffn': layer(**TOP2)}).eval()
    (record,) = records_of(moe, [7, 9], moe.ffn, torch.randn(2, 3, 6, dtype=torch.float64))
    assert record.image_ids.tolist() == [7, 7, 7, 9, 9, 9]
    assert record.patches.tolist() == [0, 1, 2, 0, 1, 2]
    assert record.unit == 'token' and record.weights.shape == (6, 4)


def test_a_forced_expert_serves_every_token_and_a_knocked_out_one_none():
    moe = nn.ModuleDict({'ffn': layer(**TOP2)}).eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with intervene(moe, {'ffn': Intervention(forced=2)}):
        forced = moe.ffn(x)
    torch.testing.assert_close(forced, x + moe.ffn.expert_group.experts[2](x), rtol=1e-12, atol=1e-12)
    calls = []
    moe.ffn.expert_group.experts[1].register_forward_hook(lambda *_: calls.append(1))
    moe.ffn(x)
    assert calls
    calls.clear()
    with intervene(moe, {'ffn': Intervention(knocked_out=1)}):
        moe.ffn(x)
    assert not calls


def test_constraints_count_tokens_and_must_be_collected():
    moe = layer(**TOP2, constraint=[{'type': 'KLConstraint'}, {'type': 'MeanImportanceConstraint'}]).train()
    steps = []
    moe.router.collected.observe(steps.append)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with pytest.raises(UncollectedConstraintError, match=r'decoder\.layers\.0\.ffn: KLConstraint'):
        moe(x).sum().backward()
    moe.router.start_step()
    output = moe(x)
    losses = moe.router.collect()
    assert set(losses) == {'kl'}
    (output.sum() + losses['kl']).backward()
    assert [usage.rows.tolist() for usage in steps] == [[10]]
    assert all(parameter.grad is not None for parameter in moe.parameters())


def test_few_tokens_and_none():
    moe = layer(num_experts=8, top_k=2, constraint={'type': 'KLConstraint'}, noise=False).train()
    for tokens in (0, 1, 3):  # fewer than experts
        moe.zero_grad()
        x = torch.randn(1, tokens, 6, dtype=torch.float64, requires_grad=True)
        output = moe(x)
        assert output.shape == x.shape
        (output.sum() + sum(moe.router.collect().values())).backward()
        grads = [parameter.grad for parameter in moe.parameters()]
        assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
        idle = [e for e in moe.expert_group.experts if (e.layers[1].weight.grad == 0).all()]
        assert len(idle) >= 8 - 2 * tokens


def test_one_copy_to_the_host_and_work_that_does_not_grow_with_the_experts(monkeypatch):
    copies, rows = [], []
    original = dispatch.copy_to_host
    monkeypatch.setattr('moe_det.routing.tokens.copy_to_host', lambda t: copies.append(t.numel()) or original(t))
    for num_experts in (2, 16):
        copies.clear()
        rows.clear()
        moe = layer(num_experts=num_experts, top_k=1).train()
        for expert in moe.expert_group.experts:
            expert.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[0]))
        moe(torch.randn(2, 500, 6, dtype=torch.float64)).sum().backward()
        assert copies == [num_experts + 1]  # how many rows each expert has
        assert sum(rows) == 1000


def test_what_is_kept_for_backward_does_not_grow_with_the_experts():
    kept = []
    for num_experts in (4, 16):
        moe = layer(num_experts=num_experts, top_k=2).train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in moe.parameters()}
        seen: dict[int, int] = {}  # inputs and hidden values, of 6 and 12 channels

        def keep(tensor, weights=weights, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and tensor.dim() > 1 and tensor.shape[-1] in (6, 12):
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = moe(torch.randn(2, 500, 6, dtype=torch.float64))
        kept.append(sum(seen.values()))
        del output
    assert kept[1] == kept[0]  # nothing is (rows, experts, channels)
