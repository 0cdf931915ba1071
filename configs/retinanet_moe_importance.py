# As retinanet_moe_soft.py with the importance loss (CV^2), weight 0.5 (arXiv 2204.10598).
_base_ = './retinanet_moe_soft.py'

model = dict(bbox_head=dict(moe=dict(constraint=dict(_delete_=True, type='ImportanceConstraint', weight=0.5))))
