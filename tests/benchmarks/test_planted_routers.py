"""Planted worlds: what they claim of themselves is true, and the record becomes a page."""

from __future__ import annotations

import json

import numpy as np
import planted_routers
import pytest
from planted import detectors, gates, scenes, study, unused, worlds
from planted.page import _beyond, page
from planted.routers import EXPERTS, KINDS, planted_truth, row_counts, size_router, strength_for
from scipy.stats import pearsonr

from moe_det.analysis import measure_specialization, relative_sizes
from moe_det.analysis.information import conditional_mutual_information
from moe_det.errors import DataError

TINY = study.Plan(2, 2, 2, 2, 2, effects=2, gates=2, permutations=99, bootstrap=20, objects=200)
STRENGTHS = {
    kind: {v: study.Strength(strength, v, 0.01) for v, strength in ((0.1, 0.2), (0.2, 0.5), (0.4, 0.8))}
    for kind in KINDS
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# -- scenes ---------------------------------------------------------------------------------------------------------


def test_coco_like_scenes_have_cocos_sizes_and_numbers(rng):
    many = scenes.coco_like(rng, scenes.gamma_counts(rng, 5000))
    assert np.bincount(many.size) / len(many.size) == pytest.approx([0.43, 0.39, 0.18], abs=0.03)
    assert many.counts.mean() == pytest.approx(7.3, abs=0.3)
    heavy = scenes.heavy_counts(rng, 50_000)
    assert np.median(heavy) == 4
    assert heavy.mean() == pytest.approx(7, abs=0.5)
    assert (heavy > 45).mean() == pytest.approx(0.01, abs=0.003)


def test_size_inside_a_level_is_independent_of_a_scale_that_decides_the_level(rng):
    for agreement in (0.0, 0.6):
        drawn = scenes.scale_decides_level(rng, 5000, agreement)
        scale = drawn.scale[drawn.image]
        assert pearsonr(scale, drawn.level)[0] > 0.6
        for level in range(scenes.LEVELS):
            at = drawn.level == level
            assert abs(pearsonr(scale[at], np.log(drawn.area[at]))[0]) < 0.08
        inside = np.log(drawn.area) - np.log(256 * 4.0**drawn.level)
        first = np.flatnonzero(np.diff(drawn.image, prepend=-1))
        pairs = first[drawn.counts[drawn.image[first]] > 1]
        assert pearsonr(inside[pairs], inside[pairs + 1])[0] == pytest.approx(agreement, abs=0.05)


def test_counts_tell_nothing_of_sizes(rng):
    for draw in (scenes.one_level, scenes.coco_like):
        drawn = draw(rng, scenes.heavy_counts(rng, 20_000))
        _, first = np.unique(drawn.image, return_index=True)  # one object of each image
        assert abs(pearsonr(np.log(drawn.counts), np.log(drawn.area[first]))[0]) < 0.03


def test_full_scenes_have_every_row_and_size(rng):
    drawn = scenes.full_scenes(rng, 2000)
    assert (row_counts(drawn, drawn.size).sum(2) == 4).all()
    assert np.bincount(drawn.size) / len(drawn.size) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_a_size_can_be_left_out(rng):
    drawn = scenes.coco_like(rng, scenes.gamma_counts(rng, 50))
    assert set(scenes.without_size(drawn, 0).size) == {1, 2}


# -- worlds ---------------------------------------------------------------------------------------------------------


def bits_of_many(world, rng) -> list[float]:
    """I(E;S | level and patch), plug-in, of many draws together: COCO's bins, thirds of relative size."""
    tables = np.zeros((2, scenes.LEVELS * 4, EXPERTS, 3))
    for _ in range(6000 // world.images):
        (unit,) = world.draw(rng)
        masses = unit['experts'] if unit['experts'].ndim == 2 else np.eye(EXPERTS)[unit['experts']]
        masses = masses * unit.get('weights', np.ones(len(masses)))[:, None]
        place = unit['levels'] * 4 + unit.get('patches', 0)
        thirds = relative_sizes(unit['areas'], unit['levels'], unit.get('weights')).bins
        for of_kind, bins in zip(tables, (unit['sizes'], thirds), strict=True):
            np.add.at(of_kind.swapaxes(1, 2), (place, bins), masses)
    return [float(conditional_mutual_information(of_kind)) for of_kind in tables]


@pytest.mark.parametrize('world', [w for w in worlds.null_worlds() if w.truth == 'null'], ids=lambda world: world.name)
def test_null_worlds_leave_no_dependence_given_the_level(world, rng):
    # what finite tables have by chance, most where few crowded images have an expert for themselves
    assert max(bits_of_many(world, rng)) < 0.004


@pytest.mark.parametrize('kind', KINDS)
def test_gates_that_sort_by_size_are_told_from_that(kind, rng):
    assert bits_of_many(worlds.planted(kind, 0.2, 0.4, 100), rng)[list(KINDS).index(kind)] > 0.01


def test_worlds_have_names_of_their_own_and_as_many_images_as_they_say(rng):
    every = [*worlds.null_worlds(), *worlds.two_unit_worlds()]
    assert len({world.name for world in every}) == len(every)
    for world in every:
        images = len(np.unique(world.draw(rng)[-1]['image_ids']))
        assert 0.7 * world.images < images <= world.images  # all of them, unless objects are left out


def test_one_expert_misses_small_objects_and_the_training_unit_has_all(rng):
    found, everything = worlds.unequal_recall(rng, 3000, missed=0.5)
    tables = [np.histogram2d(u['experts'], u['sizes'], bins=(4, 3))[0] for u in (found, everything)]
    recall = tables[0] / tables[1]
    assert recall[0] == pytest.approx([0.4, 0.8, 0.9], abs=0.03)
    assert recall[1] == pytest.approx([0.9, 0.8, 0.6], abs=0.03)
    assert recall[2:] == pytest.approx(np.full((2, 3), 0.8), abs=0.03)


def test_experts_move_the_level_of_what_they_find_and_shares_stay_whole(rng):
    found, everything = worlds.moved_levels(rng, 3000, skill=1.0)
    large = found['sizes'] == 2
    assert np.mean(found['experts'][large] == 0) > 0.3 > 0.22 > np.mean(found['experts'][large] == 1)
    assert everything['weights'].sum() == pytest.approx(len(found['sizes']))
    large = everything['sizes'] == 2
    assert np.mean(everything['experts'][large] == 0) == pytest.approx(0.25, abs=0.02)


def test_frames_are_copies_and_groups_name_their_scene(rng):
    (unit,) = worlds.frames(rng, scenes=5, repeated=3, told=True)
    assert len(np.unique(unit['image_ids'])) == 15
    for scene in range(5):
        of_frame = [unit['areas'][unit['image_ids'] == scene + 5 * frame] for frame in range(3)]
        assert all(np.array_equal(of_frame[0], areas) for areas in of_frame)
        assert set(unit['groups'][np.isin(unit['image_ids'], [scene, scene + 5, scene + 10])]) == {scene}
    assert 'groups' not in worlds.frames(rng, 5, 3, told=False)[0]


@pytest.mark.parametrize('kind', KINDS)
def test_planted_v_is_what_large_data_sets_show(kind, rng):
    many = scenes.coco_like(rng, scenes.gamma_counts(rng, 4000))
    counts = row_counts(many, KINDS[kind](many))
    strength = strength_for(counts, 0.2)
    v, bits = planted_truth(counts, strength)
    assert v == pytest.approx(0.2, abs=1e-6)
    unit = worlds.unit(many, size_router(rng, many, kind, strength))
    result = measure_specialization(**unit, num_experts=EXPERTS, permutations=99, bootstrap=0)
    measured = result if kind == 'COCO' else result.relative_size
    shown = result.cramers_v_given_level if kind == 'COCO' else measured.cramers_v
    information = result.mi_given_level_bits if kind == 'COCO' else measured.mi_bits
    assert shown == pytest.approx(v, abs=0.02)
    assert information == pytest.approx(bits, rel=0.15)


# -- tests that are not used ----------------------------------------------------------------------------------------


def test_exchanging_rows_freely_fits_rows_of_one_object_and_not_crowding(rng):
    image = np.arange(200)
    p_values = [
        unused.free_rows_p(
            {'image_ids': image, 'levels': 0 * image, 'experts': rng.integers(4, size=200),
             'sizes': rng.integers(3, size=200)},
            rng,
        )
        for _ in range(60)
    ]  # fmt: skip
    assert 0.35 < np.mean(p_values) < 0.65
    world = next(w for w in worlds.null_worlds() if w.name == 'most crowded 2%, one level')
    assert np.mean([unused.free_rows_p(world.draw(rng)[0], rng) <= 0.01 for _ in range(60)]) > 0.05


# -- detectors and gates --------------------------------------------------------------------------------------------


def test_a_detector_answers_by_the_expert_that_is_asked(rng):
    drawn = scenes.coco_like(rng, scenes.gamma_counts(rng, 300))
    skills = np.zeros((len(drawn.image), EXPERTS))
    skills[:, 1] = 2.0
    detector = detectors.Detector(rng, drawn, skills)
    rows = np.zeros((300, scenes.LEVELS), dtype=int)
    weak, strong = detector.detections(rows), detector.detections(rows + 1)
    np.testing.assert_array_equal(weak, detector.detections(rows))
    alarms = len(detector.alarm_image)
    assert len(strong) > len(weak)
    assert strong[:-alarms, 5].mean() > weak[:-alarms, 5].mean() + 0.1
    one = rows.copy()
    one[7] = 1  # only image 7 asks the strong expert
    mixed = detector.detections(one)
    np.testing.assert_array_equal(mixed[mixed[:, 0] != 7], weak[weak[:, 0] != 7])
    np.testing.assert_array_equal(mixed[mixed[:, 0] == 7], strong[strong[:, 0] == 7])


def test_the_swap_takes_what_the_gate_knew(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, 'RESAMPLES', 20)
    drawn = scenes.coco_like(rng, scenes.gamma_counts(rng, 100))
    gate = detectors.by_size(rng, drawn, gap=2.0)
    changes = detectors.swap_test(rng, drawn, gate, tmp_path / 'objects.json', 0)
    assert changes['AP']['difference'] < -0.05
    assert changes['AP']['p_value'] < 0.01


def test_skills_are_as_described(rng):
    drawn = scenes.coco_like(rng, scenes.gamma_counts(rng, 200))
    assert not detectors.by_size(rng, drawn, gap=0.0).skills.any()
    for plan in (detectors.coin_toss, detectors.by_size_unequal):
        assert not np.ptp(plan(rng, drawn).skills, axis=0).any()  # alike for all objects
    known = detectors.by_property(rng, drawn, gap=1.0)
    chosen = known.rows[drawn.image, drawn.level]
    assert (known.skills[np.arange(len(chosen)), chosen] == 0.5).all()


def test_features_of_rows_tell_the_scale_and_random_gates_use_them(rng):
    gate = gates.planted_gates({0.4: 0.8})[-1]
    assert gate.beyond
    assert gate.draw(rng, 0).beyond
    drawn = scenes.coco_like(rng, scenes.gamma_counts(rng, 300))
    features = gates.row_features(rng, drawn).mean(1)
    predicted = features @ np.linalg.lstsq(features, drawn.scale, rcond=None)[0]
    assert pearsonr(predicted, drawn.scale)[0] > 0.5


# -- study, record and page -----------------------------------------------------------------------------------------


def test_rates_have_binomial_intervals():
    none = study.rate([False] * 100)
    assert (none['low'], none['hits']) == (0.0, 0)
    assert none['high'] == pytest.approx(1 - 0.025 ** (1 / 100))  # exact: 0.975 quantile where nothing was seen
    assert study.rate([True] * 10)['high'] == 1.0


@pytest.fixture(scope='module')
def tiny_record():
    """One or two cases of every section, measured by tiny plans."""
    seen, cases = {}, study.all_cases(STRENGTHS)
    record = planted_routers.Record(None)
    for case in cases:
        wanted = {'null': 1, 'power': 1, 'intervals': 2}.get(case.section, 1)
        misuse = case.name == 'each scene four times, without groups'
        if case.section != 'time' and (seen.get(case.section, 0) < wanted or misuse):
            seen[case.section] = seen.get(case.section, 0) + 1
            record.measured(case, study.measure(case, TINY), cases)
    return record


def test_page_has_every_section_and_as_many_cells_as_columns(tiny_record):
    text = page(json.loads(json.dumps(tiny_record.content())))
    assert [line for line in text.splitlines() if line.startswith('## ')] == [
        '## Nothing to find: given the level, routing has nothing to do with size',
        '## Nothing to find, but experts find different objects',
        '## Something to find: gates that sort by size',
        '## How often the 95 % interval of I(E; size | level) holds the truth',
        '## The swap test on planted detectors',
        '## Random gates',
    ]
    cells = None
    for line in text.splitlines():
        if not line.startswith('|'):
            cells = None
            continue
        cells = cells or line.count('|')
        assert line.count('|') == cells, line
    assert '2 simulations with 99 permutations' in text


def test_page_names_the_worlds_that_exceed_the_level():
    rates = {'good': study.rate([True] + [False] * 199), 'bad': study.rate([True] * 10 + [False] * 190)}
    assert _beyond(rates) == 'Beyond binomial error above 1 %: bad. Together 2.75 % of all 400.'
    del rates['bad']
    assert _beyond(rates).startswith('The binomial interval of each reaches down to 1 % or lower')


def test_results_are_those_of_the_seed_and_the_name_alone():
    world = worlds.null_worlds()[0]
    assert study.routers(TINY, world) == study.routers(TINY, world)
    drawn = [next(iter(study.streams(TINY, name, 1)))[1].random() for name in ('one', 'another')]
    assert drawn[0] != drawn[1]


def test_record_is_resumed_case_by_case(tmp_path, tiny_record, monkeypatch, capsys):
    path = tmp_path / 'record.json'
    monkeypatch.setattr(planted_routers, 'planted_strengths', lambda seed: STRENGTHS)
    monkeypatch.setattr(planted_routers, 'QUICK', TINY)
    command = ['--quick', '--out', str(path), '--only', 'image property, 10 images', 'image property, 20 images']
    planted_routers.main(command)
    assert list(json.loads(path.read_text())['cases']['null']) == [
        'image property, 10 images', 'image property, 20 images'
    ]  # fmt: skip
    assert path.with_suffix('.md').read_text().startswith('# Planted worlds')
    capsys.readouterr()
    planted_routers.main([*command, '--resume', '--seed', '0'])
    assert '1 of' not in capsys.readouterr().out
    planted_routers.main([*command, '--resume', '--seed', '1'])  # other settings: measured again
    assert '2 of 2' in capsys.readouterr().out


def test_only_names_sections_or_parts_of_names_and_refuses_others():
    cases = study.all_cases(STRENGTHS)
    assert {case.section for case in planted_routers.chosen(cases, ['time'])} == {'time'}
    crowded = planted_routers.chosen(cases, ['most crowded'])
    assert len(crowded) == 12
    with pytest.raises(DataError, match="'nothing'.*sections are null"):
        planted_routers.chosen(cases, ['nothing'])


def test_a_file_that_is_no_record_is_refused(tmp_path):
    path = tmp_path / 'record.json'
    path.write_text('[]')
    with pytest.raises(DataError, match='no record of planted_routers.py'):
        planted_routers.Record(path)
