# CIFAR-100, ResNet-18 without experts: the baseline of arXiv 2204.10598 (published accuracy .7259, one run).
# Its learning rate drops earlier, after 60 and 100 epochs.
_base_ = ['./_base_/cifar100_paper_a.py', './_base_/resnet18.py', './_base_/schedule_paper_a.py']

model = dict(num_classes=100, data_preprocessor=_base_.normalisation)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=150, milestones=[60, 100], gamma=0.1)]
custom_hooks = [dict(type='ExactResumeHook'), dict(type='FiniteHook')]  # no experts, nothing for MoEHook
