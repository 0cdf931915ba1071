# resnet18_moe_soft_cifar10.py with gates that are to decide alike for an image and its flipped or noisy copy: the
# router's term of AdvMoE (arXiv 2308.10110), without attacks.
_base_ = './resnet18_moe_soft_cifar10.py'

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='RoutingConsistencyHook', weight=1.0, changes=['flip', 'noise:8', 'scale:0.75']),
]
