"""The measurement as a whole: planted routers, what data cannot carry, identities."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from moe_det.analysis import SpecializationMeter, measure_specialization, relative_sizes, size_bins
from moe_det.analysis.bootstrap import bootstrap_cmi, score_interval
from moe_det.analysis.information import conditional_mutual_information, mutual_information
from moe_det.analysis.permutation import permuted_tables
from moe_det.analysis.rows import gather_rows
from moe_det.errors import DataError

NUM_IMAGES = 150


def scenes(num_images: int = NUM_IMAGES, seed: int = 0):
    """Image, level and size of objects; level 0 leans to small and level 2 to large, like a feature pyramid."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(num_images), rng.integers(1, 12, num_images))
    size = rng.integers(3, size=len(image))
    level = np.clip(size + rng.integers(-1, 2, len(image)), 0, 2)
    return image, level, size


def random_rows(image, level, num_experts=4, seed=1):
    return np.random.default_rng(seed).integers(num_experts, size=(image.max() + 1, 3))[image, level]


def majority_rows(image, level, size):
    """An expert for the most frequent size of the row: knows size whatever the level."""
    counts = np.zeros((image.max() + 1, 3, 3))
    np.add.at(counts, (image, level, size), 1)
    return counts.argmax(2)[image, level]


IMAGE, LEVEL, SIZE = scenes()
RANDOM, BY_SIZE = random_rows(IMAGE, LEVEL), majority_rows(IMAGE, LEVEL, SIZE)


def measure(image, level, experts, size, **options):
    return measure_specialization(
        image, level, experts, size, **{'num_experts': 4, 'permutations': 499, 'bootstrap': 200, **options}
    )


def test_a_random_router():
    result = measure(IMAGE, LEVEL, RANDOM, SIZE)
    assert result.verdict == 'not specialised'
    assert result.p_value > 0.05
    assert result.mi_given_level_bits < result.null_99
    assert result.mi_given_level_ci[0] < 0 < result.mi_given_level_ci[1]
    assert result.raw['mi_given_level_bits'] - result.mi_given_level_bits > 0.005  # chance alone looks like information
    assert abs(result.mi_given_level_bits) < 0.01
    assert abs(result.mi_bits) < 0.01
    assert result.level_p_value > 0.01
    assert result.raw['cramers_v_given_level'] > 0.07 > result.cramers_v_given_level + 0.02
    assert result.raw['level_mi_bits'] - result.level_mi_bits > 0.003
    # beyond the same null, drawn apart
    rows = gather_rows(IMAGE, LEVEL, RANDOM, SIZE, num_experts=4, num_sizes=3)
    null = conditional_mutual_information(permuted_tables(rows, 4000, np.random.default_rng(9)))
    assert result.raw['mi_given_level_bits'] - result.mi_given_level_bits == pytest.approx(null.mean(), rel=0.1)
    assert result.null_99 == pytest.approx(np.quantile(null, 0.99) - null.mean(), rel=0.25)


def test_a_level_map_is_not_a_size_specialist():
    result = measure(IMAGE, LEVEL, LEVEL, SIZE)
    assert result.verdict == 'level-specialised'
    assert result.p_value == 1
    assert result.mi_bits > 0.3  # taken at face value it specialises in size
    assert result.mi_given_level_bits == pytest.approx(0, abs=1e-12)
    assert result.cramers_v_given_level == 0
    assert result.level_mi_bits == pytest.approx(result.raw['level_mi_bits'], abs=0.02)
    assert result.level_cramers_v == pytest.approx(1)
    assert result.level_p_value == 1 / 500
    assert any('fixed map of the level' in note for note in result.notes)


def test_a_noisy_level_map():
    noisy = np.where(random_rows(IMAGE, LEVEL, 4, seed=5) == 3, RANDOM, LEVEL)
    result = measure(IMAGE, LEVEL, noisy, SIZE)
    assert result.verdict == 'level-specialised'
    assert result.p_value > 0.01


def test_a_size_router():
    result = measure(IMAGE, LEVEL, BY_SIZE, SIZE)
    assert result.sorts is True and result.verdict == 'size-sorted'  # whether it matters only a detector can show
    assert result.p_value == 1 / 500
    assert result.cramers_v_given_level > 0.3
    low, high = result.mi_given_level_ci
    assert 0 < low < result.mi_given_level_bits < high < result.h_size_given_level
    assert result.mi_given_level_bits > result.null_99
    assert 0 < result.share_of_size_given_level < 1


