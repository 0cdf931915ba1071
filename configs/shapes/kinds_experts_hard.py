# As kinds_experts.py with a hard constraint.
_base_ = './kinds_experts.py'

model = dict(bbox_head=dict(moe=dict(constraint=dict(_delete_=True, type='RelativeImportanceConstraint'))))
