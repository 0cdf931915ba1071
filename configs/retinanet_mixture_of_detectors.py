# A gate over two frozen detectors of mmdet, RetinaNet with ResNet-50 and with ResNet-101 (after arXiv 2412.11608):
# class probabilities and box deltas are mixed before NMS, and the gate alone is trained. Replace the entries by your
# own detectors, such as one for day and one for night.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/moe/runtime.py']

_files = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/'
model = dict(
    _delete_=True,
    type='MixtureOfDetectors',
    detectors=[
        dict(
            config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
            checkpoint=_files + 'retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth',
        ),
        dict(
            config='mmdet::retinanet/retinanet_r101_fpn_1x_coco.py',
            checkpoint=_files + 'retinanet_r101_fpn_1x_coco/retinanet_r101_fpn_1x_coco_20200130-7a93545f.pth',
        ),
    ],
)

train_cfg = dict(max_epochs=1)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
]
