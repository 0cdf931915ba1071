# The trained detector of retinanet_dense.py as a mixture of experts at its own cost, with its outputs at the start: the
# last convolution and the predictor of both branches in two shards of four copies. Train retinanet_dense.py first.
_base_ = './retinanet_dense.py'

load_from = 'work_dirs/retinanet_dense/epoch_4.pth'

model = dict(
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(
            placement='shards',
            shards=2,
            copies=4,
            copies_share=True,
            constraint=dict(type='KLConstraint', weight=0.01),
            noise=False,
        ),
    )
)
custom_hooks = [
    dict(type='MoEHook', interval=10),
    dict(type='ExactResumeHook'),
    dict(type='SkipBadImagesHook'),
    dict(type='FiniteHook'),
]
optim_wrapper = dict(optimizer=dict(lr=2e-3))  # half of what the dense detector began with
