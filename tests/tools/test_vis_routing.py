"""vis_routing.py: the figure shows what the model decided, files come in three formats, mistakes are one message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_files import checkpoint, moe_config, plant_varied

from moe_det.errors import MoEConfigError
from moe_det.routing import RoutingRecorder
from moe_det.running.launch import load_config
from moe_det.running.trained_model import load_trained_model, test_batches
from moe_det.studies import image_routing
from moe_det.studies.image_routing import draw_routing, route_image

pytestmark = pytest.mark.usefixtures('in_tmp_path')  # runs write into the current folder
TOOL = 'analysis_tools/vis_routing.py'


@pytest.fixture
def trained(tiny_config, tiny_coco, tmp_path) -> tuple[Path, Path]:
    config = moe_config(tiny_config, unit='patch', grid=3)
    return config, checkpoint(config, tmp_path / 'moe.pth', plant_varied)


def test_formats_and_defaults(tool, capsys, trained, tiny_coco):
    config, weights = map(str, trained)
    image = str(tiny_coco / 'val' / '3.png')
    assert tool(TOOL).main([config, weights, image]) == 0
    assert '3_routing.png: 3.png, bbox_head.cls, bbox_head.reg; ' in capsys.readouterr().out
    picture = np.asarray(Image.open('3_routing.png').convert('RGB'))
    assert min(picture.shape[:2]) > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 200
    for name, start in (('a/b.svg', b'<?xml'), ('c.pdf', b'%PDF')):
        assert tool(TOOL).main([config, weights, image, '--out', name, '--layer', 'bbox_head.reg']) == 0
        assert Path(name).read_bytes().startswith(start)
        assert 'bbox_head.cls' not in capsys.readouterr().out


def test_image_of_the_test_set_brings_its_ground_truth(tool, monkeypatch, trained, tiny_coco):
    image, ann_file = tiny_coco / 'val' / '2.png', tiny_coco / 'annotations' / 'val.json'
    for more in (['--image-id', 2, '--data-root', tiny_coco], [image, '--ann-file', ann_file]):
        routed = drawn_by(tool, monkeypatch, [*trained, *more])
        assert routed.name == '2.png'
        assert routed.truths.corners.tolist() == [[16, 20, 40, 44]] and routed.truths.areas.tolist() == [576]
        assert routed.truths.labels == ['disc'] and len(routed.detections.areas) == 20  # max_per_img
    assert drawn_by(tool, monkeypatch, [*trained, image]).truths is None


def test_cells_and_weights_are_the_models(trained, tiny_coco):
    config, weights = trained
    cfg = load_config(config, data_root=tiny_coco)
    model = load_trained_model(cfg, str(weights), 'cpu')
    routed = route_image(model, cfg, str(tiny_coco / 'val' / '1.png'), score_thr=0.0)
    with RoutingRecorder(model) as recorder, torch.no_grad():
        (image_ids, batch), *_ = test_batches(cfg)
        recorder.start_batch(image_ids)
        (result,) = model.test_step(batch)
    assert set(routed.layers) == {'bbox_head.cls', 'bbox_head.reg'}
    for record in recorder.records:
        drawn = torch.cat([torch.as_tensor(level.weights) for level in routed.layers[record.layer]])
        torch.testing.assert_close(drawn, record.weights.double())
    levels = routed.layers['bbox_head.cls']
    # maps of 8, 4, 2, 1 and 1 pixels; 3 x 3 patches, fewer where there are fewer pixels
    assert [len(level.cells) for level in levels] == [9, 9, 4, 1, 1]
    assert [level.title for level in levels[:3]] == [f'level {i} · map {s}×{s}' for i, s in enumerate((8, 4, 2))]
    # 8 pixels of 8 input pixels each, cut at 2 and 5
    assert levels[0].cells[[0, 4, 8]].tolist() == [[0, 0, 16, 16], [16, 16, 40, 40], [40, 40, 64, 64]]
    assert np.sort(routed.detections.areas) == pytest.approx(
        np.sort(((result.pred_instances.bboxes[:, 2:] - result.pred_instances.bboxes[:, :2]).prod(1)).numpy()), rel=1e-4
    )

    scores = result.pred_instances.scores
    for threshold in (scores.median().item(), 0.99):
        kept = route_image(model, cfg, str(tiny_coco / 'val' / '1.png'), score_thr=threshold).detections
        assert len(kept.areas) == len(kept.labels) == (scores >= threshold).sum()


def test_cells_lie_in_original_pixels_and_end_at_the_picture(trained, tmp_path):
    config, weights = trained
    cfg = load_config(config)
    model = load_trained_model(cfg, str(weights), 'cpu')
    # 100 x 50 becomes 64 x 32 in the network, and is padded from there to 64 x 32: factor 0.64
    Image.fromarray(np.zeros((50, 100, 3), np.uint8)).save('wide.png')
    level = route_image(model, cfg, 'wide.png').layers['bbox_head.cls'][0]
    # 4 x 8 pixels of 8: rows cut at 1 and 2 (8 and 16 px), columns at 2 and 5 (16 and 40 px), divided by 0.64
    assert level.cells[4] == pytest.approx([25, 12.5, 62.5, 25])
    assert level.cells[8] == pytest.approx([62.5, 25, 100, 50])
    # 100 x 40 becomes 64 x 26, padded to 64 x 32: the last patches end with the picture
    Image.fromarray(np.zeros((40, 100, 3), np.uint8)).save('wide.png')
    level = route_image(model, cfg, 'wide.png').layers['bbox_head.cls'][0]
    assert level.cells[:, 3].max() == 40 and level.cells[:, 2].max() == 100


def test_shards_are_drawn_in_strips(tool, monkeypatch, tiny_config, tiny_coco, tmp_path):
    config = moe_config(tiny_config, placement='shards', shards=2, copies=2, width=1)
    weights = checkpoint(config, tmp_path / 'm.pth', plant_varied)
    routed = drawn_by(tool, monkeypatch, [config, weights, tiny_coco / 'val' / '1.png'])
    for levels in routed.layers.values():
        assert [level.slots for level in levels] == [2] * 5
        assert all(np.reshape(level.weights, (2, 2)).sum(1).tolist() == [1, 1] for level in levels)
    assert Path('1_routing.png').is_file()


@pytest.mark.parametrize(('unit', 'titles'), [('image', ['all levels']), ('level', ['level 0', 'level 4'])])
def test_units_without_patches_cover_the_picture(tiny_config, tiny_coco, tmp_path, unit, titles):
    config = moe_config(tiny_config, unit=unit)
    cfg = load_config(config, data_root=tiny_coco)
    model = load_trained_model(cfg, str(checkpoint(config, tmp_path / 'm.pth', plant_varied)), 'cpu')
    levels = route_image(model, cfg, str(tiny_coco / 'val' / '1.png')).layers['bbox_head.reg']
    assert len(levels) == (1 if unit == 'image' else 5)
    assert [levels[0].title.split(' ·')[0], levels[-1].title.split(' ·')[0]][: len(titles)] == titles
    assert all(level.cells.tolist() == [[0, 0, 64, 64]] and level.weights.shape == (1, 4) for level in levels)


def test_mistakes_are_one_message_each(fails, trained, tiny_coco, tmp_path):
    image = tiny_coco / 'val' / '3.png'
    content = json.loads((tiny_coco / 'annotations' / 'val.json').read_text())
    assert 'absent.png does not exist' in fails(TOOL, *trained, 'absent.png')
    assert 'absent.json does not exist' in fails(TOOL, *trained, image, '--ann-file', 'absent.json')
    text = fails(TOOL, *trained, image, '--layer', 'head.cls')
    assert "the layers are bbox_head.cls, bbox_head.reg. Did you mean 'bbox_head.cls'?" in text
    assert 'first ids are 1, 2, 3, 4' in fails(TOOL, *trained, '--image-id', 7, '--data-root', tiny_coco)
    (tmp_path / 'text.png').write_text('no image')
    assert 'not an image' in fails(TOOL, *trained, 'text.png')
    for annotation in content['annotations']:
        del annotation['area']
    (tmp_path / 'val.json').write_text(json.dumps(content))
    assert "'area' is None" in fails(TOOL, *trained, image, '--ann-file', 'val.json')
    (tmp_path / 'val.json').write_text(json.dumps({**content, 'images': []}))
    assert 'no image has the file name 3.png' in fails(TOOL, *trained, image, '--ann-file', 'val.json')


def drawn_by(tool, monkeypatch, arguments: list) -> object:
    """What the script draws."""
    drawn = []
    draw = image_routing.routing_figure
    monkeypatch.setattr(image_routing, 'routing_figure', lambda routed: drawn.append(routed) or draw(routed))
    assert tool(TOOL).main([*map(str, arguments), '--score-thr', '0', '--device', 'cpu']) == 0
    return drawn[-1]


def test_images_of_one_name_in_several_folders_keep_their_own_objects(
    tool, fails, monkeypatch, trained, tiny_coco, tmp_path
):
    folder = Path(shutil.copytree(tiny_coco, tmp_path / 'data'))
    ann_file = folder / 'annotations' / 'val.json'
    content = json.loads(ann_file.read_text())
    for camera, number in (('left', 1), ('right', 2)):
        (folder / 'val' / camera).mkdir()
        (folder / 'val' / f'{number}.png').rename(folder / 'val' / camera / 'same.png')
        content['images'][number - 1].update(file_name=f'{camera}/same.png', id=f'{camera} same')
        content['annotations'][number - 1]['image_id'] = f'{camera} same'
    content['images'], content['annotations'] = content['images'][:2], content['annotations'][:2]
    ann_file.write_text(json.dumps(content))
    boxes = {'left': [8, 28, 32, 52], 'right': [16, 20, 40, 44]}
    for camera, corners in boxes.items():
        by_file = [*trained, folder / 'val' / camera / 'same.png', '--ann-file', ann_file]
        by_id = [*trained, '--image-id', f'{camera} same', '--data-root', folder]
        for arguments in (by_file, by_id):
            assert drawn_by(tool, monkeypatch, arguments).truths.corners.tolist() == [corners]
    shutil.copy(folder / 'val' / 'left' / 'same.png', tmp_path / 'same.png')
    err = fails(TOOL, *trained, tmp_path / 'same.png', '--ann-file', ann_file)
    assert 'left/same.png' in err and 'right/same.png' in err and '--image-id' in err


def test_detections_have_the_names_of_their_labels_in_the_order_of_the_file(
    tool, monkeypatch, capsys, tiny_config, tiny_coco, tmp_path
):
    tiny_config.write_text(tiny_config.read_text().replace("classes=('disc', 'box')", "classes=('box', 'disc')"))
    config = moe_config(tiny_config, unit='image')
    weights = checkpoint(config, tmp_path / 'm.pth', only_label_one)
    content = torch.load(weights)
    image = tiny_coco / 'val' / '3.png'
    in_file = json.loads((tiny_coco / 'annotations' / 'train.json').read_text())['categories'][1]['name']
    assert in_file == 'box'  # the category with the label 1, of the training file too

    def names(*classes: str, **more) -> set[str]:
        torch.save({**content, 'meta': dict(dataset_meta=dict(classes=classes, **more))}, weights)
        routed = drawn_by(tool, monkeypatch, [config, weights, image, '--data-root', tiny_coco])
        return {label.partition(' ')[0] for label in routed.detections.labels}

    assert names('box', 'disc') == {'box'}  # as mmdet lists them, in the order of the config
    assert names('disc', 'box', classes_by_label=True) == {'box'}
    by_id = [str(config), str(weights), '--image-id', '3', '--data-root', str(tiny_coco)]
    assert tool(TOOL).main(by_id) == 0
    torch.save({**content, 'meta': dict(dataset_meta=dict(classes=('box', 'disc'), classes_by_label=True))}, weights)
    assert tool(TOOL).main(by_id) == 2
    assert "label 0: 'box' there, 'disc' here" in capsys.readouterr().err


def only_label_one(model) -> None:
    """Makes every detection one of label 1."""
    for layer in model.bbox_head.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.out_channels == 2 * 9:  # classes x anchors
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([-20.0, 3.0]).repeat(9))


def test_the_function_needs_an_image_or_an_id(trained):
    config, weights = map(str, trained)
    with pytest.raises(MoEConfigError, match='expected an image file or image_id'):
        draw_routing(config, weights)
