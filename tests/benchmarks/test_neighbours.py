"""benchmarks/neighbours.py: what its page says of records whose truth is known, its rows, and what it calls."""

from __future__ import annotations

import json
from argparse import Namespace

import neighbours as script
import pytest
import torch
from common import RECORDS, RESULTS
from common.runs import RunError
from neighbour_rows.conclusion import conclusion
from neighbour_rows.page import page
from neighbour_rows.settings import CONSISTENT, EXPECTED, KERNELS, MUTUAL, SHARDS, TABLE, TEACHER
from neighbour_rows.withstand import closer_summary, looked_at_closer, summary, withstood
from pay import runs
from pay.conclusion import MOST_COST
from pay.settings import BASELINE
from pay.settings import TABLE as PAY
from small_files import table_cells
from small_models import build

from moe_det.layers.multilinear import TRExperts
from moe_det.models.distillation import DenseTeacher

MIXTURE = 'expert choice'
SIZES = ('AP', 'AP_S', 'AP_M', 'AP_L')
BASE = [0.70, 0.71, 0.72]


def run(seed: int, precision: float, swap: float | None = None, alone: tuple = (), under: dict | None = None) -> dict:
    """A run of the record, all sizes alike.

    Args:
        seed: of the run.
        precision: AP.
        swap: change of AP under the swap.
        alone: AP of each forced expert.
        under: AP under both attacks and the corruptions, and ``agreement`` of the gates there.
    """
    one = {'seed': seed, **dict.fromkeys(SIZES, precision), 'curve': {'4': dict.fromkeys(SIZES, precision)}}
    if swap is not None:
        layer = {'living': 4, 'gate_entropy_bits': 1.5, 'verdict': 'not specialised', 'mi_given_level_bits': 0.0625}
        if alone:
            layer['forced'] = [{'expert': e, **dict.fromkeys(SIZES, value)} for e, value in enumerate(alone)]
        change = {'difference': swap, 'interval': [swap - 0.01, swap + 0.01]}
        one['swap'] = {'whole': dict.fromkeys(SIZES, change), 'layers': {'bbox_head.cls': layer}}
    if under:
        entry = {'AP': under['AP'], 'drop': 1 - under['AP'] / precision, 'agreement': under.get('agreement')}
        kinds = dict.fromkeys(('fgsm', 'pgd-10', 'corruptions'), entry)
        one['withstands'] = {'images': 100, 'masking': ['a sign'], 'clean': {'AP': precision}, **kinds}
    return one


def row(name: str, precisions: list[float], cost: float = 1.0, **of_runs) -> dict:
    seeds = [run(seed, precision, **of_runs) for seed, precision in enumerate(precisions)]
    costs = dict.fromkeys(('multiply_adds_over_dense', 'head_over_dense', 'parameters_over_dense'), cost)
    return {'name': name, 'control': TABLE[name].control, 'fingerprint': '', **costs, 'seeds': seeds}


def record_of(*rows: dict) -> dict:
    return {
        'rows': list(rows),
        'command': 'python benchmarks/neighbours.py',
        'machine': 'a machine',
        'versions': {'torch': '2'},
        'date': '2026-01-01',
        'data': {'train': 1, 'val': 1, 'size': 128, 'seed': 0, 'scene-kinds': 4},
        'schedule': {'start': {'epochs': 1, 'learning_rate': 1.0}, 'more': {'epochs': 1, 'learning_rate': 1.0}},
        'expected': EXPECTED,
    }


def said(*rows: dict) -> str:
    return ' '.join(conclusion({one['name']: one for one in rows}))


def test_the_page_is_that_of_the_record():
    record = json.loads((RECORDS / 'neighbours.json').read_text(encoding='utf-8'))
    assert (RESULTS / 'neighbours.md').read_text(encoding='utf-8') == page(record)
    assert record['expected'] == EXPECTED
    assert {one['name'] for one in record['rows']} <= {*TABLE.names}


def test_an_empty_record_says_so():
    text = page(record_of())
    assert '- Nothing has been run yet.' in text and 'a machine' not in text
    assert f'Not run yet: {"; ".join(TABLE.names)}.' in text and EXPECTED[0] in text
    assert 'nothing can be compared' in said(row(MIXTURE, BASE))


