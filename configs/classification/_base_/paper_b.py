# Training of arXiv 2302.14703: Adam 1e-3 without weight decay and schedule; 20 epochs (CIFAR-100: 40).
_base_ = './runtime.py'
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20, val_interval=5)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))
param_scheduler = []
model = dict(
    type='MixtureClassifier',
    moe=dict(
        num_experts=5,
        top_k=5,  # every expert is mixed
        soft_mixture=True,
        noise=False,
    ),
)
