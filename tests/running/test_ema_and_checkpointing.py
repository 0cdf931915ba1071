"""The moving average of the weights and activation checkpointing leave the balance as it is: a forward counts once."""

from __future__ import annotations

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from running.detector_runs import (
    CONV,
    COUNTS,
    EPOCHS,
    FOUR,
    IMAGES,
    SOFT,
    STEPS,
    assert_close,
    plain,
    run,
    trained,
)
from small_runs import Count, Images

from moe_det.hooks.moe_hook import MoEHook
from moe_det.routing import find_routers

HARD = dict(type='RelativeImportanceConstraint', threshold=0.1)
MEAN = dict(type='MeanImportanceConstraint', threshold=0.1)
# the layer in the backbone lies inside a block, which `with_cp` runs twice
CASE = dict(
    head=dict(**FOUR, constraint=[HARD, dict(type='SelectionBiasConstraint', rate=0.1)]),
    backbone=dict(moe=dict(**CONV, constraint=[*SOFT, MEAN], noise=True)),
)


@pytest.fixture(scope='module')
def usual(tmp_path_factory) -> dict:
    """A training with neither."""
    return trained(tmp_path_factory.mktemp('usual'), 'usual', **CASE)


def hook_of(runner) -> MoEHook:
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, MoEHook)]
    return hook


class Validations(Hook):
    """States before and after each validation, and how far its weights are from those of the training."""

    priority = 'LOWEST'  # after EMAHook has put its weights in place

    def __init__(self) -> None:
        self.before, self.after, self.difference = [], [], []

    def state(self, runner) -> dict:
        state = dict(plain(runner).named_buffers())
        for name in find_routers(plain(runner)):
            state.update({f'{name} {key}': value for key, value in vars(hook_of(runner).recent[name]).items()})
        return {key: value.clone() for key, value in state.items()}

    def after_train_epoch(self, runner) -> None:
        self.before.append(self.state(runner))
        self.weights = [p.detach().clone() for p in plain(runner).parameters()]

    def before_val_epoch(self, runner) -> None:
        pairs = zip(self.weights, plain(runner).parameters(), strict=True)
        self.difference.append(max((a - b).abs().max().item() for a, b in pairs))

    def before_train_epoch(self, runner) -> None:
        if self.before:
            self.after.append(self.state(runner))


@pytest.mark.parametrize('update_buffers', [False, True])
def test_evaluating_the_moving_average_leaves_the_training_alone(usual, tmp_path, update_buffers):
    watch = Validations()
    average = dict(type='EMAHook', momentum=0.3, update_buffers=update_buffers)
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=4, num_workers=0, sampler=sampler, dataset=Images(COUNTS))
    validation = dict(
        val_dataloader=dict(loader, collate_fn=dict(type='pseudo_collate')), val_cfg={}, val_evaluator=[Count()]
    )
    schedule = dict(train_cfg=dict(by_epoch=True, max_epochs=EPOCHS, val_interval=1))
    found = trained(tmp_path, 'averaged', average, watch, **CASE, **validation, **schedule)
    assert len(watch.before) == EPOCHS and len(watch.after) == EPOCHS - 1
    assert all(difference > 1e-3 for difference in watch.difference)  # it was the average that was evaluated
    assert_close(watch.after[0], watch.before[0], rtol=0, atol=0)
    for step in range(STEPS):
        assert_close(found['states'][step], usual['states'][step], rtol=0, atol=0)
    assert_close(found['end'], usual['end'], rtol=0, atol=0)


def test_the_average_has_no_steps_of_its_own(tmp_path):
    runner = run(tmp_path, 'run', dict(type='EMAHook', momentum=0.3), **CASE)
    runner.train()
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    routers, averaged = find_routers(plain(runner)), find_routers(hook.ema_model.module)
    assert averaged.keys() == routers.keys() and len(routers) == 3
    for name, router in routers.items():
        copy = averaged[name]
        assert not copy.step.calls and not copy.collected and copy.step.waiting is None
        for key, value in router.named_buffers():  # as they were in the last step
            assert torch.equal(dict(copy.named_buffers())[key], value), f'{name}: {key}'
        assert any((value != 0).any() for key, value in copy.named_buffers() if key.startswith('constraints'))
    assert hook_of(runner).recent['bbox_head.cls'].rows.item() == EPOCHS * IMAGES * 5
