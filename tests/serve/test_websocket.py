"""openpi's protocol on a real socket: the answers are the bare policy's, refusals name the field, nothing harms the next client."""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import re
import socket
import ssl
import struct
import subprocess
import threading
import time

import numpy as np
import pytest
import serving
import simplejpeg
import websockets
from conftest import ROOT
from websockets.sync import client as websockets_client

from egoscale_jax.errors import UserError
from egoscale_jax.policy import Request
from egoscale_jax.serve import batcher, client, limits, server, wire

TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def served(tiny_run):
  with serving.running(serving.robot(tiny_run)) as served:
    yield served


@pytest.fixture
def connection(served):
  with serving.connect(served.url) as connection:
    yield connection


def get(served, path, **headers):
  """-> status, body."""
  connection = http.client.HTTPConnection("127.0.0.1", served.address.port, timeout=30)
  connection.request("GET", path, headers=headers)
  response = connection.getresponse()
  return response.status, response.read().decode()


def counts(served):
  """/metrics -> {name with labels: number}."""
  status, text = get(served, "/metrics")
  assert status == 200
  rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
  return {name: float(number) for name, number in rows}


def close_to(answer, expected):
  wrist, joints = expected
  np.testing.assert_allclose(answer["wrist"], wrist, atol=1e-4)
  np.testing.assert_allclose(answer["joints"], joints, atol=1e-4)


def test_the_answer_is_the_bare_policys_in_the_robots_units(served, connection):
  robot = served.robot
  for seed in range(3):
    values = serving.observation(robot, seed, time=100.0)
    answer = serving.ask(connection, values)
    _, joints = expected = serving.expected(robot, values)
    close_to(answer, expected)
    assert (answer["joints"] >= robot.limits.lower_2xJ).all()
    assert (answer["joints"] <= robot.limits.upper_2xJ).all()
    steps = np.diff(np.concatenate([values["state/joints"][None], answer["joints"]]), axis=0)
    assert (np.abs(steps) <= robot.limits.velocity_2xJ * robot.step_s + 1e-5).all()
    np.testing.assert_allclose(answer["time_s"], 100.0 + np.arange(1, 9) / 30, atol=1e-9)
    hands = answer["actions"].reshape(len(joints), 2, -1)
    np.testing.assert_array_equal(hands[..., :3], answer["wrist"][..., :3, 3])
    np.testing.assert_array_equal(hands[..., 3:9].reshape(-1, 2, 2, 3), answer["wrist"][..., :2, :3])
    np.testing.assert_array_equal(hands[..., 9:], answer["joints"])
    assert answer["server_timing"].keys() >= {"prepare_ms", "queue_ms", "device_ms", "total_ms", "batch"}


def test_a_slow_hand_is_not_asked_for_more(tiny_run):
  """With a tenth of the speeds the targets are what the limits leave of the bare policy's."""
  robot = serving.robot(tiny_run)
  slow = limits.Limits(robot.limits.lower_2xJ, robot.limits.upper_2xJ, robot.limits.velocity_2xJ * 0 + 0.3)
  robot = dataclasses.replace(robot, limits=slow)
  with serving.running(robot, batch=1) as served, serving.connect(served.url) as connection:
    values = serving.observation(robot)
    answer = serving.ask(connection, values)
    close_to(answer, serving.expected(robot, values))
    steps = np.diff(np.concatenate([values["state/joints"][None], answer["joints"]]), axis=0)
    assert np.abs(steps).max() <= 0.3 / 30 + 1e-6
    assert np.isclose(np.abs(steps), 0.3 / 30, atol=1e-6).any()


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # of websockets 17.1, by the client
def test_openpis_own_client(served):
  policy_lib, broker_lib = serving.openpi_client()
  policy = policy_lib.WebsocketClientPolicy("127.0.0.1", served.address.port)
  told = policy.get_server_metadata()
  assert told["horizon"] == 8
  assert told["rate_hz"] == pytest.approx(30.0)
  assert len(told["action"]["actions"]["names"]) == 62
  assert told["hands"]["right"]["joint_names"] == list(served.robot.joint_names[1])
  assert set(serving.observation(served.robot)) <= set(told["observation"])
  values = serving.observation(served.robot, 3)
  answer = policy.infer(values)
  close_to(answer, serving.expected(served.robot, values))
  with pytest.raises(RuntimeError, match="state/joints: missing"):
    policy.infer({name: value for name, value in values.items() if name != "state/joints"})
  broker = broker_lib.ActionChunkBroker(policy, action_horizon=8)
  for k in range(8):
    step = broker.infer(values)
    np.testing.assert_allclose(step["actions"], answer["actions"][k], atol=1e-5)
    assert step["joints"].shape == (2, 22)
  policy._ws.close()  # it has no close of its own


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # as above
def test_the_pages_snippets_run_as_they_stand(served, capsys):
  serving.openpi_client()
  blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "serve.md").read_text(), re.MULTILINE | re.DOTALL)
  assert len(blocks) == 2
  for block in blocks:
    space = {}
    exec(block.replace("8000", str(served.address.port)), space)
    if "observation" in space:
      space["policy"]._ws.close()
  assert capsys.readouterr().out.splitlines()[0] == "(8, 2, 22)"


