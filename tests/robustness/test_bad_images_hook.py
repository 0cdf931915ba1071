"""Images that cannot be read: skipped, named once, counted, and an error when there are too many."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mmengine.config import Config
from small_files import damage, write_images
from small_runs import EPOCHS, ITERATIONS, Collect, hooks_of, run_of, stop_workers, validated

from moe_det.errors import DataError, MoEConfigError
from moe_det.robustness.bad_images_hook import SkipBadImagesHook, tolerated_images
from moe_det.robustness.tolerant_loading import TolerantLoader

HOOK = dict(type='SkipBadImagesHook', max_images=4)


def train(runner) -> list[str]:
    log = Collect()
    runner.logger.addHandler(log)
    try:
        runner.train()
    finally:
        stop_workers(runner)
    return [record.getMessage() for record in log.records]


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / 'data')


@pytest.mark.parametrize(
    ('loop', 'workers', 'exact'),
    [(EPOCHS, 0, False), (EPOCHS, 2, True), (ITERATIONS, 0, True), (ITERATIONS, 2, False), (ITERATIONS, 2, True)],
)
def test_damaged_images_are_skipped_named_once_and_counted(folder, tmp_path, loop, workers, exact):
    bad = damage(folder)
    hooks = [dict(type='ExactResumeHook')] * exact + [HOOK]
    if loop is ITERATIONS:
        loop = dict(loop, max_iters=15)
    runner = run_of(folder, tmp_path / 'work', *hooks, loop=loop, workers=workers)
    messages = train(runner)
    batches = runner.model.batches
    assert len(batches) == (10 if loop is EPOCHS else 15) and all(len(batch) == 2 for batch in batches)
    assert {ident for batch in batches for ident in batch} <= {0, 1, 4, 7, 8, 9}
    named = [message for message in messages if 'cannot be read and is skipped' in message]
    assert sorted(message.split()[0] for message in named) == sorted(bad)
    reasons = {message.split()[0]: message for message in named}
    for path, words in zip(bad, ('empty', '6 bytes that cannot be decoded', 'truncated', 'no such file'), strict=True):
        assert words in reasons[path]
    lines = [json.loads(line) for line in (tmp_path / 'work' / 'bad_images.jsonl').read_text().splitlines()]
    assert {line['path'] for line in lines} == set(bad)
    hook = hooks_of(runner, SkipBadImagesHook)
    assert set(hook.bad) == set(bad)
    totals = [message for message in messages if 'end of epoch' in message]
    if loop is EPOCHS and not workers:  # without workers nothing is loaded ahead of an epoch's end
        assert sum(int(message.split(' times')[0].split()[-1]) for message in totals) == len(lines) >= 8
        assert '4 files so far' in totals[-1] and 'max_images=4' in totals[-1]


def test_an_undamaged_run_is_the_same_with_and_without_the_hook(folder, tmp_path):
    for loop, workers in ((EPOCHS, 0), (ITERATIONS, 2)):
        orders = []
        for name, hooks in (('with', [HOOK]), ('without', [])):
            runner = run_of(folder, tmp_path / f'{name}{workers}', *hooks, loop=loop, workers=workers)
            assert not [message for message in train(runner) if 'cannot be read' in message]
            orders.append(runner.model.batches)
        assert orders[0] == orders[1]
    assert not (tmp_path / 'with0' / 'bad_images.jsonl').exists()


@pytest.mark.parametrize('workers', [0, 2])
def test_more_than_the_limit_is_an_error_that_names_the_files(folder, tmp_path, workers):
    bad = damage(folder)
    runner = run_of(folder, tmp_path / 'work', dict(HOOK, max_images=3), workers=workers, loop=dict(EPOCHS))
    with pytest.raises(DataError, match='max_images=3') as caught:
        train(runner)
    assert all(path in str(caught.value) for path in bad)


def test_a_data_set_without_any_good_image_ends_in_an_error_instead_of_a_search(folder, tmp_path):
    for path in (folder / 'images').iterdir():
        path.write_bytes(b'')
    with pytest.raises(DataError, match='10 images cannot be read'):
        train(run_of(folder, tmp_path / 'work', dict(HOOK, max_images=100)))


def test_a_run_that_resumes_goes_on_counting_and_another_one_starts_anew(folder, tmp_path):
    bad = damage(folder)
    train(run_of(folder, tmp_path / 'work', HOOK, loop=dict(EPOCHS, max_epochs=1)))
    messages = train(run_of(folder, tmp_path / 'work', HOOK, resume=True, experiment_name='resumed'))
    assert any('4 images could not be read before this resume' in message for message in messages)
    assert not any('is skipped:' in message for message in messages)  # each was named
    journal = tmp_path / 'work' / 'bad_images.jsonl'
    before = len(journal.read_text().splitlines())
    messages = train(run_of(folder, tmp_path / 'work', HOOK, loop=dict(EPOCHS, max_epochs=1), experiment_name='new'))
    assert sum('is skipped:' in message for message in messages) == len(bad)
    assert 4 <= len(journal.read_text().splitlines()) < before


def test_validation_refuses_a_damaged_image_or_takes_a_black_one(folder, tmp_path):
    good = write_images(tmp_path / 'good')
    bad = damage(folder)
    runner = run_of(good, tmp_path / 'refusing', HOOK, **validated(folder))
    with pytest.raises(DataError) as caught:
        runner.val()
    assert bad[0] in str(caught.value) and "evaluation='blank'" in str(caught.value)

    runner = run_of(good, tmp_path / 'blank', dict(HOOK, evaluation='blank'), **validated(folder))
    messages = train(runner)
    assert runner.message_hub.get_info('count') is None and len(runner.model.greys) == 10  # none vanished
    black = {ident for ident, grey in runner.model.greys.items() if grey == 0}
    assert black == {0, 2, 3, 5, 6}  # image 0 is black by itself
    assert sum('replaced by a black one:' in message for message in messages) == 4
    totals = [message for message in messages if message.startswith('validation:')]
    assert len(totals) == 2 and all('4 times; 4 files' in message for message in totals)
    assert not any('end of epoch' in message for message in messages)  # training skipped nothing


def test_a_truncated_image_is_damaged_also_where_the_decoder_fills_it_with_grey(folder, tmp_path):
    path = folder / 'images' / '1.jpg'
    path.write_bytes(path.read_bytes()[:-60])
    loader = TolerantLoader(lambda results: dict(results, img=np.zeros(1)), 'skip', str(tmp_path / 'journal'), 5)
    assert loader(dict(img_path=str(path), img_id=1)) is None
    assert 'truncated' in json.loads((tmp_path / 'journal').read_text())['reason']
    assert loader(dict(img_path=str(folder / 'images' / '4.jpg')))['img'] is not None
    assert loader(dict(img_path='s3://bucket/elsewhere.jpg'))['img'] is not None  # another storage


def test_other_errors_of_the_storage_are_told_and_memory_errors_are_not_the_files(tmp_path):
    def fail(error):
        def load(results):
            raise error

        return TolerantLoader(load, 'skip', str(tmp_path / 'journal'), 5)

    assert fail(ConnectionError('gateway\ntimeout'))(dict(img_path='s3://bucket/a.jpg')) is None
    assert json.loads((tmp_path / 'journal').read_text())['reason'] == 'ConnectionError: gateway timeout'
    with pytest.raises(MemoryError):
        fail(MemoryError())(dict(img_path='a.jpg'))


def test_the_limit_is_checked_and_the_policy(tmp_path):
    for settings, words in ((dict(max_images=-1), 'max_images=-1'), (dict(evaluation='skip'), "evaluation='skip'")):
        with pytest.raises(MoEConfigError, match=words):
            SkipBadImagesHook(**settings)


def test_a_pipeline_without_a_reader_is_said(folder, tmp_path):
    runner = run_of(folder, tmp_path / 'work', HOOK)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    transforms = runner.train_dataloader.dataset.dataset.pipeline.transforms
    read = transforms[0].transform
    transforms[0] = lambda results: read(results)
    assert any('have no LoadImageFromFile' in message for message in train(runner))


def test_what_a_config_tolerates():
    hooks = [dict(type='MoEHook'), dict(type='SkipBadImagesHook')]
    assert tolerated_images(Config(dict(custom_hooks=hooks)), 'train') == 100
    assert tolerated_images(Config(dict(custom_hooks=hooks)), 'val') == 0
    hooks[1].update(max_images=7, evaluation='blank')
    assert tolerated_images(Config(dict(custom_hooks=hooks)), 'val') == 7
    assert tolerated_images(Config({}), 'train') == 0


def test_lines_that_a_killed_process_left_half_written_are_passed_over(tmp_path):
    hook = SkipBadImagesHook()
    hook._journal = str(tmp_path / 'journal')
    first, second = (json.dumps(dict(path=path, reason='empty', policy='skip')) for path in ('a.jpg', 'b.jpg'))
    (tmp_path / 'journal').write_text(f'{{"path": "x\n{first}\n{second[:20]}')
    assert hook._poll() == {'a.jpg': ('empty', 'skip')}
    with open(tmp_path / 'journal', 'a') as file:
        file.write(second[20:] + '\n')
    assert list(hook._poll()) == ['b.jpg'] and hook._times['skip'] == 2
