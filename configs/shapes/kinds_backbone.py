# The narrow detector of kinds_dense.py with experts in its backbone: stage 4 as four copies, of which each image runs
# one, so it costs as much. Train kinds_dense.py first.
_base_ = './kinds_dense.py'

load_from = 'work_dirs/kinds_dense/epoch_4.pth'

model = dict(
    backbone=dict(
        type='MoEResNet',
        moe=dict(
            stages=(4,),
            width=1,  # copies of the whole stage
            num_experts=4,
            top_k=1,
            weighting='straight_through',  # the copies start with the outputs of what they were copied from
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
