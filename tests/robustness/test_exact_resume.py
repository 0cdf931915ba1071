"""N iterations, a kill, and N more equal 2N: weights, optimizer, data order, augmentations, log."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from small_models import detector
from small_runs import (
    FOUR_EPOCHS,
    SAMPLES,
    TWENTY_ITERATIONS,
    Augmented,
    Images,
    Kill,
    differences,
    logged,
    result,
    train,
    training,
)
from torch.utils.data import DataLoader

from moe_det.errors import CheckpointError

pytestmark = pytest.mark.usefixtures('quick_checkpoints')
INFINITE = dict(type='InfiniteSampler', shuffle=True)
EVERY_ITERATION = dict(by_epoch=False, interval=1)
END_OF_EPOCH, IN_EPOCH, LAST_OF_EPOCH = ('after_train_epoch', 10), ('after_train_iter', 12), ('after_train_iter', 9)


def assert_resumes_exactly(folder, *kills: tuple, hooks: tuple = (), **changes) -> Runner:
    """One run left alone, one killed and resumed as often as there are kills; returns the resumed one."""
    whole = train(training(folder / 'whole', f'{folder.name}-whole', *hooks, **changes))
    seen = []
    for number, place in enumerate([*kills, None]):
        kill = [Kill(*place)] if place else []
        name = f'{folder.name}-{number}'
        runner = train(training(folder / 'parts', name, *hooks, *kill, resume=number > 0, **changes))
        assert not kill or kill[0].happened
        seen += runner.model.seen
    assert differences(result(whole), result(runner)) == []
    assert seen == whole.model.seen
    assert logged(folder / 'whole') == logged(folder / 'parts') != {}
    return runner


RESUMES = {
    'end of epoch': (END_OF_EPOCH, {}),
    'within an epoch': (IN_EPOCH, dict(checkpoint=EVERY_ITERATION)),
    'last iteration of an epoch': (LAST_OF_EPOCH, dict(checkpoint=EVERY_ITERATION)),
    'iterations': (IN_EPOCH, dict(loop=TWENTY_ITERATIONS)),
    'endless sampler': (IN_EPOCH, dict(loop=TWENTY_ITERATIONS, sampler=INFINITE)),
}


@pytest.mark.parametrize('name', RESUMES)
def test_resumed_equals_uninterrupted(tmp_path, name):
    kill, changes = RESUMES[name]
    assert_resumes_exactly(tmp_path, kill, **changes)


@pytest.mark.parametrize('name', ['end of epoch', 'within an epoch', 'iterations', 'endless sampler'])
def test_resumed_equals_uninterrupted_with_data_workers(tmp_path, name):
    kill, changes = RESUMES[name]
    assert_resumes_exactly(tmp_path, kill, workers=2, **changes)


def test_the_number_of_workers_changes_nothing(tmp_path):
    runs = [train(training(tmp_path / str(w), f'{tmp_path.name}-{w}', workers=w)) for w in (0, 2)]
    assert differences(result(runs[0]), result(runs[1])) == []
    assert runs[0].model.seen == runs[1].model.seen
    # and the samples of every epoch are all there, in a new order with new augmentations
    epochs = [runs[0].model.seen[start : start + SAMPLES] for start in range(0, 4 * SAMPLES, SAMPLES)]
    assert all(sorted(sample[0] for sample in epoch) == list(range(SAMPLES)) for epoch in epochs)
    assert len({tuple(sample[0] for sample in epoch) for epoch in epochs}) == 4
    assert len({number for sample in runs[0].model.seen for number in sample[1:4]}) == 3 * 4 * SAMPLES


def test_without_the_hook_a_resumed_run_differs(tmp_path):
    """What the tests above see is the hook's doing."""
    with pytest.raises(AssertionError):
        assert_resumes_exactly(tmp_path, END_OF_EPOCH, exact=False)


def test_several_kills_one_of_them_before_the_first_checkpoint_of_an_epoch(tmp_path):
    kills = [('after_train_iter', 3), ('before_train_iter', 7), ('after_train_iter', 16)]
    assert_resumes_exactly(tmp_path, *kills, checkpoint=EVERY_ITERATION)


@pytest.mark.parametrize('loop', [FOUR_EPOCHS, dict(TWENTY_ITERATIONS)], ids=['epochs', 'iterations'])
def test_a_seed_that_nobody_gave_is_kept(tmp_path, loop):
    """mmengine builds the sampler with a new seed before it reads the old one from the checkpoint."""
    sampler = INFINITE if loop is not FOUR_EPOCHS else dict(type='DefaultSampler', shuffle=True)
    changes = dict(loop=loop, sampler=sampler, checkpoint=EVERY_ITERATION)
    first = train(training(tmp_path / 'a', 'a', Kill(*IN_EPOCH), **changes, randomness=dict(seed=None)))
    np.random.seed(12345)  # mmengine draws a seed from numpy
    second = train(training(tmp_path / 'a', 'b', resume=True, **changes, randomness=dict(seed=None)))
    whole = train(training(tmp_path / 'c', 'c', **changes, randomness=dict(seed=first.seed)))
    assert first.seed == second.seed == whole.seed
    assert first.model.seen + second.model.seen == whole.model.seen


def test_batches_by_aspect_ratio_go_on_within_the_epoch(tmp_path):
    class Shapes(Augmented):
        def get_data_info(self, index: int) -> dict:
            return dict(width=10 + index % 3, height=11)

    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        batch_sampler=dict(type='AspectRatioBatchSampler'),
        dataset=Shapes(),
    )
    runner = assert_resumes_exactly(tmp_path, IN_EPOCH, checkpoint=EVERY_ITERATION, train_dataloader=loader)
    assert type(runner.train_dataloader.batch_sampler.inner).__name__ == 'AspectRatioBatchSampler'


