"""Finds the keypoints of a hand whose file names none, from its tree and its geometry at the zero pose.

The palm is where the tree of joints branches, and every branch is a finger. The thumb is the one without which the others are most alike;
the others follow from its side of the hand, or from the names that a user gives.
"""

import dataclasses
import difflib
import itertools

import numpy as np

from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints, tips
from egoscale_jax.hands.description import Frame

NAMING = "--hand=FILE#thumb:LINK+index:LINK+…"  # how a user names the tips, where a hand is asked for
_SAME_PLACE_M = 0.012  # joints closer than this are one keypoint: an abduction and a flexion joint of one knuckle
_BENDS = 0.5  # cosine: a joint bends the finger if its axis is within 60 degrees of the last joint's
_PARALLEL = 0.95  # cosine
_ALIKE = 0.1  # by how much the thumb must stand out, in the unit of `_disagreement`
_COMMON = 0.1  # of fingers that all point and close one way this is 1
_WRONG_SIDE = 0.25  # of the width of the knuckles: a thumb this far to the little finger's side is a thumb of the other hand
_WRIST_AHEAD = (0.4, 1.6)  # knuckles ahead of a plausible wrist, in finger lengths
_WRIST_ALIGNED = 0.94  # cosine: and within 20 degrees of straight ahead
_PALM = 0.95  # a human's wrist to knuckles, in finger lengths


@dataclasses.dataclass(frozen=True)
class _Chain:
  joints: list[int]  # from the palm out
  places: list[int]  # those of them that stand for a finger's keypoints
  axis_3: np.ndarray  # of the last joint, unit, so turned that it bends the finger
  straight_3: np.ndarray  # unit, from the first place to the tip
  tip: Frame
  how: str

  def at(self, tree, joint) -> Frame:
    """A hinge's place is any point of its axis: of one parallel to the last, that beside the tip."""
    frame, axis_3 = tree.of_joint(joint), tree.data.xaxis[joint]
    if abs(axis_3 @ self.axis_3) < _PARALLEL:
      return frame
    return dataclasses.replace(frame, position_3=frame.position_3 + axis_3 * (axis_3 @ (self.tip.position_3 - frame.position_3)))

  def points(self, tree):
    """The places and the tip [2 to 4, 3]."""
    return np.stack([self.at(tree, joint).position_3 for joint in self.places] + [self.tip.position_3])


def parse(text) -> dict[str, str]:
  """`thumb:LINK,index:LINK,…` -> {finger: link or site of its tip}; such a dict is only checked."""
  pairs = list(text.items()) if isinstance(text, dict) else [part.strip().split(":", 1) for part in text.split(",")]
  for pair in pairs:
    if len(pair) != 2 or pair[0] not in keypoints.FINGERS or not pair[1]:
      raise UserError(f"fingers: {':'.join(pair)!r}: expected FINGER:LINK, a finger being one of {', '.join(keypoints.FINGERS)}")
  names = {finger: link for wanted in keypoints.FINGERS for finger, link in pairs if finger == wanted}
  if len(names) < len(pairs) or len(set(names.values())) < len(pairs):
    raise UserError("fingers: a finger or a link is named twice")
  if "thumb" not in names or len(names) < 3:
    raise UserError(f"fingers: found {', '.join(names)}; expected thumb and two or more others of {', '.join(keypoints.FINGERS)}")
  return names


def find(tree, side, wanted=None):
  """wanted: as `parse` returns it -> ({keypoint name: Frame}, {finger or "wrist": in words how it was found})."""
  named = {finger: _named_tip(tree, link) for finger, link in (wanted or {}).items()}
  ends = [frame.joint for frame in named.values()] or sorted(set(range(tree.model.njnt)) - set(tree.parents))
  if not 3 <= len(ends) <= 5:
    raise UserError(f"{tree.path}: found {len(ends)} chains of joints, expected a thumb and 2 to 4 fingers; name their tips, {NAMING}")
  palm, paths = _branch(tree, ends)
  chains = [_chain(tree, palm, *pair) for pair in itertools.zip_longest(paths, (wanted or {}).values())]
  fingers = dict(zip(named, chains)) if named else _tell_apart(tree, chains, side)
  _check_side(tree, fingers, side)
  frames, how = {}, {finger: chain.how for finger, chain in fingers.items()}
  for finger, chain in fingers.items():
    places = _thumb_places(tree, chain.joints) if finger == "thumb" else chain.places
    names = keypoints.NAMES[1 + 4 * keypoints.FINGERS.index(finger) :][:4]
    frames |= {name: chain.at(tree, joint) for name, joint in zip(names, places)} | {names[3]: chain.tip}
  frames["wrist"], how["wrist"] = _wrist(tree, palm, [chain for finger, chain in fingers.items() if finger != "thumb"])
  return frames, how


