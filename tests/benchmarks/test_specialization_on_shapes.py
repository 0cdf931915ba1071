"""Which runs benchmarks/specialization_on_shapes.py takes up again."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import specialization_on_shapes

    specialization_on_shapes.fingerprint_of.cache_clear()
    yield specialization_on_shapes
    specialization_on_shapes.fingerprint_of.cache_clear()


def test_fingerprint_follows_the_setting_the_epochs_and_the_images(script, monkeypatch):
    digests = [script.fingerprint_of(name, 4) for name in ('soft-level-all', 'soft-level-level', 'hard-level-all')]
    digests.append(script.fingerprint_of('soft-level-all', 3))
    script.fingerprint_of.cache_clear()
    assert script.fingerprint_of('soft-level-all', 4) == digests[0]
    monkeypatch.setattr('moe_det.datasets.shapes.FORMAT', -1)
    script.fingerprint_of.cache_clear()
    digests.append(script.fingerprint_of('soft-level-all', 4))
    assert len(set(digests)) == 5


def test_only_runs_of_the_present_config_stay_in_the_record(script, capsys):
    present = {'fingerprint': script.fingerprint_of('dense', 4)}
    record = {'settings': {'dense': present, 'soft-level-all': {'fingerprint': 'other'}, 'hard-level-all': {}}}
    script.drop_outdated(record, 4)
    assert record == {'settings': {'dense': present}}
    said = capsys.readouterr().out
    assert 'soft-level-all' in said and 'hard-level-all' in said


def test_the_record_over_seeds_has_verdicts_and_no_paths(script):
    layers = {'bbox_head.cls': {'verdict': 'established'}}
    found = {'seeds': {'checkpoints': [{'checkpoint': '/a/folder/epoch_4.pth'}], 'layers': layers}}
    assert script.over_seeds(found) == {'layers': layers}
    assert script.over_seeds({'seeds': None}) is None
