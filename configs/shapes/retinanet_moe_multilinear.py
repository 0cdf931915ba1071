# The narrow RetinaNet of retinanet_dense.py whose 1x1 lateral convolutions are mixed at every location from 8
# factorised experts (muMoE, arXiv 2402.12550), with as many parameters as they had.
_base_ = './retinanet_dense.py'

model = dict(
    type='WithExperts',
    detector='RetinaNet',
    experts=[dict(modules='neck.lateral_convs.*', type='MuConv2d', num_experts=8)],
)
custom_hooks = [
    dict(type='MoEHook', interval=10),
    dict(type='ExactResumeHook'),
    dict(type='SkipBadImagesHook'),
    dict(type='FiniteHook'),
]
