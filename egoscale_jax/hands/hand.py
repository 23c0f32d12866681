"""A robot hand as frozen arrays: a tree of hinges, the actuated values that move it, and the 21 keypoints on it.

All arrays are taken with every joint of the tree at 0, in the hand's base frame, so no frame in the tree is turned there and forward
kinematics needs an axis and a point for each joint, nothing else. Axis letters: N joints of the tree, J actuated values, P = 21 keypoints.
A joint that follows another (mimic, equality) or shares a tendon is in N, not in J: joint n is ratio_N[n] * value[source[n]] + offset_N[n].
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import numpy as np

from egoscale_jax.errors import UserError
from egoscale_jax.hands import couplings, description, keypoints
from egoscale_jax.hands import fingers as finding

_MODELS = pathlib.Path(__file__).parent / "models"
BUILT_IN = ("sharpa_wave", "dex3", "shadow", "allegro", "inspire")


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "axis_Nx3",
    "anchor_Nx3",
    "ratio_N",
    "offset_N",
    "lower_J",
    "upper_J",
    "velocity_J",
    "keypoint_Px3",
    "keypoint_rotation_Px3x3",
    "T_base_wrist_4x4",
  ],
  meta_fields=["parents", "source", "keypoint_parents", "present"],
  drop_fields=[
    "name",
    "side",
    "joint_names",
    "tree_joint_names",
    "how",
  ],  # a left and a right hand with one tree share one compiled function
)
@dataclasses.dataclass(frozen=True, eq=False)
class Hand:
  """Joints are sorted from the root out: a parent comes before its children. Figures are float32, metres and radians."""

  axis_Nx3: np.ndarray  # unit hinge axis, base frame
  anchor_Nx3: np.ndarray  # a point on that axis: where the joint's frame sits
  ratio_N: np.ndarray
  offset_N: np.ndarray
  lower_J: np.ndarray  # within these every joint of the tree stays in its own range
  upper_J: np.ndarray
  velocity_J: np.ndarray  # rad/s; inf where the description states none
  keypoint_Px3: np.ndarray  # zero where absent
  keypoint_rotation_Px3x3: np.ndarray  # of the site or link that the keypoint is; one where absent
  T_base_wrist_4x4: np.ndarray  # keypoints.wrist_frame with every joint at 0: a constant of the hand
  parents: tuple[int, ...]  # N: parent joint, -1 for the base
  source: tuple[int, ...]  # N: the actuated value that moves the joint
  keypoint_parents: tuple[int, ...]  # P: the joint that each keypoint moves with, -1 for the base and where absent
  present: tuple[bool, ...]  # P: a hand may have fewer fingers or joints than a human's
  name: str = ""
  side: str = ""
  joint_names: tuple[str, ...] = ()  # J: of the joint, or of the tendon that moves several
  tree_joint_names: tuple[str, ...] = ()  # N
  how: dict = dataclasses.field(default_factory=dict)  # of a hand whose file names no keypoints: finger or wrist -> how it was found

  def __eq__(self, other):
    return isinstance(other, Hand) and self._figures == other._figures

  def __hash__(self):
    return hash(self._figures)

  @property
  def _figures(self):
    """Loaded twice, a hand is the same static argument of a jitted function."""
    arrays = [np.asarray(getattr(self, field.name)).tobytes() for field in dataclasses.fields(self)[:10]]
    return (*arrays, self.parents, self.source, self.keypoint_parents, self.present, self.name, self.side)

  @property
  def num_joints(self) -> int:
    """J, the actuated ones."""
    return max(self.source) + 1

  @property
  def knuckles(self) -> tuple[int, ...]:
    """Which of keypoints.FINGERS have a knuckle: `keypoints.wrist_frame` measures a human's palm with the same ones."""
    return tuple(finger for finger, p in enumerate(keypoints.KNUCKLES, 1) if self.present[p])


def load(name_or_path, side, fingers=None) -> Hand:
  """A built-in hand by name, or any URDF or MJCF file, "LEFT,RIGHT" where each side has its own; side as in SIDES.

  Sites or links with the names of `keypoints.NAMES` are the keypoints. In a file without them, or with fingers ("thumb:LINK,index:LINK,…",
  LINK the link or site of a tip), they are found from the geometry, and what was found is printed. A file may come with its fingers,
  "FILE#thumb:LINK+index:LINK+…": so they stay with its name wherever it is written, in shards and in runs.
  """
  if side not in keypoints.SIDES:
    raise UserError(f"side {side!r}: expected one of {', '.join(keypoints.SIDES)}")
  path, told = told_of(name_or_path, side)
  fingers = told if fingers is None else fingers
  if path.suffix not in (".urdf", ".xml"):
    raise UserError(f"hand {str(name_or_path)!r}: neither a .urdf or .xml file nor one of the built-in hands: {', '.join(BUILT_IN)}")
  if not path.is_file():
    raise UserError(f"hand {str(path)!r}: no such file")
  tree = description.read(path)
  coupled = couplings.read(tree.model, tree.velocity_N, path)
  frames, how = {name: frame for name in keypoints.NAMES if (frame := tree.frame(name)) is not None}, {}
  if fingers is None and _names_keypoints(frames):
    _check_names(frames, path)
  else:
    frames, how = finding.find(tree, side, None if fingers is None else finding.parse(fingers))
  name = str(name_or_path) if str(name_or_path) in BUILT_IN else path.stem
  hand = _assemble(tree, coupled, frames, name=name, side=side, how=how)
  if how:
    print(describe(hand), file=sys.stderr)
  return hand


