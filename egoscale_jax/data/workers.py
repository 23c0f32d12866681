"""Reads recordings in several processes, in order, a few ahead; a process that dies is told by the file it was reading."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence

from egoscale_jax.data import schema
from egoscale_jax.errors import UserError

_AHEAD = 2  # recordings a worker that may be read or wait to be used: an episode is about 10 MB


def read_all(
  read: Callable[[schema.Recording], schema.Episode], recordings: Sequence[schema.Recording], workers: int
) -> Iterator[tuple[schema.Recording, schema.Episode | UserError]]:
  """-> (recording, its Episode or the UserError that read() raised) in the order given. workers = 1 reads in this process.

  Not ProcessPoolExecutor: when one of its processes dies, all pending work fails and none of it knows which file was the cause.
  """
  if workers < 1:
    raise UserError(f"workers: found {workers}, expected at least 1")
  if workers == 1:
    for recording in recordings:
      yield recording, _attempt(read, recording)
    return
  pool = [_start(read) for _ in range(min(workers, len(recordings)))]
  try:
    yield from _dispatch(recordings, pool)
  finally:
    for process, connection in pool:
      connection.close()
      process.terminate()
      process.join()


def _attempt(read, recording):
  try:
    return read(recording)
  except UserError as error:
    return error


def _start(read):
  """-> (process, our end of the pipe to it). Spawned: JAX's threads in this process do not survive a fork."""
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=_work, args=(read, theirs), daemon=True)
  process.start()
  theirs.close()  # else the death of the process would not close the pipe
  return process, ours


def _work(read, connection):
  """A worker: receives (index, recording), answers (index, Episode or UserError, "") or (index, None, traceback)."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one
  while True:
    try:
      index, recording = connection.recv()
    except EOFError:
      return
    try:
      answer = (index, _attempt(read, recording), "")
    except Exception:  # a bug of ours: the main process raises it with this traceback
      answer = (index, None, traceback.format_exc())
    connection.send(answer)


def _dispatch(recordings, pool):
  """Gives out recordings as workers come free, at most _AHEAD a worker before the one that is due, and yields them in order."""
  process_of = {connection: process for process, connection in pool}
  idle, busy, results = [connection for _, connection in pool], {}, {}
  given = due = 0
  while due < len(recordings):
    while idle and given < min(len(recordings), due + _AHEAD * len(pool)):
      connection = idle.pop()
      busy[connection] = given
      _send(connection, (given, recordings[given]), process_of[connection])
      given += 1
    for connection in multiprocessing.connection.wait(busy):
      index = busy.pop(connection)
      results[index] = _receive(connection, recordings[index], process_of[connection])
      idle.append(connection)
    while due in results:
      yield recordings[due], results.pop(due)
      due += 1


def _send(connection, message, process):
  try:
    connection.send(message)
  except OSError as error:
    raise _died(message[1], process) from error


def _receive(connection, recording, process):
  try:
    _, result, bug = connection.recv()
  except (EOFError, OSError) as error:
    raise _died(recording, process) from error
  if bug:
    raise RuntimeError(f"reading {os.fspath(recording.files[0])} failed with\n{bug}")
  return result


def _died(recording, process):
  process.join()
  return UserError(
    f"{os.fspath(recording.files[0])}: the process that was reading it died with exit code {process.exitcode} (-9: out of memory); "
    "nothing was written"
  )
