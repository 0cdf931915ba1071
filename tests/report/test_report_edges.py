"""The report page and the console table where the results are hostile, incomplete or large."""

from __future__ import annotations

import copy
import re

import pytest
from report.page_reader import Page
from report.report_example import make_example
from report.report_example_layer import CASES

from moe_det.analysis.definitions import DEFINITIONS
from moe_det.errors import DataError
from moe_det.figures import write_figures
from moe_det.report import console_table, write_report

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(1)>"\'&amp; http://evil.example/'
# what gives the results their shape; everything else may be missing
SHAPE = {'format', 'name', 'num_experts', 'expert', 'index', 'image_id', 'k', 'levels', 'unit'}


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
    results['layers'][0].update(random_gates=None, random_gates_reason=HOSTILE, plain=HOSTILE)
    results['layers'][0]['units']['detection'].update(p_value=None, p_value_reason=HOSTILE)
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
        layer.update(verdict=None, plain=None, sentence=None, constraints=None, grid=None)
        for unit in (layer['units']['detection'], layer['units']['detection']['relative_size']):
            unit['p_value_reason'] = 'too few images'
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
    assert shown.count('not given: too few images') == 4  # of both layers, by relative size and by COCO's bins
    assert 'Unavailable: no assigner' in shown
    assert 'nan' not in console_table(results) and 'None' not in console_table(results)


def test_what_was_left_out_says_so(tmp_path):
    results = make_example(layers=1, experts=1, levels=1)
    layer = results['layers'][0]
    layer.update(forced=[], knocked_out=[], favourites=[], utilisation={}, utilisation_by_level=[], units={})
    layer.update(counterfactual=None, relative_size=None, random_gates=None, random_gates_reason='no rows')
    layer.update(swap=None, swap_reason='no draws', routes=None)
    results.update(ap={'natural': {}, 'top_k': []}, examples=[], seeds=None, swap=None, relative_sizes=None)
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    assert 'The swap test was not run: no draws' in page.text and 'Not measured: no rows' in page.text
    for words in ('A single expert', 'Not swept', 'Not measured', 'Not recorded', 'No image was kept'):
        assert words in page.text
    assert not {a.get('id') for tag, a in page.elements if tag == 'section'} & {'seeds'}


def test_results_without_layers_still_give_a_page(tmp_path):
    results = make_example(layers=1, experts=2, levels=1)
    results.update(layers=[], seeds=None)
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    assert 'The results hold no MoE layer.' in page.text and page.unclosed == []


def test_many_layers_are_folded_and_long_names_kept(tmp_path):
    results = make_example(layers=5, experts=2, levels=1, favourites=0)
    for layer in results['layers']:  # no charts: they take time
        layer.update(
            lift=None, forced=[], knocked_out=[], utilisation={}, units={}, random_gates=None, swap=None, routes=None
        )
    name = 'backbone.' + 'very_long_module_name.' * 8 + 'conv2'
    for layer in (results['layers'][0], *(example['layers'][0] for example in results['examples'])):
        layer['name'] = name
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    folds = [a for tag, a in page.elements if tag == 'details']
    assert len(folds) == 10 * 5 + 2 * 5  # in ten sections and for two images, one per layer
    assert sum('open' in a for a in folds) == 10 + 2
    assert page.text.count(name) > 9


def test_many_experts_have_a_row_each(tmp_path):
    page = Page(write_report(make_example(layers=1, experts=32, levels=3), tmp_path).read_text(encoding='utf-8'))
    assert len(page.of_section('size')[0].numbers()) == 32
    assert [len(table.numbers()) for table in page.of_section('within')] == [32, 32, 32]


def test_favourites_beyond_the_limit_are_counted(tmp_path):
    results = make_example(layers=1, experts=2, levels=1, favourites=11)
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    assert page.text.count('6 more in the results file.') == 2  # 2 x 11 less 2 x 8


def test_console_table_stays_narrow_and_names_the_reason():
    results = make_example(layers=3, experts=32, levels=2, grid=10, verdicts=['specialised, not by size'])
    layer = results['layers'][0]
    layer.update(name='backbone.' + 'x' * 200 + '.conv2', random_gates=None, random_gates_reason='no features')
    layer['relative_size'].update(p_value_holm=None, p_value_reason='only 3 images ' * 20, cramers_v=None)
    layer['swap']['AP'].update(difference=-0.1234, interval=[-0.2345, -0.0123])
    results['layers'][1].update(swap=None, swap_reason='asked for no draws')
    table = console_table(results)
    assert max(map(len, table.splitlines())) <= 120
    flat = re.sub(r'\s+', ' ', table)
    assert 'no p-value, only 3 images' in flat
    assert 'no random gates, no features' in flat and 'no swap test, asked for no draws' in flat
    row = next(line for line in table.splitlines() if line.startswith('backb') and '…' in line)
    assert re.split(' {2,}', row)[-5:] == ['–', '–', '–', '−12.3 [−23.4, −1.2]', 'specialised, not by size']


@pytest.mark.parametrize('verdict', list(CASES))
def test_every_verdict_has_a_badge_a_definition_and_sentences(tmp_path, verdict):
    results = make_example(layers=1, experts=2, levels=2, favourites=0, verdicts=[verdict])
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    badge = next(a['class'] for tag, a in page.elements if a.get('class', '').startswith('badge'))
    assert badge == 'badge ' + verdict.replace(',', '').replace(' ', '-')
    assert verdict in DEFINITIONS and f'{results["layers"][0]["plain"]}' in page.text
    assert results['layers'][0]['sentence'].startswith(verdict.capitalize())


@pytest.mark.parametrize('found', [1, None, 3])
def test_results_of_another_format_are_refused(tmp_path, found):
    results = make_example(layers=1, experts=2, levels=2)
    results['format'] = found
    for use in (lambda: write_report(results, tmp_path), lambda: console_table(results)):
        with pytest.raises(DataError, match=f'format {found}, not 2: measure the checkpoint again'):
            use()
    with pytest.raises(DataError, match='measure the checkpoint again'):
        write_figures(results, tmp_path)
    assert not (tmp_path / 'report.html').exists()


def test_a_layer_that_decides_once_has_the_levels_of_its_objects(tmp_path):
    results = make_example(layers=3, experts=2, levels=4)
    assert results['layers'][2]['unit'] == 'image'
    page = Page(write_report(results, tmp_path).read_text(encoding='utf-8'))
    assert len(page.of_section('within')) == 3 * 4
    assert [cell.text[:2] for cell in page.of_section('level')[2].rows[0][1:]] == ['P3', 'P4', 'P5', 'P6']
    assert 'P3–P6, one decision for all' in page.text
    # but its decisions have none
    assert [cell.text for cell in page.of_section('routing')[2].rows[0]] == ['expert', 'image']
