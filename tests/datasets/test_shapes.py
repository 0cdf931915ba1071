"""The synthetic data set: what its annotations promise, checked by pycocotools, and how it is made and kept."""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import decode
from scipy.stats import chi2_contingency, kstest

from moe_det.datasets.shapes import DEFAULT_SCENE_SCALE, ShapesSettings, make_image, make_shapes, matches
from moe_det.datasets.shapes_geometry import make_stamp
from moe_det.datasets.shapes_scene import CLASSES, MAX_SIZE_SHARE, MIN_SIZE_PX, SIZE_TILT, class_names, draw_scene
from moe_det.errors import DataError, MoEConfigError

SETTINGS = ShapesSettings(train=120, val=12, size=128, seed=3)
SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'misc' / 'make_shapes.py'


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('shapes') / 'data'
    assert make_shapes(folder, SETTINGS)
    return folder


@pytest.fixture(scope='module')
def coco(shapes) -> COCO:
    return COCO(shapes / 'annotations' / 'instances_train2017.json')


@pytest.fixture(scope='module')
def full_size() -> list[dict]:
    """Annotations of 90 images of the default size and scene scale."""
    return [a for i in range(90) for a in make_image(ShapesSettings(seed=2), 'train', i)[1]]


def _scenes(scene_scale: float, count: int = 1500, size: int = 256):
    return [draw_scene(np.random.default_rng([11, i]), size, scene_scale) for i in range(count)]


def _intraclass_correlation(groups: list[np.ndarray]) -> float:
    """ICC(1) of a one-way analysis of variance with unequal groups (Shrout and Fleiss 1979)."""
    groups = [g for g in groups if len(g)]
    counts = np.array([len(g) for g in groups])
    values = np.concatenate(groups)
    between = sum(len(g) * (g.mean() - values.mean()) ** 2 for g in groups) / (len(groups) - 1)
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (len(values) - len(groups))
    mean_count = (len(values) - (counts**2).sum() / len(values)) / (len(groups) - 1)
    return (between - within) / (between + (mean_count - 1) * within)


