# As retinanet_moe_hard.py with the mean importance, threshold 0.3 (arXiv 2204.10598).
_base_ = './retinanet_moe_soft.py'

model = dict(bbox_head=dict(moe=dict(constraint=dict(_delete_=True, type='MeanImportanceConstraint', threshold=0.3))))
