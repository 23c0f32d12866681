"""GR00T's protocol (N1.6 and N1.7): ZMQ REQ to ROUTER, msgpack with arrays as .npy bytes, {"endpoint", "data", "api_token"} -> result.

Observations are {"video": {camera: uint8 [B, 1, Y, X, 3]}, "state": {name: float32 [B, 1, D]}, "language": {name: [[text]] * B}}; an answer
is [{name: float32 [B, T, D]}, information]. The wrists have 9 numbers: xyz and the first two rows of the rotation, in the base frame.
"""

import asyncio

import numpy as np
import zmq
import zmq.asyncio

from egoscale_jax import geometry
from egoscale_jax.data import actions
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints
from egoscale_jax.serve import guard, wire
from egoscale_jax.serve import observation as observation_lib
from egoscale_jax.serve.service import Service

PROTOCOL = "groot"
LANGUAGE = "annotation.human.task_description"
WRISTS = tuple(f"{side}_wrist" for side in keypoints.SIDES)
HANDS = tuple(f"{side}_hand" for side in keypoints.SIDES)
CAMERA = "camera"
ROWS = 64  # observations in one request


class Endpoint:
  """`serve` answers until it is cancelled. kill: called by a client that has the token."""

  def __init__(self, service: Service, *, token, rate: guard.Rate, kill):
    self._service, self._token, self._rate, self._kill = service, token, rate, kill
    names = [field.name for field in service.table]
    self._cameras = [name.removeprefix(observation_lib.IMAGE) for name in names if name.startswith(observation_lib.IMAGE)]
    self._states = (*WRISTS, *HANDS, *([CAMERA] if observation_lib.CAMERA in names else []))
    self._context, self._tasks = zmq.asyncio.Context(), set()

  def bind(self, host, port, max_bytes) -> int:
    """-> the port, for 0 a free one."""
    self._socket = socket = self._context.socket(zmq.ROUTER)
    options = {zmq.MAXMSGSIZE: max_bytes, zmq.LINGER: 1000, zmq.SNDHWM: 16, zmq.RCVHWM: 16, zmq.IPV6: ":" in host}
    options |= {zmq.HEARTBEAT_IVL: 20_000, zmq.HEARTBEAT_TIMEOUT: 20_000}  # a peer that is cut off is let go
    for option, value in options.items():
      socket.setsockopt(option, value)
    where = f"tcp://{f'[{host}]' if ':' in host else host}"
    try:
      if port == 0:
        return socket.bind_to_random_port(where)
      socket.bind(f"{where}:{port}")
    except zmq.ZMQError as error:
      raise UserError(f"--zmq-port={port}: cannot be listened on at {host}: {error}") from error
    return port

  async def serve(self):
    while True:
      frames = await self._socket.recv_multipart(copy=False)
      if len(frames) != 3 or len(frames[1]):
        continue  # not of a REQ socket: there is no envelope to answer into
      task = asyncio.create_task(self._answer(*frames))
      self._tasks.add(task)
      task.add_done_callback(self._tasks.discard)

  async def close(self):
    """Answers what has been accepted."""
    while self._tasks:
      await asyncio.wait(self._tasks)
    self._context.destroy(linger=1000)

  async def _answer(self, client, empty, frame):
    try:
      reply = await self._reply(client.bytes, frame.get("Peer-Address"), frame.bytes)
    except UserError as error:
      reply = {"error": wire.line(error)}
    except Exception:  # one request, not the server
      reply = {"error": self._service.failure()}
    await self._socket.send_multipart([client.bytes, b"", wire.pack_npy(reply)])

  async def _reply(self, client, address, message):
    service = self._service
    if not self._rate.allows(address):
      raise service.refusal("rate", f"server: more than {self._rate.per_second:g} requests a second from one address")
    try:
      request = wire.unpack(message)
      if not isinstance(request, dict):
        raise UserError(f"message: found {type(request).__name__}, expected a map of endpoint and data")
    except UserError:
      service.metrics.refused.labels("message").inc()
      raise
    if not guard.may(self._token, request.get("api_token")):
      raise service.refusal("token", "api_token: not the server's")
    return await self._call(client, request.get("endpoint", "get_action"), request.get("data"))

  async def _call(self, client, endpoint, data):
    if endpoint == "get_action":
      return await self._get_action(client, data)
    if endpoint == "get_modality_config":
      return self._modality_config()
    if endpoint == "ping":
      return {"status": "ok", "message": "Server is running"}
    if endpoint == "reset":
      return {}  # nothing is kept between requests
    if endpoint == "kill":
      if self._token is None:
        raise self._service.refusal("token", "kill: expected a server that was started with --token-file")
      self._kill()
      return {"status": "ok", "message": "draining"}
    known = "ping, get_action, get_modality_config, reset, kill"
    raise self._service.refusal("message", f"endpoint: found {str(endpoint)[:60]!r}, expected one of {known}")

  async def _get_action(self, client, data):
    """All rows or none: the first that is refused ends the request."""
    try:
      rows = self._rows(data)
    except UserError:
      self._service.metrics.refused.labels("observation").inc()
      raise
    tasks = [asyncio.ensure_future(self._service.answer((client, i), PROTOCOL, row)) for i, row in enumerate(rows)]
    await asyncio.wait(tasks)
    answers = [task.result() for task in tasks]
    wrist = np.stack([answer["wrist"] for answer in answers])
    joints = np.stack([answer["joints"] for answer in answers])
    wrist_BxTx2x9 = np.concatenate([wrist[..., :3, 3], geometry.so3_to_rot6d(wrist[..., :3, :3])], axis=-1)
    action = {name: wrist_BxTx2x9[:, :, i] for i, name in enumerate(WRISTS)} | {name: joints[:, :, i] for i, name in enumerate(HANDS)}
    more = {"time_s": np.stack([answer["time_s"] for answer in answers]), "server_timing": answers[0]["server_timing"]}
    return [action, more]

  def _rows(self, data) -> list[dict]:
    """GR00T's request -> an observation a row, as observation.read has it."""
    data = _map("data", data, ("observation",), ("options",))
    seen = _map("observation", data["observation"], ("video", "state", "language"))
    video = _map("video", seen["video"], self._cameras)
    state = _map("state", seen["state"], self._states)
    language = _map("language", seen["language"], (LANGUAGE,))[LANGUAGE]
    options = _map("options", data.get("options") or {}, (), ("time", "seed", *(name for name in _EXECUTING)))
    if not (isinstance(language, list) and 1 <= len(language) <= ROWS and all(isinstance(t, list) and len(t) == 1 for t in language)):
      raise UserError(f"language.{LANGUAGE}: expected a list of 1 to {ROWS} lists of one string")
    count = len(language)
    video = {name: _array(f"video.{name}", value, "uint8", count, (None, None, 3)) for name, value in video.items()}
    widths = {name: 9 for name in (*WRISTS, CAMERA)} | {name: len(own) for name, own in zip(HANDS, self._service.robot.joint_names)}
    state = {name: _array(f"state.{name}", value, "float32", count, (widths[name],)) for name, value in state.items()}
    if count > 1 and options.keys() & set(_EXECUTING):
      raise UserError(f"options.{observation_lib.FROZEN}: found with {count} rows, expected 1")
    return [self._row(i, video, state, language, options) for i in range(count)]

  def _row(self, i, video, state, language, options):
    row = {observation_lib.IMAGE + name: value[i, 0] for name, value in video.items()} | options
    row[observation_lib.PROMPT] = language[i][0]
    row[observation_lib.WRIST] = np.stack([_pose(f"state.{name}", state[name][i, 0]) for name in WRISTS])
    row[observation_lib.JOINTS] = np.stack([state[name][i, 0] for name in HANDS])
    if CAMERA in state:
      row[observation_lib.CAMERA] = _pose(f"state.{CAMERA}", state[CAMERA][i, 0])
    return row

  def _modality_config(self):
    config = self._service.robot.policy.config
    steps = [config.data.stride * k for k in range(1, self._service.robot.horizon + 1)]
    kinds = [("EEF", "XYZ_ROT6D")] * 2 + [("NON_EEF", "DEFAULT")] * 2
    acts = [{"rep": "ABSOLUTE", "type": kind, "format": form, "state_key": None} for kind, form in kinds]
    return {
      "video": _modality([0], self._cameras),
      "state": _modality([0], self._states),
      "action": _modality(steps, (*WRISTS, *HANDS), acts),
      "language": _modality([0], (LANGUAGE,)),
    }


