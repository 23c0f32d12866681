"""Forward kinematics against MuJoCo's own on every description there is, and the Jacobian against automatic differentiation.

Only one test compiles, the one that says that this changes nothing: XLA takes seconds for the unrolled tree of a hand, and all of its
operations one by one take milliseconds.
"""

import itertools
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from test_hand import LINKS, reference, urdf_with_keypoints

from egoscale_jax import geometry
from egoscale_jax.hands import hand, keypoints, kinematics

# A tree the built-in hands do not have: a turned base, joints off their body's origin, three joints on one body, an odd zero.
CROOKED = """
<mujoco><compiler angle="radian"/><worldbody><body name="wrist" pos=".1 .2 .3" euler=".3 -.2 .5">
{sites}
<body pos=".02 0 .01" euler="0 .4 .1"><geom size=".01"/>
  <joint name="a" axis="1 2 .5" pos=".01 0 -.01" range="-1 1"/><joint name="b" axis="0 1 0" pos="0 .02 0" range="-1 1" ref=".3"/>
  <joint name="c" axis="0 0 1" range="-2 2"/><site name="thumb_tip" pos=".03 .01 0"/>
  <body pos=".04 0 0"><body euler=".1 .2 .3"><geom size=".01"/><joint name="d" axis="0 1 1" range="0 1"/>
    <site name="index_tip" pos=".05 0 0"/>
</body></body></body></body></worldbody></mujoco>
"""


@pytest.fixture(scope="module")
def crooked(tmp_path_factory):
  rng = np.random.default_rng(0)
  names = [name for name in keypoints.NAMES if name not in ("wrist", "thumb_tip", "index_tip")]
  sites = "".join(f'<site name="{n}" pos="{" ".join(f"{x:.4f}" for x in rng.uniform(-0.1, 0.1, 3))}"/>' for n in names)
  path = tmp_path_factory.mktemp("hand") / "crooked.xml"
  path.write_text(CROOKED.format(sites=sites))
  return path


def every_function(model, joints_J):
  functions = (
    *(kinematics.tree_joints, kinematics.keypoints, kinematics.keypoints_in_wrist, kinematics.frames),
    *(kinematics.keypoints_and_jacobian, kinematics.keypoints_and_jacobian_in_wrist),
  )
  return [f(model, joints_J) for f in functions]


def as_arrays(model):
  """The hand as a compiled program meets it that takes it as an argument, not as constants: its numbers are in the computation."""
  return jax.tree.map(jnp.asarray, model)


def random_joints(model, count, seed=0):
  return np.random.default_rng(seed).uniform(model.lower_J, model.upper_J, (count, model.num_joints))


def mujoco_keypoints(path, joints_FxJ):
  model = mujoco.MjModel.from_xml_path(str(path))
  data = mujoco.MjData(model)
  frames = []
  for joints_J in joints_FxJ:
    data.qpos[:] = joints_J
    mujoco.mj_kinematics(model, data)
    names = [(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, n), n) for n in keypoints.NAMES]
    frames.append(np.array([data.site_xpos[i] if i >= 0 else data.body(n).xpos for i, n in names]))
  return np.stack(frames)


def assert_like_mujoco(model, path):
  joints_FxJ = random_joints(model, 50)
  for form in (model, as_arrays(model)):
    found = kinematics.keypoints(form, jnp.asarray(joints_FxJ, jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, mujoco_keypoints(path, joints_FxJ), atol=1e-6)  # metres: float32 on a hand of 0.2 m; the bar is 1e-5


FILES = (
  *("allegro/{side}_hand.xml", "allegro_dexurdf/allegro_hand_{side}.urdf", "dex3/dex3_1_{s}.urdf", "inspire/inspire_hand_{side}.urdf"),
  *("shadow/{side}_hand.xml", "shadow_dexurdf/shadow_hand_{side}.urdf"),
  *(f"sharpa_wave/{{side}}_sharpa_wave{variant}.{kind}" for variant in ("", "_with_wrist", "_with_flange") for kind in ("urdf", "xml")),
)


def test_the_list_of_files_is_whole(shared):
  listed = {file.format(side=side, s=side[0]) for file in FILES for side in keypoints.SIDES}
  there = [path for path in (shared / "hands").glob("*/*") if path.suffix in (".urdf", ".xml") and "<joint" in path.read_text()]
  assert listed == {str(path.relative_to(shared / "hands")) for path in there}


@pytest.fixture(params=[(which, side) for which in (*hand.BUILT_IN, *FILES) for side in keypoints.SIDES], ids="-".join)
def described(request):
  """(Hand, its file), for every built-in hand and every file of a maker's."""
  which, side = request.param
  if which in hand.BUILT_IN:
    return hand.load(which, side), hand._MODELS / f"{which}_{side}.xml"
  path = request.getfixturevalue("shared") / "hands" / which.format(side=side, s=side[0])
  return hand.load(path, side), path


def corners_and_random(model, count):
  """Both ends of every range at once, then random values within them [F, J]."""
  return np.concatenate([[model.lower_J, model.upper_J], random_joints(model, count)]).astype(np.float32)


def pose_in(data, model, link):
  """T_base_link, whatever kind of frame has that name."""
  site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, link)
  frame = data.site(site) if site >= 0 else data.body(link)
  return geometry.se3(frame.xmat.reshape(3, 3), frame.xpos)


