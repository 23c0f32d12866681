"""A small ray caster: hands and objects by mujoco.mj_multiRay, table and room by formula. Needs no graphics library.

Lambert shading under one lamp, soft shadows of hands and objects on the table, and four rays instead of one where shapes meet.
Pixels: column u covers [u, u + 1), so the principal point of a W wide image with a centred lens is W / 2.
"""

import mujoco
import numpy as np

from egoscale_jax.sim import human, scene

_GROUPS = np.zeros((6, 1), np.uint8)
_GROUPS[[human.HAND_GROUP, scene.THING_GROUP]] = 1
_FAR = 3.0  # metres: rays end here
TABLE_LOW, TABLE_HIGH = (-0.65, -0.35), (0.65, 0.62)  # the table's corners, metres
_SHADOW_LOW, _SHADOW_CELL, _SHADOW_SIZE = (-0.40, -0.20), 0.0145, (40, 56)  # the grid (y, x) of table points that are asked for shadow
_TEXTURE_CELL = 0.0025
_SUBPIXELS = np.array([(-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375)])  # a rotated grid
_GAMMA = (255 * np.linspace(0, 1, 2048) ** (1 / 2.2) + 0.5).astype(np.uint8)


def intrinsics(image_size, fov_degrees):
  """Image (height, width), horizontal field of view -> K [3, 3] with square pixels and a centred lens."""
  height, width = image_size
  focal = width / 2 / np.tan(np.radians(fov_degrees) / 2)
  return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)


def cast(stage, origin, rays_Nx3):
  """Rays from one point -> (geom id [N], -1 where none; distance [N] in lengths of the ray, inf where none; normal [N, 3])."""
  n = len(rays_Nx3)
  geom, distance, normal = np.empty((n, 1), np.int32), np.empty((n, 1)), np.empty((3 * n, 1))
  rays = np.ascontiguousarray(rays_Nx3, np.float64).reshape(-1, 1)
  mujoco.mj_multiRay(stage.model, stage.data, origin.reshape(3, 1), rays, _GROUPS, True, -1, geom, distance, normal, n, _FAR)
  distance[geom < 0] = np.inf
  return geom[:, 0], distance[:, 0], normal.reshape(n, 3)


def texture_shape():
  """Cells along x and y of a texture over the whole table."""
  return np.ceil(np.subtract(TABLE_HIGH, TABLE_LOW) / _TEXTURE_CELL).astype(int)


def wood(base, seed):
  """A texture [Y, X, 3] of boards along x with grain, linear RGB, over the whole table."""
  rng = np.random.default_rng(seed)
  shape = texture_shape()
  x, y = np.arange(shape[0]) * _TEXTURE_CELL, (np.arange(shape[1]) * _TEXTURE_CELL)[:, None]
  board = (y / 0.11).astype(int)
  tone, phase = rng.uniform(0.88, 1.06, 32), rng.uniform(0, 7, 32)
  wave = y + 0.006 * np.sin(9 * x + phase[board]) + 0.002 * np.sin(31 * x + 2 * phase[board])
  grain = 1 + 0.05 * np.sin(330 * wave + phase[board]) + 0.03 * np.sin(870 * wave)
  gap = np.where(y % 0.11 < 0.0035, 0.7, 1.0)
  return (base * (tone[board] * grain * gap)[..., None]).astype(np.float32)


