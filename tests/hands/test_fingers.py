"""Fingers found in files that name nothing: made-up hands whose answer is known, the makers' own, and every refusal."""

import re
import shutil

import numpy as np
import pytest

from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand, keypoints

BONES_M = (0.04, 0.03)
TIP = '<body name="{name}_end" pos="0.02 0 0"/>'
SPAN = 0.02  # between knuckles


def finger(name, pos, euler, tip=TIP, axis="0 1 0", range_="0 1.6", more=""):
  a, b = BONES_M
  joint = f'<joint name="{name}{{}}" axis="{axis}" range="{range_}"/>'
  return f"""<body pos="{pos}" euler="{euler}">{more}{joint.format(1)}<body pos="{a} 0 0">{joint.format(2)}
  <body name="{name}_last" pos="{b} 0 0">{joint.format(3)}{tip.format(name=name)}</body></body></body>"""


def hand_file(tmp_path, side="right", count=4, tip=TIP, palm="0.09", thumb=None, **each):
  """Base: x along the fingers, z out of the back, so a right hand's thumb is on +y. Names and order in the file tell nothing."""
  sign = {"right": 1, "left": -1}[side]
  thumb = thumb or finger("A", f"{float(palm) - 0.06} {0.04 * sign} 0", f"0 0 {1.3 * sign}", tip)
  others = [finger("DCEB"[i], f"{palm} {(1.5 - i) * SPAN * sign} 0", "0 0 0", tip, **each) for i in range(count)]
  path = tmp_path / "made_up.xml"
  bodies = "".join([*others[1:], thumb, others[0]])
  path.write_text(f'<mujoco><compiler angle="radian"/><worldbody><body name="palm">{bodies}</body></worldbody></mujoco>')
  return path


def joints_at(found, finger_name):
  return [
    found.tree_joint_names[found.keypoint_parents[p]] for p in range(21) if found.present[p] and keypoints.NAMES[p].startswith(finger_name)
  ]


@pytest.mark.parametrize("side", keypoints.SIDES)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_thumb_and_order_come_from_the_geometry(tmp_path, side, count):
  """Two fingers are index and middle, three are index, middle and ring: a stated choice."""
  found = hand.load(hand_file(tmp_path, side, count), side)
  assert found.knuckles == tuple(range(1, 1 + count))
  assert joints_at(found, "thumb") == ["A1", "A2", "A3", "A3"]
  for name, letter in zip(keypoints.FINGERS[1:], "DCEB"[:count]):
    assert joints_at(found, name) == [f"{letter}1", f"{letter}2", f"{letter}3", f"{letter}3"]
  bent_m = np.linalg.norm(np.diff(found.keypoint_Px3[5:9], axis=0), axis=-1)
  np.testing.assert_allclose(bent_m, [*BONES_M, 0.02], atol=1e-6)
  np.testing.assert_allclose(found.T_base_wrist_4x4[:3, 2], [0, 0, 1], atol=0.05)  # out of the back
  assert found.T_base_wrist_4x4[0, 0] > 0.9


@pytest.mark.parametrize("side", keypoints.SIDES)
def test_the_other_side_is_refused(tmp_path, side):
  other = keypoints.SIDES[1 - keypoints.SIDES.index(side)]
  with pytest.raises(UserError, match=f"the side '{other}' contradicts the geometry"):
    hand.load(hand_file(tmp_path, side), other)


