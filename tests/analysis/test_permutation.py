"""Null distributions: against all permutations, against naive ones, and what they must keep."""

from __future__ import annotations

from itertools import permutations as all_orders
from itertools import product

import numpy as np
import pytest

from moe_det.analysis.information import conditional_mutual_information, mean_square_contingency, mutual_information
from moe_det.analysis.permutation import (
    _Wishes,
    level_shifted_tables,
    permuted_tables,
    shuffled_tables,
    upper_tail,
)
from moe_det.analysis.rows import gather_rows


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows_of(experts: np.ndarray, counts: np.ndarray, num_experts: int, patches: bool = False):
    """Rows of a full table: experts (N, L), counts (N, L, S). With ``patches`` axis L is the patches of one level."""
    image, level, size = (np.repeat(axis, counts.ravel()) for axis in np.indices(counts.shape).reshape(3, -1))
    place = dict(levels=np.zeros_like(level), patches=level) if patches else dict(levels=level)
    return gather_rows(
        image, experts=experts[image, level], sizes=size, num_experts=num_experts, num_sizes=counts.shape[2], **place
    )


def table_of(experts: np.ndarray, counts: np.ndarray, num_experts: int) -> np.ndarray:
    table = np.zeros((counts.shape[1], num_experts, counts.shape[2]))
    for image, level in product(*map(range, experts.shape)):
        table[level, experts[image, level]] += counts[image, level]
    return table


def shares(values: np.ndarray) -> dict[float, float]:
    found, times = np.unique(np.round(values, 9), return_counts=True)
    return dict(zip(found.tolist(), (times / len(values)).tolist(), strict=True))


@pytest.mark.parametrize('patches', [False, True])
def test_images_are_permuted_as_wholes(patches):
    # every image has as many objects everywhere: the null is that of all 5! orders of the images, all places together
    experts = rng(3).integers(2, size=(5, 2))
    small = rng(4).integers(1, 4, size=(5, 2))
    counts = np.stack([small, 4 - small], 2)
    tables = permuted_tables(rows_of(experts, counts, 2, patches), 20000, rng())
    truth = np.stack([table_of(experts[list(order)], counts, 2) for order in all_orders(range(5))])
    if patches:
        truth = truth.sum(1, keepdims=True)
    expected = shares(conditional_mutual_information(truth))
    found = shares(conditional_mutual_information(tables))
    assert len(expected) >= 5
    assert found.keys() == expected.keys()
    for value, share in expected.items():
        assert found[value] == pytest.approx(share, abs=0.02)


def test_every_level_sees_a_uniform_arrangement_of_its_own_rows():
    # images lack objects at some levels; one object per row, so tables of a level depend on its arrangement alone
    occupied = np.array([[1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 0]], dtype=bool)
    image, level = np.nonzero(occupied)
    experts = np.array([0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 0])
    sizes = np.array([0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1])
    rows = gather_rows(image, level, experts, sizes, num_experts=2, num_sizes=2)
    tables = permuted_tables(rows, 20000, rng())
    for index in range(3):
        at = level == index
        arrangements = []
        for order in all_orders(np.flatnonzero(at)):
            table = np.zeros((2, 2))
            np.add.at(table, (experts[list(order)], sizes[at]), 1)
            arrangements.append(table[0, 0])
        expected = shares(np.array(arrangements))
        found = shares(tables[:, index, 0, 0])
        assert found.keys() == expected.keys()
        for value, share in expected.items():
            assert found[value] == pytest.approx(share, abs=0.02)


def test_soft_rows_of_an_image_travel_together():
    masses = rng(3).dirichlet(np.ones(3), (6, 2))
    image, level = np.divmod(np.arange(12), 2)
    size = rng(5).integers(2, size=12)
    rows = gather_rows(image, level, masses[image, level], size, num_experts=3, num_sizes=2)
    orders = (np.array(order) for order in all_orders(range(6)))
    truth = np.stack([[(masses[o, i].T @ np.eye(2)[size[level == i]]) for i in range(2)] for o in orders])
    found = {tuple(table.ravel().round(9)) for table in permuted_tables(rows, 8000, rng())}
    assert found == {tuple(table.ravel().round(9)) for table in truth}
    assert len(found) > 50


