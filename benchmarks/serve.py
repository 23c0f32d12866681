"""What the policy server costs and bears: overhead, throughput with and without batches, the first chunk after a start, a soak.

    python benchmarks/serve.py WORKDIR [--clients=64] [--seconds=20] [--soak=600]

WORKDIR: of `egoscale train`. The server is `egoscale serve` in a process of its own, on loopback; the load comes from this process, on the
same cores. Overhead: one 256 x 256 picture, calls of the bare policy and of the server taking turns. Every answer is held against the bare
policy's for its client; memory is what the server's /metrics says of its process. Prints one line a figure.
"""

import argparse
import asyncio
import collections
import contextlib
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

import jax
import numpy as np
from websockets.asyncio import client as asyncio_client

from egoscale_jax.policy import Request
from egoscale_jax.serve import client, server, wire
from egoscale_jax.serve import observation as observation_lib

CALLS = 300
TEXT = "Pick up the cup."


def observation(robot, seed):
  picture = np.random.default_rng(seed).integers(0, 256, (256, 256, 3)).astype(np.uint8)
  wrist = np.tile(np.eye(4), (2, 1, 1))
  wrist[:, 2, 3] = 0.4
  joints = (robot.limits.lower_2xJ + robot.limits.upper_2xJ) / 2
  values = {"prompt": TEXT, "seed": seed, "state/wrist": wrist, "state/joints": joints}
  values |= {f"image/{name}": picture for name in robot.policy.config.data.cameras}
  return values | ({"state/camera": np.eye(4)} if any(field.name == observation_lib.CAMERA for field in robot.fields()) else {})


def request(robot, values) -> Request:
  return observation_lib.read(robot.fields(), values, robot.horizon).request(robot.embodiment, robot.has_state)


@contextlib.contextmanager
def serving(workdir, *more):
  """-> (address, seconds from the start of the process to its first chunk), all sizes compiled."""
  with tempfile.TemporaryDirectory() as folder:
    log = pathlib.Path(folder) / "log"
    command = [sys.executable, "-m", "egoscale_jax.cli", "serve", f"--checkpoint={workdir}", "--port=0", "--rate-limit=100000", *more]
    start = time.perf_counter()
    with open(log, "w") as file:
      process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
      while not (found := re.search(r"at (ws://\S+)", log.read_text())):
        if process.poll() is not None:
          sys.exit(log.read_text())
        time.sleep(0.01)
      yield found[1], start
    finally:
      process.terminate()
      code = process.wait(120)
    if code:
      sys.exit(f"the server ended with {code}:\n{log.read_text()}")


def metric(address, name) -> float:
  text = urllib.request.urlopen(address.replace("ws:", "http:") + "/metrics", timeout=60).read().decode()
  return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def act(own, values):
  images = {name.removeprefix("image/"): value for name, value in values.items() if name.startswith("image/")}
  return own.act(images, values["prompt"], values["state/wrist"], values["state/joints"], values.get("state/camera"), seed=values["seed"])


def first_chunk(workdir, robot):
  """The second start: the first one fills the disk cache."""
  for name in ("cold or warm", "from the disk cache"):
    with serving(workdir, "--batch=1") as (address, start), client.Client(address) as own:
      act(own, observation(robot, 0))
      seconds = time.perf_counter() - start
      print(
        f"first chunk after the start, {name}: {seconds:.2f} s, of which {metric(address, 'process_cpu_seconds_total'):.2f} s processor"
      )


def overhead(workdir, robot):
  values = observation(robot, 0)
  asked = request(robot, values)
  row = robot.policy.row(asked)
  steps = {
    "jitted policy alone": lambda: robot.policy.sample([row]),
    "policy with its pictures and text": lambda: robot.policy.many([asked]),
  }
  with serving(workdir, "--batch=1") as (address, _), client.Client(address) as own:
    steps["server"] = lambda: act(own, values)
    taken = {name: [] for name in steps}
    for i in range(CALLS + 20):
      for name, step in steps.items():
        start = time.perf_counter()
        step()
        if i >= 20:
          taken[name].append(1e3 * (time.perf_counter() - start))
  quantiles = {name: np.quantile(times, (0.5, 0.99)) for name, times in taken.items()}
  for name, (median, p99) in quantiles.items():
    print(f"{name}: median {median:.2f} ms, p99 {p99:.2f} ms ({CALLS} calls)")
  for name in list(steps)[:2]:
    median, p99 = quantiles["server"] - quantiles[name]
    paired = np.subtract(taken["server"], taken[name])
    print(f"server over {name}: median +{median:.2f} ms, p99 +{p99:.2f} ms, median of the pairs +{np.median(paired):.2f} ms")


