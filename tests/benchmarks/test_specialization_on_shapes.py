"""Which runs benchmarks/specialization_on_shapes.py takes up again."""

from __future__ import annotations

import json

import pytest
import specialization_on_shapes as script


def test_fingerprint_follows_the_setting_the_epochs_and_the_images(monkeypatch):
    script.fingerprint_of.cache_clear()
    digests = [script.fingerprint_of(name, 4) for name in ('soft-level-all', 'soft-level-level', 'hard-level-all')]
    digests.append(script.fingerprint_of('soft-level-all', 3))
    script.fingerprint_of.cache_clear()
    assert script.fingerprint_of('soft-level-all', 4) == digests[0]
    monkeypatch.setattr('moe_det.datasets.shapes.FORMAT', -1)
    script.fingerprint_of.cache_clear()
    digests.append(script.fingerprint_of('soft-level-all', 4))
    script.fingerprint_of.cache_clear()
    assert len(set(digests)) == 5


def test_only_runs_of_the_present_config_stay_in_the_record(capsys):
    present = {'fingerprint': script.fingerprint_of('dense', 4)}
    record = {'settings': {'dense': present, 'soft-level-all': {'fingerprint': 'other'}, 'hard-level-all': {}}}
    script.drop_outdated(record, 4)
    assert record == {'settings': {'dense': present}}
    said = capsys.readouterr().out
    assert 'soft-level-all' in said and 'hard-level-all' in said


def test_only_analyses_of_the_present_format_stay_in_the_record(capsys):
    present = {'fingerprint': script.fingerprint_of('soft-level-all', 4), 'format': script.FORMAT}
    old = {'fingerprint': script.fingerprint_of('hard-level-all', 4)}  # format 1 was not recorded
    record = {'settings': {'soft-level-all': present, 'hard-level-all': old}}
    script.drop_outdated(record, 4)
    assert record == {'settings': {'soft-level-all': present}}
    assert capsys.readouterr().out == 'hard-level-all: analysed in another format, not kept\n'


def test_an_analysis_of_other_seeds_or_format_is_made_again(tmp_path):
    assert not script.analysed(tmp_path, [0, 1])
    (tmp_path / 'seeds.json').write_text('[0, 1]')  # as before format 2
    assert not script.analysed(tmp_path, [0, 1])
    (tmp_path / 'seeds.json').write_text(json.dumps({'format': script.FORMAT, 'seeds': [0, 1]}))
    assert script.analysed(tmp_path, [0, 1]) and not script.analysed(tmp_path, [0, 1, 2])


def test_matched_settings_differ_in_width_alone_and_cost_what_dense_costs():
    for name in ('soft-level-all', 'hard-image-all'):
        kind, options = script.settings()[name]
        assert script.settings()[f'{name}-matched'] == (kind, {**options, f'{script.HEAD}.width': 'matched'})
        cost = script.multiply_adds_over_dense(f'{name}-matched')
        assert cost['head'] == pytest.approx(1, abs=0.045) and cost['model'] == pytest.approx(1, abs=0.03)
    # independent of the costs' code: experts of half the width cost less than the branch that they replace
    assert 0.7 < script.multiply_adds_over_dense('soft-level-all')['head'] < 0.8


def test_the_record_of_a_run_has_the_three_questions():
    plain = dict.fromkeys(script.KEPT, 1)
    assert {'verdict', 'mi_p_value', 'ceiling_bits', 'swap', 'routes'} <= set(plain)
    gates = dict(count=200, quantile=0.9, values=[0.1] * 200)
    units = dict(detection=dict(sorts=True, mi_bits=1), training=dict(unavailable='why'), image=dict(spearman=[]))
    layer = plain | dict(name='a', random_gates=gates, units=units, utilisation=dict(living=4), expert_by_size=[[1]])
    layer['relative_size'] = dict(mi_bits=0.1, mi_ci=[0, 1])
    other = layer | dict(name='b', random_gates=None, relative_size=None)
    found = script.summarise(dict(ap=dict(natural=dict(AP=0.5)), swap=None, layers=[layer, other]))
    assert found['ap'] == {'AP': 0.5} and found['swap'] is None
    assert found['layers']['a'] == plain | dict(
        random_gates=dict(count=200, quantile=0.9),
        relative_size=dict(mi_bits=0.1),
        sorts=dict(detection=True, training=None),
        living=4,
    )
    assert found['layers']['b']['random_gates'] is None and found['layers']['b']['relative_size'] is None


def test_the_record_over_seeds_has_verdicts_and_no_paths():
    layers = {'bbox_head.cls': {'verdict': 'established'}}
    found = {'seeds': {'checkpoints': [{'checkpoint': '/a/folder/epoch_4.pth'}], 'layers': layers}}
    assert script.over_seeds(found) == {'layers': layers}
    assert script.over_seeds({'seeds': None}) is None
