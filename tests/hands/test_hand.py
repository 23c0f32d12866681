"""Loading: the built-in hands against the makers' own files, coupled joints, and every refusal."""

import shutil
import xml.etree.ElementTree as ElementTree

import jax
import mujoco
import numpy as np
import pytest

from egoscale_jax.data import labeller
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand, keypoints, kinematics

# Keypoint names for the links of the Sharpa URDF, so that it can be loaded as a user's file that speaks our names.
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
def test_built_in_agrees_with_the_makers_urdf(shared, tmp_path, capsys, side):
  ours = hand.load("sharpa_wave", side)
  theirs = hand.load(urdf_with_keypoints(shared, side, tmp_path / "hand.urdf"), side)
  assert ours.joint_names == ours.tree_joint_names == theirs.joint_names
  assert ours.joint_names[0] == f"{side}_thumb_CMC_FE"
  assert ours.num_joints == 22
  assert ours.parents == theirs.parents
  for name in ("lower_J", "upper_J", "velocity_J"):
    np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
  np.testing.assert_allclose(ours.keypoint_Px3, theirs.keypoint_Px3, atol=1e-5)  # the maker rounds pi/2 to 1.5708
  np.testing.assert_allclose(ours.axis_Nx3, theirs.axis_Nx3, atol=2e-5)
  assert capsys.readouterr() == ("", ""), "nothing was guessed, so nothing is printed"


ALLEGRO = {f"joint_{4 * i + k}.0": f"{finger}j{k}" for i, finger in enumerate(("ff", "mf", "rf", "th")) for k in range(4)}


def same(name):
  return name


# built-in, file, the maker's link that our base is (its root link if None), the maker's joint name -> ours, keypoints that differ by choice
FOUND = [
  ("sharpa_wave", "sharpa_wave/{side}_sharpa_wave.urdf", None, same, ()),
  ("dex3", "dex3/dex3_1_{s}.urdf", None, same, ("tip",)),
  ("shadow", "shadow_dexurdf/shadow_hand_{side}.urdf", "forearm", lambda name: "{s}h_" + name, ()),
  ("allegro", "allegro_dexurdf/allegro_hand_{side}.urdf", None, ALLEGRO.get, ()),
  ("allegro", "allegro/{side}_hand.xml", "palm", same, ("tip", "wrist")),
  ("inspire", "inspire/inspire_hand_{side}.urdf", None, same, ("wrist",)),
]
# The thumb's second link of this left hand is the right hand's; ours is Menagerie's, mirrored.
UNMIRRORED = ("allegro_dexurdf/allegro_hand_{side}.urdf", "left")


def frame_in(path, link):
  """T_base_link of the maker's file at its zero pose."""
  data = mujoco.MjData(model := reference(path))
  mujoco.mj_kinematics(model, data)
  return data.body(link).xmat.reshape(3, 3), data.body(link).xpos


def reference(path):
  """The file by MuJoCo's own compiler, without our loader; the mesh files are not here."""
  spec = mujoco.MjSpec.from_file(str(path))
  spec.compiler.fusestatic, spec.compiler.boundmass, spec.compiler.boundinertia, spec.compiler.balanceinertia = False, 1e-3, 1e-6, True
  for geom in list(spec.geoms):
    spec.delete(geom)
  for mesh in list(spec.meshes):
    spec.delete(mesh)
  return spec.compile()


@pytest.mark.parametrize(("row", "side"), [(row, side) for row in FOUND for side in keypoints.SIDES if (row[1], side) != UNMIRRORED])
def test_built_in_agrees_with_what_is_found_in_the_makers_file(shared, row, side):
  """Axes, places on them, keypoints, ranges and speeds: all of a tree's kinematics, found without a name against what we wrote down."""
  name, file, link, rename, by_choice = row
  path = shared / "hands" / file.format(side=side, s=side[0])
  ours, theirs = hand.load(name, side), hand.load(path, side)
  rotation, origin = frame_in(path, link) if link else (np.eye(3), np.zeros(3))
  names = [rename(joint).format(s=side[0]) for joint in theirs.tree_joint_names]
  assert sorted(names) == sorted(ours.tree_joint_names)
  order = [names.index(joint) for joint in ours.tree_joint_names]
  np.testing.assert_allclose(ours.axis_Nx3, (theirs.axis_Nx3 @ rotation)[order], atol=1e-4)
  apart_Nx3 = ours.anchor_Nx3 - ((theirs.anchor_Nx3 - origin) @ rotation)[order]
  np.testing.assert_allclose(np.cross(apart_Nx3, ours.axis_Nx3), 0, atol=1e-4)
  assert ours.present == theirs.present
  for p in np.flatnonzero(ours.present):
    if not keypoints.NAMES[p].endswith(by_choice):
      np.testing.assert_allclose(ours.keypoint_Px3[p], (theirs.keypoint_Px3[p] - origin) @ rotation, atol=1e-4, err_msg=keypoints.NAMES[p])
  fields = ["lower_J", "upper_J"] + ["velocity_J"] * (path.suffix == ".urdf")
  for field in fields:
    values = dict(zip((rename(joint).format(s=side[0]) for joint in theirs.joint_names), getattr(theirs, field)))
    shared_names = [joint for joint in ours.joint_names if joint in values]  # Shadow's URDF knows no tendons
    assert len(shared_names) == ours.num_joints - 4 * (name == "shadow")
    mine = dict(zip(ours.joint_names, getattr(ours, field)))
    np.testing.assert_allclose([mine[j] for j in shared_names], [values[j] for j in shared_names], atol=1e-4, err_msg=field)


