# CIFAR-100, ResNet-18, stage 4 as four narrow experts of which two run; soft constraint (KL, 0.5).
# Published, one run, residual variant (model.backbone.moe.residual=True): accuracy .6971 / .7205 / .7259 / .7272
# with k = 1 ... 4 experts at test time; other variants are listed in _base_/resnet18_moe.py.
_base_ = ['./_base_/cifar100_paper_a.py', './_base_/resnet18_moe.py', './_base_/schedule_paper_a.py']

model = dict(
    num_classes=100,
    data_preprocessor=_base_.normalisation,
    backbone=dict(moe=dict(constraint=dict(type='KLConstraint', weight=0.5))),
)