def _named_tip(tree, link):
  frame = tree.frame(link)
  if frame is None:
    names = [tree.model.site(s).name for s in range(tree.model.nsite)] + [tree.model.body(b).name for b in range(1, tree.model.nbody)]
    near = difflib.get_close_matches(link, names, n=3, cutoff=0.3) or names[-3:]
    raise UserError(f"fingers: unknown frame {link!r}: expected a link or site of {tree.path}, such as {', '.join(near)}")
  if frame.joint < 0:
    raise UserError(f"fingers: {link!r} of {tree.path} moves with no joint")
  return frame


def _branch(tree, ends):
  """End joints -> (the palm's body, each chain's joints from the palm out)."""
  paths = [_to_root(end, lambda joint: tree.parents[joint], -1) for end in ends]
  shared = _shared(paths)
  if any(a[-1] in b for a, b in itertools.permutations(paths, 2)):
    raise UserError(f"{tree.path}: two fingers end on one chain of joints")
  bodies = [_to_root(tree.model.jnt_bodyid[path[shared]], lambda body: tree.model.body_parentid[body], 0)[:-1] for path in paths]
  palm = ([0] + bodies[0])[_shared(bodies)]
  return int(palm), [path[shared:] for path in paths]


def _to_root(start, parent, root):
  """[first below the root, …, start]."""
  line = [int(start)]
  while (above := int(parent(line[0]))) != root:
    line.insert(0, above)
  return line


def _shared(lines):
  """The number of leading elements that all lines have in common."""
  return sum(1 for _ in itertools.takewhile(lambda elements: len(set(elements)) == 1, zip(*lines)))


def _chain(tree, palm, joints, link=None):
  places, last = _finger_places(tree, joints), joints[-1]
  anchors = [tree.data.xanchor[joint] for joint in reversed(joints)] + [tree.data.xpos[palm]]
  before_3 = next((a for a in anchors if np.linalg.norm(a - anchors[0]) > tips.NEAR_M), anchors[0] - tree.data.xaxis[last] * tips.NEAR_M)
  tip, how = (tree.frame(link), f"{link}, as asked") if link else (None, "")
  if tip is None or np.linalg.norm(tip.position_3 - anchors[0]) < tips.NEAR_M:  # a link named by its joint, not by its end
    tip, how = tips.find(tree, last, before_3)
  straight_3 = tips.in_plane(tree, last, tip.position_3 - tree.data.xanchor[places[0]])
  flexes = np.sign(tree.model.jnt_range[last].sum()) or 1.0  # the side that a finger bends to has more of the range
  return _Chain(joints, places, flexes * tree.data.xaxis[last], straight_3 / np.linalg.norm(straight_3), tip, how)


def _finger_places(tree, joints):
  """Up to three joints for MCP, PIP, DIP: those that bend the finger as its last one does, one for each place, the outermost three."""
  axes = tree.data.xaxis
  return _merged(tree, [joint for joint in joints if abs(axes[joint] @ axes[joints[-1]]) > _BENDS])[-3:]


def _thumb_places(tree, joints):
  """Up to three joints for CMC, MCP, IP: one for each place; of more than three the closest two count as one."""
  places = _merged(tree, joints)
  while len(places) > 3:
    gaps = [np.linalg.norm(tree.data.xanchor[a] - tree.data.xanchor[b]) for a, b in itertools.pairwise(places)]
    places.pop(int(np.argmin(gaps)))
  return places


def _merged(tree, joints):
  """Of joints in nearly the same place only the outermost."""
  anchor = tree.data.xanchor
  return [a for a, b in itertools.pairwise([*joints, None]) if b is None or np.linalg.norm(anchor[a] - anchor[b]) > _SAME_PLACE_M]


