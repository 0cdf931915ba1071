"""benchmarks/experts_that_pay.py: what its page says of records whose truth is known."""

from __future__ import annotations

import json
from argparse import Namespace
from math import sqrt

import pytest
import torch
from common import RECORDS, RESULTS, ROOT
from common.intervals import against, paired
from common.page import fill
from pay import runs
from pay.command import Work
from pay.conclusion import conclusion
from pay.page import NAME, page, results
from pay.runs import checkpoint_of
from pay.settings import AGAIN, BASELINE, DATA, ROWS, STARTS, TABLE, TWICE
from pay.times import timed

MIXTURE = next(name for name, row in ROWS.items() if not row.control)


def run(seed: int, precision: float, swap: float | None = None) -> dict:
    """A run of the record, all sizes alike; ``swap`` is the change of AP under the swap."""
    sizes = dict.fromkeys(('AP', 'AP_S', 'AP_M', 'AP_L'), precision)
    one = {'seed': seed, **sizes, 'curve': {'4': sizes}}
    if swap is not None:
        change = {'difference': swap, 'interval': [swap - 0.01, swap + 0.01]}
        layer = {'living': 4, 'gate_entropy_bits': 1.5, 'verdict': 'specialised, not by size'}
        whole = dict.fromkeys(sizes, change)
        one['swap'] = {'whole': whole, 'layers': {'bbox_head.cls': layer}}
    return one


def row(name: str, precisions: list[float], cost: float = 1.0, swap: float | None = None) -> dict:
    control = name in STARTS or ROWS[name].control
    seeds = [run(seed, precision, swap) for seed, precision in enumerate(precisions)]
    cost = {'multiply_adds_over_dense': cost, 'head_over_dense': cost, 'parameters_over_dense': cost}
    return {'name': name, 'control': control, 'fingerprint': '', **cost, 'seeds': seeds}


def said(*rows: dict) -> str:
    return ' '.join(conclusion({one['name']: one for one in rows}))


def test_paired_interval_by_hand():
    found = paired([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])  # differences 1, 2, 3
    assert found.mean == 2
    assert found.error == pytest.approx(1 / sqrt(3))
    assert found.high - found.mean == pytest.approx(4.302653 / sqrt(3))  # Student's t, 2 degrees of freedom
    assert found.above  # 2 > 2 / sqrt(3)
    assert paired([1.0], [0.0]).low is None


def test_pairs_are_of_the_same_seed_and_of_sizes_that_exist():
    mine, other = row(MIXTURE, [0.5, 0.6, 0.7]), row(BASELINE, [0.4, 0.4])
    other['seeds'][0]['AP_S'] = -1.0
    assert against(mine, other, 'AP').mean == pytest.approx(15)
    assert against(mine, other, 'AP').seeds == 2
    assert against(mine, other, 'AP_S').seeds == 1


BASE = [0.70, 0.71, 0.72]


@pytest.mark.parametrize(
    ('mixture', 'cost', 'pays'),
    [
        ([0.715, 0.725, 0.735], 1.0, True),
        ([0.715, 0.725, 0.735], 1.03, False),  # not at equal cost
        ([0.709, 0.719, 0.729], 1.0, False),  # less than a point
        ([0.760, 0.700, 0.712], 1.0, False),  # one lucky seed
        ([0.715, 0.725], 1.0, False),  # two seeds
    ],
)
def test_a_mixture_pays_at_equal_cost_by_a_point_and_two_standard_errors(mixture, cost, pays):
    text = said(row(BASELINE, BASE), row(MIXTURE, mixture, cost))
    assert ('Experts pay here' in text) is pays


@pytest.mark.parametrize(('swap', 'differ'), [(-0.012, True), (-0.008, False)])
def test_experts_differ_when_every_seed_loses_under_the_swap(swap, differ):
    text = said(row(BASELINE, BASE), row(MIXTURE, [0.70, 0.71, 0.72], swap=swap))
    assert ('AP and experts that differ: ' in text) is differ


