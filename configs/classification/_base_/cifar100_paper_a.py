# CIFAR-100 with the augmentation, batch size and number of epochs of arXiv 2204.10598, which logs the test set as
# validation too; the last epoch counts. train_dataloader.dataset.download=True fetches the data set.
_base_ = './runtime.py'

data_root = 'data'
dataset_type = 'ClassificationDataset'
train_dataloader = dict(
    batch_size=128,
    num_workers=0,  # the images stay on the device
    sampler=dict(type='EpochSampler', shuffle=True),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(
        type=dataset_type,
        name='CIFAR100',
        data_root=data_root,
        split='train',
        augment=dict(flip=0.5, jitter=(0.3, 0.3, 0.3), padding=4),  # crops of 32 pixels
    ),
)
val_dataloader = dict(
    batch_size=1000,
    num_workers=0,
    sampler=dict(type='EpochSampler', shuffle=False, round_up=False),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type=dataset_type, name='CIFAR100', data_root=data_root, split='test'),
)
test_dataloader = val_dataloader
val_evaluator = dict(top_errors=(5,))
test_evaluator = dict(top_errors=(5,))

# entry configs take it as model.data_preprocessor
normalisation = dict(type='ClassificationPreprocessor', mean=(0.5071, 0.4865, 0.4409), std=(0.2009, 0.1984, 0.2023))

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=150, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=10))
