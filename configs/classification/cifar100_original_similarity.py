# CIFAR-100, the original gate, sample similarity regulariser on pixels.
# Published: error 0.482 (top-5 0.190), I(E;Y) 2.416, H_s 0.801, H_u 2.430.
_base_ = './cifar100_original.py'
model = dict(
    moe=dict(
        constraint=dict(
            type='SampleSimilarityConstraint',
            distance='inputs',
            beta_s=0.0001,
            beta_d=0.0001,
            normalisation='published',  # 'pairs' divides both terms by N^2; beta_s is then to be N^2 times larger
        )
    )
)
