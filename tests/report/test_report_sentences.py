"""The sentences on a layer, and the terms that they and the page use."""

from __future__ import annotations

import re

import pytest
from report.report_example import make_example
from report.report_example_layer import CASES, TOO_FEW

from moe_det.analysis.definitions import DEFINITIONS
from moe_det.analysis.result import VERDICTS
from moe_det.analysis.sentences import layer_sentence, plain_sentence


def _layer(verdict: str, **changed) -> dict:
    layer = make_example(layers=1, experts=3, levels=3, favourites=0, verdicts=[verdict])['layers'][0]
    layer.update(changed)
    for key in ('plain', 'sentence'):  # what writes them must not need them
        del layer[key]
    return layer


@pytest.mark.parametrize(
    ('verdict', 'begin'),
    [
        ('size-specialised', 'Yes: even within a pyramid level its experts serve different sizes'),
        ('size-sorted', 'In part: its experts get objects of different size even within a level'),
        ('specialised, not by size', 'Not by size: the detector needs its choice of expert'),
        ('scale-specialised', 'By image only: images of large and of small objects go to different experts'),
        ('level-specialised', 'No: its experts differ by pyramid level, not by size.'),
        ('not specialised', 'No: nothing shows that its experts differ by size, or by pyramid level.'),
        ('undetermined', 'Not known: these data are insufficient.'),
    ],
)
@pytest.mark.parametrize('missing', [(), ('swap',), ('random_gates',), ('swap', 'random_gates')])
def test_plain_sentence_needs_no_statistics(verdict, begin, missing):
    text = plain_sentence(_layer(verdict, **{name: None for name in missing}))
    assert text.startswith(begin) and text.endswith('.')
    assert not re.search(r'\d|bits|interval|p-value|I\(E', text)


@pytest.mark.parametrize('verdict', VERDICTS)
@pytest.mark.parametrize('missing', [(), ('swap',), ('random_gates',), ('relative_size',)])
def test_sentence_says_what_is_missing(verdict, missing):
    layer = _layer(verdict, swap_reason='asked for none', random_gates_reason='no features')
    layer.update({name: None for name in missing})
    if 'relative_size' in missing:
        for name in ('detection', 'training'):
            layer['units'][name]['relative_size'] = None
    text = layer_sentence(layer)
    assert text.startswith(verdict.capitalize()) and text.endswith('.') and 'None' not in text
    if 'swap' in missing and verdict != 'undetermined':
        assert 'the swap test was not run (asked for none)' in text
    if missing == ('random_gates',) and verdict in ('size-specialised', 'size-sorted'):
        assert 'random gates were not measured (no features)' in text


def test_plain_sentence_names_the_size_that_loses_most():
    layer = _layer('size-specialised')
    assert plain_sentence(layer).endswith('the detector needs that, most of all for large objects.')
    layer['swap']['sizes_that_lose'] = ['AP', 'AP_S']
    assert plain_sentence(layer).endswith('the detector needs that, for small objects.')
    layer['swap']['sizes_that_lose'] = ['AP']
    assert plain_sentence(layer).endswith('the detector needs that.')


def test_size_sorted_says_what_is_in_doubt():
    layer = _layer('size-sorted')
    assert plain_sentence(layer).endswith('but no loss was seen when images exchanged their experts.')
    assert 'swapping decisions between images has no measurable cost (AP ' in layer_sentence(layer)
    assert plain_sentence({**layer, 'swap': None}).endswith('but whether the detector needs that was not tested.')
    layer['random_gates']['quantile'] = 0.41
    assert plain_sentence(layer).endswith('but an untrained gate sorts them as well.')
    assert 'random gates sort as well, with 41 % of 200 random gates below it' in layer_sentence(layer)


def test_not_by_size_tells_random_gates_from_no_sorting():
    layer = _layer('specialised, not by size')
    assert 'nothing shows that the experts differ by size within a level' in plain_sentence(layer)
    assert 'was not shown (I(E;relative size | level) = 0.007 bits, V = 0.03, p = 0.86 (Holm))' in layer_sentence(layer)
    for unit in ('detection', 'training'):
        layer['units'][unit]['sorts'] = True
    layer['random_gates']['quantile'] = 0.6
    assert 'no more than an untrained gate would' in plain_sentence(layer)
    assert 'sorts by size beyond the level' in layer_sentence(layer)
    assert 'but random gates sort as well, with 60 % of 200' in layer_sentence(layer)
    layer.update(random_gates=None, random_gates_reason='no features')
    assert plain_sentence(layer).endswith('but whether more than an untrained gate would is not known.')
    assert 'but random gates were not measured (no features)' in layer_sentence(layer)


def test_the_unit_that_fails_is_named():
    layer = _layer('level-specialised')
    layer['units']['detection']['sorts'] = True
    layer['units']['training']['relative_size'].update(mi_bits=0.0212, cramers_v=0.12, p_value=0.034)
    words = 'beyond the level in the training unit was not shown (0.021 bits, V = 0.12, p = 0.034)'
    assert words in layer_sentence(layer)
    layer['units']['training']['relative_size'].update(p_value=None, p_value_reason='too few rows')
    layer['units']['training']['p_value_reason'] = None
    assert 'in the training unit is unknown: too few rows' in layer_sentence(layer)


def test_a_small_p_value_is_not_called_no_finding():
    layer = _layer('level-specialised')
    layer['relative_size'].update(p_value_holm=0.0002, cramers_v=0.04)
    layer['units']['detection']['relative_size'].update(p_value=0.0001, cramers_v=0.04)
    text = layer_sentence(layer)
    assert 'too weakly to matter' in text and 'V = 0.04, p = 0.0002 (Holm); V below 0.1' in text
    assert 'was not shown' not in text


def test_undetermined_tells_its_reason():
    assert layer_sentence(_layer('undetermined')) == f'Undetermined: {TOO_FEW}.'
    layer = _layer('undetermined')
    for place in (layer, layer['relative_size']):
        place['p_value_reason'] = None
    for unit in ('detection', 'training'):
        for place in (layer['units'][unit], layer['units'][unit]['relative_size']):
            place['p_value_reason'] = None
    layer['units']['training'] = {'unavailable': 'the head has no assigner'}
    assert layer_sentence(layer) == 'Undetermined: the head has no assigner.'
    layer['undetermined_reason'] = 'training unit: 9 objects'
    assert layer_sentence(layer) == 'Undetermined: training unit: 9 objects.'


def test_without_levels_nothing_is_said_beyond_them():
    text = layer_sentence(_layer('scale-specialised', levels=[], relative_size=None))
    assert 'beyond the level nothing can be said' in text and 'was not shown' not in text


def test_every_verdict_is_defined_and_shown():
    assert set(VERDICTS) == set(CASES)
    assert set(VERDICTS) <= set(DEFINITIONS)
    texts = list(DEFINITIONS.values())
    assert len(set(texts)) == len(texts)
    # what was not shown is never called absent: it would contradict a small p-value beside it
    for verdict in VERDICTS[1:-1]:
        assert re.search('not shown|nothing was shown|none of these was shown', DEFINITIONS[verdict]), verdict
