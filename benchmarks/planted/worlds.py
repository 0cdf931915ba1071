"""The worlds of the study: scenes and a gate, as the arguments of ``measure_specialization``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .routers import (
    EXPERTS,
    Router,
    crowding_quarters,
    crowding_router,
    level_router,
    noisy_property_router,
    patch_router,
    property_router,
    random_router,
    scale_router,
    size_router,
    soft_router,
)
from .scenes import (
    LEVELS,
    Scenes,
    coco_like,
    full_scenes,
    gamma_counts,
    heavy_counts,
    one_level,
    scale_decides_level,
    without_size,
)

Unit = dict[str, np.ndarray]  # arguments of measure_specialization, by name


@dataclass(frozen=True)
class World:
    """A world to draw simulations from.

    Attributes:
        name: what it is.
        images: how many.
        draw: source of randomness -> units: one, or the detection unit and the training unit.
        truth: 'null' (given the level, routing and size are independent), 'size' (planted), or 'misuse' (a null that
            the test cannot hold, as it is not told what it needs to know).
    """

    name: str
    images: int
    draw: Callable[[np.random.Generator], list[Unit]]
    truth: str = 'null'


def unit(scenes: Scenes, experts: np.ndarray, **more: np.ndarray) -> Unit:
    """The objects of scenes and their experts."""
    return {
        'image_ids': scenes.image,
        'levels': scenes.level,
        'experts': experts,
        'sizes': scenes.size,
        'areas': scenes.area,
        **more,
    }


def _routed(rng: np.random.Generator, scenes: Callable[[np.random.Generator], Scenes], router: Router) -> list[Unit]:
    drawn = scenes(rng)
    more = {'patches': drawn.patch} if router is patch_router else {}
    return [unit(drawn, router(rng, drawn), **more)]


def world(name: str, images: int, scenes: Callable[[np.random.Generator], Scenes], router: Router, **more) -> World:
    """A gate on scenes."""
    return World(name, images, partial(_routed, scenes=scenes, router=router), **more)


# -- scenes by number of images -------------------------------------------------------------------------------------


def even(images: int, agreement: float = 0.4, mean: float = 7.3, evenness: float = 1.0):
    """COCO-like scenes."""
    return lambda rng: coco_like(rng, gamma_counts(rng, images, mean, evenness), agreement)


def heavy(images: int):
    """COCO-like scenes with a heavy tail of counts."""
    return lambda rng: coco_like(rng, heavy_counts(rng, images))


# -- worlds that need more than scenes and a gate -------------------------------------------------------------------


def shared_objects(rng: np.random.Generator, images: int) -> list[Unit]:
    """Objects with positive anchors on two levels, and a soft gate that reads a property of the image."""
    scenes = even(images, 0.8)(rng)
    of_image = rng.dirichlet(np.full(EXPERTS, 0.5), images)[:, None]
    masses = of_image * rng.gamma(5, 0.2, (images, LEVELS, EXPERTS))
    masses /= masses.sum(-1, keepdims=True)
    return [_on_two_levels(rng, scenes, masses)]


def _on_two_levels(rng: np.random.Generator, scenes: Scenes, rows: np.ndarray, other: np.ndarray | None = None) -> Unit:
    """The training unit: an object is part of its level and part of a neighbouring one.

    Args:
        rng: source of randomness.
        scenes: the objects.
        rows: (N, L) or (N, L, E) expert of each row.
        other: (n,) second level of each object; None takes the next one.
    """
    other = np.minimum(scenes.level + 1, LEVELS - 1) if other is None else other
    share = np.where(other == scenes.level, 1.0, rng.uniform(0.5, 0.95, len(other)))
    second = np.flatnonzero(other != scenes.level)
    image = np.r_[scenes.image, scenes.image[second]]
    level = np.r_[scenes.level, other[second]]
    return {
        'image_ids': image,
        'levels': level,
        'experts': rows[image, level],
        'sizes': np.r_[scenes.size, scenes.size[second]],
        'areas': np.r_[scenes.area, scenes.area[second]],
        'weights': np.r_[share, 1 - share[second]],
    }


def unequal_recall(rng: np.random.Generator, images: int, missed: float) -> list[Unit]:
    """A coin-toss gate; expert 0 misses a share of the small objects, expert 1 half that share of the large ones."""
    scenes = even(images)(rng)
    experts = random_router(rng, scenes)
    found = np.full((EXPERTS, 3), 0.8)
    found[0] = 0.8 * (1 - missed), 0.8, 0.9
    found[1] = 0.9, 0.8, 0.8 * (1 - missed / 2)
    kept = rng.random(len(experts)) < found[experts, scenes.size]
    return [unit(scenes.only(kept), experts[kept]), unit(scenes, experts)]


def moved_levels(rng: np.random.Generator, images: int, skill: float) -> list[Unit]:
    """A coin-toss gate; an object counts at that of two levels where its detection has the higher score.

    Expert 0 gives large objects higher scores and small ones lower ones, by ``skill`` standard deviations, expert 1
    the other way round.
    """
    scenes = even(images)(rng)
    rows = rng.integers(EXPERTS, size=(images, LEVELS))
    skills = np.zeros((EXPERTS, 3))
    skills[0], skills[1] = (-skill, 0, skill), (skill, 0, -skill)
    other = np.clip(scenes.level + rng.choice([-1, 1], size=len(scenes.level)), 0, LEVELS - 1)
    own, second = (
        skills[rows[scenes.image, at], scenes.size] + rng.normal(size=len(at)) for at in (scenes.level, other)
    )
    winner = np.where(own + 0.5 >= second, scenes.level, other)
    found = Scenes(scenes.image, winner, scenes.area, scenes.patch, scenes.scale)
    return [unit(found, rows[scenes.image, winner]), _on_two_levels(rng, scenes, rows, other)]


def frames(rng: np.random.Generator, scenes: int, repeated: int, told: bool) -> list[Unit]:
    """Each scene several times, as the frames of a video; a gate that reads a property of the scene.

    Args:
        rng: source of randomness.
        scenes: how many.
        repeated: frames of each.
        told: whether the test is told which images are frames of one scene.
    """
    drawn = even(scenes)(rng)
    frame = np.repeat(np.arange(repeated), len(drawn.image))
    found = {name: np.tile(values, repeated) for name, values in unit(drawn, property_router(rng, drawn)).items()}
    groups = found['image_ids']
    found['image_ids'] = groups + scenes * frame
    return [{**found, 'groups': groups} if told else found]


# -- all of them ----------------------------------------------------------------------------------------------------


def null_worlds() -> list[World]:
    """Worlds in which routing has nothing to do with size, given the level."""
    one_scale = even(100, 0.8, 15)
    few = even(40, evenness=0.3)
    found = [
        world('random', 100, even(100), random_router),
        world('random, unequal images', 40, few, random_router),
        world('level only', 100, even(100), level_router),
        world('level only, unequal images', 40, few, level_router),
        world('random soft weights', 100, even(100), soft_router),
        world('2 x 2 patches: position and image property', 100, even(100), patch_router),
        world('image property, one scale per image', 100, one_scale, property_router),
        world('noisy image property, one scale per image', 100, one_scale, noisy_property_router),
        world('image property, all levels full', 60, partial(full_scenes, images=60), property_router),
        World('objects on two levels, soft image property', 100, partial(shared_objects, images=100)),
    ]
    for name, scenes in (
        ('one level', lambda rng: one_level(rng, heavy_counts(rng, 100))),
        ('five levels', heavy(100)),
    ):
        for share in (0.02, 0.03, 0.05, 0.1, 0.2, 0.5):
            router = partial(crowding_router, share=share)
            found.append(world(f'most crowded {share:.0%}, {name}', 100, scenes, router))
    # 'again' has other random numbers; a defect of the test would show more clearly in 400 images
    for images, name in (
        (100, 'unequal images'),
        (100, 'unequal images, again'),
        (400, '400 unequal images'),
    ):
        scenes = even(images, evenness=0.3)
        found.append(world(f'crowding in quarters, {name}', images, scenes, crowding_quarters))
    for agreement, sizes in ((0.0, ''), (0.6, ', sizes inside a level agree')):
        scenes = partial(scale_decides_level, images=100, agreement=agreement)
        for per_level, name in ((False, 'once per image'), (True, 'at every level')):
            found.append(world(f'scale, {name}{sizes}', 100, scenes, partial(scale_router, per_level=per_level)))
    for images in (10, 20, 50, 100, 500):
        found.append(world(f'image property, {images} images', images, even(images, 0.8), property_router))
    found += [
        world(
            'one level, unequal images', 50, lambda rng: one_level(rng, gamma_counts(rng, 50, 6, 0.5)), random_router
        ),
        world('no small objects', 100, lambda rng: without_size(one_scale(rng), 0), noisy_property_router),
        world('no large objects', 100, lambda rng: without_size(one_scale(rng), 2), noisy_property_router),
        World('each scene four times, with groups', 200, partial(frames, scenes=50, repeated=4, told=True)),
        World(
            'each scene four times, without groups', 200, partial(frames, scenes=50, repeated=4, told=False), 'misuse'
        ),
    ]
    return found


def two_unit_worlds() -> list[World]:
    """Coin-toss gates whose experts differ in what they find: the detection unit sees that, the training unit not."""
    recall = [
        World(
            f'{missed:.0%} of the small missed by one expert', 200, partial(unequal_recall, images=200, missed=missed)
        )
        for missed in (0.25, 0.5, 0.75)
    ]
    return recall + [
        World(f'experts move the winning level by {skill:g} sd', 200, partial(moved_levels, images=200, skill=skill))
        for skill in (0.25, 0.5, 1.0)
    ]


def planted(kind: str, v: float, strength: float, images: int) -> World:
    """A gate that sorts by size."""
    router = partial(size_router, kind=kind, strength=strength)
    return world(f'{kind} size, V = {v:g}, {images} images', images, even(images), router, truth='size')