def test_jpeg_and_any_size(served, connection):
  picture = serving.image(5, (120, 90))
  jpeg = simplejpeg.encode_jpeg(picture, quality=90)
  answer = serving.ask(connection, serving.observation(served.robot, **{"image/ego": jpeg}))
  values = serving.observation(served.robot, **{"image/ego": simplejpeg.decode_jpeg(jpeg)})
  close_to(answer, serving.expected(served.robot, values))


def test_the_own_client_goes_on_with_what_is_executed(served):
  robot, values = served.robot, serving.observation(served.robot)
  ask = {"images": {"ego": values["image/ego"]}, "prompt": serving.TEXT, "joints_2xJ": values["state/joints"]}
  with client.Client(served.url) as own:
    with pytest.raises(UserError, match="executed: found 1, expected a step of the last answer"):
      own.act(wrist_2x4x4=values["state/wrist"], **ask, executed=1)
    old = own.act(wrist_2x4x4=values["state/wrist"], **ask, seed=1)
    now = old.T_base_wrist_Tx2x4x4[1].astype(np.float64)
    with serving.connect(served.url) as other:
      free = serving.ask(other, serving.observation(robot, seed=2, **{"image/ego": ask["images"]["ego"], "state/wrist": now}))
    new = own.act(wrist_2x4x4=now, **ask, seed=2, executed=2, frozen=2, ramp=2)
  np.testing.assert_array_equal(new.joints_Tx2xJ[:2], old.joints_Tx2xJ[2:4])
  np.testing.assert_array_equal(new.T_base_wrist_Tx2x4x4[:2], old.T_base_wrist_Tx2x4x4[2:4])
  apart = lambda a, b, k: np.abs(a[k][..., :3, 3] - b[k][..., :3, 3]).mean()  # noqa: E731
  assert apart(new.T_base_wrist_Tx2x4x4, old.T_base_wrist_Tx2x4x4[2:], 2) < apart(free["wrist"], old.T_base_wrist_Tx2x4x4[2:], 2)


def test_joints_in_degrees_are_refused(served, connection):
  joints = np.rad2deg(serving.middle(served.robot)) + 30.0
  told = serving.ask(connection, serving.observation(served.robot, **{"state/joints": joints}))
  assert re.fullmatch(r"state/joints: found \d\S* of \w+, whose range is .*, expected radians", told)
  assert serving.ask(connection, serving.observation(served.robot))["joints"].shape[1:] == joints.shape


