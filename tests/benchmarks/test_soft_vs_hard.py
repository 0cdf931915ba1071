"""The record and page of benchmarks/reproduce_soft_vs_hard.py from made-up runs, and the commands that it gives."""

from __future__ import annotations

import json

import pytest
import reproduce_soft_vs_hard as benchmark
from small_files import table_cells

from moe_det.running.launch import load_config


def run_of(setting: str, seed: int, errors: dict[int, float], **changes) -> dict:
    """What a finished run leaves."""
    dense = setting == 'dense'
    layer = dict(num_experts=None if dense else 3, stage=None if dense else 4, residual=None if dense else False)
    scale = dict(epochs=150, limit_train=None, limit_test=None, width=64)
    scale.update(changes.pop('scale', {}))
    found = dict(
        dataset='cifar10', setting=setting, seed=seed, scale=scale, error={str(k): e for k, e in errors.items()}
    )
    found['gates'] = None if dense else dict(I_EY=0.5, H_s=0.4, H_u=1.5)
    origin = dict(machine='a machine', versions=dict(torch='2.10'), date='2026-01-01', command='python x')
    return {**found, **layer, **origin, **changes}


RUNS = [
    run_of('kl', 0, {1: 0.20, 2: 0.15, 3: 0.14}),
    run_of('kl', 1, {1: 0.22, 2: 0.15, 3: 0.14}),
    run_of('relative', 0, {1: 0.150, 2: 0.145, 3: 0.142}),
    run_of('dense', 0, {0: 0.1234}),
    run_of('mean', 0, {1: 0.9, 2: 0.9, 3: 0.9}, scale=dict(epochs=1, limit_train=256, width=8)),
]


def cells(page: str, start: str) -> list[str]:
    """The first line of the page that starts so."""
    return table_cells(page, start)[0]


def test_page_has_means_gaps_and_empty_rows():
    text = benchmark.page(benchmark.grouped(RUNS))
    full, reduced = text.split('## Reduced run:')
    # accuracies 80, 78 / 85, 85 / 86, 86; gaps 6 and 8
    assert cells(full, 'soft: KL') == [
        'soft: KL loss, 0.5', '2', '79.00 ± 1.41', '85.00 ± 0.00', '86.00 ± 0.00', '7.00 ± 1.41',
        '0.50 ± 0.00', '0.40 ± 0.00', '1.50 ± 0.00',
    ]  # fmt: skip
    assert cells(full, 'hard: relative')[1:] == ['1', '85.00', '85.50', '85.80', '0.80', '0.50', '0.40', '1.50']
    assert cells(full, 'dense')[1:] == ['1', '87.66', *[''] * 6]
    assert cells(full, 'hard: mean')[1:] == [''] * 8 and '10.00' not in full
    assert 'by 7.00 points under soft and by 0.80 points under hard constraints: no direction is claimed' in full
    assert reduced.startswith(' 1 epoch, 256 training images, all test images, 8 base channels')
    assert '**A reduced run.**' in reduced and 'cannot be judged yet' in reduced
    assert cells(reduced, 'hard: mean')[1:][:5] == ['1', '10.00', '10.00', '10.00', '0.00']
    # published: .6852 at k = 1 and .7308 at k = 10
    assert cells(reduced.split('## Published')[1], 'soft: importance')[1::9] == ['68.52', '73.08']
    assert cells(reduced.split('## Published')[1], 'soft: importance')[-1] == '4.56'


def test_the_page_says_what_the_full_schedule_takes():
    scale = dict(epochs=2, limit_train=1000, width=16)
    runs = [run_of('kl', seed, {1: 0.5, 2: 0.5, 3: 0.5}, scale=scale, train_seconds=20.0) for seed in range(2)]
    # 10 ms a pass, 16 times that at 64 channels: 150 * 50,000 * 0.16 s are 13.9 days, and 15 runs 208
    assert 'about 14 days, and 15 runs (3 seeds of every setting) take 208: it needs a GPU' in benchmark.page(
        benchmark.grouped(runs)
    )
    assert 'Not run yet.\n' in benchmark.page(benchmark.grouped([]))


def seeds_of(setting: str, errors: list[dict[int, float]], **changes) -> list[dict]:
    """A run for each seed."""
    return [run_of(setting, seed, error, **changes) for seed, error in enumerate(errors)]


DIRECTIONS = ('the direction that was published', 'as was published', 'against what was published')


