"""MoEScheduleHook in runs: values by hand, the same after a kill and a resume, none afterwards, none in evaluation."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_models import detector
from small_runs import Images, Kill, Losses, differences, make_runner, result, train, training
from torch.utils.data import DataLoader

from moe_det.errors import MoEConfigError
from moe_det.hooks.schedule_hook import MoEScheduleHook
from moe_det.routing import find_routers

MOE = dict(num_experts=4, top_k=2, constraint=dict(type='KLConstraint', weight=0.25))
ALL = dict(
    noise=dict(start=1.0, end=0.0, until=0.5),
    temperature=dict(start=3.0, end=1.0, until=1.0),
    balance=dict(start=0.5, end=2.5, until=0.5),
    top_k=dict(start=4, end=2, until=1.0),
)


class Values(Hook):
    """Keeps what the routers are told in each iteration, and how many experts a row gets in training and evaluation."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.steps, self.chosen = [], {True: [], False: []}

    def before_train(self, runner) -> None:
        for router in find_routers(runner.model).values():
            router.decided.observe(
                lambda routing, _, r=router: self.chosen[r.training].append(routing.indices.shape[1])
            )

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        seen = {astuple(r.annealing) for r in find_routers(runner.model).values()}
        self.steps.append(seen)


def run(folder, moe: dict = MOE, epochs: int = 2, **schedules):
    """A run of two iterations an epoch; its values, losses and model."""
    model, values, losses = detector(moe), Values(), Losses()
    hooks = [dict(type='MoEHook'), dict(type='MoEScheduleHook', **schedules), values, losses]
    make_runner(model, folder, *hooks, epochs=epochs).train()
    return values, losses.steps, model


def test_values_by_hand(tmp_path):
    values, _, model = run(tmp_path / 'run', **ALL)
    # four iterations; the number of experts goes 4, 3.5, 3, 2.5 and is rounded up at the half
    assert values.steps == [{(1.0, 3.0, 0.5, 4)}, {(0.5, 2.5, 1.5, 4)}, {(0.0, 2.0, 2.5, 3)}, {(0.0, 1.5, 2.5, 3)}]
    assert values.chosen[True] == [4, 4, 4, 4, 3, 3, 3, 3]  # of both branches
    assert set(values.chosen[False]) == {2}  # the validation at the end chose as the config says
    after = [astuple(router.annealing) for router in find_routers(model).values()]
    assert after == [(1.0, 1.0, 1.0, None)] * 2


def test_the_balance_loss_has_its_factor(tmp_path):
    """The first step starts from the same weights and draws the same noise."""
    torch.manual_seed(0)
    _, plain, _ = run(tmp_path / 'a', epochs=1, temperature=dict(start=1.0, end=1.0, until=1.0))
    torch.manual_seed(0)
    _, scaled, _ = run(tmp_path / 'b', epochs=1, balance=dict(start=0.5, end=0.5, until=1.0))
    assert plain[0]['loss_moe_kl_cls'] > 0
    assert scaled[0]['loss_moe_kl_cls'] == pytest.approx(plain[0]['loss_moe_kl_cls'] / 2, rel=1e-6)
    assert scaled[0]['loss_cls'] == plain[0]['loss_cls']


