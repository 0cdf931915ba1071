# Registers moe_det and collects the auxiliary losses. A config with custom_imports or custom_hooks of its own replaces
# these lists; extend them there:
#   custom_imports = dict(imports=_base_.custom_imports.imports + ['my_project'], allow_failed_imports=False)
#   custom_hooks = _base_.custom_hooks + [dict(type='MyHook')]
custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)
custom_hooks = [dict(type='MoEHook', interval=50)]