def test_a_data_loader_that_the_user_built_with_torchs_own_random_order(tmp_path):
    def loader() -> DataLoader:
        return DataLoader(Augmented(), batch_size=2, shuffle=True)

    whole = train(training(tmp_path / 'a', 'a', checkpoint=EVERY_ITERATION, train_dataloader=loader()))
    train(training(tmp_path / 'b', 'b', Kill(*IN_EPOCH), checkpoint=EVERY_ITERATION, train_dataloader=loader()))
    rest = train(training(tmp_path / 'b', 'c', resume=True, checkpoint=EVERY_ITERATION, train_dataloader=loader()))
    assert differences(result(whole), result(rest)) == []


def test_gradients_that_wait_for_their_step(tmp_path):
    settings = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9), accumulative_counts=4)
    assert_resumes_exactly(tmp_path, ('after_train_iter', 5), checkpoint=EVERY_ITERATION, optim_wrapper=settings)
    waiting = torch.load(tmp_path / 'parts' / 'iter_6.pth', weights_only=True)['exact_resume']['gradients']
    assert set(waiting) == {'layer.weight', 'layer.bias', 'norm.weight', 'norm.bias'}
    assert 'gradients' not in torch.load(tmp_path / 'parts' / 'iter_8.pth', weights_only=True)['exact_resume']


def validations(runner: Runner) -> int:
    return len(runner.message_hub.log_scalars['val/value'].data[0])


@pytest.mark.parametrize('kill', [('before_val_epoch', 10), ('before_val_iter', 20)])
def test_a_validation_that_the_kill_prevented_comes_first(tmp_path, kill):
    """After the last epoch nothing else would ever run it."""
    changes = dict(checkpoint=dict(save_best='value', rule='less'))
    runner = assert_resumes_exactly(tmp_path, kill, **changes)
    assert validations(runner) == 2
    best = {folder: [path.name for path in (tmp_path / folder).glob('best_*')] for folder in ('whole', 'parts')}
    assert best['whole'] == best['parts'] != []


def test_a_validation_that_was_done_is_not_repeated(tmp_path):
    # the best checkpoint of a validation is saved together with a new last one
    runner = assert_resumes_exactly(tmp_path, ('after_val_epoch', 10), checkpoint=dict(save_best='value', rule='less'))
    assert validations(runner) == 2


def test_moving_average_of_the_weights(tmp_path):
    assert_resumes_exactly(tmp_path, IN_EPOCH, checkpoint=EVERY_ITERATION, hooks=(dict(type='EMAHook'),))


def test_changed_data_begin_the_epoch_again_and_say_so(tmp_path):
    train(training(tmp_path, 'a', Kill(*IN_EPOCH), checkpoint=EVERY_ITERATION))
    runner = training(tmp_path, 'b', resume=True, checkpoint=EVERY_ITERATION)
    runner._train_dataloader['batch_size'] = 5
    lines = []
    runner.logger.warning = lines.append
    train(runner)
    (line,) = [line for line in lines if 'batches_per_epoch' in line]
    assert 'batches_per_epoch was 5, is 2' in line and 'images_per_step was 2, is 5' in line


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(training(tmp_path, 'a', Kill(*END_OF_EPOCH)))
    runner = training(tmp_path, 'b', resume=True)
    runner.model.layer = torch.nn.Linear(5, 3)
    with pytest.raises(CheckpointError, match=r'epoch_2.pth.*2 have other shapes.*layer.weight is \(4, 5\) there'):
        train(runner)


def test_a_checkpoint_from_before_the_hook_resumes_with_a_warning(tmp_path):
    train(training(tmp_path, 'a', Kill(*END_OF_EPOCH), exact=False))
    runner = training(tmp_path, 'b', resume=True)
    lines = []
    runner.logger.warning = lines.append
    assert train(runner).iter == 20
    assert [line for line in lines if 'without this hook' in line]


def test_an_evaluation_draws_as_before(tmp_path):
    """The hook only rules trainings."""
    runner = training(tmp_path, 'a')
    torch.manual_seed(1)
    expected = torch.rand(())
    torch.manual_seed(1)
    next(hook for hook in runner.hooks if type(hook).__name__ == 'ExactResumeHook').before_val_epoch(runner)
    assert torch.equal(torch.rand(()), expected)


@pytest.mark.parametrize('constraint', ['KLConstraint', 'RelativeImportanceConstraint'])
def test_experts_go_on_with_their_noise_their_balance_and_their_log(tmp_path, constraint):
    """Killed between two logs of the experts' use: the next log is of all iterations since the last one."""
    moe = dict(num_experts=4, top_k=2, constraint=dict(type=constraint))

    def start(name: str, *hooks, **changes) -> Runner:
        return training(
            tmp_path / name,
            f'{name}{len(hooks)}',
            dict(type='MoEHook', interval=4),
            *hooks,
            model=detector(moe),
            train_dataloader=DataLoader(Images(), batch_size=2, collate_fn=pseudo_collate),
            loop=dict(by_epoch=True, max_epochs=3),
            checkpoint=EVERY_ITERATION,
            **dict(val_dataloader=None, val_cfg=None, val_evaluator=None, **changes),
        )

    torch.manual_seed(0)
    whole = train(start('whole'))
    torch.manual_seed(0)
    train(start('parts', Kill('after_train_iter', 2)))
    resumed = train(start('parts', resume=True))
    assert differences(result(whole), result(resumed)) == []
    assert any('moe_load_ratio_max' in key for key in whole.message_hub.log_scalars)
    draws = [key for key in whole.model.state_dict() if key.endswith('noise.draws')]
    assert bool(draws) == (constraint == 'KLConstraint')
