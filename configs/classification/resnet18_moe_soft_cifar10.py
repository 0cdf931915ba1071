# CIFAR-10, ResNet-18, stage 4 as four narrow experts of which two run; soft constraint (KL, 0.5). The setting of
# resnet18_moe_soft_cifar100.py; arXiv 2204.10598 has no numbers for CIFAR-10.
_base_ = ['./_base_/cifar10_paper_a.py', './_base_/resnet18_moe.py', './_base_/schedule_paper_a.py']

model = dict(
    num_classes=10,
    data_preprocessor=_base_.normalisation,
    backbone=dict(moe=dict(constraint=dict(type='KLConstraint', weight=0.5))),
)
