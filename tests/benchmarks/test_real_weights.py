"""Pretrained weights of benchmarks/real_images.py: they land where they belong, or one message says why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from real.backbones import BACKBONES, built, pretrained
from real.networks import BINS, CLASSES, NanoDetG, WholeNanoDetG
from real.port_check import boxes_of
from real.weights import OF_HEAD, fill, nanodet_tensors
from torch import Tensor
from torch.nn import functional as F
from torchvision import models

from moe_det.errors import CheckpointError, MoEConfigError


def image(size: int = 64) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """Statistics that differ from those of a new norm, so that a wrong place shows."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def save(state: dict, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def loaded(name: str, weights: str, folder: Path) -> torch.nn.Module:
    """A backbone with the checkpoint that a run gets, loaded strictly."""
    model = built(name)
    checkpoint = pretrained(name, weights, folder).checkpoint
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    model.eval()
    return model


@torch.no_grad()
def test_resnet18_computes_what_torchvisions_does(tmp_path):
    theirs = moved(models.resnet18(weights=None))
    ours = loaded('resnet18', save(theirs.state_dict(), tmp_path / 'resnet18.pth'), tmp_path)
    maps = [theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image()))))]
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        maps.append(layer(maps[-1]))
    torch.testing.assert_close(ours(image()), tuple(maps[1:]))


@torch.no_grad()
def test_mobilenetv2_computes_what_torchvisions_does(tmp_path):
    theirs = moved(models.mobilenet_v2(weights=None))
    ours = loaded('mobilenetv2', save(theirs.features.state_dict(), tmp_path / 'mobilenet.pt'), tmp_path)
    maps = [image()]
    for layer in theirs.features:
        maps.append(layer(maps[-1]))
    # the last blocks of strides 8, 16 and 32
    torch.testing.assert_close(ours(image()), tuple(maps[number + 1] for number in (6, 13, 17)))


# kernel, channels, stride, expansion and number of blocks (arXiv 1905.11946, table 1)
B0 = [(3, 16, 1, 1, 1), (3, 24, 2, 6, 2), (5, 40, 2, 6, 2), (3, 80, 2, 6, 3), (5, 112, 1, 6, 3), (5, 192, 2, 6, 4)]
B0 = [*B0, (3, 320, 1, 6, 1)]


def lite0_state() -> dict[str, Tensor]:
    """Random weights with the names of the published files, whose order is that of the network."""
    generator, state = torch.Generator().manual_seed(0), {}

    def conv(name: str, *shape: int) -> None:
        state[f'{name}.weight'] = torch.randn(shape, generator=generator) / (shape[1] * shape[2] * shape[3]) ** 0.5

    def norm(name: str, channels: int) -> None:
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            state[f'{name}.{part}'] = 0.5 + torch.rand(channels, generator=generator)
        state[f'{name}.num_batches_tracked'] = torch.tensor(0)

    conv('_conv_stem', 32, 3, 3, 3)
    norm('_bn0', 32)
    inputs, number = 32, 0
    for kernel, outputs, _, expansion, blocks in B0:
        for _ in range(blocks):
            block, inner = f'_blocks.{number}', inputs * expansion
            if expansion > 1:
                conv(f'{block}._expand_conv', inner, inputs, 1, 1)
                norm(f'{block}._bn0', inner)
            conv(f'{block}._depthwise_conv', inner, 1, kernel, kernel)
            norm(f'{block}._bn1', inner)
            conv(f'{block}._project_conv', outputs, inner, 1, 1)
            norm(f'{block}._bn2', outputs)
            inputs, number = outputs, number + 1
    conv('_conv_head', 1280, 320, 1, 1)
    state['_fc.bias'] = torch.zeros(1000)
    return state


