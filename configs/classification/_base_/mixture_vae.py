# The variational autoencoder with a mixture of decoders of arXiv 2509.10025, with its published loss: Adam 1e-3, batch
# 128, 20 epochs. The data set is the entry config's; no labels are used.
_base_ = './runtime.py'
model = dict(
    type='MixtureVAE',
    latent=32,
    beta=0.01,
    moe=dict(
        num_experts=10,
        top_k=10,  # all decoders are mixed in training
        soft_mixture=True,
        noise=False,
        gate=dict(type='MLPGate', hidden=(64, 32)),
        constraint=dict(type='UsageEntropyConstraint', usage=200.0, entropy=400.0),
    ),
    test_top_k=1,  # the decoder with the largest probability
)
train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=1000)
test_dataloader = val_dataloader
val_evaluator = dict(type='ReconstructionMetric')
test_evaluator = dict(type='ReconstructionMetric')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20, val_interval=5)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))
param_scheduler = []
