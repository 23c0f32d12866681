"""The parts without a model: limits, observations, tokens, rates, batches."""

import asyncio
import contextlib
import json
import threading
import time

import numpy as np
import pytest
import simplejpeg
import websockets
from websockets.sync import server as websockets_server

from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand
from egoscale_jax.serve import batcher, client, guard, limits, observation, wire
from egoscale_jax.serve.service import sizes_up_to

HORIZON = 8
TABLE = observation.fields(("ego", "wrist"), 3, True)


def bounds(velocity=np.inf):
  one = np.ones((2, 3), np.float32)
  return limits.Limits(-one, one, np.float32(velocity) * one)


def test_targets_stay_in_range_and_no_step_is_faster_than_allowed():
  rng = np.random.default_rng(0)
  wanted = rng.normal(0, 2, (HORIZON, 2, 3))
  start = np.zeros((2, 3))
  found = bounds(velocity=2.0).enforce(wanted, start, 0.1)
  assert found.dtype == np.float32
  assert np.abs(found).max() <= 1.0
  steps = np.abs(np.diff(found, axis=0, prepend=np.float32(start)[None]))
  assert steps.max() <= 0.2 + 1e-6
  assert (np.isclose(steps, 0.2) | np.isclose(found, np.clip(wanted, -1, 1))).all()  # as fast as it may, or there
  np.testing.assert_array_equal(bounds().enforce(wanted, start, 0.1), np.clip(wanted, -1, 1).astype(np.float32))


def test_joints_outside_of_their_range_come_back_no_faster_than_allowed():
  start = np.tile([-1.25, 1.25, 0.0], (2, 1))
  found = bounds(velocity=1.0).enforce(np.tile([-2.0, 0.5, 2.0], (HORIZON, 2, 1)), start, 0.1)
  np.testing.assert_allclose(found[:4, 0], [[-1.15, 1.15, 0.1], [-1.05, 1.05, 0.2], [-1, 0.95, 0.3], [-1, 0.85, 0.4]], atol=1e-6)
  assert np.abs(found[3:]).max() <= 1.0
  assert np.abs(np.diff(found, axis=0, prepend=np.float32(start)[None])).max() <= 0.1 + 1e-6


def test_degrees_are_told_from_radians():
  names = [("thumb", "index"), ("thumb", "index")]
  bounds = limits.Limits(np.zeros((2, 2), np.float32), np.full((2, 2), 1.5, np.float32), np.full((2, 2), np.inf, np.float32))
  bounds.check_units(np.array([[1.0, 7.7], [-6.2, 0.0]]), names)
  with pytest.raises(UserError, match=r"^state/joints: found 45 of index, whose range is 0 to 1.5, expected radians$"):
    bounds.check_units(np.array([[10.0, 0.5], [1.0, 45.0]]), names)


def test_a_joint_without_a_target_stays():
  start = np.tile([-1.25, 0.3, 0.0], (2, 1))
  wanted = np.tile([np.nan, np.nan, 0.15], (3, 2, 1))
  found = bounds(velocity=1.0).enforce(wanted, start, 0.1)
  np.testing.assert_allclose(found[:, 1], [[-1.25, 0.3, 0.1], [-1.25, 0.3, 0.15], [-1.25, 0.3, 0.15]], atol=1e-6)
  wanted[0] = 0.5  # over, and the hand is measured elsewhere
  found = bounds(velocity=1.0).enforce(wanted, start, 0.1, done=1)
  np.testing.assert_allclose(found[:, 1, 1], [0.5, 0.4, 0.3], atol=1e-6)


def test_steps_that_are_over_stay_and_the_next_follows_from_them():
  wanted = np.full((4, 2, 3), 0.9)
  wanted[:2] = 0.5
  found = bounds(velocity=1.0).enforce(wanted, np.zeros((2, 3)), 0.1, done=2)
  np.testing.assert_allclose(found[:, 0, 0], [0.5, 0.5, 0.6, 0.7], atol=1e-6)


def test_limits_are_those_of_the_hands_description():
  found = limits.of_hand("nowhere", "sharpa_wave", 22)
  for i, side in enumerate(("left", "right")):
    own = hand.load("sharpa_wave", side)
    np.testing.assert_array_equal(found.lower_2xJ[i], own.lower_J)
    np.testing.assert_array_equal(found.upper_2xJ[i], own.upper_J)
    np.testing.assert_array_equal(found.velocity_2xJ[i], own.velocity_J)
  with pytest.raises(UserError, match=r"--limits: found none, expected a file: 'sharpa_wave' has 22 joints, the policy 6"):
    limits.of_hand("nowhere", "sharpa_wave", 6)
  with pytest.raises(UserError, match="the work directory holds no description of the hand 'gripper'"):
    limits.of_hand("nowhere", "gripper", 1)