def test_one_decision_per_image():
    experts = np.random.default_rng(2).integers(4, size=NUM_IMAGES)[IMAGE]
    result = measure(IMAGE, LEVEL, experts, SIZE)
    assert result.verdict == 'not specialised'
    assert result.level_p_value is None  # the choice cannot follow the level
    assert result.mi_p_value > 0.01 and abs(result.mi_bits) < 0.02
    # at a single level both questions are one
    flat = measure(IMAGE, 0 * LEVEL, experts, SIZE)
    assert flat.raw['mi_given_level_bits'] == pytest.approx(flat.raw['mi_bits'])
    assert flat.mi_given_level_bits == pytest.approx(flat.mi_bits, abs=0.005)
    assert flat.level_mi_bits == 0
    assert flat.level_p_value is None


def scaled_scenes(num_images: int = NUM_IMAGES, seed: int = 0):
    """Scenes of different scale, which decides the levels; size inside a level has nothing to do with it."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(num_images), rng.integers(2, 10, num_images))
    scale = rng.normal(size=num_images)
    level = np.clip(np.round(1 + scale[image] + 0.5 * rng.normal(size=len(image))), 0, 2).astype(int)
    area = 4.0**level * 400 * np.exp(rng.normal(size=len(image)) * 0.3)
    return image, level, np.clip(level + rng.integers(-1, 2, len(image)), 0, 2), area, scale


def test_a_gate_that_reads_the_scale_of_the_image():
    image, level, size, area, scale = scaled_scenes()
    experts = np.digitize(scale, [-0.7, 0, 0.7])[image]
    result = measure(image, level, experts, size, areas=area)
    assert result.mi_bits > 0.2 and result.mi_p_value == 1 / 500 and result.mi_cramers_v > 0.3
    assert result.relative_size.p_value > 0.01 and abs(result.relative_size.mi_bits) < 0.02
    assert result.sorts is False
    assert result.verdict == 'scale-specialised'
    assert result.follows_scale and not result.follows_level


def test_size_within_the_level():
    image, level, size, area, scale = scaled_scenes()
    # an expert for the row whose objects are large for their level, which COCO's bins hardly show
    relative = np.log(area) - np.log(400 * 4.0**level)
    sums, counts = np.zeros((NUM_IMAGES, 3)), np.zeros((NUM_IMAGES, 3))
    np.add.at(sums, (image, level), relative)
    np.add.at(counts, (image, level), 1)
    experts = (sums > 0).astype(int)[image, level]
    result = measure(image, level, experts, level, areas=area, num_experts=2)
    assert result.p_value is None  # the bins are the levels
    size = result.relative_size
    assert result.sorts and size.sorts and result.verdict == 'size-sorted'
    assert size.p_value == 1 / 500 and size.cramers_v > 0.3
    assert size.ceiling_bits == pytest.approx(np.log2(3), abs=0.01)
    assert 0 < size.mi_ci[0] < size.mi_bits < size.mi_ci[1] < size.ceiling_bits
    assert size.mi_bits > size.null_99
    # the table by hand
    expected = np.zeros((2, 3, 3))
    bins = relative_sizes(area, level).bins
    np.add.at(expected, (experts, bins, level), 1)
    np.testing.assert_array_equal(size.expert_by_size_by_level, expected)
    np.testing.assert_array_equal(size.expert_by_size, expected.sum(2))
    assert size.raw['mi_bits'] == pytest.approx(conditional_mutual_information(expected.transpose(2, 0, 1)))
    # and the bins' own numbers are those without areas
    image, level, size, area, _ = scaled_scenes()
    both, alone = (measure(image, level, experts, size, num_experts=2, **more) for more in ({'areas': area}, {}))
    assert both.p_value == alone.p_value and both.raw == pytest.approx(alone.raw)
    np.testing.assert_array_equal(both.expert_by_size_by_level, alone.expert_by_size_by_level)
    assert both.mi_given_level_bits == pytest.approx(alone.mi_given_level_bits)


def test_relative_sizes_by_hand():
    found = relative_sizes([9, 1, 5, 100, 100, 100, 7], [0, 0, 0, 2, 2, 2, 4])
    assert found.bins.tolist() == [2, 0, 1, 1, 1, 1, 1]  # equal areas share the bin of their middle
    assert found.levels.tolist() == [0, 2, 4]
    assert found.limits.tolist() == [[1, 5], [0, 100], [0, 7]]
    # half an object each: the large one alone fills a half
    assert relative_sizes([1, 2, 3], [0] * 3, weights=[0.5, 0.5, 1], quantiles=2).bins.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match='quantiles=1'):
        relative_sizes([1], [0], quantiles=1)
    with pytest.raises(ValueError, match=re.escape('areas must have one entry per object: expected shape (2,), got')):
        relative_sizes([1], [0, 0])
    with pytest.raises(ValueError, match=re.escape('areas[1] is nan')):
        relative_sizes([1, np.nan], [0, 0])


def test_scenes_that_are_there_four_times():
    image, level, size = scenes(40)
    experts = random_rows(image, level)
    again = np.concatenate([image + 40 * copy for copy in range(4)])
    four = [np.tile(values, 4) for values in (level, experts, size)]
    once = measure(image, level, experts, size)
    grouped = measure(again, *four, groups=[f'scene {i % 40}' for i in again])
    free = measure(again, *four)
    assert (grouped.num_images, grouped.num_groups) == (160, 40)
    # four copies say what one says: the same table, and as wide a null
    assert grouped.raw['mi_given_level_bits'] == pytest.approx(once.raw['mi_given_level_bits'])
    assert grouped.null_99 == pytest.approx(once.null_99, rel=0.4)
    assert free.null_99 < 0.5 * once.null_99
    width = [np.ptp(result.mi_given_level_ci) for result in (once, grouped, free)]
    assert width[1] == pytest.approx(width[0], rel=0.3) and width[2] < 0.7 * width[0]


def test_an_object_that_is_perfectly_told():
    # 60 images with one object, whose expert is its size: I = H(S) = log2 3, and V = 1 also after the correction
    size = np.arange(60) % 3
    result = measure(np.arange(60), 0 * size, size, size, num_experts=3)
    assert result.raw['mi_given_level_bits'] == pytest.approx(np.log2(3))
    assert result.h_size_given_level == pytest.approx(np.log2(3))
    assert result.cramers_v_given_level == pytest.approx(1)
    assert result.mi_given_level_bits < np.log2(3)
    assert result.verdict == 'size-sorted'


def test_tables_agree_with_loops():
    image, level, size = scenes(20)
    experts = random_rows(image, level)
    result = measure(image, level + 3, experts, size, bootstrap=0)
    expected = np.zeros((4, 3, 3))
    for entry in range(len(image)):
        expected[experts[entry], size[entry], level[entry]] += 1
    np.testing.assert_array_equal(result.expert_by_size_by_level, expected)
    np.testing.assert_array_equal(result.expert_by_size, expected.sum(2))
    np.testing.assert_array_equal(result.expert_by_level, expected.sum(1))
    assert result.levels == (3, 4, 5)
    assert result.num_objects == len(image)
    assert result.num_images == 20
    assert result.num_rows == len({*zip(image.tolist(), level.tolist(), strict=True)})
    assert result.raw['mi_bits'] == pytest.approx(mutual_information(expected.sum(2)))
    assert result.raw['mi_given_level_bits'] == pytest.approx(
        conditional_mutual_information(expected.transpose(2, 0, 1))
    )


def numbers(result) -> dict:
    return {k: v for k, v in result.to_dict().items() if not k.startswith('expert_by')}


def test_one_hot_masses_are_top_experts():
    assert numbers(measure(IMAGE, LEVEL, np.eye(4)[BY_SIZE], SIZE)) == numbers(measure(IMAGE, LEVEL, BY_SIZE, SIZE))


def test_names_of_images_and_order_of_sizes_do_not_matter():
    named = np.array([f'{i:05d}.jpg' for i in IMAGE])
    assert numbers(measure(named, LEVEL, RANDOM, SIZE)) == numbers(measure(IMAGE, LEVEL, RANDOM, SIZE))


def test_names_of_experts_matter_to_noise_only():
    first = measure(IMAGE, LEVEL, BY_SIZE, SIZE, permutations=4000)
    second = measure(IMAGE, LEVEL, np.array([2, 0, 3])[BY_SIZE], SIZE, permutations=4000)
    np.testing.assert_array_equal(second.expert_by_size[[2, 0, 3]], first.expert_by_size[:3])
    assert second.raw == pytest.approx(first.raw)
    assert second.mi_given_level_bits == pytest.approx(first.mi_given_level_bits, abs=0.001)
    assert second.cramers_v_given_level == pytest.approx(first.cramers_v_given_level, abs=0.002)


def test_an_object_over_several_entries():
    twice = [np.repeat(values, 2) for values in (IMAGE, LEVEL, RANDOM, SIZE)]
    whole = measure(IMAGE, LEVEL, RANDOM, SIZE)
    halves = measure(*twice, weights=np.full(2 * len(IMAGE), 0.5))
    assert halves.num_objects == 2 * whole.num_objects
    assert halves.p_value == whole.p_value
    assert halves.mi_given_level_bits == pytest.approx(whole.mi_given_level_bits)
    np.testing.assert_allclose(halves.expert_by_size, whole.expert_by_size)


def test_soft_masses_that_tell_the_size():
    sharp = np.eye(4)[BY_SIZE]
    result = measure(IMAGE, LEVEL, 0.6 * sharp + 0.1, SIZE)
    assert result.verdict == 'size-sorted'
    assert result.raw['mi_given_level_bits'] < measure(IMAGE, LEVEL, sharp, SIZE).raw['mi_given_level_bits']


def test_a_patch_position_is_no_size():
    # the lower patch holds larger objects, and a gate may know its position: both are no news about the objects
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(200), 8)
    patch = np.tile([0, 1], 800)
    size = np.clip(rng.integers(2, size=1600) + patch, 0, 2)
    knows_position = np.where(rng.random((200, 2)) < 0.1, 1 - np.arange(2), np.arange(2))[image, patch]
    result = measure(image, 0 * image, knows_position, size, patches=patch)
    assert result.raw['mi_given_level_bits'] > 0.2
    assert result.p_value > 0.01
    assert abs(result.mi_given_level_bits) < 0.03
    assert result.verdict == 'not specialised'
    counts = np.zeros((200, 2, 3))
    np.add.at(counts, (image, patch, size), 1)
    knows_size = (np.stack([counts[:, 0, 1], counts[:, 1, 2]], 1) > 2).astype(
        int
    )  # most of its four are the larger kind
    assert measure(image, 0 * image, knows_size[image, patch], size, patches=patch).verdict == 'size-sorted'


def test_equal_seeds_give_equal_results():
    first, again, other = (measure(IMAGE, LEVEL, RANDOM, SIZE, seed=seed) for seed in (3, 3, 4))
    assert str(first) == str(again)
    assert numbers(first) == numbers(again)
    assert first.mi_given_level_ci != other.mi_given_level_ci
    assert first.null_99 != other.null_99
    without = measure(IMAGE, LEVEL, RANDOM, SIZE, seed=3, bootstrap=0)
    assert without.mi_given_level_ci is None
    assert without.p_value == first.p_value


# -- what the data cannot carry ---------------------------------------------------------------------------------


def test_too_few_images():
    image, level, size = scenes(4)
    image, level, size = (np.repeat(values, 2) for values in (image, level, size))
    result = measure(image, level, random_rows(image, level), size)
    assert result.p_value is None
    assert result.mi_given_level_ci is None
    assert result.verdict == 'undetermined' and result.sorts is None
    assert 'images have as many objects' in result.reason
    assert result.reason in str(result)


def test_nine_objects_tell_nothing():
    # also where nothing could be found: one expert, or a p-value of 1
    few = slice(0, 9)
    for experts in (RANDOM, 0 * LEVEL):
        result = measure(IMAGE[few], LEVEL[few], experts[few], np.arange(9) % 3)
        assert result.verdict == 'undetermined'
        assert result.reason == '9 objects; at least 30 are needed to tell anything'
    halves = measure(np.arange(50), [0] * 50, np.arange(50) % 2, np.arange(50) // 2 % 2, weights=[0.5] * 50)
    assert halves.reason.startswith('25 objects')


def test_images_that_share_no_level():
    image = np.repeat(np.arange(8), 4)
    experts = np.random.default_rng(0).integers(4, size=8)[image]
    result = measure(image, image, experts, np.tile([0, 1], 16))
    assert result.verdict == 'undetermined'
    assert result.reason.startswith('0 images')
    assert any('8 routing rows cannot be exchanged' in note for note in result.notes)


def test_too_few_distinct_arrangements():
    # one of 40 rows differs: it can be in 40 places, and p cannot be below 1/40
    experts = np.zeros(40, dtype=int)
    experts[0] = 1
    size = np.zeros(40, dtype=int)
    size[0] = 1
    result = measure(np.arange(40), 0 * size, experts, size)
    assert result.raw['mi_given_level_bits'] > 0
    assert result.p_value is None
    assert 'too few distinct arrangements' in result.reason
    assert result.verdict == 'undetermined'


def test_a_level_test_that_cannot_be_made():
    # a single decision differs: shifting it between two levels has two outcomes
    image, level = np.divmod(np.arange(80), 2)
    result = measure(image, level, (np.arange(80) == 1).astype(int), np.arange(80) // 4 % 2)
    assert result.raw['level_mi_bits'] > 0
    assert result.level_p_value is None


def test_sizes_that_are_levels():
    result = measure(IMAGE, LEVEL, RANDOM, LEVEL)
    assert result.p_value is None
    assert 'cannot be told apart' in result.reason
    assert result.verdict == 'undetermined'


def test_a_single_expert():
    result = measure(IMAGE, LEVEL, 0 * LEVEL + 2, SIZE)
    assert result.p_value == 1
    assert (result.mi_bits, result.mi_given_level_bits) == pytest.approx((0, 0), abs=1e-12)
    assert result.cramers_v_given_level == 0
    assert result.verdict == 'not specialised'
    assert 'only expert 2 was used' in result.notes
    assert measure(IMAGE, LEVEL, 0 * LEVEL, SIZE, num_experts=1).verdict == 'not specialised'
    assert measure(IMAGE, LEVEL, 0 * LEVEL, LEVEL).p_value == 1


def test_an_empty_size():
    result = measure(IMAGE, LEVEL, RANDOM, np.where(SIZE == 1, 2, SIZE))
    assert result.notes == ('no object is medium: nothing is said about that size',)
    assert result.p_value is not None
    with pytest.raises(DataError, match='all 5 objects are of size 2'):
        measure(range(5), [0] * 5, [0] * 5, [2] * 5)


@pytest.mark.parametrize('permutations', [99, 150, 198])
def test_few_permutations_carry_a_p_value(permutations):
    rng = np.random.default_rng(1)
    image = np.repeat(np.arange(300), 4)
    experts = rng.integers(4, size=300)[image]
    result = measure(image, 0 * image, experts, rng.integers(3, size=1200), permutations=permutations, bootstrap=0)
    assert result.p_value is not None and result.p_value > 0.01


def test_a_balanced_table_has_no_nan():
    cells = np.indices((2, 3)).reshape(2, -1).repeat(11, axis=1)
    result = measure(np.arange(66), [0] * 66, cells[0], cells[1], num_experts=2)
    assert result.raw['cramers_v_given_level'] == 0
    json.dumps(result.to_dict(), allow_nan=False)


def test_settings_that_cannot_work():
    with pytest.raises(ValueError, match='at least 99 for p <= 0.01, got 98'):
        measure(IMAGE, LEVEL, LEVEL, SIZE, permutations=98)
    with pytest.raises(ValueError, match='bootstrap must be 0'):
        measure(IMAGE, LEVEL, LEVEL, SIZE, bootstrap=-1)


# -- interval, bins, meter, output ------------------------------------------------------------------------------


def test_bootstrap_draws_images():
    image, level, size = scenes(12)
    experts = random_rows(image, level)
    rows = gather_rows(image, level, experts, size, num_experts=4, num_sizes=3)
    (found,) = bootstrap_cmi(rows, 8000, np.random.default_rng(0))
    rng, naive = np.random.default_rng(1), []
    for _ in range(4000):
        tables = np.zeros((3, 4, 3))
        for chosen in rng.integers(12, size=12):
            at = image == chosen
            np.add.at(tables, (level[at], experts[at], size[at]), 1)
        naive.append(conditional_mutual_information(tables))
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(found, quantiles), np.quantile(naive, quantiles), rtol=0.06)


@pytest.mark.parametrize('estimate', [-1.0, -0.3, -0.05, 0.0, 0.05, 0.39, 0.5, 2.0])
@pytest.mark.parametrize(('mean', 'spread'), [(0.1, 0.09), (0.1, 0.5), (0.0, 0.04), (0.4, 0.01)])
def test_interval_is_what_the_estimate_agrees_with(estimate, mean, spread):
    values = np.array([-1, 1]) * np.sqrt(spread)
    low, high = score_interval(values, estimate, (mean, 0.04))
    at_zero = min(0.04, spread)
    growth = (spread - at_zero) / max(mean + max(estimate, 0), 1e-9)
    truths = np.linspace(-3, 60, 630_001)
    agree = np.abs(estimate - truths) <= 1.959964 * np.sqrt(at_zero + growth * np.maximum(truths, 0))
    assert low <= estimate <= high
    assert (low, high) == pytest.approx((truths[agree].min(), truths[agree].max()), abs=2e-4)


def test_interval_by_hand():
    # nothing planted and resamples that vary as much as permutations: estimate and standard deviation
    assert score_interval(np.array([0.0, 0.2]), 0.3, (0.0, 0.01), 0.6827) == pytest.approx((0.2, 0.4), abs=1e-4)
    # one expert: nothing varies
    assert score_interval(np.zeros(9), 0.0, (0.0, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize('strength', [0.0, 0.15])
def test_interval_holds_the_truth_as_often_as_it_says(strength):
    # a noisy reading of size, one object per image: the truth by hand
    table = (1 - strength) / 9 + strength * np.eye(3) / 3
    truth = float(conditional_mutual_information(table[None]))
    held = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        expert, size = np.divmod(rng.choice(9, size=300, p=table.ravel()), 3)
        options = dict(num_experts=3, permutations=99, bootstrap=200, seed=seed)
        low, high = measure(np.arange(300), 0 * size, expert, size, **options).mi_given_level_ci
        held += low <= truth <= high
    assert 0.91 < held / 300 < 0.98  # percentiles of resamples hold a truth of zero always


def test_size_bins():
    areas = [0, 1024, np.nextafter(1024, 2000), 9216, 9216.5, 1e9]
    assert size_bins(areas).tolist() == [0, 0, 1, 1, 2, 2]
    assert size_bins([1, 2, 3], limits=[2]).tolist() == [0, 0, 1]
    for areas in ([1, -1], [1, np.nan]):
        with pytest.raises(ValueError, match=re.escape(f'areas[1] is {float(areas[1])}')):
            size_bins(areas)
    with pytest.raises(ValueError, match='limits must ascend'):
        size_bins([1], limits=(9216, 1024))


def test_meter():
    meter = SpecializationMeter(4, permutations=99, bootstrap=50, seed=1)
    with pytest.raises(DataError, match='no objects to measure'):
        meter.compute()
    reused = np.empty(len(IMAGE), dtype=int)
    for part in np.array_split(np.arange(len(IMAGE)), 7):
        reused[: len(part)] = SIZE[part]
        meter.update(IMAGE[part], LEVEL[part], RANDOM[part], reused[: len(part)])
    meter.update([], [], [], [])
    expected = measure(IMAGE, LEVEL, RANDOM, SIZE, permutations=99, bootstrap=50, seed=1)
    assert numbers(meter.compute()) == numbers(expected)
    with pytest.raises(ValueError, match='patches'):
        meter.update([1], [0], [0], [0], patches=[0])
    with pytest.raises(ValueError, match='masses in every batch'):
        meter.update([1], [0], [[1, 0, 0, 0]], [0])
    meter.reset()
    with pytest.raises(DataError):
        meter.compute()


def test_output():
    result = measure(IMAGE, LEVEL, BY_SIZE, SIZE)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values['verdict'] == 'size-sorted'
    assert values['mi_given_level_ci'] == list(result.mi_given_level_ci)
    assert values['expert_by_size'] == result.expert_by_size.tolist()
    text = str(result)
    for part in ('size-sorted', f'{result.mi_given_level_bits:.4f} bits', 'p 0.002 (499', 'small', 'large'):
        assert part in text


def test_two_slots_that_decide_alike_measure_as_one():
    generator = np.random.default_rng(3)
    images = np.repeat(np.arange(60), 6)
    sizes = generator.integers(0, 3, len(images))
    expert = np.repeat(generator.integers(0, 2, 60), 6)
    sizes[expert == 1] = np.maximum(sizes[expert == 1], 1)
    levels = np.zeros_like(images)
    options = dict(permutations=199, bootstrap=0)
    one = measure_specialization(images, levels, expert, sizes, num_experts=2, **options)
    masses = np.zeros((len(images), 4))
    masses[np.arange(len(images)), expert] = masses[np.arange(len(images)), 2 + expert] = 0.5
    two = measure_specialization(images, levels, masses, sizes, num_experts=4, expert_slots=2, **options)
    assert two.mi_given_level_bits == pytest.approx(one.mi_given_level_bits)
    assert two.cramers_v_given_level == pytest.approx(one.cramers_v_given_level)
    with pytest.raises(ValueError, match='expert_slots=3'):
        measure_specialization(images, levels, masses, sizes, num_experts=4, expert_slots=3, **options)
