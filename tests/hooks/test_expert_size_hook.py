"""ExpertSizeHook: objects find their rows, tables and scalars are theirs, processes add up."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from small_files import coco_content
from small_models import batch, detector, log_lines, predictions_of
from small_runs import hooks_of, make_runner, scalars_of

from moe_det.errors import DataError, MoEConfigError
from moe_det.hooks.expert_size_hook import ExpertSizeHook
from moe_det.hooks.moe_hook import MoEHook
from moe_det.hooks.objects_by_size import ImageObjects, pyramid_of, read_objects, size_gap, weights_of_objects
from moe_det.routing import RoutingRecorder, find_routers
from moe_det.routing.records import RoutingRecord

# images 0 to 3 of 64 x 64 pixels; anchors from 4 strides: levels 0 to 4 fit sides 32, 64, 128, 256 and 512
# (image, side, level): levels end at sides 45.3, 90.5, 181 and 362, sizes at 32 and 96
OBJECTS = [(0, 8, 0), (0, 32, 0), (0, 45, 0), (1, 46, 1), (1, 90, 1), (1, 96, 2), (2, 97, 2), (2, 200, 3), (2, 800, 4)]
FOUR = dict(num_experts=4, top_k=2)
# logits here lie up to 80 apart: their rounding, which depends on the size of the batch, is large in weights near 0
SAME = dict(rtol=1e-5, atol=1e-6)


def write_coco(path: Path) -> str:
    """Annotations whose areas are given; boxes are small and say nothing about them. One more is a crowd."""
    objects = [(image, 1, [4, 4, 2, 2], side**2) for image, side, _ in OBJECTS]
    content = coco_content(objects, range(4), {1: 'thing'}, (64, 64))
    content['annotations'].append(dict(id=99, image_id=0, category_id=1, bbox=[0, 0, 60, 60], area=3600, iscrowd=1))
    path.write_text(json.dumps(content))
    return str(path)


def spread_gates(model: torch.nn.Module) -> torch.nn.Module:
    """Makes routing differ between images and levels."""
    with torch.no_grad():
        for i, router in enumerate(find_routers(model).values()):
            weight = router.gate.fc.weight
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) * 20)
    return model


def expected_mass(model: torch.nn.Module, layer: str, level_of=lambda level: level) -> np.ndarray:
    """The naive table: every object adds its row's weights to its size's column."""
    with RoutingRecorder(model) as recorder:
        recorder.start_batch(range(4))
        predictions_of(model, batch([(64, 64)] * 4))
    (record,) = [record for record in recorder.records if record.layer == layer]
    mass = np.zeros((4, 3))
    for image, side, level in OBJECTS:
        size = 0 if side <= 32 else 1 if side <= 96 else 2
        for row in range(len(record.weights)):
            if record.image_ids[row] == image and record.levels[row] == level_of(level):
                mass[:, size] += record.weights[row].numpy()
    return mass


@pytest.fixture
def both_hooks(tmp_path):
    model = spread_gates(detector(FOUR, backbone=dict(type='MoEResNet', moe=dict(stages=(4,), **FOUR))))
    hooks = [dict(type='MoEHook'), dict(type='ExpertSizeHook', ann_file=write_coco(tmp_path / 'val.json'))]
    runner = make_runner(model, tmp_path / 'run', *hooks)
    with log_lines() as records:
        runner.val()
    return runner, tmp_path, [record.getMessage() for record in records]


def test_every_object_adds_the_weights_of_its_row(both_hooks):
    runner, _, _ = both_hooks
    hook = hooks_of(runner, ExpertSizeHook)
    assert hook.counts.tolist() == [2, 4, 3]  # 32 and 96 belong to the smaller size, the crowd to none
    assert set(hook.mass) == {'backbone.layer4', 'bbox_head.cls', 'bbox_head.reg'}
    for layer in ('bbox_head.cls', 'bbox_head.reg'):
        expected = expected_mass(runner.model, layer)
        assert len({tuple(column) for column in expected.T.round(3).tolist()}) == 3  # sizes do differ
        np.testing.assert_allclose(hook.mass[layer], expected, **SAME)
        assert hook.levels[layer].tolist() == [[2, 1, 0], [0, 2, 0], [0, 1, 1], [0, 0, 1], [0, 0, 1]]
    one_level = expected_mass(runner.model, 'backbone.layer4', lambda level: 0)
    np.testing.assert_allclose(hook.mass['backbone.layer4'], one_level, **SAME)
    assert 'backbone.layer4' not in hook.levels


def test_table_and_scalars_are_logged_with_the_warning_about_levels(both_hooks):
    runner, folder, lines = both_hooks
    hook = hooks_of(runner, ExpertSizeHook)
    (table,) = [line for line in lines if line.startswith('Experts by object size')]
    rows = table.splitlines()
    assert 'small (2)' in table and 'medium (4)' in table and 'large (3)' in table and 'all (9)' in table
    start = rows.index('bbox_head.reg')
    for expert in range(4):
        shares = hook.mass['bbox_head.reg'] / hook.mass['bbox_head.reg'].sum(0)
        printed = rows[start + 1 + expert].split()
        assert printed[:2] == ['expert', str(expert)]
        assert printed[2:5] == [f'{share:.0%}' for share in shares[expert]]
    assert 'gate recognises its level' in rows[-1] and 'moe-det report' in rows[-1]
    assert 'specialised' not in table
    (line,) = [line for line in lines if line.startswith('Epoch(val) [0][2/2]')]
    for layer, mass in hook.mass.items():
        small, large = mass[:, 0] / mass[:, 0].sum(), mass[:, 2] / mass[:, 2].sum()
        gap = sum(abs(a - b) for a, b in zip(small, large, strict=True)) / 2
        assert f'moe_size_gap/{layer}: {gap:.4f}' in line
        values = [entry for entry in scalars_of(folder) if f'moe_size_share/{layer}/large/3' in entry]
        assert values[0][f'moe_size_share/{layer}/large/3'] == pytest.approx(large[3])


def test_every_shard_has_all_objects(tmp_path):
    kl = dict(type='KLConstraint', weight=0.25)
    shards = dict(placement='shards', shards=2, copies=2, constraint=kl, noise=False)
    hook = ExpertSizeHook(write_coco(tmp_path / 'val.json'))
    runner = make_runner(spread_gates(detector(shards)), tmp_path / 'run', hook)
    with log_lines() as records:
        runner.val()
    for layer in ('bbox_head.cls', 'bbox_head.reg'):
        np.testing.assert_allclose(hook.mass[layer], expected_mass(runner.model, layer), **SAME)
        assert hook.mass[layer].reshape(2, 2, 3).sum(1).tolist() == [[2, 4, 3]] * 2  # the objects of each size
        shares = hook.mass[layer] / hook.mass[layer].sum(0)
        gaps = np.abs(shares[:, 0] - shares[:, 2]).reshape(2, 2).sum(1)  # of a shard, whose shares sum to a half
        assert size_gap(hook.mass[layer]) == pytest.approx(gaps.mean())
    (text,) = [r.getMessage() for r in records if r.getMessage().startswith('Experts by object size')]
    assert [line.split('  ')[0].strip() for line in text.splitlines() if 'shard' in line] == [
        f'shard {shard}, copy {copy}' for _ in range(2) for shard in range(2) for copy in range(2)
    ]


def test_moe_hook_still_sees_every_row(both_hooks):
    runner, _, lines = both_hooks
    assert any(line.startswith('Expert utilisation') for line in lines)
    assert hooks_of(runner, MoEHook).utilisation['bbox_head.cls'].rows == 4 * 5
    assert all(not router.decided for router in find_routers(runner.model).values())


def test_processes_add_up_and_repeated_images_count_once(tmp_path, monkeypatch):
    hook = ExpertSizeHook(write_coco(tmp_path / 'val.json'))
    runner = make_runner(spread_gates(detector(FOUR)), tmp_path / 'run', hook)
    runner.val()
    alone, counts = {name: mass.copy() for name, mass in hook.mass.items()}, hook.counts.copy()

    mine: dict[int, dict] = {}

    def gather(found: dict) -> list[dict]:
        mine.update(found)
        # another process had an image like image 0, and one that this process had too; a third had none
        return [found, {10: found[0], 1: found[1]}, {}]

    monkeypatch.setattr('moe_det.hooks.expert_size_hook.all_gather_object', gather)
    runner.val()
    assert set(mine) == {0, 1, 2, 3}
    assert hook.counts.tolist() == (counts + [2, 1, 0]).tolist()
    for name, mass in alone.items():
        np.testing.assert_allclose(hook.mass[name], mass + mine[0]['layers'][name][0])
        assert mine[0]['layers'][name][0].sum() == pytest.approx(3)  # its three objects, whose weights sum to 1


def test_works_inside_a_data_parallel_wrapper(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = spread_gates(detector(FOUR))
        wrapped = MMDistributedDataParallel(model).eval()
        hook = ExpertSizeHook(write_coco(tmp_path / 'val.json'))
        scalars = {}
        runner = types.SimpleNamespace(
            model=wrapped,
            logger=MMLogger.get_current_instance(),
            message_hub=types.SimpleNamespace(update_scalar=scalars.__setitem__),
            visualizer=types.SimpleNamespace(add_scalars=lambda values, step: None),
            val_dataloader=types.SimpleNamespace(dataset=None),
            _train_loop=None,
        )
        hook.before_val_epoch(runner)
        data = batch([(64, 64)] * 4)
        hook.before_val_iter(runner, 0, data)
        with torch.no_grad():
            outputs = wrapped.val_step(data)
        hook.after_val_iter(runner, 0, data, outputs)
        hook.after_val_epoch(runner)
    finally:
        dist.destroy_process_group()
    np.testing.assert_allclose(hook.mass['bbox_head.cls'], expected_mass(model, 'bbox_head.cls'), rtol=1e-5)
    assert set(scalars) == {'val/moe_size_gap/bbox_head.cls', 'val/moe_size_gap/bbox_head.reg'}


def test_only_categories_of_the_data_set_count(tmp_path):
    hook = ExpertSizeHook(write_coco(tmp_path / 'val.json'))
    runner = make_runner(detector(FOUR), tmp_path / 'run', hook)
    runner.val_dataloader.dataset.metainfo = dict(classes=('something else',))
    with log_lines() as records:
        runner.val()
    assert hook.counts.sum() == 0 and hook.mass['bbox_head.cls'].sum() == 0
    assert any('no image of the validation has a ground truth' in record.getMessage() for record in records)
    runner.val_dataloader.dataset.metainfo = dict(classes=('thing',))
    runner.val()
    assert hook.counts.sum() == len(OBJECTS)


def record(levels: dict[int, tuple[int, int]], patches: list[int], unit: str = 'level') -> RoutingRecord:
    """Rows of the image at position 7 of a batch; each row's weights name the row."""
    rows = [(level, patch) for level, count in zip(levels, patches, strict=True) for patch in range(count)]
    weights = torch.stack([torch.arange(len(rows), dtype=torch.float), torch.zeros(len(rows))], dim=1)
    image_ids = torch.full((len(rows),), 7)
    at = torch.tensor(rows)
    return RoutingRecord('layer', weights, weights, image_ids, at[:, 0], at[:, 1], unit, levels)


