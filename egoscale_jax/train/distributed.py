"""Several processes, one program: how they find each other, agree, and end together.

EGOSCALE_COORDINATOR=auto               a TPU pod, Slurm, GKE or MPI: JAX finds out by itself
EGOSCALE_COORDINATOR=HOST:PORT          with EGOSCALE_PROCESSES=N and EGOSCALE_PROCESS=0..N-1, in every one of them (launch/local_pod.sh)
neither                                 one process

All of them see one work directory (a shared file system). Process 0 writes what belongs to the run as a whole.
"""

import contextlib
import json
import os
import re
import sys
import threading
import time
import traceback

import jax
import numpy as np
from jax._src.distributed import global_state  # its key-value store; Orbax uses it too, there is no public name for it
from jax.experimental import multihost_utils

from egoscale_jax.errors import Preempted, UserError

_FAILED = "egoscale/failed"


def initialize():
  """Joins the other processes if the environment asks for it, before anything of JAX is used."""
  address = os.environ.get("EGOSCALE_COORDINATOR", "")
  if not address or jax.distributed.is_initialized():
    return
  if address == "auto":
    try:
      jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
      raise UserError(f"EGOSCALE_COORDINATOR=auto: found no pod or cluster: {' '.join(str(error).split())}") from error
    return
  if not re.fullmatch(r"\S+:\d+", address):
    raise UserError(f"EGOSCALE_COORDINATOR: found {address!r}, expected auto or HOST:PORT")
  count, index = (_number(name) for name in ("EGOSCALE_PROCESSES", "EGOSCALE_PROCESS"))
  if not index < count:
    raise UserError(f"EGOSCALE_PROCESS: found {index}, expected less than EGOSCALE_PROCESSES = {count}")
  jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=300)  # of JAX 100: a machine short of cores fails that


def _number(name):
  text = os.environ.get(name, "")
  if not text.isdigit():
    raise UserError(f"{name}: found {text!r}, expected a number, since EGOSCALE_COORDINATOR is set")
  return int(text)


def is_first():
  return jax.process_index() == 0


def say(text):
  """To standard output, once for all processes."""
  if is_first():
    print(text, flush=True)


def wait_for_all(where):
  """By the coordinator: CPU devices wait for each other's first program 30 s at most, and compiling takes longer."""
  if jax.process_count() > 1:
    global_state.client.wait_at_barrier(f"egoscale/{where}", 3600_000)  # milliseconds


def from_first(make):
  """A whole number that process 0 makes, on all processes."""
  number = make() if is_first() else 0
  return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if jax.process_count() > 1 else number


def fetch(tree):
  """Global arrays -> numpy, whole, on every process."""
  return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def check_same(told):
  """told: {field: value} for JSON, the same on every process or UserError, on all of them, that names the first field and process."""
  if jax.process_count() == 1:
    return
  text = np.frombuffer(json.dumps(told, sort_keys=True).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(text)))
  texts = multihost_utils.process_allgather(np.pad(text, (0, max(lengths) - len(text))))
  tables = [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths)]
  for process, table in enumerate(tables):
    for field in sorted(tables[0].keys() | table.keys()):
      mine, others = (t.get(field, "nothing") for t in (tables[0], table))
      if mine != others:
        raise UserError(f"{field}: process 0 has {mine!r}, process {process} has {others!r}, expected the same on all processes")


@contextlib.contextmanager
def together():
  """Inside, what ends one process ends all of them, each with the message. With one process it does nothing."""
  if jax.process_count() == 1:
    yield
    return
  done = threading.Event()
  listener = threading.Thread(target=_listen, args=(done,), daemon=True)
  listener.start()
  try:
    yield
  except Preempted:  # all of them, at the same step
    raise
  except BaseException as error:
    _fail(error)
  finally:
    done.set()
    listener.join()


def _fail(error):
  """Tells the others, waits until they heard it, and ends. A usual exit would wait for processes that wait for this one."""
  me, known = f"process {jax.process_index()} of {jax.process_count()}", isinstance(error, UserError)
  print(f"egoscale: {me}: {error}" if known else f"egoscale: {me}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
  message = " ".join(f"{me}: {'' if known else type(error).__name__ + ': '}{error}".split())[:1000]
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first, or the store is gone with process 0
    global_state.client.key_value_set(_FAILED, message)
  _end()


def _listen(done):
  while not done.wait(2.0):  # no blocking call: a thread that waits inside of it aborts a process that ends well
    try:
      message = global_state.client.key_value_try_get(_FAILED)
    except jax.errors.JaxRuntimeError as error:
      if "NOT_FOUND" in str(error):
        continue
      return  # the store is gone with process 0: JAX ends this one
    if not message.startswith(f"process {jax.process_index()} "):
      print(f"egoscale: ended by {message}", file=sys.stderr, flush=True)
      _end()


def _end():
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0, which has the store, does not leave before the others heard
    global_state.client.wait_at_barrier("egoscale/ended", 5000)
  if global_state.process_id == 0:
    time.sleep(1.0)  # the others leave first: JAX aborts a process, with another exit code, that sees the store close
  os._exit(1)
