"""A RetinaNet whose plain gates learn from a trained attentive run, through the functions behind tools/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner, load_checkpoint
from small_models import build

from moe_det.datasets.shapes import ShapesSettings, make_shapes
from moe_det.errors import CheckpointError
from moe_det.running import launch

SHAPES = Path(__file__).resolve().parents[2] / 'configs' / 'shapes'
TINY = {
    'model.backbone.base_channels': 4,
    'model.neck.in_channels': [4, 8, 16, 32],
    'model.neck.out_channels': 8,
    'model.bbox_head.in_channels': 8,
    'model.bbox_head.feat_channels': 8,
    'model.bbox_head.stacked_convs': 1,
    'model.bbox_head.norm_cfg.num_groups': 2,
    'train_cfg.max_epochs': 1,
    'train_cfg.val_interval': 1,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.end': 1,
    'model.test_cfg.score_thr': 0.0,
    'log_level': 'ERROR',
} | {
    f'{split}_dataloader.{key}': value
    for split in ('train', 'val', 'test')
    for key, value in (('batch_size', 2), ('num_workers', 0), ('persistent_workers', False))
}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('shapes') / 'data'
    make_shapes(folder, ShapesSettings(train=4, val=2, size=64))
    return folder


@pytest.fixture(scope='module', autouse=True)
def quick_runner() -> Iterator[None]:
    """Leaves out the report on the machine, which takes longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '_log_env', lambda *_: None)
        patch.setattr(Runner, 'dump_config', lambda _: None)
        yield


def run(config: str, shapes: Path, work_dir: Path, **options) -> Path:
    """Trains two iterations and evaluates; returns the checkpoint."""
    launch.train(
        str(SHAPES / f'retinanet_{config}.py'),
        work_dir=str(work_dir),
        data_root=str(shapes),
        seed=0,
        cfg_options={**TINY, **options},
        data_check=False,
    )
    return work_dir / 'epoch_1.pth'


def model_of(config: str, **options) -> torch.nn.Module:
    return build(launch.load_config(SHAPES / f'retinanet_{config}.py', {**TINY, **options}).model)


@pytest.fixture(scope='module')
def attentive(shapes, tmp_path_factory) -> Path:
    return run('moe_attentive', shapes, tmp_path_factory.mktemp('attentive'))


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, map_location='cpu', weights_only=True)['state_dict']


def test_plain_gates_are_fitted_and_everything_else_stays(shapes, attentive, tmp_path):
    distilled = run('moe_distilled', shapes, tmp_path, load_from=str(attentive))
    before, after = weights(attentive), weights(distilled)
    gate = 'bbox_head.routers.{}.gate.'
    students = {f'{gate.format(branch)}student.fc.{part}' for branch in ('cls', 'reg') for part in ('weight', 'bias')}
    teachers = {key for key in after if '.gate.teacher.' in key}
    assert teachers and set(after) == set(before) - {key for key in before if '.gate.' in key} | students | teachers
    # frozen statistics of norms included
    for key in set(after) - students:
        assert torch.equal(after[key], before[key.replace('.gate.teacher.', '.gate.')]), key
    assert all(after[key].abs().max() > 0 for key in students)
    (log,) = tmp_path.rglob('scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (precision,) = [line['coco/bbox_mAP'] for line in lines if 'coco/bbox_mAP' in line]
    assert 0 <= precision <= 1
    # the config of the plain gate takes the checkpoint
    load_checkpoint(model_of('moe_soft', **{'model.bbox_head.moe.noise': False}), str(distilled), 'cpu', strict=True)


def test_a_missing_source_names_the_key(shapes, tmp_path):
    with pytest.raises(CheckpointError, match=r'load_from: work_dirs/retinanet_moe_attentive/epoch_4\.pth does not'):
        run('moe_distilled', shapes, tmp_path)