def rows_of_objects(records, objects, strides=(8.0, 16.0), scale=4.0, **meta) -> list[int]:
    areas, centres = zip(*objects, strict=True)
    meta = dict(batch_input_shape=(64, 96), scale_factor=(1.0, 1.0)) | meta
    found = ImageObjects(np.array(areas, float), np.array(centres, float), ('',) * len(areas))
    return weights_of_objects(records, 7, meta, found, strides, scale)[0][:, 0].astype(int).tolist()


def test_levels_are_chosen_in_resized_pixels():
    both = [record({0: (8, 12), 1: (4, 6)}, [1, 1])]
    place = (10, 10)
    assert rows_of_objects(both, [(40**2, place), (50**2, place)]) == [0, 1]
    # twice as large in the network: sides 80 and 100, whose level is the second
    assert rows_of_objects(both, [(40**2, place), (22**2, place)], scale_factor=(2.0, 2.0)) == [1, 0]
    # one factor per axis: the geometric mean, 40 * sqrt(1 * 4) = 80
    assert rows_of_objects(both, [(40**2, place)], scale_factor=(1.0, 4.0)) == [1]
    # anchors from 2 strides fit sides 16 and 32
    assert rows_of_objects(both, [(22**2, place), (23**2, place)], scale=2.0) == [0, 1]
    # a layer with other levels than the head: strides of its maps, 64 / 8 and 64 / 4
    assert rows_of_objects(both, [(45**2, place), (46**2, place)], strides=(4.0, 8.0, 16.0)) == [0, 1]
    # a convolution that is called once per level
    calls = [record({0: (8, 12)}, [1]), record({1: (4, 6)}, [1])]
    calls[1].weights[:, 0] = 5
    assert rows_of_objects(calls, [(40**2, place), (50**2, place)]) == [0, 5]
    assert rows_of_objects([record({0: (8, 12), 1: (4, 6)}, [1, 0], 'image')], [(50**2, place)]) == [0]