def test_places_where_nothing_varies_add_up():
    # three patches of one level: in two of them all images use the same expert
    image = np.repeat(np.arange(8), 3)
    patch = np.tile([0, 1, 2], 8)
    experts = np.where(patch == 2, image % 2, patch)
    rows = gather_rows(image, 0 * image, experts, image % 2, num_experts=2, num_sizes=2, patches=patch)
    tables = permuted_tables(rows, 300, rng())
    np.testing.assert_allclose(tables.sum((1, 2, 3)), 24)
    assert set(tables[:, 0, 0, 0]) == {4.0, 5, 6, 7, 8}


def test_borrowed_rows():
    # what an image without objects at a level stands for: an image that agrees at the nearest level both have
    occupied = rng(1).random((200, 4)) < 0.5
    occupied[0] = True
    experts = rng(2).integers(3, size=(200, 4))
    image, level = np.nonzero(occupied)
    rows = gather_rows(image, level, experts[image, level], image % 2, num_experts=3, num_sizes=2)
    present = [np.flatnonzero(rows.images == i)[0] if i in rows.images else -1 for i in range(200)]
    wishes = _Wishes(rows)
    for slot in range(4):
        donor = wishes._donors(slot, rng())
        for i, position in enumerate(present):
            if position < 0:
                continue
            giver = rows.images[donor[position]]
            assert occupied[giver, slot]
            nearest = sorted((j for j in range(4) if occupied[i, j] and j != slot), key=lambda j: abs(j - slot))
            if occupied[i, slot]:
                assert giver == i
            elif len(nearest) == 1 or abs(nearest[0] - slot) < abs(nearest[1] - slot):
                assert occupied[giver, nearest[0]]
                assert experts[giver, nearest[0]] == experts[i, nearest[0]]
    assert len(set(wishes._donors(0, rng(1))[wishes.occupied[:, 0] == 0])) > 20  # and not always the same one


@pytest.mark.parametrize('occupied_share', [1.0, 0.6])
def test_dependence_between_levels_survives(occupied_share):
    # one expert and one size per image, at both levels: the levels' information must rise and fall together
    n = 300
    expert, size = rng(1).integers(2, size=n), rng(2).integers(2, size=n)
    image, level = np.nonzero(rng(3).random((n, 2)) < occupied_share)
    rows = gather_rows(image, level, expert[image], size[image], num_experts=2, num_sizes=2)
    tables = permuted_tables(rows, 4000, rng())
    association = tables[:, :, 0, 0] - tables[:, :, 0].sum(2) * tables[:, :, :, 0].sum(2) / tables.sum((2, 3))
    found = np.corrcoef(association.T)[0, 1]
    # an image's rows meet a single partner's; what two levels share are the images that have both
    both = np.isin(image[level == 0], image[level == 1]).sum()
    expected = both / np.sqrt((level == 0).sum() * (level == 1).sum())
    assert found == pytest.approx(expected, abs=0.07)


def test_sizes_of_each_level_and_soft_rows_are_kept():
    masses = rng(1).dirichlet(np.ones(3), size=40)
    sizes = np.tile([0, 1], 40)
    image = np.repeat(np.arange(40), 2)
    rows = gather_rows(image, image % 2, masses[image], sizes, num_experts=3, num_sizes=2)
    tables = permuted_tables(rows, 50, rng())
    np.testing.assert_allclose(tables.sum(2), np.broadcast_to(rows.image_tables().sum((0, 2)), (50, 2, 2)))
    # two objects in each row: which image gets a row does not change how much each expert does at the level
    np.testing.assert_allclose(tables.sum(3), np.broadcast_to(rows.image_tables().sum((0, 3)), (50, 2, 3)))
    assert np.ptp(tables[:, 0, 0, 0]) < 1e-9  # every row holds one object of each size: nothing can change
    sizes = np.tile([0, 0, 1, 1, 0, 1, 1, 1], 10)
    uneven = gather_rows(image, image % 2, masses[image], sizes, num_experts=3, num_sizes=2)
    assert np.ptp(permuted_tables(uneven, 50, rng())[:, 0, 0, 0]) > 0.01


