# MNIST, the original gate, sample similarity regulariser on pixels.
# Published: error 0.029, I(E;Y) 2.244, H_s 0.051, H_u 2.246.
_base_ = './mnist_original.py'
model = dict(
    moe=dict(
        constraint=dict(
            type='SampleSimilarityConstraint',
            distance='inputs',
            beta_s=1e-6,
            beta_d=1e-6,
            normalisation='published',  # 'pairs' divides both terms by N^2; beta_s is then to be N^2 times larger
            distance_scale='none',  # pixels' distances as they are: what the published numbers were made with
        )
    )
)
