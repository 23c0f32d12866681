"""Rollouts: intervals, how chunks are carried out, and that the same seeds give the same trials to the bit."""

import dataclasses
import functools
import json

import av
import numpy as np
import pytest

from egoscale_jax import geometry, policy
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import film, rollout
from egoscale_jax.sim.bench import bodies, episode, tasks

SETTINGS = rollout.Settings(("drawer",), trials=2)


def test_wilson_is_the_published_interval():
  # Brown, Cai, DasGupta (2001): the roots of (p - share)^2 = z^2 p (1 - p) / n.
  for successes, trials in ((0, 10), (10, 10), (3, 10), (25, 50), (1, 400)):
    share = successes / trials
    for bound in rollout.wilson(successes, trials):
      assert (bound - share) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / trials, abs=1e-12)
  np.testing.assert_allclose(rollout.wilson(0, 10), (0, 0.2775), atol=1e-4)
  assert rollout.wilson(0, 0) == (0.0, 1.0)


@dataclasses.dataclass
class Chunk:
  T_start_wrist_Tx2x4x4: np.ndarray
  joints_Tx2xJ: np.ndarray


def test_chunks_are_carried_out_from_where_the_wrists_were():
  """Three steps of five, two frames a step: the wrists meet every step, half way between them at odd frames."""
  trial = episode.start(tasks.TASKS["drawer"], bodies.BODIES["sharpa_wave"], "train", 0)
  step = np.eye(4)
  step[:3, :3], step[:3, 3] = geometry.so3_exp(np.array([0, 0, 0.1])), (0.01, 0, 0.004)
  pose = np.stack([np.linalg.matrix_power(step, k + 1) for k in range(5)])
  joints = trial.world.joint_targets_2xJ + 0.02 * np.arange(1, 6)[:, None, None]
  chunk, asked = Chunk(np.stack([pose, pose], axis=1), joints), []

  def predict(seen, pending):
    asked.append((seen, pending))
    return chunk

  start, frames = trial.world.T_world_wrist_2x4x4.copy(), []
  agent = rollout.Chunked(predict, execute=3, stride=2)(trial, lambda: "seen")
  for _ in range(7):
    command = next(agent)
    trial.step(*command)
    frames.append(command)
  assert [seen for seen, _ in asked] == ["seen"] * 2
  for k in range(3):
    np.testing.assert_allclose(frames[2 * k + 1][0], start @ pose[k], atol=1e-12)
    np.testing.assert_allclose(frames[2 * k + 1][1], joints[k], atol=1e-12)
  np.testing.assert_allclose(frames[2][0][:, :3, 3], (0.5 * (start @ pose[0] + start @ pose[1]))[:, :3, 3], atol=1e-12)
  np.testing.assert_allclose(frames[2][1], 0.5 * (joints[0] + joints[1]), atol=1e-12)
  assert asked[0][1] is None
  pending = asked[1][1]
  assert (pending.chunk, pending.done) == (chunk, 3)
  np.testing.assert_allclose(pending.T_start_now_2x4x4, np.stack([pose[2]] * 2), atol=1e-9)


def test_a_film_has_every_chunk_with_the_frame_it_was_asked_at(tmp_path):
  """And what happened then is the chunk: the wrists, carried, are at its steps."""
  trial = episode.start(tasks.TASKS["drawer"], bodies.BODIES["human"], "train", 0)
  step = np.eye(4)
  step[:3, 3] = (0.01, 0, 0.004)
  pose = np.stack([np.linalg.matrix_power(step, k + 1) for k in range(4)])
  joints = np.repeat(trial.world.joint_targets_2xJ[None], 4, axis=0)
  agent = rollout.Chunked(lambda seen, pending: Chunk(np.stack([pose, pose], axis=1), joints), execute=2, stride=2)
  seen, commands = film.Film(trial, 32), agent(trial, lambda: None)
  for _ in range(7):
    command = next(commands)
    seen.see()
    trial.step(*command)
  film.save(seen.content(), tmp_path / "film.mp4")
  told = film.load(tmp_path / "film.npz")
  assert (list(told["plan_frame"]), told["plan_stride"], str(told["hand"])) == ([0, 4], 2, "")
  for frame, plan in zip(told["plan_frame"][:1], told["plan_wrist"]):
    for k in range(2):
      due = told["T_world_wrist"][frame] @ plan[k]
      np.testing.assert_allclose(told["T_world_wrist"][frame + 2 * (k + 1)], due, atol=1e-5)
  wrist_2x3 = told["keypoints"][:, :, 0]
  np.testing.assert_allclose(wrist_2x3, told["T_world_wrist"][..., :3, 3], atol=0.002)  # of a human, its own keypoints


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("replay") / "out"
  return folder, rollout.run(functools.partial(rollout.baseline, "replay"), SETTINGS, folder)


