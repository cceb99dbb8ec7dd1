"""A small server on this machine that speaks the chat-completions format and answers as a test says."""

import base64
import io
import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


class Reply:
    """What one request gets: a text as a completion, or a status with any body."""

    def __init__(self, text="", *, status=200, body=None, headers=None):
        completion = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
        self.status, self.headers = status, headers or {}
        self.body = json.dumps(completion) if body is None else body


class Seen:
    """A request: its question, its pictures as arrays in [0, 1], and everything else."""

    def __init__(self, body, headers):
        self.body, self.headers = json.loads(body), headers
        (message,) = self.body["messages"]
        assert message["role"] == "user"
        *pictures, text = message["content"]
        assert text["type"] == "text"
        self.text, self.pictures = text["text"], [_picture(entry) for entry in pictures]


def _picture(entry):
    kind, _, data = entry["image_url"]["url"].partition(",")
    assert (entry["type"], kind) == ("image_url", "data:image/png;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float) / 255


@contextmanager
def chat_server(answer: Callable[[Seen, int], Reply | str], *, models=("judge",)):
    """Serve; yields the address with ``/v1`` and the list of what was asked. ``answer`` gets a request and its number."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/v1/models"
            self._send(Reply(body=json.dumps({"object": "list", "data": [{"id": name} for name in models]})))

        def do_POST(self):
            assert self.path == "/v1/chat/completions"
            request = Seen(self.rfile.read(int(self.headers["Content-Length"])), dict(self.headers))
            with lock:
                seen.append(request)
                number = len(seen) - 1
            reply = answer(request, number)
            self._send(reply if isinstance(reply, Reply) else Reply(reply))

        def _send(self, reply):
            data = reply.body.encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
