"""router_health.py as a training job's CI meets it: exit statuses on planted gates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_files import checkpoint, moe_config, plant_logits, plant_varied

from moe_det.routing import RoutingRecorder, find_routers
from moe_det.running.launch import load_config
from moe_det.running.trained_model import load_trained_model, test_batches

pytestmark = pytest.mark.usefixtures('in_tmp_path')  # runs write into the current folder
TOOL = 'analysis_tools/router_health.py'


def repeated(data: Path, target: Path, times: int) -> Path:
    """The data set with every validation image listed several times, under ids of its own."""
    shutil.copytree(data, target)
    path = target / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    images, annotations = content['images'], content['annotations']
    content['images'] = [{**i, 'id': i['id'] + 100 * n} for n in range(times) for i in images]
    content['annotations'] = [
        {**a, 'id': a['id'] + 100 * n, 'image_id': a['image_id'] + 100 * n} for n in range(times) for a in annotations
    ]
    path.write_text(json.dumps(content))
    return target


@pytest.fixture
def health(tool, capsys, tiny_config, tiny_coco, tmp_path):
    """Runs the check on a planted gate: ``health(plant, options..., moe keys)`` -> status, stdout, stderr."""

    def run(plant, *options: str, data=tiny_coco, **moe) -> tuple[int, str, str]:
        config = moe_config(tiny_config, **moe)
        weights = checkpoint(config, tmp_path / 'planted.pth', plant)
        capsys.readouterr()
        status = tool(TOOL).main([str(config), str(weights), '--data-root', str(data), '--device', 'cpu', *options])
        return status, *capsys.readouterr()

    return run


def test_expert_two_for_every_row_is_a_collapse(health):
    status, out, _ = health(lambda m: plant_logits(m, 0, 0, 80, 0))
    assert status == 1
    assert 'bbox_head.cls, all rows: 1 of 4 experts' in out and 'bbox_head.reg, all rows: 1 of 4 experts' in out
    (line,) = [line for line in out.splitlines() if line.startswith('bbox_head.cls ')]
    # 4 images at 5 levels; half of all choices fall on expert 2, the other half on the first of the rest
    assert ' '.join(line.split()) == 'bbox_head.cls 20 1/4 0.00 0.00 0% 0% 100% 0% 2.00 0.00 2.00 0.00 COLLAPSED'


def test_one_copy_of_a_shard_for_every_row_is_a_collapse(health):
    shards = dict(placement='shards', shards=2, copies=2, width=1)
    status, out, _ = health(lambda m: plant_logits(m, 0, 0, 80, 0), **shards)
    assert status == 1 and 'bbox_head.cls, all rows: shard 1: 1 of 2 copies hold more' in out
    (line,) = [line for line in out.splitlines() if line.startswith('bbox_head.cls ')]
    # copies of shard 0 have equal logits, and the first is taken; one bit is left of the mean over the shards' two
    assert ' '.join(line.split()) == 'bbox_head.cls 20 2/4 0.50 0.50 50% 0% 50% 0% 2.00 0.00 2.00 0.00 COLLAPSED'
    assert health(lambda m: plant_logits(m, 0, 0, 80, 0), '--min-living', '1', **shards)[0] == 0
    status, _, err = health(plant_varied, '--min-living', '3', **shards)
    assert status == 2 and 'a layer has 2 experts or copies of a shard' in err


def test_two_experts_for_every_row_are_a_collapse_too(health):
    assert health(lambda m: plant_logits(m, 9, 9, 0, 0))[0] == 1
    assert health(lambda m: plant_logits(m, 9, 9, 0, 0), '--min-living', '2')[0] == 0


def test_varied_gates_are_healthy_and_the_numbers_are_those_of_the_records(health, tmp_path, tiny_coco):
    status, out, _ = health(plant_varied, '--json', 'made/health.json')
    assert status == 0 and 'healthy: 2 layers over 4 images' in out
    report = json.loads(Path('made/health.json').read_text())
    assert report['healthy'] is True and report['images'] == 4 and report['problems'] == []
    cfg = load_config(tmp_path / 'moe.py', data_root=tiny_coco)
    model = load_trained_model(cfg, str(tmp_path / 'planted.pth'), 'cpu')
    with RoutingRecorder(model) as recorder, torch.no_grad():
        for image_ids, batch in test_batches(cfg):
            recorder.start_batch(image_ids)
            model.test_step(batch)
    for layer, found in report['layers'].items():
        rows = torch.cat([record.weights for record in recorder.records if record.layer == layer]).double()
        (part,) = found['parts']
        assert part['rows'] == len(rows) == 20
        assert part['importance_share'] == pytest.approx((rows.sum(0) / rows.sum()).tolist(), abs=1e-5)
        assert part['load_ratio'] == pytest.approx(((rows > 0).sum(0) / (20 * 2 / 4)).tolist(), abs=1e-5)
        assert part['living'] == int((rows.sum(0) / rows.sum() > 0.01).sum()) > 2


def test_each_level_is_judged_where_usage_is_balanced_inside_levels(health, tiny_coco, tmp_path):
    """A gate that recognises its level: every expert lives, but each level has only two of them."""
    data = repeated(tiny_coco, tmp_path / 'more', 5)

    def by_level(model: torch.nn.Module) -> None:
        # the five levels' maps are constants in channel 0: 0, 1, 2, 3, 4
        for router in find_routers(model).values():
            router.gate.fc.weight.zero_()
            router.gate.fc.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
            router.gate.fc.weight[2:, 0] = 6.0
        for level, conv in enumerate(model.neck.fpn_convs):
            conv.conv.weight.zero_()
            conv.conv.bias.zero_()
            conv.conv.bias[0] = level

    status, out, _ = health(by_level, data=data)
    assert status == 0 and 'level 0' not in out
    status, out, _ = health(by_level, data=data, balance_over='level')
    assert status == 1
    lines = [line.split() for line in out.splitlines()]
    totals = next(line for line in lines if line[:1] == ['bbox_head.cls'])
    assert totals[1:3] == ['100', '4/4'] and totals[-1] == 'healthy'
    for level in range(5):
        line = next(line for line in lines if line[:2] == ['level', str(level)])
        assert line[2:4] == ['20', '2/4'] and line[-1] == 'COLLAPSED'


def test_limits_decide(health):
    assert health(plant_varied, '--max-load-ratio', '1.0')[0] == 1
    assert health(plant_varied, '--living-share', '0.9')[0] == 1


def test_too_few_images_are_no_verdict(health):
    status, _, err = health(plant_varied, '--limit', '3')
    assert status == 2 and '3 images gave fewer than 20 routing rows' in err


def test_mistakes_are_status_2(health, fails, tiny_config, tiny_coco):
    status, _, err = health(plant_varied, '--min-living', '5')
    assert status == 2 and 'a layer has 4 experts' in err
    assert health(plant_varied, '--json', '/proc/none/health.json')[0] == 2
    status, _, err = health(plant_varied, data='absent')
    assert status == 2 and 'absent' in err
    dense = checkpoint(tiny_config, Path('dense.pth'))
    assert 'builds no MoE layer' in fails(TOOL, tiny_config, dense, '--data-root', tiny_coco)


@pytest.mark.parametrize(
    ('script', 'function', 'arguments'),
    [
        (TOOL, 'moe_det.studies.health_check.check_health', ['a.py', 'a.pth']),
        ('misc/check_dataset.py', 'moe_det.dataset_check.thorough.check_dataset', ['a.json']),
    ],
)
@pytest.mark.parametrize('error', [ZeroDivisionError('of ours'), SystemExit('of a library'), SystemExit(1)])
def test_unexpected_errors_are_not_taken_for_the_verdict_of_status_1(
    tool, monkeypatch, capsys, script, function, arguments, error
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(function, fail)
    assert tool(script).main(arguments) == 2
    err = capsys.readouterr().err
    assert 'Traceback' in err and type(error).__name__ in err
