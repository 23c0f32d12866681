"""Fingertips of every URDF hand, left and right, on every recording: ours beside dex-retargeting's vector solver, on the same targets.

    python benchmarks/retarget_peers.py HANDS_DIR HUMAN_DIR [HAND ...] [--own-scale]

Needs dex_retargeting beside this package. HANDS_DIR and HUMAN_DIR as in retarget_all.py (dex-retargeting reads URDF alone). Both solvers
get one set of targets: the human's keypoints in the robot's base frame, by hands/alignment.py, on the scale of the peer's own configuration
for that hand (SCALES; for other hands, and for all with --own-scale, on the scale that alignment.py finds). The peer runs at its defaults
and without its low-pass; for the hands of FOLLOWS_MIDDLES it follows the middle joints too, as its own configurations for such hands do,
else the tips alone. A link is added to its copy of the URDF at every keypoint, so that both follow the same points. Scored by
hands/kinematics.py (checked against MuJoCo's): the mean distance of the tips from their targets (mm), relative to the wrist; mean |jerk|
(rad/s^3, 30 frames/s); joint samples outside the limits. The last column is the verdict on the tips.
"""

import pathlib
import sys
import tempfile
import time
from xml.etree import ElementTree

import numpy as np
import retarget_all
from dex_retargeting import retargeting_config

from egoscale_jax.hands import alignment, hand, keypoints, kinematics, retarget

MIDDLES = (2, 6, 10, 14, 18)  # the peer's own choice of second points
SCALES = {"allegro": 1.6, "shadow": 1.2, "inspire": 1.15}  # dex_retargeting 0.5.0, configs/teleop
FOLLOWS_MIDDLES = ("sharpa", "shadow")  # as the peer configures hands of 20 joints and more; its inspire and allegro follow tips


def peer(path, model, targets_Fx21x3):
  """dex-retargeting's vector solver -> joints [F, J] in the order of the model."""
  middles = MIDDLES if any(name in path for name in FOLLOWS_MIDDLES) else ()
  followed = [p for p in (*keypoints.TIPS, *middles) if model.present[p]]
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / "hand.urdf"
    marked(path, model, (0, *followed)).write(copy)
    settings = {
      "type": "vector",
      "urdf_path": str(copy),
      "scaling_factor": 1.0,
      "low_pass_alpha": -1.0,
      "target_joint_names": list(model.joint_names),  # those that follow another are not its to choose
      "target_origin_link_names": ["keypoint_0"] * len(followed),
      "target_task_link_names": [f"keypoint_{p}" for p in followed],
      "target_link_human_indices": np.array([[0] * len(followed), followed]),
    }
    solver = retargeting_config.RetargetingConfig.from_dict(settings).build()
  found = np.array([solver.retarget(points[followed] - points[0]) for points in targets_Fx21x3])
  return found[:, [list(solver.joint_names).index(name) for name in model.joint_names]]


def marked(path, model, wanted):
  """The URDF with a link `keypoint_P` at each of these keypoints, with every joint at zero."""
  tree = ElementTree.parse(path)
  root = tree.getroot()
  children = {joint.find("child").get("link") for joint in root.iter("joint")}
  base = next(link.get("name") for link in root.iter("link") if link.get("name") not in children)
  place = zero_pose(root, base)
  of_joint = {joint.get("name"): joint.find("child").get("link") for joint in root.iter("joint")}
  at_Px3 = np.array(kinematics.keypoints(model, np.zeros(model.num_joints, np.float32)), np.float64)
  at_Px3[0] = model.T_base_wrist_4x4[:3, 3]
  for p in wanted:
    joint = model.keypoint_parents[p] if p else -1
    link = of_joint[model.tree_joint_names[joint]] if joint >= 0 else base
    local = np.linalg.solve(place[link], [*at_Px3[p], 1.0])[:3]
    ElementTree.SubElement(root, "link", name=f"keypoint_{p}")
    fixed = ElementTree.SubElement(root, "joint", name=f"to_keypoint_{p}", type="fixed")
    ElementTree.SubElement(fixed, "parent", link=link)
    ElementTree.SubElement(fixed, "child", link=f"keypoint_{p}")
    ElementTree.SubElement(fixed, "origin", xyz=" ".join(f"{x:.9f}" for x in local), rpy="0 0 0")
  return tree


