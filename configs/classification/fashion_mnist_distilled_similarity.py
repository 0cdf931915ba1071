# Fashion-MNIST, a plain gate fitted to the frozen experts of fashion_mnist_attentive_similarity.py.
# Published: error 0.089, I(E;Y) 2.304, H_s 0.076, H_u 2.321.
# kl_weight=0 is the published way, the task loss alone; kl_weight=1 adds the KL to the attentive gate's decisions, and
# helps where the plain way fails (20 experts). model.test_top_k=1 runs one expert per image.
_base_ = './fashion_mnist_attentive.py'
load_from = 'work_dirs/fashion_mnist_attentive_similarity/epoch_20.pth'
model = dict(
    moe=dict(
        gate=dict(
            _delete_=True,
            type='DistilledGate',
            kl_weight=0.0,
            teacher=_base_.model.moe.gate,
            student=_base_.plain_gate,
        )
    )
)
