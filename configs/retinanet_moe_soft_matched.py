# As retinanet_moe_soft.py with narrow experts: the two that run cost what one dense branch costs (head 0.99, model 1.00
# times RetinaNet's multiply-adds). 160 channels, a multiple of 32, because odd widths such as those of width='matched'
# (155 and 170) run slower than they count.
_base_ = './retinanet_moe_soft.py'

model = dict(bbox_head=dict(moe=dict(width=0.625)))
