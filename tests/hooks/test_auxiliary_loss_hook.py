"""AuxiliaryLossHook in a run: the losses are there, then 0, also after a resume."""

from __future__ import annotations

import pytest
from mmengine.hooks import Hook
from small_models import detector
from small_runs import Losses, make_runner

from moe_det.errors import MoEConfigError
from moe_det.hooks.auxiliary_loss_hook import AuxiliaryLossHook
from moe_det.routing import find_routers

MOE = dict(num_experts=4, top_k=2)
KL = dict(type='KLConstraint', weight=0.25)


def trained(folder, constraint: object, *hooks: Hook | dict, epochs: int = 3, loop: dict | None = None):
    """Losses of each step (two per epoch), and the model."""
    model = detector(dict(**MOE, constraint=constraint))
    losses = Losses()
    runner = make_runner(model, folder, dict(type='MoEHook'), losses, *hooks, epochs=epochs)
    if loop is not None:
        runner._train_loop = loop
    runner.train()
    return losses.steps, model


@pytest.mark.parametrize(
    ('limit', 'loop', 'kept'),
    [
        (dict(epochs=0), None, 0),
        (dict(epochs=2), None, 4),
        (dict(epochs=9), None, 6),
        (dict(iterations=3), None, 3),
        (dict(iterations=3), dict(by_epoch=False, max_iters=6), 3),
    ],
)
def test_losses_are_dropped_after_so_many_epochs_or_iterations(tmp_path, limit, loop, kept):
    steps, _ = trained(tmp_path / 'run', KL, dict(type='AuxiliaryLossHook', **limit), loop=loop)
    balance = [step['loss_moe_kl_cls'] for step in steps]
    assert len(balance) == 6 and all(value > 0 for value in balance[:kept]) and balance[kept:] == [0] * (6 - kept)
    parts = [sum(value for key, value in step.items() if 'loss' in key and key != 'loss') for step in steps]
    assert [step['loss'] for step in steps] == pytest.approx(parts)


def test_a_training_without_epochs_takes_none(tmp_path):
    with pytest.raises(MoEConfigError, match='AuxiliaryLossHook.epochs=1: .* use iterations=N'):
        loop = dict(by_epoch=False, max_iters=6)
        trained(tmp_path / 'run', KL, dict(type='AuxiliaryLossHook', epochs=1), loop=loop)


def test_a_hook_that_is_used_again_gives_the_weights_back(tmp_path):
    hook = AuxiliaryLossHook(1)
    _, model = trained(tmp_path / 'run', KL, hook, epochs=2)
    constraint = find_routers(model)['bbox_head.cls'].constraints['kl']
    assert constraint.weight == 0

    class AtStart:
        epoch = iter = 0

    hook.before_train_iter(AtStart, 0)
    assert constraint.weight == 0.25


def test_hard_constraints_have_no_loss_to_drop(tmp_path):
    with pytest.raises(MoEConfigError, match='no MoE layer has a soft constraint'):
        trained(tmp_path / 'run', dict(type='RelativeImportanceConstraint'), dict(type='AuxiliaryLossHook', epochs=1))


@pytest.mark.parametrize('unit', ['epochs', 'iterations'])
@pytest.mark.parametrize('number', [-1, 1.5, True])
def test_wrong_numbers_are_refused(unit, number):
    with pytest.raises(MoEConfigError, match=f'AuxiliaryLossHook.{unit}={number!r}: expected an integer >= 0'):
        AuxiliaryLossHook(**{unit: number})


@pytest.mark.parametrize('given', [dict(), dict(epochs=1, iterations=2)])
def test_one_number_is_given(given):
    with pytest.raises(MoEConfigError, match='AuxiliaryLossHook: epochs=.* expected one of them'):
        AuxiliaryLossHook(**given)
