# ResNet-18 for images of 32 pixels, as in arXiv 2204.10598; num_classes comes with the data set.
model = dict(
    type='ResNetClassifier',
    backbone=dict(
        type='SmallImageResNet',  # 3x3 stem with stride 1, no max-pooling
        depth=18,
        out_indices=(3,),
        norm_eval=False,
        init_cfg=[],  # PyTorch's initialisation
    ),
)