def test_a_hand_that_the_training_data_never_had_stays_where_it_is(served, connection, monkeypatch):
  policy = served.robot.policy
  values = serving.observation(served.robot, 1)
  values["state/joints"][1] += 5.0  # measured out of range
  slot, chunk = policy.slot(served.robot.embodiment), policy.chunk
  wrist, joints = serving.expected(served.robot, values)
  left = np.arange(slot.width) < slot.width // 2
  one_armed = dataclasses.replace(slot, normalizer=dataclasses.replace(slot.normalizer, observed_A=left))
  lost = np.zeros(2, bool)  # hands of which the policy says nothing

  def spoiled(request, action_TxA):
    told = chunk(request, action_TxA)
    told.joints_Tx2xJ[:, lost] = told.T_start_wrist_Tx2x4x4[:, lost] = np.nan
    return told

  monkeypatch.setattr(policy, "slot", lambda _: one_armed)
  monkeypatch.setattr(policy, "chunk", spoiled)
  for lost[1] in (False, True):  # whatever it says of that hand
    answer = serving.ask(connection, values)
    assert all(np.isfinite(answer[name]).all() for name in ("actions", "wrist", "joints"))
    np.testing.assert_allclose(answer["wrist"][:, 0], wrist[:, 0], atol=1e-4)
    np.testing.assert_allclose(answer["joints"][:, 0], joints[:, 0], atol=1e-4)
    np.testing.assert_array_equal(answer["wrist"][:, 1], np.broadcast_to(np.float32(values["state/wrist"][1]), (8, 4, 4)))
    np.testing.assert_array_equal(answer["joints"][:, 1], np.broadcast_to(values["state/joints"][1], (8, 22)))
  last = {"executing/wrist": answer["wrist"], "executing/joints": answer["joints"], "executing/frozen": 2}
  again = serving.ask(connection, values | last)
  np.testing.assert_array_equal(again["joints"][:2], answer["joints"][:2])
  assert np.isfinite(again["actions"]).all()


@pytest.mark.parametrize("part", ["joints_Tx2xJ", "T_start_wrist_Tx2x4x4"])
def test_what_is_not_finite_leaves_no_server(tiny_run, monkeypatch, part):
  robot = serving.robot(tiny_run)
  policy, chunk = robot.policy, robot.policy.chunk

  def spoiled(request, action_TxA):
    told = chunk(request, action_TxA)
    getattr(told, part)[3, 1] = np.nan
    return told

  monkeypatch.setattr(policy, "chunk", spoiled)
  with serving.running(robot, batch=1) as served, serving.connect(served.url) as connection:  # of its own: failures are counted
    assert serving.ask(connection, serving.observation(robot)) == "server: internal error, its log tells more"
    assert counts(served)["egoscale_failed_total"] == 1


def test_padding_is_read_by_nobody(served):
  """In one program, whatever else is in the batch: the same bits."""
  policy = served.robot.policy
  rows = [policy.row(Request([serving.image(i)], serving.TEXT, seed=i)) for i in range(4)]
  whole = policy.sample(rows, 4)
  np.testing.assert_array_equal(policy.sample(rows[:1], 4), whole[:1])
  np.testing.assert_array_equal(policy.sample(rows[:3], 4), whole[:3])
  np.testing.assert_allclose(policy.sample(rows[:1]), whole[:1], atol=1e-5)


def test_many_clients_at_once_get_their_own_answers(served, monkeypatch):
  monkeypatch.setattr(batcher, "_GAIN", np.inf)  # the largest batch is the best, whatever this machine is busy with
  wanted = [serving.expected(served.robot, serving.observation(served.robot, seed)) for seed in range(12)]

  def one(seed):
    with serving.connect(served.url) as connection:
      for _ in range(6):
        answer = serving.ask(connection, serving.observation(served.robot, seed))
        close_to(answer, wanted[seed])
      return answer["server_timing"]["batch"]

  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    shared = list(pool.map(one, range(12)))
  assert max(shared) > 1


def test_a_refused_observation_names_the_field_and_the_connection_lives(served, connection):
  good = serving.observation(served.robot)
  joints = good["state/joints"]
  for more, told in (
    ({"state/joints": joints[:, :21]}, "state/joints: found float32 [2, 21], expected float32 or float64 [2, 22]"),
    ({"state/joints": np.where(np.arange(22) == 3, np.nan, joints)}, "state/joints: found nan at [0, 3], expected finite numbers"),
    ({"image/ego": good["image/ego"].astype(np.float32)}, "image/ego: found float32 [48, 64, 3]"),
    ({"state/camera": np.eye(4)}, "state/camera: unknown, expected image/ego, prompt"),
    ({"prompt": "tea " * 200}, "prompt: config.data.text_tokens: found 40"),
  ):
    assert serving.ask(connection, good | more).startswith(told)
  assert serving.ask(connection, good | {"two\nlines\x1b": 1}).startswith("two?lines?: unknown")
  assert serving.ask(connection, "hello") == "message: found text, expected msgpack"
  assert "levels of nesting" in serving.ask(connection, b"\x91" * 100_000)
  close_to(serving.ask(connection, good), serving.expected(served.robot, good))


