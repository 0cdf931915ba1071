"""Objects are gathered by routing row, and what does not fit is refused with its place."""

from __future__ import annotations

import re

import numpy as np
import pytest

from moe_det.analysis.rows import gather_rows, octaves
from moe_det.errors import DataError

OBJECTS = dict(
    image_ids=[7, 7, 7, 9, 9],
    levels=[0, 0, 3, 0, 0],
    experts=[1, 1, 0, 2, 2],
    sizes=[0, 1, 2, 0, 0],
)


def gather(**changes):
    return gather_rows(**{**OBJECTS, **changes}, num_experts=3, num_sizes=3)


def test_rows_by_hand():
    rows = gather()
    assert rows.images.tolist() == [7, 9]
    assert rows.levels.tolist() == [0, 3]
    assert (rows.num_objects, rows.num_rows) == (5, 3)
    first, second = rows.slots
    assert (first.level, second.level) == (0, 1)
    assert first.images.tolist() == [0, 1]
    assert first.counts.tolist() == [[1, 1, 0], [2, 0, 0]]
    assert first.masses.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert second.counts.tolist() == [[0, 0, 1]]
    assert first.varies
    assert not second.varies
    assert rows.level_weights().tolist() == [[2, 1], [2, 0]]


def test_image_tables():
    tables = gather().image_tables()  # (images, levels, experts, sizes)
    expected = np.zeros((2, 2, 3, 3))
    expected[0, 0, 1] = [1, 1, 0]
    expected[0, 1, 0] = [0, 0, 1]
    expected[1, 0, 2] = [2, 0, 0]
    np.testing.assert_array_equal(tables, expected)


def test_patches_are_rows_of_their_own():
    rows = gather(patches=[0, 1, 0, 1, 1], experts=[1, 0, 0, 2, 2])
    assert [slot.level for slot in rows.slots] == [0, 0, 1]
    assert [slot.images.tolist() for slot in rows.slots] == [[0], [0, 1], [0]]
    np.testing.assert_array_equal(rows.image_tables()[0, 0], [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_masses_and_weights():
    soft = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0], [0, 0.25, 0.75], [0, 0.25, 0.75]], dtype=np.float32)
    tables = gather(experts=soft, weights=[0.5, 1, 1, 2, 1]).image_tables()
    np.testing.assert_allclose(tables[0, 0], [[0.25, 0.5, 0], [0.25, 0.5, 0], [0, 0, 0]])
    np.testing.assert_allclose(tables[1, 0], [[0, 0, 0], [0.75, 0, 0], [2.25, 0, 0]])


def test_masses_are_made_to_sum_to_one():
    soft = np.array([[0.5, 0.5, 0]] * 2 + [[1, 0, 0]] + [[0, 0.25, 0.7505]] * 2)
    np.testing.assert_allclose(gather(experts=soft).image_tables().sum(), 5, rtol=1e-12)


def test_the_order_of_objects_does_not_matter():
    order = [3, 0, 4, 2, 1]
    shuffled = gather(**{name: np.asarray(values)[order] for name, values in OBJECTS.items()})
    np.testing.assert_array_equal(shuffled.image_tables(), gather().image_tables())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'levels': [0, 0]}, 'levels must have one entry per object: expected shape (5,), got (2,)'),
        ({'levels': [0, 0, -1, 0, 0]}, 'levels[2] is -1, expected a value >= 0'),
        ({'levels': [0.0, 0.5, 1, 1, 1]}, 'levels must be integers, got float64'),
        ({'sizes': [0, 1, 3, 0, 0]}, 'sizes[2] is 3, expected a value in 0..2'),
        ({'experts': [1, 1, 0, 2, 3]}, 'experts[4] is 3, expected a value in 0..2'),
        ({'experts': np.full((5, 2), 0.5)}, 'expert masses must have shape (5, 3), got (5, 2)'),
        ({'experts': np.full((5, 3), 0.5)}, 'experts[0] is [0.5, 0.5, 0.5], expected masses >= 0 that sum to 1'),
        ({'experts': [[1, 0, 0]] * 4 + [[np.nan, 1, 0]]}, 'experts[4] is [nan, 1.0, 0.0]'),
        ({'experts': [[1, 0, 0]] * 4 + [[-1, 2, 0]]}, 'experts[4] is [-1.0, 2.0, 0.0]'),
        ({'weights': [1, 1, 0, 1, 1]}, 'weights[2] is 0.0, expected a positive number'),
        ({'weights': [1, 1, np.nan, 1, 1]}, 'weights[2] is nan'),
        ({'weights': [1]}, 'weights must have one entry per object'),
        ({'image_ids': [[7]]}, 'image_ids must have one entry per object, got [7]'),
        ({'image_ids': np.array([[7]])}, 'image_ids must have one entry per object, got shape (1, 1)'),
        ({'image_ids': [1, 2, 3, 4, np.nan]}, 'image_ids[4] is nan: expected an integer or a string'),
        ({'image_ids': np.array([7.0, 7, 7, 9, 9])}, 'image_ids are float64: large ids become equal as floats'),
        ({'groups': [0, 0, 0, 1]}, 'groups must have one entry per object: expected 5, got 4'),
        ({'groups': [0, 0, 1, 1, 1]}, 'image 7 belongs to two groups'),
        ({'experts': [1, 2, 0, 2, 2]}, 'differs inside image 7, level 0, patch 0 (entries 0 and 1)'),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gather(**changes)


@pytest.mark.parametrize('first, second', [(2**53, 2**53 + 1), (2**70, 2**70 + 1), (7, '7'), ('a', 'b')])
def test_ids_are_names(first, second):
    # as floats the large ones would be one image
    ids = [first, first, first, second, second]
    rows = gather(image_ids=ids)
    assert rows.images.tolist() == [first, second]
    np.testing.assert_array_equal(rows.image_tables(), gather().image_tables())
    assert gather(image_ids=np.array(ids, dtype=object)).images.tolist() == [first, second]


def test_groups_and_strata_by_hand():
    rows = gather(groups=['x', 'x', 'x', 'x', 'x'])
    assert rows.groups.tolist() == [0, 0] and rows.num_groups == 1
    assert gather().groups.tolist() == [0, 1]
    assert [slot.strata.tolist() for slot in rows.slots] == [[1, 1], [0]]  # two objects, two objects; one
    assert octaves(np.array([0.2, 1, 2, 3, 4, 7.9, 8])).tolist() == [-1, 0, 1, 1, 2, 2, 3]
    assert [slot.exchanged.tolist() for slot in rows.slots] == [[0, 1], []]


def test_one_decision_per_image():
    assert not gather().one_decision_per_image  # image 7 has expert 1 at one level and 0 at the other
    assert gather(experts=[1, 1, 1, 2, 2]).one_decision_per_image
    assert not gather(experts=[1, 1, 1, 2, 2], patches=[0, 0, 0, 1, 1]).one_decision_per_image


def test_no_objects_and_a_single_size():
    empty = np.empty(0, dtype=int)
    with pytest.raises(DataError, match='no objects to measure'):
        gather(image_ids=empty, levels=empty, experts=empty, sizes=empty)
    with pytest.raises(DataError, match=re.escape('all 5 objects are of size 1 of 0..2')):
        gather(sizes=[1] * 5)
    with pytest.raises(ValueError, match='got 0 and 3'):
        gather_rows(**OBJECTS, num_experts=0, num_sizes=3)