def test_soft_rows_move_as_wholes():
    # three images, one object each: the table of a permutation is a matching of rows and sizes
    masses = np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0], [0.1, 0.2, 0.7]])
    rows = gather_rows([0, 1, 2], [0] * 3, masses, [0, 1, 2], num_experts=3, num_sizes=3)
    expected = {tuple(masses[list(order)].T.ravel().round(9)) for order in all_orders(range(3))}
    assert {tuple(t.ravel().round(9)) for t in permuted_tables(rows, 500, rng())} == expected


def test_more_images_than_16_bits_count():
    n = 70000
    experts, sizes = rng(1).integers(2, size=n), rng(2).integers(2, size=n)
    tables = permuted_tables(gather_rows(np.arange(n), [0] * n, experts, sizes, num_experts=2, num_sizes=2), 20, rng())
    cells = tables[:, 0, 0, 0]
    expected, spread = (experts == 0).sum() * (sizes == 0).sum() / n, np.sqrt(n / 16)
    assert np.abs(cells - expected).max() < 5 * spread
    assert cells.std() > spread / 2


@pytest.mark.parametrize(('objects', 'make'), [(1, permuted_tables), (1, shuffled_tables), (10, permuted_tables)])
def test_chance_level_of_rows_is_bergsmas(objects, make):
    # the mean of phi^2 under permutation is (A - 1)(B - 1) / (n - 1), exactly: ten like objects of a row count as one
    image = np.repeat(np.arange(60), objects)
    experts, sizes = rng(1).integers(4, size=60), rng(2).integers(3, size=60)
    rows = gather_rows(image, 0 * image, experts[image], sizes[image], num_experts=4, num_sizes=3)
    assert mean_square_contingency(make(rows, 4000, rng())).mean() == pytest.approx(6 / 59, rel=0.03)


def test_free_exchange_crosses_levels():
    # the expert is the level: within levels nothing can change, a free exchange loses it
    image = np.repeat(np.arange(50), 2)
    level = np.tile([0, 1], 50)
    rows = gather_rows(image, level, level, 1 - level, num_experts=2, num_sizes=2)
    assert np.ptp(permuted_tables(rows, 20, rng()), axis=0).max() == 0
    shuffled = shuffled_tables(rows, 200, rng())
    assert shuffled.shape == (200, 2, 2, 2)
    np.testing.assert_allclose(shuffled.sum((2, 3)), 50)  # objects of each level
    np.testing.assert_allclose(shuffled.sum((1, 3)), 50)  # of each expert
    assert mutual_information(shuffled.sum(3)).mean() < 0.05


def test_level_shifts_against_all_of_them():
    # images with 3, 2 and 1 levels: 3 * 2 * 1 equally likely outcomes
    image, level = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 0, 2, 1])
    experts, weights = np.array([0, 1, 1, 1, 0, 0]), np.array([1.0, 2, 3, 4, 5, 6])
    rows = gather_rows(image, level, experts, [0, 1, 0, 1, 0, 1], num_experts=2, num_sizes=2, weights=weights)
    expected = set()
    for first, second in product(range(3), range(2)):
        table = np.zeros((2, 3))
        for cell in range(6):
            source = (cell + first) % 3 if cell < 3 else 3 + (cell - 3 + second) % 2 if cell < 5 else 5
            table[experts[source], level[cell]] += weights[cell]
        expected.add(tuple(table.ravel()))
    tables = level_shifted_tables(rows, 600, rng())
    found, times = np.unique(tables.reshape(600, -1), axis=0, return_counts=True)
    assert {tuple(table) for table in found} == expected
    assert times.min() > 600 / len(expected) / 2


def test_upper_tail_by_hand():
    null = np.array([0.1, 0.2, 0.3, 0.3])
    assert upper_tail(0.2, null) == (4 / 5, 2 / 5)  # a tie counts against the claim
    assert upper_tail(0.2 + 1e-12, null) == (4 / 5, 2 / 5)
    assert upper_tail(0.2, np.arange(99) / 100)[1] == 1 / 100  # what 99 permutations can give
    assert upper_tail(0.4, null) == (1 / 5, 1 / 5)
    assert upper_tail(0.0, np.zeros(9)) == (1, 1)


