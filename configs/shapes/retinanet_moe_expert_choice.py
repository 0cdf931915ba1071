# The narrow RetinaNet of retinanet_dense.py in whose towers' last convolutions each of 4 experts chooses 4 of the 16
# patches of an image and level (pMoE, arXiv 2306.04073), beside a shared expert.
_base_ = './retinanet_dense.py'

model = dict(
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(placement='last', unit='patch', grid=4, num_experts=4, top_k=4, rows_per_expert=4, shared_expert=True),
    )
)
custom_hooks = [
    dict(type='MoEHook', interval=10),
    dict(type='ExactResumeHook'),
    dict(type='SkipBadImagesHook'),
    dict(type='FiniteHook'),
]
