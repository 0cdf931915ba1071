# CIFAR-10, a plain gate fitted to the frozen experts of cifar10_attentive_similarity.py.
# Published: error 0.267, I(E;Y) 2.066, H_s 0.136, H_u 1.793.
# kl_weight=0 is the published way, the task loss alone; kl_weight=1 adds the KL to the attentive gate's decisions, and
# helps where the plain way fails (20 experts). model.test_top_k=1 runs one expert per image.
_base_ = './cifar10_attentive.py'
load_from = 'work_dirs/cifar10_attentive_similarity/epoch_20.pth'
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
