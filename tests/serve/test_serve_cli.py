"""`egoscale serve` as a process: a mistake is one line; SIGTERM under load loses nothing."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import serving
import websockets
from test_cli import fails


def start(workdir, log, *more):
  command = [sys.executable, "-m", "egoscale_jax.cli", "serve", f"--checkpoint={workdir}", "--port=0", "--batch=4", *more]
  return subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "error"}, stdout=log, stderr=subprocess.STDOUT)


def test_sigterm_under_load_answers_what_was_accepted(tiny_run, tmp_path):
  with open(tmp_path / "log", "w") as log:
    process = start(tiny_run, log)
  try:
    url = _address(process, tmp_path / "log")
    asked, answered, refused, wrong = [0] * 8, [0] * 8, [0] * 8, []
    robot = serving.robot(tiny_run)
    wanted = [serving.expected(robot, serving.observation(robot, i)) for i in range(8)]

    def client(i):
      try:
        with serving.connect(url) as connection:
          while True:
            asked[i] += 1
            answer = serving.ask(connection, serving.observation(robot, i))
            if isinstance(answer, str):
              refused[i] += answer == "server: it is shutting down"
              continue
            answered[i] += 1
            if abs(answer["joints"] - wanted[i][1]).max() > 1e-4:
              wrong.append(i)
      except websockets.ConnectionClosed as closed:  # told why, too
        refused[i] += closed.rcvd is not None and closed.rcvd.reason == "the server is shutting down"

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
      thread.start()
    _wait(lambda: min(answered) >= 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (tmp_path / "log").read_text()
    for thread in threads:
      thread.join(30)
  finally:
    process.kill()
    process.wait()
  assert not wrong
  assert [a + r for a, r in zip(answered, refused)] == asked
  assert (tmp_path / "log").read_text().endswith("drained\n")


def _address(process, log):
  _wait(lambda: process.poll() is not None or "at ws://" in log.read_text())
  url = re.search(r"at (ws://\S+)", log.read_text())
  assert url, log.read_text()
  assert urllib.request.urlopen(url[1].replace("ws:", "http:") + "/healthz", timeout=30).read() == b"OK\n"
  return url[1]


def _wait(good, seconds=200):
  end = time.monotonic() + seconds
  while not good():
    assert time.monotonic() < end
    time.sleep(0.05)


def test_mistakes_are_one_line(capsys, tiny_run, tmp_path):
  serve = ("serve", f"--checkpoint={tiny_run}")
  assert "config.json is missing" in fails(capsys, "serve", f"--checkpoint={tmp_path}")
  assert "--checkpoint" in fails(capsys, "serve")
  assert "--batch: found 0, expected at least 1" in fails(capsys, *serve, "--batch=0")
  nothing = ("serve", f"--checkpoint={tmp_path}")  # ports are looked at before the work directory is
  assert "--port: found 99999, expected 1 to 65535, or 0 for a free one" in fails(capsys, *nothing, "--port=99999")
  assert "--port: found -1, expected" in fails(capsys, *nothing, "--port=-1")
  assert "--zmq-port: found 65536, expected" in fails(capsys, *nothing, "--zmq-port=65536")
  assert "--deadline-ms, --drain-s: found -1.0" in fails(capsys, *serve, "--deadline-ms=-1")
  assert "--rate=0.0: expected a positive number" in fails(capsys, *serve, "--rate=0")
  assert "embodiment: found 'dog', expected one of ['human']" in fails(capsys, *serve, "--embodiment=dog")
  assert "--limits=none.json: cannot be read" in fails(capsys, *serve, "--limits=none.json")
  assert "--token-file=none: cannot be read" in fails(capsys, *serve, "--token-file=none")
  assert "--tls-cert and --tls-key: found one of them" in fails(capsys, *serve, "--tls-cert=cert.pem")
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    assert f"--port={port}: cannot be listened on" in fails(capsys, *serve, f"--port={port}", "--batch=1")
    assert f"--zmq-port={port}: cannot be listened on" in fails(capsys, *serve, "--port=0", f"--zmq-port={port}", "--batch=1")