class Renderer:
  """Pictures of a Stage, as many as wanted; `frame` for colour, `depth` for what the rays met. texture: of the table, in place of wood."""

  def __init__(self, stage, K_3x3, image_size, texture=None):
    self.stage, self.size = stage, image_size
    self.lamp = stage.scene.lamp
    self._colours = stage.model.geom_rgba[:, :3].astype(np.float32)
    self._texture = wood(stage.scene.table, stage.scene.texture_seed) if texture is None else texture
    rows, columns = np.mgrid[: image_size[0], : image_size[1]]
    self._pixels = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=-1)
    self._part = _parts(stage.model)
    self._K = np.asarray(K_3x3, np.float64)
    y, x = np.mgrid[: _SHADOW_SIZE[0], : _SHADOW_SIZE[1]]
    points = np.stack([x.ravel() * _SHADOW_CELL + _SHADOW_LOW[0], y.ravel() * _SHADOW_CELL + _SHADOW_LOW[1], np.zeros(x.size)], axis=-1)
    self._shadow_rays = points - self.lamp

  def _rays(self, rotation, pixels_Nx2):
    """Pixel positions -> rays [N, 3] in the world whose length along the optical axis is 1: distance along one is depth."""
    x = (pixels_Nx2[:, 0] - self._K[0, 2]) / self._K[0, 0]
    y = (pixels_Nx2[:, 1] - self._K[1, 2]) / self._K[1, 1]
    return x[:, None] * rotation[:, 0] + y[:, None] * rotation[:, 1] + rotation[:, 2]

  def depth(self, T_world_camera):
    """-> (depth along the optical axis [Y, X] metres, inf where neither hand, thing nor table; geom id [Y, X], -1 where none)."""
    rays = self._rays(T_world_camera[:3, :3], self._pixels)
    geom, distance, _ = cast(self.stage, T_world_camera[:3, 3], rays)
    table, on_table, _ = _table(T_world_camera[:3, 3], rays)
    depth = np.where(geom >= 0, distance, np.where(on_table, table, np.inf))
    return depth.reshape(self.size), geom.reshape(self.size)

  def frame(self, T_world_camera):
    """-> the picture [Y, X, 3], uint8 sRGB."""
    origin, rotation = T_world_camera[:3, 3], T_world_camera[:3, :3]
    shadow = self._shadow()
    near = self._near_shapes(T_world_camera).ravel()
    colour, part = self._shade(origin, self._rays(rotation, self._pixels), near, shadow)
    edge = np.flatnonzero(_edges(part.reshape(self.size)))
    fine = (self._pixels[edge][:, None] + _SUBPIXELS).reshape(-1, 2)
    samples, _ = self._shade(origin, self._rays(rotation, fine), np.repeat(near[edge], len(_SUBPIXELS)), shadow)
    colour[edge] = samples.reshape(-1, len(_SUBPIXELS), 3).mean(axis=1)
    return _GAMMA[(np.clip(colour, 0, 1) * 2047).astype(np.int32)].reshape(*self.size, 3)

  def _shadow(self):
    """Share of the lamp's light [Y, X] that reaches each point of the grid on the table; blurred, since a lamp is no point."""
    lit = (cast(self.stage, self.lamp, self._shadow_rays)[0] < 0).astype(np.float32).reshape(_SHADOW_SIZE)
    for axis in (0, 1):
      padded = np.pad(lit, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
      low, high = np.split(padded, [2], axis=axis)[1], np.split(padded, [-2], axis=axis)[0]
      lit = 0.5 * lit + 0.25 * (low + high)
    lit[[0, -1]] = lit[:, [0, -1]] = 1.0  # beyond the grid there is light
    return lit

  def _near_shapes(self, T_world_camera):
    """Pixels [Y, X] that may show a hand or a thing: boxes around spheres along every shape. Only those are worth a ray."""
    model, data = self.stage.model, self.stage.data
    capsule = model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE
    radius = np.where(capsule, model.geom_size[:, 0], model.geom_rbound)
    half = data.geom_xmat[:, 2::3] * np.where(capsule, model.geom_size[:, 1], 0)[:, None]
    along = np.linspace(-1, 1, 4)[:, None, None]  # four spheres a capsule: a box around each third hugs a slanted arm
    centre = (data.geom_xpos + along * half - T_world_camera[:3, 3]) @ T_world_camera[:3, :3]
    front, back = (np.maximum(centre[..., 2] + sign * radius, 0.02)[..., None] for sign in (-1, 1))
    side = np.stack([(centre[..., :2] + sign * radius[:, None]) / depth for sign in (-1, 1) for depth in (front, back)])
    low, high = side.min(axis=0), side.max(axis=0)
    focal, middle = self._K[[0, 1], [0, 1]], self._K[:2, 2]
    low = np.floor(np.minimum(low[:-1], low[1:]) * focal + middle).astype(int)
    high = np.ceil(np.maximum(high[:-1], high[1:]) * focal + middle).astype(int)
    boxes = np.concatenate([np.maximum(low, 0), np.maximum(high, 0)], axis=-1).reshape(-1, 4)
    near = np.zeros(self.size, bool)
    for left, top, right, bottom in boxes.tolist():
      near[top:bottom, left:right] = True
    return near

  def _shade(self, origin, rays, near, shadow):
    """-> linear colours [N, 3] float32 and what was met [N]: a part of the model, -1 the table, -2 the room."""
    near = np.flatnonzero(near)
    geom, distance, normal = cast(self.stage, origin, rays[near])
    met = geom >= 0
    hit, geom, distance, normal = near[met], geom[met], distance[met], normal[met]
    _, on_table, point = _table(origin, rays)
    on_table[hit] = False
    colour, part = self._room(rays), np.where(on_table, -1, -2)
    colour[on_table] = self._table_colour(point[on_table], shadow)
    to_lamp = self.lamp - (origin + distance[:, None] * rays[hit])
    to_lamp /= np.sqrt(np.einsum("ni,ni->n", to_lamp, to_lamp))[:, None]
    facing = np.maximum(np.einsum("ni,ni->n", to_lamp, normal), 0)
    light = 0.42 + 0.14 * normal[:, 2] + 0.62 * facing
    colour[hit] = self._colours[geom] * light[:, None]
    part[hit] = self._part[geom]
    return colour, part

  def _table_colour(self, point_Nx2, shadow):
    cell = ((point_Nx2 - TABLE_LOW) / _TEXTURE_CELL).astype(np.int32)
    return self._texture[cell[:, 1], cell[:, 0]] * (0.50 + 0.55 * _bilinear(shadow, point_Nx2))[:, None]

  def _room(self, rays):
    """Floor and wall as a soft gradient by the height that the ray looks at."""
    height = rays[:, 2] / np.sqrt(np.einsum("ni,ni->n", rays, rays))
    share = np.clip(1.0 + 1.4 * height, 0.25, 1.0)
    return (self.stage.scene.wall * share[:, None]).astype(np.float32)


def _parts(model):
  """The part [geoms] each shape belongs to: a whole finger, palm or thing. Between shapes of one part there is no edge to smooth."""
  part = np.arange(model.nbody)
  for body in range(1, model.nbody):
    parent = model.body_parentid[body]
    if parent != 0 and model.body_parentid[parent] != 0:  # below a child of the hand
      part[body] = part[parent]
  return part[model.geom_bodyid]


def _table(origin, rays):
  """Rays against the table's top -> (distance [N], does it meet the top [N], where (x, y) [N, 2])."""
  down = np.minimum(rays[:, 2], -1e-6)
  t = -origin[2] / down
  point = origin[:2] + t[:, None] * rays[:, :2]
  x, y = point[:, 0], point[:, 1]
  inside = (x > TABLE_LOW[0]) & (x < TABLE_HIGH[0]) & (y > TABLE_LOW[1]) & (y < TABLE_HIGH[1])
  return t, inside & (rays[:, 2] < 0), point


def _bilinear(grid, point_Nx2):
  """The shadow grid at table points; its border's value beyond it."""
  x = np.clip((point_Nx2[:, 0] - _SHADOW_LOW[0]) / _SHADOW_CELL, 0, _SHADOW_SIZE[1] - 1.001)
  y = np.clip((point_Nx2[:, 1] - _SHADOW_LOW[1]) / _SHADOW_CELL, 0, _SHADOW_SIZE[0] - 1.001)
  i, j = y.astype(np.int32), x.astype(np.int32)
  a, b = y - i, x - j
  top = grid[i, j] * (1 - b) + grid[i, j + 1] * b
  return top * (1 - a) + (grid[i + 1, j] * (1 - b) + grid[i + 1, j + 1] * b) * a


def _edges(kind):
  """Pixels [Y, X] whose right or lower neighbour (or that of their left or upper one) shows something else."""
  edge = np.zeros(kind.shape, bool)
  across, down = kind[:, 1:] != kind[:, :-1], kind[1:] != kind[:-1]
  edge[:, 1:] |= across
  edge[:, :-1] |= across
  edge[1:] |= down
  edge[:-1] |= down
  return edge
