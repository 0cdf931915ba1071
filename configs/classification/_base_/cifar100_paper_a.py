# CIFAR-100 with the augmentation, batch size and number of epochs of arXiv 2204.10598, which logs the test set as
# validation too; the last epoch counts. train_dataloader.dataset.download=True fetches the data set.
_base_ = './runtime.py'

train_dataloader = dict(
    batch_size=128,
    dataset=dict(name='CIFAR100', augment=dict(flip=0.5, jitter=(0.3, 0.3, 0.3), padding=4)),  # crops of 32 pixels
)
val_dataloader = dict(batch_size=1000, dataset=dict(name='CIFAR100'))
test_dataloader = val_dataloader
val_evaluator = dict(top_errors=(5,))
test_evaluator = dict(top_errors=(5,))

# entry configs take it as model.data_preprocessor
normalisation = dict(type='ClassificationPreprocessor', mean=(0.5071, 0.4865, 0.4409), std=(0.2009, 0.1984, 0.2023))

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=150, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=10))
