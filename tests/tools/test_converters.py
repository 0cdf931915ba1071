"""The converters from the command line: a checkpoint's life from dense to experts, pruned, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_files import checkpoint, moe_config, plant_logits

from moe_det.routing import find_routers
from moe_det.running.launch import load_config
from moe_det.running.trained_model import load_trained_model


def test_least_used_experts_go_and_the_cost_is_shown(tool, tiny_config, tiny_coco, tmp_path, capsys):
    config = moe_config(tiny_config)
    # every row chooses the experts 1 and 3, with weights of 0.73 and 0.27
    trained = checkpoint(config, tmp_path / 'moe.pth', lambda model: plant_logits(model, 0.0, 4.0, 0.5, 3.0))
    command = [str(config), str(trained), str(tmp_path / 'out.pth'), '--keep', '2', '--data-root', str(tiny_coco)]
    assert tool('model_converters/prune_experts.py').main(command) == 0
    out = capsys.readouterr().out
    assert 'bbox_head.cls: importance by expert 0: 0.0%, 1: 73.1%, 2: 0.0%, 3: 26.9%' in out
    assert 'bbox_head.cls: kept the experts 1, 3, renumbered from 0' in out
    # experts that no row chose cost nothing
    (line,) = [line for line in out.splitlines() if line.startswith('coco/bbox_mAP ')]
    _, before, after, change = line.split()
    assert before == after and change == '+0.0000'
    options = out.rstrip().splitlines()[-1].split()
    assert options == [
        '--cfg-options',
        'model.bbox_head.moe.num_experts=2',
        'model.bbox_head.moe.soft_mixture=True',
    ]
    # the printed options make the checkpoint fit exactly
    model = load_trained_model(load_config(config, options[1:]), str(tmp_path / 'out.pth'), 'cpu')
    assert {router.num_experts for router in find_routers(model).values()} == {2}


def test_errors_are_one_line(tool, tiny_config, tmp_path, capsys):
    config = moe_config(tiny_config)
    dense = checkpoint(tiny_config, tmp_path / 'dense.pth')
    out = str(tmp_path / 'out.pth')
    assert tool('model_converters/upcycle.py').main([str(config), str(dense), out]) == 2  # experts of half the width
    assert capsys.readouterr().err.startswith('error: checkpoint ')
    assert tool('model_converters/densify.py').main([str(tiny_config), str(dense), out]) == 2
    assert 'has no experts' in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        tool('model_converters/upcycle.py').main([str(config), str(dense), out, '--noise', '-1'])
    assert end.value.code == 2 and '--noise: expected a number >= 0' in capsys.readouterr().err
    assert not Path(out).exists()
