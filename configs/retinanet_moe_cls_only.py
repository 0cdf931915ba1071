# As retinanet_moe_soft.py with experts in the class branch alone.
_base_ = './retinanet_moe_soft.py'

model = dict(bbox_head=dict(moe=dict(branches=('cls',))))
