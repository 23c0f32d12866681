"""Loading: the built-in hands against the maker's own URDF, and every refusal."""

import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest

from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand, keypoints

# Keypoint names for the links of the maker's URDF, so that it can be loaded as any other user's file.
LINKS = {"hand_C_MC": "wrist", "thumb_MC": "thumb_cmc", "thumb_MCP_VL": "thumb_mcp", "thumb_DP": "thumb_ip", "thumb_fingertip": "thumb_tip"}
for finger in ("index", "middle", "ring", "little"):
  theirs = "pinky" if finger == "little" else finger
  LINKS |= {f"{theirs}_{a}": f"{finger}_{b}" for a, b in (("MCP_VL", "mcp"), ("MP", "pip"), ("DP", "dip"), ("fingertip", "tip"))}


def urdf_with_keypoints(shared, side, path):
  root = ElementTree.parse(shared / "hands/sharpa_wave" / f"{side}_sharpa_wave.urdf").getroot()
  for link in root.iter("link"):
    for tag in ("visual", "collision"):  # their meshes are not here
      for element in link.findall(tag):
        link.remove(element)
  for element in (e for tag in ("link", "parent", "child") for e in root.iter(tag)):
    key = "name" if element.tag == "link" else "link"
    if (name := element.get(key)) is not None:
      element.set(key, LINKS.get(name.removeprefix(f"{side}_"), name))
  ElementTree.ElementTree(root).write(path)
  return path


@pytest.mark.parametrize("side", keypoints.SIDES)
def test_built_in_agrees_with_the_makers_urdf(shared, tmp_path, side):
  ours = hand.load("sharpa_wave", side)
  theirs = hand.load(urdf_with_keypoints(shared, side, tmp_path / "hand.urdf"), side)
  assert ours.joint_names == theirs.joint_names
  assert ours.joint_names[0] == f"{side}_thumb_CMC_FE"
  assert ours.num_joints == 22
  assert ours.parents == theirs.parents
  for name in ("lower_J", "upper_J", "velocity_J"):
    np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
  np.testing.assert_allclose(ours.keypoint_Px3, theirs.keypoint_Px3, atol=1e-5)  # the maker rounds pi/2 to 1.5708
  np.testing.assert_allclose(ours.axis_Jx3, theirs.axis_Jx3, atol=2e-5)


def test_left_mirrors_right_and_shares_its_tree():
  left, right = (hand.load("sharpa_wave", side) for side in keypoints.SIDES)
  assert jax.tree.structure(left) == jax.tree.structure(right), "one compiled function serves both"
  mirror = np.array([1, -1, 1], np.float32)
  np.testing.assert_allclose(left.keypoint_Px3, right.keypoint_Px3 * mirror, atol=1e-6)
  np.testing.assert_allclose(left.axis_Jx3, -right.axis_Jx3 * mirror, atol=1e-6)  # an axis is a pseudo-vector: the same angle mirrors
  np.testing.assert_array_equal(left.lower_J, right.lower_J)


@pytest.mark.parametrize("side", keypoints.SIDES)
def test_wrist_frame_of_the_built_in(side):
  """Base frame: +z along the fingers, +x out of the palm. Wrist frame: x to the knuckles, z out of the back."""
  rotation = hand.load("sharpa_wave", side).T_base_wrist_4x4[:3, :3]
  assert rotation[2, 0] > 0.99
  assert rotation[0, 2] < -0.97


def test_unknown_hand_side_and_file_are_one_line(tmp_path):
  with pytest.raises(UserError, match=r"^hand 'no_such_hand': .*built-in hands: sharpa_wave$"):
    hand.load("no_such_hand", "right")
  with pytest.raises(UserError, match=r"^hand '.*absent\.urdf': neither"):
    hand.load(tmp_path / "absent.urdf", "right")
  with pytest.raises(UserError, match=r"^side 'up': expected one of left, right$"):
    hand.load("sharpa_wave", "up")


def _edited(tmp_path, old, new):
  text = (hand._MODELS / "sharpa_wave_right.xml").read_text()
  assert old in text
  path = tmp_path / "edited.xml"
  path.write_text(text.replace(old, new))
  return path


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ('<site name="index_tip"', '<site name="other"', "no site or link named index_tip"),
    ('<joint name="right_index_PIP"', '<joint type="slide" name="right_index_PIP"', "'right_index_PIP' is no hinge"),
    ('<joint range="0 1.3963" user="14.66594768"/>', "<joint/>", "'right_index_DIP' has no range"),
    ("</worldbody>", '</worldbody><equality><joint joint1="right_index_DIP" joint2="right_index_PIP"/></equality>', "1 coupled"),
    ("</worldbody>", "", "MuJoCo cannot compile it"),
  ],
)
def test_a_file_that_is_no_hand_is_refused(tmp_path, old, new, message):
  with pytest.raises(UserError, match=message) as caught:
    hand.load(_edited(tmp_path, old, new), "right")
  assert "\n" not in str(caught.value)


def test_missing_velocity_limits_are_infinite_not_zero(tmp_path):
  text = (hand._MODELS / "sharpa_wave_right.xml").read_text()
  path = tmp_path / "plain.xml"
  path.write_text("".join(part.split('"', 1)[1] if i else part for i, part in enumerate(text.split(' user="'))))
  assert np.isinf(hand.load(path, "right").velocity_J).all()
