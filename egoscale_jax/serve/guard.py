"""Who may ask, and how often."""

import collections
import hmac
import pathlib
import ssl
import time

from egoscale_jax.errors import UserError

_ADDRESSES = 4096  # that are remembered; the one that asked longest ago is forgotten first
_LEAST_TOKEN = 16


def read_token(path) -> bytes:
  """The one line of a file: not on the command line, which every user of a machine sees."""
  try:
    token = pathlib.Path(path).read_bytes().strip()
  except OSError as error:
    raise UserError(f"--token-file={path}: cannot be read: {error.strerror}") from error
  if len(token) < _LEAST_TOKEN or not token.isascii() or len(token.split()) != 1:
    raise UserError(f"--token-file={path}: found {len(token)} bytes, expected one word of at least {_LEAST_TOKEN} ASCII characters")
  return token


def may(token: bytes | None, given) -> bool:
  """Compared in constant time; given: a string, or anything else, which is no token."""
  if token is None:
    return True
  return isinstance(given, str) and hmac.compare_digest(token, given.encode("utf-8", "surrogateescape"))


def bearer(header: str | None) -> str | None:
  """The token of an Authorization header; openpi's clients say Api-Key where others say Bearer."""
  scheme, _, token = (header or "").partition(" ")
  return token.strip() if scheme.lower() in ("bearer", "api-key") else None


def tls(certificate, key) -> ssl.SSLContext | None:
  """None without both."""
  if not (certificate or key):
    return None
  if not (certificate and key):
    raise UserError("--tls-cert and --tls-key: found one of them, expected both or none")
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.minimum_version = ssl.TLSVersion.TLSv1_2
  try:
    context.load_cert_chain(certificate, key)
  except (OSError, ssl.SSLError) as error:
    raise UserError(f"--tls-cert={certificate}, --tls-key={key}: cannot be used: {error}") from error
  return context


class Rate:
  """So many requests a second from an address, and as many at once (a token bucket)."""

  def __init__(self, per_second: float, clock=time.monotonic):
    self.per_second, self._clock = per_second, clock
    self._left = collections.OrderedDict()  # address -> (requests left, when)

  def allows(self, address) -> bool:
    now = self._clock()
    left, at = self._left.pop(address, (self.per_second, now))
    left = min(self.per_second, left + (now - at) * self.per_second)
    self._left[address] = (max(left - 1.0, 0.0) if left >= 1.0 else left, now)
    if len(self._left) > _ADDRESSES:
      self._left.popitem(last=False)
    return left >= 1.0