@pytest.mark.parametrize("side", keypoints.SIDES)
def test_shadows_twenty_values_are_menageries(shared, side):
  ours, theirs = hand.load("shadow", side), hand.load(shared / "hands/shadow" / f"{side}_hand.xml", side)
  assert ours.joint_names == theirs.joint_names
  assert (ours.source, ours.parents) == (theirs.source, theirs.parents)
  assert ours.joint_names[4] == f"{side[0]}h_FFJ0"
  for field in ("ratio_N", "offset_N", "lower_J", "upper_J"):
    np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), atol=1e-6, err_msg=field)


@pytest.mark.parametrize(("name", "across"), [("sharpa_wave", 1), ("dex3", 1), ("shadow", 0), ("allegro", 1)])
def test_left_mirrors_right_and_shares_its_tree(name, across):
  """The makers of Inspire do not mirror theirs."""
  left, right = (hand.load(name, side) for side in keypoints.SIDES)
  assert jax.tree.structure(left) == jax.tree.structure(right), "one compiled function serves both"
  mirror = np.where(np.arange(3) == across, -1, 1).astype(np.float32)
  np.testing.assert_allclose(left.keypoint_Px3, right.keypoint_Px3 * mirror, atol=1e-6)
  axis_Nx3 = -right.axis_Nx3 * mirror  # an axis is a pseudo-vector: the same angle mirrors
  sign_N = np.sum(axis_Nx3 * left.axis_Nx3, axis=1)  # Unitree turns the axes of one hand round instead
  np.testing.assert_allclose(np.abs(sign_N), 1, atol=1e-6)
  if name != "shadow":  # all signs are 1 there, and values are no joints
    lower_J, upper_J = (np.where(sign_N > 0, a, -b) for a, b in ((right.lower_J, right.upper_J), (right.upper_J, right.lower_J)))
    np.testing.assert_allclose(left.lower_J, lower_J, atol=1e-6)
    np.testing.assert_allclose(left.upper_J, upper_J, atol=1e-6)


@pytest.mark.parametrize("side", keypoints.SIDES)
@pytest.mark.parametrize(
  ("name", "forward", "back"),
  [
    ("sharpa_wave", (0, 0, 1), (-1, 0, 0)),
    ("shadow", (0, 0, 1), (0, 1, 0)),
    ("allegro", (0, 0, 1), (-1, 0, 0)),
    ("inspire", (0, 0, 1), (-1, 0, 0)),
  ],
)
def test_wrist_frame_of_the_built_in(name, forward, back, side):
  """Wrist frame: x to the knuckles, z out of the back; here in each maker's base frame."""
  rotation = hand.load(name, side).T_base_wrist_4x4[:3, :3]
  assert rotation[:, 0] @ forward > 0.99
  assert rotation[:, 2] @ back > 0.97


def test_unknown_hand_side_and_file_are_one_line(tmp_path):
  with pytest.raises(UserError, match=r"^hand 'no_such_hand': .*built-in hands: sharpa_wave, dex3, shadow, allegro, inspire$"):
    hand.load("no_such_hand", "right")
  with pytest.raises(UserError, match=r"^hand '.*absent\.urdf': no such file$"):
    hand.load(tmp_path / "absent.urdf", "right")
  with pytest.raises(
    UserError, match=r"^hand 'a/hand\.urdf,b/hand\.urdf': found two of the name hand\.urdf, expected one, or LEFT,RIGHT of different"
  ):
    hand.load("a/hand.urdf,b/hand.urdf", "right")
  with pytest.raises(UserError, match=r"^hand 'a\.urdf,b\.urdf,c\.urdf': found 3 files, expected one, or LEFT,RIGHT"):
    hand.load("a.urdf,b.urdf,c.urdf", "right")
  with pytest.raises(UserError, match=r"^side 'up': expected one of left, right$"):
    hand.load("sharpa_wave", "up")


