"""Figures, their colours and numbers, and the small pictures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from report.report_example import add_pictures, make_example

from moe_det.figures import Pictures, charts, crop_object, draw_boxes, palette, tables, values, write_figures
from moe_det.figures.style import PAGE, Wording, drawing, inline_svg


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize(
    ('number', 'text'),
    [
        (values.bits(0.08304), '0.0830'),
        (values.bits(-0.00041), '−0.0004'),
        (values.bits(-0.00001), '0.0000'),
        (values.bits(float('nan')), '–'),
        (values.p_value(0.0001), '0.0001'),
        (values.p_value(0.00002), '< 0.0001'),
        (values.p_value(None), '–'),
        (values.average_precision(0.38449), '38.4'),
        (values.average_precision(-1.0), '−100.0'),
        (values.ap_difference(0.40, 0.384), '+1.6'),
        (values.ap_difference(0.384, 0.384), '0.0'),
        (values.ap_difference(0.384, None), '–'),
        (values.share(0.0994), '9.9 %'),
        (values.share(0.0996), '10 %'),
        (values.lift(1.834), '1.83'),
        (values.lift(12.34), '12.3'),
        (values.count(12345), '12,345'),
        (values.count(12.34), '12.3'),
        (values.count(12.0, whole=False), '12.0'),
        (values.area(226.8), '227'),
        (values.interval([-0.012, 0.031], 2), '[−0.01, 0.03]'),
        (values.interval([None, 0.031]), ''),
    ],
)
def test_numbers_are_printed_as_expected(number, text):
    assert number.text == text


@pytest.mark.parametrize(
    ('low', 'high', 'text'),
    [
        (0, 1024, '< 32² px'),
        (1024, 9216, '32²–96² px'),
        (9216, 1e10, '> 96² px'),
        (9216, None, '> 96² px'),
        (0, 500, '< 500 px'),
    ],
)
def test_size_ranges_name_the_side_of_the_square(low, high, text):
    assert values.size_range({'low': low, 'high': high}) == text


# expert 0 has 30 of 100 objects; of the 40 small ones it has 24: (24 / 40) / (30 / 100) = 2
COUNTS = [[24, 6], [16, 54]]


def test_lift_is_the_share_of_a_column_over_the_base_rate():
    assert tables.lift_of(COUNTS, 0, 0) == pytest.approx(2.0)
    assert tables.lift_of(COUNTS, 1, 1) == pytest.approx((54 / 60) / (70 / 100))
    assert tables.lift_of([[0, 0], [3, 4]], 0, 0) is None  # never chosen: no base rate
    assert tables.lift_of([[3, 0], [4, 0]], 0, 1) is None  # no object of that size
    assert tables.lift_of(None, 0, 0) is None


def _two_levels() -> tuple[dict, dict]:
    sizes = [{'name': 'small', 'low': 0, 'high': 1024}, {'name': 'large', 'low': 1024, 'high': None}]
    results = {'sizes': sizes, 'levels': [{'index': 3, 'name': 'P3'}, {'index': 5, 'name': 'P5'}]}
    layer = {
        'name': 'head',
        'num_experts': 2,
        'levels': [3, 5],
        # a level map: expert 0 has all of P3, expert 1 all of P5 but two
        'expert_by_size_by_level': [[[30, 10], [0, 0]], [[1, 1], [9, 49]]],
        'expert_by_level': [[40, 2], [0, 58]],
        'expert_by_size': [[31, 11], [9, 49]],
    }
    return results, layer


def test_inside_a_level_a_level_map_has_lift_one():
    results, layer = _two_levels()
    heat = tables.within_heat(results, layer)
    assert heat.groups == [('P3', 2), ('P5', 2)]
    found = [[cell.number.value for cell in cells] for _, cells in heat.rows]
    # P3 belongs to expert 0 alone; P5: of 10 small ones 1 is expert 0's, which has 2 of 60
    assert found[0] == pytest.approx([1.0, 1.0, (1 / 10) / (2 / 60), (1 / 50) / (2 / 60)])
    assert found[1] == [None, None, pytest.approx((9 / 10) / (58 / 60)), pytest.approx((49 / 50) / (58 / 60))]
    assert [cell.faint for cell in heat.rows[0][1]] == [False, False, False, False]


def test_lifts_over_few_objects_are_marked():
    results, layer = _two_levels()
    layer['expert_by_size_by_level'][1] = [[1, 1], [8, 49]]  # nine small objects in P5
    assert [cell.faint for cell in tables.within_heat(results, layer).rows[0][1]] == [False, False, True, False]


def test_shares_of_a_level_add_to_one():
    results, layer = _two_levels()
    heat = tables.level_heat(results, layer)
    assert [[cell.number.value for cell in cells] for _, cells in heat.rows] == [[1.0, 2 / 60], [0.0, 58 / 60]]
    assert [head.notes for head in heat.columns] == [('n 40',), ('n 60',)]
    assert [head.notes for head, _ in heat.rows] == [('base 42 %',), ('base 58 %',)]


def test_shade_of_ap_is_relative_to_the_largest_difference():
    results = {'ap': {'natural': {'AP': 0.4, 'AP_S': 0.2, 'AP_M': 0.4, 'AP_L': None}}}
    forced = [{'expert': 0, 'AP': 0.36, 'AP_S': 0.22, 'AP_M': 0.4, 'AP_L': 0.5}]
    cells = tables.ap_heat(results, {'num_experts': 2}, forced).rows[1][1]
    assert [cell.shade for cell in cells] == ['less', 'more', '', '']
    assert cells[0].strength == pytest.approx(palette.STRONGEST)
    assert cells[1].strength == pytest.approx(palette.STRONGEST / 2)
    assert [note.text for cell in cells for note in cell.notes] == ['−4.0', '+2.0', '0.0']


def test_shade_of_lift_is_logarithmic_and_neutral_at_one():
    assert palette.shade_lift(1.0) == ('', 0.0)
    assert palette.shade_lift(2.0) == ('more', pytest.approx(palette.STRONGEST / 2))
    assert palette.shade_lift(0.5) == ('less', pytest.approx(palette.STRONGEST / 2))
    assert palette.shade_lift(100.0) == ('more', palette.STRONGEST)
    assert palette.shade_lift(0.0) == ('less', palette.STRONGEST)
    assert palette.shade_lift(None) == ('', 0.0)


@pytest.mark.parametrize('colours', [palette.LIGHT, palette.DARK], ids=['light', 'dark'])
def test_text_is_readable_on_every_shade(colours):
    for shade in ('more', 'less', 'share'):
        face = palette.over(colours[shade], colours['surface'], palette.STRONGEST)
        assert palette.contrast(face, colours['ink']) >= 4.5, shade
    for text in ('ink', 'muted', 'accent'):
        for ground in ('surface', 'page'):
            assert palette.contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for colour in palette.SIZE_COLOURS[:3]:
        assert palette.contrast(colour, colours['surface']) >= 3, colour


def test_contrast_is_that_of_wcag():
    assert palette.contrast('#ffffff', '#000000') == pytest.approx(21)
    assert palette.contrast('#777777', '#ffffff') == pytest.approx(4.48, abs=0.01)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """One layer's figures with pictures, and the results behind them."""
    folder = tmp_path_factory.mktemp('figures')
    results = make_example(layers=1, experts=2, levels=2)
    add_pictures(results, Pictures(folder))
    return results, folder, write_figures(results, folder, Pictures(folder))


