# A trained RetinaNet R50-FPN on COCO as a mixture of experts at its own cost: the last convolution and the predictor of
# both branches are cut into two shards of four copies, and every decision takes one copy of each. Training starts with
# the outputs of the checkpoint, up to copy_noise.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/moe/runtime.py']

load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/'
    'retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
)

model = dict(
    backbone=dict(init_cfg=None),  # the checkpoint above holds the backbone
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(
            placement='shards',
            shards=2,  # slices of the channels
            copies=4,  # of each shard, of which a decision takes one
            copies_share=True,  # a weight that all copies of a shard learn, and a difference for each
            copy_noise=0.02,  # relative noise that makes the copies differ; copy_redraw redraws channels
            unit='level',
            constraint=dict(type='KLConstraint', weight=0.01),
        ),
    ),
)

# fine-tuning with mmdet's warm-up and steps, at a fifth of its learning rate
optim_wrapper = dict(
    optimizer=dict(lr=0.002),
    paramwise_cfg=dict(
        custom_keys={
            '.routers.': dict(lr_mult=1.0),  # the gates
            '.experts.': dict(lr_mult=1.0),  # the copies, with copies_share their differences alone
        }
    ),
)
