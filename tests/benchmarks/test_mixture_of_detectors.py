"""benchmarks/mixture_of_detectors.py: its page from made-up runs, and what tells its runs apart."""

from __future__ import annotations

import json

import pytest
from common import RECORDS, RESULTS
from whole_detectors import runs
from whole_detectors.page import conclusion, page
from whole_detectors.settings import DATA, ENSEMBLE, EXPECTED, GATE, ONE, ROWS


def row(name: str, *precisions: float, **more: object) -> dict:
    seeds = [dict(seed=n, AP=ap, AP_S=ap, AP_M=ap, AP_L=-1.0, **more) for n, ap in enumerate(precisions)]
    return dict(name=name, fingerprint='x', multiply_adds_over_dense=2.0, seeds=seeds)


def swap(difference: float) -> dict:
    return {'AP': {'difference': difference, 'interval': [difference - 0.01, difference + 0.01]}}


def rows(*found: dict) -> dict[str, dict]:
    return {one['name']: one for one in found}


def test_a_gate_whose_interval_lies_above_zero_is_called_better():
    # differences of 3, 4 and 5 points: mean 4, standard error 1/sqrt(3), Student's factor 4.303
    (sentence,) = conclusion(rows(row(GATE, 0.43, 0.44, 0.45), row(ENSEMBLE, 0.40, 0.40, 0.40)))
    assert sentence == (
        'The gate over two detectors is better than mixing them with equal weights: +4.0 [+1.5, +6.5] AP, 3 seeds.'
    )
    (sentence,) = conclusion(rows(row(GATE, 0.40, 0.40, 0.40), row(ONE, 0.43, 0.44, 0.45)))
    assert 'is worse than one detector on all scenes' in sentence and '-4.0' in sentence


@pytest.mark.parametrize(('ensemble', 'seeds'), [((0.39,), '1 seed.'), ((0.39, 0.46, 0.40), '3 seeds.')])
def test_one_seed_or_an_interval_across_zero_tells_nothing(ensemble, seeds):
    (sentence,) = conclusion(rows(row(GATE, 0.43, 0.41, 0.42), row(ENSEMBLE, *ensemble)))
    assert 'is indistinguishable' in sentence and sentence.endswith(seeds)


def test_the_page_has_all_rows_and_what_the_gate_does():
    gate = row(GATE, 0.43, 0.44, swap=swap(-0.1), verdict='not specialised', gate_entropy_bits=0.25)
    record = dict(
        command='python x', machine='a machine', date='2026-01-01', versions={'torch': '2.10'}, data=DATA,
        expected=EXPECTED, rows=[row(ONE, 0.41, 0.41), gate],
    )  # fmt: skip
    text = page(record)
    assert '| gate | 2 | 2.00 | 43.5 ± 0.7 |' in text and '+2.5 [-3.9, +8.9]' in text
    assert '| -10.0 (2 of 2) | - | - | - | 0.25 | not specialised (2) |' in text
    assert all(f'- {name}: ' in text for name in ROWS)
    assert 'Nothing is finished.' in page({**record, 'rows': []})


def test_the_page_is_that_of_the_record():
    record = json.loads((RECORDS / 'mixture_of_detectors.json').read_text(encoding='utf-8'))
    assert (RESULTS / 'mixture_of_detectors.md').read_text(encoding='utf-8') == page(record)
    assert all(row['fingerprint'] == runs.fingerprint_of(row['name']) for row in record['rows'])


def test_mixtures_are_told_apart_by_their_detectors(monkeypatch):
    runs.fingerprint_of.cache_clear()
    before = {name: runs.fingerprint_of(name) for name in ROWS}
    assert len(set(before.values())) == len(ROWS)
    other = {**ROWS, 'far scenes alone': runs.ROWS[ONE].__class__('other', 'far', 7)}
    monkeypatch.setattr(runs, 'ROWS', other)
    runs.fingerprint_of.cache_clear()
    changed = {name for name in ROWS if runs.fingerprint_of(name) != before[name]}
    runs.fingerprint_of.cache_clear()
    assert changed == {'far scenes alone', *(name for name in ROWS if not ROWS[name].scenes)}


def test_a_mixture_costs_both_detectors_and_a_choice_less():
    both, one = (runs.cost_of(name)['multiply_adds_over_dense'] for name in (GATE, 'gate, one of two'))
    assert both == pytest.approx(2, abs=0.01) and 1 < one < both
    assert runs.cost_of(ONE)['multiply_adds_over_dense'] == 1
