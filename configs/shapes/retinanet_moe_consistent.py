# As retinanet_moe_soft.py with gates that are to decide alike for an image and its flipped, noisy or scaled copy: the
# router's term of AdvMoE (arXiv 2308.10110), without attacks.
_base_ = './retinanet_moe_soft.py'

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='RoutingConsistencyHook', weight=1.0, changes=['flip', 'noise:8', 'scale:0.75']),
]
