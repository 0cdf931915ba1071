"""The converters from the command line: a checkpoint's life from dense to experts or shards, pruned, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_files import checkpoint, moe_config, plant_logits

from moe_det.routing import find_routers
from moe_det.running.launch import load_config
from moe_det.running.trained_model import load_trained_model


def shard_config(dense: Path, **moe) -> Path:
    """Writes a config beside ``dense`` with two shards of three copies."""
    path = dense.with_name('shards.py')
    path.write_text(
        f"_base_ = './{dense.name}'\n"
        "custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)\n"
        f"model = dict(bbox_head=dict(type='MoERetinaHead', moe={dict(placement='shards', copies=3, **moe)!r}))\n"
    )
    return path


SHARDS = (0.0, 4.0, 0.5, 1.0, 0.0, 2.0)  # of shard 0 every row chooses copy 1, of shard 1 copy 2
FOUR = (0.0, 4.0, 0.5, 3.0)  # every row chooses the experts 1 and 3, with weights of 0.73 and 0.27


@pytest.mark.parametrize(
    ('write', 'logits', 'keep', 'said', 'options'),
    [
        (
            moe_config,
            FOUR,
            2,
            ('importance by expert 0: 0.0%, 1: 73.1%, 2: 0.0%, 3: 26.9%', 'kept the experts 1, 3, renumbered from 0'),
            ['model.bbox_head.moe.num_experts=2', 'model.bbox_head.moe.soft_mixture=True'],
        ),
        (shard_config, SHARDS, 1, ('kept the experts 1, 5, renumbered from 0',), ['model.bbox_head.moe.copies=1']),
    ],
)
def test_what_no_row_chose_goes_at_no_cost(
    tool, tiny_config, tiny_coco, tmp_path, capsys, write, logits, keep, said, options
):
    config, pruned = write(tiny_config), tmp_path / 'out.pth'
    trained = checkpoint(config, tmp_path / 'moe.pth', lambda model: plant_logits(model, *logits))
    command = [str(config), str(trained), str(pruned), '--keep', str(keep), '--data-root', str(tiny_coco)]
    assert tool('model_converters/prune_experts.py').main(command) == 0
    out = capsys.readouterr().out
    assert all(f'bbox_head.cls: {words}' in out for words in said)
    (line,) = [line for line in out.splitlines() if line.startswith('coco/bbox_mAP ')]
    _, before, after, change = line.split()
    assert before == after and change == '+0.0000'
    assert out.rstrip().splitlines()[-1].split() == ['--cfg-options', *options]
    # the printed options make the checkpoint fit exactly; of one copy each no gate is left
    model = load_trained_model(load_config(config, options), str(pruned), 'cpu', require_moe=keep > 1)
    assert {router.num_experts for router in find_routers(model).values()} == ({2} if keep > 1 else set())


def test_the_copies_used_most_as_a_plain_checkpoint(tool, tiny_config, tiny_coco, tmp_path, capsys):
    config = shard_config(tiny_config, copies_share=True)
    trained = checkpoint(config, tmp_path / 'moe.pth', lambda model: plant_logits(model, *SHARDS))
    out = tmp_path / 'out.pth'
    command = [str(config), str(trained), str(out), '--most-used', '--data-root', str(tiny_coco), '--limit', '2']
    assert tool('model_converters/densify.py').main(command) == 0
    text = capsys.readouterr().out
    assert 'bbox_head.cls: importance by expert 0: 0.0%, 1: 100.0%, 2: 0.0% of shard 0; 3: 0.0%' in text
    assert 'bbox_head.reg: copy 1 of shard 0, copy 2 of shard 1, 4 tensors' in text
    group = load_trained_model(load_config(config), str(trained), 'cpu').bbox_head.branch_experts['reg']
    state = torch.load(out, weights_only=True)['state_dict']
    parts = [group.experts[expert].predictor for expert in (1, 5)]
    assert torch.equal(state['bbox_head.retina_reg.weight'], torch.cat([part.weight for part in parts], dim=1))
    assert torch.equal(state['bbox_head.retina_reg.bias'], parts[0].bias + parts[1].bias)
    assert tool('test.py').main([str(tiny_config), str(out), '--data-root', str(tiny_coco)]) == 0  # of the plain model


def test_errors_are_one_line(fails, tiny_config, tiny_coco, tmp_path):
    config, out = moe_config(tiny_config), tmp_path / 'out.pth'
    dense = checkpoint(tiny_config, tmp_path / 'dense.pth')
    text = fails('model_converters/upcycle.py', config, dense, out)  # experts of half the width
    assert text.startswith('error: checkpoint ')
    assert 'has no experts' in fails('model_converters/densify.py', tiny_config, dense, out)
    assert not out.exists()
    shards = shard_config(tiny_config)
    trained = checkpoint(shards, tmp_path / 'moe.pth')
    text = fails('analysis_tools/sweep_top_k.py', shards, trained, '--data-root', tiny_coco)
    assert 'bbox_head.cls has 2 shards of 3 copies: every row runs one copy' in text