@pytest.mark.parametrize(
    ('mixture', 'swap', 'said_so'),
    [
        ([0.71, 0.70, 0.73], -0.05, True),
        ([0.71, 0.72, 0.73], -0.05, False),  # these are better
        ([0.71, 0.70, 0.73], -0.005, False),  # these do not differ
        ([0.66, 0.65, 0.68], -0.05, False),  # these have another fault
    ],
)
def test_experts_that_differ_without_being_better_are_named(mixture, swap, said_so):
    text = said(row(BASELINE, BASE), row(MIXTURE, mixture, swap=swap))
    words = f'not enough: "{MIXTURE}" loses {-100 * swap:.1f} when images swap routes (3 seeds) and has +0.3 AP.'
    assert (words in text) is said_so and ('not enough' in text) is said_so


def test_capacity_binds_when_twice_the_width_is_better():
    wide = row(TWICE, [0.72, 0.735, 0.74])
    assert 'Capacity binds' in said(row(BASELINE, BASE), wide)
    wide['time_over_dense'] = {'inference': {'median': 0.9}, 'training': {'median': 1.25}}
    assert 'at 1.00 of the multiply-adds and 1.25 of the training time.' in said(row(BASELINE, BASE), wide)
    assert 'not shown to bind' in said(row(BASELINE, BASE), row(TWICE, [0.705, 0.715, 0.725]))
    assert 'nothing can be compared' in said(row(MIXTURE, BASE))


def test_a_control_that_still_learns_is_named():
    still = row('dense', [0.69, 0.70, 0.71]), row(BASELINE, BASE)
    assert 'without experts +1.0 AP; a better mixture may merely learn faster.' in said(*still)
    longer = [row(AGAIN, [0.705, 0.71, 0.725]), row('kernels, image, 8 copies, again', [0.715, 0.73, 0.735])]
    text = said(*still, *longer)
    assert 'without experts +1.0 AP, and doing so once more +0.3 (3 seeds).' in text
    assert (
        '"kernels, image, 8 copies, again" then has +1.3 [-0.1, +2.8] AP more (standard error 0.33, 3 seeds).' in text
    )
    assert 'Whether a mixture pays is open' in text  # what was trained for longer has another control
    assert 'merely learn faster' not in said(row('dense', [0.697, 0.707, 0.717]), row(BASELINE, BASE))


def test_the_page_holds_every_row_the_lost_ones_too():
    rows = [row('dense', BASE), row(BASELINE, BASE), row(MIXTURE, [0.60, 0.61, 0.62], swap=-0.02)]
    rows[2]['time_over_dense'] = {'inference': {'median': 0.99}, 'training': {'median': 1.5}}
    record = {
        'rows': rows,
        'command': 'python benchmarks/experts_that_pay.py',
        'machine': 'a machine',
        'versions': {'torch': '2'},
        'date': '2026-01-01',
        'data': {'train': 1, 'val': 1, 'size': 128, 'seed': 0, 'scene-kinds': 4},
        'schedule': {'start': {'epochs': 1, 'learning_rate': 1.0}, 'more': {'epochs': 1, 'learning_rate': 1.0}},
        'expected': ['Nothing.'],
        'repeated': [{'name': MIXTURE, 'seed': 1, 'AP': 0.605, 'why': 'rounding'}],
    }
    sizes = {'AP': 0.5, 'AP_S': 0.25, 'AP_M': 0.5, 'AP_L': 0.75}
    for one in rows[2]['seeds']:
        forced = [{'expert': expert, **sizes, 'AP': 0.1 * expert + 0.01 * one['seed']} for expert in range(4)]
        one['swap']['layers']['bbox_head.cls'] |= {'forced': forced, 'shards': 2}
    text = page(record)
    assert '| bbox_head.cls | shard 1, copy 0 | 3 | 21.0 ± 1.0 | 25.0 ± 0.0 | 50.0 ± 0.0 | 75.0 ± 0.0 |' in text
    assert f'| {MIXTURE} | 3 | 1.000 | 1.000 | 0.99 | 1.50 | 61.0 ± 1.0 | -10.0 [-10.0, -10.0] |' in text
    assert f'| {MIXTURE} | -2.0 (3 of 3) |' in text
    assert f'| {MIXTURE} | 1 | 61.0 | 60.5 | rounding |' in text
    assert 'Not run yet: ' in text and TWICE in text.partition('Not run yet: ')[2]