def test_area_and_box_are_those_of_the_visible_mask(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert annotation['area'] == mask.sum() > 0
        assert annotation['bbox'] == box


def test_masks_of_one_image_do_not_overlap(coco):
    for image_id in coco.getImgIds():
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        if annotations:
            assert np.sum([coco.annToMask(a) for a in annotations], axis=0).max() == 1


def test_ids_are_unique_over_both_splits(shapes):
    contents = [json.loads(file.read_text()) for file in sorted((shapes / 'annotations').iterdir())]
    for key, count in (('images', 132), ('annotations', None)):
        ids = [entry['id'] for content in contents for entry in content[key]]
        assert len(set(ids)) == len(ids) and (count is None or len(ids) == count)
    assert [c['name'] for c in contents[0]['categories']] == list(CLASSES)


def test_image_files_have_the_size_that_the_json_says(shapes, coco):
    for image in coco.imgs.values():
        with Image.open(shapes / 'train2017' / image['file_name']) as file:
            assert file.size == (image['width'], image['height']) == (128, 128)
            assert np.asarray(file).std() > 3  # textured, also where it is empty


def test_there_are_crowds_and_empty_images(coco):
    assert any(a['iscrowd'] for a in coco.anns.values())
    assert any(not coco.getAnnIds(image_id) for image_id in coco.getImgIds())


@pytest.mark.parametrize('scene_scale', [0.0, DEFAULT_SCENE_SCALE, 1.0])
def test_drawn_sizes_have_one_distribution_whatever_the_scene_scale(scene_scale):
    sizes = np.concatenate([s.sizes for s in _scenes(scene_scale)])
    uniform = np.log(sizes / MIN_SIZE_PX) / np.log(MAX_SIZE_SHARE * 256 / MIN_SIZE_PX)
    assert kstest(uniform ** (1 / SIZE_TILT), 'uniform').statistic < 0.06


def test_visible_sizes_are_nearly_log_uniform_and_well_populated(full_size):
    areas = np.array([a['area'] for a in full_size if not a['iscrowd']])
    uniform = np.log(np.sqrt(areas) / MIN_SIZE_PX) / np.log(MAX_SIZE_SHARE * 256 / MIN_SIZE_PX)
    assert kstest(uniform, 'uniform').statistic < 0.15
    for share in ((areas <= 32**2).mean(), ((areas > 32**2) & (areas <= 96**2)).mean(), (areas > 96**2).mean()):
        assert share > 0.15
    assert areas.min() >= 20


def test_annotated_sizes_in_an_image_agree_as_in_photographs(full_size):
    groups = {}
    for annotation in full_size:
        if not annotation['iscrowd']:
            groups.setdefault(annotation['image_id'], []).append(np.log(annotation['area']) / 2)
    assert 0.22 < _intraclass_correlation([np.array(g) for g in groups.values()]) < 0.48


@pytest.mark.parametrize('kind', CLASSES)
@pytest.mark.parametrize('size', [8.0, 25.0, 120.0])
def test_all_classes_have_the_area_asked_for(kind, size):
    areas = [make_stamp(np.random.default_rng(i), kind, size).mask.sum() for i in range(20)]
    assert np.mean(areas) == pytest.approx(size**2, rel=0.03)


def test_sizes_in_an_image_agree_more_with_a_larger_scene_scale():
    correlations = [_intraclass_correlation([np.log(s.sizes) for s in _scenes(x)]) for x in (0.0, 0.4, 1.0)]
    assert abs(correlations[0]) < 0.05
    # the interval measured on COCO, see the docstring of moe_det.datasets.shapes
    assert 0.30 < correlations[1] < 0.40
    assert correlations[2] > 0.9


def test_near_scenes_hold_fewer_objects_than_far_ones():
    scenes = [s for s in _scenes(1.0) if len(s.sizes)]
    near = [len(s.sizes) for s in scenes if s.sizes.mean() > 96]
    far = [len(s.sizes) for s in scenes if s.sizes.mean() < 16]
    assert np.mean(far) > 3 * np.mean(near)


def test_far_scenes_have_the_smaller_and_near_scenes_the_larger_half_of_the_objects():
    middle = MIN_SIZE_PX * (MAX_SIZE_SHARE * 256 / MIN_SIZE_PX) ** (0.5**SIZE_TILT)  # of scene and object at their mean
    sizes = {
        scenes: np.concatenate([draw_scene(np.random.default_rng(i), 256, 1.0, 1, scenes).sizes for i in range(400)])
        for scenes in ('all', 'far', 'near')
    }
    assert 0.4 < (sizes['all'] < middle).mean() < 0.6
    assert (sizes['far'] < middle).mean() > 0.9 and (sizes['near'] > middle).mean() > 0.9
    assert 'scenes' not in ShapesSettings().record() and ShapesSettings(scenes='far').record()['scenes'] == 'far'
    with pytest.raises(MoEConfigError, match="scenes='middle': expected one of all, far, near"):
        ShapesSettings(scenes='middle')


def test_classes_say_nothing_about_size():
    scenes = _scenes(DEFAULT_SCENE_SCALE)
    classes = np.concatenate([s.classes for s in scenes])
    bins = np.digitize(np.concatenate([s.sizes for s in scenes]), [32, 96])
    table = np.zeros((len(CLASSES), 3))
    np.add.at(table, (classes, bins), 1)
    assert table.min() > 100
    assert chi2_contingency(table).pvalue > 1e-3


def test_without_kinds_of_scenes_nothing_has_changed(shapes):
    info = json.loads((shapes / 'annotations' / 'instances_val2017.json').read_text())['info']
    assert 'scene_kinds' not in info  # data sets that were made before there were kinds are still recognised
    assert class_names(1) == CLASSES


@pytest.fixture(scope='module')
def kinds() -> list[tuple[np.ndarray, list[dict]]]:
    """Pixels and annotations of images of three kinds of scenes."""
    settings = ShapesSettings(size=128, seed=4, scene_kinds=3)
    made = [make_image(settings, 'train', i) for i in range(60)]
    return [(np.asarray(Image.open(io.BytesIO(content))), annotations) for content, annotations in made]


def test_an_image_shows_classes_of_one_kind_of_scene_alone(kinds):
    of_image = [{(a['category_id'] - 1) // 6 for a in annotations} for _, annotations in kinds]
    assert all(len(found) <= 1 for found in of_image)
    assert {kind for found in of_image for kind in found} == {0, 1, 2}
    assert class_names(3)[6:8] == ('circle_1', 'square_1')


def test_kinds_have_hues_between_each_other_and_a_tint(kinds):
    tints = {0: [], 1: [], 2: []}
    for pixels, found in kinds:
        background = np.ones(pixels.shape[:2], dtype=bool)
        for annotation in found:
            kind, shape = divmod(annotation['category_id'] - 1, 6)
            if annotation['iscrowd']:
                continue
            mask = decode(annotation['segmentation']).astype(bool)
            background &= ~mask
            if annotation['area'] < 300:
                continue
            hue = colorsys.rgb_to_hsv(*np.median(pixels[mask], axis=0) / 255)[0]
            away = (hue - shape / 6 - kind / 18 + 0.5) % 1 - 0.5
            assert abs(away) < 0.035  # the next hue is 1/18 away, and the light is noisy
        if found:
            tints[kind].append(np.median(pixels[background], axis=0) - np.median(pixels[background]))
    for kind, seen in tints.items():  # red, green, blue for kinds 0, 1, 2
        assert np.mean(seen, axis=0).argmax() == kind


def test_same_seed_same_files_for_any_number_of_workers(tmp_path):
    settings = ShapesSettings(train=5, val=3, size=64, seed=9)
    make_shapes(tmp_path / 'a', settings)
    make_shapes(tmp_path / 'b', settings, workers=2)
    make_shapes(tmp_path / 'c', ShapesSettings(train=5, val=3, size=64, seed=10))
    assert _hashes(tmp_path / 'a') == _hashes(tmp_path / 'b')
    ours, other = _hashes(tmp_path / 'a'), _hashes(tmp_path / 'c')
    assert all(ours[name] != other[name] for name in ours)


def test_first_images_do_not_depend_on_how_many_follow(tmp_path, shapes):
    make_shapes(tmp_path, ShapesSettings(train=6, val=0, size=128, seed=3))
    for file in (tmp_path / 'train2017').iterdir():
        assert file.read_bytes() == (shapes / 'train2017' / file.name).read_bytes()


def test_what_is_there_is_kept_and_what_is_unfinished_is_made_anew(tmp_path):
    settings = ShapesSettings(train=2, val=1, size=64)
    assert make_shapes(tmp_path, settings)
    before = _hashes(tmp_path)
    assert matches(tmp_path, settings)
    assert not make_shapes(tmp_path, settings)
    (tmp_path / 'train2017' / '000000000002.jpg').unlink()
    assert not matches(tmp_path, settings)
    assert make_shapes(tmp_path, settings)
    assert _hashes(tmp_path) == before
    (tmp_path / 'annotations' / 'instances_val2017.json').unlink()  # as an interrupted run leaves it
    assert not matches(tmp_path, settings)
    assert make_shapes(tmp_path, settings)
    assert _hashes(tmp_path) == before


def test_another_data_set_is_replaced_only_when_asked_for(tmp_path):
    make_shapes(tmp_path, ShapesSettings(train=2, val=1, size=64))
    other = ShapesSettings(train=1, val=1, size=64)
    with pytest.raises(DataError, match=r"'train': 2.*--overwrite"):
        make_shapes(tmp_path, other)
    assert make_shapes(tmp_path, other, overwrite=True)
    assert len(list((tmp_path / 'train2017').iterdir())) == 1


def test_foreign_files_are_never_touched(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(DataError, match='thesis.txt'):
        make_shapes(tmp_path, ShapesSettings(train=1, val=1, size=64), overwrite=True)
    annotations = tmp_path / 'real' / 'annotations'
    annotations.mkdir(parents=True)
    (annotations / 'instances_train2017.json').write_text('{"info": {"description": "COCO 2017 Dataset"}}')
    with pytest.raises(DataError, match='another data set'):
        make_shapes(tmp_path / 'real', ShapesSettings(train=1, val=1, size=64), overwrite=True)
    assert 'COCO 2017' in (annotations / 'instances_train2017.json').read_text()


@pytest.mark.parametrize(
    'name', ['train2017/000000000009.jpg', 'val2017/notes.txt', 'annotations/captions_train2017.json', 'test2017/1.jpg']
)
def test_files_that_only_look_like_ours_are_kept(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text('mine')
    with pytest.raises(DataError, match='holds other files'):
        make_shapes(tmp_path, ShapesSettings(train=1, val=1, size=64), overwrite=True)
    assert [path.read_text() for path in tmp_path.rglob('*') if path.is_file()] == ['mine']


def test_an_interrupted_run_leaves_an_unfinished_folder_that_a_rerun_completes(tmp_path):
    settings = ShapesSettings(train=4, val=2, size=64)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path, settings, progress=stop)
    assert (tmp_path / 'train2017' / '000000000003.jpg').is_file()
    assert not matches(tmp_path, settings)
    with pytest.raises(DataError, match='--overwrite'):
        make_shapes(tmp_path, ShapesSettings(train=4, val=2, size=96))
    assert make_shapes(tmp_path, settings)
    assert matches(tmp_path, settings)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('size', 63),
        ('train', -1),
        ('val', -1),
        ('scene_scale', 1.1),
        ('scene_scale', -0.1),
        ('seed', -1),
        ('scene_kinds', 0),
        ('scene_kinds', 9),
    ],
)
def test_settings_out_of_range_are_named(key, value):
    with pytest.raises(MoEConfigError, match=f'{key}={value}'):
        ShapesSettings(**{key: value})


def test_script_makes_keeps_and_refuses(tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))['main']
    arguments = [str(tmp_path / 'out'), '--train', '2', '--val', '1', '--size', '64', '--seed', '5']
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert 'already there' in capsys.readouterr().out
    assert main([*arguments[:-1], '6']) == 2
    assert '--overwrite' in capsys.readouterr().err
    assert main([str(tmp_path / 'new'), '--scene-scale', '2']) == 2
    assert 'scene_scale=2' in capsys.readouterr().err
    blocked = tmp_path / 'file'
    blocked.write_text('')
    assert main([str(blocked / 'below')]) == 2
    assert 'error' in capsys.readouterr().err
