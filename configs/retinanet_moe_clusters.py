# Experts for clusters of images (MoCE, arXiv 2509.10513): images are clustered by the features of the trained
# detector's backbone, each cluster opens a group of two experts, and the gate decides inside the group. First
#   moe-det cluster mmdet::retinanet/retinanet_r50_fpn_1x_coco.py CHECKPOINT work_dirs/clusters.json --clusters 4
_base_ = './retinanet_moe_soft_from_dense.py'

model = dict(
    type='WithClusters',
    model='RetinaNet',
    bbox_head=dict(
        moe=dict(
            num_experts=8,
            top_k=1,
            constraint=[
                dict(type='ClusterMask', clusters=4, channels=2048, file='work_dirs/clusters.json'),
                dict(type='KLConstraint', weight=0.25),  # inside the groups: their shares are the clusters'
            ],
        )
    ),
)
