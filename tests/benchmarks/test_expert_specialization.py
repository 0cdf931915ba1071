"""benchmarks/reproduce_expert_specialization.py: its page from made-up runs, and real runs on a few images."""

from __future__ import annotations

import gc
import json
import logging
import math
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from small_images import write_mnist

from moe_det.engine.launch import load_config
from moe_det.routing.router import Router

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'
MODULES = (
    'reproduce_expert_specialization',
    'expert_specialization_runs',
    'expert_specialization_page',
    'reproduce_soft_vs_hard',
    'soft_vs_hard_page',
    'command_runs',
)


@pytest.fixture
def load(monkeypatch):
    """Imports a script as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__


def run_of(row: str, seed: int, test_error: float, data_set: str = 'fashion_mnist', **changes) -> dict:
    """What a finished run leaves."""
    run = dict(data_set=data_set, row=row, seed=seed, epochs=20, train_error=0.05, test_error=test_error)
    run |= dict(test_I_EY=2.0, test_H_s=0.1, test_H_u=2.3, seconds=10.0, cpu_seconds=8.0, machine='a machine')
    run |= dict(versions=dict(torch='2.10'), date='2026-01-01', command='python x')
    if row == 'single':
        run |= dict(test_I_EY=None, test_H_s=None, test_H_u=None)
    return run | changes


RUNS = [
    run_of('single', 0, 0.1325),
    run_of('original', 0, 0.100, train_error=0.03, test_I_EY=1.9),
    run_of('original', 1, 0.106, train_error=0.02, test_I_EY=2.2),
    run_of('attentive_importance', 0, 0.103),  # not behind the original gate (.103), within .098 + .006
    run_of('attentive_similarity', 0, 0.1041, test_H_u=2.19),  # behind it; .096 + .008 = .104
    run_of('original_importance', 0, 0.090),  # .103 - .006 = .097
    run_of('attentive_similarity_pairs', 0, 0.3),  # has no published row
    run_of('original', 0, 0.5, 'mnist', epochs=1),
]


def cells(page: str, start: str) -> list[str]:
    """The first line of the page that starts so, as cells."""
    line = next(line for line in page.splitlines() if line.startswith(f'| {start} |'))
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_page_sets_means_beside_the_published_and_leaves_rows_empty(load):
    page = load('expert_specialization_page').page
    full, reduced = page(RUNS).split('## Reduced runs: 1 of 20 epochs')
    mnist, fashion = full.split('### Fashion-MNIST')
    # errors .100 and .106, I(E;Y) 1.9 and 2.2
    assert cells(fashion, 'original gate') == [
        'original gate', '2', '.025 ± .007', '.041', '.103 ± .004', '.104 ± .006', '2.050 ± .212', '2.034',
        '.100 ± .000', '.081', '2.300 ± .000', '2.048',
    ]  # fmt: skip
    assert cells(fashion, 'single expert')[4:] == ['.133', '.132 ± .011', *[''] * 6]
    assert cells(fashion, 'attentive gate')[1:7] == ['', '', '.041', '', '.098 ± .013', '']
    assert cells(fashion, 'attentive + similarity, corrected normalisation')[4:6] == ['.300', '']
    assert (
        'Not run yet: all rows.' in mnist and 'Not run yet: original + similarity; original + similarity, c' in fashion
    )
    best = fashion.split('lowest train error')[1]
    # train errors .030 and .020: .025 - 1.5388 x .00707
    assert cells(best, 'original gate')[1:7] == ['1', '.020', '.014', '.041', '.106', '2.200']
    assert cells(reduced.split('lowest train error')[1], 'original gate')[1:4] == ['0', '.050', '.500']
    assert '| attentive gate |' not in best
    assert cells(reduced, 'original gate')[1:4] == ['1', '.050', '.500'] and '**No reproduction:**' in reduced
    assert 'published' not in reduced.split('### MNIST')[1].split('lowest')[0] and 'Targets' not in reduced
    assert '10 s on average (8 s' in full.replace('\n', ' ')


def test_disagreements_are_told_from_the_numbers(load, monkeypatch):
    module = load('expert_specialization_page')
    monkeypatch.setattr(module, 'REASONS', {})
    found = module.by_row(RUNS[:-1])
    similarity = 'attentive + similarity: test error .104, published .096 ± .008: higher.'
    importance = 'original + importance: test error .090, published .103 ± .006: lower.'
    assert module.disagreements('fashion_mnist', found) == [importance, similarity]
    module.REASONS['fashion_mnist', 'original_importance'] = 'The reason.'
    assert module.disagreements('fashion_mnist', found)[0] == f'{importance} The reason.'
    assert module.disagreements('mnist', found) == []


def test_a_row_that_is_behind_has_the_run_that_the_paper_would_have_chosen(load):
    module = load('expert_specialization_page')
    # published .104 + .006; mean of ours .115
    for best, word in ((0.1099, 'within'), (0.111, 'not within')):
        runs = [run_of('original', 0, 0.23 - best, train_error=0.03), run_of('original', 1, best, train_error=0.02)]
        (sentence,) = module.disagreements('fashion_mnist', module.by_row(runs))
        start = 'original gate: test error .115, published .104 ± .006: higher.'
        assert sentence == (
            f'{start} The run with the lowest train error, as the '
            f'published one was chosen, has {module.short(best)}: {word}.'
        )


def test_the_lowest_of_ten_draws(load):
    module, rng = load('expert_specialization_page'), np.random.default_rng(0)
    lowest = rng.normal(size=(200_000, 10)).min(1).mean()
    assert lowest == pytest.approx(-module.BELOW_MEAN, abs=0.01)
    assert module.expected_lowest([run_of('original', 0, 0.1)]) is None


def test_targets(load):
    module = load('expert_specialization_page')
    mnist, fashion, importance, similarity, mnist_used, used = (v for _, v in module.targets(module.by_row(RUNS[:-1])))
    assert mnist == mnist_used == 'not run' and (importance, similarity) == ('met', 'not met')
    assert fashion.startswith(
        'not met (not met: attentive + similarity / not run: original + similarity; attentive gate'
    )
    assert used.startswith('not met (not met: attentive + similarity / not run:')
    every = [
        run_of(row, 0, published.test_error + published.std - 1e-4, data_set)
        for data_set, rows in module.PUBLISHED.items()
        for row, published in rows.items()
    ]
    assert [v for _, v in module.targets(module.by_row(every))] == ['met'] * 6
    assert {v for _, v in module.targets({})} == {'not run'}


def test_changes_fit_the_configs(load):
    runs, page = load('expert_specialization_runs'), load('expert_specialization_page')
    for data_set in page.DATA_SETS:
        for row in [*page.ROWS, *page.TWENTY]:
            config, changes = runs.CHANGES.get(row, (row, {}))
            constraint = load_config(runs.CONFIGS / f'{data_set}_{config}.py', changes).model.moe.get('constraint')
            if row.endswith('_pairs'):
                assert constraint.normalisation == 'pairs'
    # the weights that the published distilled rows start from
    config, changes = runs.SOURCES['mnist', 'distilled_importance']
    assert load_config(runs.CONFIGS / f'mnist_{config}.py', changes).model.moe.constraint.weight == 0.4
    config, changes = runs.SOURCES['mnist', 'distilled_similarity']
    assert load_config(runs.CONFIGS / f'mnist_{config}.py', changes).model.moe.constraint.beta_d == 0.001


@pytest.fixture
def words(tmp_path) -> list[str]:
    write_mnist(tmp_path)
    places = {
        'data-root': tmp_path,
        'work-dir': tmp_path / 'w',
        'record': tmp_path / 'r.json',
        'page': tmp_path / 'p.md',
    }
    return [str(word) for key, value in places.items() for word in (f'--{key}', value)] + ['--data-sets', 'mnist']


def test_rows_are_trained_once_seed_by_seed(load, words, tmp_path, capsys, monkeypatch):
    benchmark = load('reproduce_expert_specialization')
    rows = ['distilled_similarity', 'original_similarity_pairs', 'single']
    words += ['--epochs', '1', '--rows', *rows, '--seeds']
    assert benchmark.main([*words, '0']) == 0
    lines = [line.partition(':')[0] for line in capsys.readouterr().out.splitlines() if 'training' in line]
    source = 'attentive_similarity_beta_d_0.001'
    assert lines == [
        f'MNIST, {row}, seed 0' for row in ('single', 'original_similarity_pairs', source, 'distilled_similarity')
    ]
    runs = json.loads((tmp_path / 'r.json').read_text())['runs']
    assert [(run['row'], run['seed']) for run in runs] == [
        ('single', 0), ('original_similarity_pairs', 0), ('distilled_similarity', 0)
    ]  # fmt: skip
    assert runs[0]['test_I_EY'] is None and runs[0]['cpu_seconds'] > 0
    for run in runs[1:]:
        assert 0 <= run['test_error'] <= 1 and 0 <= run['test_H_s'] <= run['test_H_u'] <= math.log2(5) + 1e-6
    assert str(tmp_path) not in runs[0]['command'] and '--epochs 1' in runs[0]['command']

    def no_run(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules['expert_specialization_runs'].Bench, '_train', no_run)
    assert benchmark.main([*words, '0']) == 0  # finished
    assert benchmark.main([*words, '0', '1']) == 130
    assert '3 runs are recorded in' in capsys.readouterr().err
    assert json.loads((tmp_path / 'r.json').read_text())['runs'] == runs


def test_twenty_experts_are_distilled_twice_from_one_run(load, words, tmp_path, capsys, monkeypatch):
    benchmark, page = load('reproduce_expert_specialization'), load('expert_specialization_page')
    runs = load('expert_specialization_runs')
    made, build = [], runs.launch.build_runner
    monkeypatch.setattr(runs.launch, 'build_runner', lambda cfg: made.append(cfg) or build(cfg))
    args = benchmark.parse_args([*words, '--rows', *page.TWENTY, '--seeds', '0', '--epochs', '1'])
    assert benchmark.chains(args) == [('mnist', list(page.TWENTY), 0)]
    benchmark.work(args)
    lines = [line for line in capsys.readouterr().out.splitlines() if 'training' in line]
    assert [line.split(', ')[1] for line in lines] == list(page.TWENTY)
    assert [cfg.model.moe.num_experts for cfg in made] == [20] * 3
    assert [cfg.model.moe.gate.get('kl_weight') for cfg in made] == [None, 0.0, 1.0]
    assert len({str(cfg.load_from) for cfg in made[1:]}) == 1 and 'twenty_attentive' in made[1].load_from
    text = (tmp_path / 'p.md').read_text().split('### MNIST with 20 experts')[1]
    assert [line.split(' | ')[1] for line in text.splitlines() if line.startswith('| ')][1:] == ['1'] * 3


def test_missing_data_are_one_message(load, words, tmp_path, capsys):
    benchmark = load('reproduce_expert_specialization')
    words[1] = str(tmp_path / 'nowhere')
    assert benchmark.main([*words, '--rows', 'single']) == 2
    assert 'error: train_dataloader.dataset' in capsys.readouterr().err


def test_runs_in_one_process_leave_nothing_behind(load, tmp_path, monkeypatch):
    write_mnist(tmp_path)
    runs = load('expert_specialization_runs')
    alive = weakref.WeakSet()
    build = runs.launch.build_runner

    def watched(cfg) -> Runner:
        runner = build(cfg)
        alive.add(runner)
        alive.update(module for module in runner.model.modules() if isinstance(module, Router))
        return runner

    monkeypatch.setattr(runs.launch, 'build_runner', watched)
    bench = runs.Bench(str(tmp_path), str(tmp_path / 'w'), 1, 'python x')
    managers = (MessageHub, MMLogger, Visualizer)

    def held() -> list:
        gc.collect()
        open_files = [h for h in logging._handlerList if isinstance(h(), logging.FileHandler)]
        return [[list(manager._instance_dict) for manager in managers], len(open_files)]

    first = bench.row('mnist', 'original_importance', 0)
    before = held()
    again = bench.row('mnist', 'original_importance', 1)
    assert held() == before and not alive
    # a run does not depend on those before it
    later = runs.Bench(str(tmp_path), str(tmp_path / 'again'), 1, 'python x').row('mnist', 'original_importance', 0)
    measures = [key for key in first if key.startswith(('train_', 'test_'))]
    assert [first[key] for key in measures] == [later[key] for key in measures] != [again[key] for key in measures]


def test_rows_that_start_from_one_another_stay_in_one_process(load):
    benchmark = load('reproduce_expert_specialization')
    rows = ['attentive_similarity', 'distilled_similarity', 'distilled_importance']
    # MNIST's distilled rows have sources of their own, Fashion-MNIST's second one starts from the row of the table
    assert benchmark.chains(benchmark.parse_args(['--rows', *rows, '--seeds', '3'])) == [
        *(('mnist', [row], 3) for row in ('attentive_similarity', 'distilled_importance', 'distilled_similarity')),
        ('fashion_mnist', ['attentive_similarity', 'distilled_similarity'], 3),
        ('fashion_mnist', ['distilled_importance'], 3),
    ]


def test_two_processes_find_what_one_finds(load, words, tmp_path, capsys):
    benchmark = load('reproduce_expert_specialization')
    words += ['--epochs', '1', '--rows', 'single', 'original']
    assert benchmark.main([*words, '--seeds', '1', '--jobs', '2']) == 0
    runs = json.loads((tmp_path / 'r.json').read_text())['runs']
    assert [run['row'] for run in runs] == ['single', 'original']
    bench = load('expert_specialization_runs').Bench(str(tmp_path), str(tmp_path / 'alone'), 1, 'python x')
    for run in runs:
        assert bench.row('mnist', run['row'], 1)['test_error'] == pytest.approx(run['test_error'], abs=0.05)
        assert run['machine'].endswith(' thread') and '--jobs 2' in run['command']
    words[1] = str(tmp_path / 'nowhere')
    assert benchmark.main([*words, '--seeds', '2', '--jobs', '2']) == 2
    assert 'error: train_dataloader.dataset' in capsys.readouterr().err