@pytest.mark.parametrize(
  ("tip", "reach_m", "how"),
  [
    (TIP, 0.02, "link D_end"),
    ('<site name="{name}_touch" pos="0.021 0 0"/><site name="{name}_side" pos="0 0.03 0"/>', 0.021, "site D_touch"),
    ('<body name="{name}_tip" pos="0.019 0 0"/><body name="{name}_far" pos="0.025 0 0"/>', 0.019, "link D_tip"),
    ('<geom type="capsule" size="0.004 0.01" pos="0.012 0 0" euler="0 1.5707963 0"/>', 0.026, "the far end of the last link's geometry"),
    ('<geom type="box" size="0.01 0.004 0.004" pos="0.012 0 0"/><geom size="0.003" pos="0.005 0 0"/>', 0.022, "the far end of the last"),
    ('<body><geom type="cylinder" size="0.004 0.01" pos="0.012 0 0" euler="0 1.5707963 0"/></body>', 0.022, "the far end of the last"),
    ('<geom type="ellipsoid" size="0.01 0.004 0.004" pos="0.012 0 0"/>', 0.022, "the far end of the last"),
    ('<inertial mass="0.1" pos="0.011 0 0" diaginertia="1 1 1"/>', 1.9 * 0.011, "estimated: 1.9 x the last link's centre of mass"),
    ('<inertial mass="0.1" pos="0.007 0 0" diaginertia="1 1 1"/>', 0.6 * 0.03, "estimated: 2.6 x"),
    ('<inertial mass="0.1" pos="0 0 0" diaginertia="1 1 1"/>', 0.8 * 0.03, "guessed: 0.8 of the bone before it"),
    ("", 0.8 * 0.03, "guessed: 0.8 of the bone before it"),
  ],
)
def test_a_tip_is_a_frame_else_geometry_else_mass_else_a_guess(tmp_path, capsys, tip, reach_m, how):
  found = hand.load(hand_file(tmp_path, tip=tip), "right")
  np.testing.assert_allclose(found.keypoint_Px3[8] - found.keypoint_Px3[7], [reach_m, 0, 0], atol=1e-6)
  assert f"  index: mcp D1, pip D2, dip D3, tip {how}" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("palm", "ahead_m", "how"), [("0.09", 0.09, "the origin of palm"), ("0.02", 0.95 * 0.09, "guessed: 0.95 of a finger")]
)
def test_a_wrist_at_the_knuckles_is_moved_back(tmp_path, palm, ahead_m, how):
  """Fingers of 0.09 m: an origin 0.09 m behind the knuckles is a wrist, one 0.02 m behind them is none."""
  found = hand.load(hand_file(tmp_path, palm=palm), "right")
  knuckles_m = found.keypoint_Px3[list(keypoints.KNUCKLES)].mean(0)
  np.testing.assert_allclose(knuckles_m - found.keypoint_Px3[0], [ahead_m, 0, 0], atol=1e-6)
  assert found.how["wrist"].startswith(how)


def test_a_wrist_beside_the_palm_is_none(tmp_path):
  """The palm's origin at the thumb's root, as on the Ability hand; the link that it is fixed to is the wrist."""
  path = hand_file(tmp_path)
  text = path.read_text().replace(
    '<body name="palm">', '<body name="flange"><body name="palm" pos="0.02 0.05 0"><frame pos="-0.02 -0.05 0">'
  )
  path.write_text(text.replace("</body></worldbody>", "</frame></body></body></worldbody>"))
  found = hand.load(path, "right")
  assert found.how["wrist"] == "the origin of flange"
  np.testing.assert_allclose(found.keypoint_Px3[0], 0, atol=1e-6)


@pytest.mark.parametrize(
  "more",
  [
    '<joint axis="1 0 0" pos="-0.03 0 0" range="-.3 .3"/>',  # a twist before the knuckle
    '<joint axis="0 0 1" range="-.3 .3"/>',  # an abduction in it
    '<joint axis="0 1 0" pos="-0.008 0 0" range="0 .3"/>',  # a second bend in nearly the same place
  ],
)
def test_a_knuckle_may_have_several_joints(tmp_path, more):
  """Fingers of two bones: a joint too many would be taken for the first of three."""
  path = hand_file(tmp_path, more=more)
  path.write_text(re.sub(r'<joint name="[BCDE]3".*?/>', "", path.read_text()))
  assert joints_at(hand.load(path, "right"), "middle") == ["C1", "C2", "C2"]


