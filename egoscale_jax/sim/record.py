"""Write simulated episodes as EgoDex recordings: `<directory>/<task>/<n>.hdf5` beside `<n>.mp4`.

They go the road that real recordings go. As on a real disk: the world is Y-up, in metres; the camera is camera-to-world with x right,
y down, z forward; every transform is local-to-world; a hand's axes are EgoDex's (left +X fingers, +Y palm, +Z little finger; right all
three reversed). Unlike on a real disk: the body's 18 joints other than the hands are not simulated and are absent, labels carry no noise,
confidences are 1, and the attributes `simulated` and `generator` tell where the episode comes from.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib

import av
import h5py
import numpy as np

import egoscale_jax
from egoscale_jax import progress
from egoscale_jax.errors import UserError
from egoscale_jax.hands.keypoints import SIDES
from egoscale_jax.sim import human, motion, render, scene, script, tasks

FOV_DEGREES = 60.0
_KEYFRAMES = 12  # frames from one to the next, as EgoDex has them
# The simulator's world (z up, origin on the table) seen from the disk's (y up, origin on the floor below it).
T_DISK_SIM = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0.75], [0, -1, 0, 0], [0, 0, 0, 1]])


def take(seed, index):
  """Episode `index` of a recording: the tasks in turn; depends on nothing but (seed, index)."""
  names = tuple(tasks.TASKS)
  return script.script(names[index % len(names)], np.random.default_rng([seed, index]))


def film(shot, image_size):
  """A Take -> (pictures [F, Y, X, 3] uint8, T_world_body [F, 2, 25, 4, 4] of human.BODIES in the simulator's world and axes)."""
  stage = scene.Stage(shot.scene)
  renderer = render.Renderer(stage, render.intrinsics(image_size, FOV_DEGREES), image_size)
  pictures, bodies = [], []
  frames = zip(shot.T_world_wrist_Fx2x4x4, shot.joints_Fx2x20, shot.T_world_thing_FxNx4x4, shot.T_world_camera_Fx4x4)
  for wrists, joints, things, camera in frames:
    stage.pose(wrists, joints, things)
    bodies.append(stage.hand_poses())
    pictures.append(renderer.frame(camera))
  return np.stack(pictures), np.stack(bodies)


def transforms(T_world_camera_Fx4x4, T_world_body_Fx2x25x4x4):
  """-> {EgoDex's name: T_world_local [F, 4, 4] float32}, the world and the axes as on disk."""
  result = {"camera": T_DISK_SIM @ T_world_camera_Fx4x4}
  for i, side in enumerate(SIDES):
    axes = np.eye(4)
    axes[:3, :3] = human.EGODEX_AXES[side]
    poses = T_DISK_SIM @ T_world_body_Fx2x25x4x4[:, i] @ axes
    result |= {side + name: poses[:, j] for j, name in enumerate(human.BODIES)}
  return {name: pose.astype(np.float32) for name, pose in result.items()}


def attributes(shot, session):
  """EgoDex 0.3's attributes of an episode, and two of our own."""
  return {
    "annotated": True,
    "annotator_version": 0.3,
    "task": shot.task,
    "type": "reset",
    "description": shot.text,
    "llm_type": "reset",
    "llm_description": shot.text,
    "llm_description2": "None",
    "llm_verbs": np.array(shot.verbs, dtype=object),
    "llm_objects": np.array(shot.objects, dtype=object),
    "environment": f"table:wood, position:sitting, hand:{shot.side}",
    "object": ", ".join(f"object:{name}" for name in shot.objects),
    "extra": "None",
    "session_name": session,
    "simulated": True,
    "generator": f"egoscale_jax {egoscale_jax.__version__}",
  }


def write_mp4(path, pictures, rate_hz=motion.RATE_HZ):
  with av.open(str(path), "w", format="mp4") as container:
    # The same pictures must give the same bytes. libx264's vector code reads memory that nobody set and, seldom, decides by it (3 of 18
    # encodings of one clip differed under load, single-threaded too); its plain C code does not, and `superfast` makes that cheap.
    options = {"crf": "16", "preset": "superfast", "threads": "1", "bf": "0", "x264-params": "asm=0:weightp=0"}
    stream = container.add_stream("libx264", rate=rate_hz, options=options)
    stream.height, stream.width = pictures.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.gop_size = _KEYFRAMES
    for picture in pictures:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())


