# RetinaNet R50-FPN on COCO with stage 4 of the backbone as a mixture of experts, soft constraint (arXiv
# 2204.10598). The ImageNet weights of stage 4 are copied into every expert, with noise that tells them apart.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/moe/runtime.py']

model = dict(
    backbone=dict(
        type='MoEResNet',
        moe=dict(
            # --- experts
            stages=(4,),  # numbers from 1 to 4
            num_experts=4,  # E
            top_k=2,  # experts that each image runs
            width=None,  # None: full stages; a factor, or 'matched' for k experts at the cost of one stage
            residual=False,  # an outer skip around the experts
            copy_noise=0.02,  # relative noise on copied weights
            # --- routing
            gate=dict(type='GAPLinearGate'),  # or ConvGAPGate, TwoConvGAPGate
            # --- soft or hard: this key alone
            constraint=dict(type='KLConstraint', weight=0.25),
        ),
    )
)