def test_a_message_that_is_too_large_ends_its_connection_alone(tiny_run):
  with serving.running(serving.robot(tiny_run), batch=1, max_bytes=50_000) as served:
    with serving.connect(served.url) as connection, serving.connect(served.url) as other:
      connection.send(bytes(50_001))
      with pytest.raises(websockets.ConnectionClosedError) as closed:
        connection.recv(30)
      assert closed.value.rcvd.code == 1009
      assert "actions" in serving.ask(other, serving.observation(served.robot))


def test_token_origin_health_and_metrics(tiny_run, tmp_path):
  path = tmp_path / "token"
  path.write_text(TOKEN)
  with serving.running(serving.robot(tiny_run), batch=1, token_file=str(path), origins=("https://mine",)) as served:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
      with pytest.raises(websockets.InvalidStatus) as refused, serving.connect(served.url, additional_headers=headers):
        pass
      assert refused.value.response.status_code == 401
    good = {"Authorization": f"Bearer {TOKEN}"}
    with pytest.raises(websockets.InvalidStatus) as refused:
      with serving.connect(served.url, additional_headers=good, origin="https://theirs"):
        pass
    assert refused.value.response.status_code == 403
    for scheme, origin in (("Bearer", None), ("Api-Key", "https://mine")):
      with serving.connect(served.url, additional_headers={"Authorization": f"{scheme} {TOKEN}"}, origin=origin) as connection:
        assert "actions" in serving.ask(connection, serving.observation(served.robot))
    assert get(served, "/healthz") == (200, "OK\n")  # of no use to a thief
    assert get(served, "/metrics")[0] == 401
    status, text = get(served, "/metrics", **good)
    assert status == 200
    assert 'egoscale_answered_total{protocol="openpi"} 2.0' in text
    assert 'egoscale_refused_total{reason="token"} 4.0' in text
    assert 'egoscale_refused_total{reason="origin"} 1.0' in text
    assert 'egoscale_seconds_count{stage="device"} 2.0' in text


def test_rate_and_connections_are_limited(tiny_run):
  with serving.running(serving.robot(tiny_run), batch=1, rate_limit=2.0, connections=1) as served:
    with serving.connect(served.url) as connection:
      answers = [serving.ask(connection, b"\xc0") for _ in range(4)]
      assert answers[0] == "message: found NoneType, expected the map of an observation"
      assert answers[-1] == "server: more than 2 requests a second from one address"
      with pytest.raises(websockets.InvalidStatus) as refused, serving.connect(served.url):
        pass
      assert refused.value.response.status_code == 503


def test_tls(tiny_run, tmp_path):
  key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
  made = [
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-days",
    "1",
    "-subj",
    "/CN=127.0.0.1",
  ]
  made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
  subprocess.run(made, check=True, capture_output=True)
  with serving.running(serving.robot(tiny_run), batch=1, tls_cert=str(certificate), tls_key=str(key)) as served:
    trusted = ssl.create_default_context(cafile=str(certificate))
    with client.Client(served.url.replace("ws:", "wss:"), ssl=trusted) as own:
      assert own.metadata["horizon"] == 8
    with pytest.raises((websockets.InvalidMessage, OSError, EOFError)), serving.connect(served.url):
      pass


def test_what_is_under_way_is_answered_before_the_server_ends(tiny_run, monkeypatch):
  robot = serving.robot(tiny_run)
  asked, sample = threading.Event(), robot.policy.sample

  def slow(rows, size):
    asked.set()
    time.sleep(0.5)
    return sample(rows, size)

  monkeypatch.setattr(robot.policy, "sample", slow)
  with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as client_side:
    with serving.running(robot, batch=1) as served:
      asked.clear()
      connection = client_side.enter_context(serving.connect(served.url))
      answer = pool.submit(serving.ask, connection, serving.observation(robot))
      assert asked.wait(60)
    assert "actions" in answer.result(60)


def raw(served):
  """A socket after the handshake: what it sends next are frames."""
  opened = socket.create_connection(("127.0.0.1", served.address.port), timeout=30)
  key = "dGhlIHNhbXBsZSBub25jZQ=="
  head = [
    "GET / HTTP/1.1",
    "Host: x",
    "Upgrade: websocket",
    "Connection: Upgrade",
    f"Sec-WebSocket-Key: {key}",
    "Sec-WebSocket-Version: 13",
  ]
  opened.sendall("\r\n".join([*head, "", ""]).encode())
  assert b"101 Switching Protocols" in opened.recv(1000)
  return opened