def test_a_file_for_each_side(shared, tmp_path):
  files = {side: shared / "hands" / "inspire" / f"inspire_hand_{side}.urdf" for side in keypoints.SIDES}
  both = ",".join(map(str, files.values()))
  for side, file in files.items():
    assert hand.load(both, side) == hand.load(file, side)
    assert hand.files(both, side) == (file,)
    shutil.copy(file, tmp_path)
    assert hand.load(hand.kept(both, tmp_path), side) == hand.load(file, side)
  assert [h.side for h in labeller.load_hands(both)] == list(keypoints.SIDES)
  with pytest.raises(
    UserError, match=r"the side 'left' contradicts .*; take --side=right; where both hands are asked for, .*--hand=LEFT,RIGHT$"
  ):
    labeller.load_hands(str(files["right"]))
  assert hand.kept("dex3", tmp_path) == "dex3"


def _edited(tmp_path, old, new, name="sharpa_wave_right"):
  text = (hand._MODELS / f"{name}.xml").read_text()
  assert old in text
  path = tmp_path / "edited.xml"
  path.write_text(text.replace(old, new))
  return path


EQUALITY = '</worldbody><equality><joint joint1="right_index_DIP" {}/></equality>'


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ('<site name="index_tip"', '<site name="other"', "no site or link named index_tip"),
    ('<site name="thumb_tip"', '<site name="other"', "no site or link named thumb_tip"),
    ('<site name="wrist"', '<site name="other"', "no site or link named wrist"),
    ('<joint name="right_index_PIP"', '<joint type="slide" name="right_index_PIP"', "'right_index_PIP' is no hinge but of type slide"),
    ('<joint range="0 1.3963" user="14.66594768"/>', "<joint/>", "'right_index_DIP' has no range"),
    ("</worldbody>", EQUALITY.format(""), "'right_index_DIP' is held at a constant"),
    ("</worldbody>", EQUALITY.format('joint2="right_index_PIP" polycoef="0 1 .5"'), "not linear: polycoef 0 1 0.5 0 0"),
    ("</worldbody>", EQUALITY.format('joint2="right_index_PIP" polycoef="2 1"'), "'right_index_PIP': the ranges .* leave it none"),
    (
      "</worldbody>",
      '</worldbody><equality><connect body1="right_index_distal" anchor="0 0 0"/></equality>',
      "an equality of type connect",
    ),
    ("</worldbody>", "", "MuJoCo cannot compile it"),
  ],
)
def test_a_file_that_is_no_hand_is_refused(tmp_path, old, new, message):
  with pytest.raises(UserError, match=message) as caught:
    hand.load(_edited(tmp_path, old, new), "right")
  assert "\n" not in str(caught.value)


def test_a_hand_may_name_fewer_fingers(tmp_path):
  path = _edited(tmp_path, '<site name="ring_', '<site name="no_ring_')
  path.write_text(path.read_text().replace('<site name="little_', '<site name="no_little_').replace('<site name="thumb_cmc"/>', ""))
  path.write_text(path.read_text().replace('<site name="wrist"/>', '<site name="wrist" pos="0.01 0.005 -0.02"/>'))
  found = hand.load(path, "right")
  assert found.knuckles == (1, 2)
  assert [keypoints.NAMES[p] for p in np.flatnonzero(~np.array(found.present))][:2] == ["thumb_cmc", "ring_mcp"]
  whole = hand.load("sharpa_wave", "right")
  np.testing.assert_array_equal(found.keypoint_Px3[1:13], np.where(np.arange(12)[:, None] == 0, 0, whole.keypoint_Px3[1:13]))
  np.testing.assert_array_equal(found.keypoint_rotation_Px3x3[13:], np.eye(3)[None].repeat(8, 0))
  assert found.keypoint_parents[13:] == (-1,) * 8
  whole.keypoint_Px3[0] = [0.01, 0.005, -0.02]
  expected = keypoints.wrist_frame(whole.keypoint_Px3.astype(np.float64), "right", (1, 2))
  np.testing.assert_allclose(found.T_base_wrist_4x4, expected, atol=1e-6)
  path.write_text(path.read_text().replace('<site name="middle_mcp"/>', ""))
  with pytest.raises(UserError, match="found mcp and tip of index; a hand names those of two fingers beside the thumb"):
    hand.load(path, "right")


