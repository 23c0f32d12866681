"""The policy: what the camera sees and what is asked -> a chunk of wrist poses and joint targets, in metres and radians."""

import dataclasses
import functools
import os

import jax
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import actions, examples, spec, transforms
from egoscale_jax.errors import UserError
from egoscale_jax.models import augment, flow, vla
from egoscale_jax.train import checkpoint
from egoscale_jax.train import run as run_lib


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Left hand, then right. Step k is `(k + 1) * stride` frames after the observation."""

  T_start_wrist_Tx2x4x4: np.ndarray  # wrist at the step, seen from the wrist at the observation
  joints_Tx2xJ: np.ndarray  # radians, targets
  joint_names: tuple[str, ...]

  def rest(self, done: int, T_start_now_2x4x4) -> "Chunk":
    """What is left after `done` steps, seen from where the wrists are now; T_start_now: the wrists now, seen from this chunk's start."""
    seen = geometry.se3_inverse(np.asarray(T_start_now_2x4x4)) @ self.T_start_wrist_Tx2x4x4[done:]
    return Chunk(seen, self.joints_Tx2xJ[done:], self.joint_names)


@dataclasses.dataclass(frozen=True)
class Executing:
  """Real-time chunking: the chunk that is being executed while the next one is made, so that the two fit together."""

  chunk: Chunk  # from the new observation on (Chunk.rest): its step k is the new chunk's step k
  frozen: int  # steps that will be over when the new chunk is there: they come back as they are
  ramp: int = 0  # further steps that fade from the old chunk to the new


@dataclasses.dataclass(frozen=True)
class Request:
  """images: one uint8 [Y, X, 3] a camera of config.data.cameras, any size, None where it sees nothing (its tokens are masked, as in
  training where a recording has no such camera); text: the instruction.

  state: [A] of data.actions.make_state for an embodiment that has one (data.actions.has_state): robots do, human video does not.
  """

  images: list[np.ndarray | None]
  text: str
  state: np.ndarray | None = None
  embodiment: str = "human"
  seed: int = 0
  executing: Executing | None = None


