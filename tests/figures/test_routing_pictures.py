"""What the routing picture shows, read back from the figure and from its pixels."""

from __future__ import annotations

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moe_det.figures.palette import size_colour
from moe_det.figures.routing_pictures import (
    Boxes,
    RoutedLevel,
    RoutedPicture,
    cell_text,
    expert_colour,
    routing_figure,
    shrunk,
)

NONE = Boxes(np.zeros((0, 4)), np.zeros(0), [])


def picture(levels: list[RoutedLevel], detections: Boxes = NONE, truths: Boxes | None = None) -> RoutedPicture:
    pixels = np.full((120, 200, 3), 128, np.uint8)
    return RoutedPicture('x.png', pixels, {'head.cls': levels}, detections, 0.3, truths)


def whole(*weights: float) -> RoutedLevel:
    return RoutedLevel('level 0', np.array([[0.0, 0.0, 200.0, 120.0]]), np.array([weights]))


def axes_titled(figure: Figure, title: str):
    (found,) = [axes for axes in figure.axes if axes.get_title() == title]
    return found


def rectangles(axes, filled: bool) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill() == filled]


def test_sizes_follow_cocos_limits_in_original_pixels():
    boxes = Boxes(np.zeros((6, 4)), np.array([0.0, 1024.0, 1024.5, 9216.0, 9217.0, 1e6]), [''] * 6)
    assert boxes.sizes.tolist() == [0, 0, 1, 1, 2, 2]


def test_boxes_have_the_colour_of_their_size_and_their_place():
    corners = np.array([[10, 20, 30, 40], [50, 10, 150, 110]], float)
    # the first box is small by its box; its annotation's mask is what counts for ground truth
    found, truth = Boxes(corners, np.array([400.0, 10000.0]), ['a', 'b']), Boxes(corners[:1], np.array([2000.0]), ['a'])
    figure = routing_figure(picture([whole(1.0, 0.0)], found, truth))
    first, second = rectangles(axes_titled(figure, '2 detections, score ≥ 0.3'), filled=False)
    assert (first.get_xy(), first.get_width(), first.get_height()) == ((10, 20), 20, 20)
    assert matplotlib.colors.to_hex(first.get_edgecolor()) == size_colour(0)
    assert matplotlib.colors.to_hex(second.get_edgecolor()) == size_colour(2)
    (only,) = rectangles(axes_titled(figure, '1 ground truth'), filled=False)
    assert matplotlib.colors.to_hex(only.get_edgecolor()) == size_colour(1)
    panel = rectangles(axes_titled(figure, 'level 0'), filled=False)
    assert [matplotlib.colors.to_hex(box.get_edgecolor()) for box in panel] == [
        size_colour(1)
    ]  # ground truth goes first


def test_with_shards_a_part_has_a_strip_for_the_copy_of_each():
    cells = np.array([[0, 0, 100, 120], [100, 0, 200, 120]], float)
    weights = np.array([[0, 1.0, 0, 1, 0, 0], [1.0, 0, 0, 0, 0, 1]])
    figure = routing_figure(picture([RoutedLevel('level 1', cells, weights, 2)]))
    axes = axes_titled(figure, 'level 1')
    strips = rectangles(axes, filled=True)
    assert [(strip.get_x(), strip.get_width()) for strip in strips] == [(0, 50), (50, 50), (100, 50), (150, 50)]
    colours = [matplotlib.colors.to_hex(strip.get_facecolor()) for strip in strips]
    assert colours == [expert_colour(copy) for copy in (1, 0, 0, 2)]
    assert [text.get_text() for text in axes.texts] == ['1 0', '0 2']
    (legend,) = [legend for part in figure.subfigs for legend in part.legends]
    assert [text.get_text() for text in legend.get_texts()][3:] == ['copy 0', 'copy 1', 'copy 2']


def test_parts_are_tinted_by_their_first_expert_the_more_the_larger_its_weight():
    cells = np.array([[0, 0, 100, 120], [100, 0, 200, 120], [200, 0, 200, 120]], float)
    weights = np.array([[0.0, 0.9, 0.1], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0]])
    figure = routing_figure(picture([RoutedLevel('level 1', cells, weights)]))
    axes = axes_titled(figure, 'level 1')
    left, right = rectangles(axes, filled=True)  # the third lies in the padding alone
    assert matplotlib.colors.to_hex(left.get_facecolor()) == expert_colour(1)
    assert matplotlib.colors.to_hex(right.get_facecolor()) == expert_colour(0)
    assert left.get_facecolor()[3] > right.get_facecolor()[3]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ['1: 0.90\n2: 0.10', '0: 0.40\n1: 0.30\n2: 0.30']
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)
    box = axes.get_window_extent()
    row = int(pixels.shape[0] - (box.y0 + box.height * 0.3))
    seen = [pixels[row, int(box.x0 + box.width * at)] for at in (0.25, 0.75)]
    purple, gold = (np.array(matplotlib.colors.to_rgb(expert_colour(e))) for e in (1, 0))
    for colour, tint in zip(seen, (purple, gold), strict=True):
        assert np.corrcoef(colour - colour.mean(), tint - tint.mean())[0, 1] > 0.95  # grey, tinted that way


def test_text_of_a_part_shrinks_with_the_room():
    weights = np.array([0.0, 0.25, 0.75, 0.0])
    assert cell_text(weights, 1) == cell_text(weights, 9) == '2: 0.75\n1: 0.25'
    assert cell_text(weights, 16) == '2: 0.75'
    assert cell_text(weights, 25) == '2'
    assert cell_text(np.zeros(4), 1) == 'none'
    assert cell_text(np.full(6, 1 / 6), 1).splitlines() == [f'{e}: 0.17' for e in range(4)] + ['…']


def test_many_levels_and_layers_have_a_panel_each():
    levels = [RoutedLevel(f'level {i}', whole(1.0, 0.0).cells, np.array([[1.0, 0.0]])) for i in range(7)]
    routed = picture(levels)
    routed.layers['neck'] = [whole(0.5, 0.5)]
    titles = [axes.get_title() for axes in routing_figure(routed).axes]
    assert [title for title in titles if title.startswith('level')] == [f'level {i}' for i in range(7)] + ['level 0']


@pytest.mark.parametrize(('shape', 'expected'), [((100, 50, 3), (40, 20, 3)), ((30, 40, 3), (30, 40, 3))])
def test_panels_hold_a_shrunk_picture(shape, expected):
    assert shrunk(np.zeros(shape, np.uint8), 40).shape == expected