def zero_pose(root, base):
  """T_base_link of every link, with every joint at zero."""
  place, joints = {base: np.eye(4)}, list(root.iter("joint"))
  while len(place) <= len(joints):
    for joint in joints:
      parent, child = joint.find("parent").get("link"), joint.find("child").get("link")
      if parent in place and child not in place:
        place[child] = place[parent] @ origin(joint.find("origin"))
  return place


def origin(element):
  """<origin xyz rpy> -> 4 x 4."""
  told = {} if element is None else element.attrib
  roll, pitch, yaw = (float(x) for x in told.get("rpy", "0 0 0").split())
  (sr, sp, sy), (cr, cp, cy) = np.sin([roll, pitch, yaw]), np.cos([roll, pitch, yaw])
  T = np.eye(4)
  T[:3, :3] = [
    [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
    [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
    [-sp, cp * sr, cp * cr],
  ]
  T[:3, 3] = [float(x) for x in told.get("xyz", "0 0 0").split()]
  return T


def scores(model, joints_FxJ, targets_Fx21x3):
  """-> (tips in mm, jerk in rad/s^3, joint samples more than 1e-4 rad outside)."""
  tips = [p for p in keypoints.TIPS if model.present[p]]
  points = (
    np.asarray(kinematics.keypoints(model, np.asarray(joints_FxJ, np.float64).astype(np.float32)))[:, tips] - model.T_base_wrist_4x4[:3, 3]
  )
  error = np.linalg.norm(points - (targets_Fx21x3[:, tips] - targets_Fx21x3[:, :1]), axis=-1).mean()
  outside = ((joints_FxJ < model.lower_J - 1e-4) | (joints_FxJ > model.upper_J + 1e-4)).sum()
  return 1e3 * error, np.abs(np.diff(joints_FxJ, n=3, axis=0)).mean() * 30**3, int(outside)


def targets(model, points_Fx21x3, scale=None):
  human = alignment.Human(points_Fx21x3, model, model.side, None, 0.5, scale)
  target_Px3xF, _, valid_F = human.read(0, len(human), len(human))
  assert valid_F.all(), "these recordings have no gaps"
  return target_Px3xF.transpose(2, 0, 1).astype(np.float64), human.scale


def main(hands_dir, human_dir, *only):
  own_scale, only = "--own-scale" in only, [word for word in only if word != "--own-scale"]
  people = sorted(p for p in pathlib.Path(human_dir).rglob("*") if p.suffix in (".npy", ".pkl"))
  print(
    "| hand | side | recording | scale | tips, ours | theirs | jerk, ours | theirs | outside, ours | theirs | frames/s, theirs | tips |"
  )
  print("|---|---|---|---|---|---|---|---|---|---|---|---|")
  for path in sorted(pathlib.Path(hands_dir).rglob("*.urdf")):
    if only and not any(word in str(path) for word in only):
      continue
    for side in retarget_all.sides(path):
      model = hand.load(str(path), side)
      for person in people:
        row(path, model, person, None if own_scale else next((s for name, s in SCALES.items() if name in path.stem), None))


def row(path, model, person, scale):
  points = retarget_all.trajectory(person) * ([-1, 1, 1] if model.side == "left" else [1, 1, 1])
  targets_Fx21x3, scale = targets(model, points, scale)
  ours = scores(model, retarget.follow(alignment.Targets(targets_Fx21x3, model, scale)).joints_FxJ, targets_Fx21x3)
  start = time.perf_counter()
  theirs = scores(model, peer(str(path), model, targets_Fx21x3), targets_Fx21x3)
  rate = len(points) / (time.perf_counter() - start)
  print(
    f"| {path.stem} | {model.side} | {person.stem} | {scale:.2f} | {ours[0]:.2f} | {theirs[0]:.2f} | {ours[1]:.1f} | {theirs[1]:.0f} "
    f"| {ours[2]} | {theirs[2]} | {rate:.0f} | {'no worse' if ours[0] <= theirs[0] else 'WORSE'} |",
    flush=True,
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