def _tell_apart(tree, chains, side):
  """{finger: chain}: the thumb by how it stands, then from its side on index, middle, ring, little as far as there are chains."""
  scores = [_disagreement(tree, [other for other in chains if other is not chain]) for chain in chains]
  best, second = np.argsort(scores)[:2]
  if scores[second] - scores[best] < _ALIKE:
    raise UserError(f"{tree.path}: no finger stands out as the thumb; name the tips, {NAMING}")
  others = [chain for i, chain in enumerate(chains) if i != best]
  across_3 = _to_thumb(tree, others, side)
  others.sort(key=lambda chain: -(chain.points(tree)[0] @ across_3))
  return dict(zip(keypoints.FINGERS, [chains[best], *others]))


def _disagreement(tree, chains):
  """How unlike each other fingers are: 0 where all point one way, bend one way and start on one line."""
  pairs = list(itertools.combinations(chains, 2))
  turned = np.mean([2.0 - a.straight_3 @ b.straight_3 - a.axis_3 @ b.axis_3 for a, b in pairs])
  bases = np.stack([chain.points(tree)[0] for chain in chains])
  spread = np.linalg.svd(bases - bases.mean(0), compute_uv=False)
  return turned + spread[1] / max(spread[0], tips.NEAR_M)


def _to_thumb(tree, others, side):
  """Unit vector across the palm to the thumb's side: from where the fingers point and which way they close."""
  forward_3 = np.mean([chain.straight_3 for chain in others], axis=0)
  closing_3 = np.mean([np.cross(chain.axis_3, chain.straight_3) for chain in others], axis=0)
  across_3 = np.cross(forward_3, closing_3) * {"left": -1.0, "right": 1.0}[side]
  if np.linalg.norm(across_3) < _COMMON:
    raise UserError(f"{tree.path}: the fingers close in no common direction; name the tips, {NAMING}")
  return across_3 / np.linalg.norm(across_3)


def _check_side(tree, fingers, side):
  """The joints' names, the thumb, and the order of fingers that were named by hand, against the side."""
  other = keypoints.SIDES[1 - keypoints.SIDES.index(side)]
  if all(other in tree.model.joint(j).name.lower() for j in range(tree.model.njnt)):
    raise UserError(f"{tree.path}: the side {side!r} contradicts the names of its joints, which are all {other}; {_remedy(other)}")
  others = [chain for finger, chain in fingers.items() if finger != "thumb"]
  across_3 = _to_thumb(tree, others, side)
  bases = np.array([chain.points(tree)[0] @ across_3 for chain in others])
  thumb = np.mean(fingers["thumb"].points(tree) @ across_3) - bases.mean()
  if thumb < -_WRONG_SIDE * np.ptp(bases) or bases[0] < bases[-1]:
    found = f"the side {side!r} contradicts the geometry, whose thumb and fingers are those of the other hand"
    raise UserError(f"{tree.path}: {found}; {_remedy(other)}")


def _remedy(other):
  return f"take --side={other}; where both hands are asked for, give the file of each: --hand=LEFT,RIGHT"


def _wrist(tree, palm, others):
  """(Frame, how): the link named wrist, the palm's own origin, that of a link it is fixed to, or where a human's wrist would be."""
  knuckles_3 = np.mean([chain.points(tree)[0] for chain in others], axis=0)
  length = np.mean([np.linalg.norm(np.diff(chain.points(tree), axis=0), axis=-1).sum() for chain in others])
  forward_3 = np.mean([chain.straight_3 for chain in others], axis=0)
  forward_3 = forward_3 / np.linalg.norm(forward_3)
  bodies = [palm, *reversed(_to_root(palm, lambda body: tree.model.body_parentid[body], 0)[:-1])] if palm else []
  named = [(tree.frame("wrist"), "the frame of that name")]
  for frame, how in named + [(tree.of_body(body), f"the origin of {tree.model.body(body).name}") for body in bodies]:
    if frame is not None and frame.joint == tree.last_joint[palm]:
      arm_3 = (knuckles_3 - frame.position_3) / length
      ahead = arm_3 @ forward_3
      if _WRIST_AHEAD[0] <= ahead <= _WRIST_AHEAD[1] and ahead > _WRIST_ALIGNED * np.linalg.norm(arm_3):
        return frame, how
  virtual_3 = knuckles_3 - _PALM * length * forward_3
  guess = f"guessed: {_PALM} of a finger's length behind the knuckles, as a human's"
  return dataclasses.replace(tree.of_body(palm), position_3=virtual_3), guess