def test_tables_of_a_made_up_record():
    control = row(BASELINE, BASE, under={'AP': 0.30})
    mixture = row(MIXTURE, [0.71, 0.72, 0.73], swap=-0.02, under={'AP': 0.35, 'agreement': 0.5})
    dear = row(MUTUAL[0.0], [0.72], cost=1.056, swap=-0.03, alone=(0.2, 0.4))
    text = page(record_of(control, mixture, dear))
    precision, swap, withstands = table_cells(text, f'{MIXTURE} ')
    assert precision[1:4] == ['3', '1.000', '1.000'] and precision[6:8] == ['72.0 ± 1.0', '+1.0 [+1.0, +1.0]']
    assert swap[1] == '-2.0 (3 of 3)' and swap[-1] == '0.062' and swap[5] == '4 to 4'
    assert withstands[1:7] == ['3', '100', '72.0 ± 1.0', '35.0 ± 0.0', '+5.0 [+5.0, +5.0]', '51 %']
    assert withstands[-4:] == ['50 %', '50 %', '50 %', 'a sign (3)']
    of_dear = table_cells(text, f'{MUTUAL[0.0]} ')
    assert of_dear[0][2] == '1.056 (more)'
    assert of_dear[2] == [MUTUAL[0.0], '1', '72.0', '30.0 ± 14.1', '20.0', '40.0', '-3.0 (1 of 1)']
    assert table_cells(text, f'**{BASELINE}** ')[1][3:7] == ['71.0 ± 1.0', '30.0 ± 0.0', '', '58 %']


@pytest.mark.parametrize(
    ('mixture', 'cost', 'words'),
    [
        ([0.715, 0.725, 0.735], 1.0, '+1.5 over the control (standard error 0.00, 3 seeds)'),
        ([0.709, 0.719, 0.729], 1.0, 'it is not shown to pay'),  # less than a point
        (
            [0.76],
            1.0,
            '+6.0 over the control (one seed); by our criterion (at least 1 point and two standard errors, '
            'three seeds) it is',
        ),
        ([0.76, 0.77, 0.78], 1.03, 'none at equal cost is finished'),
        ([0.76], 1.03, f'not at equal cost: "{MIXTURE}" (1.030, +6.0 AP, one seed)'),
    ],
)
def test_what_pays_at_equal_cost(mixture, cost, words):
    text = said(row(BASELINE, BASE), row(MIXTURE, mixture, cost))
    assert words in text
    assert ('it pays' in text) == (words.startswith('+1.5'))


def test_the_best_of_the_other_page_is_no_neighbour():
    text = said(row(BASELINE, BASE), row(KERNELS, [0.75]), row(MIXTURE, [0.71]), row(CONSISTENT, [0.72]))
    assert f'"{CONSISTENT}" has the most AP, +2.0 over the control (one seed)' in text
    assert f'"{KERNELS}" has +5.0 (one seed).' in text


def test_experts_differ_by_the_swap_in_every_seed():
    both = row(MIXTURE, BASE, swap=-0.02), row(CONSISTENT, [0.7], swap=-0.005)
    text = said(row(BASELINE, BASE), *both)
    assert f'routes: "{MIXTURE}" 2.0 (3 seeds). Not so: "{CONSISTENT}" 0.5 (one seed).' in text
    assert 'no swap test is finished' in said(row(BASELINE, BASE))


def test_mutual_distillation_by_its_weight():
    rows = [row(BASELINE, BASE), row(MUTUAL[0.0], [0.7], swap=-0.05, alone=(0.2, 0.4))]
    assert 'Mutual distillation by weight' not in said(*rows)
    text = said(*rows, row(MUTUAL[1.0], [0.69], swap=-0.01, alone=(0.6, 0.7)))
    assert '0: 70.0, alone 30.0, swap -5.0 (one seed); 1: 69.0, alone 65.0, swap -1.0 (one seed).' in text


def test_what_is_withstood_and_where_gates_stay():
    control = row(BASELINE, BASE, under={'AP': 0.30})
    shards = row(SHARDS, BASE, under={'AP': 0.31, 'agreement': 0.5})
    text = said(control, shards, row(CONSISTENT, [0.7], under={'AP': 0.34, 'agreement': 0.9}))
    assert (
        f'Under pgd-10 of 4/255 the control keeps 30.0 of 71.0 AP; the row that keeps the most is "{CONSISTENT}"'
        in text
    )
    assert 'with +4.0 (one seed), not shown to be above it.' in text
    kept = f'90 % (one seed) of their decisions under corruptions, those of "{SHARDS}" 50 % (3 seeds)'
    assert kept in text and 'AP there differs by +3.0.' in text
    assert 'above it by two standard errors' in said(control, shards)


