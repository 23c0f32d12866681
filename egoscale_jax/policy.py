"""The policy: what the camera sees and what is asked -> a chunk of wrist poses and joint targets, in metres and radians."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax.data import actions, examples, spec, transforms
from egoscale_jax.errors import UserError
from egoscale_jax.models import augment, flow, vla
from egoscale_jax.train import run as run_lib


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Left hand, then right. Step k is `(k + 1) * stride` frames after the observation."""

  T_start_wrist_Tx2x4x4: np.ndarray  # wrist at the step, seen from the wrist at the observation
  joints_Tx2xJ: np.ndarray  # radians, targets
  joint_names: tuple[str, ...]


class Policy:
  """`Policy(workdir)` opens a work directory of `egoscale train`; calling it samples one chunk."""

  def __init__(self, workdir):
    self.run, self.params, self.step = run_lib.open_run(workdir)
    self.config = self.run.config
    self._assembler = examples.make_assembler(self.config, self.run.prompt, self.run.statistics)
    self._sample = jax.jit(functools.partial(_sample, self.run.model, self.config.augment))

  def __call__(self, images, text, state=None, embodiment="human", seed=0):
    """images: one uint8 [Y, X, 3] a camera of config.data.cameras, any size; text: the instruction -> Chunk.

    state: [A] of data.actions.make_state, for a policy that was trained with it (config.data.human_state).
    """
    slot = self.slot(embodiment)
    batch = self._batch(images, text, state, embodiment, slot)
    action = self._sample(self.params, batch, jax.random.key(seed))
    names = slot.statistics.joint_names
    pose, joints = actions.split_chunk(slot.normalizer.denormalize(np.asarray(action)[0, :, : slot.width]), len(names))
    return Chunk(pose, joints, names)

  def slot(self, embodiment) -> examples.Slot:
    """The hand and the normaliser of an embodiment."""
    if embodiment not in self.config.data.slots:
      raise UserError(f"embodiment: found {embodiment!r}, expected one of {sorted(self.config.data.slots)}")
    return self._assembler.slots[self._assembler.slot(embodiment)]

  def _batch(self, images, text, state, embodiment, slot):
    c = self.config
    if len(images) != len(c.data.cameras):
      raise UserError(f"images: found {len(images)}, expected one for each of the cameras {tuple(c.data.cameras)}")
    for i, image in enumerate(images):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"images[{i}]: found {image.dtype} {image.shape}, expected uint8 [height, width, 3]")
    width = slot.width
    if (state is not None) != c.data.human_state or (state is not None and np.shape(state) != (width,)):
      expected = f"[{width}] of actions.make_state" if c.data.human_state else "none: the policy was trained without"
      raise UserError(f"state: found {'none' if state is None else np.shape(state)}, expected {expected}")
    if state is not None and not np.all(np.isfinite(state)):
      raise UserError("state: found values that are not finite: a hand is missing")
    token, token_mask = self.run.prompt(text)
    m = c.model
    padded = np.zeros((1, m.state_dim), np.float32)
    if state is not None:
      padded[0, :width] = actions.normalize_state(np.asarray(state, np.float32), slot.normalizer)
    observed = np.pad(slot.normalizer.observed_A, (0, m.action_dim - width))
    return spec.Batch(
      image_BxCxYxXx3=np.stack([transforms.fit(image, c.data.image_size) for image in images])[None],
      image_mask_BxC=np.ones((1, len(images)), bool),
      token_BxL=token[None],
      token_mask_BxL=token_mask[None],
      state_BxS=padded,
      state_mask_B=np.full(1, state is not None),
      action_BxTxA=np.zeros((1, m.horizon, m.action_dim), np.float32),
      action_mask_BxTxA=np.broadcast_to(observed, (1, m.horizon, m.action_dim)),
      action_weight_BxTxA=np.ones((1, m.horizon, m.action_dim), np.float32),
      embodiment_B=np.asarray([c.data.slots[embodiment]], np.int32),
      position_B=np.zeros(1, np.int32),
    )


def _sample(model, crop, params, batch, key):
  """The backbone once, the expert once a flow step -> [1, T, A], normalised."""
  batch = augment.centred(batch, crop)
  features = model.apply({"params": params}, batch, method=vla.VLA.features)
  noise = flow.sample_noise(jnp.stack([key]), batch.action_BxTxA.shape[1:])
  return vla.sample(model, {"params": params}, features, batch, noise, model.config.flow.steps)
