# As retinanet_moe_soft.py with a hard constraint: over-used experts are masked while training, without noise.
# arXiv 2204.10598: relative importance, threshold 0.3.
_base_ = './retinanet_moe_soft.py'

model = dict(
    bbox_head=dict(moe=dict(constraint=dict(_delete_=True, type='RelativeImportanceConstraint', threshold=0.3)))
)
