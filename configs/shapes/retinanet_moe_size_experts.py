# Experts that differ by object size beyond what the pyramid level tells: each quarter of a level's map has a decision
# of its own, and balance is asked for inside levels, so that recognising the level does not satisfy it.
_base_ = './retinanet_moe_soft.py'

model = dict(bbox_head=dict(moe=dict(unit='patch', grid=2, balance_over='level')))
