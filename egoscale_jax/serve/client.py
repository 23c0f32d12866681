"""A client of `egoscale serve` without JAX: numpy, msgpack and websockets are all it needs."""

import contextlib
import dataclasses

import numpy as np
from websockets.sync import client as websockets_client

from egoscale_jax.errors import UserError
from egoscale_jax.serve import wire


@dataclasses.dataclass(frozen=True)
class Answer:
  """A chunk in the robot's units: T steps, left hand, then right."""

  T_base_wrist_Tx2x4x4: np.ndarray
  joints_Tx2xJ: np.ndarray  # radians, targets within the hand's limits
  time_s_T: np.ndarray  # when each step is due, on the clock of the observation's time
  timing: dict  # milliseconds, and the number of requests that shared the call


class Client:
  """`Client("ws://127.0.0.1:8000")`; metadata tells what is expected. A refused observation raises UserError, and the next may be good.

  A request that is broken off, as by TimeoutError after timeout_s, closes the connection: what is asked next is asked of a new Client.
  """

  def __init__(self, address: str, token: str = "", timeout_s: float = 60.0, ssl=None):
    headers = {"Authorization": f"Bearer {token}"} if token else None
    more = {"ssl": ssl} if ssl is not None else {}
    self._timeout_s, self._closed = timeout_s, False
    self._open = contextlib.ExitStack()
    more |= {"max_size": 2**26, "close_timeout": 1.0}  # a server that does not answer need not say good-bye either: the robot waits
    connecting = websockets_client.connect(address, additional_headers=headers, compression=None, **more)
    self._connection = self._open.enter_context(connecting)
    self.metadata = self._receive()
    self._last = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self):
    self._closed = True
    self._open.close()

  def act(
    self, images: dict, prompt: str, wrist_2x4x4, joints_2xJ, camera_4x4=None, *, executed=None, frozen=0, ramp=0, time_s=0.0, seed=0
  ):
    """-> Answer. images: {camera: uint8 [Y, X, 3] or the bytes of a JPEG}; the rest as docs/serve.md has it.

    executed: how many steps of the last answer are over (real-time chunking): the new chunk begins with the `frozen` next ones as they are,
    because they will be over too when it is there, and fades from the last answer over `ramp` more. None: it begins anew.
    """
    values = {f"image/{name}": image for name, image in images.items()}
    values |= {
      "prompt": prompt,
      "state/wrist": np.asarray(wrist_2x4x4),
      "state/joints": np.asarray(joints_2xJ),
      "time": time_s,
      "seed": seed,
    }
    if camera_4x4 is not None:
      values["state/camera"] = np.asarray(camera_4x4)
    if executed is not None:
      if self._last is None or not 0 <= executed < len(self._last.joints_Tx2xJ):
        raise UserError(f"executed: found {executed}, expected a step of the last answer")
      last = {"executing/wrist": self._last.T_base_wrist_Tx2x4x4[executed:], "executing/joints": self._last.joints_Tx2xJ[executed:]}
      values |= last | {"executing/frozen": frozen, "executing/ramp": ramp}
    found = self._receive(wire.pack_openpi(values))
    self._last = Answer(found["wrist"], found["joints"], found["time_s"], found["server_timing"])
    return self._last

  def _receive(self, request=None):
    """-> the next message of the server, after the request, if there is one."""
    if self._closed:
      raise UserError("connection: found closed, by close() or a request that was broken off, expected an open one: make a new Client")
    try:
      if request is not None:
        self._connection.send(request)
      message = self._connection.recv(self._timeout_s)
    except BaseException as error:
      self.close()  # the answer is on its way: the next request would be given it, the one after that the next one's, and so on
      if isinstance(error, TimeoutError):
        told = f"server: no answer within timeout_s={self._timeout_s:g}, the connection is closed: make a new Client, and give it longer"
        raise TimeoutError(told) from error
      raise
    if isinstance(message, str):
      raise UserError(message)
    return wire.unpack(message)
