"""No check fires on clean recordings: simulated, synthetic and real ones, but for what is really so in them."""

import functools

import recordings
import robots

from egoscale_jax.data import doctor
from egoscale_jax.data.schema import Episode
from egoscale_jax.data.sources import egodex, lerobot, rlds, simulated
from egoscale_jax.sim import record

COLUMNS = "configs/columns/bridge_rlds.json"


def names(episode):
  return {(f.name, f.severity) for f in doctor.check(episode)[1]}


def test_the_simulator_s_episodes(tmp_path):
  record.record(tmp_path / "sim", 4, 11, workers=1)
  for recording in simulated.find(tmp_path / "sim"):
    valid, findings = doctor.check(simulated.read(recording, 64))
    assert findings == [], recording.id
    assert valid.all()


def test_the_synthetic_recordings(tmp_path):
  recordings.write(tmp_path / "egodex", frames=60)
  assert names(egodex.read(*egodex.find(tmp_path / "egodex"), 64)) == set()
  for write in (robots.write_v2, robots.write_v3):
    for recording in lerobot.find(write(tmp_path / write.__name__)):
      assert names(lerobot.read(recording, 64)) == set()
  for seed in range(3):
    assert names(recordings.episode(frames=100, seed=seed)) == set()


def test_real_egodex_passes_whole(shared):
  for episode in recordings.read_real(shared).values():
    if isinstance(episode, Episode):
      valid, findings = doctor.check(episode)
      assert findings == []
      assert valid.all()


def test_real_robots_have_what_is_really_so_in_them(shared, request):
  """GR00T's simulated GR1 tells joints and no wrist poses; its commands of two thumb joints never change while the joints do.
  The same data as LeRobot 3.0 without a config of columns names no hands at all.
  """
  of_joints = lerobot.find(shared / "recordings/gr00t_robot_sim_picknplace")
  assert names(lerobot.read(of_joints[0], 64)) == {("no_wrist", "warning"), ("action_constant", "warning")}
  bare = lerobot.find(shared / "recordings/lerobot_v3_from_gr00t/dataset")
  assert names(lerobot.read(bare[1], 64)) == {("no_wrist", "warning"), ("no_hand", "rejected")}
  bridge = functools.partial(rlds.find, shared / "recordings/rlds_bridge_debug/tests/debug_dataset")
  for recording in bridge(request.config.rootpath / COLUMNS)[:8]:
    assert names(rlds.read(recording, 64)) == set(), recording.id