def test_objects_belong_to_the_patch_that_holds_their_centre():
    patches = [record({0: (8, 12), 1: (4, 6)}, [9, 9], 'patch')]
    small = 20**2
    # 64 x 96 pixels; rows of the map are cut at 2 and 5 of 8 (16 and 40 px), columns at 4 and 8 of 12 (32 and 64 px)
    centres = [(31, 15), (33, 15), (65, 15), (31, 17), (33, 39), (33, 41), (95, 63), (200, 200)]
    assert rows_of_objects(patches, [(small, centre) for centre in centres]) == [0, 1, 2, 3, 4, 7, 8, 8]
    # the second level: rows cut at 1 and 2 of 4 (16 and 32 px), columns at 2 and 4 of 6
    assert rows_of_objects(patches, [(60**2, (33, 17)), (60**2, (33, 33))]) == [9 + 4, 9 + 7]
    # centres are in original pixels
    assert rows_of_objects(patches, [(5**2, (16.5, 7.5))], scale_factor=(2.0, 2.0)) == [1]


def test_pyramid_is_that_of_the_head():
    assert pyramid_of(detector()) == ([8.0, 16.0, 32.0, 64.0, 128.0], 4.0)
    generator = dict(type='AnchorGenerator', octave_base_scale=2, scales_per_octave=3, ratios=[1.0], strides=[8] * 5)
    assert pyramid_of(detector(bbox_head=dict(anchor_generator=generator))) == ([8.0] * 5, 2.0)
    assert pyramid_of(torch.nn.Conv2d(1, 1, 1)) == ([], 4.0)


