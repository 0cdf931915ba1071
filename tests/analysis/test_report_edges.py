"""The report page and the console table where the results are hostile, incomplete or large."""

from __future__ import annotations

import copy
import re

import pytest

from moe_det.analysis.report import console_table, write_report
from tests.analysis.page_reader import Page
from tests.analysis.report_example import make_example

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(1)>"\'&amp; http://evil.example/'
# what gives the results their shape; everything else may be missing
SHAPE = {'name', 'num_experts', 'expert', 'index', 'image_id', 'k', 'levels', 'unit'}


def _without_values(node, missing, key=None):
    """A copy in which every leaf is ``missing``, but for names and places."""
    if key in SHAPE and not (isinstance(node, list) and node and isinstance(node[0], dict)):
        return copy.deepcopy(node)
    if isinstance(node, dict):
        return {k: _without_values(v, missing, k) for k, v in node.items()}
    if isinstance(node, list):
        return [_without_values(v, missing, key) for v in node]
    return missing


def _everywhere(node, text: str):
    """A copy with the text in place of, or appended to, every text."""
    if isinstance(node, dict):
        return {key: _everywhere(value, text) for key, value in node.items()}
    if isinstance(node, list):
        return [_everywhere(value, text) for value in node]
    return node + text if isinstance(node, str) else node


@pytest.mark.filterwarnings('ignore:constrained_layout not applied')  # names of sizes as long as these
def test_texts_are_escaped(tmp_path):
    results = _everywhere(make_example(layers=1, experts=2, levels=2), HOSTILE)
    results['definitions'] = {HOSTILE: HOSTILE}
    results['provenance']['versions'] = {HOSTILE: HOSTILE}
    results['layers'][0].update(p_value_holm=None, p_value_reason=HOSTILE)
    results['layers'][0]['units']['training'] = {'unavailable': HOSTILE}
    results['examples'][0]['file_name'] = 'grün' + HOSTILE + '\udce9'  # a name that is no unicode
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    assert not {tag for tag, _ in page.elements} & {'script', 'alert'}
    assert not [a for _, a in page.elements if any(name.startswith('on') for name in a)]
    assert not [a for tag, a in page.elements if tag == 'img' and not a['src'].startswith('data:')]
    assert page.unclosed == []
    assert page.text.count(HOSTILE) > 20  # as text, in full
    assert 'grün' in page.text


@pytest.mark.parametrize('missing', [None, float('nan')], ids=['none', 'nan'])
def test_missing_values_leave_a_dash(tmp_path, missing):
    results = _without_values(make_example(layers=2, experts=2, levels=2), missing)
    for layer in results['layers']:
        layer.update(verdict=None, sentence=None, p_value_reason='too few images', constraints=None, grid=None)
        layer['units']['training'] = {'unavailable': 'no assigner'}
        layer['counterfactual']['agrees'] = None
        layer['main_unit'] = None
        for entry in layer['favourites']:
            for item in (*entry['images'], *entry['objects']):
                item.update(picture=None, file_name='a.jpg', size=None, category=None, annotation_id=None)
    for example in results['examples']:
        example.update(picture=None, file_name='a.jpg')
    results.update(title=None, notes=None, definitions=None)
    results['provenance'] = {}
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    shown = re.sub(r'\s+', ' ', page.text)
    assert not re.search(r'\b(None|nan|NaN|inf)\b', shown)
    assert [value for value, _ in page.data if value != value] == []
    assert shown.count('not given: too few images') == 2
    assert 'Unavailable: no assigner' in shown
    assert 'nan' not in console_table(results) and 'None' not in console_table(results)


def test_what_was_left_out_says_so(tmp_path):
    results = make_example(layers=1, experts=1, levels=1)
    layer = results['layers'][0]
    layer.update(forced=[], knocked_out=[], favourites=[], utilisation={}, utilisation_by_level=[], units={})
    layer.update(counterfactual=None, random_gate=None)
    results.update(ap={'natural': {}, 'top_k': []}, examples=[], seeds=None)
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    for words in ('A single expert', 'Not swept', 'Not measured', 'Not recorded', 'No image was kept'):
        assert words in page.text
    assert not {a.get('id') for tag, a in page.elements if tag == 'section'} & {'random', 'seeds'}


def test_results_without_layers_still_give_a_page(tmp_path):
    results = make_example(layers=1, experts=2, levels=1)
    results.update(layers=[], seeds=None)
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    assert 'The results hold no MoE layer.' in page.text and page.unclosed == []


def test_many_layers_are_folded_and_long_names_kept(tmp_path):
    results = make_example(layers=5, experts=2, levels=1, favourites=0)
    for layer in results['layers']:  # no charts: they take time
        layer.update(lift=None, forced=[], knocked_out=[], utilisation={}, units={}, random_gate=None)
    name = 'backbone.' + 'very_long_module_name.' * 8 + 'conv2'
    for layer in (results['layers'][0], *(example['layers'][0] for example in results['examples'])):
        layer['name'] = name
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    folds = [a for tag, a in page.elements if tag == 'details']
    assert len(folds) == 7 * 5 + 2 * 5  # in seven sections and for two images, one per layer
    assert sum('open' in a for a in folds) == 7 + 2
    assert page.text.count(name) > 9


def test_many_experts_have_a_row_each(tmp_path):
    page = Page(write_report(make_example(layers=1, experts=32, levels=3), tmp_path).read_text(encoding='utf-8'))
    assert len(page.of_section('size')[0].numbers()) == 32
    assert len(page.of_section('within')[0].numbers()[0]) == 9


def test_favourites_beyond_the_limit_are_counted(tmp_path):
    results = make_example(layers=1, experts=2, levels=1, favourites=11)
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    assert page.text.count('6 more in the results file.') == 2  # 2 x 11 less 2 x 8


def test_console_table_stays_narrow_and_names_the_reason():
    results = make_example(layers=3, experts=32, levels=2, grid=10)
    results['layers'][0].update(
        name='backbone.' + 'x' * 200 + '.conv2',
        p_value=None,
        p_value_holm=None,
        p_value_reason='only 3 images ' * 20,
        mi_given_level_bits=-0.1234,
        mi_given_level_ci=[-0.2345, -0.0123],
        cramers_v_given_level=None,
    )
    table = console_table(results)
    assert max(map(len, table.splitlines())) <= 120
    assert 'no p-value, only 3 images' in re.sub(r'\s+', ' ', table)
    row = next(line for line in table.splitlines() if line.startswith('backbone…'))
    assert re.split(' {2,}', row)[-4:] == ['−0.1234 [−0.2345, −0.0123]', '–', '–', 'size-specialised']
