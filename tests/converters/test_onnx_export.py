"""The ONNX graph holds every expert and computes in onnxruntime what the network computes."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from small_files import model_of, plant_varied, write_checkpoint, write_config

from moe_det.converters.onnx_export import OPSET, experts_in_graph, export_onnx, routing_operators
from moe_det.converters.places import expert_places
from moe_det.errors import CheckpointError, MoEConfigError
from moe_det.layers import MoEFFN
from moe_det.routing import find_routers

onnx = pytest.importorskip('onnx', reason='the export needs the package onnx')
runtime = pytest.importorskip('onnxruntime', reason='the graphs are run by onnxruntime')

NETWORKS = {
    'level': (dict(num_experts=3, top_k=2, constraint=dict(type='SelectionBiasConstraint')), {}),
    'patch, top-1, norms': (
        dict(num_experts=3, top_k=1, unit='patch', grid=2, branches='cls'),
        dict(bbox_head=dict(norm_cfg=dict(type='BN'))),
    ),
    'image, one gate, stage of the backbone': (
        dict(num_experts=2, top_k=1, unit='image', shared_gate=True),
        dict(backbone=dict(type='MoEResNet', moe=dict(stages=(3,), num_experts=3, top_k=2))),
    ),
    'shards, norms': (
        dict(placement='shards', shards=2, copies=3),
        dict(bbox_head=dict(norm_cfg=dict(type='GN', num_groups=4))),
    ),
    'copies of shards that share, patch': (
        dict(placement='shards', shards=2, copies=2, unit='patch', grid=2, copies_share=True),
        {},
    ),
    'attentive gate': (dict(num_experts=3, top_k=2, branches='reg', gate=dict(type='AttentiveGate')), {}),
    'mixed kernels': (dict(num_experts=3, top_k=2, mixes='kernels', unit='image'), {}),
    'mixed kernels of convolutions': (
        None,
        dict(bbox_head=dict(conv_cfg=dict(type='MoEConv2d', num_levels=5, num_experts=2, top_k=1, mixes='kernels'))),
    ),
}


def varied(model) -> None:
    if all(hasattr(router.gate, 'fc') for router in find_routers(model).values()):
        plant_varied(model)


@pytest.mark.parametrize('name', NETWORKS)
def test_every_expert_is_in_the_graph_and_the_outputs_are_equal(name, tmp_path):
    moe, changes = NETWORKS[name]
    config = write_config(tmp_path / 'moe.py', moe, **changes)
    checkpoint = write_checkpoint(config, tmp_path / 'moe.pth', varied)
    counts = export_onnx(str(config), str(checkpoint), str(tmp_path / 'out.onnx'), shape=(64, 64), batch=2)
    model = model_of(config, checkpoint)
    assert counts == {place.label: len(place.group.experts) for place in expert_places(model)}

    session = runtime.InferenceSession((tmp_path / 'out.onnx').read_bytes(), providers=['CPUExecutionProvider'])
    names = [f'{kind}_{level}' for kind in ('class_logits', 'box_deltas') for level in range(5)]
    assert [output.name for output in session.get_outputs()] == names
    # another image than the one it was traced with, whose rows choose other experts
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9)) * 3
    with torch.no_grad():
        expected = [x for part in model(image, mode='tensor') for x in part]  # sorted dispatch
    for one, other in zip(session.run(None, {'image': image.numpy()}), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))

    counted = experts_in_graph(without_reader((tmp_path / 'out.onnx').read_bytes(), 'experts.1.'), expert_places(model))
    assert counted == {label: count - 1 for label, count in counts.items()}


def without_reader(graph: bytes, name: str) -> bytes:
    """The graph without the operations that read a weight with ``name`` in its name, as if tracing had missed it."""
    content = onnx.load_model_from_string(graph)
    kept = [node for node in content.graph.node if not any(name in tensor for tensor in node.input)]
    del content.graph.node[:]
    content.graph.node.extend(kept)
    return content.SerializeToString()


@pytest.mark.parametrize(
    'moe',
    [{'num_experts': 4, 'top_k': 2}, {'placement': 'shards', 'shards': 2, 'copies': 3}],
    ids=['experts', 'shards'],
)
def test_an_ffn_chooses_for_each_token_in_the_graph(moe, tmp_path):
    torch.manual_seed(0)
    layer = MoEFFN(FFN(8, 24, ffn_drop=0.0), 'ffn', dispatch='all', **moe).eval()
    torch.nn.init.normal_(layer.router.gate.fc.weight)  # so that tokens choose differently
    x, other = torch.randn(2, 7, 8), torch.randn(2, 7, 8)
    path = tmp_path / 'ffn.onnx'
    with routing_operators():
        torch.onnx.export(layer, (x,), str(path), input_names=['x'], opset_version=OPSET, dynamo=False)
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for tokens in (x, other):  # the choice is part of the graph, not of the example
        (found,) = session.run(None, {'x': tokens.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), layer(tokens), atol=1e-5, rtol=1e-5)


def test_wrong_uses(tmp_path, monkeypatch):
    config = write_config(tmp_path / 'moe.py', dict(num_experts=2, top_k=1))
    checkpoint = write_checkpoint(config, tmp_path / 'moe.pth')
    with pytest.raises(MoEConfigError, match=r'ends in \.onnx'):
        export_onnx(str(config), str(checkpoint), str(tmp_path / 'out.pth'))
    with pytest.raises(CheckpointError, match='does not match the config'):
        other = write_config(tmp_path / 'other.py', dict(num_experts=2, top_k=1, width=0.5))
        export_onnx(str(other), str(checkpoint), str(tmp_path / 'out.onnx'))
    monkeypatch.setattr('moe_det.converters.onnx_export.find_spec', lambda name: None)
    with pytest.raises(MoEConfigError, match='pip install onnx'):
        export_onnx(str(config), str(checkpoint), str(tmp_path / 'out.onnx'))