def test_labels_carried_out_are_a_success(replayed):
  """The action convention of the data is the one that is executed: an expert's own labels, in float32, do the task."""
  folder, summary = replayed
  assert summary["results"]["drawer"]["successes"] == 2
  rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
  assert [row["trial"] for row in rows] == [0, 1]
  assert all(row["score"] == 1.0 and row["reached"] == ["held", "a_third", "open"] for row in rows)
  assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
  assert "drawer" in "\n".join(rollout.table(summary))


def test_videos_of_best_median_and_worst(replayed):
  folder, _ = replayed
  names = sorted(path.name for path in folder.glob("*.mp4"))
  assert [name.split("_")[1] for name in names] == ["best", "median", "worst"]
  rows = {row["trial"]: row for row in map(json.loads, (folder / "trials.jsonl").read_text().splitlines())}
  for name in names:
    with av.open(str(folder / name)) as container:
      frames = sum(1 for _ in container.decode(video=0))
    assert frames == rows[int(name.split("_")[2][:3])]["frames"] + 1
    told = film.load((folder / name).with_suffix(".npz"))
    assert len(told["T_world_wrist"]) == len(told["joints"]) == len(told["T_world_camera"]) == frames
    assert (str(told["hand"]), len(told["plan_frame"])) == ("sharpa_wave", 0)  # a baseline plans nothing


def test_same_seeds_same_trials_for_any_number_of_processes(replayed, tmp_path):
  folder, summary = replayed
  again = rollout.run(functools.partial(rollout.baseline, "replay"), SETTINGS, tmp_path / "two", num_workers=2)
  assert (tmp_path / "two" / "trials.jsonl").read_bytes() == (folder / "trials.jsonl").read_bytes()
  assert again == summary
  other = rollout.run_trial(functools.partial(rollout.baseline, "replay"), dataclasses.replace(SETTINGS, seed=1), False, ("drawer", 0))
  assert other["digest"] not in (folder / "trials.jsonl").read_text()


def test_holding_still_fails():
  row = rollout.run_trial(functools.partial(rollout.baseline, "hold_still"), SETTINGS, False, ("drawer", 0))
  assert (row["score"], row["success"], row["frames"]) == (0.0, False, 150)


def test_a_policy_is_asked_and_carried_out(tiny_run):
  """A policy of human data on a robot's hand, by its slot `human`; twice the same trial."""
  settings = dataclasses.replace(SETTINGS, image_size=32)
  agent = policy.agent(tiny_run, "human", 5, 2, 2)
  predict, agent.predict = agent.predict, lambda seen, pending: predict(dataclasses.replace(seen, text="Pour tea."), pending)
  make = functools.partial(lambda: agent)  # its small vocabulary spells other instructions letter by letter, longer than it has room for
  rows = [rollout.run_trial(make, settings, False, ("drawer", 0)) for _ in range(2)]
  assert rows[0] == rows[1]
  assert rows[0]["frames"] == 150
  with pytest.raises(UserError, match="joints"):
    rollout.run_trial(make, dataclasses.replace(settings, body="dex3"), False, ("drawer", 0))


@pytest.mark.parametrize(
  ("change", "told"), [({"tasks": ("fold",)}, "tasks"), ({"trials": 0}, "trials=0"), ({"body": "x"}, "body"), ({"split": "x"}, "split")]
)
def test_a_wrong_request_is_one_line(tmp_path, change, told):
  with pytest.raises(UserError, match=told):
    rollout.run(rollout.hold_still, dataclasses.replace(SETTINGS, **change), tmp_path / "out")
