"""Scalars as TensorBoard's event files, by tensorboardX's file format. Its own SummaryWriter writes in a thread that a full disk kills."""

import os
import time

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2


class Events:
  """A new file in `folder` at every start; TensorBoard hides what earlier ones have after `first_step`."""

  def __init__(self, folder, first_step):
    os.makedirs(folder, exist_ok=True)
    self._writer = event_file_writer.EventsWriter(os.path.join(folder, "events"))
    self._write(first_step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def scalars(self, step, values):
    """values: {name: number}; OSError where the disk is full, and what is waiting comes with the next call."""
    for name, value in values.items():
      self._write(step, summary=summary.scalar(name, value))
    self._writer.flush()

  def _write(self, step, **content):
    self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

  def close(self):
    self._writer.close()
