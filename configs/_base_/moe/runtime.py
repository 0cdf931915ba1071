# Registers moe_det, collects the auxiliary losses, and lets a killed run go on bit for bit. A config with
# custom_imports or custom_hooks of its own replaces these lists; extend them there:
#   custom_imports = dict(imports=_base_.custom_imports.imports + ['my_project'], allow_failed_imports=False)
#   custom_hooks = _base_.custom_hooks + [dict(type='MyHook')]
custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)
custom_hooks = [
    dict(type='MoEHook', interval=50),
    dict(type='ExactResumeHook'),
    dict(type='SkipBadImagesHook', max_images=100),  # up to 100 unreadable files are skipped and reported
    dict(type='FiniteHook'),  # NaN and infinity stop the run before the weights change
]
