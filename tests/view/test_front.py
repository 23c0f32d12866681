"""The address in front of rerun's servers: what it passes on, whom it refuses, and that its pages may talk to nobody else."""

import http.client
import http.server
import socket
import threading
import time

import pytest

from egoscale_jax.view import front


class Behind(http.server.BaseHTTPRequestHandler):
  """Tells what it was asked; /slow says a word, waits for the test, and says another."""

  protocol_version = "HTTP/1.1"
  more = threading.Event()

  def do_GET(self):
    body = f"GET {self.path}".encode()
    self.send_response(200 if self.path != "/none" else 404)
    self.send_header("Content-Type", "text/html")
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def do_POST(self):
    self.send_response(200)
    self.send_header("Content-Type", "application/grpc-web")
    self.end_headers()  # no length: it ends with the connection
    self.wfile.write(self.rfile.read(int(self.headers["Content-Length"])))
    self.wfile.flush()
    self.more.wait(10)
    self.wfile.write(b"second")
    self.close_connection = True

  def log_message(self, *told):
    pass


@pytest.fixture
def server():
  behind = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Behind)
  made = front.Front("127.0.0.1", 0, behind.server_address[1], behind.server_address[1])
  threads = [threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.01}) for s in (behind, made)]
  for thread in threads:
    thread.start()
  Behind.more.clear()
  yield made
  Behind.more.set()
  for s in (made, behind):
    s.shutdown()
    s.server_close()
  for thread in threads:
    thread.join()


def ask(server, method, path, body=None, **headers):
  connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
  connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
  return connection, connection.getresponse()


def test_the_page_is_passed_on_with_the_policy(server):
  connection, answer = ask(server, "GET", "/re_viewer.js?x=1")
  assert (answer.status, answer.read(), answer.headers["Content-Type"]) == (200, b"GET /re_viewer.js?x=1", "text/html")
  assert "connect-src 'self' data: blob:" in answer.headers["Content-Security-Policy"]
  assert "http" not in answer.headers["Content-Security-Policy"]  # no other address is allowed to the page
  connection.close()
  connection, answer = ask(server, "GET", "/none")
  assert (answer.status, answer.read()) == (404, b"GET /none")
  connection.close()


def test_the_bare_address_leads_to_the_data(server):
  host = f"127.0.0.1:{server.server_address[1]}"
  connection, answer = ask(server, "GET", "/")
  assert answer.status == 302
  assert answer.headers["Location"] == f"/?url=rerun%2Bhttp%3A%2F%2F127.0.0.1%3A{host.split(':')[1]}%2Fproxy"
  connection.close()


def test_data_comes_as_it_is_sent_not_at_its_end(server):
  """The viewer's question for data has no end while the page is open."""
  connection, answer = ask(server, "POST", "/read", b"first")
  assert answer.read1(100) == b"first"
  Behind.more.set()
  assert answer.read() == b"second"
  connection.close()


@pytest.mark.parametrize(
  "headers", [{"Origin": "http://elsewhere.example"}, {"Host": "elsewhere.example:8080"}, {"Host": ""}, {"Origin": "null"}]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_from_elsewhere_are_refused(server, method, headers):
  """Also where a lying name server calls this machine by another's name."""
  connection, answer = ask(server, method, "/read", b"x" if method == "POST" else None, **headers)
  assert answer.status == 403
  connection.close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", socket.gethostname()])
def test_its_own_names_are_answered(server, name):
  connection, answer = ask(server, "GET", "/a", Host=f"{name}:8080", Origin=f"http://{name}:8080")
  assert answer.status == 200
  connection.close()


def test_a_question_without_an_end_is_refused(server):
  """By what it announces: the answer may be there before the body, and whoever still sends one then finds the connection closed."""
  for length in (front.MAX_BODY + 1, -1):
    with socket.create_connection(server.server_address, timeout=10) as plain:
      plain.sendall(b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % length)
      assert b" 413 " in plain.recv(100)


def test_a_browser_that_leaves_is_no_noise(server, capsys):
  connection, answer = ask(server, "POST", "/read", b"first")
  assert answer.read1(100) == b"first"
  connection.sock.shutdown(socket.SHUT_RDWR)
  connection.close()
  Behind.more.set()
  time.sleep(0.1)
  assert capsys.readouterr() == ("", "")
