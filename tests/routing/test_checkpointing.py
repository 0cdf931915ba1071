"""Activation checkpointing: a repeated forward gives the same results and counts once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moe_det.errors import UncollectedConstraintError
from moe_det.routing import (
    GAPLinearGate,
    KLConstraint,
    MeanImportanceConstraint,
    RelativeImportanceConstraint,
    Router,
    SampleSimilarityConstraint,
    ZLossConstraint,
    join_patches,
    plan_dispatch,
    rows_of,
)
from moe_det.routing.observers import Observers

EXACT = {'rtol': 1e-12, 'atol': 1e-12}


class Layer(nn.Module):
    """Router and experts as one module, called once per level."""

    def __init__(self, router: Router, group: nn.Module, unit: str) -> None:
        super().__init__()
        self.router, self.group, self.unit = router, group, unit

    def forward(self, x):
        rows, layout = rows_of([x], self.unit, 2, self.router.next_level())
        routing = self.router(rows, layout)
        plan = plan_dispatch([routing], layout.level_rows)[0] if self.group.dispatch == 'sorted' else None
        output = self.group(rows, routing, layout, plan)[0]
        return join_patches(output, *x.shape[2:], 2) if self.unit == 'patch' else output


def build(conv_group, constraints, unit='level', dispatch='sorted', over='all', noise=None, top_k=2) -> Layer:
    torch.manual_seed(1)
    gate = GAPLinearGate(3, 4)
    nn.init.normal_(gate.fc.weight)
    router = Router(
        gate, [kind() for kind in constraints], top_k=top_k, unit=unit, balance_over=over, num_levels=3, noise=noise
    )
    if router.noise is not None:
        nn.init.normal_(router.noise.scale.weight)
    router.collected.observe(lambda usage: None)
    return Layer(router.double(), conv_group(4, 3, 3, dispatch=dispatch), unit).train()


def steps(layer: Layer, reentrant: bool | None, frozen_gate: bool = False) -> dict[str, torch.Tensor]:
    """Two training steps of three calls of two sizes; None runs without checkpointing."""
    torch.manual_seed(2)
    layer.router.gate.requires_grad_(not frozen_gate)
    results, usages = {}, []
    layer.router.collected.observe(usages.append)
    for step in range(2):
        layer.zero_grad()
        maps = [torch.randn(3, 3, *s, dtype=torch.float64, requires_grad=True) for s in ((4, 5), (2, 2), (2, 2))]
        if reentrant is None:
            outputs = [layer(x) for x in maps]
        else:
            outputs = [checkpoint(layer, x, use_reentrant=reentrant) for x in maps]
        losses = layer.router.collect()
        total = sum((i + 1) * y.square().sum() for i, y in enumerate(outputs)) + 10 * sum(losses.values())
        total.backward()
        results.update({f'{step} output {i}': y.detach() for i, y in enumerate(outputs)})
        results.update({f'{step} loss {key}': loss.detach() for key, loss in losses.items()})
        results.update({f'{step} input gradient {i}': x.grad for i, x in enumerate(maps)})
        results.update({f'{step} gradient {n}': p.grad for n, p in layer.named_parameters() if p.requires_grad})
        results.update({f'{step} state {n}': b.clone() for n, b in layer.named_buffers()})
        results[f'{step} rows'] = usages[step].rows
    return results


def compare(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(actual[name], value, **EXACT, msg=lambda m, name=name: f'{name}: {m}')


SOFT = (KLConstraint, ZLossConstraint, SampleSimilarityConstraint)
MIXED = (KLConstraint, MeanImportanceConstraint)
# its mask moves between the forward and the backward of one step
MASKING = (RelativeImportanceConstraint, ZLossConstraint)


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize(
    'settings',
    [
        {'constraints': SOFT},
        {'constraints': SOFT, 'top_k': 1},
        {'constraints': SOFT, 'unit': 'patch', 'over': 'level'},
        {'constraints': SOFT, 'dispatch': 'all'},
        {'constraints': MIXED},
        {'constraints': MASKING, 'top_k': 1},
        {'constraints': MIXED, 'noise': True, 'over': 'level'},
        {'constraints': ()},
        {'constraints': (), 'noise': True},
    ],
    ids=str,
)
def test_checkpointing_changes_nothing(settings, reentrant, conv_group):
    expected = steps(build(conv_group, **settings), None)
    actual = steps(build(conv_group, **settings), reentrant)
    compare(actual, expected)
    # the comparison sees rows, states and gradients that are there
    assert expected['1 rows'].item() == 9 * (4 if settings.get('unit') == 'patch' else 1)
    assert expected['1 gradient router.gate.fc.weight'].abs().max() > 1e-3
    if MeanImportanceConstraint in settings['constraints']:
        counted = expected['1 state router.constraints.mean_importance.steps']
        assert (counted == 2).all()
    if 'router.noise.scale.weight' in str(expected.keys()):
        assert expected['1 gradient router.noise.scale.weight'].abs().max() > 1e-6


@pytest.mark.parametrize('reentrant', [True, False])
def test_noise_without_a_constraint_or_a_monitor(reentrant, conv_group):
    results = []
    for mode in (None, reentrant):
        layer = build(conv_group, (), noise=True)
        layer.router.collected = Observers()
        torch.manual_seed(2)
        for _ in range(2):
            layer.zero_grad()
            x = torch.randn(3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
            calls = [x, 2 * x, x[..., :2]]  # two of one size
            y = [layer(part) if mode is None else checkpoint(layer, part, use_reentrant=mode) for part in calls]
            sum((i + 1) * part.square().sum() for i, part in enumerate(y)).backward()
        results.append(
            {'output': torch.cat(y, 3).detach(), 'input': x.grad, **{n: p.grad for n, p in layer.named_parameters()}}
        )
    compare(results[1], results[0])


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_frozen_gate_still_passes_the_loss_on_to_its_input(reentrant, conv_group):
    # the backbone in front of a frozen gate learns from the auxiliary loss too
    expected = steps(build(conv_group, SOFT), None, frozen_gate=True)
    compare(steps(build(conv_group, SOFT), reentrant, frozen_gate=True), expected)


@pytest.mark.parametrize('reentrant', [True, False])
def test_an_uncollected_step_is_refused(reentrant, conv_group):
    layer = build(conv_group, SOFT)
    x = torch.randn(3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=reentrant)
    with pytest.raises(UncollectedConstraintError, match='MoEHook'):
        y.sum().backward()


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_backward_of_an_earlier_step_is_refused(reentrant, conv_group):
    # its noise and its mask are gone: an error, not a wrong gradient
    layer = build(conv_group, SOFT)
    totals = []
    for size in ((4, 5), (2, 2)):
        x = torch.randn(3, 3, *size, dtype=torch.float64, requires_grad=True)
        y = checkpoint(layer, x, use_reentrant=reentrant)
        totals.append(y.square().sum() + sum(layer.router.collect().values()))
    with pytest.raises(RuntimeError, match='a checkpointed forward of an earlier step'):
        sum(totals).backward()
