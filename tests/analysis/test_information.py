"""Plug-in information and association of tables: values by hand, identities, and scipy's own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

from moe_det.analysis.information import (
    chance_corrected_v,
    conditional_entropy,
    conditional_mutual_information,
    largest_contingency,
    mean_square_contingency,
    mutual_information,
)


def random_tables(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, shape).astype(float)


def naive_mutual_information(table) -> float:
    total = sum(sum(row) for row in table)
    bits = 0.0
    for i, row in enumerate(table):
        for j, count in enumerate(row):
            if count:
                expected = sum(table[i]) * sum(other[j] for other in table) / total
                bits += count / total * np.log2(count / expected)
    return bits


@pytest.mark.parametrize(
    ('table', 'bits'),
    [
        ([[1, 0], [0, 1]], 1),
        ([[2, 0, 0], [0, 1, 1]], 1),  # the expert tells small from the rest: H(S) = 1.5, H(S|E) = 0.5
        ([[1, 2], [2, 4]], 0),
        # 3/4 log2(3/2) + 1/4 log2(1/2)
        ([[3, 1], [1, 3]], 0.75 * np.log2(1.5) - 0.25),
        ([[0, 0], [0, 0]], 0),
    ],
)
def test_mutual_information_by_hand(table, bits):
    assert mutual_information(table) == pytest.approx(bits, abs=1e-12)


def test_mutual_information_agrees_with_loops():
    for table in random_tables(5, 4, 3):
        assert mutual_information(table) == pytest.approx(naive_mutual_information(table.tolist()))


def test_given_the_level_by_hand():
    # a router that recognises its level: all is explained. Weights 4/6 and 2/6 of one bit and none.
    assert conditional_mutual_information([[[5, 0], [0, 0]], [[0, 0], [0, 5]]]) == pytest.approx(0)
    assert conditional_mutual_information([[[2, 0], [0, 2]], [[1, 1], [0, 0]]]) == pytest.approx(4 / 6)


def test_given_a_single_level_nothing_changes():
    table = random_tables(4, 3)
    assert conditional_mutual_information(table[None]) == pytest.approx(mutual_information(table))


def test_chain_rule():
    # I(E; S, level) = I(E; level) + I(E; S | level)
    tables = random_tables(5, 4, 3)
    both = tables.transpose(1, 0, 2).reshape(4, 15)
    level = tables.sum(2).T
    assert mutual_information(both) == pytest.approx(mutual_information(level) + conditional_mutual_information(tables))


def test_batches_scale_and_names_do_not_matter():
    tables = random_tables(6, 2, 4, 3)
    expected = [float(conditional_mutual_information(t)) for t in tables]
    np.testing.assert_allclose(conditional_mutual_information(tables), expected)
    np.testing.assert_allclose(conditional_mutual_information(tables * 0.25), expected)
    np.testing.assert_allclose(conditional_mutual_information(tables[:, :, [2, 0, 3, 1]]), expected)
    phi2 = [float(mean_square_contingency(t)) for t in tables]
    np.testing.assert_allclose(mean_square_contingency(tables * 0.25), phi2)


def test_conditional_entropy():
    # half of the objects at a level with two equally frequent sizes, half at a level with one
    assert conditional_entropy([[[1, 2], [1, 0]], [[4, 0], [0, 0]]]) == pytest.approx(0.5)


def test_association_agrees_with_scipy():
    tables = random_tables(5, 4, 3, seed=1) + 1
    for table in tables:
        one = table[None]
        v = np.sqrt(mean_square_contingency(one) / largest_contingency(one))
        assert v == pytest.approx(association(table.astype(int), method='cramer'))
    chi_square = sum(chi2_contingency(table, correction=False).statistic for table in tables)
    assert mean_square_contingency(tables) == pytest.approx(chi_square / tables.sum())


def test_empty_rows_columns_and_levels_add_nothing():
    tables = np.zeros((3, 3, 3))
    tables[1, :2, :2] = [[3, 1], [2, 6]]
    expected = chi2_contingency([[3, 1], [2, 6]], correction=False).statistic / 12
    assert mean_square_contingency(tables) == pytest.approx(expected)


def test_largest_contingency():
    # two experts are used: level 0 holds three sizes (min(2, 3) - 1 = 1), level 1 one size (0)
    tables = np.array([[[3, 2, 1], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [2, 0, 0], [0, 0, 0]]], dtype=float)
    assert largest_contingency(tables) == pytest.approx(6 / 8)
    assert largest_contingency(np.diag([1.0, 1, 1])[None]) == pytest.approx(2)


def test_contingency_of_slots_is_the_mean_of_the_slots():
    generator = np.random.default_rng(0)
    of_slots = generator.integers(1, 9, size=(2, 1, 2, 3)).astype(float)  # two slots of two copies, three sizes
    of_slots[1] *= of_slots[0].sum(1, keepdims=True) / of_slots[1].sum(1, keepdims=True)  # the same objects
    both = np.concatenate(list(of_slots), axis=1) / 2
    mean = np.mean([mean_square_contingency(one) for one in of_slots])
    assert mean_square_contingency(both) == pytest.approx(mean)
    assert largest_contingency(both, slots=2) == pytest.approx(1)  # min(2, 3) - 1 of each
    assert largest_contingency(both) == pytest.approx(2)


def test_chance_corrected_v():
    assert chance_corrected_v(1.0, 0.2, 1.0) == 1
    assert chance_corrected_v(0.2, 0.2, 1.0) == 0
    assert chance_corrected_v(0.1, 0.2, 1.0) == 0
    assert chance_corrected_v(0.4, 0.2, 1.0) == pytest.approx(0.5)
    assert chance_corrected_v(0.0, 0.0, 0.0) == 0
    # Bergsma's correction of a square table: n = 40 objects, (A - 1)(B - 1) / (n - 1) is chance for independent ones
    table = np.array([[12, 4, 4], [1, 9, 0], [2, 3, 5]])
    n, phi2 = table.sum(), chi2_contingency(table, correction=False).statistic / table.sum()
    by_bergsma = np.sqrt((phi2 - 4 / (n - 1)) / (3 - 4 / (n - 1) - 1))
    assert chance_corrected_v(phi2, 4 / (n - 1), 2.0) == pytest.approx(by_bergsma)
