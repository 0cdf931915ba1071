# RetinaNet R50-FPN on COCO whose three 1x1 lateral convolutions are mixed at every location from 32 factorised experts
# (muMoE, arXiv 2402.12550), with as many parameters as they had. The place and the numbers are our own choice.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/moe/runtime.py']

model = dict(
    type='WithExperts',
    detector='RetinaNet',
    experts=[
        dict(
            modules='neck.lateral_convs.*',
            type='MuConv2d',
            num_experts=32,
            factors='cp',  # or 'tr': tensor ring
            gate=dict(type='NormalisedLinearGate', norm='layer'),  # 'batch' as in the paper
        )
    ],
)
