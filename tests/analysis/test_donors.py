"""Donors of the swap test for random sets of images, and the rows that they give."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_det.analysis.donors import donors_of, level_shifted_rows, swapped_regions, swapped_rows


def octave(count: int) -> int:
    """How often 1 + count can be halved."""
    return (1 + count).bit_length() - 1


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=40),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_donors_are_others_of_the_same_shape_and_give_once(images, with_shapes, with_groups, seed):
    counts, shapes, groups = map(np.array, zip(*images, strict=True))
    shapes = shapes if with_shapes else np.zeros_like(shapes)
    groups = groups if with_groups else np.arange(len(groups))
    donor = donors_of(
        counts, np.random.default_rng(seed), shapes if with_shapes else None, groups.tolist() if with_groups else None
    )
    at = np.flatnonzero(donor >= 0)
    assert (groups[donor[at]] != groups[at]).all() and (shapes[donor[at]] == shapes[at]).all()
    assert sorted(donor[at]) == at.tolist()  # every image that takes also gives, once
    for shape in np.unique(shapes):
        members = np.flatnonzero(shapes == shape)
        largest = np.unique(groups[members], return_counts=True)[1].max()
        # as many as can be: all, or twice the images outside the largest group
        assert (donor[members] >= 0).sum() == min(len(members), 2 * (len(members) - largest))


@given(st.lists(st.integers(0, 300), min_size=2, max_size=60), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_images_exchange_inside_their_octave_unless_one_is_alone(counts, seed):
    donor = donors_of(np.array(counts), np.random.default_rng(seed))
    octaves = np.array([octave(count) for count in counts])
    numbers, sizes = np.unique(octaves, return_counts=True)
    if (sizes > 1).all():
        assert (octaves[donor] == octaves).all()
    else:  # a class of one joined its neighbours: the others stay among themselves
        alone = {n for n, size in zip(numbers, sizes, strict=True) if size == 1}
        ranks = np.searchsorted(numbers, octaves)
        for image, giver in enumerate(donor):
            between = range(*sorted((ranks[image], ranks[giver])))
            assert all(numbers[r] in alone or numbers[r + 1] in alone or len(between) > 1 for r in between)


def test_every_donor_is_equally_likely():
    """Four images: each of the three others gives to an image in a third of the draws (standard error 1.3 %)."""
    rng = np.random.default_rng(0)
    drawn = np.array([donors_of(np.full(4, 3), rng) for _ in range(1200)])
    for image, giver in itertools.permutations(range(4), 2):
        assert abs((drawn[:, image] == giver).mean() - 1 / 3) < 0.06


def test_groups_of_equal_size_do_not_always_swap_as_wholes():
    groups = np.repeat(['a', 'b', 'c', 'd'], 5)
    donor = donors_of(np.full(20, 3), np.random.default_rng(1), groups=groups.tolist())
    assert max(len(set(groups[donor[groups == name]])) for name in 'abcd') == 3


def test_nobody_to_take_from():
    rng = np.random.default_rng(0)
    assert donors_of(np.array([3]), rng).tolist() == [-1]
    assert donors_of(np.array([3, 4]), rng, shapes=np.array([0, 1])).tolist() == [-1, -1]
    assert donors_of(np.array([3, 4]), rng, groups=['v', 'v']).tolist() == [-1, -1]


# three images; image 2 has one patch at level 1, the others two
ROWS = np.array([(0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 0, 0), (2, 1, 0)])


def test_swapped_rows_by_hand():
    assert swapped_rows(*ROWS.T, np.array([1, 0, -1])).tolist() == [3, 4, 5, 0, 1, 2, 6, 7]
    order = np.random.default_rng(0).permutation(len(ROWS))
    taken = swapped_rows(*ROWS[order].T, np.array([1, 0, -1]))
    for row, other in zip(ROWS[order], ROWS[order][taken], strict=True):
        assert other.tolist() == [(1, 0, 2)[row[0]], *row[1:]]
    with pytest.raises(ValueError, match='image 2 has no row at level 1, patch 1'):
        swapped_rows(*ROWS.T, np.array([2, 0, 1]))


def test_shifted_levels_by_hand():
    # two levels: the only shift changes them; level 0 takes the first patch, both patches take the only one
    taken = level_shifted_rows(*ROWS.T, np.random.default_rng(0))
    assert taken.tolist() == [1, 0, 0, 4, 3, 3, 7, 6]
    one = np.array([(0, 0, 0), (1, 0, 0)])
    assert level_shifted_rows(*one.T, np.random.default_rng(0)).tolist() == [0, 1]


def test_every_shift_but_none_is_drawn():
    images, levels = np.repeat(np.arange(300), 4), np.tile(np.arange(4), 300)
    taken = level_shifted_rows(images, levels, np.zeros_like(images), np.random.default_rng(0))
    assert (images[taken] == images).all()
    shift = ((levels[taken] - levels) % 4).reshape(300, 4)
    assert (shift == shift[:, :1]).all()
    counts = np.bincount(shift[:, 0], minlength=4)
    assert counts[0] == 0 and counts[1:].min() > 70


def test_regions_take_the_decision_of_the_region_at_the_same_fraction_of_their_level():
    #        image 0: levels 0 0 1   image 1: levels 1 0 0 0 0   image 2: level 2
    images = np.array([0, 0, 0, 1, 1, 1, 1, 1, 2])
    levels = np.array([0, 0, 1, 1, 0, 0, 0, 0, 2])
    numbers = np.array([0, 1, 2, 0, 1, 2, 3, 4, 0])
    found = swapped_regions(images, levels, numbers, np.array([1, 0, 1]))
    # two of four: the first and the third; four of two: each twice; a level that the donor lacks: their own
    assert found.tolist() == [4, 6, 3, 2, 0, 0, 1, 1, 8]
    order = np.random.default_rng(0).permutation(9)
    again = swapped_regions(images[order], levels[order], numbers[order], np.array([1, 0, 1]))
    assert order[again].tolist() == found[order].tolist()
    assert swapped_regions(images, levels, numbers, np.full(3, -1)).tolist() == list(range(9))
