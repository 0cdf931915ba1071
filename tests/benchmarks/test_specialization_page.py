"""The page of benchmarks/specialization_on_shapes.py from made-up runs."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture
def made_page(monkeypatch):
    """The page of settings name -> runs (AP, class bits, box bits)."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import specialization_page

    def run_of(ap: float, *bits: float) -> dict:
        measured = dict(cramers_v_given_level=0.1, verdict='not specialised', counterfactual={})
        measured['counterfactual'] = dict(spread_AP_S=0.02, spread_AP_L=None)
        names = ('bbox_head.cls', 'bbox_head.reg')
        layers = {name: dict(measured, mi_given_level_bits=b) for name, b in zip(names, bits, strict=False)}
        return {'ap': dict.fromkeys(('AP', 'AP_S', 'AP_M', 'AP_L'), ap), 'layers': layers}

    def make(**runs: list[tuple]) -> str:
        found = {name.replace('_', '-'): [run_of(*run) for run in of] for name, of in runs.items()}
        record = {'settings': {name: dict(epochs=6, seeds=None, runs=of) for name, of in found.items()}}
        return specialization_page.page(record, [*found, 'soft-never-run'])

    return make


def test_setting_with_most_information_that_costs_no_precision_is_named(made_page):
    text = made_page(
        dense=[(0.7,)],
        soft_level_all=[(0.62, 0.01, 0.00), (0.64, 0.00, 0.01)],  # mean AP 63.0
        soft_image_all=[(0.628, 0.02, 0.03), (0.624, 0.05, 0.02), (0.626, 0.03, 0.03)],  # 62.6; 0.060 bits on average
        soft_patch2_all=[(0.62, 0.09, 0.09)] * 3,  # too much lost
        soft_patch2_level=[(0.65, 0.09, 0.08)] * 2,  # too few seeds
        soft_patch3_level=[(0.65, 0.01, 0.01)],  # neither
        hard_level_all=[(0.65, 0.02, 0.02)] * 3,
        boxes_level_level=[(0.63, 0.1, 0.2)] * 3,
    )
    assert 'with no guidance `soft-image-all` (0.060 bits, AP 62.6)' in text
    assert 'with guidance `boxes-level-level` (0.300 bits, AP 63.0)' in text
    assert '`soft-level-all` (63.0)' in text
    assert 'so undecided: `soft-patch2-level` (0.170 bits).\n' in text
    assert 'Not run yet: `soft-never-run`.' in text
    assert '| `soft-level-all` | 2 | 63.0 ± 1.4 |' in text


def test_one_seed_decides_nothing(made_page):
    text = made_page(soft_level_all=[(0.6, 0.0, 0.0)], hard_image_all=[(0.6, 0.1, 0.1)])
    assert 'points of AP against `soft-level-all` (60.0): none.' in text
    assert 'so undecided: `hard-image-all` (0.200 bits).' in text


def test_nothing_is_named_before_the_baseline_is_measured(made_page):
    assert 'Most I(E;S' not in made_page(soft_image_all=[(0.6, 0.1, 0.1)])
