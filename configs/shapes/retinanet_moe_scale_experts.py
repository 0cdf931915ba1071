# Experts that differ by the scale of the image, not by size within a pyramid level: one decision per image and branch
# for all levels, so that recognising the level cannot satisfy the balance; with the hard constraint.
_base_ = './retinanet_moe_hard.py'

model = dict(bbox_head=dict(moe=dict(unit='image')))
