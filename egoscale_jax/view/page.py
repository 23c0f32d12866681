"""A Timeline and its Scene into the viewer of rerun: what is logged, and how the page is laid out.

Why rerun and not viser, both tried in headless Chromium: its time line with play and scrub, curves, lanes of states and pictures with what
is in the world drawn over them are its own, where viser has a slider and a scene, and the rest would be ours. Its price: a wheel of 170 MB
(viser 4 MB), a canvas that a test can only look at, and usage statistics, which web.py keeps off. Its page works without internet.
"""

import numpy as np
import rerun as rr
from rerun import blueprint as rrb

from egoscale_jax.view import timeline as timeline_lib

TIME, FRAME = "time", "frame"
GROUND = (24, 24, 27)
PATHS_2D = ("world/human/**", "world/true/**", "world/predicted/**")  # over the pictures; the robot's hand would hide them


class Page:
  """stream: a rerun.RecordingStream, connected before or after; nothing else of the process's rerun is touched."""

  def __init__(self, stream, scene):
    self.stream, self.scene = stream, scene
    stream.set_log_time_enabled(False)
    stream.set_log_tick_enabled(False)

  def show(self, policy=""):
    """All but chunks, and the layout; policy: what is said of it in the legend."""
    line = timeline_lib.make(self.scene)
    self._log("about", rr.TextDocument(legend(self.scene, policy), media_type=rr.MediaType.MARKDOWN))
    self._log("world", _up(self.scene))
    self._cameras()
    for path, lane in line.lanes.items():
      self._log(path, rr.StateConfiguration(values=list(lane.colours), colors=list(lane.colours.values())))
    for path, curve in line.curves.items():
      self._log(path, rr.SeriesLines(colors=curve.colour, names=path.rsplit("/", 1)[1], widths=1.5))
    for path, lane in line.lanes.items():
      for frame, state in lane.rows:
        self._log(path, rr.StateChange(state=state or ""), frame)
    for path, curve in line.curves.items():
      for frame, value in curve.rows:
        self._log(path, rr.Scalars(value), frame)
    self.strips(line.strips)
    self.stream.send_blueprint(layout(self.scene, line))

  def strips(self, strips):
    for path, drawn in strips.items():
      for frame, lines in drawn.rows:
        self._log(path, rr.LineStrips3D(lines, colors=drawn.colour, radii=drawn.radius_m), frame)
        if drawn.dot_m:
          dots = np.concatenate([np.zeros((0, 3)), *lines])
          self._log(f"{path}/points", rr.Points3D(dots, colors=drawn.colour, radii=drawn.dot_m), frame)

  def _cameras(self):
    for camera in self.scene.cameras:
      path, (height, width) = camera_path(camera), camera.image_size
      if np.isfinite(camera.intrinsics_3x3).all():
        lens = rr.Pinhole(
          image_from_camera=camera.intrinsics_3x3,
          resolution=(width, height),
          camera_xyz=rr.ViewCoordinates.RDF,
          image_plane_distance=0.12,
          color=timeline_lib.CAMERA,
        )
        self._log(path, lens)
      for frame, pose in enumerate(camera.T_world_camera_Fx4x4):
        if np.isfinite(pose).all():
          self._log(path, rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]), frame)
      for number, jpeg in enumerate(camera.jpeg_N):
        if jpeg:
          self._log(path, rr.EncodedImage(contents=jpeg, media_type="image/jpeg"), number * self.scene.stride)

  def _log(self, path, what, frame=None):
    """frame None: at all times."""
    if frame is not None:
      self.stream.set_time(TIME, duration=frame / self.scene.rate_hz)
      self.stream.set_time(FRAME, sequence=frame)
    self.stream.log(path, what, static=frame is None, strict=True)


def layout(scene, line):
  """Left the cameras and the legend; right the world, the lanes and the curves; the player below."""
  views = [
    rrb.Spatial2DView(origin=camera_path(camera), name=camera.name, contents=["$origin/**", *(f"/{p}" for p in PATHS_2D)])
    for camera in scene.cameras
  ]
  look = timeline_lib.viewpoint(scene)
  eye = None if look is None else rrb.EyeControls3D(position=look[0], look_target=look[1], eye_up=timeline_lib.up(scene))
  world = rrb.Spatial3DView(origin="world", name="hands and camera", background=GROUND, eye_controls=eye)
  kinds = dict.fromkeys(path.rsplit("/", 1)[0] for path, curve in line.curves.items() if curve.rows)
  titles = {"quality/confidence": "confidence of the keypoints", "quality/residual_mm": "fingertips off the human's, mm"}
  spans = {"quality/confidence": rrb.ScalarAxis(range=(-0.02, 1.05))}
  curves = [rrb.TimeSeriesView(origin=kind, name=titles[kind], axis_y=spans.get(kind)) for kind in kinds]
  rows = [(world, 6)]
  if line.lanes:
    lanes = rrb.StateTimelineView(origin="/", contents=["labels/**", "findings/**"], name="labels and what the doctor found")
    rows.append((lanes, 0.9 + 0.42 * len(line.lanes)))
  if curves:
    rows.append((rrb.Horizontal(*curves), 1.7))
  right = rrb.Vertical(*(view for view, _ in rows), row_shares=[share for _, share in rows])
  cameras = views[0] if len(views) == 1 else rrb.Grid(*views)
  left = rrb.Vertical(cameras, rrb.TextDocumentView(origin="about", name="what is shown"), row_shares=[3, 2])
  return rrb.Blueprint(
    rrb.Horizontal(left, right, column_shares=[2, 3]),
    rrb.BlueprintPanel(state="hidden"),
    rrb.SelectionPanel(state="hidden"),
    rrb.TimePanel(state="collapsed", timeline=TIME, play_state="paused"),
  )


def camera_path(camera) -> str:
  """A recording's own name of a camera may hold any letters."""
  return f"world/camera/{rr.escape_entity_path_part(camera.name)}"


def legend(scene, policy) -> str:
  """Markdown."""
  seconds = scene.num_frames / scene.rate_hz
  rows = [
    f"### {scene.text or '(no instruction)'}",
    f"`{scene.name}`, {scene.embodiment}, {scene.num_frames} frames, {seconds:.1f} s",
    "",
    "- **blue** left, **orange** right: the hands as recorded (a robot's: axes at its wrists), and the paths that they took next",
  ]
  if scene.hand:
    rows.append(f"- **pale, thick**: the robot hand `{scene.hand}`{' with the joints of the labels' if scene.labelled else ''}")
  if policy:
    rows.append(f"- **magenta** left, **lime** right: what {policy} said at this frame: their paths, and the hands at the end of the chunk")
  if scene.labelled:
    rows.append("- lanes: frames with a **label**, and the doctor's findings: `rejected`, `masked`, `warning`")
  return "\n".join(rows)


def _up(scene):
  """The world's axes do not say where up is (data/schema.py): the camera does."""
  axis = timeline_lib.up(scene)
  which = int(np.abs(axis).argmax())
  return getattr(rr.ViewCoordinates, f"RIGHT_HAND_{'XYZ'[which]}_{'UP' if axis[which] > 0 else 'DOWN'}")
