# As retinanet_moe_backbone_soft.py with relative importance, threshold 0.3.
_base_ = './retinanet_moe_backbone_soft.py'

model = dict(
    backbone=dict(moe=dict(constraint=dict(_delete_=True, type='RelativeImportanceConstraint', threshold=0.3)))
)