def files(name_or_path, side) -> tuple[pathlib.Path, ...]:
  """The description that `load` reads; none where there is no such file here (labels may have been made on another machine)."""
  path, _ = told_of(name_or_path, side)
  return (path,) if path.is_file() else ()


def kept(name_or_path, folder) -> str:
  """What `load` takes where a folder holds copies of the files, each under its own name; a built-in hand stays as it is."""
  name = str(name_or_path)
  if name in BUILT_IN:
    return name
  parts = [part.partition("#") for part in name.split(",")]
  return ",".join(f"{pathlib.Path(folder) / pathlib.Path(file).name}{mark}{fingers}" for file, mark, fingers in parts)


def told_of(name_or_path, side) -> tuple[pathlib.Path, str | None]:
  """-> the file of a side, whether it is there or not, and the fingers that came with it as `load` takes them."""
  name = str(name_or_path)
  if name in BUILT_IN:
    return _MODELS / f"{name}_{side}.xml", None
  both = [part.partition("#") for part in name.split(",")]
  files = [pathlib.Path(file) for file, _, _ in both]
  if len(both) > 2 or (len(both) == 2 and files[0].name == files[1].name):
    found = f"{len(both)} files" if len(both) > 2 else f"two of the name {files[0].name}"
    raise UserError(f"hand {name!r}: found {found}, expected one, or LEFT,RIGHT of different names: a run keeps copies side by side")
  own = keypoints.SIDES.index(side) if len(both) == 2 else 0
  return files[own], both[own][2].replace("+", ",") or None


def describe(hand) -> str:
  """A few lines: each finger with the joint at each of its keypoints, and how it was found where the file does not say."""
  lines = [f"{hand.name}: a {hand.side} hand, {hand.num_joints} actuated values move {len(hand.parents)} joints"]
  if hand.how:
    lines += [
      f"  its keypoints, found from its geometry; {finding.NAMING} names the tips otherwise",
      f"  wrist: {hand.how['wrist']}",
    ]
  for i, finger in enumerate(keypoints.FINGERS):
    points = [p for p in range(1 + 4 * i, 5 + 4 * i) if hand.present[p]]
    if points:
      joints = [f"{keypoints.NAMES[p].split('_')[1]} {hand.tree_joint_names[hand.keypoint_parents[p]]}" for p in points[:-1]]
      lines.append(f"  {finger}: {', '.join([*joints, 'tip'])} {hand.how.get(finger, '')}".rstrip())
  return "\n".join(lines)


def _names_keypoints(frames):
  """Does the file speak our names? A link called wrist alone, or tips alone, are found in many a maker's file."""
  knuckles = [name for name in frames if name.endswith("_mcp")]
  return len(knuckles) >= 2 or ("wrist" in frames and len(knuckles) >= 1)


def _check_names(frames, path):
  """Missing fingers are a choice of the maker's; a missing wrist, tip or thumb is a mistake."""
  started = [finger for finger in keypoints.FINGERS if any(name.startswith(f"{finger}_") for name in frames)]
  missing = [name for name in ("wrist", "thumb_tip", *(f"{finger}_tip" for finger in started if finger != "thumb")) if name not in frames]
  if missing:
    raise UserError(f"{path}: no site or link named {', '.join(missing)}; a hand names its wrist and the tip of every finger that it names")
  whole = [finger for finger in started if finger != "thumb" and f"{finger}_mcp" in frames]
  if len(whole) < 2:
    raise UserError(f"{path}: found mcp and tip of {', '.join(whole) or 'no finger'}; a hand names those of two fingers beside the thumb")


def _assemble(tree, coupled, frames, name, side, how):
  parts = [frames.get(name) for name in keypoints.NAMES]
  points_Px3 = np.stack([np.zeros(3) if frame is None else frame.position_3 for frame in parts])
  present = tuple(frame is not None for frame in parts)
  knuckles = tuple(finger for finger, p in enumerate(keypoints.KNUCKLES, 1) if present[p])
  wrist = keypoints.wrist_frame(points_Px3, side, knuckles)
  if not np.isfinite(wrist).all():
    raise UserError(f"{tree.path}: the wrist and the knuckles span no palm at the zero pose")
  single = np.float32
  return Hand(
    axis_Nx3=tree.data.xaxis.astype(single),
    anchor_Nx3=tree.data.xanchor.astype(single),
    ratio_N=coupled.ratio_N.astype(single),
    offset_N=coupled.offset_N.astype(single),
    lower_J=_inward(coupled.lower_J, 1),
    upper_J=_inward(coupled.upper_J, -1),
    velocity_J=coupled.velocity_J.astype(single),
    keypoint_Px3=points_Px3.astype(single),
    keypoint_rotation_Px3x3=np.stack([np.eye(3) if frame is None else frame.rotation_3x3 for frame in parts]).astype(single),
    T_base_wrist_4x4=wrist.astype(single),
    parents=tree.parents,
    source=coupled.source,
    keypoint_parents=tuple(-1 if frame is None else frame.joint for frame in parts),
    present=present,
    name=name,
    side=side,
    joint_names=coupled.names,
    tree_joint_names=tuple(tree.model.joint(j).name for j in range(tree.model.njnt)),
    how=how,
  )


def _inward(bound_J, sign):
  """As float32, rounded to the inside of the range: no value within it is ever outside the description's own figures."""
  rounded_J = bound_J.astype(np.float32)
  outside_J = sign * (bound_J - rounded_J) > 0
  return np.where(outside_J, np.nextafter(rounded_J, np.float32(sign * np.inf)), rounded_J)
