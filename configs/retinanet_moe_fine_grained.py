# RetinaNet R50-FPN on COCO with DeepSeekMoE's experts (arXiv 2401.06066) in place of both towers: of 4 experts and
# k = 1, each cut into 4, one is shared by all rows, and 3 of the other 15 are chosen, with the softmax over all 15 as
# weights and expert-level balance. The 4 that run cost what the tower does. Placement and numbers are our own choice.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/moe/runtime.py']

model = dict(
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(
            placement='tower',
            num_experts=15,
            top_k=3,
            shared_expert=1,  # number of shared experts
            width='matched',
            weighting='full_softmax',
            noise=False,
            constraint=dict(type='SwitchConstraint', weight=0.001),  # equals alpha_1 sum_i f_i P_i
        ),
    )
)
