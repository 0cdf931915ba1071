"""Two processes: they train the detector that one process trains, and faults of one are seen by both.

Starting them takes longer than all that they do, so they are started once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running.detector_runs import CASES, STEPS, UNUSED, UNUSED_AT, assert_close, evaluated, free_port, trained
from small_files import damage, write_images
from small_models import detector

WORKER = Path(__file__).with_name('two_rank_worker.py')


@pytest.fixture(scope='module')
def processes(tmp_path_factory) -> tuple[list[str], Path, dict]:
    """The damaged files, the work folder of both processes, and the trainings of this one."""
    root = tmp_path_factory.mktemp('ranks')
    folder = write_images(root / 'data', 24)
    bad = damage(folder)
    (root / 'work').mkdir()
    torch.manual_seed(1)
    torch.save(dict(meta={}, state_dict=detector().state_dict()), root / 'work' / 'dense.pth')
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), port, str(folder), str(root / 'work')],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        # while the two start
        alone = {name: trained(root / 'work', f'{name} of one', **case) for name, case in CASES.items()}
        alone['evaluation'] = evaluated(root / 'work', 'evaluation of one')
        for process in started:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
    return bad, root / 'work', alone


@pytest.fixture(scope='module')
def runs(processes) -> tuple[list[str], Path, list[dict]]:
    """The damaged files, the work folder, and what each process wrote of its faults."""
    bad, work, _ = processes
    return bad, work, [json.loads((work / f'rank{rank}.json').read_text()) for rank in range(2)]


@pytest.fixture(scope='module')
def trainings(processes) -> tuple[dict, dict, dict]:
    """What one process computes in every case, and what each of two computes."""
    _, work, alone = processes
    return alone, *(torch.load(work / f'rank{rank}.pt') for rank in range(2))


def journal(work_dir: Path, rank: int) -> set[str]:
    path = work_dir / ('bad_images.rank1.jsonl' if rank else 'bad_images.jsonl')
    return {json.loads(line)['path'] for line in path.read_text().splitlines()} if path.exists() else set()


def test_both_processes_skip_and_keep_journals_of_their_own(runs):
    bad, work, results = runs
    for result in results:
        found = result['limit 4']
        assert found['kind'] == '' and found['iter'] == 12  # 24 images, 2 x 2 a step, 2 epochs
        assert not {2, 3, 5, 6} & {ident for batch in found['batches'] for ident in batch}
    assert journal(work / 'limit4', 0) | journal(work / 'limit4', 1) == set(bad)


def test_the_limit_counts_the_files_of_all_processes(runs):
    bad, work, results = runs
    # neither process has more than three by itself after the first epoch: only together they are too many
    assert max(len(journal(work / 'limit3', rank)) for rank in range(2)) <= 3
    for result in results:
        found = result['limit 3']
        assert found['kind'] == 'DataError' and found['iter'] == 6
        assert 'max_images=3' in found['message'] and all(path in found['message'] for path in bad)


@pytest.mark.parametrize(('case', 'iteration'), [('nan', 4), ('nan between steps', 2)])
def test_a_nan_of_one_process_stops_both_with_its_images_before_the_step(runs, case, iteration):
    _, _, results = runs
    for result in results:
        found = result[case]
        assert found['kind'] == 'NonFiniteError' and found['sound']
        assert found['message'].startswith(f'iteration {iteration} (epoch 1)')
        assert 'rank 1: loss=nan' in found['message'] and 'rank 0' not in found['message']
        batch = results[1][case]['batches'][-1]
        assert len(batch) == 2 and all(f'id {ident} (' in found['message'] for ident in batch)
        assert not [name for name in found['files'] if name.endswith('.pth')]


# -- trainings -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=list(CASES))
def case(request, trainings) -> tuple[dict, dict, dict]:
    return tuple(run[request.param] for run in trainings)


def test_weights_are_those_of_one_process(case):
    alone, *ranks = case
    assert [run['find_unused_parameters'] for run in case] == [None, False, False]
    moved = {name for name, value in alone['start'].items() if not torch.equal(alone['end'][name], value)}
    assert {name for name in alone['start'] if '.gate.' in name} <= moved
    assert any('experts.' in name for name in moved)
    assert all(value.isfinite().all() for value in alone['end'].values())
    for run in ranks:
        assert_close(run['start'], alone['start'], rtol=0, atol=0)
        assert_close(run['end'], alone['end'], rtol=1e-6, atol=1e-6)


def test_balance_and_states_are_those_of_the_whole_batch(case):
    alone, *ranks = case
    for step in range(STEPS):
        for run in ranks:
            assert_close(run['states'][step], alone['states'][step], rtol=1e-6, atol=1e-6)
            for key, value in alone['losses'][step].items():
                if 'moe' in key:
                    torch.testing.assert_close(run['losses'][step][key], value, rtol=1e-6, atol=1e-7)
        for key in ('loss_cls', 'loss_bbox', 'loss'):
            mean = sum(run['losses'][step][key] for run in ranks) / 2
            torch.testing.assert_close(mean, alone['losses'][step][key], rtol=1e-6, atol=1e-7)


def test_the_cases_are_what_they_say(trainings):
    alone, *ranks = trainings
    for name in CASES:
        for run in ranks:
            assert run[name]['losses'][0].keys() == alone[name]['losses'][0].keys()
        first, second = (run[name]['loads'] for run in ranks)
        assert_close({key: first[key] + second[key] for key in first}, alone[name]['loads'], rtol=0, atol=0)
        if name in ('soft', 'hard'):
            assert any(((first[key] > 0) & (second[key] == 0)).any() for key in first), name
            assert any(((first[key] == 0) & (second[key] == 0)).any() for key in first), name
    unused = [load for key, load in alone['soft']['loads'].items() if key.startswith(f'{UNUSED_AT} ')]
    assert len(unused) == 3 and all(load[UNUSED] == 0 for load in unused)


def test_evaluation_is_that_of_one_process(trainings):
    alone, first, second = (run['evaluation'] for run in trainings)
    assert [image for image, _, _ in alone['images']] == list(range(7))
    assert all(len(scores) > 10 and len(set(scores)) > 10 for _, _, scores in alone['images'])
    assert first['images'] == alone['images'] and second['images'] is None
    assert first['metrics'] == second['metrics'] == alone['metrics']
    assert set(alone['utilisation']) == {'backbone.layer4', 'bbox_head.cls', 'bbox_head.reg'}
    for layer, used in alone['utilisation'].items():
        assert used['rows'] == 7 * (1 if layer.startswith('backbone') else 5)
        for run in (first, second):
            assert run['utilisation'][layer].keys() == used.keys()
            for key, value in used.items():
                assert run['utilisation'][layer][key] == pytest.approx(value, rel=1e-12), key
