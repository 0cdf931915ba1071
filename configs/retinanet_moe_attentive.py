# As retinanet_moe_soft.py with the attentive gate and the importance loss (arXiv 2302.14703): the gate decides from the
# pooled features of the experts' towers, so that every expert runs on every row, and a step costs E experts.
_base_ = './retinanet_moe_soft.py'

model = dict(
    bbox_head=dict(
        moe=dict(
            gate=dict(
                _delete_=True,
                type='AttentiveGate',
                hidden_channels=128,  # of query and keys
            ),
            noise=False,  # the paper's gates have none
            constraint=dict(_delete_=True, type='ImportanceConstraint', weight=0.2),
        )
    )
)
