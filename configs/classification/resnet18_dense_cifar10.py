# CIFAR-10, ResNet-18 without experts, with the baseline's schedule of resnet18_dense_cifar100.py.
_base_ = ['./_base_/cifar10_paper_a.py', './_base_/resnet18.py', './_base_/schedule_paper_a.py']

model = dict(num_classes=10, data_preprocessor=_base_.normalisation)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=150, milestones=[60, 100], gamma=0.1)]
custom_hooks = [dict(type='ExactResumeHook'), dict(type='FiniteHook')]  # no experts, nothing for MoEHook
