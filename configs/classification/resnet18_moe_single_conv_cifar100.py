# CIFAR-100, ResNet-18 with a single convolution as ten experts: the second block's conv2 in stage 4, or the stem with
# model.backbone.moe.convs="['stem']". 180 epochs, the learning rate drops after 100 and 150.
_base_ = './resnet18_moe_soft_cifar100.py'

model = dict(backbone=dict(moe=dict(stages=(), convs=(4,), num_experts=10)))
train_cfg = dict(max_epochs=180)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=180, milestones=[100, 150], gamma=0.1)]