def frame(data, length=None):
  """A masked binary frame with a mask of zeros; length: what its head claims."""
  length = len(data) if length is None else length
  return b"\x82" + struct.pack(">BQ", 0x80 | 127, length) + bytes(4) + data


def test_clients_that_die_stall_or_never_read_harm_nobody(served):
  good = wire.pack_openpi(serving.observation(served.robot))
  stuck = [raw(served) for _ in range(4)]
  stuck[0].sendall(frame(good[:1000], len(good)))  # in the middle of a frame, and silent
  stuck[1].sendall(frame(good) * 8)  # asks and never reads
  for one in stuck[2:]:  # asks and is killed: a reset, not a goodbye
    one.sendall(frame(good))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
  half = socket.create_connection(("127.0.0.1", served.address.port), timeout=30)
  half.sendall(b"GET / HTTP/1.1\r\nHost:")  # never finishes its handshake
  with serving.connect(served.url) as connection:
    for seed in range(3):
      values = serving.observation(served.robot, seed)
      close_to(serving.ask(connection, values), serving.expected(served.robot, values))
  for one in (*stuck[:2], half):
    one.close()
  _wait(lambda: counts(served)["egoscale_connections"] == 0)
  assert counts(served)["egoscale_in_flight"] == 0
  assert counts(served)["egoscale_failed_total"] == 0


def _wait(good, seconds=30):
  end = time.monotonic() + seconds
  while not good():
    assert time.monotonic() < end
    time.sleep(0.05)


def test_a_silent_peer_is_let_go(tiny_run, monkeypatch):
  """A cable that was pulled: no goodbye ever comes. The pings of the library notice; here faster than in use."""
  listen = server.websocket.Endpoint.listen
  monkeypatch.setattr(server.websocket.Endpoint, "listen", lambda *args, **more: listen(*args, **more, ping_s=0.1))
  with serving.running(serving.robot(tiny_run), batch=1) as served:
    silent = raw(served)
    _wait(lambda: counts(served)["egoscale_connections"] == 1)
    _wait(lambda: counts(served)["egoscale_connections"] == 0)
    silent.close()


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_frames_are_answered_and_the_next_is_right(served, count):
  """Bytes changed, cut out, doubled: an answer or one line for each, and never an internal error."""
  rng = np.random.default_rng(0)
  small = serving.observation(served.robot, **{"image/ego": serving.image(0, (16, 16))})
  whole, wanted = wire.pack_openpi(small), serving.expected(served.robot, small)
  with serving.connect(served.url) as connection:
    for i in range(count):
      data = bytearray(whole)
      at = rng.integers(len(data), size=rng.integers(1, 8))
      if rng.random() < 0.7:  # where the names, shapes and numbers are, not in the picture
        at = len(data) - 1 - at % 900
      data[at[0]] = rng.integers(256)
      for place in at[1:]:
        data[place] = rng.integers(256)
      if rng.random() < 0.2:
        begin, end = sorted(rng.integers(len(data), size=2))
        data[begin:end] = b"" if rng.random() < 0.5 else data[begin:end] * 2
      answer = serving.ask(connection, bytes(data))
      assert isinstance(answer, dict) or (": " in answer and "internal" not in answer and len(answer.splitlines()) == 1), answer
      if i % 100 == 0:
        close_to(serving.ask(connection, small), wanted)
  assert counts(served)["egoscale_failed_total"] == 0


def test_mutated_frames_of_the_websocket_itself(served):
  """Heads of frames and handshakes of any bytes end their own connection alone."""
  rng = np.random.default_rng(1)
  good = frame(wire.pack_openpi({"a": 1}))
  for i in range(60):
    data = bytearray(good)
    for place in rng.integers(len(data), size=3):
      data[place] = rng.integers(256)
    opened = raw(served) if i % 2 else socket.create_connection(("127.0.0.1", served.address.port), timeout=30)
    opened.sendall(bytes(data))
    opened.close()
  with websockets_client.connect(served.url, max_size=None) as connection:
    assert wire.unpack(connection.recv(30))["horizon"] == 8
  assert counts(served)["egoscale_failed_total"] == 0