async def ask_for(address, packed, wanted, until, counts):
  """One client, one request after the other; wanted: joints of the bare policy for this client."""
  async with asyncio_client.connect(address, compression=None, max_size=None, open_timeout=None, ping_interval=None) as connection:
    await connection.recv()
    while time.perf_counter() < until:
      counts["asked"] += 1
      await connection.send(packed)
      message = await connection.recv()
      if isinstance(message, str):
        counts["refused"] += 1
        continue
      answer = wire.unpack(message)
      counts["answered"] += 1
      counts["rows"] += answer["server_timing"]["batch"]
      counts["wrong"] += int(np.abs(answer["joints"] - wanted).max() > 1e-3)


async def watch(address, seconds, samples):
  """Resident bytes of the server, 60 times."""
  while True:
    await asyncio.sleep(seconds / 60)
    samples.append(await asyncio.to_thread(metric, address, "process_resident_memory_bytes"))


async def load(address, robot, clients, seconds):
  """-> counts, samples of the server's memory."""
  values = [observation(robot, seed) for seed in range(clients)]
  chunks = robot.policy.many([request(robot, v) for v in values])
  wanted = [robot.limits.enforce(c.joints_Tx2xJ, v["state/joints"], robot.step_s) for c, v in zip(chunks, values)]
  counts, samples, packed = collections.Counter(), [], [wire.pack_openpi(v) for v in values]
  watching = asyncio.create_task(watch(address, seconds, samples))
  until = time.perf_counter() + seconds
  await asyncio.gather(*(ask_for(address, p, w, until, counts) for p, w in zip(packed, wanted)))
  watching.cancel()
  return counts, samples


def throughput(workdir, robot, clients, seconds):
  rates = {}
  for batch in (1, clients):
    with serving(workdir, f"--batch={batch}") as (address, _):
      wait_until_warm(address, batch)
      counts, _ = asyncio.run(load(address, robot, clients, seconds))
    rates[batch] = counts["answered"] / seconds
    mean = counts["rows"] / max(counts["answered"], 1)
    print(f"{clients} clients, batches up to {batch}: {rates[batch]:.1f} chunks/s, {mean:.1f} rows a chunk's call, {dict(counts)}")
  print(f"batched over unbatched: {rates[clients] / rates[1]:.2f} x")


def wait_until_warm(address, batch):
  """Sizes are compiled while the server serves."""
  while metric(address, "egoscale_compiled_rows") < batch:
    time.sleep(0.5)


def soak(workdir, robot, clients, seconds):
  with serving(workdir, f"--batch={clients}") as (address, _):
    wait_until_warm(address, clients)
    counts, samples = asyncio.run(load(address, robot, clients, seconds))
    failed = metric(address, "egoscale_failed_total")
  lost = counts["asked"] - counts["answered"] - counts["refused"]
  tenth = len(samples) // 10
  first, last = np.median(samples[tenth : 3 * tenth]), np.median(samples[-2 * tenth :])
  print(f"soak, {seconds:.0f} s, {clients} clients: {dict(counts)}, lost {lost}, internal errors {failed:.0f}")
  print(
    f"resident memory: {first / 2**20:.1f} MiB in the second and third tenth, {last / 2**20:.1f} in the last two: {last / first - 1:+.2%}"
  )
  print(f"  from {min(samples) / 2**20:.1f} to {max(samples) / 2**20:.1f} MiB in {len(samples)} samples")


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("workdir")
  parser.add_argument("--clients", type=int, default=64)
  parser.add_argument("--seconds", type=float, default=20.0)
  parser.add_argument("--soak", type=float, default=0.0)
  parser.add_argument("--only", default="", choices=("", "first", "overhead", "throughput", "soak"))
  arguments = parser.parse_args()
  cache = pathlib.Path.home() / ".cache" / "egoscale_jax" / platform.node()
  jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cache)))
  robot = server.open_robot(arguments.workdir)
  print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}", flush=True)
  if arguments.only in ("", "first"):
    first_chunk(arguments.workdir, robot)
  if arguments.only in ("", "overhead"):
    overhead(arguments.workdir, robot)
  if arguments.only in ("", "throughput"):
    throughput(arguments.workdir, robot, arguments.clients, arguments.seconds)
  if arguments.soak:
    soak(arguments.workdir, robot, arguments.clients, arguments.soak)
  print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
