import dataclasses

import numpy as np
import pytest
import recordings

from egoscale_jax.data import clips, schema


def test_masks_follow_from_nan_and_cannot_disagree():
  e = recordings.episode()
  points = e.keypoints_Fx2xPx3.copy()
  points[3, 1, 7, 2] = np.nan
  camera = e.T_world_camera_CxFx4x4.copy()
  camera[0, 5] = np.nan
  e = dataclasses.replace(e, keypoints_Fx2xPx3=points, T_world_camera_CxFx4x4=camera)
  assert np.argwhere(~e.has_keypoint_Fx2xP).tolist() == [[3, 1, 7]]
  assert np.argwhere(~e.has_camera_CxF).tolist() == [[0, 5]]
  assert not e.has_wrist_Fx2.any()  # a human's are made of the keypoints
  assert e.has_joint_Fx2xJ.shape == (40, 2, 0)


def test_an_episode_is_frozen_and_flat():
  e = recordings.episode()
  with pytest.raises(dataclasses.FrozenInstanceError):
    e.text = "x"
  nested = [f.name for f in dataclasses.fields(e) if dataclasses.is_dataclass(getattr(e, f.name))]
  assert nested == []


def test_what_a_robot_does_not_have_is_missing_and_never_zero():
  fields = schema.robot(5)
  assert np.isnan(fields["keypoints_Fx2xPx3"]).all()
  assert (fields["confidence_Fx2xP"] == 0).all()  # the mask of the keypoints
  for name in ("T_world_wrist_Fx2x4x4", "T_world_wrist_target_Fx2x4x4"):
    assert np.isnan(fields[name]).all()
  both = schema.views(
    schema.View("a", (b"1",) * 5, (3, 4)), schema.View("b", (b"2",) * 5, (5, 6), np.eye(3), np.tile(np.eye(4), (5, 1, 1)))
  )
  assert np.isnan(both["intrinsics_Cx3x3"][0]).all()
  assert np.isnan(both["T_world_camera_CxFx4x4"][0]).all()
  assert both["image_size_C"] == ((3, 4), (5, 6))


def test_a_clip_s_text_is_the_shortest_that_covers_it():
  spans = (schema.Span("all", 0, 40 / 30), schema.Span("first", 0, 14 / 30), schema.Span("late", 20 / 30, 40 / 30))
  e = recordings.episode(spans=spans)
  texts = [record["text"] for record in clips.cut(e, recordings.labels(40))]
  assert texts == ["first", "all", "late"]  # frames 0 to 12, 13 to 25, 26 to 39
  assert clips._text(recordings.episode(), 0, 13) == "Pour the tea."


@pytest.mark.parametrize("frame", ["world", "base", "camera", "none"])
def test_frames_of_reference_have_names(frame):
  assert schema.Frame(frame).value == frame
