"""One address in front of rerun's two servers, its page and its data, and a lock on the page.

rerun's page asks the internet for letters, news and where to tell how it is used. The content policy sent with it here forbids the browser
every address but this one, so that what is looked at stays on this machine; without internet nothing is missing.
"""

import http.client
import http.server
import ipaddress
import socket
import sys
import urllib.parse

POLICY = "; ".join(
  (
    "default-src 'self'",
    "script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "connect-src 'self' data: blob:",
    "frame-ancestors 'none'",
  )
)
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "trailer", "upgrade", "server", "date"}
_PIECE = 2**16
MAX_BODY = 2**20  # bytes of a browser's question


class Front(http.server.ThreadingHTTPServer):
  """GET goes to rerun's page, POST (gRPC-web) to its data; both ports are of this machine's loopback."""

  daemon_threads = True
  allow_reuse_address = True

  def __init__(self, host, port, page_port, data_port):
    self.page_port, self.data_port = page_port, data_port
    self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    super().__init__((host, port), _Handler)

  def server_bind(self):
    """Without the base's look-up of the host's name, which waits for a name server that may not be there."""
    socket.socket.bind(self.socket, self.server_address)
    self.server_address = self.socket.getsockname()

  def handle_error(self, request, client_address):
    """A browser that went away is no news, nor is rerun's server, which ends with the command; a bug is."""
    if not isinstance(sys.exception(), ConnectionError | http.client.IncompleteRead):
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_GET(self):
    """The page at / is sent to where it is told which data to show."""
    path = urllib.parse.urlsplit(self.path)
    if path.path == "/" and not path.query:
      data = f"rerun+http://{self.headers.get('Host', '')}/proxy"
      self.send_response(302)
      self.send_header("Location", f"/?url={urllib.parse.quote(data, safe='')}")
      self.send_header("Content-Length", "0")
      self.end_headers()
      return
    self._forward(self.server.page_port, b"")

  def do_POST(self):
    length = self.headers.get("Content-Length", "")
    if not length.isdigit() or int(length) > MAX_BODY:
      self.send_error(413)
      return
    self._forward(self.server.data_port, self.rfile.read(int(length)))

  def _forward(self, port, body):
    """Another page's browser may not ask: it names its own origin, or (by a name server that lies) a host that is none of ours."""
    origin, host = self.headers.get("Origin"), self.headers.get("Host", "")
    if not _ours(host) or (origin is not None and urllib.parse.urlsplit(origin).netloc != host):
      self.send_error(403)
      return
    there = http.client.HTTPConnection("127.0.0.1", port)
    try:
      sent = {name: value for name, value in self.headers.items() if name.lower() not in _HOP | {"host", "origin", "accept-encoding"}}
      there.request(self.command, self.path, body or None, sent)
      answer = there.getresponse()
      self.send_response(answer.status)
      for name, value in answer.getheaders():
        if name.lower() not in _HOP:
          self.send_header(name, value)
      self.send_header("Content-Security-Policy", POLICY)
      self.send_header("Transfer-Encoding", "chunked")
      self.end_headers()
      while piece := answer.read1(_PIECE):  # as it comes: the data's answer has no end while the page is open
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
      self.wfile.write(b"0\r\n\r\n")
    finally:
      there.close()

  def log_message(self, *told):
    """Nothing: the terminal is for the person."""


def _ours(host) -> bool:
  """`host` or `host:port`: an address, or a name of this machine."""
  name = urllib.parse.urlsplit(f"//{host}").hostname or ""
  if name in ("localhost", socket.gethostname().lower()):
    return True
  try:
    return bool(ipaddress.ip_address(name))
  except ValueError:
    return False