def test_limits_of_a_file(tmp_path):
  path = tmp_path / "limits.json"
  good = {"left": {"a": [-1, 1, 2.5], "b": [0, 1, None]}, "right": {"c": [-1, 1, 1], "d": [-1, 1, 1]}}
  path.write_text(json.dumps(good))
  found = limits.of_file(path, [("a", "b"), ("c", "d")])
  np.testing.assert_array_equal(found.lower_2xJ, np.float32([[-1, 0], [-1, -1]]))
  np.testing.assert_array_equal(found.velocity_2xJ, np.float32([[2.5, np.inf], [1, 1]]))
  for spoiled, told in (
    ({"left": {"a": [1, -1, 2], "b": [0, 1, 1]}}, r"left\.a: found \[1, -1, 2\]"),
    ({"left": {"a": [-1, 1, 0], "b": [0, 1, 1]}}, r"left\.a: found"),
    ({"right": {"c": [-1, 1, 1]}}, "right: expected an object of the joints c, d"),
  ):
    path.write_text(json.dumps(good | spoiled))
    with pytest.raises(UserError, match=told):
      limits.of_file(path, [("a", "b"), ("c", "d")])


def values(**more):
  good = {"image/ego": np.zeros((20, 30, 3), np.uint8), "image/wrist": np.zeros((16, 16, 3), np.uint8), "prompt": "Pour."}
  good |= {"state/wrist": np.tile(np.eye(4), (2, 1, 1)), "state/joints": np.zeros((2, 3), np.float32), "state/camera": np.eye(4)}
  return {name: value for name, value in (good | more).items() if value is not None}


def last(steps, **more):
  wrist = np.tile(np.eye(4), (steps, 2, 1, 1))
  return values(**{"executing/wrist": wrist, "executing/joints": np.zeros((steps, 2, 3)), "executing/frozen": 1, **more})


def with_nan(shape, at):
  array = np.zeros(shape)
  array[at] = np.nan
  return array