def test_every_figure_is_there_in_both_formats(written):
    _, folder, paths = written
    names = {path.stem for path in paths.values()}
    layer = 'random swap routes relative size lift level within forced knocked_out interventions usage usage_levels'
    expected = {'information', 'top_k', 'example_00_routing', 'example_01_routing'}
    assert names == expected | {f'00_bbox-head.cls_{kind}' for kind in (*layer.split(), 'images', 'objects')}
    assert set(paths) == {f'{name}.{ending}' for name in names for ending in ('png', 'svg')}
    assert set(paths.values()) == set((folder / 'figures').iterdir())
    for path in paths.values():
        if path.suffix == '.png':
            with Image.open(path) as picture:
                assert min(picture.size) > 200
                assert len(picture.convert('L').resize((64, 64)).getcolors()) > 3, f'{path.name} is blank'
        else:
            assert ElementTree.parse(path).getroot().tag == '{http://www.w3.org/2000/svg}svg'


def test_what_was_not_measured_has_no_figure(tmp_path):
    results = make_example(layers=1, experts=2, levels=1)
    layer = results['layers'][0]
    layer.update(lift=[[None] * 3] * 2, forced=[], knocked_out=[], expert_by_size_by_level=[], expert_by_level=[])
    layer.update(utilisation={}, utilisation_by_level=[], units={}, random_gates=None, levels=[])
    layer.update(relative_size=None, swap=None, routes=None)
    results['ap'] = {'natural': {}, 'top_k': []}
    results['examples'] = []
    stems = {path.stem for path in write_figures(results, tmp_path).values()}
    assert stems == {'00_bbox-head.cls_size'}