@pytest.mark.parametrize('seeds', [1, 2])
def test_few_seeds_claim_no_direction(seeds):
    """However far the families lie apart."""
    runs = seeds_of('kl', [{1: 0.3, 2: 0.1, 3: 0.1}] * 3, gates=dict(I_EY=1.5, H_s=0.1, H_u=1.5))
    runs += seeds_of('importance', [{1: 0.3, 2: 0.1, 3: 0.1}] * seeds, gates=dict(I_EY=1.5, H_s=0.1, H_u=1.5))
    runs += seeds_of('mean', [{1: 0.1, 2: 0.1, 3: 0.1}] * 3, gates=dict(I_EY=0.1, H_s=0.1, H_u=0.9))
    text = benchmark.page(benchmark.grouped(runs))
    assert not any(direction in text for direction in DIRECTIONS)
    said = 'no direction is claimed from fewer than 3 seeds of each setting'
    assert text.count(said) == 2  # of the gaps, and of I(E;Y)
    assert 'capped by use' in text and 'H_u is 1.50 (1.50 to 1.50) against 0.90 (0.90 to 0.90) bits' in text


def test_a_gap_in_the_other_direction_is_said():
    runs = seeds_of('kl', [{1: 0.1, 2: 0.1, 3: 0.1}] * 3) + seeds_of('mean', [{1: 0.2, 2: 0.1, 3: 0.1}] * 3)
    assert 'against the direction that was published' in benchmark.page(benchmark.grouped(runs))


def test_a_difference_within_the_sampling_error_is_no_direction():
    # accuracy .9 of 10,000 images: sqrt(2 x .09 / 10,000) = .42 points a gap, .35 the difference of means of three
    for k1, chance in ((0.103, True), (0.104, False)):
        runs = seeds_of('kl', [{1: k1, 2: 0.1, 3: 0.1}] * 3) + seeds_of('mean', [{1: 0.1, 2: 0.1, 3: 0.1}] * 3)
        text = benchmark.page(benchmark.grouped(runs))
        assert ('chance explains, one standard error of testing being at most 0.3 ' in text) == chance
        assert ('the direction that was published' in text) == (not chance)


def test_a_difference_within_the_spread_over_seeds_is_no_direction():
    for spread, chance in ((0.1, True), (0.001, False)):
        soft = [{1: 0.2 + change, 2: 0.1, 3: 0.1} for change in (-spread, 0, spread)]
        runs = seeds_of('kl', soft) + seeds_of('mean', [{1: 0.1, 2: 0.1, 3: 0.1}] * 3)
        text = benchmark.page(benchmark.grouped(runs))
        assert ('a difference that chance explains' in text) == chance


def test_gates_that_do_not_decide_are_named():
    gates = dict(I_EY=0.1, H_s=1.5, H_u=1.58)  # of log2 3 = 1.585
    runs = [run_of(setting, 0, {1: 0.2, 2: 0.1, 3: 0.1}, gates=gates) for setting in ('kl', 'mean')]
    assert 'their H_s is 95 to 95 % of the largest possible' in benchmark.page(benchmark.grouped(runs))
    assert 'hardly learned' not in benchmark.page(benchmark.grouped(RUNS[:4]))


def test_which_family_divides_the_classes_more():
    def text(soft: list[float], hard: list[float]) -> str:
        runs = [
            run_of(setting, seed, {1: 0.1, 2: 0.1, 3: 0.1}, gates=dict(I_EY=bits, H_s=0, H_u=1))
            for setting, found in (('kl', soft), ('relative', hard))
            for seed, bits in enumerate(found)
        ]
        return benchmark.page(benchmark.grouped(runs))

    high, low = [1.0, 1.1, 1.2], [0.5, 0.5, 0.6]
    numbers = 'I(E;Y) is 1.10 (1.00 to 1.20) bits under soft and 0.53 (0.50 to 0.60) under hard constraints: '
    assert numbers + 'more under soft ones, as was published.' in text(high, low)
    assert 'more under hard ones, against what was published.' in text(low, high)
    found = text(high, [0.2, 1.0, 1.2])  # p = .4
    assert "Welch's 95 % interval of the difference holds zero" in found
    assert not any(direction in found for direction in DIRECTIONS[1:])


def test_a_sweep_gives_errors_and_the_gates_of_the_trained_number(tmp_path):
    results = [dict(top_k=k, metrics=dict(error=0.3 - k / 10, I_EY=k, H_s=2 * k, H_u=3 * k, other=0)) for k in (1, 2)]
    (tmp_path / 'sweep.json').write_text(json.dumps({'results': results}))
    errors, gates = benchmark.of_sweep(tmp_path / 'sweep.json')
    assert errors == {'1': pytest.approx(0.2), '2': pytest.approx(0.1)} and gates == dict(I_EY=2, H_s=4, H_u=6)


