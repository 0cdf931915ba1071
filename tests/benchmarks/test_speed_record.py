"""Clock, record, page and sections of the speed benchmark."""

from __future__ import annotations

import dataclasses
import json
import time

import moe_speed
import numpy as np
import pytest
from common import ROOT
from common.page import fill
from small_files import table_cells
from speed import detectors, page, plot, record
from speed.clock import interleave, ratio, summary
from speed.cost_table import cost_table
from speed.detector_sections import detector_ratios
from speed.layers import OVER_IDEAL, LayerShape, TokenShape
from speed.measurement import Plan
from speed.record import Record
from speed.sections import Measurement

from moe_det.errors import DataError

FEW = dict(detector_rounds=2, rounds=2, profile_rounds=2, warm_up=1)
LAYER = LayerShape(4, 4, 5, 5, 1)
SMALL_SIZES = dict(layer=LAYER, experts=(2, 4, 8), tokens=TokenShape(40, 8, 16, 4, 2), larger=((1, (96, 64)),))
PLAN = Plan('cpu', ('fp32',), (1,), (64, 64), **SMALL_SIZES, **FEW)
MADE = dict(
    command='python x.py', date='2026-01-01', cpu='a cpu', cores=2, threads=1, python='3', torch='2', mmcv='2',
    mmdet='3', busy_machine=None, load_before=0.1,
)  # fmt: skip

# -- the clock ---------------------------------------------------------------------------------------------------


