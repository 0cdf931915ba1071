# RetinaNet R50-FPN on COCO in whose towers' last convolutions experts choose patches (pMoE, arXiv 2306.04073): on each
# level of each image every expert takes the 4 of 16 patches for which it has the largest gate values. There is no
# balance loss and no idle expert. The shared expert, without which objects in patches that nobody chose would be lost,
# the place and the numbers are our own choice. The head costs 1.27 times the dense one.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/moe/runtime.py']

model = dict(
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(
            placement='last',
            unit='patch',
            grid=4,
            num_experts=4,
            top_k=4,  # experts that a patch runs at most
            rows_per_expert=4,  # patches of an image and level that each expert takes
            shared_expert=True,
        ),
    )
)