def test_odd_layer_names_give_different_files_inside_the_folder(tmp_path):
    results = make_example(layers=3, experts=2, levels=1)
    for layer, name in zip(results['layers'], ('../../a b', '../../a/b', '$x_{$ä'), strict=True):
        layer['name'] = name
        for key in ('forced', 'knocked_out', 'utilisation_by_level', 'favourites'):
            layer[key] = []
        layer.update(
            expert_by_size_by_level=[], expert_by_level=[], utilisation={}, units={}, lift=None, random_gates=None
        )
    results.update(examples=[], ap={})
    paths = write_figures(results, tmp_path)
    assert {path.parent for path in paths.values()} == {tmp_path / 'figures'}
    assert sum(name.endswith('_size.png') for name in paths) == 3


def test_chart_takes_the_colours_of_the_page_and_its_ids_are_its_own():
    results = make_example(layers=1, experts=2, levels=1)
    with drawing(PAGE, paths=False):
        one, two = (
            inline_svg(charts.lift_chart(results, results['layers'][0], PAGE, Wording()), prefix, 'a "label"')
            for prefix in ('one', 'two')
        )
    assert one.startswith('<svg role="img" aria-label="a &quot;label&quot;"')
    assert 'var(--ink)' in one and 'var(--muted)' in one
    assert not re.search('#010203|#040506|#070809|xmlns|http', one)
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', one))
    assert used and used <= ids[0]
    assert '>expert 1</text>' in one  # text, not paths


def test_the_same_results_give_the_same_svg():
    results = make_example(layers=1, experts=2, levels=1)
    texts = []
    for _ in range(2):
        with drawing(PAGE, paths=False):
            texts.append(inline_svg(charts.usage_chart(results['layers'][0], PAGE, Wording()), 'a', ''))
    assert texts[0] == texts[1]


def test_boxes_have_the_colours_of_their_sizes_and_their_places():
    image = np.full((400, 800, 3), 255, np.uint8)
    # given small first; the large box must not cover it
    picture = draw_boxes(image, [[100, 100, 40, 40], [80, 80, 400, 200]], [0, 2], longest=400, line=2)
    assert picture.size == (400, 200)
    assert picture.getpixel((50, 60)) == _rgb(palette.size_colour(0))  # left edge at 100 / 2
    assert picture.getpixel((140, 40)) == _rgb(palette.size_colour(2))  # upper edge at 80 / 2
    assert picture.getpixel((60, 60)) == (255, 255, 255)
    assert picture.getpixel((300, 150)) == (255, 255, 255)
    with pytest.raises(ValueError, match='zip'):
        draw_boxes(image, [[0, 0, 9, 9]], [])


def test_a_tiny_box_is_still_seen():
    picture = draw_boxes(np.full((1000, 1000), 128, np.uint8), [[500, 500, 2, 0]], [1], longest=200)
    assert _rgb(palette.size_colour(1)) in {colour for _, colour in picture.getcolors()}


def test_cut_out_is_centred_and_of_modest_size():
    image = np.zeros((300, 400, 3), np.uint8)
    image[100:140, 200:220] = (250, 10, 10)
    cut = crop_object(image, [200, 100, 20, 40], context=0.5)
    assert cut.size == (96, 96)  # 80 pixels, enlarged
    assert cut.getpixel((48, 48)) == (250, 10, 10)
    assert cut.getpixel((24, 48)) == (0, 0, 0)
    large = crop_object(image, [0, 0, 400, 300], context=0.5, size=2)
    assert large.size == (200, 200)
    assert large.getpixel((2, 2)) == (128, 128, 128)  # outside the image


@pytest.mark.parametrize('bbox', [[-50, -50, 20, 20], [390, 290, 40, 40], [10, 10, 0, 0], [0.4, 0.4, 0.2, 900.0]])
def test_odd_boxes_give_a_cut_out(bbox):
    cut = crop_object(np.zeros((300, 400), np.uint8), bbox, size=0)
    assert cut.mode == 'RGB' and 0 < max(cut.size) <= 200


def test_pictures_stay_in_their_folder(tmp_path):
    (tmp_path / 'secret.jpg').write_bytes(b'secret')
    pictures = Pictures(tmp_path / 'out')
    image = Image.new('RGB', (8, 8), '#336699')
    names = [pictures.save(name, image) for name in ('a-1', '../a 1', '../a/1', 'ä', 'ö')]
    assert len(set(names)) == 5
    assert {(tmp_path / 'out' / name).parent for name in names} == {tmp_path / 'out' / 'pictures'}
    assert names[0] == 'pictures/a-1.jpg' and pictures.open(names[0]).size == (8, 8)
    assert pictures.path('../secret.jpg') is None
    assert pictures.path(str(tmp_path / 'secret.jpg')) is None
    assert pictures.open('pictures/missing.jpg') is None and pictures.open(None) is None
    (tmp_path / 'out' / 'broken.jpg').write_bytes(b'no picture')
    assert pictures.open('broken.jpg') is None
