# Experts for clusters of images (MoCE, arXiv 2509.10513), from the trained detector of retinanet_dense.py: each cluster
# of its backbone's features opens a group of two experts, and the gate decides inside the group. First
#   moe-det cluster retinanet_dense.py work_dirs/retinanet_dense/epoch_4.pth work_dirs/clusters.json --clusters 4
_base_ = './retinanet_moe_soft.py'

load_from = 'work_dirs/retinanet_dense/epoch_4.pth'

model = dict(
    type='WithClusters',
    model='RetinaNet',
    backbone=dict(frozen_stages=4),  # its features are clustered: they stay
    bbox_head=dict(
        moe=dict(
            num_experts=8,
            top_k=1,
            width=1,  # of the size of the dense branch, from which they start
            constraint=[
                dict(type='ClusterMask', clusters=4, channels=128, file='work_dirs/clusters.json'),
                dict(type='KLConstraint', weight=0.25),  # inside the groups: their shares are the clusters'
            ],
        )
    ),
)
