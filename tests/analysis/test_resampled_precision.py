"""Average precision of resampled images and of thirds, against pycocotools on files that are really so."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.stats import t as student
from small_files import coco_content

from moe_det.analysis.ground_truth import GroundTruth
from moe_det.analysis.resampled_precision import PrecisionSamples, ResampledPrecision, Thirds, difference

IMAGES, CATEGORIES, LEVELS = 24, 3, 2
LIMITS = {0: (300.0, 900.0), 1: (3000.0, 9000.0)}


def scene(seed=0):
    """Objects as COCO annotations and detections near them, some of the wrong class, some of nothing."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(IMAGES):
        for _ in range(rng.integers(0, 6)):
            level = int(rng.integers(LEVELS))
            side = rng.uniform(8, 45, 2) * (1 if level == 0 else 3)
            box = [*rng.uniform(0, 300, 2), *side]
            label = int(rng.integers(CATEGORIES))
            crowd = int(rng.random() < 0.05)
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image, category_id=label, bbox=box, area=side[0] * side[1],
                     iscrowd=crowd, level=level)
            )  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                found = np.maximum(np.array(box) + rng.normal(0, 0.12, 4) * np.tile(side, 2), 1)
                label_found = label if rng.random() < 0.85 else int(rng.integers(CATEGORIES))
                detections.append([image, *found, rng.random(), label_found, level if rng.random() < 0.9 else -1])
        detections.append([image, *rng.uniform(0, 300, 2), *rng.uniform(8, 90, 2), rng.random(), 0, 0])
    return annotations, np.array(detections)


def write(path, annotations, images=IMAGES):
    content = coco_content((), range(images), {c: str(c) for c in range(CATEGORIES)}, (500, 500), 'jpg')
    path.write_text(json.dumps(content | {'annotations': annotations}))
    return path


def third_of(level, area):
    return int(area > LIMITS[level][0]) + int(area > LIMITS[level][1])


def thirds_of(annotations):
    """Thirds of the objects that are no crowds; every seventh belongs to none."""
    alone = [a for a in annotations if not a['iscrowd']]
    thirds = [-1 if n % 7 == 6 else third_of(a['level'], a['area']) for n, a in enumerate(alone)]
    return Thirds(np.array(thirds), LIMITS)


