"""moe_cost.py: the table, the numbers, and mistakes in one line."""

from __future__ import annotations

import json

import pytest
from small_files import moe_config, table_cells

from moe_det.cost.moe_cost import cost_markdown
from moe_det.cost.part_costs import ModelCost, PartCost

TOOL = 'analysis_tools/moe_cost.py'


def test_table_and_json(tool, capsys, tiny_config, tmp_path):
    config, numbers = moe_config(tiny_config), tmp_path / 'cost.json'
    assert tool(TOOL).main([str(config), '--shape', '60', '64', '--json', str(numbers)]) == 0
    out = capsys.readouterr().out
    content = json.loads(numbers.read_text())
    assert content['image'] == [60, 64] and content['input'] == [64, 64]  # padded to 32
    assert content['note'] == 'dense: bbox_head: RetinaHead in place of MoERetinaHead' and content['note'] in out
    whole, dense = content['parts']['whole model'], content['dense']['parts']['whole model']
    # half the channels: two active experts of one convolution and a predictor cost one dense branch
    assert whole['active_macs'] == pytest.approx(dense['macs'], rel=0.03)
    assert whole['macs'] > whole['active_macs'] and whole['params'] > whole['active_params']
    (cells,) = table_cells(out, 'whole model')
    assert cells[1] == f'{whole["params"] / 1e3:.2f}' and cells[-1] == f'{whole["active_macs"] / dense["macs"]:.3f}'


def test_options_change_the_config_and_dense_models_stand_alone(tool, capsys, tiny_config):
    assert tool(TOOL).main([str(tiny_config), '--shape', '64', '64']) == 0
    out = capsys.readouterr().out
    assert 'no experts of this package' in out and 'dense params' not in out
    config = moe_config(tiny_config)
    option = 'model.bbox_head.moe.top_k=1'
    assert tool(TOOL).main([str(config), '--shape', '64', '64', '--cfg-options', option]) == 0
    assert '1 of 4 per level' in capsys.readouterr().out


def test_units_suit_the_model_and_unknown_numbers_are_dashes():
    part = PartCost(2_500_000, 1_250_000, None, None)
    text = cost_markdown(ModelCost('dense', (64, 64), {'whole model': part}), None, 'note')
    assert '| params M | active M |' in text and '| 2.50     | 1.25     | –' in text
    part = PartCost(2_500, 1_250, 7_000_000_000, 3_000_000)
    text = cost_markdown(ModelCost('dense', (64, 64), {'whole model': part}), None, 'note')
    assert (
        '| params k | active k | GMAC all experts' in text and '| 2.50     | 1.25     | 7.00             | 0.00' in text
    )


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['absent.py'], 'config file absent.py does not exist'),
        (['{config}', '--cfg-options', 'model.bbox_head.moe.top_k=9'], 'top_k=9: expected at most num_experts=4'),
        (['{config}', '--cfg-options', 'model=None'], 'the config has no model'),
        (['{config}', '--shape', '64', '64', '--json', '{config}/x.json'], '/x.json: cannot be written'),
    ],
)
def test_mistakes_are_one_line_and_status_2(fails, tiny_config, arguments, words):
    config = moe_config(tiny_config)
    error = fails(TOOL, *[argument.format(config=config) for argument in arguments])
    assert words in error and error.count('\n') == 1


def test_an_image_that_the_model_cannot_take(tool, fails, capsys, tmp_path):
    config = tmp_path / 'mixture.py'
    config.write_text(
        "custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)\n"
        "model = dict(type='MixtureClassifier', num_classes=4, moe=dict(num_experts=3, top_k=2, noise=False),\n"
        "    data_preprocessor=dict(type='ClassificationPreprocessor'),\n"
        '    expert=dict(in_channels=1, image_size=12, channels=(2,), hidden=(6,)))\n'
    )
    assert tool(TOOL).main([str(config)]) == 0  # 12 x 12, as its networks say
    assert 'network input 12x12' in capsys.readouterr().out
    assert '--shape 40 40: the model of' in fails(TOOL, config, '--shape', 40, 40)
