# CIFAR-100, a plain gate fitted to the frozen experts of cifar100_attentive_similarity.py.
# Published: error 0.549 (top-5 0.251), I(E;Y) 0.918, H_s 1.232, H_u 1.986.
# kl_weight=0 is the published way, the task loss alone; kl_weight=1 adds the KL to the attentive gate's decisions, and
# helps where the plain way fails (20 experts). model.test_top_k=1 runs one expert per image.
_base_ = './cifar100_attentive.py'
load_from = 'work_dirs/cifar100_attentive_similarity/epoch_40.pth'
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
