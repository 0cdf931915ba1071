# MNIST, a plain gate fitted to the frozen experts of mnist_attentive_similarity.py.
# Published: error 0.028, I(E;Y) 2.191, H_s 0.056, H_u 2.319.
# The published row starts from beta_d = 0.001: train mnist_attentive_similarity.py with
# --cfg-options model.moe.constraint.beta_d=0.001 first.
# kl_weight=0 is the published way, the task loss alone; kl_weight=1 adds the KL to the attentive gate's decisions, and
# helps where the plain way fails (20 experts). model.test_top_k=1 runs one expert per image.
_base_ = './mnist_attentive.py'
load_from = 'work_dirs/mnist_attentive_similarity/epoch_20.pth'
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