def test_rows_that_both_tables_have_share_their_runs():
    shared = [name for name in TABLE.names if name in PAY.names]
    assert shared == ['dense', BASELINE, KERNELS, SHARDS]
    known = json.loads((RECORDS / 'experts_that_pay.json').read_text(encoding='utf-8'))['rows']
    known = {one['name']: one['fingerprint'] for one in known}
    for name in shared:
        assert runs.fingerprint_of(TABLE, name) == runs.fingerprint_of(PAY, name) == known[name]


@pytest.mark.parametrize(
    ('name', 'dearer'),
    [
        ('muMoE, CP', False),
        ('fine-grained and shared', False),
        ('expert choice', True),
        ('clusters', False),
        (MUTUAL[0.01], True),
    ],
)
def test_rows_cost_what_the_page_says(name, dearer, tmp_path):
    file = tmp_path / 'clusters.json'
    file.write_text(json.dumps({'centroids': torch.eye(4, 128).tolist()}))
    key = TABLE[name].clusters
    cost = runs.cost_of(TABLE, name, {key: file} if key else {})['multiply_adds_over_dense']
    assert 0.9 < cost < 1.1 and (cost > MOST_COST) == dearer


def test_rows_of_one_cost_differ_in_what_their_names_say():
    def head(name):
        return build(runs.config_of(TABLE, name).model.bbox_head)

    assert [getattr(head(name).distillation, 'weight', None) for name in MUTUAL.values()] == [None, 0.01, 0.1, 1.0]
    configs = {name: runs.config_of(TABLE, name) for name in (SHARDS, CONSISTENT, TEACHER, 'muMoE, TR')}
    assert configs[CONSISTENT].model == configs[SHARDS].model
    hooks = {name: {hook['type'] for hook in cfg.custom_hooks} for name, cfg in configs.items()}
    assert hooks[CONSISTENT] - hooks[SHARDS] == {'RoutingConsistencyHook'}
    assert hooks[TEACHER] - hooks[SHARDS] == {'DenseTeacherHook'}
    assert isinstance(head(TEACHER).distillation, DenseTeacher)
    laterals = build(configs['muMoE, TR'].model).neck.lateral_convs
    assert all(isinstance(lateral.conv.experts, TRExperts) for lateral in laterals)


def test_summary_of_an_attack_by_hand():
    agreement = {'cls': 0.5, 'reg': 1.0}
    found = {
        'rows': ['a'],
        'images': 7,
        'masking': {'a': ['a sign']},
        'clean': {'a': {'ap': {'AP': 0.8}}},
        'attacks': [{'attack': 'fgsm', 'ap': {'AP': 0.2}, 'drop': 0.75, 'agreement': agreement}],
        'corruptions': [
            {'ap': {'AP': 0.4}, 'drop': 0.5, 'agreement': {}},
            {'ap': {'AP': 0.6}, 'drop': 0.25, 'agreement': {}},
        ],
    }
    assert summary(found) == {
        'images': 7,
        'masking': ['a sign'],
        'clean': {'AP': 0.8},
        'fgsm': {'AP': 0.2, 'drop': 0.75, 'agreement': 0.75},
        'corruptions': {'AP': 0.5, 'drop': 0.375, 'agreement': None},
    }


def test_a_closer_look_by_hand():
    def entry(attack, source, victim, precision):
        return {'attack': attack, 'source': source, 'victim': victim, 'ap': {'AP': precision}}

    found = {
        'rows': ['a', 'b'],
        'images': 7,
        'masking': {'a': ['a sign (AP 40.0 and 35.0)'], 'b': []},
        'clean': {'a': {'ap': {'AP': 0.8}}, 'b': {'ap': {'AP': 0.7}}},
        'attacks': [
            *(entry('noise', name, name, precision) for name, precision in (('a', 0.79), ('b', 0.69))),
            entry('pgd-10', 'a', 'a', 0.4),
            entry('pgd-10', 'a', 'b', 0.5),
            entry('pgd-10', 'b', 'a', 0.6),
            entry('pgd-10', 'b', 'b', 0.3),
            *(entry('pgd-20', name, name, precision) for name, precision in (('a', 0.35), ('b', 0.2))),
        ],
    }
    looked = closer_summary(found)
    assert looked == {
        'images': 7,
        'masking': ['a sign (AP 40.0 and 35.0)'],
        'clean': {'own': 0.8, 'control': 0.7},
        'noise': {'own': 0.79, 'control': 0.69},
        'pgd-10': {'own': 0.4, 'on_control': 0.5, 'from_control': 0.6, 'control': 0.3},
        'pgd-20': {'own': 0.35, 'control': 0.2},
    }
    control, mixture = row(BASELINE, BASE), row(MIXTURE, BASE)
    mixture['seeds'][1]['closer'] = looked
    cells = table_cells(page(record_of(control, mixture)), f'{MIXTURE} ')[-1]
    assert cells[1:] == ['1', '7', '79.0', '40.0', '35.0', '+15.0', '60.0', '30.0', '50.0', '20.0', 'a sign (1)']
    text = said(control, mixture)
    assert f'"{MIXTURE}": after pgd-20 it keeps 35.0 AP, +15.0 over the control (one seed), not shown to' in text
    assert 'control leave it 60.0, those made for itself 40.0; the control keeps 30.0 on its own and 50.0 on' in text