@pytest.mark.parametrize("fingers", [(1, 2, 3, 4), (1, 2), (2, 3, 4), (1, 4)])
def test_the_wrist_frame_reads_the_knuckles_it_is_told(fingers):
  points_Px3 = np.random.default_rng(0).normal(size=(21, 3))
  frame = keypoints.wrist_frame(points_Px3, "right", fingers)
  knuckles = points_Px3[[1 + 4 * finger for finger in fingers]]
  forward = knuckles.mean(0) - points_Px3[0]
  np.testing.assert_allclose(frame[:3, 0], forward / np.linalg.norm(forward), atol=1e-12)
  np.testing.assert_allclose(frame[:3, 2] @ (knuckles[-1] - knuckles[0]), 0, atol=1e-12)
  rest = [p for p in range(1, 21) if p not in [1 + 4 * finger for finger in fingers]]
  points_Px3[rest] = np.nan
  np.testing.assert_array_equal(keypoints.wrist_frame(points_Px3, "right", fingers), frame)


def test_missing_velocity_limits_are_infinite_not_zero(tmp_path):
  text = (hand._MODELS / "sharpa_wave_right.xml").read_text()
  path = tmp_path / "plain.xml"
  path.write_text("".join(part.split('"', 1)[1] if i else part for i, part in enumerate(text.split(' user="'))))
  assert np.isinf(hand.load(path, "right").velocity_J).all()


def inspire_with(tmp_path, old, new):
  return hand.load(_edited(tmp_path, old, new, "inspire_right"), "right")


def value(found, name, field):
  return float(getattr(found, field)[found.joint_names.index(name)])


def test_a_follower_of_a_follower_and_one_that_turns_back(tmp_path):
  """ring = -0.5 index proximal + 0.1 through the index's second joint; ranges and speeds are the followers' too."""
  rule = '<joint joint1="ring_proximal_joint" joint2="index_intermediate_joint" polycoef="0.1 -0.5 0 0 0"/>'
  found = inspire_with(tmp_path, "<equality>", f"<equality>{rule}")
  assert found.num_joints == 5
  n, index = (found.tree_joint_names.index(f"{f}_proximal_joint") for f in ("ring", "index"))
  assert found.source[n] == found.source[index]
  np.testing.assert_allclose([found.ratio_N[n], found.offset_N[n]], [-0.5 * 1.06399, 0.1 + 0.5 * 0.04545], atol=1e-6)
  # ring in 0 to 1.47, its own follower 1.06399 x - 0.04545 from -0.04545: the index may close until the ring is straight
  np.testing.assert_allclose(value(found, "index_proximal_joint", "upper_J"), (0.1 + 0.5 * 0.04545) / (0.5 * 1.06399), atol=1e-5)
  np.testing.assert_allclose(value(found, "index_proximal_joint", "lower_J"), 0, atol=1e-6)
  np.testing.assert_allclose(value(found, "index_proximal_joint", "velocity_J"), 0.5 / 1.06399, atol=1e-5)


def test_a_joints_reference_moves_its_coupling(tmp_path):
  """MuJoCo counts an equality from ref: at its own initial pose the constraint is met with polycoef 0 1."""
  path = _edited(tmp_path, "</worldbody>", EQUALITY.format('joint2="right_index_PIP"'))
  path.write_text(path.read_text().replace('<joint name="right_index_DIP"', '<joint ref="0.25" name="right_index_DIP"'))
  found = hand.load(path, "right")
  n = found.tree_joint_names.index("right_index_DIP")
  np.testing.assert_allclose([found.ratio_N[n], found.offset_N[n]], [1, 0.25])


def test_a_tendon_with_unequal_arms(tmp_path):
  """length = 2 q1 + q2, half of it each; the motor's range, the tendon's and the joints' all hold; a motor of force limits nothing."""
  old = '<fixed name="rh_FFJ0"><joint joint="rh_FFJ2" coef="1"/>'
  path = _edited(tmp_path, old, '<fixed name="rh_FFJ0" limited="true" range="0.1 9"><joint joint="rh_FFJ2" coef="2"/>', "shadow_right")
  found = hand.load(path, "right")
  n = found.tree_joint_names.index("rh_FFJ2")
  np.testing.assert_allclose(found.ratio_N[n : n + 2], [0.25, 0.5])
  np.testing.assert_allclose([value(found, "rh_FFJ0", f) for f in ("lower_J", "upper_J", "velocity_J")], [0.1, 3.1415, 4], atol=1e-6)
  path.write_text(
    path.read_text().replace('<position name="rh_A_FFJ0" tendon="rh_FFJ0" kp="0.5"', '<motor name="rh_A_FFJ0" tendon="rh_FFJ0"')
  )
  np.testing.assert_allclose(value(hand.load(path, "right"), "rh_FFJ0", "upper_J"), 2 * 1.5708, atol=1e-6)


