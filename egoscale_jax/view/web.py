"""`egoscale view --web`: one episode as a page that this machine serves, until Ctrl-C.

The page and its data are served by rerun's own program, a process beside this one that listens to this machine alone (the functions of its
Python package listen on all the machine's addresses); front.py stands before it at --host and --port.
"""

import contextlib
import ipaddress
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from egoscale_jax import progress
from egoscale_jax.data import mixture, shards
from egoscale_jax.errors import UserError
from egoscale_jax.policy import Policy
from egoscale_jax.train import run as run_lib
from egoscale_jax.view import episodes, front, timeline
from egoscale_jax.view import scene as scene_lib

# rerun tells its makers how it is used, unless this is set or `rerun analytics disable` was run once.
QUIET = {"CI": "1"}
START_S = 30.0  # longest wait for the server


def open_scene(path, episode=0, source=None, columns="", workdir=None, hand=None):
  """-> (Scene, work directory of a policy or None). The kind is told by what lies in the folder; source: a module of data/sources.

  hand: what a human's recording is retargeted to; of a policy, its own.
  """
  path, fit = pathlib.Path(path), {"hand": hand} if hand else {}
  if source is not None or path.suffix == ".hdf5":
    return scene_lib.of_recording(path, episode, source, columns, **fit), workdir
  if (path / "trials.jsonl").is_file():
    if workdir:
      raise UserError(f"--workdir={workdir}: {path} is a rollout, which shows the chunks that were carried out")
    return scene_lib.of_rollout(path, episode), None
  if (path / "config.json").is_file():
    if workdir:
      raise UserError(f"--workdir={workdir}: {path} is a work directory itself, expected one of them")
    return _of_run(path, episode), path
  if (path / "manifest.json").is_file() or (path / "plan.json").is_file():
    return scene_lib.of_shards(path, episode), workdir
  expected = "an .hdf5, a folder of recordings with --source, of `egoscale prepare`, of `egoscale train`, or of `egoscale rollout`"
  raise UserError(f"--input={path}: found {'none of these' if path.exists() else 'nothing'}, expected {expected}")


def _of_run(workdir, episode):
  """The held-out episodes of the data that a run learned from, if it holds some out; else its own."""
  folder = next(iter(mixture.folders(run_lib.read_config(workdir)).values()))["shards"]
  held_out = (shards.load_index(folder)["split"] == shards.SPLITS.index(shards.VALIDATION)).any()
  return scene_lib.of_shards(folder, episode, shards.VALIDATION if held_out else None)


def view(path, episode=0, source=None, columns="", workdir=None, host="127.0.0.1", port=8080):
  """The command: returns after Ctrl-C or SIGTERM."""
  rerun, page_lib = _rerun()
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  with contextlib.suppress(KeyboardInterrupt), serving(host, port) as (address, data):  # Ctrl-C is how a person ends it, at any time
    policy = Policy(workdir) if workdir else None
    scene, workdir = open_scene(path, episode, source, columns, workdir, _hand(policy))
    policy = policy or (Policy(workdir) if workdir else None)
    said = f"the policy of {pathlib.Path(workdir).name}, step {policy.step}," if policy else "the policy" if scene.chunks else ""
    with _connected(rerun, data) as stream:
      page = page_lib.Page(stream, scene)
      page.show(said)
      stream.flush()
      print(f"{scene.name} at {address}\nCtrl-C ends it", flush=True)
      _chunks(page, scene, policy)
      stream.flush()
      signal.pause()


@contextlib.contextmanager
def _connected(rerun, data):
  """Cut off before its server ends, or it complains."""
  stream = rerun.RecordingStream("egoscale")
  try:
    stream.connect_grpc(data)
    yield stream
  finally:
    stream.disconnect()


def _hand(policy):
  """The hand of a policy that knows humans."""
  return policy.slot("human").statistics.hand if policy and "human" in policy.config.data.slots else None


def _chunks(page, scene, policy):
  """The chunks of a rollout, of a policy (asked while the page is up), or what happened alone."""
  if scene.chunks:
    for chunk in scene.chunks:
      page.strips(timeline.chunk_strips(scene, chunk))
  elif policy is not None:
    predictor = episodes.Predictor(policy)
    with progress.bar(len(scene.cameras[0].jpeg_N), "predict", "picture") as bar:
      for chunk in scene_lib.predict(predictor, scene):
        page.strips(timeline.chunk_strips(scene, chunk))
        bar.update()
  else:
    for frame in range(scene.num_frames):
      page.strips(timeline.true_strips(scene, frame, frame + timeline.ahead(scene)))


def _rerun():
  os.environ.update(QUIET)
  try:
    import rerun

    from egoscale_jax.view import page
  except ModuleNotFoundError as error:
    raise UserError(f"{error.name}: not installed, expected pip install -e '.[web]' in the checkout") from error
  return rerun, page


@contextlib.contextmanager
def serving(host, port):
  """Runs the servers -> (address of the page, address for what is logged)."""
  page_port, data_port = _free_port(), _free_port()
  try:
    server = front.Front(_address(host), port, page_port, data_port)
  except (OSError, OverflowError) as error:
    raise UserError(f"--port={port}: cannot be listened on at {host}: {getattr(error, 'strerror', None) or error}") from error
  with server, tempfile.TemporaryFile() as log:
    command = [sys.executable, "-m", "rerun", "--serve-web", "--bind=127.0.0.1", f"--web-viewer-port={page_port}", f"--port={data_port}"]
    command.append("--server-memory-limit=50%")
    # A group of its own: the command that starts the server and the server end together, and Ctrl-C is ours.
    child = subprocess.Popen(command, env=os.environ | QUIET, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    try:
      _wait(child, {page_port, data_port}, log)
      thread.start()
      name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
      yield f"http://{name}:{server.server_address[1]}/", f"rerun+http://127.0.0.1:{data_port}/proxy"
    finally:
      if thread.is_alive():
        server.shutdown()
      with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
        os.killpg(child.pid, signal.SIGTERM)
      child.wait()


def _address(host):
  try:
    return str(ipaddress.ip_address(host))
  except ValueError as error:
    raise UserError(f"--host={host}: expected an address, as 127.0.0.1 (this machine alone) or 0.0.0.0 (all that reach it)") from error


def _free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _wait(child, ports, log):
  """Until the server listens at all of them."""
  begin, missing = time.monotonic(), set(ports)
  while missing:
    for at in sorted(missing):
      with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", at), 1.0):
        missing.discard(at)
    if child.poll() is not None or time.monotonic() - begin > START_S:
      log.seek(0)
      lines = log.read().decode(errors="replace").strip().splitlines()
      raise UserError(f"rerun's server: did not start: {lines[-1] if lines else 'it says nothing'}")
    time.sleep(0.02)