class Policy:
  """`Policy(workdir)` opens a work directory of `egoscale train` or `egoscale convert`; calling it samples one chunk.

  step: of the checkpoint; None is the newest.
  """

  def __init__(self, workdir, step=None):
    self.run, self.params, self.step = run_lib.open_run(workdir, step=step)
    self.config = self.run.config
    self._assembler = examples.make_assembler(self.config, self.run.prompt, self.run.statistics)
    self._sample = jax.jit(functools.partial(_sample, self.run.model, self.config.augment))
    self._cameras = len(self.config.data.cameras)
    self._picture = tuple(self.config.data.image_size), self.config.data.crop
    # Made once for each embodiment and each instruction: a robot asks many times with the same.
    self.slot, self._blank = functools.cache(self._slot_of), functools.cache(self._blank_of)
    self._prompt = functools.lru_cache(4096)(self.run.prompt)
    self._free = self._known(None, None)

  def __call__(self, images, text, state=None, embodiment="human", seed=0, executing=None):
    """-> Chunk; see Request."""
    return self.many([Request(images, text, state, embodiment, seed, executing)])[0]

  def many(self, requests: list[Request]) -> list[Chunk]:
    """Several requests in one call of the model; another number of them is another program, compiled when it is first met."""
    sampled = self.sample([self.row(request) for request in requests])
    return [self.chunk(request, action_TxA) for request, action_TxA in zip(requests, sampled)]

  def sample(self, rows, size=None):
    """Rows of `row` -> actions [B, T, A], normalised, once the device has them; size: of the program, filled up with the first row."""
    filled = [*rows, *rows[:1] * ((size or len(rows)) - len(rows))]
    if len(filled) == 1:  # views: for a robot that is alone
      arrays = jax.tree.map(lambda leaf: leaf[None], filled[0])
    else:
      arrays = jax.tree.map(lambda *leaves: np.stack(leaves), *filled)
    return np.asarray(self._sample(self.params, *arrays))[: len(rows)]

  def _slot_of(self, embodiment) -> examples.Slot:
    """The hand and the normaliser of an embodiment."""
    if embodiment not in self.config.data.slots:
      raise UserError(f"embodiment: found {embodiment!r}, expected one of {sorted(self.config.data.slots)}")
    return self._assembler.slots[self._assembler.slot(embodiment)]

  def state_from_camera(self, embodiment) -> bool | None:
    """Whether Request.state is seen from the first camera, else from the robot's base; None: this embodiment has none."""
    return self._assembler.state_from_camera(embodiment)

  def chunk(self, request, action_TxA) -> Chunk:
    """A row of `sample` in metres and radians. A hand that the data never had stays where it is, and its joints are NaN.

    What rests (config.data.resting) stays as the state says it is; of an embodiment without one joints are said as their mean.
    """
    slot = self.slot(request.embodiment)
    names = slot.statistics.joint_names
    action_TxA = slot.normalizer.denormalize(action_TxA[:, : slot.width])
    unlearnt_A = ~slot.normalizer.learnt_A
    if unlearnt_A.any():  # seldom: a robot that waits for its chunk does not wait for this
      action_TxA[:, unlearnt_A] = _still(request.state, slot.normalizer)[unlearnt_A]
    pose, joints = actions.split_chunk(action_TxA, len(names))
    # By what was observed and not by what is finite: a NaN of the model's own must not look like a hand that rests.
    moves_2 = slot.normalizer.observed_A.reshape(2, -1)[:, : actions.WRIST_DIM].all(axis=-1)
    return Chunk(np.where(moves_2[:, None, None], pose, np.eye(4, dtype=pose.dtype)), joints, names)

  def _check(self, request, slot):
    images, state, data = request.images, request.state, self.config.data
    if len(images) != self._cameras:
      raise UserError(f"images: found {len(images)}, expected one for each of the cameras {tuple(data.cameras)}")
    for i, image in enumerate(images):
      if image is not None and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3):
        raise UserError(f"images[{i}]: found {image.dtype} {image.shape}, expected uint8 [height, width, 3]")
    has_state = self.state_from_camera(request.embodiment) is not None
    if (state is not None) != has_state or (state is not None and np.shape(state) != (slot.width,)):
      expected = f"[{slot.width}] of actions.make_state" if has_state else f"none: {request.embodiment!r} was trained without"
      raise UserError(f"state: found {'none' if state is None else np.shape(state)}, expected {expected}")

  def row(self, request: Request):
    """What `sample` takes of a request: (Batch without its first axis, seed, known [T, A], keep [T]); safe for threads."""
    slot = self.slot(request.embodiment)
    self._check(request, slot)
    token, token_mask = self._prompt(request.text)
    size, crop = self._picture
    batch = dataclasses.replace(
      self._blank(request.embodiment),
      image_BxCxYxXx3=np.stack([_black(size) if image is None else transforms.fit(image, size, crop) for image in request.images]),
      image_mask_BxC=np.array([image is not None for image in request.images]),
      token_BxL=token,
      token_mask_BxL=token_mask,
    )
    if request.state is not None:
      batch = dataclasses.replace(batch, state_BxS=self._state(request.state, slot))
    known = self._free if request.executing is None else self._known(request.executing, slot)
    return batch, np.asarray(request.seed, np.uint32), *known

  def _blank_of(self, embodiment):
    """What all rows of an embodiment have in common: made once, since a look-up in a ConfigDict costs as much as a picture's check."""
    c, m, slot = self.config, self.config.model, self.slot(embodiment)
    learnt = np.pad(slot.normalizer.learnt_A, (0, m.action_dim - slot.width))
    return spec.Batch(
      image_BxCxYxXx3=None,
      image_mask_BxC=None,
      token_BxL=None,
      token_mask_BxL=None,
      state_BxS=np.zeros(m.state_dim, np.float32),
      state_mask_B=np.asarray(self.state_from_camera(embodiment) is not None),
      action_BxTxA=np.zeros((m.horizon, m.action_dim), np.float32),
      action_mask_BxTxA=np.broadcast_to(learnt, (m.horizon, m.action_dim)),
      action_dims_BxA=learnt,
      action_weight_BxTxA=np.ones((m.horizon, m.action_dim), np.float32),
      embodiment_B=np.asarray(c.data.slots[embodiment], np.int32),
      position_B=np.zeros((), np.int32),
    )

  def _state(self, state_A, slot):
    state_S = np.zeros(self.config.model.state_dim, np.float32)
    state_S[: slot.width] = actions.normalize_state(np.asarray(state_A, np.float32), slot.normalizer)
    if not np.isfinite(state_S).all():  # of what the training data had: a robot with one arm may leave out the other
      raise UserError("state: found values that are not finite: a hand is missing")
    return state_S

  def _known(self, executing, slot):
    """What is being executed, normalised and padded -> known [T, A], keep [T]: 1 for frozen steps, then falling over the ramp to 0."""
    m = self.config.model
    known, keep = np.zeros((m.horizon, m.action_dim), np.float32), np.zeros(m.horizon, np.float32)
    if executing is not None:
      chunk, kept = executing.chunk, executing.frozen + executing.ramp
      if min(executing.frozen, executing.ramp) < 0 or kept > min(len(chunk.joints_Tx2xJ), m.horizon):
        expected = f"together at most {min(len(chunk.joints_Tx2xJ), m.horizon)}: the steps that are left of the chunk"
        raise UserError(f"executing: found frozen {executing.frozen} and ramp {executing.ramp}, expected {expected}")
      action = actions.join_chunk(chunk.T_start_wrist_Tx2x4x4[:kept], chunk.joints_Tx2xJ[:kept])
      known[:kept, : slot.width] = slot.normalizer.normalize(action)
      keep[:kept] = np.minimum(1.0, (kept - np.arange(kept)) / (executing.ramp + 1))
    return known, keep


