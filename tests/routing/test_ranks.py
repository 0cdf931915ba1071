"""Two processes with two images each equal one process with four: losses, gradients and states."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name('gloo_worker.py')
STEPS = 3


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> tuple[dict, dict, dict]:
    """What one process computes, and what each of two computes."""
    folder = tmp_path_factory.mktemp('gloo')
    outputs = [folder / f'rank{rank}.pt' for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(folder / 'rendezvous'), str(output)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        spec = importlib.util.spec_from_file_location('gloo_worker', WORKER)
        worker = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(worker)
        alone = worker.train(0, 1)  # while the two start
        for name, rows in (('uneven', (3, 2)), ('idle', (3, 0))):
            alone[f'{name} similarity'], alone[f'{name} gradient'] = worker.similarity(rows, None)
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return alone, *(torch.load(output) for output in outputs)


def test_sum_over_ranks(runs):
    _, *ranks = runs
    for results in ranks:
        # local parts 1 and 10: the sum is 11; with respect to its own part each gets 2 * (2 * 11)
        assert results['sum'] == 11
        assert results['sum gradient'] == 2 * 2 * 11
        assert results['constant'] == 4


def test_a_process_without_rows_takes_part(runs):
    _, *ranks = runs
    for results in ranks:
        # equal logits: all rows take experts 0 and 1, KL = log 4 - log 2, weight 0.25
        value = results['loss beside an idle process'].item()
        assert value == pytest.approx(0.25 * torch.tensor(2.0).log().item(), abs=1e-6)
        assert results['steps beside an idle process'].item() == 1


def test_two_processes_equal_one(runs):
    alone, *ranks = runs
    assert len(alone) > 30
    for results in ranks:
        for name, value in alone.items():
            if 'indices' not in name and name.split()[0] not in ('uneven', 'idle'):
                torch.testing.assert_close(
                    results[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f'{name}: {m}'
                )
    for step in range(STEPS):
        name = f'{step} indices'
        chosen = torch.empty_like(alone[name])
        for rank, results in enumerate(ranks):
            chosen[rank::2] = results[name]  # four rows of level 0, four of level 1: both start at an even row
        assert torch.equal(chosen, alone[name])


@pytest.mark.parametrize('name', ['uneven', 'idle'])
def test_pairs_of_rows_on_several_processes(name, runs):
    alone, *ranks = runs
    expected = alone[f'{name} gradient']
    assert expected.abs().max() > 1e-4
    for results in ranks:
        torch.testing.assert_close(results[f'{name} similarity'], alone[f'{name} similarity'], rtol=1e-12, atol=0)
    # data-parallel training averages the gradients
    mean = sum(results[f'{name} gradient'] for results in ranks) / 2
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-14)


def test_the_comparison_is_not_of_zeros(runs):
    alone, first, second = runs
    for step in range(STEPS):
        for name in (
            'gradient gate.fc.weight',
            'gradient noise.scale.weight',
            'loss kl',
            'loss importance',
            'loss similarity',
        ):
            assert alone[f'{step} {name}'].abs().max() > 1e-5, name
    states = [name for name in alone if name.startswith('0 state constraints')]
    assert len(states) == 4
    assert all(alone[name].abs().max() > 0 for name in states)
    # the processes hold different rows
    assert not torch.equal(first['0 indices'], second['0 indices'])
