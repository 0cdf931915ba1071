# The narrow RetinaNet of retinanet_dense.py with experts in both branches, soft constraint. The demo trains this one.
_base_ = './retinanet_dense.py'

model = dict(
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(
            num_experts=4,
            top_k=2,
            width='matched',  # two experts cost what the dense branch costs
            constraint=dict(type='KLConstraint', weight=0.25),
        ),
    )
)
custom_hooks = [
    dict(type='MoEHook', interval=10),
    dict(type='ExactResumeHook'),
    dict(type='SkipBadImagesHook'),
    dict(type='FiniteHook'),
]
