# As retinanet_moe_soft.py with the sample similarity loss (arXiv 2302.14703): images whose pooled features are far
# apart go to different experts. Pairs are made inside levels, else the gate would only learn to tell the levels.
_base_ = './retinanet_moe_soft.py'

model = dict(
    bbox_head=dict(
        moe=dict(
            balance_over='level',
            noise=False,  # the paper's gates have none
            constraint=dict(
                _delete_=True,
                type='SampleSimilarityConstraint',
                beta_s=0.5,  # similar images to the same expert
                beta_d=0.5,  # distant ones to different experts
                distance='features',  # or 'box_sizes': how many objects of which size, from the ground truth
            ),
        )
    )
)
