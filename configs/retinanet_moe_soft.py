# RetinaNet R50-FPN on COCO, class and box branch as mixtures of experts, soft constraint.
# Setting of arXiv 2204.10598: E=4, k=2, KL weight 0.25, GAP-FC gate, one decision per level.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/moe/runtime.py']

model = dict(
    bbox_head=dict(
        type='MoERetinaHead',
        moe=dict(
            # --- experts
            num_experts=4,  # E
            top_k=2,  # experts that each routing row runs
            branches=('cls', 'reg'),  # 'cls', 'reg' or both
            placement='branch',  # what an expert replaces: 'branch', 'tower', 'first' or 'last' convolution
            width=1,  # factor of an expert's channels; 'matched': k experts cost one dense branch
            shared_expert=False,  # one more expert that always runs
            # --- routing
            gate=dict(type='GAPLinearGate'),  # or ConvGAPGate, TwoConvGAPGate
            shared_gate=False,  # one decision for both branches
            unit='level',  # one decision per image and level; 'image'; 'patch' with grid=2, 3, ...
            balance_over='all',  # or 'level': usage is balanced inside each level
            # --- soft or hard: this key alone
            constraint=dict(type='KLConstraint', weight=0.25),
        ),
    )
)
