# resnet18_dense_cifar10.py trained and tested as resnet18_moe_adversarial_cifar10.py is.
_base_ = './resnet18_dense_cifar10.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AdversarialTrainingHook'), dict(type='AdversarialTestHook')]
