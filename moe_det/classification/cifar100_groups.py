"""The 20 superclasses of CIFAR-100, five classes each (Krizhevsky, Learning Multiple Layers of Features, 2009)."""

from __future__ import annotations

from collections.abc import Sequence

CIFAR100_GROUPS: dict[str, tuple[str, ...]] = {
    'aquatic mammals': ('beaver', 'dolphin', 'otter', 'seal', 'whale'),
    'fish': ('aquarium_fish', 'flatfish', 'ray', 'shark', 'trout'),
    'flowers': ('orchid', 'poppy', 'rose', 'sunflower', 'tulip'),
    'food containers': ('bottle', 'bowl', 'can', 'cup', 'plate'),
    'fruit and vegetables': ('apple', 'mushroom', 'orange', 'pear', 'sweet_pepper'),
    'household electrical devices': ('clock', 'keyboard', 'lamp', 'telephone', 'television'),
    'household furniture': ('bed', 'chair', 'couch', 'table', 'wardrobe'),
    'insects': ('bee', 'beetle', 'butterfly', 'caterpillar', 'cockroach'),
    'large carnivores': ('bear', 'leopard', 'lion', 'tiger', 'wolf'),
    'large man-made outdoor things': ('bridge', 'castle', 'house', 'road', 'skyscraper'),
    'large natural outdoor scenes': ('cloud', 'forest', 'mountain', 'plain', 'sea'),
    'large omnivores and herbivores': ('camel', 'cattle', 'chimpanzee', 'elephant', 'kangaroo'),
    'medium-sized mammals': ('fox', 'porcupine', 'possum', 'raccoon', 'skunk'),
    'non-insect invertebrates': ('crab', 'lobster', 'snail', 'spider', 'worm'),
    'people': ('baby', 'boy', 'girl', 'man', 'woman'),
    'reptiles': ('crocodile', 'dinosaur', 'lizard', 'snake', 'turtle'),
    'small mammals': ('hamster', 'mouse', 'rabbit', 'shrew', 'squirrel'),
    'trees': ('maple_tree', 'oak_tree', 'palm_tree', 'pine_tree', 'willow_tree'),
    'vehicles 1': ('bicycle', 'bus', 'motorcycle', 'pickup_truck', 'train'),
    'vehicles 2': ('lawn_mower', 'rocket', 'streetcar', 'tank', 'tractor'),
}


def class_groups(classes: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """The superclasses of classes by their indices.

    Args:
        classes: class names in the order of the labels.

    Returns:
        superclass -> indices of its classes, in the order above; None unless the classes are CIFAR-100's.
    """
    index = {name.replace(' ', '_'): number for number, name in enumerate(classes)}
    members = [name for names in CIFAR100_GROUPS.values() for name in names]
    if len(classes) != len(members) or set(index) != set(members):
        return None
    return {group: tuple(index[name] for name in names) for group, names in CIFAR100_GROUPS.items()}
