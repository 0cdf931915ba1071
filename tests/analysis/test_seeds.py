"""Several seeds: matching experts, and when their agreement is more than matching makes of unrelated ones."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from moe_det.analysis import agreement, align_experts, size_preference
from moe_det.analysis.seeds import agreement_p_value
from moe_det.analysis.seeds_summary import across_seeds

PREFERENCE = np.array([[8, 1, 1], [1, 8, 1], [1, 1, 8], [4, 4, 4]])
ORDERS = ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0])


def seed(table=PREFERENCE, verdict='size-specialised', bits=None, relative=None):
    """What ``agreement`` reads of a result; every call gives other numbers, as other weights would."""
    seed.calls = getattr(seed, 'calls', 0) + 1
    bits = seed.calls / 1000 if bits is None else bits
    table = np.asarray(table, dtype=float)
    return SimpleNamespace(
        verdict=verdict,
        expert_by_size_by_level=table if table.ndim == 3 else np.stack([table, table], 2),
        relative_size=None if relative is None else SimpleNamespace(expert_by_size_by_level=np.asarray(relative)),
        mi_bits=bits,
        mi_given_level_bits=bits,
        level_mi_bits=bits,
    )


def shuffled(**options):
    return [seed(PREFERENCE[order], **options) for order in ORDERS]


# -- preferences and matching -------------------------------------------------------------------------------------


def test_size_preference_by_hand():
    # 8 objects, margins 4, 4 and 4, 4: two are expected in each cell
    assert size_preference([[3, 1], [1, 3]]).tolist() == [[0.125, -0.125], [-0.125, 0.125]]
    # a pure level map prefers no size
    level_map = np.zeros((2, 2, 2))
    level_map[0, :, 0] = [5, 1]
    level_map[1, :, 1] = [1, 5]
    np.testing.assert_allclose(size_preference(level_map), 0, atol=1e-12)
    assert size_preference(level_map.sum(2))[0, 0] > 0.1
    with pytest.raises(ValueError, match='not all 0'):
        size_preference(np.zeros((2, 2)))


def test_shuffled_experts_are_found_again():
    rng = np.random.default_rng(0)
    reference = rng.integers(1, 40, (5, 3, 4))
    orders = [rng.permutation(5) for _ in range(3)]
    aligned = align_experts([reference, *(3 * reference[order] for order in orders)])
    assert aligned[0].tolist() == [0, 1, 2, 3, 4]
    for order, indices in zip(orders, aligned[1:], strict=True):
        np.testing.assert_array_equal(reference[order][indices], reference)
    other = align_experts([reference[orders[0]], reference], reference=1)
    np.testing.assert_array_equal(reference[orders[0]][other[0]], reference)
    assert other[1].tolist() == [0, 1, 2, 3, 4]


def test_shuffled_shards_and_their_copies_are_found_again():
    rng = np.random.default_rng(0)
    reference = rng.integers(1, 40, (6, 3))
    for _ in range(5):
        shards = rng.permutation(2)
        order = np.concatenate([3 * shard + rng.permutation(3) for shard in shards])
        _, indices = align_experts([reference, reference[order]], slots=2)
        np.testing.assert_array_equal(reference[order][indices], reference)


def test_copies_are_matched_inside_a_shard():
    reference = np.array([[8, 1], [4, 5], [8, 1], [1, 8]])
    other = reference[[0, 2, 1, 3]]  # no exchange of whole shards or of copies inside them
    _, free = align_experts([reference, other])
    _, bound = align_experts([reference, other], slots=2)
    np.testing.assert_array_equal(other[free], reference)
    assert {frozenset((bound // 2)[:2]), frozenset((bound // 2)[2:])} == {frozenset([0]), frozenset([1])}


def test_tables_that_cannot_be_aligned():
    with pytest.raises(ValueError, match='same experts and sizes, got 2 experts by 3 sizes, 3 experts by 3 sizes'):
        align_experts([np.ones((2, 3)), np.ones((3, 3))])
    with pytest.raises(ValueError, match='no tables'):
        align_experts([])


# -- unrelated seeds, and seeds that repeat -----------------------------------------------------------------------


def isotropic(rng, experts, seeds=3):
    """Random preferences whose rows and columns sum to 0."""
    random = rng.normal(size=(seeds, experts, 3))
    random -= random.mean(1, keepdims=True)
    return random - random.mean(2, keepdims=True)


def small_to_large(rng, experts, seeds=3):
    """Random preferences that lie mostly along small <-> large, as sizes are ordered."""
    strength = rng.normal(size=(seeds, experts, 1))
    strength -= strength.mean(1, keepdims=True)
    return strength * np.array([-1, 0, 1.0]) + 0.2 * isotropic(rng, experts, seeds)


def lowest_correlation(preferences):
    """Of all pairs after matching to the first, by trying every order."""
    first = preferences[0]
    orders = list(permutations(range(len(first))))
    matched = [own[list(max(orders, key=lambda order: (own[list(order)] * first).sum()))] for own in preferences]
    return np.corrcoef([own.ravel() for own in matched]).min()


@pytest.mark.parametrize('world', [isotropic, small_to_large])
@pytest.mark.parametrize('experts', [3, 4, 8])
def test_unrelated_seeds_are_hardly_ever_established(world, experts):
    rng = np.random.default_rng(experts)
    worlds = [world(rng, experts) for _ in range(400)]
    alarms = sum(agreement_p_value(preferences, draws=199) <= 0.05 for preferences in worlds)
    assert alarms <= 33  # P(more) < 0.002 where each has 5 % (20 expected, standard deviation 4.4)
    assert alarms >= 5  # nor is the test so strict that nothing could pass
    if experts < 8:  # that all pairs correlate by more than 0.5 is not evidence
        assert np.mean([lowest_correlation(preferences) > 0.5 for preferences in worlds[:60]]) > 0.25


@pytest.mark.parametrize(
    ('world', 'experts'), [(isotropic, 4), (isotropic, 8), (small_to_large, 4), (small_to_large, 8)]
)
def test_preferences_that_repeat_are_found_under_noise(world, experts):
    rng = np.random.default_rng(experts)
    found = 0
    for _ in range(100):
        common, noise = world(rng, experts, 1), isotropic(rng, experts)
        noise *= 0.25 * np.linalg.norm(common) / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
        repeated = [own[rng.permutation(experts)] for own in common + noise]
        found += agreement_p_value(repeated, draws=199) <= 0.05
    assert found >= 70


def in_shards(rng, seeds=3):
    """Preferences of two shards of four copies, each of which sums to 0 by itself."""
    return np.concatenate([isotropic(rng, 4, seeds), isotropic(rng, 4, seeds)], axis=1)


def test_seeds_of_shards_that_are_unrelated_and_that_repeat():
    rng = np.random.default_rng(5)
    alarms = sum(agreement_p_value(in_shards(rng), draws=199, slots=2) <= 0.05 for _ in range(200))
    assert 1 <= alarms <= 21  # P(more) < 0.001 where each has 5 % (10 expected, standard deviation 3.1)
    found = 0
    for _ in range(40):
        common, noise = in_shards(rng, 1), in_shards(rng)
        noise *= 0.25 * np.linalg.norm(common) / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
        orders = [np.concatenate([4 * s + rng.permutation(4) for s in rng.permutation(2)]) for _ in range(3)]
        repeated = [own[order] for own, order in zip(common + noise, orders, strict=True)]
        found += agreement_p_value(repeated, draws=199, slots=2) <= 0.05
    assert found >= 30
    table = [[9, 5, 1], [1, 5, 9]] * 2
    mirrored = agreement([seed(table) for _ in range(3)], slots=2)
    assert mirrored.verdict == 'not established' and 'fewer than three copies of a shard' in mirrored.reason


def test_p_value_does_not_depend_on_order_or_strength_and_repeats():
    rng = np.random.default_rng(3)
    common = isotropic(rng, 4, 1) + 0.4 * isotropic(rng, 4)
    p_value = agreement_p_value(common, draws=499)
    assert agreement_p_value(common, draws=499) == p_value
    stronger = common * np.array([1, 5, 0.1])[:, None, None]
    assert agreement_p_value(stronger, draws=499) == pytest.approx(p_value, abs=0.005)
    renamed = np.stack([own[rng.permutation(4)] for own in common])
    assert agreement_p_value(renamed, draws=499) == pytest.approx(p_value, abs=0.05)
    with pytest.raises(ValueError, match='at least two seeds, got 1'):
        agreement_p_value(common[:1])


# -- the word -----------------------------------------------------------------------------------------------------


def test_three_seeds_establish():
    found = agreement(shuffled())
    assert found.verdict == 'established'
    assert (found.runs, found.agreeing) == (3, 3) and found.p_value <= 0.05
    np.testing.assert_allclose(found.similarity, 1)
    np.testing.assert_array_equal(PREFERENCE[ORDERS[2]][found.alignment[2]], PREFERENCE)
    assert found.reason.startswith('3 of 3 seeds are size-specialised, and their experts prefer the same sizes (mean ')


def test_experts_are_matched_to_a_seed_that_is_specialised():
    flat = seed(np.ones((4, 3)), 'not specialised')
    found = agreement([flat, *shuffled()])
    assert found.verdict == 'established'
    assert found.similarity[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize('word', ['size-sorted', 'specialised, not by size', 'scale-specialised', 'undetermined'])
def test_only_size_specialised_seeds_count(word):
    found = agreement([*shuffled()[:2], seed(verdict=word)])
    assert found.verdict == 'not established' and found.p_value is None
    assert found.reason == '2 of 3 seeds are size-specialised; at least 3 are needed'
    assert found.verdicts == ('size-specialised', 'size-specialised', word)


def test_one_seed_and_a_minority_do_not():
    assert agreement([seed()]).reason == '1 of 1 seed is size-specialised; at least 3 are needed'
    found = agreement([*shuffled(), *shuffled(verdict='not specialised')])
    assert found.verdict == 'not established'
    assert found.reason == '3 of 6 seeds are size-specialised; more than half are needed'
    assert agreement([*shuffled(), *shuffled(verdict='size-sorted')[:2]]).verdict == 'established'


def test_seeds_that_prefer_different_sizes():
    # one expert for small, for medium, for large ones; the other three share the rest
    apart = [np.where(np.arange(3) == size, [[14]] + 3 * [[4]], [[2]] + 3 * [[9]]) for size in range(3)]
    found = agreement([seed(table) for table in apart])
    assert found.verdict == 'not established' and found.p_value > 0.05
    assert 'were not shown to prefer the same sizes' in found.reason
    assert agreement([seed(apart[0]) for _ in range(3)]).verdict == 'established'


def test_two_experts_can_never_be_established():
    found = agreement([seed([[9, 5, 1], [1, 5, 9]]) for _ in range(3)])
    assert found.verdict == 'not established' and found.p_value == 1
    assert 'two mirror each other, and matching them makes any seeds agree' in found.reason


def test_copies_of_a_result_count_once():
    one, two = seed(), seed(PREFERENCE[[3, 1, 0, 2]])
    found = agreement([one] * 3)
    assert found.verdict == 'not established' and (found.runs, found.agreeing) == (1, 1)
    assert found.reason == (
        '1 of 1 seed is size-specialised; at least 3 are needed; identical results (the same weights) count once: '
        '3 results, 1 seed'
    )
    found = agreement([one, two, seed(bits=one.mi_bits)])
    assert found.verdict == 'not established' and '3 results, 2 seeds' in found.reason
    assert len(found.alignment) == len(found.verdicts) == 3
    # gates that always choose one expert look alike whatever their weights
    collapsed = [seed([[3, 3, 3], [0, 0, 0], [0, 0, 0], [0, 0, 0]], 'not specialised', bits=0.0) for _ in range(3)]
    assert agreement([*shuffled(), *collapsed]).runs == 6


def test_relative_size_is_what_is_compared():
    level = np.stack([PREFERENCE, PREFERENCE], 2)
    flat = np.ones((4, 3, 2))
    results = [seed(flat, relative=level[order]) for order in ORDERS]
    assert agreement(results).verdict == 'established'
    assert agreement([seed(level[order], relative=flat) for order in ORDERS]).verdict == 'not established'
    # where one result has no relative size, all are compared by the sizes that were given
    found = agreement([*results[:2], seed(flat)])
    assert found.verdict == 'not established' and found.similarity[0, 1] == 0


def test_results_that_cannot_be_compared():
    with pytest.raises(ValueError, match='no results'):
        agreement([])
    with pytest.raises(ValueError, match='3 experts by 3 sizes, 4 experts by 3 sizes'):
        agreement([seed(), seed(np.ones((3, 3)))])
    with pytest.raises(ValueError, match='a verdict for each of 2 results, got 1'):
        agreement([seed(), seed()], ['size-specialised'])
    nothing = seed(np.zeros((4, 3)), 'undetermined')
    assert agreement([nothing, nothing, nothing]).reason.startswith('0 of 3 seeds are size-specialised')


# -- what the report shows ----------------------------------------------------------------------------------------


def checkpoint(number: int, relative: dict | None, verdict: str = 'size-specialised') -> dict:
    layer = dict(name='a', verdict=verdict, mi_given_level_bits=0.01, p_value_holm=0.2, relative_size=relative)
    return {
        'provenance': {'checkpoint': f'{number}.pth'},
        'ap': {'natural': {'AP': number / 10}},
        'layers': [layer | dict(more='not kept')],
    }


def test_the_part_of_the_results():
    results = [checkpoint(1, dict(mi_bits=0.05, p_value_holm=0.001)), checkpoint(2, None), checkpoint(3, None)]
    # what arrays alone say is no verdict on the detector: that of the checkpoint counts
    part = across_seeds(results, [{'a': result} for result in shuffled(verdict='size-sorted')])
    assert [run['checkpoint'] for run in part['checkpoints']] == ['1.pth', '2.pth', '3.pth']
    own = dict(verdict='size-specialised', mi_given_level_bits=0.01, p_value_holm=0.2)
    with_relative = own | dict(relative_bits=0.05, relative_p_value_holm=0.001)
    assert part['checkpoints'][0] == dict(checkpoint='1.pth', AP=0.1, layers={'a': with_relative})
    assert part['checkpoints'][1]['layers']['a'] == own | dict(relative_bits=None, relative_p_value_holm=None)
    layer = part['layers']['a']
    assert layer['verdict'] == 'established' and layer['sentence'].startswith('Established: 3 of 3 seeds')
    assert layer['p_value'] <= 0.05 and layer['runs'] == layer['of'] == layer['agreeing'] == 3
    assert layer['alignment'][0] == [0, 1, 2, 3] and len(layer['similarity']) == 3


def test_a_checkpoint_that_only_sorts_does_not_count():
    results = [checkpoint(1, None), checkpoint(2, None), checkpoint(3, None, 'size-sorted')]
    layer = across_seeds(results, [{'a': result} for result in shuffled()])['layers']['a']
    assert (layer['verdict'], layer['agreeing'], layer['runs']) == ('not established', 2, 3)


def test_copies_are_not_counted_in_the_results():
    one = seed()
    part = across_seeds([checkpoint(n, None) for n in (1, 2, 3)], [{'a': one}, {'a': one}, {'a': seed()}])
    layer = part['layers']['a']
    assert (layer['agreeing'], layer['of'], layer['runs'], layer['p_value']) == (2, 2, 2, None)


def test_seeds_with_other_layers():
    with pytest.raises(ValueError, match='same layers; not all have b'):
        across_seeds([checkpoint(1, None), checkpoint(2, None)], [{'a': seed()}, {'a': seed(), 'b': seed()}])
