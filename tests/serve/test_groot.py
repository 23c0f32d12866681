"""GR00T's protocol with a neutral client: a REQ socket, msgpack with .npy bytes, nothing of the server's own code."""

import contextlib
import io

import msgpack
import numpy as np
import pytest
import serving
import zmq

from egoscale_jax.serve import groot

TOKEN = "0123456789abcdef-token"
LANGUAGE = "annotation.human.task_description"


def encode(value):
  file = io.BytesIO()
  np.save(file, value, allow_pickle=False)
  return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def decode(value):
  if "__ndarray_class__" in value:
    return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False)
  return value["as_json"] if "__ModalityConfig_class__" in value else value


@contextlib.contextmanager
def client(served):
  """-> call(endpoint, data, **more of the request)."""
  with zmq.Context() as context, context.socket(zmq.REQ) as socket:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 300_000)
    socket.connect(f"tcp://127.0.0.1:{served.address.zmq_port}")

    def call(endpoint, data=None, **more):
      request = {"endpoint": endpoint} | ({"data": data} if data is not None else {}) | more
      socket.send(endpoint if isinstance(endpoint, bytes) else msgpack.packb(request, default=encode))
      return msgpack.unpackb(socket.recv(), object_hook=decode)

    yield call


@pytest.fixture(scope="module")
def served(tiny_run):
  with serving.running(serving.robot(tiny_run), rate_limit=1e6) as served:  # a mutated request is refused in less than a millisecond
    yield served


def rot6d(wrist):
  return np.concatenate([wrist[:3, 3], wrist[:2, :3].reshape(6)])


def request(robot, seeds, options=None):
  """The rows of serving.observation as GR00T's clients send them; seeds of the sampling are 0."""
  rows = [serving.observation(robot, seed) for seed in seeds]
  one = lambda arrays: np.stack(arrays)[:, None].astype(np.float32)  # noqa: E731
  state = {f"{side}_wrist": one([rot6d(row["state/wrist"][i]) for row in rows]) for i, side in enumerate(("left", "right"))}
  state |= {f"{side}_hand": one([row["state/joints"][i] for row in rows]) for i, side in enumerate(("left", "right"))}
  video = {"ego": np.stack([row["image/ego"] for row in rows])[:, None]}
  return {"observation": {"video": video, "state": state, "language": {LANGUAGE: [[row["prompt"]] for row in rows]}}, "options": options}


def test_ping_reset_and_modalities(served):
  with client(served) as call:
    assert call("ping") == {"status": "ok", "message": "Server is running"}
    assert call("reset", {"options": None}) == {}
    told = call("get_modality_config")
  assert told["video"]["modality_keys"] == ["ego"]
  assert told["state"]["modality_keys"] == ["left_wrist", "right_wrist", "left_hand", "right_hand"]
  assert told["action"]["delta_indices"] == list(range(1, 9))
  assert told["language"]["modality_keys"] == [LANGUAGE]
  acts = told["action"]["action_configs"]
  assert [a["format"] for a in acts] == ["XYZ_ROT6D", "XYZ_ROT6D", "DEFAULT", "DEFAULT"]
  assert {a["rep"] for a in acts} == {"ABSOLUTE"}
  assert told["video"].keys() == {
    *("delta_indices", "modality_keys", "sin_cos_embedding_keys", "mean_std_embedding_keys", "action_configs")
  }  # the arguments of its ModalityConfig


def test_rows_are_the_bare_policys(served):
  with client(served) as call:
    action, more = call("get_action", request(served.robot, range(3), {"seed": 0}))
  assert {name: array.shape for name, array in action.items()} == {
    **{"left_wrist": (3, 8, 9), "right_wrist": (3, 8, 9), "left_hand": (3, 8, 22), "right_hand": (3, 8, 22)}
  }
  assert all(array.dtype == np.float32 for array in action.values())
  for row in range(3):
    wrist, joints = serving.expected(served.robot, serving.observation(served.robot, row) | {"seed": 0})
    for i, side in enumerate(("left", "right")):
      np.testing.assert_allclose(action[f"{side}_hand"][row], joints[:, i], atol=1e-4)
      np.testing.assert_allclose(action[f"{side}_wrist"][row], [rot6d(pose) for pose in wrist[:, i]], atol=1e-4)
  np.testing.assert_allclose(more["time_s"][0], np.arange(1, 9) / 30)


