"""Observation -> answer, whatever the protocol: check, prepare, batch, sample, and into the robot's units."""

import asyncio
import concurrent.futures
import dataclasses
import gc
import math
import os
import time

import numpy as np
from absl import logging

from egoscale_jax.data import actions, examples
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints
from egoscale_jax.policy import Policy, Request
from egoscale_jax.serve import batcher as batcher_lib
from egoscale_jax.serve import limits as limits_lib
from egoscale_jax.serve import metrics as metrics_lib
from egoscale_jax.serve import observation as observation_lib

_TIMED = 3  # calls of each batch size at the start
STEP_NAMES = ("x", "y", "z", "r00", "r01", "r02", "r10", "r11", "r12")


class Refused(UserError):
  """A request that is well formed and comes at a bad time; reason: of metrics.REASONS."""

  def __init__(self, reason, told):
    super().__init__(told)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Robot:
  """What is served: one embodiment of a policy, and its hands."""

  policy: Policy
  embodiment: str
  limits: limits_lib.Limits
  rate_hz: float  # of the recordings that the policy learned from

  @property
  def slot(self) -> examples.Slot:
    return self.policy.slot(self.embodiment)

  @property
  def horizon(self) -> int:
    return self.policy.config.model.horizon

  @property
  def step_s(self) -> float:
    return self.policy.config.data.stride / self.rate_hz

  @property
  def joint_names(self) -> list[tuple[str, ...]]:
    return joint_names(self.slot.statistics)

  @property
  def has_state(self) -> bool:
    return self.policy.state_from_camera(self.embodiment) is not None

  def fields(self) -> tuple[observation_lib.Field, ...]:
    """Of an observation."""
    from_camera = bool(self.policy.state_from_camera(self.embodiment))
    return observation_lib.fields(self.policy.config.data.cameras, len(self.joint_names[0]), from_camera)


def joint_names(statistics) -> list[tuple[str, ...]]:
  """Of the left and of the right hand."""
  names = [name.split(".", 1)[1] for name in statistics.action_names]
  half = len(names) // 2
  return [tuple(names[side + actions.WRIST_DIM : side + half]) for side in (0, half)]


def sizes_up_to(largest: int) -> tuple[int, ...]:
  """1, 2, 4, ... and the largest itself."""
  powers = tuple(2**k for k in range(largest.bit_length()) if 2**k < largest)
  return (*powers, largest)