def test_every_keypoint_frame_equals_mujocos(described):
  """A named keypoint against the site or link of that name, any other as fixed to the link of its joint; in metres and radians."""
  ours, path = described
  model = reference(path)
  data = mujoco.MjData(model)
  joints_FxJ = corners_and_random(ours, 8)
  both_FxPx4x4 = [np.asarray(kinematics.frames(form, jnp.asarray(joints_FxJ)), np.float64) for form in (ours, as_arrays(ours))]
  tree_FxN = np.asarray(kinematics.tree_joints(ours, joints_FxJ), np.float64)
  assert tuple(model.joint(j).name for j in range(model.njnt)) == ours.tree_joint_names
  links = {p: name for p, name in enumerate(keypoints.NAMES) if ours.present[p] and not ours.how}
  for i, finger in enumerate(keypoints.FINGERS):
    kind, _, link = ours.how.get(finger, "").partition(" ")
    links |= {keypoints.TIPS[i]: link} if kind in ("link", "site") else {}
  mujoco.mj_kinematics(model, data)  # at qpos0, which is 0 in all these files
  fixed = {p: model.jnt_bodyid[ours.keypoint_parents[p]] if ours.keypoint_parents[p] >= 0 else 0 for p in np.flatnonzero(ours.present)}
  zero_Px4x4 = geometry.se3(ours.keypoint_rotation_Px3x3, ours.keypoint_Px3).astype(np.float64)
  arms = {p: np.linalg.inv(geometry.se3(data.xmat[b].reshape(3, 3), data.xpos[b])) @ zero_Px4x4[p] for p, b in fixed.items()}
  for *both_Px4x4, tree_N in zip(*both_FxPx4x4, tree_FxN):
    data.qpos[:] = tree_N
    mujoco.mj_kinematics(model, data)
    for p, body in fixed.items():
      expected = geometry.se3(data.xmat[body].reshape(3, 3), data.xpos[body]) @ arms[p]
      expected = [expected] + ([pose_in(data, model, links[p])] if p in links else [])
      for found_Px4x4, T in itertools.product(both_Px4x4, expected):
        np.testing.assert_allclose(found_Px4x4[p, :3, 3], T[:3, 3], atol=1e-5, err_msg=keypoints.NAMES[p])
        angle = np.linalg.norm(found_Px4x4[p, :3, :3] - T[:3, :3]) / np.sqrt(2)  # of the turn between them, where it is small
        assert angle < 1e-5, (keypoints.NAMES[p], angle)
  for found_FxPx4x4 in both_FxPx4x4:
    assert (found_FxPx4x4[:, ~np.array(ours.present)] == np.eye(4)).all()


def test_every_coupling_and_range_is_the_files(described):
  """Mimic statements, equalities and tendons read from the XML; no joint leaves its range, and no value could reach further."""
  ours, path = described
  root, model = ElementTree.parse(path).getroot(), reference(path)
  values_FxJ = corners_and_random(ours, 20)
  tree_FxN = np.asarray(kinematics.tree_joints(ours, values_FxJ))
  joint = {name: tree_FxN[:, n] for n, name in enumerate(ours.tree_joint_names)}
  rules = [(j.get("name"), m.get("joint"), m.get("multiplier", 1), m.get("offset", 0)) for j in root.iter("joint") for m in j.iter("mimic")]
  rules += [(e.get("joint1"), e.get("joint2"), *e.get("polycoef").split()[1::-1]) for e in root.iterfind("equality/joint")]
  for name, followed, ratio, offset in rules:
    np.testing.assert_allclose(joint[name], float(ratio) * joint[followed] + float(offset), atol=1e-6, err_msg=name)
  tendons = {t.get("name"): [(j.get("joint"), float(j.get("coef"))) for j in t.iter("joint")] for t in root.iterfind("tendon/fixed")}
  for name, parts in tendons.items():
    length_F = values_FxJ[:, ours.joint_names.index(name)]
    for part, coef in parts:
      np.testing.assert_allclose(coef * joint[part], length_F / len(parts), atol=1e-6, err_msg=name)
  assert ours.num_joints == len(ours.parents) - len(rules) - sum(len(parts) - 1 for parts in tendons.values())
  for name in set(ours.joint_names) - set(tendons):
    np.testing.assert_array_equal(joint[name], values_FxJ[:, ours.joint_names.index(name)], err_msg=name)
  slack_FxNx2 = np.stack([tree_FxN - model.jnt_range[:, 0], model.jnt_range[:, 1] - tree_FxN], -1)
  assert slack_FxNx2.min() > -1e-6
  tightest_Fx2xJ = np.array([[slack_FxNx2[f][np.array(ours.source) == j].min() for j in range(ours.num_joints)] for f in range(2)])
  np.testing.assert_allclose(tightest_Fx2xJ, 0, atol=1e-4)  # the tendons' motors stop 1e-4 short