@pytest.mark.parametrize("tip", [TIP, '<inertial mass="1" pos="0.0105 0.004 0" diaginertia="1 1 1"/>', ""])
def test_a_hinge_may_lie_anywhere_on_its_axis(tmp_path, tip):
  """As CAD exports have it: the joints' origins beside the finger, each on another side. The wrist is guessed from where fingers point."""
  path = hand_file(tmp_path, tip=tip, palm="0.02")
  plain = hand.load(path, "right")
  text = path.read_text()
  for joint, beside in ((1, 0.006), (2, 0.004), (3, -0.01)):
    text = re.sub(rf'<joint name="([BCDE]){joint}"', rf'<joint pos="0 {beside} 0" name="\g<1>{joint}"', text)
  path.write_text(text)
  moved = hand.load(path, "right")
  assert np.ptp(moved.anchor_Nx3[:, 1]) > np.ptp(plain.anchor_Nx3[:, 1]), "the joints did move"
  relative = [h.keypoint_Px3[5:] - h.keypoint_Px3[5] for h in (plain, moved)]
  np.testing.assert_allclose(relative[1], relative[0], atol=1e-6)
  np.testing.assert_allclose(moved.T_base_wrist_4x4[:3, :3], plain.T_base_wrist_4x4[:3, :3], atol=1e-6)


def test_fewer_joints_leave_keypoints_absent(tmp_path):
  path = hand_file(tmp_path)
  path.write_text(re.sub(r'<joint name="[BCDE]3".*?/>', "", path.read_text()))
  found = hand.load(path, "right")
  assert not any(found.present[p] for p in (7, 11, 15, 19))
  assert all(found.present[p] for p in (5, 6, 8))
  np.testing.assert_array_equal(found.keypoint_Px3[7], 0)
  np.testing.assert_allclose(np.linalg.norm(found.keypoint_Px3[8] - found.keypoint_Px3[6]), 0.05, atol=1e-6)


def test_fingers_named_by_the_user_overrule(tmp_path):
  path = hand_file(tmp_path)
  found = hand.load(path, "right", fingers="thumb:A_end, index:C_end,little:B_last")
  assert found.knuckles == (1, 4)
  assert joints_at(found, "index") == ["C1", "C2", "C3", "C3"]
  np.testing.assert_allclose(found.keypoint_Px3[20] - found.keypoint_Px3[19], [0.02, 0, 0], atol=1e-6)  # a link named by its joint: its end
  assert found.num_joints == 15, "the fingers that are not named stay joints"
  again = hand.load(path, "right", fingers={"thumb": "A_end", "index": "C_end", "little": "B_last"})
  np.testing.assert_array_equal(again.keypoint_Px3, found.keypoint_Px3)
  built_in = hand.load("sharpa_wave", "right", fingers="thumb:thumb_tip,index:middle_tip,middle:little_tip")
  assert built_in.knuckles == (1, 2)


def test_fingers_stay_with_the_name_of_a_file_that_is_copied(tmp_path):
  path, told = hand_file(tmp_path), "#thumb:A_end+index:C_end+little:B_last"
  expected = hand.load(path, "right", fingers="thumb:A_end,index:C_end,little:B_last")
  assert hand.load(f"{path}{told}", "right") == expected
  assert hand.load(path, "right") != expected
  both = f"left.urdf#thumb:a+index:b+ring:c,{path}{told}"
  assert hand.files(both, "right") == (path,)
  assert hand.files(both, "left") == ()  # no such file
  (tmp_path / "run").mkdir()
  kept = hand.kept(both, shutil.copy(path, tmp_path / "run") and tmp_path / "run")
  assert hand.told_of(kept, "left") == (tmp_path / "run/left.urdf", "thumb:a,index:b,ring:c")
  assert hand.load(kept, "right") == expected