class Service:
  """Used from one event loop."""

  def __init__(self, robot: Robot, batch: int, deadline_s: float, queue: int):
    self.robot, self.metrics, self.draining = robot, metrics_lib.Metrics(), False
    policy = robot.policy
    self.table = robot.fields()
    self.batcher = batcher_lib.Batcher(policy.sample, deadline_s)
    self._queue = queue
    self._sizes = sizes_up_to(batch)
    self._preparing = concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1), "prepare")
    self.in_flight = 0
    self.idle = asyncio.Event()
    self.idle.set()

  async def warm(self, size: int):
    """Compiles the program of a batch size, or takes it from the disk, and runs it: once, and again for its time."""
    shape = self.robot.policy.config.data.image_size
    blank = Request([np.zeros((*shape, 3), np.uint8) for _ in self.robot.policy.config.data.cameras], "", self._blank_state())
    row = self.robot.policy.row(dataclasses.replace(blank, embodiment=self.robot.embodiment))
    for again in range(_TIMED + 1):
      start = time.perf_counter()
      await asyncio.to_thread(self.robot.policy.sample, [row], size)  # not in the device's thread: it serves while others are compiled
      if again:
        self.batcher.took(size, time.perf_counter() - start)
    self.batcher.sizes = (*self.batcher.sizes, size)
    self.metrics.compiled.set(size)

  async def warm_all(self):
    """The rest of the sizes, while the first one serves."""
    for size in self._sizes:
      if size not in self.batcher.sizes:
        await self.warm(size)
    gc.collect()
    gc.freeze()  # what the programs were made with stays: to walk it again and again costs milliseconds

  def _blank_state(self):
    return np.zeros(self.robot.slot.width, np.float32) if self.robot.has_state else None

  async def answer(self, client, protocol: str, values) -> dict:
    """client: whatever tells clients apart. UserError for what is refused; anything else is a bug, see `failure`."""
    if self.draining:
      raise self.refusal("draining", "server: it is shutting down")
    if self.in_flight >= self._queue:
      raise self.refusal("busy", f"server: {self._queue} requests are waiting, try again")
    self.in_flight += 1
    self.metrics.in_flight.inc()
    self.idle.clear()
    try:
      answer = await self._answer(client, values)
      self.metrics.answered.labels(protocol).inc()
      return answer
    except UserError:
      self.metrics.refused.labels("observation").inc()
      raise
    finally:
      self.in_flight -= 1
      self.metrics.in_flight.dec()
      if not self.in_flight:
        self.idle.set()

  def failure(self) -> str:
    """Counts and logs the exception that is being handled, a bug -> what the client is told: what it was is the server's own affair."""
    self.metrics.failed.inc()
    logging.exception("a request failed")
    return "server: internal error, its log tells more"

  def refusal(self, reason, told) -> Refused:
    """Counted; to be raised."""
    self.metrics.refused.labels(reason).inc()
    return Refused(reason, told)

  async def _answer(self, client, values):
    start = time.perf_counter()
    if self.in_flight == 1:  # nobody else is kept waiting, and going to a thread and back costs 0.5 ms of 1.0
      seen, request, row = self._prepare(values)
    else:
      seen, request, row = await asyncio.get_running_loop().run_in_executor(self._preparing, self._prepare, values)
    prepared = time.perf_counter()
    sampled = await self.batcher.sample(client, row)
    answer = self._finish(seen, self.robot.policy.chunk(request, sampled.value))
    timing = {"prepare_ms": prepared - start, "queue_ms": sampled.queue_s, "device_ms": sampled.device_s}
    timing["total_ms"] = time.perf_counter() - start
    timing = {name: 1e3 * seconds for name, seconds in timing.items()}
    asyncio.get_running_loop().call_soon(self.metrics.observe, timing, sampled.rows)  # once the answer is on its way
    return answer | {"server_timing": timing | {"infer_ms": timing["device_ms"], "batch": sampled.rows}}

  def _prepare(self, values):
    seen = observation_lib.read(self.table, values, self.robot.horizon)
    self.robot.limits.check_units(seen.joints_2xJ, self.robot.joint_names)
    request = seen.request(self.robot.embodiment, self.robot.has_state)
    try:
      return seen, request, self.robot.policy.row(request)
    except UserError as error:  # all else has been checked
      raise UserError(f"{observation_lib.PROMPT}: {error}") from error

  def _finish(self, seen, chunk):
    """Into the base frame, within the hand's limits, with times. All arrays have the steps first: openpi's clients slice them so.

    What the training data never had, as a one-armed robot's other hand, stays where it is: the policy knows nothing of it.
    """
    observed_2xD = self.robot.slot.normalizer.observed_A.reshape(2, -1)
    moves_2, told_2xJ = observed_2xD[:, : actions.WRIST_DIM].all(axis=-1), observed_2xD[:, actions.WRIST_DIM :]
    wrist_Tx2x4x4 = seen.T_base_wrist_2x4x4 @ chunk.T_start_wrist_Tx2x4x4.astype(np.float64)
    wrist_Tx2x4x4 = np.where(moves_2[:, None, None], wrist_Tx2x4x4, seen.T_base_wrist_2x4x4)
    if not (np.isfinite(wrist_Tx2x4x4).all() and np.isfinite(chunk.joints_Tx2xJ[:, told_2xJ]).all()):
      raise FloatingPointError("the policy's chunk is not finite")  # a bug of the model's: no robot is to see it
    joints_Tx2xJ = np.where(told_2xJ, np.asarray(chunk.joints_Tx2xJ, np.float64), np.nan)  # NaN: `enforce` leaves these where they are
    if seen.frozen:
      wrist_Tx2x4x4[: seen.frozen], joints_Tx2xJ[: seen.frozen] = (array[: seen.frozen] for array in seen.last)
    joints_Tx2xJ = self.robot.limits.enforce(joints_Tx2xJ, seen.joints_2xJ, self.robot.step_s, seen.frozen)
    wrist_Tx2x4x4 = wrist_Tx2x4x4.astype(np.float32)
    return {
      "actions": actions.join_chunk(wrist_Tx2x4x4, joints_Tx2xJ),
      "wrist": wrist_Tx2x4x4,
      "joints": joints_Tx2xJ,
      "time_s": seen.time_s + self.robot.step_s * np.arange(1, len(joints_Tx2xJ) + 1),
    }

  def metadata(self) -> dict:
    """What a client is told when it connects: plain lists, strings and numbers."""
    robot, policy = self.robot, self.robot.policy
    hands = {}
    for i, side in enumerate(keypoints.SIDES):
      rows = {name: getattr(robot.limits, f"{name}_2xJ")[i].tolist() for name in ("lower", "upper", "velocity")}
      rows["velocity"] = [None if math.isinf(v) else v for v in rows["velocity"]]
      hands[side] = {"joint_names": list(robot.joint_names[i]), **rows}
    return {
      "server": "egoscale_jax",
      "embodiment": robot.embodiment,
      "hand": robot.slot.statistics.hand,
      "hands": hands,  # limits in radians, velocity in rad/s
      "observation": {
        f.name: {"kind": list(f.kind), "shape": list(f.shape), "required": f.required, "meaning": f.meaning} for f in self.table
      },
      "action": self._action_spec(),
      "horizon": robot.horizon,
      "rate_hz": 1.0 / robot.step_s,  # of the steps of a chunk; step k is (k + 1) / rate_hz after the observation
      "image_size": list(policy.config.data.image_size),
      "checkpoint_step": int(policy.step),
      "units": {"length": "m", "angle": "rad", "time": "s"},
    }

  def _action_spec(self):
    horizon, joints = self.robot.horizon, len(self.robot.joint_names[0])
    names = [f"{side}.{name}" for side, own in zip(keypoints.SIDES, self.robot.joint_names) for name in (*STEP_NAMES, *own)]
    meaning = "a hand: xyz and the first two rows of the rotation of T_base_wrist, then joint targets; left, then right"
    return {
      "actions": {"dtype": "float32", "shape": [horizon, actions.action_dim(joints)], "names": names, "meaning": meaning},
      "wrist": {"dtype": "float32", "shape": [horizon, 2, 4, 4], "meaning": "T_base_wrist of each step"},
      "joints": {"dtype": "float32", "shape": [horizon, 2, joints], "meaning": "joint targets, within the limits"},
      "time_s": {"dtype": "float64", "shape": [horizon], "meaning": "when each step is due, on the clock of the observation's time"},
    }
