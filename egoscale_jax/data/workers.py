"""Runs a function over items in several processes, in order, a few ahead; a process that dies is told by what it was at."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence

from egoscale_jax.data import schema
from egoscale_jax.errors import UserError

_AHEAD = 2  # items a worker that may be at work or wait to be used: an episode is about 10 MB


def read_all(
  read: Callable[[schema.Recording], schema.Episode], recordings: Sequence[schema.Recording], workers: int
) -> Iterator[tuple[schema.Recording, schema.Episode | UserError]]:
  """-> (recording, its Episode or the UserError that read() raised) in the order given."""
  return run(read, recordings, workers, lambda recording: os.fspath(recording.files[0]))


def run(function: Callable, items: Sequence, workers: int, name: Callable[[object], str]) -> Iterator[tuple[object, object]]:
  """-> (item, function(item) or the UserError that it raised) in the order given. workers = 1 runs in this process.

  name(item): the file that an error about a dead process names. Not ProcessPoolExecutor: when one of its processes dies, all pending work
  fails and none of it knows which file was the cause.
  """
  if workers < 1:
    raise UserError(f"workers: found {workers}, expected at least 1")
  if workers == 1:
    for item in items:
      yield item, _attempt(function, item)
    return
  pool = [_start(function) for _ in range(min(workers, len(items)))]
  try:
    yield from _dispatch(items, pool, name)
  finally:
    for process, connection in pool:
      connection.close()
      process.terminate()
      process.join()


def _attempt(function, item):
  try:
    return function(item)
  except UserError as error:
    return error


def _start(function):
  """-> (process, our end of the pipe to it). Spawned: JAX's threads in this process do not survive a fork."""
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=_work, args=(function, theirs), daemon=True)
  process.start()
  theirs.close()  # else the death of the process would not close the pipe
  return process, ours


def _work(function, connection):
  """A worker: receives (index, item), answers (index, result or UserError, "") or (index, None, traceback)."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one
  # One process a core: XLA's own threads would only fight over them. Read when the first array is made, which is later.
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
  while True:
    try:
      index, item = connection.recv()
    except EOFError:
      return
    try:
      answer = (index, _attempt(function, item), "")
    except Exception:  # a bug of ours: the main process raises it with this traceback
      answer = (index, None, traceback.format_exc())
    connection.send(answer)


def _dispatch(items, pool, name):
  """Gives out items as workers come free, at most _AHEAD a worker before the one that is due, and yields them in order."""
  process_of = {connection: process for process, connection in pool}
  idle, busy, results = [connection for _, connection in pool], {}, {}
  given = due = 0
  while due < len(items):
    while idle and given < min(len(items), due + _AHEAD * len(pool)):
      connection = idle.pop()
      busy[connection] = given
      _send(connection, (given, items[given]), process_of[connection], name)
      given += 1
    for connection in multiprocessing.connection.wait(busy):
      index = busy.pop(connection)
      results[index] = _receive(connection, items[index], process_of[connection], name)
      idle.append(connection)
    while due in results:
      yield items[due], results.pop(due)
      due += 1


def _send(connection, message, process, name):
  try:
    connection.send(message)
  except OSError as error:
    raise _died(name(message[1]), process) from error


def _receive(connection, item, process, name):
  try:
    _, result, bug = connection.recv()
  except (EOFError, OSError) as error:
    raise _died(name(item), process) from error
  if bug:
    raise RuntimeError(f"{name(item)} failed with\n{bug}")
  return result


def _died(path, process):
  process.join()
  return UserError(f"{path}: the process that was reading it died with exit code {process.exitcode} (-9: killed, or out of memory)")
