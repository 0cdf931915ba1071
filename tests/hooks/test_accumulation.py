"""Gradient accumulation: what two iterations of two images have in common with one of four."""

from __future__ import annotations

import pytest
import torch
from running.detector_runs import FOUR, STEPS, plain, run, trained
from small_runs import Kill, Killed

from moe_det.routing import find_routers

Z = dict(type='ZLossConstraint', weight=0.1)
# losses that are means over rows, and states of hard constraints; the objects of all images are the same, because
# mmdet divides its losses by the positive anchors of an iteration
CASE = dict(
    head=dict(**FOUR, constraint=[Z, dict(type='RelativeImportanceConstraint', threshold=0.1)], balance_over='level'),
    backbone=dict(
        moe=dict(
            stages=(4,),
            num_experts=4,
            top_k=1,
            constraint=[
                Z,
                dict(type='SelectionBiasConstraint', rate=0.1),
                dict(type='MeanImportanceConstraint', threshold=0.1),
            ],
        )
    ),
    same_boxes=True,
)


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> tuple[dict, dict]:
    """Steps of four images at once, and of two times two."""
    folder = tmp_path_factory.mktemp('accumulation')
    return trained(folder, 'large', **CASE), trained(folder, 'small', **CASE, batch_size=2, accumulate=2)


def compare(actual: dict, expected: dict, names, **tolerance) -> None:
    for name in names:
        torch.testing.assert_close(
            actual[name],
            expected[name],
            msg=lambda m, name=name: f'{name}: {m}',
            **(tolerance or dict(rtol=1e-7, atol=1e-9)),
        )


def test_the_gates_and_everything_else_get_the_updates_of_the_large_batch(runs):
    large, small = runs
    gates = [name for name in large['start'] if '.gate.' in name]
    assert len(gates) == 6
    assert all((large['end'][name] - large['start'][name]).abs().max() > 1e-4 for name in gates)
    compare(small['start'], large['start'], large['start'])
    compare(small['end'], large['end'], large['end'])


def test_states_of_hard_constraints_move_once_per_step_of_the_optimizer(runs):
    large, small = runs
    assert len(large['states']) == STEPS and len(small['states']) == 2 * STEPS
    names = [name for name in large['states'][0] if name.split('.')[-1] in ('relative', 'bias', 'mean', 'steps')]
    assert len(names) == 5
    for step in range(STEPS):
        before, after = small['states'][2 * step : 2 * step + 2]
        compare(after, large['states'][step], large['states'][step])  # the usage for the log too
        start = small['states'][2 * step - 1] if step else {name: torch.zeros_like(before[name]) for name in names}
        compare(before, start, names, rtol=0, atol=0)
        assert all(not torch.equal(after[name], before[name]) for name in names if 'bias' not in name)
    assert small['states'][-1]['backbone.layer4.mean_importance.steps'].tolist() == [STEPS]


def test_balance_losses_are_those_of_each_iteration(tmp_path):
    # two micro-batches that use different experts are each unbalanced, together they are not: only a second forward
    # could tell the first of the second
    case = dict(
        head=dict(**FOUR, constraint=dict(type='KLConstraint'), noise=False),
        backbone=dict(moe=dict(stages=(4,), num_experts=4, top_k=1)),
        same_boxes=True,
    )
    large, small = trained(tmp_path, 'large', **case), trained(tmp_path, 'small', **case, batch_size=2, accumulate=2)
    for branch in ('cls', 'reg'):
        whole = large['losses'][0][f'loss_moe_kl_{branch}']
        parts = [small['losses'][i][f'loss_moe_kl_{branch}'] for i in range(2)]
        assert sum(parts) / 2 > whole + 1e-4  # the divergence is convex in the shares, which the two average


def test_a_run_that_was_killed_between_two_steps_goes_on_exactly(tmp_path):
    settings = dict(
        CASE,
        batch_size=2,
        accumulate=2,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False), logger=None),
    )
    whole = run(tmp_path, 'whole', dict(type='ExactResumeHook'), **settings)
    whole.train()
    killed = run(tmp_path, 'parts', dict(type='ExactResumeHook'), Kill('after_train_iter', 2), **settings)
    with pytest.raises(Killed):
        killed.train()
    waiting = torch.load(tmp_path / 'parts' / 'iter_3.pth', weights_only=True)['moe_waiting_usage']
    assert set(waiting) == {'backbone.layer4', 'bbox_head.cls', 'bbox_head.reg'}
    assert waiting['backbone.layer4'][-1].tolist() == [2]  # rows
    assert torch.load(tmp_path / 'parts' / 'iter_2.pth', weights_only=True)['moe_waiting_usage'] == {}
    rest = run(tmp_path, 'parts', dict(type='ExactResumeHook'), resume=True, **settings)
    rest.train()
    expected = plain(whole).state_dict()
    compare(plain(rest).state_dict(), expected, expected, rtol=0, atol=0)
    for router in find_routers(plain(rest)).values():
        assert router.step.waiting is None and router.step.optimizer_follows


def test_the_last_step_may_have_fewer_iterations(tmp_path):
    # eight iterations in steps of three: the last has two, and the state moves for it too
    result = trained(tmp_path, 'odd', **dict(CASE, batch_size=2, accumulate=3))
    steps = [state['backbone.layer4.mean_importance.steps'].item() for state in result['states']]
    assert steps == [0, 0, 1, 1, 1, 2, 2, 3]