def test_real_time_chunking_by_options(served):
  with client(served) as call:
    old, _ = call("get_action", request(served.robot, [0]))
    wrist = np.tile(np.eye(4, dtype=np.float32), (6, 2, 1, 1))
    wrist[..., :3, 3] = np.stack([old["left_wrist"][0, 2:, :3], old["right_wrist"][0, 2:, :3]], axis=1)
    joints = np.stack([old["left_hand"][0, 2:], old["right_hand"][0, 2:]], axis=1)
    last = {"executing/wrist": wrist, "executing/joints": joints, "executing/frozen": 2, "executing/ramp": 1}
    new, _ = call("get_action", request(served.robot, [0], last))
    np.testing.assert_array_equal(new["left_hand"][0, :2], old["left_hand"][0, 2:4])
    np.testing.assert_array_equal(new["right_wrist"][0, :2, :3], old["right_wrist"][0, 2:4, :3])
    told = call("get_action", request(served.robot, [0, 1], last))
    assert told == {"error": "options.executing/frozen: found with 2 rows, expected 1"}


def test_what_is_wrong_is_named_and_the_client_lives(served):
  good = request(served.robot, [0])
  seen = good["observation"]

  def spoiled(part, **more):
    return {"observation": seen | {part: seen[part] | more}}

  bad_pose = np.zeros((1, 1, 9), np.float32)
  cases = (
    (("get_action", None), "data: found NoneType"),
    (("get_action", {"observation": {}}), "observation.video: missing"),
    (
      ("get_action", spoiled("video", ego=np.zeros((1, 2, 32, 32, 3), np.uint8))),
      "video.ego: found uint8 [1, 2, 32, 32, 3], expected uint8 [1, 1",
    ),
    (("get_action", spoiled("video", side=np.zeros((1, 1, 32, 32, 3), np.uint8))), "video.side: unknown"),
    (("get_action", spoiled("state", left_hand=np.zeros((1, 1, 7), np.float32))), "state.left_hand: found float32 [1, 1, 7]"),
    (("get_action", spoiled("state", left_hand=np.full((1, 1, 22), np.nan, np.float32))), "state/joints: found nan at [0, 0]"),
    (("get_action", spoiled("state", left_wrist=bad_pose)), "state.left_wrist: found [0.0"),
    (("get_action", spoiled("language", **{LANGUAGE: "Pour."})), f"language.{LANGUAGE}: expected a list"),
    (("get_action", good | {"options": {"sed": 1}}), "options.sed: unknown"),
    (("get_actions", good), "endpoint: found 'get_actions', expected one of ping"),
    ((b"\xc1",), "message: not msgpack"),
    ((b"\x91" * 100_000,), "message: found more than 4096 elements or 8 levels"),
    ((msgpack.packb([1]),), "message: found list"),
    (("kill",), "kill: expected a server that was started with --token-file"),
  )
  with client(served) as call:
    for arguments, told in cases:
      assert call(*arguments)["error"].startswith(told), arguments[0]
    assert len(call("get_action", good)) == 2


def test_the_token_and_kill(tiny_run, tmp_path):
  path = tmp_path / "token"
  path.write_text(TOKEN)
  with serving.running(serving.robot(tiny_run), batch=1, token_file=str(path)) as served, client(served) as call:
    for more in ({}, {"api_token": "wrong"}, {"api_token": 3}):
      assert call("ping", **more) == {"error": "api_token: not the server's"}
      assert call("kill", **more) == {"error": "api_token: not the server's"}
    assert call("ping", api_token=TOKEN)["status"] == "ok"
    assert call("kill", api_token=TOKEN)["status"] == "ok"


@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.slow)])
def test_mutated_requests_are_answered(served, count):
  rng = np.random.default_rng(0)
  small = request(served.robot, [0])
  small["observation"]["video"]["ego"] = serving.image(0, (16, 16))[None, None]
  whole = msgpack.packb({"endpoint": "get_action", "data": small}, default=encode)
  with client(served) as call:
    for _ in range(count):
      data = bytearray(whole)
      for place in rng.integers(len(data), size=rng.integers(1, 8)):
        data[place] = rng.integers(256)
      answer = call(bytes(data))
      assert isinstance(answer, list) or ("internal" not in answer["error"] and ": " in answer["error"]), answer
    assert len(call("get_action", small)) == 2


def test_frames_of_no_request_are_dropped(served):
  with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(f"tcp://127.0.0.1:{served.address.zmq_port}")
    for frames in ([b"x"], [b"", b"", b""], [b"a", b"b"]):
      socket.send_multipart(frames)
    with client(served) as call:
      assert call("ping")["status"] == "ok"


def test_names_are_those_that_the_tests_were_written_from():
  assert groot.LANGUAGE == LANGUAGE
