"""A function in a process of its own, which gives all its memory back, and whose crash is told and takes nothing with it."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import threading
import traceback

from egoscale_jax.errors import Preempted, UserError


def run(function, arguments, log):
  """function(*arguments), which is found by its name; its output goes to the end of the file `log`, its UserError or Preempted comes here.

  Spawned: JAX's threads do not survive a fork. SIGTERM is handed on to it. If this process is killed it ends too: two processes that
  train one work directory would spoil it.
  """
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=_work, args=(function, arguments, os.fspath(log), theirs))
  process.start()
  theirs.close()  # else the death of the process would not close the pipe
  with _handing_on(process) as asked:
    try:
      error = ours.recv()
    except EOFError:
      process.join()
      error = UserError(f"{log}: its process died with exit code {process.exitcode} (-9: killed, or out of memory)")
    except BaseException:  # Ctrl-C
      process.kill()
      raise
    process.join()
  if asked and (error is None or process.exitcode == -signal.SIGTERM):
    error = Preempted("preempted, nothing is lost: the same command goes on from there")
  if error is not None:
    raise error


@contextlib.contextmanager
def _handing_on(process):
  """-> a list that is no longer empty once SIGTERM came."""
  asked = []

  def hand_on(*_):
    asked.append(True)
    process.terminate()

  if threading.current_thread() is not threading.main_thread():
    yield asked
    return
  before = signal.signal(signal.SIGTERM, hand_on)
  try:
    yield asked
  finally:
    signal.signal(signal.SIGTERM, before)


def _work(function, arguments, log, connection):
  threading.Thread(target=_end_with_parent, daemon=True).start()
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one
  with open(log, "a", encoding="utf-8") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  try:
    function(*arguments)
    error = None
  except (UserError, Preempted) as told:
    error = told
    print(told, flush=True)
  except Exception:  # a bug: the main process tells where its traceback is
    traceback.print_exc()
    error = RuntimeError(f"{pathlib.Path(log)}: see its end: {traceback.format_exc(limit=-1).splitlines()[-1]}")
  connection.send(error)


def _end_with_parent():
  multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)
