# A trained RetinaNet R50-FPN on COCO as a mixture of experts at its own cost: every image runs one class and one box
# branch, whose kernels are a mixture of those of eight copies, in shares that a gate chooses for the image. Training
# starts with the outputs of the checkpoint, up to copy_noise, and takes mmdet's schedule once more.
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
            mixes='kernels',  # mixed into one branch, which runs; outputs would cost eight branches
            num_experts=8,
            top_k=8,
            soft_mixture=True,  # every copy learns from every image
            unit='image',
            copy_noise=0.02,  # relative noise that tells the copies apart
            constraint=None,  # none can be left out
            noise=False,
        ),
    ),
)