def test_keypoints_equal_mujocos_on_a_crooked_tree(crooked):
  model = hand.load(crooked, "left")
  assert model.parents == (-1, 0, 1, 2)
  assert_like_mujoco(model, crooked)


@pytest.mark.parametrize("side", keypoints.SIDES)
def test_built_in_moves_as_the_makers_urdf(shared, tmp_path, side):
  """The maker's URDF through MuJoCo's own kinematics: our loader has no part in the reference."""
  path = urdf_with_keypoints(shared, side, tmp_path / "hand.urdf")
  spec = mujoco.MjSpec.from_file(str(path))
  spec.compiler.fusestatic = False
  urdf = spec.compile()
  data = mujoco.MjData(urdf)
  ours = hand.load("sharpa_wave", side)
  assert [urdf.joint(j).name for j in range(urdf.njnt)] == list(ours.joint_names)
  np.testing.assert_allclose(urdf.jnt_range, np.stack([ours.lower_J, ours.upper_J], -1), rtol=1e-7)
  joints_FxJ = random_joints(ours, 50, seed=1)
  found = kinematics.keypoints(ours, jnp.asarray(joints_FxJ, jnp.float32))
  moving = [name for name in LINKS.values() if name != "wrist"]  # the root link is MuJoCo's world
  for joints_J, points_Px3 in zip(joints_FxJ, np.asarray(found)):
    data.qpos[:] = joints_J
    mujoco.mj_kinematics(urdf, data)
    for name in moving:
      np.testing.assert_allclose(points_Px3[keypoints.NAMES.index(name)], data.body(name).xpos, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  ("which", "both", "alone"),
  [
    ("sharpa_wave", kinematics.keypoints_and_jacobian_in_wrist, kinematics.keypoints_in_wrist),
    ("crooked", kinematics.keypoints_and_jacobian, kinematics.keypoints),
    ("inspire", kinematics.keypoints_and_jacobian, kinematics.keypoints),
  ],
)
def test_jacobian_equals_automatic_differentiation(crooked, which, both, alone):
  model = hand.load(crooked if which == "crooked" else which, "left")  # twelve joints move with the six values of inspire
  with jax.enable_x64(True):
    joints_FxJ = jnp.asarray(random_joints(model, 5), jnp.float64)
    expected = jax.vmap(jax.jacfwd(lambda j: alone(model, j)))(joints_FxJ)
    for form in (model, as_arrays(model)):
      points, jacobian = both(form, joints_FxJ)
      assert jacobian.dtype == jnp.float64
      np.testing.assert_allclose(points, alone(form, joints_FxJ), atol=1e-12)
      np.testing.assert_allclose(jacobian, expected, atol=2e-9)  # the hand's axes are unit to float32


def test_any_leading_axes():
  model = hand.load("sharpa_wave", "right")
  joints = jnp.asarray(random_joints(model, 6), jnp.float32)
  flat = every_function(model, joints)
  assert [x.shape for x in jax.tree.leaves(flat[-1])] == [(6, 21, 3), (6, 21, 3, 22)]
  for found, shape in ((every_function(model, joints.reshape(2, 3, 22)), (2, 3)), (every_function(model, joints[0]), ())):
    for batched, expected in zip(jax.tree.leaves(found), jax.tree.leaves(flat)):
      assert batched.shape == shape + expected.shape[1:]
      np.testing.assert_allclose(batched, expected.reshape(2, 3, *expected.shape[1:]) if shape else expected[0], atol=1e-7)


def test_compiled_equals_operation_by_operation(crooked):
  """Every function, with the hand as an argument of the program and as constants in it."""
  model = hand.load(crooked, "right")
  joints_FxJ = jnp.asarray(random_joints(model, 4), jnp.float32)
  expected = every_function(model, joints_FxJ)
  for static in ((), 0):
    found = jax.jit(every_function, static_argnums=static)(model, joints_FxJ)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


@pytest.mark.parametrize("side", keypoints.SIDES)
def test_wrist_frame_is_that_of_the_zero_pose(side):
  model = hand.load("sharpa_wave", side)
  zero_Px3 = np.asarray(kinematics.keypoints_in_wrist(model, jnp.zeros((1, 22))))[0]
  np.testing.assert_allclose(keypoints.wrist_frame(zero_Px3, side), np.eye(4), atol=1e-6)
  joints_FxJ = jnp.asarray(random_joints(model, 3), jnp.float32)
  expected = geometry.transform(geometry.se3_inverse(model.T_base_wrist_4x4)[None], np.asarray(kinematics.keypoints(model, joints_FxJ)))
  np.testing.assert_allclose(kinematics.keypoints_in_wrist(model, joints_FxJ), expected, atol=1e-6)


def test_positive_flexion_closes_the_hand():
  model = hand.load("sharpa_wave", "right")
  open_Px3, closed_Px3 = (np.asarray(kinematics.keypoints_in_wrist(model, jnp.asarray(0.5 * k * model.upper_J)[None]))[0] for k in (0, 1))
  assert (closed_Px3[list(keypoints.TIPS), 2] < open_Px3[list(keypoints.TIPS), 2]).all(), "tips go to the palm, away from the back"
