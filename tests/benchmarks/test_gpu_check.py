"""What a check of a GPU keeps, prints and calls wrong; tests/device runs it on a pretended GPU."""

from __future__ import annotations

import json
import time

import gpu_check
import pytest
import torch
from gpu.report import Report, problems, tables


def test_without_a_gpu_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert gpu_check.main(['--out', str(tmp_path / 'found.json')]) == 2
    text = capsys.readouterr().err
    assert 'sees no GPU' in text and len(text.splitlines()) == 1
    assert not (tmp_path / 'found.json').exists()


@pytest.mark.parametrize(('option', 'value'), [('--minutes', '0'), ('--out', 'found.txt'), ('--only', 'everything')])
def test_wrong_options_are_named(option, value, capsys):
    with pytest.raises(SystemExit):
        gpu_check.parse_args([option, value])
    assert option in capsys.readouterr().err


def test_limits_fit_into_the_default_and_ten_minutes():
    args = gpu_check.parse_args([])
    assert sum(gpu_check.LIMITS.values()) <= 60 * args.minutes <= 600
    assert tuple(args.only) == tuple(gpu_check.LIMITS)


def test_results_are_written_after_each_section(tmp_path):
    path = tmp_path / 'deep' / 'found.json'
    report = Report(path, {'gpu': 'x'}, minutes=1)

    def fail(deadline):
        raise RuntimeError('no such kernel')

    report.run('first', 10, lambda deadline: {'a': 1})
    assert json.loads(path.read_text()) == {
        'made': {'gpu': 'x'},
        'sections': {'first': {'results': {'a': 1}, 'seconds': pytest.approx(0, abs=1)}},
    }
    report.run('second', 10, fail)
    report.run('third', 10, lambda deadline: {'left': deadline.left()})
    sections = json.loads(path.read_text())['sections']
    assert list(sections) == ['first', 'second', 'third']
    assert sections['second']['error'] == 'RuntimeError: no such kernel' and 'fail' in sections['second']['traceback']
    assert 0 < sections['third']['results']['left'] <= 10
    assert not path.with_suffix('.part').exists()


def test_nothing_runs_when_the_time_is_over(tmp_path):
    report = Report(tmp_path / 'found.json', {}, minutes=1e-9)
    time.sleep(0.001)
    report.run('late', 10, lambda deadline: pytest.fail('it ran'))
    assert 'no time' in report.sections['late']['error']


def good_sections() -> dict:
    """A report of a GPU on which everything is right."""
    totals = {'phases': {'total': {'median_ms': 12.5}}, 'of dense': {'median': 1.25}}
    speed = {
        'training': {'dense': totals},
        'inference': {'dense': totals},
        'memory': {'dense': {'peak_beyond_state': 2048.0}},
    }
    results = {
        'agreement': {'branch': {'loss': 1e-7, 'gradient': 2e-5, 'waits': {'moe_det/routing/dispatch.py:72': 1}}},
        'speed': {'B=8, fp16': speed, 'B=16, tf32': {'error': 'out of memory'}},
        'profile': {'k=2': {'step ms': 9.0, 'GPU busy ms': 7.0, 'launches': 100, 'waits': {'a.py:1': 2}}},
        'determinism': {'branch': []},
        'search': {'off': {'first pass ms': 1.0, 'second pass ms': 1.5}},
        'operators': {'nms equal': True},
    }
    return {name: {'results': found, 'seconds': 1.0} for name, found in results.items()}


def test_tables_show_every_section():
    text = tables(good_sections())
    parts = ['dispatch.py:72 (1)', '12.5     1.250', '2.00', 'B=16, tf32: out of memory', 'GPU busy 7 ms', '1 of 1']
    assert all(part in text for part in [*parts, 'nms equal'])
    assert tables({}) == ''


def test_what_is_wrong_is_named_and_nothing_else():
    sections = good_sections()
    assert list(problems(sections)) == []
    sections['agreement']['results'] |= {
        'patch': {'loss': float('nan'), 'gradient': 1e-6, 'waits': {}},
        'tower': {'loss': 1e-6, 'gradient': 0.2, 'waits': {}},
    }
    sections['determinism']['results'] |= {'tower': ['weight'], 'patch': 'no deterministic form'}
    sections['search'] = {'error': 'RuntimeError: x', 'seconds': 1.0}
    found = list(problems(sections))
    assert [line.split(': ')[:2] for line in found] == [
        ['search', 'RuntimeError'],
        ['agreement', 'patch'],
        ['agreement', 'tower'],
        ['determinism', 'tower'],
        ['determinism', 'patch'],
    ]
    assert 'loss differs' in found[1] and 'gradient differs' in found[2] and 'no deterministic form' in found[4]
