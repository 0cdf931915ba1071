# As retinanet_moe_soft.py, and the two experts of a row are drawn to each other (MoDE, arXiv 2402.00893): weights to
# try are 0.01, 0.1 and 1.
_base_ = './retinanet_moe_soft.py'

model = dict(bbox_head=dict(moe=dict(distillation=dict(type='MutualDistillation', weight=0.01))))
