# Brings sparse inference back to a run of retinanet_moe_attentive.py (arXiv 2302.14703): its experts, backbone and
# pyramid are frozen, and a plain gate learns the attentive gate's decisions. Train that config first.
_base_ = './retinanet_moe_attentive.py'

load_from = 'work_dirs/retinanet_moe_attentive/epoch_4.pth'

model = dict(
    backbone=dict(frozen_stages=4, norm_eval=True),
    neck=dict(type='FrozenFPN'),
    bbox_head=dict(
        moe=dict(
            gate=dict(
                _delete_=True,
                type='DistilledGate',
                teacher=_base_.model.bbox_head.moe.gate,  # as it was trained
                student=dict(type='GAPLinearGate'),  # or another plain gate
                kl_weight=1.0,  # added to the task loss; 0 is the task loss alone, which runs top_k experts
            ),
            constraint=None,  # the experts learn nothing that would have to be balanced
        )
    ),
)
