# The narrow RetinaNet of retinanet_dense.py with DeepSeekMoE's experts (arXiv 2401.06066) in place of both towers: one
# shared by all rows and 3 of 15 chosen; the 4 that run cost what the tower does.
_base_ = './retinanet_dense.py'

model = dict(
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(
            placement='tower',
            num_experts=15,
            top_k=3,
            shared_expert=1,
            width='matched',
            weighting='full_softmax',
            noise=False,
            constraint=dict(type='SwitchConstraint', weight=0.001),
        ),
    )
)
custom_hooks = [
    dict(type='MoEHook', interval=10),
    dict(type='ExactResumeHook'),
    dict(type='SkipBadImagesHook'),
    dict(type='FiniteHook'),
]
