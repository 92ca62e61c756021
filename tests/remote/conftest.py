"""A server of OpenAI's interface in a thread, which answers as a test says, or misbehaves."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class FakeServer:
    """Answers each request by `behaviour(number, body)` -> a text (a chat turn), a dict (the whole answer), bytes (sent
    as they are), or (status, headers, text); None hangs, "cut" breaks off.

    Attributes:
      asked: (path, body, headers) of all requests, in order.
    """

    def __init__(self, behaviour):
        self.behaviour, self.asked, self._lock = behaviour, [], threading.Lock()
        self.release = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake._lock:
                    number = len(fake.asked)
                    fake.asked.append((self.path, body, dict(self.headers)))
                fake.reply(self, fake.behaviour(number, body))

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def reply(self, handler, said):
        status, headers = 200, {}
        if said is None:
            self.release.wait(20)
            return
        if isinstance(said, tuple):
            status, headers, said = said
            said = said.encode()
        if said == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            handler.wfile.flush()
            handler.connection.close()
            handler.close_connection = True
            return
        if isinstance(said, str):
            said = {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": {"total_tokens": 10}}
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def questions(self):
        """How often each question was asked, by the last message."""
        texts = [body["messages"][-1]["content"] for _, body, _ in self.asked]
        return {text: texts.count(text) for text in texts}

    def close(self):
        self.release.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve():
    """serve(behaviour) -> a running `FakeServer`."""
    running = []

    def start(behaviour):
        running.append(FakeServer(behaviour))
        return running[-1]

    yield start
    for server in running:
        server.close()
