# As retinanet_moe_soft.py with a hard constraint.
_base_ = './retinanet_moe_soft.py'

model = dict(
    bbox_head=dict(moe=dict(constraint=dict(_delete_=True, type='RelativeImportanceConstraint', threshold=0.3)))
)