TREE = '<tendon><spatial name="s"><site site="index_tip"/><site site="wrist"/></spatial></tendon>'


@pytest.mark.parametrize(
  ("name", "old", "new", "message"),
  [
    (
      "inspire",
      "<equality>",
      '<equality><joint joint1="thumb_distal_joint" joint2="index_proximal_joint"/>',
      "'thumb_distal_joint' is coupled twice",
    ),
    (
      "inspire",
      "<equality>",
      '<equality><joint joint1="index_proximal_joint" joint2="index_intermediate_joint"/>',
      "the coupling of joint 'index_proximal_joint' goes round in a circle",
    ),
    ("shadow", "<actuator>", '<actuator><position joint="rh_FFJ1"/>', "'rh_FFJ1' has an actuator of its own and one through a tendon"),
    ("shadow", 'joint="rh_MFJ2"', 'joint="rh_FFJ2"', "'rh_FFJ2' is coupled twice, by 'rh_MFJ0' too"),
    ("shadow", "<actuator>", TREE + '<actuator><position tendon="s"/>', "tendon 's' is driven and spatial"),
  ],
)
def test_couplings_that_cannot_be_reduced_are_refused(tmp_path, name, old, new, message):
  with pytest.raises(UserError, match=message):
    hand.load(_edited(tmp_path, old, new, f"{name}_right"), "right")


URDF = """<robot name="r"><link name="base"/>{links}</robot>"""
PART = """<link name="{f}{i}"><visual><geometry><mesh filename="package://nowhere/{f}{i}.glb"/></geometry></visual>
<collision><geometry><mesh filename="{f}{i}.stl"/></geometry></collision></link>
<joint name="j{f}{i}" type="revolute"><parent link="{parent}"/><child link="{f}{i}"/><origin xyz="{xyz}" rpy="{rpy}"/><axis xyz="0 1 0"/>
<limit lower="0" upper="1.5" effort="1" {velocity}/>{mimic}</joint>"""


def urdf(tmp_path, mimic='<mimic joint="j{f}0"/>', velocity='velocity="3"'):
  """A right hand of four fingers with two joints each, x along the fingers, z out of the back; mesh files that do not exist."""
  links = ""
  for f, xyz, rpy in (
    ("t", "0.03 0.04 0", "0 0 1.3"),
    ("a", "0.09 0.02 0", "0 0 0"),
    ("b", "0.09 0 0", "0 0 0"),
    ("c", "0.09 -0.02 0", "0 0 0"),
  ):
    links += PART.format(f=f, i=0, parent="base", xyz=xyz, rpy=rpy, mimic="", velocity=velocity)
    links += PART.format(f=f, i=1, parent=f"{f}0", xyz="0.05 0 0", rpy="0 0 0", mimic=mimic.format(f=f), velocity=velocity)
  path = tmp_path / "any.urdf"
  path.write_text(URDF.format(links=links))
  return path


def test_a_urdf_with_mimics_and_meshes_that_are_not_there(tmp_path):
  found = hand.load(urdf(tmp_path), "right")
  assert (len(found.parents), found.num_joints, found.knuckles) == (8, 4, (1, 2, 3))
  np.testing.assert_array_equal(found.ratio_N, np.ones(8, np.float32))
  np.testing.assert_array_equal(found.velocity_J, np.full(4, 3, np.float32))
  slow = hand.load(urdf(tmp_path, '<mimic joint="j{f}0" multiplier="-2" offset="1"/>', velocity=""), "right")
  np.testing.assert_allclose(slow.upper_J, 0.5, atol=1e-6)  # 1 - 2 q within 0 to 1.5
  np.testing.assert_allclose(slow.lower_J, 0, atol=1e-6)
  assert np.isinf(slow.velocity_J).all()
  np.testing.assert_allclose(kinematics.tree_joints(slow, slow.upper_J), [0.5, 0] * 4, atol=1e-6)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("<robot name='r'><link name='a'>", "MuJoCo cannot compile it"),
    ("", "MuJoCo cannot compile it"),
    ("not xml", "MuJoCo cannot compile it"),
    ("<robot name='r'><link name='a'/></robot>", "no joints"),
    (None, "could not convert string to float: 'fast'"),
  ],
)
def test_a_malformed_urdf_is_one_line(tmp_path, text, message):
  path = urdf(tmp_path, velocity='velocity="fast"')
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match=message) as caught:
    hand.load(path, "right")
  assert "\n" not in str(caught.value)
  assert str(path) in str(caught.value)