@pytest.mark.parametrize(
  ("fingers", "message"),
  [
    ("thumb:A_end,index:D_emd,middle:C_end", r"^fingers: unknown frame 'D_emd': expected a link or site of .*, such as D_end"),
    ("thumb:A_end,pointer:D_end", "'pointer:D_end': expected FINGER:LINK, a finger being one of thumb, index, middle, ring, little"),
    ("thumb:A_end,index", "'index': expected FINGER:LINK"),
    ("", "'': expected FINGER:LINK"),
    ("thumb:A_end,index:D_end", "found thumb, index; expected thumb and two or more others"),
    ("index:D_end,middle:C_end,ring:E_end", "found index, middle, ring; expected thumb"),
    ("thumb:A_end,index:D_end,index:C_end", "named twice"),
    ("thumb:A_end,index:D_end,middle:D_end", "named twice"),
    ("thumb:A_end,index:D_end,middle:D_last", "two fingers end on one chain"),
    ("thumb:A_end,index:D_end,middle:palm", "'palm' of .* moves with no joint"),
    ("thumb:A_end,index:B_end,middle:C_end", "the side 'right' contradicts the geometry"),
  ],
)
def test_wrong_fingers_are_one_line(tmp_path, fingers, message):
  with pytest.raises(UserError, match=message) as caught:
    hand.load(hand_file(tmp_path), "right", fingers=fingers)
  assert "\n" not in str(caught.value)


def test_no_hand_at_all_is_one_line(tmp_path):
  with pytest.raises(UserError, match="found 2 chains of joints, expected a thumb and 2 to 4 fingers; name their tips, --hand=FILE#"):
    hand.load(hand_file(tmp_path, count=1), "right")
  parallel = finger("A", "0.09 0.05 0", "0 0 0")
  with pytest.raises(UserError, match="no finger stands out as the thumb"):
    hand.load(hand_file(tmp_path, thumb=parallel), "right")


MAKERS = [  # file, N, J, fingers, how the index fingertip was found
  ("allegro/{side}_hand.xml", 16, 16, 4, None),
  ("allegro_dexurdf/allegro_hand_{side}.urdf", 16, 16, 4, "link"),
  ("dex3/dex3_1_{s}.urdf", 7, 7, 3, "estimated: 1.9 x"),
  ("inspire/inspire_hand_{side}.urdf", 12, 6, 5, "link index_tip"),
  ("shadow/{side}_hand.xml", 24, 20, 5, None),
  ("shadow_dexurdf/shadow_hand_{side}.urdf", 24, 24, 5, "link fftip"),
  ("sharpa_wave/{side}_sharpa_wave.urdf", 22, 22, 5, "link {side}_index_fingertip"),
  ("sharpa_wave/{side}_sharpa_wave_with_wrist.xml", 22, 22, 5, "estimated: 1.9 x"),
  ("sharpa_wave/{side}_sharpa_wave_with_flange.urdf", 22, 22, 5, "link {side}_index_fingertip"),
]
THEIRS = {"thumb": "thumb|th", "index": "index|ff", "middle": "middle|mf", "ring": "ring|rf", "little": "pinky|lf"}


@pytest.mark.parametrize("side", keypoints.SIDES)
@pytest.mark.parametrize(("file", "n", "j", "count", "tip"), MAKERS, ids=[row[0] for row in MAKERS])
def test_the_makers_hands(shared, side, file, n, j, count, tip):
  """The makers' own names of the joints, which the search does not read, say the same as the geometry."""
  path = shared / "hands" / file.format(side=side, s=side[0])
  found = hand.load(path, side)
  assert (len(found.parents), found.num_joints) == (n, j)
  assert found.knuckles == tuple(range(1, count))
  assert tip is None or found.how["index"].startswith(tip.format(side=side))
  if "allegro_dexurdf" in file:  # joint_0.0 to joint_15.0, numbered from +y
    first = {"right": (12, 0, 4, 8), "left": (12, 8, 4, 0)}[side]
    assert [joints_at(found, f)[-1] for f in keypoints.FINGERS[:4]] == [f"joint_{i + 3}.0" for i in first]
  else:
    for finger_name in keypoints.FINGERS[:count]:
      for joint in joints_at(found, finger_name):
        assert re.search(THEIRS[finger_name], joint.lower()), (finger_name, joint)
  other = keypoints.SIDES[1 - keypoints.SIDES.index(side)]
  with pytest.raises(UserError, match=f"the side '{other}' contradicts"):
    hand.load(path, other)