def naive_lite0(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """EfficientNet-Lite0 written out; the maps of strides 8, 16 and 32."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f'{name}.weight']
        kernel, side = weight.shape[-1], x.shape[-1]
        pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)  # TensorFlow's SAME
        x = F.pad(x, [pad // 2, pad - pad // 2] * 2)
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias, mean, var = (
            state[f'{name}.{part}'] for part in ('weight', 'bias', 'running_mean', 'running_var')
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x, number, maps = F.relu6(norm(conv(x, '_conv_stem', 2), '_bn0')), 0, []
    for kind, (_, _, stride, expansion, blocks) in enumerate(B0):
        for repeat in range(blocks):
            before, block = x, f'_blocks.{number}'
            if expansion > 1:
                x = F.relu6(norm(conv(x, f'{block}._expand_conv'), f'{block}._bn0'))
            step = stride if repeat == 0 else 1
            x = F.relu6(norm(conv(x, f'{block}._depthwise_conv', step), f'{block}._bn1'))
            x = norm(conv(x, f'{block}._project_conv'), f'{block}._bn2')
            x = x + before if repeat else x
            number += 1
        if kind in (2, 4, 6):
            maps.append(x)
    return maps


@torch.no_grad()
def test_efficientnet_lite_computes_what_its_description_says(tmp_path):
    state = lite0_state()
    ours = loaded('efficientnet-lite', save(state, tmp_path / 'lite0.pth'), tmp_path)
    torch.testing.assert_close(list(ours(image())), naive_lite0(state, image()), rtol=1e-4, atol=1e-4)


def write_tfjs(folder: Path, model: WholeNanoDetG) -> Path:
    """The weights of a model as a tfjs graph of 16-bit floats, in a shuffled order."""
    tensors = list(model.state_dict().values())
    arrays = {}
    for number in range(34):
        weight, bias = tensors[2 * number], tensors[2 * number + 1]
        arrays[f'PartitionedCall/split_{number}' if number else 'PartitionedCall/split'] = weight.permute(2, 3, 1, 0)
        arrays[f'unknown_{OF_HEAD.get(number, 2 * number)}'] = bias
    entries, data = [{'name': 'axis', 'shape': [], 'dtype': 'int32'}], [np.int32(3).tobytes()]
    for name in sorted(arrays, reverse=True):
        quantization = {'dtype': 'float16', 'original_dtype': 'float32'}
        shape = list(arrays[name].shape)
        entries.append({'name': name, 'shape': shape, 'dtype': 'float32', 'quantization': quantization})
        data.append(arrays[name].numpy().astype(np.float16).tobytes())
    (folder / 'nanodet.bin').write_bytes(b''.join(data))
    content = {'format': 'graph-model', 'weightsManifest': [{'paths': ['nanodet.bin'], 'weights': entries}]}
    (folder / 'nanodet.json').write_text(json.dumps(content), encoding='utf-8')
    return folder / 'nanodet.json'


@torch.no_grad()
def test_nanodet_is_read_back_from_a_graph(tmp_path):
    torch.manual_seed(0)
    model = WholeNanoDetG().eval()
    path = write_tfjs(tmp_path, model)
    ours = loaded('nanodet', str(path), tmp_path / 'work')
    assert [tuple(level.shape[1:]) for level in ours(image())] == [(128, 8, 8), (256, 4, 4), (512, 2, 2)]
    torch.testing.assert_close(ours(image()), model.backbone(image()), rtol=1e-2, atol=1e-2)  # of 16 bits
    again = WholeNanoDetG()
    fill(again, nanodet_tensors(str(path)), str(path))
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=1e-3, atol=1e-4)


def test_a_box_is_decoded_by_hand():
    outputs = [torch.full((1, CLASSES + 4 * BINS, side, side), -20.0) for side in (8, 4, 2)]
    cell = outputs[1][0, :, 1, 2]  # stride 16: centre (40, 24)
    cell[7] = 0.0
    for side, distance in enumerate((1, 0, 2, 10)):  # left, top, right, bottom in strides
        cell[CLASSES + side * BINS + distance] = 20.0
    scores, boxes = boxes_of(outputs)
    best = int(scores[:, 7].argmax())
    assert scores[best, 7].item() == pytest.approx(0.5)
    assert boxes[best].tolist() == pytest.approx([40 - 16, 24, 40 + 32, 24 + 160], abs=1e-3)


def test_frozen_backbones_do_not_train():
    from mmdet.registry import MODELS

    for name, backbone in BACKBONES.items():
        built(name)  # registers
        model = MODELS.build(dict({**backbone.settings, **backbone.frozen}))
        model.train()
        needed = [p for key, p in model.named_parameters() if not key.startswith('conv2')]  # behind the last map
        assert not any(p.requires_grad for p in needed), name


@pytest.fixture
def graph(tmp_path) -> Path:
    return write_tfjs(tmp_path, WholeNanoDetG())


def refused(name: str, weights: Path | str | None, folder: Path) -> str:
    with pytest.raises((CheckpointError, MoEConfigError)) as error:
        pretrained(name, None if weights is None else str(weights), folder)
    assert '--weights' in str(error.value)
    return str(error.value)


def test_a_truncated_graph_is_named(graph, tmp_path):
    numbers = graph.with_suffix('.bin')
    numbers.write_bytes(numbers.read_bytes()[:-3])
    text = refused('nanodet', graph, tmp_path)
    assert str(numbers) in text and 'truncated' in text
    numbers.unlink()
    assert str(numbers) in refused('nanodet', graph, tmp_path)


def test_another_graph_or_no_graph_is_named(graph, tmp_path):
    content = json.loads(graph.read_text())
    entries = content['weightsManifest'][0]['weights']
    entries[-1]['name'] = 'something else'
    graph.write_text(json.dumps(content))
    assert 'not NanoDet-g' in refused('nanodet', graph, tmp_path)
    graph.write_text('{"layers": []}')
    assert 'weightsManifest' in refused('nanodet', graph, tmp_path)
    assert 'not the json of a tfjs graph' in refused('nanodet', graph.with_suffix('.bin'), tmp_path)
    assert 'cannot be read' in refused('nanodet', tmp_path / 'nowhere.json', tmp_path)
    assert 'is needed for --backbone nanodet' in refused('nanodet', None, tmp_path)


def test_weights_of_other_networks_and_shapes_are_named(tmp_path):
    resnet = models.resnet18(weights=None).state_dict()
    path = tmp_path / 'weights.pth'
    assert 'conv1.weight' in refused('mobilenetv2', save(resnet, path), tmp_path)
    wide = {**resnet, 'layer4.1.conv2.weight': torch.zeros(512, 512, 1, 1)}
    text = refused('resnet18', save(wide, path), tmp_path)
    assert '(512, 512, 1, 1)' in text and '(512, 512, 3, 3)' in text and str(path) in text
    short = dict(list(resnet.items())[:50])
    assert 'it has 50 tensors' in refused('resnet18', save(short, path), tmp_path)
    save(resnet, path)
    path.write_bytes(path.read_bytes()[:1000])
    assert 'truncated' in refused('resnet18', path, tmp_path)
    path.write_text('no weights')
    assert 'no checkpoint' in refused('resnet18', path, tmp_path)


def test_resnet18_without_a_file_takes_a_url(tmp_path):
    assert pretrained('resnet18', None, tmp_path).checkpoint == 'torchvision://resnet18'
    assert not (tmp_path / 'weights').exists()


def test_the_real_nanodet_detects_what_its_authors_say(shared_data):
    from real.folder import read_folder
    from real.port_check import check_port

    found = check_port(str(shared_data / 'weights' / 'nanodet.json'), read_folder(str(shared_data / 'coco-small')))
    assert found['images'] == 206 and 0.22 < found['AP'] < 0.3


def test_nanodets_backbone_has_its_size():
    assert sum(p.numel() for p in NanoDetG().parameters()) == pytest.approx(3.18e6, rel=0.01)
