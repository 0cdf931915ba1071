# Experts that differ by the scale of the image: one decision per image and branch for all levels, so that recognising
# the level cannot satisfy the balance; with the hard constraint. On the synthetic shapes images of large and of small
# objects go to different box experts with three of three seeds. Within a level they sort objects by size no more than
# gates with random weights do, so they are no size specialists (docs/results/shapes.md).
_base_ = './retinanet_moe_hard.py'

model = dict(bbox_head=dict(moe=dict(unit='image')))
