# resnet18_moe_soft_cifar100.py with the Conv-GAP gate, whose runs start with a warm-up: 1e-4 plus 4.5e-5 per epoch.
_base_ = './resnet18_moe_soft_cifar100.py'

model = dict(backbone=dict(moe=dict(gate=dict(type='ConvGAPGate'))))
param_scheduler = [
    dict(type='LinearLR', by_epoch=True, begin=0, end=21, start_factor=0.1),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=150, milestones=[80, 120], gamma=0.1),
]
