"""`egoscale serve`: opens the policy, compiles, listens, and on SIGTERM answers what is under way and ends."""

import asyncio
import contextlib
import dataclasses
import signal

import jax

from egoscale_jax.errors import UserError
from egoscale_jax.policy import Policy
from egoscale_jax.serve import groot, guard, websocket
from egoscale_jax.serve import limits as limits_lib
from egoscale_jax.serve.service import Robot, Service, joint_names

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the network; the command line tells what each is."""

  host: str = "127.0.0.1"
  port: int = 8000
  zmq_port: int | None = None
  token_file: str = ""
  tls_cert: str = ""
  tls_key: str = ""
  origins: tuple[str, ...] = ()
  batch: int = 64
  deadline_ms: float = 5.0
  max_bytes: int = 16 * 2**20
  rate_limit: float = 1000.0
  connections: int = 256
  queue: int = 256
  drain_s: float = 30.0

  def check(self):
    for name, port in (("port", self.port), ("zmq-port", self.zmq_port)):
      if port is not None and not 0 <= port <= 65535:
        raise UserError(f"--{name}: found {port}, expected 1 to 65535, or 0 for a free one")
    for name in ("batch", "max_bytes", "connections", "queue", "rate_limit"):
      if not getattr(self, name) >= 1:
        raise UserError(f"--{name.replace('_', '-')}: found {getattr(self, name)}, expected at least 1")
    if not (0 <= self.deadline_ms <= 1000 and 0 <= self.drain_s <= 3600):
      raise UserError(f"--deadline-ms, --drain-s: found {self.deadline_ms}, {self.drain_s}, expected 0 to 1000 and 0 to 3600")
    self.token()
    self.tls()

  def token(self) -> bytes | None:
    return guard.read_token(self.token_file) if self.token_file else None

  def tls(self):
    return guard.tls(self.tls_cert, self.tls_key)


@dataclasses.dataclass(frozen=True)
class Address:
  """Where a server listens."""

  port: int
  zmq_port: int | None


def open_robot(workdir, embodiment: str = "", rate_hz: float = 30.0, limits: str = "") -> Robot:
  """A work directory -> what is served; embodiment: which, where the policy knows several; limits: a file in place of the hand's."""
  if not 0 < rate_hz < 10_000:
    raise UserError(f"--rate={rate_hz}: expected a positive number of frames a second")
  # Small programs are kept too: a start is then reading, not compiling.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  policy = Policy(workdir)
  known = sorted(policy.config.data.slots)
  if not embodiment and len(known) != 1:
    raise UserError(f"--embodiment: found none, expected one of {', '.join(known)}")
  embodiment = embodiment or known[0]
  stats = policy.slot(embodiment).statistics
  names = joint_names(stats)
  given = limits_lib.of_file(limits, names) if limits else limits_lib.of_hand(workdir, stats.hand, len(names[0]))
  return Robot(policy, embodiment, given, rate_hz)


async def serve(robot: Robot, settings: Settings, stop: asyncio.Event, ready):
  """Until `stop` is set and what was accepted is answered. ready: called with the Address when the first program is compiled."""
  settings.check()
  token, tls = settings.token(), settings.tls()
  service, rate = Service(robot, settings.batch, settings.deadline_ms / 1e3, settings.queue), guard.Rate(settings.rate_limit)
  await service.warm(1)
  endpoint = websocket.Endpoint(service, token=token, rate=rate, origins=settings.origins, connections=settings.connections)
  async with contextlib.AsyncExitStack() as closing:  # in the opposite order: websockets, ZMQ, then what answers them
    tasks = [asyncio.create_task(service.batcher.work()), asyncio.create_task(service.warm_all())]
    closing.push_async_callback(_cancel, tasks)
    zmq_port = None
    if settings.zmq_port is not None:
      other = groot.Endpoint(service, token=token, rate=rate, kill=stop.set)
      closing.push_async_callback(other.close)
      zmq_port = other.bind(settings.host, settings.zmq_port, settings.max_bytes)
      tasks.append(asyncio.create_task(other.serve()))
    try:
      server = await endpoint.listen(settings.host, settings.port, tls=tls, max_bytes=settings.max_bytes)
    except OSError as error:
      raise UserError(f"--port={settings.port}: cannot be listened on at {settings.host}: {error.strerror}") from error
    closing.push_async_callback(_close, server)
    ready(Address(server.sockets[0].getsockname()[1], zmq_port))
    try:
      await _until(stop, tasks)
    finally:
      service.draining = True
      await _drain(service, settings.drain_s)


async def _close(server):
  server.close(reason="the server is shutting down")
  await server.wait_closed()


async def _cancel(tasks):
  for task in tasks:
    task.cancel()
  await asyncio.gather(*tasks, return_exceptions=True)


async def _until(stop, tasks):
  """A task that ends with an exception ends the server: a bug that nobody sees would be a server that answers nothing."""
  waiting = asyncio.create_task(stop.wait())
  pending = {waiting, *tasks}
  while waiting in pending:
    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
      task.result()


async def _drain(service, seconds):
  try:
    await asyncio.wait_for(service.idle.wait(), seconds)
  except TimeoutError:
    print(f"{service.in_flight} requests were not answered within --drain-s={seconds:g}", flush=True)


def run(workdir, settings: Settings, embodiment="", rate_hz=30.0, limits=""):
  """The command: until SIGTERM or SIGINT."""
  settings.check()
  robot = open_robot(workdir, embodiment, rate_hz, limits)

  def ready(address):
    scheme = "wss" if settings.tls_cert else "ws"
    told = [f"serving {robot.embodiment}, step {robot.policy.step}, at {scheme}://{settings.host}:{address.port}"]
    told += [f"GR00T's protocol at tcp://{settings.host}:{address.zmq_port}"] if address.zmq_port is not None else []
    if not settings.token_file and settings.host not in _LOOPBACK:
      told.append("anyone who reaches this address may ask: --token-file names one who may")
    print("\n".join(told), flush=True)

  async def main():
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
      loop.add_signal_handler(number, stop.set)
    await serve(robot, settings, stop, ready)

  asyncio.run(main())
  print("drained", flush=True)
