# The detector of configs/shapes/kinds_experts.py with two whole branches for each cluster of images.
_base_ = '../../configs/shapes/kinds_experts.py'

model = dict(
    type='WithClusters',
    model='RetinaNet',
    backbone=dict(frozen_stages=4),  # its features are clustered: they stay
    bbox_head=dict(
        moe=dict(
            placement='branch',
            num_experts=8,
            top_k=1,
            weighting='straight_through',
            class_mixture='logits',
            constraint=[
                dict(type='ClusterMask', clusters=4, channels=128, file=None),  # the benchmark names the start's
                dict(type='KLConstraint', weight=0.01),
            ],
        )
    ),
)