MIRROR = np.tile(np.diag([1.0, 1, -1, 1]), (2, 1, 1))
REFUSED = {
  "unknown": (values(image=1), "image: unknown, expected image/ego, image/wrist, prompt"),
  "missing": (values(**{"state/joints": None}), "state/joints: missing"),
  "no picture": (values(**{"image/wrist": None}), "image/wrist: missing"),
  "float picture": (values(**{"image/ego": np.zeros((20, 30, 3), np.float32)}), r"image/ego: found float32 \[20, 30, 3\], expected uint8"),
  "grey": (values(**{"image/ego": np.zeros((20, 30), np.uint8)}), r"image/ego: found uint8 \[20, 30\]"),
  "thin": (values(**{"image/ego": np.zeros((1, 3000, 3), np.uint8)}), r"image/ego: found uint8 \[1, 3000, 3\]"),
  "no JPEG": (values(**{"image/ego": b"JFIF"}), "image/ego: found 4 bytes, expected a JPEG"),
  "prompt": (values(prompt=b"Pour."), "prompt: found bytes"),
  "long prompt": (values(prompt="a" * 5000), "prompt: found str"),
  "joints": (values(**{"state/joints": np.zeros((2, 4), np.float32)}), r"state/joints: found float32 \[2, 4\], expected .* \[2, 3\]"),
  "dtype": (values(**{"state/joints": np.zeros((2, 3), np.int32)}), r"state/joints: found int32 \[2, 3\]"),
  "list": (values(**{"state/joints": [[0.0] * 3] * 2}), "state/joints: found list"),
  "NaN": (values(**{"state/joints": with_nan((2, 3), (1, 2))}), r"state/joints: found nan at \[1, 2\]"),
  "NaN with a signal": (
    values(**{"state/joints": np.full(6, 0x7FA00000, np.uint32).view(np.float32).reshape(2, 3)}),
    "state/joints: found nan",
  ),
  "infinite": (values(**{"state/joints": np.full((2, 3), np.inf)}), r"state/joints: found inf at \[0, 0\]"),
  "large": (values(**{"state/joints": np.full((2, 3), 1e300)}), r"state/joints: found 1e\+300"),
  "mirror": (values(**{"state/wrist": MIRROR}), "state/wrist: found no pose"),
  "stretched": (values(**{"state/wrist": 1.1 * np.tile(np.eye(4), (2, 1, 1))}), "state/wrist: found no pose"),
  "camera": (values(**{"state/camera": np.zeros((4, 4))}), "state/camera: found no pose"),
  "time": (values(time=float("nan")), "time: found float nan"),
  "seed": (values(seed=-1), "seed: found -1, expected 0 to"),
  "half seed": (values(seed=0.5), "seed: found float 0.5, expected a whole number"),
  "bool": (values(seed=True), "seed: found bool True"),
  "alone": (values(**{"executing/frozen": 1}), "executing/frozen: found alone"),
  "ramp": (values(**{"executing/ramp": 1}), "executing/ramp: found without"),
  "steps": (last(HORIZON + 1), "executing/wrist: found 9 steps and 9 of joints, expected the same number, 1 to 8"),
  "no steps": (last(0), "executing/wrist: found 0 steps"),
  "frozen": (
    last(3, **{"executing/frozen": 2, "executing/ramp": 2}),
    "executing/frozen: found 2, with executing/ramp 2, expected together",
  ),
  "list of all": ([1], "message: found list, expected the map of an observation"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_observation_is_named(name):
  given, told = REFUSED[name]
  with pytest.raises(UserError, match=told):
    observation.read(TABLE, given, HORIZON)


def test_a_good_observation_is_what_the_policy_takes():
  picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
  jpeg = simplejpeg.encode_jpeg(picture, quality=95)
  wrist = np.tile(np.eye(4), (2, 1, 1))
  wrist[:, 0, 3] = 2.0
  camera = np.eye(4)
  camera[0, 3] = 0.5
  given = last(3, **{"image/ego": jpeg, "state/wrist": wrist, "state/camera": camera, "seed": np.uint32(7), "time": np.float64(1.5)})
  seen = observation.read(TABLE, given, HORIZON)
  np.testing.assert_array_equal(seen.images[0], simplejpeg.decode_jpeg(jpeg))
  assert seen.images[1].shape == (16, 16, 3)
  assert (seen.seed, seen.time_s, seen.frozen, seen.ramp) == (7, 1.5, 1, 0)
  assert seen.request("human", has_state=False).state is None
  request = seen.request("human", has_state=True)
  assert request.state.reshape(2, -1)[:, 0].tolist() == [1.5, 1.5]  # seen from the camera
  np.testing.assert_array_equal(request.executing.chunk.T_start_wrist_Tx2x4x4[:, :, 0, 3], -2.0)  # seen from the wrist now
  assert request.embodiment == "human"


def test_tokens():
  assert guard.may(None, None)
  assert guard.may(b"0123456789abcdef", "0123456789abcdef")
  for wrong in (None, "", "0123456789abcdeF", "0123456789abcdef0", b"0123456789abcdef", 3, "\udcff"):
    assert not guard.may(b"0123456789abcdef", wrong)
  assert guard.bearer("Bearer abc") == guard.bearer("Api-Key abc") == guard.bearer("bearer  abc ") == "abc"
  assert guard.bearer("Basic abc") is guard.bearer(None) is guard.bearer("abc") is None


def test_a_token_file_holds_one_long_word(tmp_path):
  path = tmp_path / "token"
  path.write_text("0123456789abcdef\n")
  assert guard.read_token(path) == b"0123456789abcdef"
  for wrong in ("", "short", "0123456789 abcdef", "0123456789abcdéf"):
    path.write_text(wrong)
    with pytest.raises(UserError, match="expected one word of at least 16"):
      guard.read_token(path)
  with pytest.raises(UserError, match="cannot be read"):
    guard.read_token(tmp_path / "none")


def test_rate_is_a_bucket_an_address():
  now = [0.0]
  rate = guard.Rate(2.0, clock=lambda: now[0])
  assert [rate.allows("a") for _ in range(3)] == [True, True, False]
  assert rate.allows("b")
  now[0] = 0.5
  assert [rate.allows("a") for _ in range(2)] == [True, False]
  now[0] = 100.0
  assert [rate.allows("a") for _ in range(3)] == [True, True, False]


def test_sizes():
  assert sizes_up_to(1) == (1,)
  assert sizes_up_to(8) == (1, 2, 4, 8)
  assert sizes_up_to(6) == (1, 2, 4, 6)


def batched(clients, requests, deadline_s=0.2, fail=False, took_s=lambda size: 0.002):
  """-> sizes of the calls, and what each of `requests` rows of each client was told. took_s: of a call."""
  calls, now = [], [0.0]

  def run(rows, size):
    calls.append((len(rows), size))
    if fail and len(calls) == 1:
      raise RuntimeError("a bug")
    now[0] += took_s(size)
    return [row * 10 for row in rows]

  async def client(made, name):
    found = []
    for i in range(requests):
      try:
        found.append((await made.sample(name, 100 * name + i)).value)
      except RuntimeError as error:
        found.append(str(error))
    return found

  async def main():
    made = batcher.Batcher(run, deadline_s, lambda: now[0])
    made.sizes = (1, 2, 4)
    work = asyncio.create_task(made.work())
    found = await asyncio.wait_for(asyncio.gather(*(client(made, name) for name in range(clients))), 30)
    work.cancel()
    return found

  return calls, asyncio.run(main())


def test_requests_share_calls_and_everyone_gets_their_own():
  calls, found = batched(clients=9, requests=5)
  assert found == [[10 * (100 * name + i) for i in range(5)] for name in range(9)]
  assert sum(rows for rows, _ in calls) == 45
  assert len(calls) <= 20
  assert all(size == min(s for s in (1, 2, 4) if s >= rows) for rows, size in calls)


def test_the_batch_is_of_the_size_that_gives_the_most_rows():
  calls, found = batched(clients=9, requests=20, took_s=lambda size: 0.03 if size == 4 else 0.003)
  assert found == [[10 * (100 * name + i) for i in range(20)] for name in range(9)]
  assert 1 <= sum(size == 4 for _, size in calls) <= 3  # tried, and found to be slow
  assert sum(size == 2 for _, size in calls) > 70


def test_a_lone_client_waits_for_nobody():
  calls, found = batched(clients=1, requests=3, deadline_s=1000.0)
  assert calls == [(1, 1)] * 3
  assert found == [[0, 10, 20]]


def test_a_call_that_fails_is_told_to_those_in_it_alone():
  _, found = batched(clients=1, requests=2, fail=True)
  assert found == [["a bug", 10]]


def test_the_deadline_ends_the_wait():
  """A client that asked and went away is expected to come back, but nobody waits for it longer than the deadline."""

  async def main():
    made = batcher.Batcher(lambda rows, size: rows, 0.05)
    made.sizes = (1, 2, 4)
    work = asyncio.create_task(made.work())
    await asyncio.gather(made.sample("gone", 0), made.sample("here", 1))
    told = await asyncio.wait_for(made.sample("here", 2), 10)
    work.cancel()
    return told

  told = asyncio.run(main())
  assert told.rows == 1
  assert 0.04 < told.queue_s < 5


@contextlib.contextmanager
def slow_server():
  """-> its address, and an event that its answers wait for. The answer to a request is its seed."""
  go = threading.Event()

  def talk(connection):
    connection.send(wire.pack_openpi({}))
    for message in connection:
      with connection.protocol_mutex:  # it hangs: it answers no request to close either
        go.wait(30)
      seed = wire.unpack(message)["seed"]
      joints = np.full((1, 2, 3), seed, np.float32)
      with contextlib.suppress(websockets.ConnectionClosed):
        connection.send(wire.pack_openpi({"wrist": joints, "joints": joints, "time_s": np.zeros(1), "server_timing": {}}))

  with websockets_server.serve(talk, "127.0.0.1", 0) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", go
    finally:
      go.set()
      server.shutdown()
      thread.join(30)


def asked(own, seed):
  return own.act({}, "Pour.", np.tile(np.eye(4), (2, 1, 1)), np.zeros((2, 3)), seed=seed).joints_Tx2xJ[0, 0, 0]


def test_a_late_answer_is_never_taken_for_the_next_ones(monkeypatch):
  with slow_server() as (address, go):
    with client.Client(address, timeout_s=0.2) as own:
      start = time.monotonic()
      with pytest.raises(TimeoutError, match=r"server: no answer within timeout_s=0\.2, the connection is closed: make a new Client"):
        asked(own, 1)
      assert time.monotonic() - start < 6
      go.set()
      for seed in (2, 3):
        with pytest.raises(UserError, match=r"connection: found closed, .* expected an open one: make a new Client"):
          asked(own, seed)
    with client.Client(address) as own:
      assert [asked(own, seed) for seed in (4, 5)] == [4, 5]
      recv = own._connection.recv

      def interrupted(timeout):
        raise KeyboardInterrupt

      monkeypatch.setattr(own._connection, "recv", interrupted)
      with pytest.raises(KeyboardInterrupt):
        asked(own, 6)
      monkeypatch.setattr(own._connection, "recv", recv)
      with pytest.raises(UserError, match="connection: found closed"):
        asked(own, 7)