def test_runs_take_turns_and_warm_up_does_not_count():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in 'ABC'}
    times = interleave(runs, rounds=4, warm_up=2, device='cpu')
    rounds = [''.join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(rounds) == 6 and all(sorted(names) == ['A', 'B', 'C'] for names in rounds)
    assert len(set(rounds)) > 1  # nobody always follows the same
    assert list(times) == ['A', 'B', 'C'] and all(len(t['total']) == 4 for t in times.values())


def test_phases_add_up():
    def run(mark):
        time.sleep(0.01)
        mark('first')
        time.sleep(0.03)
        mark('second')

    times = interleave({'run': run}, rounds=2, warm_up=0, device='cpu', marks=True)['run']
    for first, second, total in zip(times['first'], times['second'], times['total'], strict=True):
        assert first >= 0.01 and second >= 0.03 and first + second <= total < first + second + 0.01


def test_ratios_are_paired():
    drift = np.linspace(1, 9, 33)  # the machine becomes nine times slower
    found = ratio(list(1.5 * drift), list(drift))
    assert found == {'median': 1.5, 'ci95': [1.5, 1.5], 'quartiles': [1.5, 1.5], 'n': 33}
    found = ratio([1.0, 2.0, 3.0, 4.0, 10.0], [1.0] * 5)
    assert found['median'] == 3 and found['quartiles'] == [2, 4]
    assert 1 <= found['ci95'][0] <= 2 and 4 <= found['ci95'][1] <= 10
    assert summary([0.001, 0.002, 0.006]) == {'median_ms': 2.0, 'quartiles_ms': [1.5, 4.0], 'n': 3}


# -- the record --------------------------------------------------------------------------------------------------


def test_record_is_written_at_once_and_resumed(tmp_path):
    file = tmp_path / 'new' / 'record.json'
    first = Record(file)
    first.measured('layer', 'a', {'size': (1, 2)}, MADE, {'value': 1})
    assert json.loads(file.read_text())['sections']['layer']['a']['results'] == {'value': 1}
    again = Record(file, resume=True)
    assert again.has('layer', 'a', {'size': (1, 2)})
    assert not again.has('layer', 'a', {'size': (1, 3)}) and not again.has('layer', 'b', {'size': (1, 2)})
    assert not Record(file).has('layer', 'a', {'size': (1, 2)})
    again.measured('layer', 'a', {'size': (1, 3)}, MADE, {'value': 2})
    again.measured('whole', 'c', {}, MADE, {'value': 3})
    assert {s: list(entries) for s, entries in Record(file).sections.items()} == {'layer': ['a'], 'whole': ['c']}
    file.write_text('{"sections": ')
    with pytest.raises(DataError, match='no record of moe_speed.py'):
        Record(file)


@pytest.mark.parametrize(
    ('load', 'busy', 'words'),
    [
        (0.1, 9.0, None),
        (1.5, 0.0, None),
        (1.5, 1.2, 'load average is 1.5 on 2 cores, 1.2 cores busy now'),
        (None, 9, None),
    ],
)
def test_busy_machine(monkeypatch, load, busy, words):
    monkeypatch.setattr(record, 'cores', lambda: 2)
    monkeypatch.setattr(record, 'load_average', lambda: load)
    monkeypatch.setattr(record, 'busy_cores', lambda: busy)
    reason = record.why_busy()
    assert reason is None if words is None else words in reason


def test_what_a_measurement_was_made_on():
    made = record.made_on('cpu', 'command', None)
    assert {'cpu', 'cores', 'threads', 'python', 'torch', 'mmdet', 'load_before', 'date'} <= set(made)
    assert made['command'] == 'command' and made['busy_machine'] is None
    assert json.loads(json.dumps(made)) == made


# -- sections, page and plot -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def measured() -> dict:
    """Every section on tiny layers and detectors; the times mean nothing."""
    with pytest.MonkeyPatch.context() as patch:
        narrow = detectors.SMALL
        small = {name: (config, {**options, **narrow}) for name, (config, options) in detectors.DETECTORS.items()}
        patch.setattr(detectors, 'DETECTORS', small)
        config, options = detectors.WITH_MANY[detectors.MANY]
        more = {detectors.MANY: (config, {**options, **narrow, 'model.bbox_head.moe.num_experts': 7})}
        patch.setattr(detectors, 'WITH_MANY', {**small, **more})
        kept = Record(None)
        for section in moe_speed.SECTIONS:
            if section == 'memory':
                patch.delitem(detectors.WITH_MANY, detectors.MATCHED)
                patch.delitem(detectors.WITH_MANY, detectors.SHARDS[1])
            plan = dataclasses.replace(PLAN, batches=(1, 2)) if section == 'separate' else PLAN
            Measurement(plan, kept, MADE).run(section)
    return kept.sections


def test_sections_measure_what_they_say(measured):
    assert set(measured) == set(moe_speed.SECTIONS)
    whole = measured['whole']
    names = [f'{phase} B=1 {size} fp32' for size in ('64x64', '96x64') for phase in ('training', 'inference')]
    assert list(whole) == names and set(measured['profile']) == set(names[:2])
    times = whole['training B=1 64x64 fp32']['results']['times']
    ours = {'k=1', 'k=2', 'k=2 matched', 'shards E=8', 'shards E=16', 'kernels E=8'}
    assert set(times) == {'mmdet RetinaNet', 'branch alone'} | ours
    assert set(times['k=2']) == {'forward', 'backward', 'optimizer', 'total'} and times['k=2']['total']['n'] == 2
    assert set(whole['inference B=1 64x64 fp32']['results']['times']['k=1']) == {'total'}
    separate = measured['separate']
    assert list(separate) == ['training B=2 64x64 fp32', 'inference B=2 64x64 fp32']
    assert separate['training B=2 64x64 fp32']['results']['times']['image by image']['n'] == 2
    layer = measured['layer']
    assert len(layer) == 2 * (3 + 2)
    ratios = layer['training k=E fp32']['results']['ratios']
    assert ratios['E=8 / dense expert']['median'] == pytest.approx(
        8 * ratios['E=8 / k dense experts']['median'], rel=1e-3
    )
    tokens = measured['tokens']['training fp32']['results']
    ideal = 2 * tokens['times']['dense FFN']['median_ms'] / tokens['times']['MoEFFN']['median_ms']
    low, high = tokens['ratios'][OVER_IDEAL]['quartiles']
    beyond = (high - low) / 2  # of two rounds, whose ratios lie so far outside the quartiles; the medians' lies between
    assert (low - beyond) * 0.99 <= 1 / ideal <= (high + beyond) * 1.01 and len(measured['tokens']) == 2
    assert len(measured['patterns']) == 2 * (1 + 2 + 2)  # k = 2 of E = 2 chooses nothing
    assert len(measured['memory']) == (1 + 2 + 2) + 6
    steps = {name: entry['results'] for name, entry in measured['optimizer'].items()}
    assert list(steps) == ['mmdet RetinaNet', 'k=2', 'k=2, E=32']
    assert set(steps['k=2']['ratios']) == {'foreach / one by one', 'fused / one by one'}
    profile = measured['profile']['training B=1 64x64 fp32']['results']
    assert set(profile['by_kind']) == {'mmdet RetinaNet'} | ours
    assert set(profile['by_kind']['k=1']) == {'forward', 'backward', 'optimizer'}
    assert set(profile['largest_differences']) == ours
    # experts of equal size: from one to four adds three, to the seven of this test six
    dense, few, many = (found['params'] for found in steps.values())
    assert (many - dense) / (few - dense) == pytest.approx(2, rel=0.05)


def test_memory_and_counts(measured):
    found = {name: entry['results'] for name, entry in measured['memory'].items()}
    ours = {e: found[f'layer E={e} k=2 fp32']['patterns']['sorted slices'] for e in (4, 8)}
    assert ours[4]['host_copies'] == ours[8]['host_copies'] == 1
    assert ours[4]['convolutions_forward'] == ours[8]['convolutions_forward'] == 4
    names = ('mmdet RetinaNet', 'k=1', 'k=2', 'shards E=8', 'k=2, E=32')
    heads = {name: found[f'detector {name} fp32']['head'] for name in names}
    dense = heads['mmdet RetinaNet']
    assert dense['host_copies'] == 0 and heads['k=1']['host_copies'] == heads['k=2, E=32']['host_copies'] == 1
    assert dense['convolutions_forward'] == 5 * 2 * 2  # levels, branches, one convolution and the predictor
    assert heads['k=1']['convolutions_forward'] == dense['convolutions_forward']
    # one image: the chosen copies of both shards run as one convolution and one predictor
    assert heads['shards E=8'] == heads['k=1']
    assert heads['k=2']['convolutions_forward'] == heads['k=2, E=32']['convolutions_forward'] == 40
    costs = {name: found[f'detector {name} fp32']['cost'] for name in heads}
    for name in ('k=1', 'shards E=8'):
        macs = costs['mmdet RetinaNet']['macs_per_image']
        assert costs[name]['active_macs_per_image'] == pytest.approx(macs, rel=1e-3)
    kept = {name: found[f'detector {name} fp32']['kept']['saved_bytes'] for name in heads}
    assert kept['k=2'] > kept['k=1'] > 0 and kept['k=2, E=32'] == pytest.approx(kept['k=2'], rel=0.01)


def test_flop_ideal_adds_one_branch():
    seconds = {'mmdet RetinaNet': [10.0] * 3, 'branch alone': [6.0] * 3, 'k=1': [11.0] * 3, 'k=2': [20.0] * 3}
    at_dense_cost = {'shards E=8': [10.1] * 3, 'shards E=16': [10.2] * 3, 'kernels E=8': [10.3] * 3}
    found = detector_ratios({**seconds, 'k=2 matched': [10.5] * 3, **at_dense_cost})
    medians = {name: value['median'] for name, value in found.items()}
    assert medians == {
        'k=1 / dense': 1.1,
        'k=2 / dense': 2.0,
        'k=2 / FLOP-ideal': 1.25,
        'k=2 matched / dense': 1.05,
        'shards E=8 / dense': 1.01,
        'shards E=16 / dense': 1.02,
        'kernels E=8 / dense': 1.03,
        'FLOP-ideal of k=2 / dense': 1.6,
    }


def test_tables_hold_the_records_numbers(measured):
    text = page.tables(measured)
    found = measured['patterns']['training E=8 k=2 fp32']['results']['ratios']['boolean masks / sorted slices']
    low, high = found['ci95']
    (row,) = table_cells(text, 'training | 8 | 2 |')
    assert row[5] == f'{found["median"]:.3f} ({low:.3f} to {high:.3f})'
    shards = measured['whole']['inference B=1 96x64 fp32']['results']['ratios']['shards E=16 / dense']
    (row,) = table_cells(text.split('**At the cost of the dense head**')[1], 'B=1, 96x64, fp32 | inference |')
    assert row[3].startswith(f'{shards["median"]:.3f} (')
    kept = {name: measured['memory'][f'detector {name} fp32']['results']['kept'] for name in ('mmdet RetinaNet', 'k=1')}
    dense, one = (found['saved_bytes'] for found in kept.values())
    (row,) = table_cells(text, 'k=1 | fp32 | 1 |')
    assert row[4] == f'{one / dense:.3f}'
    assert text.count('| dense expert |') == 1 and '| k=2, E=32 | fp32 | 1 |' in text
    (row,) = table_cells(text.split('**Tokens** (40 tokens')[1], 'inference |')
    over = measured['tokens']['inference fp32']['results']['ratios'][OVER_IDEAL]
    assert row[4].startswith(f'{over["median"]:.3f} (')
    fused = measured['optimizer']['k=2, E=32']['results']['ratios']['fused / one by one']
    (row,) = table_cells(text.split('**The optimizer alone**')[1], 'k=2, E=32 |')
    assert row[4].startswith(f'{fused["median"]:.3f} (')
    differences = text.split('**Where the time goes**')[1].splitlines()
    (row,) = [line for line in differences if 'training, backward | between operators' in line]
    kinds = measured['profile']['training B=1 64x64 fp32']['results']['by_kind']
    dense, more = (kinds[name]['backward']['between operators'] for name in ('mmdet RetinaNet', 'k=1'))
    assert row.split('|')[4:6] == [f' {dense:.1f} ', f' {more - dense:+.1f} ']
    assert '`python x.py`' in text and 'busy' not in text
    busy = {'layer': {'a': {**measured['layer']['training k=1 fp32'], 'made': {**MADE, 'busy_machine': 'load'}}}}
    assert '**measured on a busy machine**: load' in page.tables(busy)
    failed = {'whole': {'a': {**measured['whole']['training B=1 64x64 fp32'], 'results': {'error': 'out of memory'}}}}
    assert '| out of memory |' in page.tables(failed)
    lines = [line for line in text.splitlines() if line.startswith('|')]
    for line, following in zip(lines, lines[1:], strict=False):  # every row has the columns of its head
        if following.startswith('|---'):
            columns = line.count('|')
        elif line.startswith('|---'):
            assert line.count('|') == columns
    assert {line.count('|') for line in lines if line.startswith('| B=1')} == {7, 10, 11}


def test_costs_are_set_against_the_plain_detector(measured):
    assert cost_table({'cpu': {}, 'cuda': {}}) == 'Not measured yet.'
    text = cost_table({'cpu': measured, 'cuda': {}})
    cells = {name: numbers for name, *numbers in table_cells(text)}
    found = measured['whole']['inference B=1 96x64 fp32']['results']['ratios']['k=2 / dense']['median']
    assert cells['`retinanet_moe_soft.py`: E=4, k=2'][-1] == f'{found:.2f}'
    assert cells['`retinanet_moe_top1.py`: E=4, k=1'][0] == '1.00'
    counts = {name: entry['results'].get('cost') for name, entry in measured['memory'].items()}
    many, dense = counts['detector k=2, E=32 fp32'], counts['detector mmdet RetinaNet fp32']
    assert cells['`retinanet_moe_shards_from_dense.py`: 2 shards of 4 copies'][0] == '1.00'
    times = f'{many["active_macs_per_image"] / dense["macs_per_image"]:.2f}'
    params = [f'{many[key] / 1e6:.1f} M' for key in ('params', 'active_params')]
    assert cells['`retinanet_moe_soft.py` with 32 experts, k=2'] == [times, *params, '–', '–']
    assert 'CPU: 2 cores of a cpu, batch of 1, images of 96x64, fp32, torch 2, 2026-01-01; median of 2' in text
    assert 'GPU' not in text


def test_plot_shows_every_pattern(measured, tmp_path):
    files = plot.draw(measured, tmp_path / 'images' / 'speed', 'CPU')
    assert [file.suffix for file in files] == ['.png', '.svg'] and all(file.stat().st_size > 5000 for file in files)
    curves = plot._curves(measured['patterns'])
    assert set(curves) == {(phase, k) for phase in ('training', 'inference') for k in (1, 2)}
    assert [point[0] for point in curves['training', 2]['boolean masks']] == [4, 8]
    assert plot.draw({}, tmp_path / 'none', 'CPU') == []


def test_page_is_filled_between_its_marks(measured):
    text = 'a\n<!-- moe_speed cpu: begin -->\nold\n<!-- moe_speed cpu: end -->\nb'
    once = fill(text, 'moe_speed cpu', 'new \\1')
    assert once == text.replace('old', 'new \\1') and fill(once, 'moe_speed cpu', 'old') == text
    with pytest.raises(ValueError, match='expected once'):
        fill(text, 'moe_speed cuda', 'new')
    assert page.block({}, 'cpu') == 'Not measured yet.'
    assert 'images/moe_speed_cpu.png' in page.block(measured, 'cpu')


def test_page_says_what_the_records_say():
    for file, filled in page.filled().items():
        text = file.read_text(encoding='utf-8')
        assert filled == text, 'run python benchmarks/moe_speed.py --page'
    text = page.PAGE.read_text(encoding='utf-8')
    for name in ('moe_speed_cpu.png', 'moe_speed_cuda.png'):
        assert f'images/{name}' not in text or (ROOT / 'docs' / 'images' / name).is_file()


# -- the command line --------------------------------------------------------------------------------------------


def test_a_busy_machine_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(record, 'why_busy', lambda: 'others work')
    out = tmp_path / 'record.json'
    assert moe_speed.main(['--quick', '--out', str(out)]) == 1
    assert 'others work' in capsys.readouterr().err and not out.exists()
    small = ['--quick', '--only', 'patterns', '--experts', '3', '--rounds', '1', '--threads', '1', '--out', str(out)]
    assert moe_speed.main([*small, '--force']) == 0
    made = json.loads(out.read_text())['sections']['patterns']['training E=3 k=2 fp32']['made']
    assert made['busy_machine'] == 'others work' and made['threads'] == 1
    assert '**measured on a busy machine**' in capsys.readouterr().out


@pytest.mark.parametrize(
    'words', ['--only nothing', '--batch 0', '--experts 1', '--rounds 0', '--precision tf32', '--out x.txt']
)
def test_wrong_arguments_are_refused(capsys, words):
    with pytest.raises(SystemExit) as end:
        moe_speed.main(words.split())
    assert end.value.code == 2
