"""Planted faults of robots: wrists, joints, state and actions."""

import dataclasses

import faults
import numpy as np
import pytest
from faults import Fault, array, fields

from egoscale_jax.data import doctor, labels, schema

ROBOT_FRAMES = 120
FLIP = np.diag(np.float32([1, -1, -1, 1]))
WRIST = "T_world_wrist_Fx2x4x4"


def shifted(T):
  return T + 0.5 * np.eye(4, k=3, dtype=np.float32) * np.float32([[1], [0], [0], [0]])


def column(field, part, value):
  """-> damage of all frames of a column."""

  def damage(episode, frames):
    values = getattr(episode, field).copy()
    values[:, part] = value
    return dataclasses.replace(episode, **{field: values})

  return damage


def still_gripper(episode, frames):
  joints = episode.joints_Fx2xJ.copy()
  joints[:, 0] = joints[0, 0]
  return dataclasses.replace(episode, joints_Fx2xJ=joints)


SOME = {
  "the wrist's pose is NaN": Fault(array(WRIST, "left", lambda T: T * np.nan), "not_finite", "left"),
  "the wrist jumps": Fault(array(WRIST, "left", shifted), "wrist_jump", "left", where="ends"),
  "the wrist turns at once": Fault(array(WRIST, "left", lambda T: T @ FLIP), "wrist_spin", "left", where="ends"),
  "the wrist's pose is no rotation": Fault(array(WRIST, "left", lambda T: T * np.float32([1, 1, 1.2, 1])), "wrist_not_rigid", "left"),
  "a joint is NaN": Fault(array("joints_Fx2xJ", "left", lambda q: q * np.nan, (slice(1, 2),)), "joints_not_finite", "left"),
  "a state is NaN": Fault(array("state_FxS", None, lambda s: s * np.nan, (slice(8, 9),)), "state_not_finite"),
  "an action is infinite": Fault(array("action_FxA", None, lambda a: a + np.inf, (slice(2, 3),)), "action_not_finite"),
  "a joint in degrees": Fault(array("joints_Fx2xJ", "left", lambda q: q * 57.3), "joint_range", "left", "warning"),
}
WHOLE = {
  "no wrist": Fault(fields(**{WRIST: schema.missing(ROBOT_FRAMES, 2, 4, 4), "frame": schema.Frame.NONE}), "no_wrist"),
  "a gripper that never moves": Fault(still_gripper, "gripper_still"),
  "no action ever": Fault(column("action_FxA", slice(None), 0.5), "action_still"),
  "an action that is not recorded": Fault(column("action_FxA", 8, 0.0), "action_constant"),
}


def test_a_clean_robot_has_none():
  valid, findings = doctor.check(faults.robot())
  assert findings == []
  assert valid.all(axis=0).tolist() == [True, False]


@pytest.mark.parametrize("name", SOME)
def test_a_fault_of_a_robot_s_frames_is_found_there(name):
  rng = np.random.default_rng(4)
  for first, length in zip(rng.integers(5, 100, 3), rng.integers(1, 8, 3)):
    frames = slice(int(first), int(first + length))
    valid, findings = doctor.check(SOME[name].damage(faults.robot(), frames))
    faults.check_found(SOME[name], valid[:, :1].repeat(2, axis=1), findings, frames, ROBOT_FRAMES)


@pytest.mark.parametrize("name", WHOLE)
def test_a_fault_of_a_robot_s_recording_is_a_warning(name):
  valid, findings = doctor.check(WHOLE[name].damage(faults.robot(), None))
  assert [(f.name, f.severity, f.count) for f in findings] == [(WHOLE[name].name, "warning", ROBOT_FRAMES)]
  assert valid[:, 0].all()


def test_a_robot_without_wrists_and_joints_has_no_hand():
  nothing = {"joints_Fx2xJ": schema.missing(ROBOT_FRAMES, 2, 0), "joint_targets_Fx2xJ": schema.missing(ROBOT_FRAMES, 2, 0)}
  bare = dataclasses.replace(WHOLE["no wrist"].damage(faults.robot(), None), joint_names=((), ()), **nothing)
  assert [(f.name, f.severity) for f in doctor.check(bare)[1]] == [("no_wrist", "warning"), ("no_hand", "rejected")]


def test_a_side_of_a_wrist_without_joints_has_no_labels():
  episode = faults.robot()
  wrist = episode.T_world_wrist_Fx2x4x4.copy()
  wrist[:, 1] = wrist[:, 0]
  valid, findings = doctor.check(dataclasses.replace(episode, T_world_wrist_Fx2x4x4=wrist))
  assert [(f.name, f.severity, f.side) for f in findings] == [("no_joints", "warning", "right")]
  np.testing.assert_array_equal(valid, np.broadcast_to([True, False], valid.shape))


def test_a_number_that_is_none_to_the_doctor_is_no_label():
  episode = faults.robot()
  joints, targets = episode.joints_Fx2xJ.copy(), episode.joint_targets_Fx2xJ.copy()
  joints[:10, 0, 1], targets[:, 0] = 1e9, 0.4
  broken = dataclasses.replace(episode, joints_Fx2xJ=joints, joint_targets_Fx2xJ=targets)
  labelled, _ = labels.label(broken, None, doctor.check(broken)[0], None)
  np.testing.assert_array_equal(labelled.joints_Fx2xJ[:10, 0, 1], np.float32(0.4))
  np.testing.assert_array_equal(labelled.joints_Fx2xJ[10:, 0], joints[10:, 0])


def test_a_gripper_in_percent_is_no_joint_in_degrees():
  episode = faults.robot()
  percent = {"joints_Fx2xJ": episode.joints_Fx2xJ[..., :1] * 90, "joint_targets_Fx2xJ": schema.missing(ROBOT_FRAMES, 2, 1)}
  assert doctor.check(dataclasses.replace(episode, joint_names=(("grip",), ()), **percent))[1] == []


def test_a_frozen_picture_of_a_robot_is_masked_while_it_moves():
  episode = faults.robot()
  jpeg_F = list(episode.jpeg_F)
  jpeg_F[40:70] = [jpeg_F[40]] * 30
  valid, findings = doctor.check(dataclasses.replace(episode, jpeg_CxF=(tuple(jpeg_F),)))
  assert [(f.name, f.spans) for f in findings] == [("frozen", ((40, 69),))]
  assert np.flatnonzero(~valid[:, 0]).tolist() == list(range(40, 70))
