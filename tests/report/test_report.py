"""The report page and the console table."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from report.page_reader import Page
from report.report_example import add_pictures, make_example

from moe_det.analysis.sentences import layer_sentence, plain_sentence
from moe_det.figures import Pictures
from moe_det.report import console_table, write_report
from moe_det.report.embedding import Embedder


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """The results, the page's text and the page read back."""
    folder = tmp_path_factory.mktemp('report')
    results = make_example()
    add_pictures(results, Pictures(folder))
    text = write_report(results, folder).read_text(encoding='utf-8')
    return results, text, Page(text)


def test_page_is_well_formed(written):
    _, text, page = written
    assert text.lstrip().startswith('<!doctype html>')
    assert page.unclosed == []
    ids = [attributes['id'] for _, attributes in page.elements if 'id' in attributes]
    assert len(ids) == len(set(ids))
    targets = {a['href'][1:] for tag, a in page.elements if tag in ('a', 'use') and a.get('href', '').startswith('#')}
    assert len(targets) > 20 and targets <= set(ids)


def test_sections_come_in_their_order(written):
    _, _, page = written
    sections = [attributes['id'] for tag, attributes in page.elements if tag == 'section']
    order = 'sorting random matters size level within ap topk usage units likes routing seeds definitions made'
    assert sections == order.split()


def test_nothing_is_fetched_and_nothing_runs(written):
    _, text, page = written
    tags = {tag for tag, _ in page.elements}
    assert not tags & {'script', 'iframe', 'object', 'embed', 'base', 'form'}
    for tag, attributes in page.elements:
        assert not any(name.startswith('on') for name in attributes), (tag, attributes)
        for name in ('src', 'href', 'srcset', 'data', 'action', 'poster', 'xlink:href'):
            assert attributes.get(name, '#').startswith(('#', 'data:')), (tag, attributes)
    assert not re.search(r'url\((?!#)|@import|https?:', text)
    policy = next(a['content'] for tag, a in page.elements if a.get('http-equiv') == 'Content-Security-Policy')
    assert "default-src 'none'" in policy and 'script' not in policy


def test_page_begins_with_plain_sentences(written):
    results, _, page = written
    text = re.sub(r'\s+', ' ', page.text)
    begin = text[: text.index('1 Sorting by size')]
    places = [begin.index(layer['plain']) for layer in results['layers']]
    assert places == sorted(places)
    first = begin[: places[0]].removeprefix(f' {results["title"]} ')
    # before the first sentence: the title, and the layer with its verdict; no number and no statistics
    assert not re.search(r'\d|p =|bits', first) and 'bbox_head.cls size-specialised' in first
    assert begin.index('matched by a detection') > places[-1]
    for layer in results['layers']:
        assert not re.search(r'\d|I\(E|bits', layer['plain'])
        assert layer['sentence'] in begin


def test_sorting_has_the_numbers_of_the_results(written):
    results, _, page = written
    table = page.of_section('sorting')[0]
    expected = []
    for layer in results['layers']:
        for name in ('detection', 'training'):
            unit, relative = layer['units'][name], layer['units'][name]['relative_size']
            main = name == 'detection'
            # of an interval the low bound is the exact number
            row = [
                [relative['mi_bits'], relative['mi_ci'][0], relative['null_99_bits']],
                [relative['ceiling_bits']],
                [relative['p_value_holm'], relative['p_value']],
                [relative['cramers_v']],
                [unit['mi_given_level_bits'], unit['mi_given_level_ci'][0], unit['null_99_bits']],
                [unit['ceiling_bits']],
                [unit['p_value_holm'], unit['p_value']],
                [unit['cramers_v_given_level']],
                [unit['mi_bits']],  # with p and V where an image has one decision for all levels
                [layer['level_mi_bits'], layer['level_p_value']] if main else [],
            ]
            expected.append(row)
    assert table.numbers() == expected
    assert '0.0830[0.0710,0.0980]' in re.sub(r'\s', '', table.rows[3][1].text)
    # every number has a label of its own where the table becomes cards
    assert all(cell.label for row in table.rows for cell in row if cell.tag == 'td' and cell.numbers)
    # information without conditioning stands under its own head
    assert 'not conditioned' in table.rows[0][3].text and 'I(E;S)' in table.rows[1][9].text
    limits = page.of_section('sorting')[1]
    assert [[cell.text for cell in row] for row in limits.rows[1:3]] == [
        ['P3', '≤ 300', '300–700', '> 700'],
        ['P4', '≤ 1,200', '1,200–2,800', '> 2,800'],
    ]


