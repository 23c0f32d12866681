"""A server in a thread of this process, observations for it, and what the bare policy answers."""

import asyncio
import contextlib
import dataclasses
import functools
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT
from websockets.sync import client as websockets_client

from egoscale_jax.policy import Request
from egoscale_jax.serve import server, wire

BATCH = 4
TEXT = "Pour tea into cup 1."


@functools.cache
def robot(workdir):
  """Opened and compiled once a process."""
  return server.open_robot(workdir)


@dataclasses.dataclass(frozen=True)
class Served:
  robot: server.Robot
  address: server.Address

  @property
  def url(self):
    return f"ws://127.0.0.1:{self.address.port}"


@contextlib.contextmanager
def running(robot, **settings):
  """-> Served, with every batch size compiled; drained at the end, and what the server raised is raised here."""
  ready, told, failed = threading.Event(), {}, []

  async def main():
    told.update(stop=asyncio.Event(), loop=asyncio.get_running_loop())

    def tell(address):
      told["address"] = address
      ready.set()

    await server.serve(robot, server.Settings(port=0, zmq_port=0, **{"batch": BATCH, **settings}), told["stop"], tell)

  def thread():
    try:
      asyncio.run(main())
    except BaseException as error:
      failed.append(error)
    finally:
      ready.set()

  running = threading.Thread(target=thread)
  running.start()
  assert ready.wait(120)
  try:
    if not failed:
      yield Served(robot, told["address"])
  finally:
    if not failed:
      with contextlib.suppress(RuntimeError):  # the loop is closed: a client's kill was first
        told["loop"].call_soon_threadsafe(told["stop"].set)
    running.join(60)
    assert not running.is_alive(), "the server did not drain"
  if failed:
    raise failed[0]


def image(seed=0, size=(48, 64)):
  return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def pose(x=0.0, turn=0.0):
  """Left and right wrist [2, 4, 4], turned about z."""
  wrist = np.tile(np.eye(4), (2, 1, 1))
  wrist[:, :2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
  wrist[:, :3, 3] = [[x, 0.2, 0.3], [x, -0.2, 0.3]]
  return wrist


def middle(robot):
  """Joints in the middle of their ranges, [2, J] float32."""
  return (robot.limits.lower_2xJ + robot.limits.upper_2xJ) / 2


def observation(robot, seed=0, text=TEXT, **more):
  values = {"image/ego": image(seed), "prompt": text, "state/wrist": pose(0.1 * seed, 0.3), "state/joints": middle(robot), "seed": seed}
  return values | more


def expected(robot, values):
  """What the bare policy says to an observation, in the robot's units: wrist [T, 2, 4, 4] and joints [T, 2, J]."""
  chunk = robot.policy.many([Request([values["image/ego"]], values["prompt"], seed=values["seed"])])[0]
  wrist = values["state/wrist"] @ chunk.T_start_wrist_Tx2x4x4
  return wrist, robot.limits.enforce(chunk.joints_Tx2xJ, values["state/joints"], robot.step_s)


@contextlib.contextmanager
def connect(url, **more):
  """A bare connection, its metadata read."""
  with websockets_client.connect(url, compression=None, max_size=None, **more) as connection:
    wire.unpack(connection.recv(30))
    yield connection


def ask(connection, values):
  """-> the answer, or the text of an error; values: a map, or the bytes of a frame."""
  connection.send(values if isinstance(values, bytes | str) else wire.pack_openpi(values))
  message = connection.recv(60)
  return message if isinstance(message, str) else wire.unpack(message)


def openpi_client():
  """The package as launch/setup.sh installs it, beside the others: its pin of numpy 1 is the only thing that keeps it from them."""
  folder = ROOT / ".venv" / "openpi_client"
  if not folder.is_dir():
    pytest.skip("openpi-client is not there: launch/setup.sh puts it into .venv/openpi_client")
  if str(folder) not in sys.path:
    sys.path.append(str(folder))
  return pytest.importorskip("openpi_client.websocket_client_policy"), pytest.importorskip("openpi_client.action_chunk_broker")
