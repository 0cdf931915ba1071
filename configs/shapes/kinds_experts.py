# The narrow detector of kinds_dense.py with experts that start from it and cost as much: the last convolution and the
# predictor in two shards of four copies, one decision per image. Train kinds_dense.py first.
_base_ = './kinds_dense.py'

load_from = 'work_dirs/kinds_dense/epoch_4.pth'

model = dict(
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(
            placement='shards',  # two shards of four copies each
            unit='image',
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
