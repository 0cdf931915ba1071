"""The command line tools on a detector whose experts are copies of shards, with planted gates."""

from __future__ import annotations

import pytest
import torch
from small_files import checkpoint, plant_logits

from moe_det.routing import find_routers
from moe_det.running.launch import load_config
from moe_det.running.trained_model import load_trained_model

# of shard 0 every row chooses copy 1, of shard 1 copy 2
LOGITS = (0.0, 4.0, 0.5, 1.0, 0.0, 2.0)


def shard_config(dense, **moe):
    """Writes a config beside ``dense`` with two shards of three copies."""
    path = dense.with_name('shards.py')
    path.write_text(
        f"_base_ = './{dense.name}'\n"
        "custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)\n"
        f"model = dict(bbox_head=dict(type='MoERetinaHead', moe={dict(placement='shards', copies=3, **moe)!r}))\n"
    )
    return path


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)['state_dict']


def test_the_copies_used_most_as_a_plain_checkpoint(tool, tiny_config, tiny_coco, tmp_path, capsys):
    config = shard_config(tiny_config, copies_share=True)
    trained = checkpoint(config, tmp_path / 'moe.pth', lambda model: plant_logits(model, *LOGITS))
    out = tmp_path / 'out.pth'
    command = [str(config), str(trained), str(out), '--most-used', '--data-root', str(tiny_coco), '--limit', '2']
    assert tool('model_converters/densify.py').main(command) == 0
    text = capsys.readouterr().out
    assert 'bbox_head.cls: importance by expert 0: 0.0%, 1: 100.0%, 2: 0.0% of shard 0; 3: 0.0%' in text
    assert 'bbox_head.reg: copy 1 of shard 0, copy 2 of shard 1, 4 tensors' in text
    group = load_trained_model(load_config(config), str(trained), 'cpu').bbox_head.branch_experts['reg']
    state = weights(out)
    parts = [group.experts[expert].predictor for expert in (1, 5)]
    assert torch.equal(state['bbox_head.retina_reg.weight'], torch.cat([part.weight for part in parts], dim=1))
    assert torch.equal(state['bbox_head.retina_reg.bias'], parts[0].bias + parts[1].bias)
    assert tool('test.py').main([str(tiny_config), str(out), '--data-root', str(tiny_coco)]) == 0  # of the plain model
    with pytest.raises(SystemExit) as end:
        tool('model_converters/densify.py').main([*command, '--expert', '1'])
    assert end.value.code == 2 and 'not allowed with' in capsys.readouterr().err


def test_copies_that_no_row_chose_go_at_no_cost(tool, tiny_config, tiny_coco, tmp_path, capsys):
    config = shard_config(tiny_config)
    trained = checkpoint(config, tmp_path / 'moe.pth', lambda model: plant_logits(model, *LOGITS))
    command = [str(config), str(trained), str(tmp_path / 'out.pth'), '--keep', '1', '--data-root', str(tiny_coco)]
    assert tool('model_converters/prune_experts.py').main(command) == 0
    out = capsys.readouterr().out
    assert 'bbox_head.cls: kept the experts 1, 5, renumbered from 0' in out
    (line,) = [line for line in out.splitlines() if line.startswith('coco/bbox_mAP ')]
    _, before, after, change = line.split()
    assert before == after and change == '+0.0000'
    options = out.rstrip().splitlines()[-1].split()
    assert options == ['--cfg-options', 'model.bbox_head.moe.copies=1']
    pruned = load_trained_model(load_config(config, options[1:]), str(tmp_path / 'out.pth'), 'cpu', require_moe=False)
    assert not find_routers(pruned)


def test_there_is_no_number_of_experts_to_sweep(tool, tiny_config, tiny_coco, tmp_path, capsys):
    config = shard_config(tiny_config)
    trained = checkpoint(config, tmp_path / 'moe.pth')
    command = [str(config), str(trained), '--data-root', str(tiny_coco)]
    assert tool('analysis_tools/sweep_top_k.py').main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ') and 'bbox_head.cls has 2 shards of 3 copies: every row runs one copy' in error