def test_runs_that_have_not_learned_judge_nothing():
    runs = [run_of('kl', 0, {1: 0.92, 2: 0.8, 3: 0.8}), run_of('mean', 0, {1: 0.8, 2: 0.8, 3: 0.8})]
    text = benchmark.page(benchmark.grouped(runs))
    assert 'cannot be judged: the networks are right only 2.0 times as often as a guess' in text
    runs = [dict(run, dataset='cifar100') for run in runs]
    text = benchmark.page(benchmark.grouped(runs))
    assert 'cannot be judged' not in text and 'accuracy rises by 12.00 points under soft' in text


def test_a_page_without_runs_has_empty_rows():
    text = benchmark.page({})
    assert cells(text, 'soft: KL')[1:] == [''] * 15 and 'Not run yet.' in text


def test_layers_and_data_sets_are_kept_apart():
    runs = [*RUNS[:4], run_of('kl', 0, {k: 0.1 for k in range(1, 5)}, num_experts=4, stage=2, residual=True)]
    runs.append(run_of('kl', 0, {1: 0.5, 2: 0.4, 3: 0.4}, dataset='cifar100'))
    text = benchmark.page(benchmark.grouped(runs))
    titles = [line for line in text.splitlines() if line.startswith('### ')]
    assert titles == [
        '### CIFAR-10, 3 experts in stage 4',
        '### CIFAR-10, 4 experts in stage 2, residual',
        '### CIFAR-100, 3 experts in stage 4',
    ]
    second = text.split(titles[1])[1].split(titles[2])[0]
    assert cells(second, 'soft: KL')[1:][:6] == ['1', *['90.00'] * 4, '0.00']
    assert cells(second, 'dense')[2] == '87.66' and cells(text.split(titles[2])[1], 'dense')[1:] == [''] * 8
    assert len({benchmark.identity(run) for run in runs}) == len(runs)


def test_options_scale_the_schedule_and_fit_the_configs():
    words = '--data-root /somewhere/here --epochs 30 --limit-train 500 --limit-test 100 --width 8 --num-experts 4'
    args = benchmark.parse_args(words.split())
    assert '/somewhere' not in args.command and '--data-root DIR' in args.command and '--epochs 30' in args.command
    for setting, drops in (('kl', [16, 24]), ('dense', [12, 20])):
        options = [f'{key}={value}' for key, value in benchmark.options_of(setting, args).items()]
        cfg = load_config(benchmark.config_of('cifar10', setting), options)
        assert cfg.param_scheduler[0].milestones == drops and cfg.train_cfg.max_epochs == 30
        assert cfg.model.backbone.base_channels == 8 and cfg.train_dataloader.dataset.subset == 500
        assert cfg.test_dataloader.dataset.subset == 100
    full = benchmark.parse_args([])
    assert benchmark.scale_key(benchmark.scale_of(full)) == 'full'
    assert set(benchmark.options_of('dense', full)) == {
        'default_hooks.checkpoint.interval',
        'default_hooks.checkpoint.max_keep_ckpts',
    }
    moe = [f'{key}={value}' for key, value in benchmark.options_of('mean', full).items()]
    cfg = load_config(benchmark.config_of('cifar100', 'mean'), moe)
    assert cfg.model.backbone.moe.num_experts == 10 and cfg.model.backbone.moe.stages == [4]
    assert cfg.param_scheduler[0].milestones == [80, 120]


def test_a_recorded_run_is_not_run_again_unless_its_config_has_changed(tmp_path, monkeypatch, capsys):
    started = []

    def run(dataset, setting, seed, args):
        started.append((setting, seed))
        return benchmark.begun(dataset, setting, seed, args) | RUNS[0]

    monkeypatch.setattr(benchmark, 'run', run)
    kept = RUNS[0] | {'fingerprint': benchmark.fingerprint_of(RUNS[0])}
    other = RUNS[1] | {'fingerprint': 'of another day'}
    assert benchmark.fingerprint_of(RUNS[2]) != kept['fingerprint'] != benchmark.fingerprint_of(RUNS[0] | {'stage': 3})
    (tmp_path / 'r.json').write_text(json.dumps({'runs': [kept, other]}))
    words = f'--seeds 0 --settings kl --num-experts 3 --record {tmp_path}/r.json --page {tmp_path}/p.md'.split()
    benchmark.main(words)
    assert json.loads((tmp_path / 'r.json').read_text())['runs'] == [kept] and not started
    assert '80.00' in (tmp_path / 'p.md').read_text()
    assert capsys.readouterr().out == 'cifar10, kl, seed 1, full: recorded with another config, not kept\n'
    words[1] = '1'
    benchmark.main(words)
    assert started == [('kl', 1)]