def test_a_closer_look_attacks_the_row_beside_its_control(tmp_path, monkeypatch):
    calls = []

    def attack(script, config, arguments, options, log, threads):
        calls.append([str(argument) for argument in arguments])
        attacks = [
            {'attack': 'noise', 'source': name, 'victim': name, 'ap': {'AP': 0.5}} for name in ('moe', 'kinds_dense')
        ]
        clean = {name: {'ap': {'AP': 0.5}} for name in ('moe', 'kinds_dense')}
        content = {'rows': list(clean), 'images': 9, 'masking': dict.fromkeys(clean, []), 'clean': clean}
        arguments[arguments.index('--out') + 1].write_text(json.dumps({**content, 'attacks': attacks}))

    monkeypatch.setattr('neighbour_rows.withstand.runs.run_tool', attack)
    args = Namespace(work_dir=tmp_path, data_root='data', threads=1, attacked=9, closer=[MIXTURE])
    checkpoint = tmp_path / 'epoch_12.pth'
    for _ in range(2):  # the second time what lies there is read
        found = looked_at_closer(TABLE, MIXTURE, 3, checkpoint, args)
        assert found['closer']['noise'] == {'own': 0.5, 'control': 0.5}
    (call,) = calls
    control = runs.checkpoint_of(TABLE, BASELINE, 3, args)
    assert call[call.index('--also') + 1 :][:2] == [str(TABLE[BASELINE].config), str(control)]
    assert call[0] == str(checkpoint) and call[call.index('--limit') + 1] == '9'
    for nothing in ({'closer': []}, {'attacked': 0}):
        assert looked_at_closer(TABLE, MIXTURE, 3, checkpoint, Namespace(**{**vars(args), **nothing})) == {}
    assert looked_at_closer(TABLE, BASELINE, 3, checkpoint, Namespace(**{**vars(args), 'closer': [BASELINE]})) == {}


def test_clusters_are_made_once_from_the_start_and_named_in_the_training(tmp_path, monkeypatch):
    calls = []

    def train(name, config, seed, checkpoint, arguments, options, threads):
        if checkpoint.is_file():
            return checkpoint
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        calls.append((name, options))
        return checkpoint

    def cluster(script, config, arguments, options, log, threads):
        checkpoint, out, *_ = arguments
        assert script == 'misc/cluster_images.py' and checkpoint.is_file() and config == TABLE['dense'].config
        out.touch()
        calls.append(('cluster', out))

    monkeypatch.setattr(runs.runs, 'train', train)
    monkeypatch.setattr(runs.runs, 'run_tool', cluster)
    args = Namespace(work_dir=str(tmp_path), data_root='data', threads=1, attacked=0)
    runs.train(TABLE, 'clusters', 0, args)
    assert [name for name, _ in calls] == ['dense', 'cluster', 'clusters']
    options, start = calls[2][1], runs.checkpoint_of(TABLE, 'dense', 0, args)
    assert options['load_from'] == start and options['model.bbox_head.moe.constraint.0.file'] == calls[1][1]
    assert calls[1][1].parent == start.parent
    runs.train(TABLE, 'clusters', 0, args)
    assert len(calls) == 3
    with pytest.raises(RunError, match='nothing was detected'):
        runs.measure(TABLE, 'clusters', 0, args)
    assert withstood(TABLE, 'clusters', 0, start, args) == {}


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--rows', 'no row'], "invalid choice: 'no row'"),
        (['--closer', 'no row'], "invalid choice: 'no row'"),
        (['--attacked', '-1'], '-1: expected at least 0'),
        (['--record', 'record.txt'], 'expected a name that ends in .json'),
    ],
)
def test_bad_input_is_one_message(words, message, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['neighbours.py', *words])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err
