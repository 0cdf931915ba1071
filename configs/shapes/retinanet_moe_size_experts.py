# Experts that differ by object size beyond what the pyramid level tells: one decision per image and branch for all
# levels, so that recognising the level cannot satisfy the balance; with the hard constraint.
_base_ = './retinanet_moe_hard.py'

model = dict(bbox_head=dict(moe=dict(unit='image')))