def write_hdf5(path, intrinsics_3x3, poses, attrs, confidences=None):
  """poses: {name: [F, 4, 4]}; confidences: {name: [F]}, 1 where a name is absent."""
  with h5py.File(path, "w") as file:
    file.create_dataset("camera/intrinsic", data=intrinsics_3x3)
    for name, pose in poses.items():
      file.create_dataset(f"transforms/{name}", data=pose)
      if name != "camera":
        file.create_dataset(f"confidences/{name}", data=(confidences or {}).get(name, np.ones(len(pose), np.float32)))
    for name, value in attrs.items():
      file.attrs[name] = value


def write_episode(directory, seed, index, image_size):
  """Make episode `index` and write its two files, the video first: where an HDF5 is, the episode is whole."""
  shot = take(seed, index)
  pictures, bodies = film(shot, image_size)
  stem = pathlib.Path(directory) / shot.task / str(index // len(tasks.TASKS))
  stem.parent.mkdir(exist_ok=True)
  writers = {
    ".mp4": lambda path: write_mp4(path, pictures),
    ".hdf5": lambda path: write_hdf5(
      path,
      render.intrinsics(image_size, FOV_DEGREES),
      transforms(shot.T_world_camera_Fx4x4, bodies),
      attributes(shot, f"sim_{seed}_{index:06d}"),
    ),
  }
  for suffix, write in writers.items():
    temporary = stem.with_suffix(suffix + ".partial")
    try:
      write(temporary)
      os.replace(temporary, stem.with_suffix(suffix))
    finally:
      temporary.unlink(missing_ok=True)


def _check(directory, episodes, seed, workers, image_size):
  """Everything that can be wrong with the request, before any work is done."""
  if episodes < 1 or workers < 1 or seed < 0:
    raise UserError(f"episodes={episodes}, workers={workers}, seed={seed}: expected at least 1, at least 1 and at least 0")
  if min(image_size) < 32 or any(side % 2 for side in image_size):
    raise UserError(f"image_size={tuple(image_size)}: expected (height, width), even and at least 32")
  try:
    av.codec.Codec("libx264", "w")
  except ValueError as error:  # av.codec.codec.UnknownCodecError
    raise UserError("PyAV has no libx264 encoder: install the av wheel of PyPI") from error
  try:
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
      raise UserError(f"{directory}: not empty; expected a new or an empty directory")
  except OSError as error:
    raise UserError(f"{directory}: {error.strerror}; expected a new or an empty directory") from error
  if not os.access(directory, os.W_OK | os.X_OK):
    raise UserError(f"{directory}: not writable")


def record(directory, episodes, seed, workers, image_size=(96, 96)):
  """Write `episodes` episodes of simulated human video in EgoDex's format; image_size is (height, width).

  The tasks take turns. Episode i depends only on (seed, i), so the files are the same for any number of worker processes.
  """
  directory = pathlib.Path(directory)
  _check(directory, episodes, seed, workers, image_size)
  with progress.bar(episodes, "record", "episode") as bar:
    if workers == 1:
      for index in range(episodes):
        write_episode(directory, seed, index, image_size)
        bar.update()
      return
    # Spawned, not forked: a fork of a process that runs JAX's threads can hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, episodes), mp_context=context) as pool:
      jobs = [pool.submit(write_episode, directory, seed, index, image_size) for index in range(episodes)]
      try:
        for job in concurrent.futures.as_completed(jobs):
          job.result()
          bar.update()
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
