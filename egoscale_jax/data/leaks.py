"""What only shows across episodes: the same recording under two names, and a scene or a person on both sides of the split.

`entries` are episodes of a manifest (manifest.py): dicts with id, frames, split, scene, person and, where there is one, fingerprint.
"""

import collections
import itertools

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import check_motion, check_pictures, findings, schema
from egoscale_jax.hands import keypoints

PICTURES, TIMES = 4, 8  # spread over the episode: pictures that are hashed, and times at which the wrists' places are kept
MAX_BITS = 12  # of the 256 of four pictures: encoding once more changes 5, another moment of the same scene some tens
MAX_METRES = 0.01  # between the wrists at all times: nobody repeats a movement so exactly
_BANDS = 16  # of 16 bits: with MAX_BITS < 16 one at least is equal, so only episodes that share one are compared
_COMMON = 50  # episodes that share a band: beyond it, it is of a picture that tells nothing


def fingerprint(episode) -> dict:
  """{"pictures": 64 hex digits, "path": TIMES x 6 metres}: nearly the same for the same recording, however it was encoded."""
  at = np.linspace(0, episode.num_frames - 1, PICTURES).round().astype(int)
  grey_FxYxX = check_pictures.decode([episode.jpeg_F[i] for i in at], episode.image_size).grey_FxYxX
  rows = [np.linspace(0, size, count + 1).astype(int)[:-1] for size, count in zip(grey_FxYxX.shape[1:], (8, 9))]
  small = np.add.reduceat(np.add.reduceat(grey_FxYxX, rows[0], axis=1), rows[1], axis=2)
  bits = np.packbits((np.diff(small, axis=2) > 0).reshape(-1))  # is a patch brighter than its left neighbour
  return {"pictures": bits.tobytes().hex(), "path": _path(episode)}


def _path(episode):
  """Places of both wrists, a human's seen from the camera, a robot's from its base; 0 where unknown."""
  at = np.linspace(0, episode.num_frames - 1, TIMES).round().astype(int)
  if episode.embodiment == schema.HUMAN:
    T_camera_world = geometry.se3_inverse(check_motion.sane(episode.T_world_camera_Fx4x4[at]))
    places_Tx2x3 = geometry.transform(T_camera_world, check_motion.sane(episode.keypoints_Fx2xPx3[at][:, :, keypoints.WRIST]))
  elif episode.has_wrist_Fx2.any():
    places_Tx2x3 = episode.T_world_wrist_Fx2x4x4[at][:, :, :3, 3]
  else:  # a robot of joints alone
    places_Tx2x3 = np.pad(episode.joints_Fx2xJ[at][:, :, :3], ((0, 0), (0, 0), (0, max(0, 3 - episode.joints_Fx2xJ.shape[2]))))
  known = np.nan_to_num(check_motion.sane(places_Tx2x3))
  return [round(float(x), 4) for x in known.reshape(-1)]


def copies(entries) -> list[tuple[str, findings.Finding]]:
  """-> (id, finding): of two episodes with nearly the same pictures and paths the second is told, and which is the first."""
  told, found = [e for e in entries if e.get("fingerprint")], {}
  for i, j in sorted(_candidates(told)):
    a, b = told[i]["fingerprint"], told[j]["fingerprint"]
    bits = (int(a["pictures"], 16) ^ int(b["pictures"], 16)).bit_count()
    metres = np.abs(np.subtract(a["path"], b["path"])).max()
    if bits <= MAX_BITS and metres <= MAX_METRES and told[j]["id"] not in found:
      splits = {told[i].get("split"), told[j].get("split")}
      name = "leak_copy" if len(splits - {None}) == 2 else "copy"
      detail = f"the same as {told[i]['id']}: {bits} of 256 bits of its pictures and {metres * 1000:.1f} mm of its path off"
      detail += f", expected more than {MAX_BITS} or {MAX_METRES * 1000:g} mm"
      found[told[j]["id"]] = findings.whole(name, findings.WARNING, "", told[j]["frames"], detail)
  return list(found.items())


def _candidates(entries):
  """Pairs of indices that share a band of bits, and no more than _COMMON do."""
  bands = collections.defaultdict(list)
  for i, entry in enumerate(entries):
    bits = entry["fingerprint"]["pictures"]
    for band in range(_BANDS):
      bands[band, bits[4 * band : 4 * band + 4]].append(i)
  return {pair for group in bands.values() if len(group) <= _COMMON for pair in itertools.combinations(group, 2)}


def leaks(entries) -> list[tuple[str, findings.Finding]]:
  """-> (id of a validation episode, finding): a scene or person of it is trained on too, or the very recording is. "" is unknown."""
  held_out = [e for e in entries if e.get("split") == "validation"]
  train = [e for e in entries if e.get("split") == "train"]
  found = [(name, finding) for name, finding in copies(entries) if finding.name == "leak_copy"]
  for key in ("scene", "person"):
    first = {}
    for e in train:
      first.setdefault(e.get(key), e["id"])
    for e in held_out:
      if e.get(key) and e[key] in first:
        detail = f"its {key} {e[key]} is trained on too, in {first[e[key]]}: expected none of it in the train split"
        found.append((e["id"], findings.whole(f"leak_{key}", findings.WARNING, "", e["frames"], detail)))
  return found