class Predictor:
  """A policy as evaluate/rollout.py asks it. frozen, ramp: steps of real-time chunking, see Executing; both 0: none."""

  def __init__(self, workdir, embodiment, frozen=0, ramp=0, step=None):
    self.policy, self.embodiment, self.frozen, self.ramp = Policy(workdir, step), embodiment, frozen, ramp
    cameras = self.policy.config.data.cameras
    if len(cameras) != 1:
      raise UserError(f"{workdir}: the policy sees the cameras {tuple(cameras)}, expected one: the bench has the head's")
    self.joint_names = tuple(self.policy.slot(embodiment).statistics.joint_names)

  def __call__(self, seen, pending):
    if self.joint_names != seen.joint_names:
      found = f"{len(self.joint_names)} joints from {self.joint_names[0]}"
      raise UserError(
        f"embodiment {self.embodiment}: found {found}, expected the body's {len(seen.joint_names)} from {seen.joint_names[0]}"
      )
    executing = None
    left = len(pending.chunk.joints_Tx2xJ) - pending.done if pending is not None else 0
    if left and self.frozen + self.ramp:
      rest, frozen = pending.chunk.rest(pending.done, pending.T_start_now_2x4x4), min(self.frozen, left)
      executing = Executing(rest, frozen, min(self.ramp, left - frozen))
    from_camera = self.policy.state_from_camera(self.embodiment)
    state = None if from_camera is None else seen.state(from_camera)
    return self.policy([seen.picture_YxXx3], seen.text, state, self.embodiment, seen.seed, executing)


def _still(state_A, normalizer):
  """The action [A] of hands that stay as they are. Not the mean where they can be asked: that of a slot which several embodiments share is
  nobody's posture, and a robot whose left hand it is put in sees itself as it never was (docs/evidence.md)."""
  still_A = np.array(normalizer.rest_A if state_A is None else np.asarray(state_A, np.float32))
  still_A.reshape(2, -1)[:, : actions.WRIST_DIM] = actions.STILL
  return np.where(normalizer.observed_A, still_A, np.float32(np.nan))


def _black(size):
  return np.zeros((*size, 3), np.uint8)


def maker(workdir, embodiment, execute, frozen=0, ramp=0, workers=1):
  """-> `agent` for rollout.run in so many processes: of the newest checkpoint now, though the run may go on."""
  if workers > 1:  # each process opens the policy, on the same GPU: none may take its memory whole
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  return functools.partial(agent, workdir, embodiment, execute, frozen, ramp, checkpoint.latest_step(workdir))


def agent(workdir, embodiment, execute, frozen=0, ramp=0, step=None):
  """For rollout.run: execute steps of each chunk, at the rate that the policy was trained at.

  step: of the checkpoint, the same in every process though the run may still be training; None is the newest.
  """
  from egoscale_jax.evaluate import rollout  # here: it brings MuJoCo along, which a policy on a robot does without

  predictor = Predictor(workdir, embodiment, frozen, ramp, step)
  return rollout.Chunked(predictor, execute, predictor.policy.config.data.stride)


def _sample(model, crop, params, batch, seed_B, known_BxTxA, keep_BxT):
  """The backbone once, the keys and values that the expert reads once, the expert once a flow step -> [B, T, A], normalised."""
  batch = augment.centred(batch, crop)
  features = model.apply({"params": params}, batch, method=vla.VLA.features)
  noise = flow.sample_noise(jax.vmap(jax.random.key)(seed_B), batch.action_BxTxA.shape[1:])
  return vla.sample(model, {"params": params}, features, batch, noise, model.config.flow.steps, known_BxTxA, keep_BxT)