_EXECUTING = (observation_lib.LAST_WRIST, observation_lib.LAST_JOINTS, observation_lib.FROZEN, observation_lib.RAMP)


def _modality(frames, names, acts=None):
  told = {"delta_indices": frames, "modality_keys": list(names), "sin_cos_embedding_keys": None, "mean_std_embedding_keys": None}
  return {"__ModalityConfig_class__": True, "as_json": told | {"action_configs": acts}}


def _map(where, value, names, more=()):
  """A dict of all of `names`, and of `more` what there is."""
  if not isinstance(value, dict):
    raise UserError(f"{where}: found {type(value).__name__}, expected a map of {', '.join((*names, *more))}")
  for name in names:
    if name not in value:
      raise UserError(f"{where}.{name}: missing")
  for name in value:
    if name not in names and name not in more:
      raise UserError(f"{where}.{str(name)[:60]}: unknown, expected {', '.join((*names, *more))}")
  return value


def _array(where, value, dtype, rows, shape):
  """uint8 or float32 [rows, 1, *shape]."""
  wanted = (rows, 1, *shape)
  good = isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim == len(wanted)
  if not (good and all(n is None or n == m for n, m in zip(wanted, value.shape))):
    found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
    raise UserError(f"{where}: found {found}, expected {dtype} [{', '.join('any' if n is None else str(n) for n in wanted)}]")
  return value


def _pose(where, numbers_9):
  """xyz and two rows -> [4, 4]; the rows must be a rotation's, for Gram-Schmidt would make one of anything."""
  with np.errstate(invalid="ignore"):  # NaN with a signal: refused below
    numbers_9 = numbers_9.astype(np.float64)
  rows = numbers_9[3:].reshape(2, 3)
  if not np.abs(rows @ rows.T - np.eye(2)).max() < 1e-3:  # of NaN it is not
    raise UserError(f"{where}: found {np.round(numbers_9, 3).tolist()}, expected finite xyz and the first two rows of a rotation")
  return geometry.se3(geometry.rot6d_to_so3(numbers_9[3:]), numbers_9[: actions.WRIST_DIM - 6])
