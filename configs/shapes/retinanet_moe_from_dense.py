# The trained detector of retinanet_dense.py as a mixture of experts at its own cost, with its outputs at the start:
# every image runs branches whose kernels are mixed from eight copies. Train retinanet_dense.py first.
_base_ = './retinanet_dense.py'

load_from = 'work_dirs/retinanet_dense/epoch_4.pth'

model = dict(
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(mixes='kernels', num_experts=8, top_k=8, soft_mixture=True, unit='image', noise=False),
    )
)
custom_hooks = [
    dict(type='MoEHook', interval=10),
    dict(type='ExactResumeHook'),
    dict(type='SkipBadImagesHook'),
    dict(type='FiniteHook'),
]
