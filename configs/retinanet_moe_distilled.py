# Brings sparse inference back to a run of retinanet_moe_attentive.py (arXiv 2302.14703): its experts, backbone and
# pyramid are frozen, and a plain gate learns the attentive gate's decisions. Train that config first.
# While the KL is trained every expert runs, in evaluation the top_k that the plain gate chose. The checkpoint also
# loads into a config with the plain gate alone (gate=dict(type='GAPLinearGate')).
_base_ = './retinanet_moe_attentive.py'

load_from = 'work_dirs/retinanet_moe_attentive/epoch_12.pth'

model = dict(
    backbone=dict(frozen_stages=4, init_cfg=None),  # the checkpoint above holds the backbone
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

# only the plain gates are trained
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=1e-3))
train_cfg = dict(max_epochs=4)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=4, by_epoch=True, milestones=[3], gamma=0.1)]
