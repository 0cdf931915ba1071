# As retinanet_moe_soft.py with one expert per routing row, at the cost of the dense head. The weight is then the full
# softmax probability, so that the gate keeps its gradient.
_base_ = './retinanet_moe_soft.py'

model = dict(bbox_head=dict(moe=dict(top_k=1)))
