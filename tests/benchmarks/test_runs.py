"""Commands that a benchmark runs, one after the other or several at once."""

from __future__ import annotations

import json
import sys
import threading

import pytest
from common import runs


def test_output_and_threads_of_a_command(tmp_path):
    log = tmp_path / 'new' / 'log'
    show = [sys.executable, '-c', 'import os; print(os.environ["OMP_NUM_THREADS"])']
    assert runs.call(show, log, 3) > 0 and log.read_text() == '3\n'
    with pytest.raises(runs.RunError, match=f'ended with 5, see {log}'):
        runs.call([sys.executable, '-c', 'import sys; print("why"); sys.exit(5)'], log)
    assert log.read_text() == 'why\n'
    assert runs.threads_of(1) is None and runs.threads_of(1000) == 1


@pytest.mark.parametrize('jobs', [1, 2])
def test_a_task_that_fails_leaves_the_others(jobs, capsys):
    def work(name: str, number: int) -> int:
        if name == 'bad':
            raise runs.RunError('no memory')
        return 10 * number

    found = []
    with pytest.raises(SystemExit, match='failed: bad 1; the others are recorded'):
        for task, result in runs.finished(work, [('a', 0), ('bad', 1), ('b', 2)], jobs):
            found.append((task, result))
    assert sorted(found) == [(('a', 0), 0), (('b', 2), 20)]
    assert 'bad 1: no memory' in capsys.readouterr().err


def test_so_many_at_once_and_none_begins_after_an_interruption():
    together, begun = threading.Barrier(2, timeout=30), []

    def work(number: int) -> int:
        begun.append(number)
        if number < 2:
            together.wait()  # fails unless two are at work
        return number

    results = runs.finished(work, [(i,) for i in range(2)], jobs=2)
    assert sorted(result for _, result in results) == [0, 1]

    begun.clear()
    release = threading.Event()

    def slow(number: int) -> int:
        begun.append(number)
        if number:
            release.wait(30)
        return number

    with pytest.raises(KeyboardInterrupt):
        for _ in runs.finished(slow, [(i,) for i in range(9)], jobs=1):
            threading.Timer(0.2, release.set).start()
            raise KeyboardInterrupt
    assert begun in ([0], [0, 1])


@pytest.mark.parametrize(('layers', 'swap'), [(['own'], 'own'), (['one', 'other'], 'of both')])
def test_the_swap_of_all_layers_is_that_of_an_only_one(tmp_path, layers, swap):
    content = {'layers': [{'swap': layer} for layer in layers], 'swap': None if len(layers) == 1 else swap}
    (tmp_path / 'size_specialization.json').write_text(json.dumps(content))
    assert runs.report(tmp_path / 'config.py', tmp_path / 'a.pth', tmp_path, [], {})['swap'] == swap
