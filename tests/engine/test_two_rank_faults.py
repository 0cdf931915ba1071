"""Two processes: damaged images are counted over both, and one process's NaN stops both with its images."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_coco_runs import damage, write_images

WORKER = Path(__file__).with_name('two_rank_worker.py')


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> tuple[list[str], Path, list[dict]]:
    """The damaged files, the work folder, and what each process wrote."""
    root = tmp_path_factory.mktemp('ranks')
    folder = write_images(root / 'data', 24)
    bad = damage(folder)
    (root / 'work').mkdir()
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), port, str(folder), str(root / 'work')],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return bad, root / 'work', [json.loads((root / 'work' / f'rank{rank}.json').read_text()) for rank in range(2)]


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
