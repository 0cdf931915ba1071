"""mmdet's own configs of many detector families, at a size that builds and runs in a second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MessageHub
from small_models import CLASSES, batch, config
from torch import nn

CHANNEL_KEYS = {
    'embed_dims',
    'feat_channels',
    'feedforward_channels',
    'fc_out_channels',
    'conv_out_channels',
    'in_channels',
    'out_channels',
    'num_feats',
    'point_feat_channels',
    'head_feat_channel',
    'feat_channel',
    'mid_channels',
}
NUMBERS = {'num_queries': 20, 'num_classes': CLASSES, 'num_matching_queries': 20, 'samples_per_gpu': 2}
FEWER_LAYERS = {'encoder', 'decoder'}
FACTOR = 8  # of channels
TINY = {'backbone.widen_factor': 0.375 / FACTOR}
OF_DETR = {'bbox_head.embed_dims': 32}
# what the rules below do not reach, by folder or config of mmdet
CHANGES = {
    'detr': OF_DETR,
    'dab_detr': OF_DETR,
    'deformable_detr': OF_DETR,
    'rtmdet': TINY,
    'yolox': {**TINY, 'data_preprocessor.batch_augments': None},
    'centernet/centernet_r18_8xb16-crop512-140e_coco.py': {'neck.num_deconv_filters': (32, 16, 8)},
    'regnet': {'neck.in_channels': [64, 128, 288, 672]},
    'pvt/retinanet_pvt-t_fpn_1x_coco.py': {'neck.in_channels': [64, 128, 320, 512]},
}
WHOLE_WIDTH = ('conditional_detr', 'dino')  # a number of channels is written in their code (DINO's in mmdet 3.3)


def family(name: str) -> Config:
    """A config of mmdet with an eighth of its channels, three classes and no weights to fetch.

    Args:
        name: path below mmdet's configs.
    """
    cfg = config(f"_base_ = 'mmdet::{name}'")
    model = cfg.model
    folder = name.partition('/')[0]
    factor = 1 if folder in WHOLE_WIDTH else FACTOR
    _shrink(model, factor)
    backbone = model.backbone
    if 'ResNe' in backbone.type:
        backbone.base_channels = 64 // factor
    for key in ('init_cfg', 'pretrained'):
        backbone.pop(key, None)
    for part in (model.get('test_cfg') or {}, (model.get('test_cfg') or {}).get('rcnn') or {}):
        if part.get('score_thr'):
            part.score_thr = 0.0
    if 'decoder' in model:
        model.test_cfg.max_per_img = 10
    changes = {**CHANGES.get(folder, {}), **CHANGES.get(name, {})}
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    return cfg


def batch_for(model: nn.Module) -> dict:
    """Two images with boxes, and with masks for models that predict them."""
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD asks
    data = batch()
    for sample in data['data_samples']:
        sample.set_metainfo({'border': (0, sample.img_shape[0], 0, sample.img_shape[1])})  # CenterNet's pipeline
    if getattr(model, 'with_mask', False):
        for sample in data['data_samples']:
            found = sample.gt_instances
            height, width = sample.img_shape
            masks = np.zeros((len(found), height, width), dtype=np.uint8)
            for mask, box in zip(masks, found.bboxes.long().tolist(), strict=True):
                mask[box[1] : box[3], box[0] : box[2]] = 1
            found.masks = BitmapMasks(masks, height, width)
    return data


def _shrink(node: object, factor: int, path: str = '') -> None:
    if isinstance(node, (list, tuple)):
        for item in node:
            _shrink(item, factor, path)
    if not isinstance(node, dict):
        return
    node.pop('pretrained', None)
    if 'checkpoint' in (node.get('init_cfg') or {}):
        node['init_cfg'] = None
    for key, value in node.items():
        if key in CHANNEL_KEYS:
            node[key] = _divided(value, factor)
        elif key in NUMBERS:
            node[key] = NUMBERS[key]
        elif key == 'num_layers' and path.rpartition('.')[2] in FEWER_LAYERS:
            node[key] = 2
        elif key == 'num_groups' and isinstance(value, int):
            node[key] = 4
        else:
            _shrink(value, factor, f'{path}.{key}')


def _divided(value: object, factor: int) -> object:
    if isinstance(value, Sequence):
        return [_divided(item, factor) for item in value]
    return max(4, value // factor) if isinstance(value, int) and value > 4 else value
