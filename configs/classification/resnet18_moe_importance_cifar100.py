# resnet18_moe_soft_cifar100.py with the importance loss (squared coefficient of variation), weight 0.5.
_base_ = './resnet18_moe_soft_cifar100.py'

model = dict(backbone=dict(moe=dict(constraint=dict(_delete_=True, type='ImportanceConstraint', weight=0.5))))
