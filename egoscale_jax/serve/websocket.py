"""openpi's protocol: metadata on connect, then an observation in and an answer out, one after the other; a text frame is an error.

The same port answers GET /healthz and /metrics.
"""

import http

import websockets
from websockets.asyncio import server as websockets_server

from egoscale_jax.errors import UserError
from egoscale_jax.serve import guard, wire
from egoscale_jax.serve.service import Service

PROTOCOL = "openpi"


class Endpoint:
  """Listens with `listen`."""

  def __init__(self, service: Service, *, token, rate: guard.Rate, origins: tuple[str, ...], connections: int):
    self._service, self._token, self._rate, self._origins, self._connections = service, token, rate, origins, connections
    self._open = 0
    self._metadata = wire.pack_openpi(service.metadata())

  def listen(self, host, port, *, tls, max_bytes, ping_s=20.0):
    """-> what websockets calls a Server, once it is awaited. ping_s: a peer that is silent for twice this long is let go."""
    return websockets_server.serve(
      self._talk,
      host,
      port,
      process_request=self._admit,
      ssl=tls,
      max_size=max_bytes,
      max_queue=1,  # a client has one request at a time: what it sends ahead waits in its own socket
      write_limit=(1 << 16),
      compression=None,  # pictures do not shrink, and a small message could grow without bound
      ping_interval=ping_s,
      ping_timeout=ping_s,
      close_timeout=ping_s / 2,
      server_header=None,
    )

  def _admit(self, connection, request):
    """An HTTP answer, or None to go on with the handshake."""
    if request.path == "/healthz":
      good = not self._service.draining
      return connection.respond(http.HTTPStatus.OK if good else http.HTTPStatus.SERVICE_UNAVAILABLE, "OK\n" if good else "draining\n")
    if not guard.may(self._token, guard.bearer(_only(request.headers, "Authorization"))):
      return self._refuse(connection, "token", http.HTTPStatus.UNAUTHORIZED, "expected Authorization: Bearer TOKEN")
    if request.path == "/metrics":
      response = connection.respond(http.HTTPStatus.OK, self._service.metrics.text())
      response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
      return response
    origins = request.headers.get_all("Origin")  # a browser's: any page that a person opens could talk to a robot on their network
    if any(origin not in self._origins for origin in origins):
      return self._refuse(
        connection, "origin", http.HTTPStatus.FORBIDDEN, f"Origin: found {', '.join(origins)[:100]}, which is not allowed"
      )
    if self._service.draining:
      return self._refuse(connection, "draining", http.HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down")
    if self._open >= self._connections:
      return self._refuse(connection, "connections", http.HTTPStatus.SERVICE_UNAVAILABLE, f"{self._connections} connections are open")
    return None

  def _refuse(self, connection, reason, status, told):
    self._service.metrics.refused.labels(reason).inc()
    return connection.respond(status, f"{told}\n")

  async def _talk(self, connection):
    self._open += 1
    self._service.metrics.connections.inc()
    try:
      await connection.send(self._metadata)
      async for message in connection:
        await connection.send(await self._reply(connection, message))
    except websockets.ConnectionClosed:  # killed, or silent for too long: nobody is left to be told
      return
    finally:
      self._open -= 1
      self._service.metrics.connections.dec()

  async def _reply(self, connection, message) -> bytes | str:
    try:
      if not self._rate.allows(connection.remote_address[0]):
        raise self._service.refusal("rate", f"server: more than {self._rate.per_second:g} requests a second from one address")
      try:
        if isinstance(message, str):
          raise UserError("message: found text, expected msgpack")
        values = wire.unpack(message)
      except UserError:
        self._service.metrics.refused.labels("message").inc()
        raise
      return wire.pack_openpi(await self._service.answer(connection, PROTOCOL, values))
    except UserError as error:
      return wire.line(error)
    except Exception:  # one request, not the server
      return self._service.failure()


def _only(headers, name):
  """A header that must not come twice."""
  values = headers.get_all(name)
  return values[0] if len(values) == 1 else None