# -- like numbers of objects, groups ----------------------------------------------------------------------------------


def test_rows_are_exchanged_between_rows_with_like_numbers_of_objects():
    # four rows of one object, four of ten; all crowded rows have expert 0: no arrangement may take it from them
    counts = np.repeat([1, 10], 4)
    image = np.repeat(np.arange(8), counts)
    experts = np.where(counts == 10, 0, np.arange(8) % 2)[image]
    size = np.arange(len(image)) % 2
    rows = gather_rows(image, 0 * image, experts, size, num_experts=2, num_sizes=2)
    tables = permuted_tables(rows, 500, rng())
    assert set(tables[:, 0, 1].sum(1)) == {2.0}  # expert 1 keeps its two rows of one object
    assert len(np.unique(tables[:, 0, 1], axis=0)) > 1


def test_a_gate_that_follows_crowding_gets_no_small_p_value():
    # routing is a function of the count alone; sizes share a scale of the image that has nothing to do with it
    hits = 0
    for seed in range(200):
        draw = rng(seed)
        counts = 1 + draw.poisson(np.exp(draw.normal(1, 1.2, 100)))
        image = np.repeat(np.arange(100), counts)
        size = np.digitize(1.5 * draw.normal(size=100)[image] + draw.normal(size=len(image)), [-0.8, 1])
        crowded = np.argsort(np.argsort(-counts, kind='stable')) < 3
        rows = gather_rows(image, 0 * image, crowded[image].astype(int), size, num_experts=2, num_sizes=3)
        observed = float(conditional_mutual_information(rows.image_tables().sum(0)))
        null = conditional_mutual_information(permuted_tables(rows, 99, draw))
        p_value, smallest = upper_tail(observed, null)
        hits += smallest <= 0.01 and p_value <= 0.01
    assert hits <= 6  # exchanged freely there are about 40


def test_groups_are_exchanged_as_one():
    # six scenes, each four times over: 6! orders of the scenes, not 24! of the images
    scene = np.repeat(np.arange(6), 4)
    experts, sizes = (scene % 2), np.array([0, 0, 1, 1, 1, 0])[scene]
    given = dict(num_experts=2, num_sizes=2)
    grouped = gather_rows(np.arange(24), 0 * scene, experts, sizes, groups=scene, **given)
    truth = {
        tuple(np.histogram2d(np.arange(6)[list(order)] % 2, [0, 0, 1, 1, 1, 0], bins=2)[0].ravel() * 4)
        for order in all_orders(range(6))
    }
    assert {tuple(t.ravel()) for t in permuted_tables(grouped, 2000, rng())} == truth
    free = gather_rows(np.arange(24), 0 * scene, experts, sizes, **given)
    assert len({tuple(t.ravel()) for t in permuted_tables(free, 2000, rng())}) > len(truth)


def test_one_decision_per_image_is_exchanged_whole():
    # each image has one expert for both of its levels; the null is that of all orders, levels together
    counts = np.array([[1, 3], [2, 2], [3, 1], [2, 2], [1, 3]])
    experts = np.array([0, 1, 1, 0, 0])
    sizes = rng(2).integers(2, size=20)
    image, level = (np.repeat(axis, counts.ravel()) for axis in np.indices(counts.shape).reshape(2, -1))
    rows = gather_rows(image, level, experts[image], sizes, num_experts=2, num_sizes=2)
    assert rows.one_decision_per_image
    truth = set()
    for order in all_orders(range(5)):
        table = np.zeros((2, 2, 2))
        np.add.at(table, (level, experts[list(order)][image], sizes), 1)
        truth.add(tuple(table.ravel()))
    assert {tuple(table.ravel()) for table in permuted_tables(rows, 4000, rng())} == truth


def test_images_are_exchanged_with_images_of_like_levels():
    # twenty images at level 0, twenty at level 1, one expert each: none of level 0 meets one of level 1
    image = np.arange(40)
    level = image // 20
    rows = gather_rows(image, level, level, image % 2, num_experts=2, num_sizes=2)
    assert rows.one_decision_per_image
    tables = permuted_tables(rows, 200, rng())
    assert np.ptp(tables, axis=0).max() == 0
