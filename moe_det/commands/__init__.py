"""The commands of ``moe-det``, a module for each: it parses the arguments, then imports what does the work."""

COMMANDS = {
    'train': ('train', 'train a detector or a classifier'),
    'test': ('test', 'evaluate a checkpoint'),
    'report': ('report', 'which experts fire for small and for large objects: a report page'),
    'vis': ('vis', 'draw one image with the experts of each level or patch'),
    'health': ('health', 'check that all experts are in use; exit status 1 if routing collapsed'),
    'compare': ('compare', 'AP by object size and cost of several runs, as a table'),
    'sweep': ('sweep', 'test a checkpoint with every number of active experts'),
    'attack': ('attack', 'what a detector withstands: adversarial pixels, attacked gates, corruptions'),
    'uncertainty': ('uncertainty', 'what gates and experts know about the errors of a detector'),
    'allocation': ('allocation', 'which classes the gates of an image classifier give to which experts'),
    'cost': ('cost', 'parameters and multiply-adds of a config'),
    'upcycle': ('upcycle', 'make a checkpoint with experts from one without'),
    'densify': ('densify', 'make a checkpoint without experts from one with experts'),
    'prune': ('prune', 'drop experts from a checkpoint'),
    'export': ('export', 'export a network to ONNX'),
    'check-data': ('check_data', "check a data set in COCO's format"),
    'make-shapes': ('make_shapes', 'make the synthetic data set of the demo'),
    'demo': ('demo', 'train a small detector on synthetic shapes and report on its experts'),
    'configs': ('configs', 'list the configs of the package, or copy one'),
    'print-config': ('print_config', 'print a config with its bases merged'),
}
