"""Numbered people, rooms and things: what a number means never changes.

Each belongs to one home, and an episode takes all of one. Homes of training are never those of validation, and a split by homes (the
`scene` of a recording) parts people, rooms, lights and things at once. The lab is one more home, where a robot lives: one room and lamp,
things of four colours. As in the paper, it is there that robots are demonstrated to and tried, with everything in new places.
"""

import dataclasses

import numpy as np

from egoscale_jax.errors import UserError
from egoscale_jax.sim import human, render, scene

LAB = "lab"
HOMES = {"train": range(50), "validation": range(1000, 1010), LAB: range(2000, 2001)}
PER_HOME = {"person": 4, "room": 40, "thing": 40}
PER_LAB = {"person": 4, "room": 1, "thing": 4}
SPLITS = tuple(HOMES)
_KINDS = {"person": 1, "room": 2, "thing": 3}
COLOURS = ("red", "green", "blue", "yellow", "purple", "white", "black", "turquoise")  # of scene.COLOURS
LAB_COLOURS = COLOURS[:4]


@dataclasses.dataclass(frozen=True)
class Person:
  number: int
  body: human.Person
  eye: np.ndarray  # where the head is, metres
  look: np.ndarray  # the middle of what they look at
  sway: float  # of the head
  speed: float  # a factor
  tilt: float  # radians: how slanted the hand comes
  yaw: float  # radians: how far it is turned


@dataclasses.dataclass(frozen=True)
class Room:
  """What render.Renderer asks of a scene, and the table's texture."""

  number: int
  table: np.ndarray  # linear RGB
  wall: np.ndarray
  lamp: np.ndarray  # metres
  texture_seed: int
  texture: np.ndarray  # [Y, X, 3] linear RGB over the table


def home(split, rng) -> int:
  if split not in HOMES:
    raise UserError(f"split: found {split!r}, expected one of {', '.join(SPLITS)}")
  return int(rng.choice(HOMES[split]))


def draw(kind, home, rng) -> int:
  """The number of a person, a room or a thing of a home."""
  return home * 100 + int(rng.integers((PER_LAB if home in HOMES[LAB] else PER_HOME)[kind]))


def colours(home, rng) -> list[str]:
  """The names of a home's colours, in random order."""
  return [str(name) for name in rng.permutation(LAB_COLOURS if home in HOMES[LAB] else COLOURS)]


def _generator(kind, number):
  return np.random.default_rng([_KINDS[kind], number])


def person(number) -> Person:
  rng = _generator("person", number)
  body = scene.sample_person(rng)
  eye = rng.uniform((-0.05, -0.17, 0.39), (0.05, -0.06, 0.48))
  look = rng.uniform((-0.02, 0.14, 0.01), (0.02, 0.18, 0.03))
  return Person(number, body, eye, look, *rng.uniform((0.3, 0.8, 0.0, -0.25), (1.3, 1.25, 0.35, 0.25)))


def room(number) -> Room:
  rng = _generator("room", number)
  base = scene.linear(scene.TABLES[rng.integers(len(scene.TABLES))] * rng.uniform(0.8, 1.08, 3)).clip(0, 1)
  wall = scene.linear(rng.uniform((90, 90, 90), (215, 215, 220)))
  lamp = rng.uniform((-0.6, 0.0, 1.0), (0.6, 0.6, 1.6))
  seed = int(rng.integers(2**31))
  texture = render.wood(base, seed) if rng.uniform() < 0.5 else _cloth(base, rng)
  return Room(number, base, wall, lamp, seed, texture)


def _cloth(base, rng):
  """Plain, striped or chequered, with a weave."""
  shape = render.texture_shape()
  y, x = np.mgrid[: shape[1], : shape[0]]
  period, contrast = rng.integers(14, 44), rng.uniform(0.0, 0.30)
  stripes = ((x // period) % 2, (y // period) % 2, (x // period + y // period) % 2)[rng.integers(3)]
  weave = rng.uniform(0.97, 1.03, (shape[1], shape[0]))
  return (base * ((1 - contrast * stripes) * weave)[..., None]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Thing:
  """How a numbered thing differs from others of its kind and colour."""

  number: int
  scale: float
  tint: np.ndarray  # factors on linear RGB
  detail: float  # 0 to 1, for the kind to use


def thing(number) -> Thing:
  rng = _generator("thing", number)
  return Thing(number, rng.uniform(0.88, 1.08), rng.uniform(0.85, 1.1, 3), rng.uniform())


def colour(name, variant: Thing):
  return np.clip(scene.COLOURS[name] * variant.tint, 0, 1)
