"""size_specialization.py from the command line: a whole report, and what bad input gets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from running.detector_runs import free_port
from small_files import checkpoint, plant_varied
from small_models import spread_weights

from moe_det.datasets.shapes import ShapesSettings, make_shapes
from moe_det.running.launch import load_config

pytestmark = pytest.mark.usefixtures('in_tmp_path')  # runs write into the current folder
TOOLS = Path(__file__).resolve().parents[2] / 'tools'
TOOL = 'analysis_tools/size_specialization.py'
# the shapes' six classes, and every box kept, so that an untrained detector matches some objects
SHAPES = """
_base_ = './tiny_retinanet.py'
classes = dict(classes=('circle', 'square', 'triangle', 'star', 'ring', 'cross'))
custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)
model = dict(
    bbox_head=dict(type='MoERetinaHead', num_classes=6, moe=dict(num_experts=3, top_k=2, constraint=dict(
        type='KLConstraint', weight=0.25))),
    test_cfg=dict(nms_pre=1000, max_per_img=100, nms=dict(type='nms', iou_threshold=0.9)))
test_dataloader = dict(batch_size=4, dataset=dict(metainfo=classes, ann_file='annotations/instances_val2017.json',
                                                  data_prefix=dict(img='val2017/')))
test_evaluator = dict(ann_file='data/tiny/annotations/instances_val2017.json')
"""


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('shapes') / 'data'
    make_shapes(folder, ShapesSettings(train=1, val=24, size=128, seed=3))
    for path in (folder / 'annotations').iterdir():
        content = json.loads(path.read_text())
        for annotation in content['annotations']:
            annotation['category_id'] = 1
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def shapes_config(tiny_config) -> Path:
    path = tiny_config.with_name('shapes.py')
    path.write_text(SHAPES)
    return path


def plant(model) -> None:
    spread_weights(model.bbox_head.branch_experts)
    for expert in model.bbox_head.branch_experts['reg'].experts:  # boxes are the anchors, so that some match objects
        torch.nn.init.zeros_(expert.predictor.weight)
        torch.nn.init.zeros_(expert.predictor.bias)
    for expert in model.bbox_head.branch_experts['cls'].experts:
        expert.predictor.bias.view(9, 6)[:, 0] += 9  # every object of the test's data is of the first class
    plant_varied(model)


@pytest.fixture
def analyse(tool, capsys, shapes, shapes_config, tmp_path, monkeypatch):
    """Runs the tool on a planted checkpoint: ``analyse(options...)`` -> status, stdout, stderr, results or None."""

    def run(*options: str, seeds=(0,), data=shapes, make=plant, figures=False):
        if not figures:  # they take longer than everything else together
            monkeypatch.setattr('moe_det.studies.size_specialization.write_figures', lambda *args: {})
        weights = [str(checkpoint(shapes_config, tmp_path / f'{seed}.pth', make, seed)) for seed in seeds]
        capsys.readouterr()
        common = ['--data-root', str(data), '--device', 'cpu', '--out-dir', 'report', '--area-ranges', '16', '48']
        few = ['--permutations', '200', '--bootstrap', '100', '--swaps', '2', '--resamples', '50']
        status = tool(TOOL).main([str(shapes_config), *weights, *common, *few, *options])
        path = Path('report/size_specialization.json')
        found = json.loads(path.read_text()) if path.is_file() else None
        return status, *capsys.readouterr(), found

    return run


def test_a_whole_report(analyse, shapes_config, shapes, tmp_path):
    status, out, _, results = analyse(figures=True)
    assert status == 0
    assert 'report/report.html' in out and 'bbox_head.cls' in out
    assert {path.suffix for path in Path('report/figures').iterdir()} == {'.png', '.svg'}
    objects = [a for a in json.loads((shapes / 'annotations/instances_val2017.json').read_text())['annotations']
               if not a['iscrowd']]  # fmt: skip
    areas = np.array([a['area'] for a in objects])
    assert [size['objects'] for size in results['sizes']] == [
        int((areas <= 256).sum()), int(((areas > 256) & (areas <= 2304)).sum()), int((areas > 2304).sum())
    ]  # fmt: skip
    for layer in results['layers']:
        keys = ('mi_bits', 'mi_given_level_bits', 'mi_given_level_ci', 'p_value', 'cramers_v_given_level', 'verdict')
        assert all(key in layer for key in keys)
        table = np.array(layer['expert_by_size'])
        assert layer['main_unit'] == 'detection'
        assert table.shape == (3, 3) and table.sum() == layer['n_objects'] > 5
        assert table.sum(0).tolist() == [size['matched'] for size in results['sizes']]
        within = np.array(layer['expert_by_size_by_level'])
        assert within.shape == (5, 3, 3)
        np.testing.assert_allclose(within.sum(0), table)
        np.testing.assert_allclose(within.sum(2).T, layer['expert_by_level'])
        # the training unit counts every object that has an anchor, found or not; small ones may share their best anchor
        training = layer['units']['training']
        assert 0.8 * len(objects) < training['n_objects'] <= len(objects)
        np.testing.assert_allclose(np.sum(training['expert_by_size']), training['n_objects'])
        assert len(layer['forced']) == len(layer['knocked_out']) == 3
        assert all(layer[key] for key in ('plain', 'sentence', 'verdict'))
        size, gates, swap = layer['relative_size'], layer['random_gates'], layer['swap']
        assert np.sum(size['expert_by_size']) == layer['n_objects']
        assert size['mi_bits'] <= size['ceiling_bits'] <= np.log2(3) + 1e-9
        assert gates['count'] == 200 and gates['values'] == sorted(gates['values']) and 0 <= gates['quantile'] <= 1
        assert (swap['draws'], swap['images'] + swap['images_left']) == (2, 24) and swap['images'] >= 20
        for name in ('AP', 'AP_S', 'AP_M', 'AP_L', 'AP_lower', 'AP_middle', 'AP_upper'):
            change = swap[name]
            assert change is None or change['interval'][0] <= change['difference'] <= change['interval'][1]
        assert swap['AP'] is not None
        assert len(layer['routes']['fixed']['experts']) == 2
        assert layer['routes']['best_per_image']['candidates'] == 4  # three pairs of experts and the gate's own
        assert layer['routes']['between_levels']['AP'] is not None
        assert layer['utilisation']['rows'] == 24 * 5
        for favourite in layer['favourites']:
            for entry in favourite['objects'] + favourite['images']:
                assert (Path('report') / entry['picture']).is_file()
    assert [row['k'] for row in results['ap']['top_k']] == [1, 2, 3]
    assert results['format'] == 2 and results['swap']['draws'] == 2
    assert [row['level'] for row in results['relative_sizes']['limits']] == sorted(
        {row['level'] for row in results['relative_sizes']['limits']}
    )
    # the natural AP is the one of a plain test
    cfg = load_config(str(shapes_config), None, str(shapes), None, 'plain')
    cfg.load_from = str(tmp_path / '0.pth')
    metrics = Runner.from_cfg(cfg).test()
    assert results['ap']['natural']['AP'] == pytest.approx(metrics['coco/bbox_mAP'], abs=6e-4)
    assert results['ap']['natural']['AP50'] == pytest.approx(metrics['coco/bbox_mAP_50'], abs=6e-4)
    assert results['ap']['natural']['AP50'] > 0


def test_a_report_on_shards(analyse, shapes_config):
    shards = shapes_config.read_text().replace('num_experts=3, top_k=2', "placement='shards', shards=2, copies=3")
    shapes_config.write_text(shards)
    status, out, _, results = analyse()
    assert status == 0 and 'bbox_head.cls' in out
    assert results['ap']['top_k'] == []
    for layer in results['layers']:
        assert (layer['slots'], layer['num_experts'], layer['top_k']) == (2, 6, 2)
        for unit in (layer, layer['units']['detection'], layer['units']['training']):
            of_shards = np.reshape(unit['expert_by_size'], (2, 3, 3)).sum(1)  # every shard has half of every object
            np.testing.assert_allclose(of_shards[0], of_shards[1])
            np.testing.assert_allclose(of_shards.sum(), unit['n_objects'])
        usage = layer['utilisation']
        assert np.reshape(usage['importance_share'], (2, 3)).sum(1) == pytest.approx([0.5, 0.5])
        assert np.reshape(usage['load_ratio'], (2, 3)).sum(1) == pytest.approx([3, 3])
        assert 0 <= usage['row_entropy'] <= usage['batch_entropy'] <= np.log2(3) + 1e-9
        for kind in ('forced', 'knocked_out'):
            assert [row['expert'] for row in layer[kind]] == [*range(6)]
        first, second = layer['routes']['fixed']['experts']
        assert first < 3 <= second < 6 and layer['routes']['best_per_image']['candidates'] == 10
        assert layer['swap']['AP'] is not None and layer['random_gates']['count'] == 200
        assert {entry['weight'] for favourite in layer['favourites'] for entry in favourite['objects']} <= {1}
        assert all(sum(weights) == 2 for example in results['examples'] for of_layer in example['layers']
                   for level in of_layer['levels'] for weights in level['weights'])  # fmt: skip
    page = Path('report/report.html').read_text()
    assert 'shard 1, copy 2' in page and '2 shards of 3 copies' in page
    assert not re.search(r'expert \d', page)


def test_two_processes_say_what_one_says(analyse, shapes_config, shapes, tmp_path):
    single = ['--cfg-options', 'test_dataloader.batch_size=1']  # three parts of eight images
    _, _, _, alone = analyse(*single)
    torchrun = [TOOLS / 'misc/torchrun.py', '--nproc_per_node=2', f'--master_port={free_port()}']
    command = [sys.executable, *torchrun, TOOLS / TOOL]
    options = ['--data-root', shapes, '--out-dir', 'together', '--area-ranges', '16', '48', '--permutations', '200']
    options += ['--bootstrap', '100', '--swaps', '2', '--resamples', '50', '--no-figures']
    options += ['--launcher', 'pytorch', *single]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    weights = [shapes_config, tmp_path / '0.pth']
    done = subprocess.run(
        [*map(str, [*command, *weights, *options])], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('Report: ') == 1
    assert Path('together/report.html').is_file() and not Path('together/figures').exists()
    assert len(list(Path('together/findings').glob('*.npz'))) == 3
    assert len(list(Path('together/findings_of_swaps').glob('*.npz'))) == 3
    together = json.loads(Path('together/size_specialization.json').read_text())
    for results in (alone, together):
        for key in ('date', 'seconds', 'command'):
            del results['provenance'][key]
    assert together == alone


def test_launcher_without_torchrun_is_one_error(analyse, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    status, _, err, _ = analyse('--launcher', 'pytorch')
    assert status == 2 and 'RANK is not in the environment' in err and err.count('\n') == 1


def test_a_second_run_reads_the_findings_and_says_the_same(analyse, monkeypatch):
    _, _, _, first = analyse('--no-forcing')
    monkeypatch.setattr('moe_det.probing.probe.Probe.__call__', lambda *args: pytest.fail('probed again'))
    status, _, _, second = analyse('--no-forcing')
    assert status == 0
    for results in (first, second):
        for key in ('date', 'seconds', 'command'):
            del results['provenance'][key]
    assert first == second


def test_seeds_are_compared(analyse):
    status, out, _, results = analyse('--no-forcing', seeds=(0, 1, 2))
    assert status == 0 and 'checkpoint 3 of 3' in out
    assert [c['checkpoint'].rpartition('/')[2] for c in results['seeds']['checkpoints']] == ['0.pth', '1.pth', '2.pth']
    for layer in results['seeds']['layers'].values():
        assert layer['of'] == 3 and layer['verdict'] == 'not established'
        assert all(sorted(order) == [0, 1, 2] for order in layer['alignment'])
    assert (Path('report/seed_2/report.html')).is_file() and Path('report/seed_3/size_specialization.json').is_file()
    assert all(layer['forced'] == [] for layer in results['layers'])
    assert all((layer['routes'] or {}).get('fixed') is None for layer in results['layers'])


def test_equal_weights_are_not_several_seeds(analyse, tmp_path, monkeypatch):
    import moe_det.studies.size_specialization as engine

    monkeypatch.setattr(engine, 'analyse_checkpoint', lambda *args: pytest.fail('analysed'))
    status, _, err, results = analyse(seeds=(0, 0))
    assert status == 2 and results is None
    assert 'are the same weights' in err and err.count('\n') == 1


def test_without_the_swap_test(analyse):
    status, out, _, results = analyse('--swaps', '0', '--no-forcing')
    assert status == 0 and results['swap'] is None
    for layer in results['layers']:
        assert layer['swap'] is None and layer['swap_reason'] == 'it was not run' and layer['routes'] is None
        assert layer['verdict'] != 'size-specialised'


def test_ids_of_any_kind_say_the_same(analyse, shapes, tmp_path):
    few = ('--swaps', '0', '--no-forcing')
    _, _, _, plain = analyse(*few)

    def rename(content):
        for image in content['images']:
            image['id'] += 2**60
        for number, annotation in enumerate(content['annotations']):  # 0 among them
            annotation |= {'image_id': annotation['image_id'] + 2**60, 'id': number}

    status, _, _, renamed = analyse(*few, data=edited(shapes, tmp_path / 'renamed', rename))
    assert status == 0 and renamed['ap'] == plain['ap']
    assert renamed['provenance']['matched'] == plain['provenance']['matched']
    for first, second in zip(plain['layers'], renamed['layers'], strict=True):
        assert {k: v for k, v in first.items() if k != 'favourites'} == {
            k: v for k, v in second.items() if k != 'favourites'
        }
        shown = [entry['image_id'] for favourite in second['favourites'] for entry in favourite['objects']]
        assert shown and min(shown) > 2**60


def test_groups_of_images(analyse, shapes, tmp_path):
    def add_videos(content):
        for number, image in enumerate(content['images']):
            image['video'] = f'clip {number // 2}'

    data = edited(shapes, tmp_path / 'videos', add_videos)
    status, _, _, results = analyse('--groups', 'video', '--no-forcing', data=data)
    assert status == 0 and results['provenance']['groups'] == 12
    status, _, err, _ = analyse('--groups', 'film', data=data)
    assert status == 2 and '--groups film' in err and 'its keys are' in err and 'video' in err


def test_few_images_give_no_p_value(analyse):
    status, out, _, results = analyse('--limit', '4')
    assert status == 0
    for layer in results['layers']:
        assert layer['p_value'] is None and layer['verdict'] == 'undetermined'
        assert layer['p_value_reason'] and layer['mi_given_level_ci'] is None
    assert 'no p-value' in out


def edited(shapes: Path, target: Path, change) -> Path:
    """The data set with other annotations; images are linked."""
    (target / 'annotations').mkdir(parents=True)
    for folder in ('train2017', 'val2017'):
        (target / folder).symlink_to(shapes / folder)
    for split in ('train', 'val'):
        name = f'annotations/instances_{split}2017.json'
        content = json.loads((shapes / name).read_text())
        change(content)
        (target / name).write_text(json.dumps(content))
    return target


def without_area(content):
    for annotation in content['annotations']:
        del annotation['area']


def without_annotations(content):
    content['annotations'] = []


def without_small(content):
    content['annotations'] = [a for a in content['annotations'] if a['area'] > 256]


@pytest.mark.parametrize(
    'change, words',
    [
        (without_area, "'area'"),
        (without_annotations, 'annot'),
        (without_small, 'is small (area 0 to 256 square pixels)'),
    ],
)
def test_annotations_that_do_not_do(analyse, shapes, tmp_path, change, words):
    status, _, err, results = analyse(data=edited(shapes, tmp_path / 'edited', change))
    assert status == 2 and results is None
    assert words in err and 'Traceback' not in err


def test_a_config_or_checkpoint_without_experts(tool, capsys, tiny_config, shapes_config, shapes, tmp_path):
    dense = checkpoint(tiny_config, tmp_path / 'dense.pth')
    for config, words in ((tiny_config, 'no MoE layer'), (shapes_config, 'has no MoE layer')):
        assert tool(TOOL).main([str(config), str(dense), '--data-root', str(shapes), '--device', 'cpu']) == 2
        err = capsys.readouterr().err
        assert words in err and 'Traceback' not in err


def test_an_out_dir_that_cannot_be_written_and_an_unknown_layer(analyse, tmp_path):
    (tmp_path / 'file').write_text('')
    status, _, err, _ = analyse('--out-dir', 'file')
    assert status == 2 and '--out-dir file cannot be written' in err
    status, _, err, _ = analyse('--layers', 'bbox_head.clss')
    assert status == 2 and 'bbox_head.cls, bbox_head.reg' in err


def test_ctrl_c_keeps_what_is_finished(analyse, monkeypatch):
    from moe_det.probing.probe import Probe

    monkeypatch.setattr('moe_det.probing.run.BATCHES_PER_PART', 1)
    call, calls = Probe.__call__, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return call(self, *args)

    monkeypatch.setattr(Probe, '__call__', interrupted)
    status, _, err, results = analyse('--no-forcing')
    assert status == 130 and results is None and 'Traceback' not in err
    status, _, _, results = analyse('--no-forcing')
    assert status == 0 and results is not None
    assert len(calls) == 4 + 3 + 6  # 6 batches, of which three were kept; then the other routes