def test_the_page_is_that_of_the_record_and_the_rows_are_known():
    record = json.loads((RECORDS / 'experts_that_pay.json').read_text(encoding='utf-8'))
    assert (RESULTS / 'experts_that_pay.md').read_text(encoding='utf-8') == page(record)
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert readme == fill(readme, NAME, results(record))
    assert {one['name'] for one in record['rows']} <= {*TABLE.names}


def test_readme_has_the_rows_that_are_finished():
    rows = [row('dense', BASE), row(BASELINE, BASE), row('shards, image', [0.71, 0.72, 0.73], swap=-0.02)]
    lines = results({'rows': rows}).splitlines()
    assert lines[2:4] == [
        '| without experts | 1.000 | 3 | 71.0 ± 1.0 | - | - |',
        '| 2 shards of 4 copies | 1.000 | 3 | 72.0 ± 1.0 | +1.0 [+1.0, +1.0] | -2.0 (3 of 3) |',
    ]
    said_so = 'Experts pay here, by our criterion (at least 1 point and two standard errors): '
    assert lines[4] == '' and lines[5].startswith(f'{said_so}"2 shards of 4 copies" has +1.0 ')


def test_rows_of_other_images_are_left_aside(monkeypatch):
    before = runs.fingerprint_of(TABLE, 'dense')
    runs.fingerprint_of.cache_clear()
    monkeypatch.setitem(DATA, 'train', 1)
    assert runs.fingerprint_of(TABLE, 'dense') != before
    runs.fingerprint_of.cache_clear()


def test_recorded_rows_are_those_of_today_and_runs_of_others_are_left_aside(capsys):
    work = Work('experts_that_pay', TABLE, page, ())
    work.record = json.loads((RECORDS / 'experts_that_pay.json').read_text(encoding='utf-8'))
    known = [one['name'] for one in work.record['rows']]
    work.record['rows'].append({**work.record['rows'][0], 'fingerprint': 'another'})
    work.drop_outdated()
    assert [one['name'] for one in work.record['rows']] == known
    assert 'recorded with another config, not kept' in capsys.readouterr().out


def test_a_run_without_a_swap_test_keeps_the_one_it_had():
    record = {'rows': [row(MIXTURE, [0.5, 0.6], swap=-0.02)]}
    Work('experts_that_pay', TABLE, page, (), record=record).add(MIXTURE, run(1, 0.7), Namespace())
    assert [one['AP'] for one in record['rows'][0]['seeds']] == [0.5, 0.7]
    assert all('swap' in one for one in record['rows'][0]['seeds'])


def test_a_norm_per_level_starts_as_the_plain_head_and_is_the_levels_own():
    from mmdet.models.dense_heads import RetinaHead
    from pay.level_norm_head import LevelNormRetinaHead

    shape = dict(num_classes=3, in_channels=8, feat_channels=8, stacked_convs=2, norm_cfg=dict(type='GN', num_groups=4))
    plain, head = RetinaHead(**shape), LevelNormRetinaHead(**shape)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            weight.normal_(1.0 if name.endswith('gn.weight') else 0.0, 0.2)
    assert not any(head.load_state_dict(plain.state_dict()))
    maps = [torch.randn(2, 8, side, side) for side in (16, 8, 4, 2, 1)]
    before = head(maps)
    for ours, theirs in zip(before, plain(maps), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    head.cls_convs[1].norm.norms[2].weight.data += 1
    changed = [not torch.equal(a, b) for a, b in zip(head(maps)[0], before[0], strict=True)]
    assert changed == [False, False, True, False, False]


def test_rows_without_experts_and_rows_with_a_checkpoint_can_be_timed(tmp_path):
    """Experts are timed with real routes, so only from a checkpoint; without them any weights take the same time."""
    args = Namespace(work_dir=tmp_path, seeds=[0, 1])
    on_the_way = checkpoint_of(TABLE, MIXTURE, 1, args).with_name('epoch_3.pth')
    on_the_way.parent.mkdir(parents=True)
    on_the_way.touch()
    names = ['dense', BASELINE, TWICE, MIXTURE, 'shards, level']
    assert timed(TABLE, names, args) == [TWICE, MIXTURE]