@pytest.mark.usefixtures('quick_checkpoints')
@pytest.mark.parametrize('loop', [dict(by_epoch=True, max_epochs=3), dict(by_epoch=False, max_iters=6)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, loop):
    def start(name: str, *hooks, schedules: dict = ALL, **changes) -> Runner:
        torch.manual_seed(0)
        return training(
            tmp_path / name,
            f'{name}{len(hooks)}',
            dict(type='MoEHook'),
            dict(type='MoEScheduleHook', **schedules),
            *hooks,
            model=detector(MOE),
            train_dataloader=DataLoader(Images(), batch_size=2, collate_fn=pseudo_collate),
            loop=loop,
            checkpoint=dict(by_epoch=False, interval=1),
            **dict(val_dataloader=None, val_cfg=None, val_evaluator=None, **changes),
        )

    whole = train(start('whole'))
    kill = Kill('after_train_iter', 2)
    train(start('parts', kill))
    resumed = train(start('parts', resume=True))
    assert kill.happened
    assert differences(result(whole), result(resumed)) == []
    # and every schedule tells: without one of them the run ends elsewhere
    for left_out in ALL:
        others = {key: value for key, value in ALL.items() if key != left_out}
        assert differences(result(whole)['weights'], result(train(start(left_out, schedules=others)))['weights'])


SLOW = dict(start=2.0, end=1.0, until=0.5)


@pytest.mark.parametrize(
    'schedules, words',
    [
        ({}, 'MoEScheduleHook: expected at least one of noise, temperature, balance, top_k'),
        (dict(noise=0.5), r'MoEScheduleHook.noise=0.5: expected a dict of start, end, until'),
        (dict(noise=dict(start=1, end=0, untill=0.5)), "MoEScheduleHook.noise: unknown key 'untill'.*until"),
        (dict(noise=dict(start=1, end=0)), r'noise.until=None: expected a share of all iterations in \(0, 1\]'),
        (dict(noise=dict(start=1, end=0, until=0)), r'noise.until=0: expected a share'),
        (dict(noise=dict(start=1, end=0, until=1.5)), r'noise.until=1.5: expected a share'),
        (dict(noise=dict(start=-1, end=0, until=1)), r'noise.start=-1: expected a number >= 0'),
        (dict(balance=dict(start=1, end=float('nan'), until=1)), r'balance.end=nan: expected a number >= 0'),
        (dict(balance=dict(start=True, end=1, until=1)), r'balance.start=True: expected a number >= 0'),
        (dict(temperature=dict(start=0, end=1, until=1)), r'temperature.start=0: expected a number > 0'),
        (dict(temperature=dict(start=2, end=0.5, until=1)), r'temperature.end=0.5: expected 1, the temperature of'),
        (dict(top_k=dict(start=4.0, end=2, until=1)), r'top_k.start=4.0: expected an integer >= 1'),
    ],
)
def test_wrong_schedules_are_refused(schedules, words):
    with pytest.raises(MoEConfigError, match=words):
        MoEScheduleHook(**schedules)


HARD = dict(num_experts=4, top_k=2, constraint=dict(type='RelativeImportanceConstraint'))


@pytest.mark.parametrize(
    'moe, schedules, words',
    [
        (HARD, dict(noise=dict(start=1, end=0, until=1)), r'noise: no MoE layer has gate noise; set moe.noise=True'),
        (HARD, dict(balance=SLOW), 'balance: no MoE layer has a soft constraint'),
        (MOE, dict(top_k=dict(start=4, end=1, until=1)), r'top_k: start=4, end=1: expected end=2, the top_k of bbox'),
        (MOE, dict(top_k=dict(start=5, end=2, until=1)), r'start=5, end=2: .* a start up to its num_experts=4'),
        (dict(placement='shards'), dict(top_k=dict(start=4, end=2, until=1)), 'top_k: every MoE layer has shards'),
        (dict(num_experts=1, top_k=1), dict(temperature=SLOW), 'temperature: the config builds no MoE layer'),
    ],
)
def test_schedules_that_no_layer_can_follow(tmp_path, moe, schedules, words):
    with pytest.raises(MoEConfigError, match=words):
        run(tmp_path / 'run', moe, **schedules)


def test_a_schedule_acts_on_the_choice_of_shards(tmp_path):
    moe = dict(placement='shards', shards=2, copies=2, constraint=dict(type='KLConstraint', weight=0.01))
    values, _, _ = run(tmp_path / 'run', moe, temperature=SLOW, noise=dict(start=1.0, end=0.0, until=0.5))
    assert values.steps == [{(1.0, 2.0, 1.0, None)}, {(0.5, 1.5, 1.0, None)}] + [{(0.0, 1.0, 1.0, None)}] * 2
    assert set(values.chosen[True]) == {2}
