"""The figure of experts and classes shows the counts, shaded by the share of the class."""

from __future__ import annotations

import numpy as np

from moe_det.classification.expert_classes import (
    expert_class_figure,
    expert_class_heat,
    expert_class_text,
    figure_pixels,
)
from moe_det.figures.palette import STRONGEST

TABLE = np.array([[30, 0, 5], [10, 0, 5]])
CLASSES = ('cat', 'nothing', 'dog')


def test_cells_hold_counts_and_shares_of_the_class():
    heat = expert_class_heat(TABLE, CLASSES)
    assert [head.text for head, _ in heat.rows] == list(CLASSES)
    assert [head.notes for head in heat.columns] == [('n 35',), ('n 15',)]
    cells = {head.text: cells for head, cells in heat.rows}
    assert [cell.number.text for cell in cells['cat']] == ['30', '10']
    assert [cell.strength for cell in cells['cat']] == [round(STRONGEST * 0.75, 3), round(STRONGEST * 0.25, 3)]
    assert [cell.strength for cell in cells['nothing']] == [0, 0]


def test_figure_has_a_row_of_pixels_per_class_and_text_has_every_count():
    figures = [
        expert_class_figure(np.tile(TABLE[:, :1], (1, n)), [str(i) for i in range(n)], 'title', 'x') for n in (3, 20)
    ]
    few, many = (figure_pixels(figure) for figure in figures)
    assert few.dtype == np.uint8 and few.shape[2] == 3 and many.shape[0] > 3 * few.shape[0]
    assert few.min() < 100 and few.max() == 255  # text on white
    lines = expert_class_text(TABLE, CLASSES).splitlines()
    assert [line.split() for line in lines[1:]] == [['0', '30', '0', '5'], ['1', '10', '0', '5']]
