"""Mixed precision in a whole detector: experts in 16 bits, gates, constraints and auxiliary losses in 32."""

from __future__ import annotations

import functools
import math

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp_wrapper
import pytest
import torch
from mmengine.optim import AmpOptimWrapper
from small_models import batch, detector
from torch import nn

from moe_det.routing import RoutingRecorder, find_routers
from moe_det.routing.collection import attach_collection
from moe_det.running.amp import CPUAmpOptimWrapper

FOUR = dict(num_experts=4, top_k=2)
CONSTRAINTS = [
    dict(type='KLConstraint', weight=0.25),
    dict(type='ZLossConstraint', weight=1e-3),
    dict(type='MeanImportanceConstraint', threshold=0.3),
]
STEPS = 4
# below, P7 has one pixel: torch 2.10.0's bfloat16 gradients of a convolution with stride 2 over 1x1 maps are arbitrary
SIZES = [(128, 128)] * 2


def model_with_experts() -> nn.Module:
    """Experts in head and backbone, with learned noise; the gates' logits are of the order of ten."""
    torch.manual_seed(0)
    moe = dict(**FOUR, constraint=CONSTRAINTS, noise=True)
    model = detector(moe, backbone=dict(type='MoEResNet', moe=dict(stages=(4,), **moe)))
    for router in find_routers(model).values():
        nn.init.normal_(router.gate.fc.weight, std=10.0)
    attach_collection(model)
    return model.train()


def fp16(optimizer: torch.optim.Optimizer, monkeypatch) -> AmpOptimWrapper:
    """mmengine's wrapper with its loss scale, on a CPU, where it refuses to be built."""
    monkeypatch.setattr(amp_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_wrapper, 'GradScaler', functools.partial(torch.amp.GradScaler, 'cpu', init_scale=2.0**10))
    monkeypatch.setattr('mmengine.runner.amp.autocast', lambda dtype: torch.autocast('cpu', dtype=dtype))
    return AmpOptimWrapper(loss_scale='dynamic', dtype='float16', optimizer=optimizer)


@pytest.fixture(params=['float16', 'bfloat16'])
def run(request, monkeypatch) -> dict:
    """A few steps in mixed precision, and what was computed in which precision."""
    model = model_with_experts()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    wrapper = fp16(optimizer, monkeypatch) if request.param == 'float16' else CPUAmpOptimWrapper(optimizer=optimizer)
    found = dict(dtype=getattr(torch, request.param), model=model, wrapper=wrapper)
    found |= dict(gates=[], experts=[], losses=[], usages=[])
    found['start'] = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, router in find_routers(model).items():
        router.collected.observe(found['usages'].append)

        def see_gate(gate: nn.Module, args: tuple, logits: torch.Tensor, name: str = name) -> None:
            weight, bias = gate.fc.weight.detach().clone(), gate.fc.bias.detach().clone()
            found['gates'].append((name, args[0].detach(), weight, bias, logits.detach()))

        router.gate.register_forward_hook(see_gate)
    for conv in (
        model.bbox_head.branch_experts['cls'].experts[0].predictor,
        model.backbone.layer4.expert_group.experts[0][0].conv1,
    ):
        conv.register_forward_hook(lambda _, args, output: found['experts'].append(output.dtype))
    found['records'] = []
    model.register_forward_hook(lambda _, args, kwargs, output: found['losses'].append(output), with_kwargs=True)
    for step in range(STEPS):
        with RoutingRecorder(model) as recorder:
            recorder.start_batch([0, 1])
            model.train_step(batch(SIZES, counts=[1 + step % 2, 3]), wrapper)
        found['records'].append(recorder.records)
    return found


def test_gates_compute_in_full_precision(run):
    assert len(run['gates']) == STEPS * (1 + 2 * 5)  # the head's gates see each level
    halves = 0
    for name, feature, weight, bias, logits in run['gates']:
        assert logits.dtype == weight.dtype == torch.float32, name
        halves += feature.dtype == run['dtype']
        expected = feature.double().mean((2, 3)) @ weight.double().t() + bias.double()
        torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
        assert (logits.to(run['dtype']).float() - logits).abs().max() > 1e-4  # 16 bits would show
    assert halves == len(run['gates'])  # what the gates see was computed in 16 bits
    assert set(run['experts']) == {run['dtype']}


def test_constraints_and_losses_are_in_full_precision(run):
    assert len(run['losses']) == STEPS
    for losses, records in zip(run['losses'], run['records'], strict=True):
        names = [name for name in losses if name.startswith('loss_moe')]
        assert len(names) == 6  # two kinds, over the backbone and in each branch
        assert all(losses[name].dtype == torch.float32 for name in names)
        flat = [v for value in losses.values() for v in (value if isinstance(value, list) else [value])]
        assert all(value.isfinite() for value in flat)
        (record,) = [record for record in records if record.layer == 'bbox_head.cls']
        assert record.weights.dtype == torch.float32
        weights = record.weights.double()
        share = (weights.sum(0) / weights.sum()).tolist()
        expected = 0.25 * sum(p * math.log(4 * p) for p in share if p > 0)
        assert expected > 1e-3
        assert losses['loss_moe_kl_cls'].item() == pytest.approx(expected, rel=2e-5)
    assert {value.dtype for usage in run['usages'] for value in vars(usage).values()} == {torch.float32}
    for router in find_routers(run['model']).values():
        state = router.constraints['mean_importance']
        assert state.mean.dtype == torch.float32 and state.steps.tolist() == [STEPS]
        assert state.mean.sum().item() == pytest.approx(1, abs=1e-6)  # in 16 bits: 1e-3


def test_every_step_is_taken(run):
    model = run['model']
    parameters = dict(model.named_parameters())
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert all(p.isfinite().all() for p in parameters.values())
    moved = {name for name, p in parameters.items() if not torch.equal(p, run['start'][name])}
    assert {name for name in parameters if '.gate.' in name or 'noise' in name} <= moved
    if run['dtype'] == torch.float16:
        assert run['wrapper'].loss_scaler.get_scale() == 2.0**10  # no step was skipped
