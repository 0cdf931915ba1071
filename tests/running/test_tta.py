"""Test-time augmentation: views of the size that the config tests at, whatever tta_pipeline it inherits."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from moe_det.common.config_edit import split_datasets
from moe_det.running.launch import load_config
from moe_det.running.tta import enable_tta

CONFIGS = Path(__file__).parents[2] / 'configs'
ENTRIES = [path for folder in ('.', 'shapes', 'fine_tune') for path in sorted((CONFIGS / folder).glob('*.py'))]
RESIZE = [dict(type='Resize', scale=(64, 64))]


def tta_config(resize: list = RESIZE, **settings) -> Config:
    pipeline = [dict(type='LoadImageFromFile'), *resize, dict(type='PackDetInputs')]
    leaf = dict(type='CocoDataset', pipeline=pipeline)
    return Config(
        dict(
            model=dict(type='RetinaNet', test_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=7)),
            test_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=leaf)),
            **settings,
        )
    )


def pipeline_of(cfg: Config) -> list:
    (_, leaf), *_ = split_datasets(cfg, 'test')
    return leaf['pipeline']


def views(*sizes, pad: tuple | None = None) -> list:
    """A tta_pipeline with images of some sizes."""
    resize = [dict(type='Resize', scale=size, keep_ratio=True) for size in sizes]
    padding = [[dict(type='Pad', size=pad)]] if pad else []
    steps = [resize, [dict(type='RandomFlip', prob=1.0)], *padding, [dict(type='PackDetInputs')]]
    return [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=steps)]


def sizes_of(pipeline: list) -> list[tuple[int, int]]:
    return [step.scale for step in pipeline[-1].transforms[0] if step.type == 'Resize']


def test_without_a_pipeline_images_are_flipped_and_merged_as_the_model_does():
    cfg = tta_config()
    enable_tta(cfg)
    assert (cfg.model.type, cfg.model.module.type) == ('DetTTAModel', 'RetinaNet')
    assert cfg.model.tta_cfg == dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=7)
    *before, last = pipeline_of(cfg)
    assert [step.type for step in before] == ['LoadImageFromFile', 'Resize']
    flips, pack = last.transforms
    assert (last.type, [flip.prob for flip in flips]) == ('TestTimeAug', [1.0, 0.0])
    assert {'flip', 'flip_direction', 'ori_shape'} <= set(pack[0].meta_keys)


def test_a_pipeline_of_ones_own_is_kept(capsys):
    own = dict(tta_model=dict(type='Own', tta_cfg=dict(max_per_img=3)), tta_pipeline=[dict(type='OwnStep')])
    cfg = tta_config(**own)
    enable_tta(cfg)
    assert (cfg.model.type, cfg.model.tta_cfg.max_per_img) == ('Own', 3)
    assert [step.type for step in pipeline_of(cfg)] == ['OwnStep']
    cfg = tta_config(tta_pipeline=views((32, 32), (64, 64)))
    enable_tta(cfg)
    assert sizes_of(pipeline_of(cfg)) == [(32, 32), (64, 64)]
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('resize', 'fitted'),
    [
        ([dict(type='Resize', scale=(64, 64))], [(64, 64), (32, 32), (96, 96)]),
        ([dict(type='mmdet.Resize', scale=64)], [(64, 64), (32, 32), (96, 96)]),
        ([dict(type='Resize', scale=(640, 480))], [(640, 480), (320, 240), (960, 720)]),
        ([dict(type='Resize', scale=(480, 640))], [(480, 640), (240, 320), (720, 960)]),
        ([dict(type='Resize', scale=(800, 1333))], [(1333, 800), (666, 400), (2000, 1200)]),  # mmdet's own, turned
    ],
)
def test_sizes_of_another_config_are_scaled_to_the_test_pipelines(resize, fitted, capsys):
    cfg = tta_config(resize, tta_pipeline=views((1333, 800), (666, 400), (2000, 1200), pad=(2000, 2000)))
    enable_tta(cfg)
    sizes = sizes_of(pipeline_of(cfg))
    assert all(
        abs(a - b) <= 1 for size, wanted in zip(sizes, fitted, strict=True) for a, b in zip(size, wanted, strict=True)
    )
    pad = pipeline_of(cfg)[-1].transforms[2][0].size
    assert pad[0] == pad[1] and abs(pad[0] - max(map(max, fitted))) <= 1  # still the largest view
    changed = fitted[0] != (1333, 800)
    assert ('tta_pipeline' in capsys.readouterr().err) == changed
    assert cfg.tta_pipeline[-1].transforms[0][0].scale == (1333, 800)  # the config's own is not touched


@pytest.mark.parametrize('resize', [[], [dict(type='Resize', scale_factor=0.5)]])
def test_a_test_pipeline_without_a_size_is_flipped(resize, capsys):
    cfg = tta_config(resize, tta_pipeline=views((1333, 800)))
    enable_tta(cfg)
    *before, last = pipeline_of(cfg)
    assert [step.type for step in before] == ['LoadImageFromFile', *(['Resize'] if resize else [])]
    assert [step.type for step in last.transforms[0]] == ['RandomFlip', 'RandomFlip']
    assert 'flips' in capsys.readouterr().err


@pytest.mark.parametrize('path', ENTRIES, ids=lambda path: path.stem)
def test_shipped_configs_look_at_images_of_their_own_size(path):
    cfg = load_config(path)
    (_, leaf), *_ = split_datasets(cfg, 'test')
    tested = [step.scale for step in leaf.pipeline if step.type == 'Resize']
    enable_tta(cfg)
    pipeline = pipeline_of(cfg)
    assert pipeline[-1].type == 'TestTimeAug'
    sizes = [step.scale for step in pipeline if step.type == 'Resize'] + sizes_of(pipeline)
    assert tuple(tested[0]) in map(tuple, sizes)
    assert max(map(max, sizes)) <= 1.51 * max(tested[0])