def plain(annotations, detections, images, ranges):
    """AP of each range of areas by pycocotools."""
    path_free = [{key: value for key, value in a.items() if key != 'level'} for a in annotations]
    found = [
        dict(id=n, image_id=int(d[0]), category_id=int(d[6]), bbox=d[1:5].tolist(), area=area, score=d[5], iscrowd=0)
        for n, (d, area) in enumerate(detections, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        made = []
        for entries in (path_free, found):
            coco = COCO()
            coco.dataset = dict(
                images=[dict(id=i) for i in range(images)],
                categories=[dict(id=c) for c in range(CATEGORIES)],
                annotations=entries,
            )
            coco.createIndex()
            made.append(coco)
        evaluation = COCOeval(*made, 'bbox')
        evaluation.params.areaRng = ranges
        evaluation.params.areaRngLbl = [str(n) for n in range(len(ranges))]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    values = [evaluation.eval['precision'][:, :, :, n, 0] for n in range(len(ranges))]
    return [float(v[v > -1].mean()) if (v > -1).any() else None for v in values]


def with_areas(detections, areas=None):
    return list(zip(detections, detections[:, 3] * detections[:, 4] if areas is None else areas, strict=True))


@pytest.fixture
def case(tmp_path):
    annotations, detections = scene()
    truth = GroundTruth(write(tmp_path / 'a.json', annotations), range(IMAGES))
    return annotations, detections, truth


def test_the_images_as_they_are_give_average_precision(case):
    _, detections, truth = case
    measure = ResampledPrecision(truth, 3, 0)
    measure.draws[1] = np.arange(IMAGES)
    found = measure.of(detections)
    expected = truth.average_precision(detections)
    assert found.names == ('AP', 'AP_S', 'AP_M', 'AP_L') and found.samples.shape == (3, 4)
    for column, name in enumerate(found.names):
        assert found.point[name] == pytest.approx(expected[name], abs=1e-12)
        assert found.samples[1, column] == pytest.approx(expected[name], abs=1e-12)
    assert 0.1 < found.point['AP'] < 0.9


def doubled(annotations, detections, drawn):
    """The images that were drawn, as often as they were, under new ids."""
    more, tables = [], []
    for new, old in enumerate(drawn):
        for annotation in annotations:
            if annotation['image_id'] == old:
                more.append({**annotation, 'id': len(more) + 1, 'image_id': new})
        table = detections[detections[:, 0] == old].copy()
        table[:, 0] = new
        tables.append(table)
    return more, np.concatenate(tables)


@pytest.mark.parametrize('grouped', [False, True])
def test_a_resample_is_pycocotools_on_repeated_images(case, tmp_path, grouped):
    annotations, detections, truth = case
    groups = [f'video {i // 5}' for i in range(IMAGES)] if grouped else None
    thirds = thirds_of(annotations)
    measure = ResampledPrecision(truth, 3, 7, groups, thirds)
    found = measure.of(detections)
    for draw, drawn in enumerate(measure.draws):
        assert len(set(drawn.tolist())) < len(drawn)
        more, table = doubled(annotations, detections, drawn)
        expected = plain(more, with_areas(table), len(drawn), truth.area_ranges())
        assert found.samples[draw, :4].tolist() == pytest.approx(expected, abs=1e-12)
        again = GroundTruth(write(tmp_path / 'again.json', more, len(drawn)), range(len(drawn)))
        whole = ResampledPrecision(again, 0, 0, thirds=thirds_of_repeated(thirds, truth, drawn)).of(table)
        for column, name in enumerate(found.names):
            assert found.samples[draw, column] == pytest.approx(whole.point[name], abs=1e-12)
    if grouped:
        for drawn in measure.draws:
            counts = np.bincount(drawn, minlength=IMAGES)
            assert all(len(set(counts[first : first + 5])) == 1 for first in range(0, IMAGES, 5))


def thirds_of_repeated(thirds, truth, drawn):
    objects = [thirds.objects[truth.objects.of_image(image)] for image in drawn]
    return Thirds(np.concatenate(objects), thirds.limits)


def test_a_third_is_pycocotools_without_the_others(case):
    """Objects of other thirds become crowds of their own, for COCO ignores those and what matches them."""
    annotations, detections, truth = case
    thirds = thirds_of(annotations)
    found = ResampledPrecision(truth, 0, 0, thirds=thirds).of(detections)
    assert found.names[4:] == ('AP_lower', 'AP_middle', 'AP_upper')
    numbers = iter(thirds.objects)
    of_truth = [None if a['iscrowd'] else next(numbers) for a in annotations]
    own = [third_of(int(d[7]), d[3] * d[4]) if d[7] >= 0 else None for d in detections]
    for third, name in enumerate(found.names[4:]):
        # an area that only this third has
        entries = [{**a, 'area': 1 if of_truth[n] == third else 9} for n, a in enumerate(annotations)]
        areas = [1 if number == third else 9 for number in own]
        (expected,) = plain(entries, with_areas(detections, areas), IMAGES, [[0, 5]])
        assert found.point[name] == pytest.approx(expected, abs=1e-12)
    assert len({found.point[name] for name in found.names}) == 7


def test_a_third_by_hand(tmp_path):
    """One object of each third and none of the upper: a detection of another third neither helps nor harms."""
    annotations = [truth_of(number + 1, number, side) for number, side in enumerate((10, 20))]
    truth = GroundTruth(write(tmp_path / 'a.json', annotations), range(IMAGES), [0])
    measure = ResampledPrecision(truth, 0, 0, thirds=Thirds(np.array([0, 1]), {0: (100.0, 400.0)}))
    hit, other = [0, 0, 0, 10, 10, 0.5, 0, 0], [1, 0, 0, 20, 20, 0.5, 0, 0]
    # 10 * 10 lies on the limit, level 4 has no limits
    false_small, false_middle, unknown = ([3, 50, 50, s, s, 0.9, 0, level] for s, level in ((10, 0), (15, 0), (9, 4)))
    point = measure.of(np.array([hit, other, unknown], dtype=float)).point
    assert point['AP_lower'] == pytest.approx(1) and point['AP_middle'] == pytest.approx(1)
    assert point['AP_upper'] is None
    point = measure.of(np.array([hit, other, false_small], dtype=float)).point
    assert point['AP_lower'] == pytest.approx(0.5) and point['AP_middle'] == pytest.approx(1)
    point = measure.of(np.array([hit, other, false_middle], dtype=float)).point
    assert point['AP_lower'] == pytest.approx(1) and point['AP_middle'] == pytest.approx(0.5)


def test_resamples_are_the_same_for_all_detections(case):
    _, detections, truth = case
    measure = ResampledPrecision(truth, 5, 3)
    first, second = measure.of(detections), measure.of(detections[::-1])
    np.testing.assert_allclose(first.samples, second.samples, atol=1e-12)
    again = ResampledPrecision(truth, 5, 3).of(detections)
    np.testing.assert_array_equal(first.samples, again.samples)
    assert len(np.unique(first.samples[:, 0])) > 1


FREEDOM = {'a': 7.0, 'b': 3.5}


def samples(point, columns):
    values = np.array(columns, dtype=float).T
    return PrecisionSamples(dict(zip('ab', point, strict=True)), values, ('a', 'b'), FREEDOM)


def test_difference_by_hand():
    natural = samples([0.5, None], [[0.50, 0.52, 0.48], [np.nan] * 3])
    draws = [
        samples([0.4, None], [[0.40, 0.44, 0.36], [np.nan] * 3]),
        samples([0.44, 0.1], [[0.44, 0.44, 0.50], [0.1] * 3]),
    ]
    found = difference(draws, natural)
    error = np.std([-0.08, -0.08, -0.05], ddof=1)  # means of the draws: .42, .44, .43
    assert found['b'] is None and found['a']['difference'] == pytest.approx(-0.08)
    assert found['a']['interval'] == pytest.approx([-0.08 - 2.364624 * error, -0.08 + 2.364624 * error], abs=1e-5)
    assert found['a']['p_value'] == pytest.approx(student.cdf(-0.08 / error, 7))
    natural = samples([0.5, 0.5], [[0.50, 0.52, 0.48], [0.5, np.nan, 0.7]])
    found = difference([samples([0.49, 0.6], [[0.49, 0.54, 0.44], [0.6, 0.4, 0.9]])], natural)
    assert found['a']['p_value'] == pytest.approx(student.cdf(-0.01 / np.std([-0.01, 0.02, -0.04], ddof=1), 7))
    # of the resamples that have objects alone
    assert found['b']['p_value'] == pytest.approx(student.cdf(0.1 / np.std([0.1, 0.2], ddof=1), 3.5))


def test_degrees_of_freedom_count_images_by_their_objects(tmp_path):
    # five images with 1, 1, 1, 1 and 4 small objects, two of them with one large object as well
    small = [truth_of(number, image, 10) for number, image in enumerate([0, 1, 2, 3, 4, 4, 4, 4])]
    large = [truth_of(10 + image, image, 200) for image in (0, 1)]
    truth = GroundTruth(write(tmp_path / 'a.json', small + large), range(5))
    freedom = ResampledPrecision(truth, 100, 0).of(np.zeros((0, 8))).freedom
    assert freedom['AP_S'] == pytest.approx(8**2 / 20 - 1)
    assert freedom['AP'] == pytest.approx(10**2 / (2 * 4 + 2 * 1 + 16) - 1)
    assert freedom['AP_L'] == 1 and freedom['AP_M'] == 1  # two images; none
    assert ResampledPrecision(truth, 3, 0).of(np.zeros((0, 8))).freedom['AP_S'] == 2  # of three resamples
    grouped = ResampledPrecision(truth, 100, 0, groups=[0, 0, 0, 0, 1]).of(np.zeros((0, 8))).freedom
    assert grouped['AP_S'] == pytest.approx(max(1.0, 8**2 / 32 - 1))


def truth_of(number, image, side):
    box = [0, 0, side, side]
    return dict(id=number, image_id=image, category_id=0, bbox=box, area=side * side, iscrowd=0)


def test_what_no_resample_changes():
    natural = samples([0.5, 0.5], [[0.5, 0.6], [0.5, 0.6]])
    found = difference([natural], natural)
    assert found['a'] == {'difference': 0.0, 'interval': [0.0, 0.0], 'p_value': 1.0}
    one = samples([0.5, 0.5], [[0.5], [0.5]])
    assert difference([one], one)['a'] is None
    worse = samples([0.4, 0.4], [[0.4, 0.5], [0.4, 0.5]])  # the same loss in every resample: of a single image
    assert difference([worse], natural)['a'] is None


def test_the_standard_error_is_that_of_new_images(tmp_path):
    """Two detectors on many sets of images: differences vary from set to set as the resamples of one set say."""
    changes, errors = [], []
    for seed in range(40):
        annotations, detections = scene(seed)
        truth = GroundTruth(write(tmp_path / 'a.json', annotations), range(IMAGES))
        rng = np.random.default_rng(seed)
        worse = detections.copy()
        worse[:, 5] *= rng.uniform(0.3, 1, len(worse))
        measure = ResampledPrecision(truth, 60, 0)
        found = difference([measure.of(worse)], measure.of(detections))['AP']
        changes.append(found['difference'])
        quantile = student.ppf(0.975, measure.of(detections).freedom['AP'])
        errors.append((found['interval'][1] - found['interval'][0]) / 2 / quantile)
    assert np.mean(errors) == pytest.approx(np.std(changes, ddof=1), rel=0.35)
