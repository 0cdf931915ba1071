# CIFAR-100, attentive gate, sample similarity regulariser on pixels.
# Published: error 0.460 (top-5 0.187), I(E;Y) 1.748, H_s 0.526, H_u 2.022.
_base_ = './cifar100_attentive.py'
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
