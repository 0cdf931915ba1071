# Schedule of arXiv 2204.10598 for models with experts: Adam, 150 epochs, 1e-3, then 1e-4 after 80 and 1e-5 after 120.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=150, milestones=[80, 120], gamma=0.1)]
