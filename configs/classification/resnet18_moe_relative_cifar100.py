# resnet18_moe_soft_cifar100.py with a hard constraint: relative importance, threshold 0.5.
_base_ = './resnet18_moe_soft_cifar100.py'

model = dict(
    backbone=dict(moe=dict(constraint=dict(_delete_=True, type='RelativeImportanceConstraint', threshold=0.5)))
)