def test_place_among_random_gates_is_told(written):
    results, _, page = written
    text = re.sub(r'\s+', ' ', page.text)
    for layer in results['layers']:
        gates = layer['random_gates']
        below = sum(value < gates['bits'] for value in gates['values'])
        assert gates['quantile'] == below / 200
        assert f'Trained gate {gates["bits"]:.4f} bits: above {below / 2:.1f} % of 200 random gates' in text
        assert f'whose median is {gates["median_bits"]:.4f} bits' in text


def test_swap_test_has_the_numbers_of_the_results(written):
    results, _, page = written
    names = ('AP', 'AP_S', 'AP_M', 'AP_L', 'AP_lower', 'AP_middle', 'AP_upper')
    for layer, table in zip(results['layers'], page.of_section('matters'), strict=True):
        routes = layer['routes']
        rows = [layer['swap'], results['swap'], routes['between_levels'], routes['fixed'], routes['best_per_image']]
        expected = []
        for number, row in enumerate(rows):
            cells = []
            for name in names:
                found = row.get(name)
                if not found:
                    cells.append([])
                    continue
                # the best route has no loss to test
                tested = [] if number == 4 else [found['p_value']]
                cells.append([found['difference'], found['interval'][0], *tested])
            expected.append(cells)
        assert table.numbers() == expected
        heads = [row[0].text for row in table.rows[1:]]
        assert 'upper bound, uses the ground truth' in heads[4] and 'experts 0 + 1' in heads[3]
        assert '5 draws, 198 images, 2 kept their own' in heads[0]