@pytest.mark.parametrize(
    ('mass', 'gap'),
    [
        ([[1, 0, 0], [0, 0, 3]], 1.0),
        ([[2, 5, 1], [2, 0, 1]], 0.0),
        ([[3, 0, 1], [1, 0, 3]], 0.5),
        ([[0, 1, 1], [0, 1, 3]], None),
    ],
)
def test_gap_is_the_distance_between_the_experts_of_small_and_large(mass, gap):
    assert size_gap(np.array(mass, float)) == (gap if gap is None else pytest.approx(gap))


def test_annotations_that_cannot_be_used_end_the_run_before_it_starts(tmp_path):
    path = tmp_path / 'val.json'
    write_coco(path)
    content = json.loads(path.read_text())
    assert sum(len(found.areas) for found in read_objects(str(path)).values()) == len(OBJECTS)
    for change, message in [
        (dict(annotations=content['annotations'][-1:]), 'no annotated object'),
        (dict(annotations=[{k: v for k, v in content['annotations'][0].items() if k != 'area'}]), "'area' is None"),
        (dict(annotations=None), 'no annotated object'),
    ]:
        path.write_text(json.dumps({**content, **change}))
        runner = make_runner(detector(FOUR), tmp_path / message.split()[0], ExpertSizeHook(str(path)))
        with pytest.raises(DataError, match=message):
            runner.train()
        assert runner.iter == 0
    runner = make_runner(detector(FOUR), tmp_path / 'none', ExpertSizeHook())
    with pytest.raises(DataError, match='names a COCO annotation file'):
        runner.train()
    runner = make_runner(detector(), tmp_path / 'dense', ExpertSizeHook(write_coco(path)))
    with pytest.raises(MoEConfigError, match='builds no MoE layer'):
        runner.val()
    with pytest.raises(MoEConfigError, match='ann_file=3'):
        ExpertSizeHook(3)


def test_many_layers_share_one_scalar(tmp_path):
    model = spread_gates(
        detector(FOUR, backbone=dict(type='MoEResNet', moe=dict(stages=(2, 3, 4), **FOUR), frozen_stages=-1))
    )
    runner = make_runner(model, tmp_path / 'run', ExpertSizeHook(write_coco(tmp_path / 'val.json')))
    runner.val()
    hook = hooks_of(runner, ExpertSizeHook)
    gaps = [size_gap(mass) for mass in hook.mass.values()]
    assert len(gaps) == 5 and not any(math.isnan(gap) for gap in gaps)
    logged = {key: value for line in scalars_of(tmp_path) for key, value in line.items() if 'size_gap' in key}
    assert logged == {'moe_size_gap': pytest.approx(max(gaps))}
