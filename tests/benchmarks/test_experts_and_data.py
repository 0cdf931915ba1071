"""benchmarks/experts_and_data.py: its page from made-up runs, and a real run on a few images, which is not repeated."""

from __future__ import annotations

import json

import experts_and_data as benchmark
import pytest
from experts_and_data import best_by_active, page
from mixtures.autoencoders import Setting
from small_files import table_cells, write_mnist


def run_of(experts: int, share: float, error: float, active: float, seed: int = 0) -> dict:
    return dict(
        data_set='mnist', experts=experts, share=share, epochs=20, seed=seed, squared_error=error,
        active_experts=active, squared_error_of_all=error - 2,
        machine='a machine', versions=dict(torch='2.10'), date='2026-01-01', command='python x',
    )  # fmt: skip


RUNS = [
    run_of(1, 5.0, 24.0, 1),
    run_of(5, 5.0, 22.0, 3),
    run_of(5, 5.0, 23.0, 3, seed=1),
    run_of(10, 5.0, 22.4, 4),
    run_of(10, 100.0, 16.0, 8),
]


def test_page_has_a_row_for_each_share_and_the_best_number_in_use():
    assert best_by_active(RUNS[:3]) == (3, 22.5) and best_by_active(RUNS[:4]) == (4, 22.4)
    lines = table_cells(page(RUNS))
    assert lines[0] == ['training images', 'E = 1', 'E = 5', 'E = 10', 'best number in use']
    assert lines[2] == ['5 %', '24.00 (1.0)', '22.50 ± 0.71 (3.0)', '22.40 (4.0)', '4 (22.40)']
    assert lines[3] == ['5 %, all mixed', '22.00', '20.50 ± 0.71', '20.40', '']
    assert lines[4] == ['100 %', '-', '-', '16.00 (8.0)', '8 (16.00)']


def test_settings_change_experts_and_data():
    setting = Setting('fashion_mnist', 1, 5.0, 20, 0)
    assert setting.changes['train_dataloader.dataset.subset'] == 3000
    assert setting.changes['model.moe.soft_mixture'] is False and setting.config.is_file()
    assert setting.digest != Setting('fashion_mnist', 2, 5.0, 20, 0).digest


def test_a_run_is_recorded_and_not_repeated(tmp_path, monkeypatch, capsys):
    write_mnist(tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    files = ['--record', str(tmp_path / 'record.json'), '--page', str(tmp_path / 'page.md'), '--work-dir', 'runs']
    command = ['--data-root', str(tmp_path / 'data'), '--data-sets', 'mnist', '--shares', '100', '--epochs', '1']
    command += ['--experts', '1', '3', '--seeds', '0', *files]
    assert benchmark.main(command) == 0
    runs = json.loads((tmp_path / 'record.json').read_text())['runs']
    assert [run['experts'] for run in runs] == [1, 3] and all(run['squared_error'] > 0 for run in runs)
    assert runs[0]['squared_error_of_all'] == runs[0]['squared_error'] != runs[1]['squared_error_of_all']
    assert runs[1]['squared_error_of_all'] != runs[1]['squared_error']
    assert 1 <= runs[1]['active_experts'] <= 3 and '--experts 1 3' in runs[0]['command']
    assert '## MNIST, 1 epochs' in (tmp_path / 'page.md').read_text()
    capsys.readouterr()
    assert benchmark.main(command) == 0
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('share', ['0', '101', 'x'])
def test_a_share_is_a_percentage(share, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(['--shares', share])
    assert 'expected a percentage above 0 and up to 100' in capsys.readouterr().err
