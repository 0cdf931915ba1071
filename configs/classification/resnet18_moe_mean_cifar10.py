# resnet18_moe_soft_cifar10.py with a hard constraint: mean importance, threshold 0.3.
_base_ = './resnet18_moe_soft_cifar10.py'

model = dict(backbone=dict(moe=dict(constraint=dict(_delete_=True, type='MeanImportanceConstraint', threshold=0.3))))
