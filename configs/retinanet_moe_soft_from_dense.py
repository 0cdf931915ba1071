# The recipe of arXiv 2204.10598: start from a trained RetinaNet, freeze backbone and pyramid, copy the dense
# head into every expert with noise, and train the MoE heads alone. Adam 1e-5, batch 4, 20 epochs, drops after 13 and
# 17, gradient norm clipped at 0.1.
_base_ = './retinanet_moe_soft.py'

load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/'
    'retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
)

model = dict(
    backbone=dict(frozen_stages=4, init_cfg=None),  # the checkpoint above holds the backbone
    neck=dict(type='FrozenFPN'),
    bbox_head=dict(moe=dict(copy_noise=0.02)),  # relative noise that tells the copies apart
)

train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=1e-5), clip_grad=dict(max_norm=0.1, norm_type=2))
train_cfg = dict(max_epochs=20)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=20, by_epoch=True, milestones=[13, 17], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=4)
