# The detector that retinanet_r18_moe.py starts from: the same without experts, for three times as many epochs and at
# twice the learning rate. Nothing is to be changed here, as it reads the five lines of that file.
_base_ = './retinanet_r18_control.py'

epochs = 3 * _base_.epochs
load_from = None

train_cfg = dict(max_epochs=epochs, val_interval=_base_.epochs)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, convert_to_iter_based=True, eta_min=2e-5),
]