def test_heat_maps_have_the_numbers_of_the_results(written):
    results, _, page = written
    sizes = page.of_section('size')
    for layer, table in zip(results['layers'], sizes[::2], strict=True):
        parts = (layer['lift'], layer['lift_low'], layer['expert_by_size'])
        expected = [[list(cell) for cell in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
        assert table.numbers() == expected
    for layer, table in zip(results['layers'], sizes[1::2], strict=True):
        assert [[cell[1] for cell in row] for row in table.numbers()] == layer['relative_size']['expert_by_size']
    for layer, table in zip(results['layers'], page.of_section('level'), strict=True):
        assert [[cell[1] for cell in row] for row in table.numbers()] == layer['expert_by_level']
    counts = [[[cell[-1] for cell in row] for row in table.numbers()] for table in page.of_section('within')]
    assert counts == [level for layer in results['layers'] for level in layer['expert_by_size_by_level']]


def test_interventions_have_the_numbers_of_the_results(written):
    results, _, page = written
    natural = results['ap']['natural']
    tables = iter(page.of_section('ap'))
    for layer in results['layers']:
        for kind in ('forced', 'knocked_out'):
            head, *rows = next(tables).numbers()
            assert head == [[natural[name]] for name in ('AP', 'AP_S', 'AP_M', 'AP_L')]
            for row, entry in zip(rows, layer[kind], strict=True):
                expected = [[entry[n], entry[n] - natural[n]] for n in ('AP', 'AP_S', 'AP_M', 'AP_L')]
                assert row == [pytest.approx(cell) for cell in expected]


def test_other_tables_have_the_numbers_of_the_results(written):
    results, _, page = written
    rows = page.of_section('topk')[0].numbers()
    names = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')
    assert rows == [[[row[name]] for name in names] for row in [*results['ap']['top_k'], results['ap']['natural']]]
    usage, summary = page.of_section('usage')[:2]
    layer = results['layers'][0]
    per_level = [entry['importance_share'] for entry in layer['utilisation_by_level']]
    columns = [layer['utilisation']['importance_share'], layer['utilisation']['load_ratio'], *per_level]
    assert usage.numbers() == [[[column[e]] for column in columns] for e in range(4)]
    entries = [layer['utilisation'], *layer['utilisation_by_level']]
    keys = ('living', 'row_entropy', 'batch_entropy', 'rows')
    assert summary.numbers() == [[[entry[key]] for key in keys] for entry in entries]
    training = next(t for t in page.of_section('units') if t.label.startswith('training unit'))
    masses = layer['units']['training']['expert_by_size']
    assert [[cell[1] for cell in row] for row in training.numbers()] == masses
    spearman = next(t for t in page.of_section('units') if t.label.startswith('Rank correlation'))
    found = {(e['expert'], e['level']): e['rho'] for e in layer['units']['image']['spearman']}
    assert [[cell[0] for cell in row] for row in spearman.numbers()] == [
        [found[e, level] for level in range(5)] for e in range(4)
    ]
    routing = page.of_section('routing')[0]
    weights = [level['weights'][0] for level in results['examples'][0]['layers'][0]['levels']]
    assert [[cell[0] for cell in row] for row in routing.numbers()] == [list(of) for of in zip(*weights, strict=True)]
    seeds = page.of_section('seeds')[0]
    keys = ('relative_bits', 'relative_p_value_holm')
    for row, run in zip(seeds.numbers(), results['seeds']['checkpoints'], strict=True):
        found = run['layers']['bbox_head.cls']
        assert row == [[run['seed']], [run['AP']], *([found[key]] for key in keys), []]


def test_every_printed_number_is_its_value_rounded(written):
    _, _, page = written
    checked = 0
    for value, text in page.data:
        number = re.search(r'[−+]?[\d,]*\.?\d+', text.removeprefix('n ').removeprefix('p '))[0]
        shown = float(number.replace(',', '').replace('−', '-'))
        half = 0.5 * 10 ** -len(number.partition('.')[2]) + 1e-9
        if '<' in text:
            assert value < shown
        else:
            # average precisions and shares are printed in hundredths
            assert min(abs(shown - value), abs(shown - 100 * value)) <= half, (value, text)
        checked += 1
    assert checked > 500


def test_a_figure_tells_layer_levels_and_number(written):
    results, _, page = written
    text = re.sub(r'\s+', ' ', page.text)
    first = results['layers'][0]
    context = (
        f'Layer bbox_head.cls, unit level; P3–P7; n = {first["n_objects"]:,} objects (detection unit) in 200 images.'
    )
    assert text.count(context) >= 9  # size, relative size, lift, level, within, forced, knocked out, both, usage
    low, high = sorted(layer['n_objects'] for layer in results['layers'])
    assert text.count(f'All layers; n = {low:,} to {high:,} objects in 200 images.') == 1
    for definition in results['definitions'].values():
        assert definition in text


def test_patches_are_shown_level_by_level(tmp_path):
    results = make_example(layers=1, experts=3, levels=2, grid=2)
    weights = [[0.7, 0.3, 0], [0, 0.9, 0.1], [0.4, 0, 0.6], [0.55, 0, 0.45]]
    results['examples'] = results['examples'][:1]
    results['examples'][0]['layers'][0]['levels'] = [{'level': 1, 'weights': weights}]
    text = write_report(results, tmp_path).read_text(encoding='utf-8')
    section = Page(text[text.index('<section id="routing">') : text.index('<section id="seeds">')])
    found = [value for value, _ in section.data][1:]  # after the number of objects
    assert found == [0, 0.7, 1, 0.9, 2, 0.6, 0, 0.55]
    assert 'grid-template-columns:repeat(2,' in text and 'patch 2 × 2' in section.text + text


def test_patches_of_shards_show_the_copy_of_each(tmp_path):
    results = make_example(layers=1, experts=6, levels=2, grid=2)
    results['layers'][0] |= {'slots': 2, 'top_k': 2}
    weights = [[1, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0]]
    results['examples'] = results['examples'][:1]
    results['examples'][0]['layers'][0]['levels'] = [{'level': 1, 'weights': weights}]
    text = write_report(results, tmp_path).read_text(encoding='utf-8')
    section = Page(text[text.index('<section id="routing">') : text.index('<section id="seeds">')])
    assert [shown for _, shown in section.data][1:] == ['0 2', '1 0', '2 1', '0 0']
    assert 'the copy of each shard' in text and '2 shards of 3 copies' in text
    assert 'shard 1, copy 2' in text and not re.search(r'expert \d', text)


def test_a_swap_that_cannot_tell_is_no_swap_that_costs_nothing(tmp_path):
    results = make_example(layers=1, verdicts=['size-sorted'])
    (layer,) = results['layers']
    reason = 'AP_L: no object, or too few images with one'
    layer['swap'] |= {'costs': None, 'costs_reason': reason, 'sizes_that_lose': [], 'AP_L': None}
    layer |= {'verdict': 'undetermined', 'undetermined_reason': f'the swap test cannot tell: {reason}'}
    layer |= {'plain': plain_sentence(layer), 'sentence': layer_sentence(layer)}
    text = write_report(results, tmp_path).read_text(encoding='utf-8')
    assert f'No loss was seen under the swap; it cannot tell ({reason}).' in text
    assert layer['sentence'] == f'Undetermined: the swap test cannot tell: {reason}.'
    assert layer['sentence'] in text
    # of a detector without levels the verdict need not depend on it
    assert f'the swap test cannot tell ({reason})' in layer_sentence({**layer, 'verdict': 'scale-specialised'})


def test_pictures_are_embedded_small(written, tmp_path):
    results, text, page = written
    sources = [attributes['src'] for tag, attributes in page.elements if tag == 'img']
    assert len(sources) == 2 * 4 * (3 + 3) + 2
    assert all(source.startswith('data:image/jpeg;base64,') for source in sources)
    assert max(map(len, sources)) < 80_000 and len(text) < 3_000_000
    pictures = Pictures(tmp_path)
    (tmp_path / 'large.png').parent.mkdir(exist_ok=True)
    Image.effect_noise((2000, 1000), 80).save(tmp_path / 'large.png')
    embedder = Embedder(pictures, budget=100_000)
    assert 1000 < len(embedder.source('large.png')) < 100_000
    assert embedder.source('missing.png') is None and embedder.left_out == 0
    while embedder.source('large.png'):
        pass
    assert embedder.left_out == 1


def test_console_table_has_the_key_numbers():
    results = make_example()
    table = console_table(results)
    lines = table.splitlines()
    assert max(map(len, lines)) <= 120
    row = next(line for line in lines if line.startswith('bbox_head.cls  '))
    place = f'above {100 * results["layers"][0]["random_gates"]["quantile"]:.1f} %'
    loss = results['layers'][0]['swap']['AP']
    low, high = (f'{100 * bound:+.1f}'.replace('-', '−') for bound in loss['interval'])
    swap = f'{100 * loss["difference"]:+.1f}'.replace('-', '−') + f' [{low}, {high}]'
    expected = f'bbox_head.cls  4/2  0.0830  0.0002  0.21  {place}  {swap}  size-specialised'
    assert re.sub(' {2,}', '  ', row) == expected
    flat = re.sub(r'\s+', ' ', table)
    assert all(f'{layer["name"]}: {layer["plain"]}' in flat for layer in results['layers'])
