"""A MoEFFN with dense dispatch exports to ONNX, and gives there what it gives in PyTorch."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN

from moe_det.converters.onnx_export import OPSET, routing_operators
from moe_det.layers import MoEFFN

pytest.importorskip('onnx', reason='the export needs the package onnx')
onnxruntime = pytest.importorskip('onnxruntime', reason='the graphs are run by onnxruntime')


@pytest.mark.parametrize(
    'moe',
    [{'num_experts': 4, 'top_k': 2}, {'placement': 'shards', 'shards': 2, 'copies': 3}],
    ids=['experts', 'shards'],
)
def test_onnx_computes_what_torch_does(moe, tmp_path):
    torch.manual_seed(0)
    layer = MoEFFN(FFN(8, 24, ffn_drop=0.0), 'ffn', dispatch='dense', **moe).eval()
    torch.nn.init.normal_(layer.router.gate.fc.weight)  # so that tokens choose differently
    x, other = torch.randn(2, 7, 8), torch.randn(2, 7, 8)
    path = tmp_path / 'ffn.onnx'
    with routing_operators():
        torch.onnx.export(layer, (x,), str(path), input_names=['x'], opset_version=OPSET, dynamo=False)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for tokens in (x, other):  # the choice is part of the graph, not of the example
        (found,) = session.run(None, {'x': tokens.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), layer(tokens), atol=1e-5, rtol=1e-5)
