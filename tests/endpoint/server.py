"""A local server of the OpenAI form that can be told to misbehave: a script says what it does to each request."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Script:
    """`steps` name what happens to the first requests, `then` to all others; `asked` are the bodies that came.

    `says` makes the text of an answer from the body of its request.
    """

    def __init__(self, *steps, then="answer", delay=0.0, usage=True, says=None):
        self.says = says or answer_to
        self.steps, self.then, self.delay, self.usage = list(steps), then, delay, usage
        self.asked, self.times, self.headers = [], [], []
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0

    def next(self, body, headers):
        with self.lock:
            self.asked.append(body)
            self.headers.append(dict(headers))
            self.times.append(time.monotonic())
            return self.steps.pop(0) if self.steps else self.then

    @property
    def counts(self):
        return Counter(json.dumps(body, sort_keys=True) for body in self.asked)


def answer_to(body):
    said = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return f"re: {said}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def reply(self, status, data, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        script = self.server.script
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        step = script.next(body, self.headers)
        with script.lock:
            script.under_way += 1
            script.most_under_way = max(script.most_under_way, script.under_way)
        try:
            time.sleep(script.delay)
            getattr(self, f"do_{step}")(body, script)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with script.lock:
                script.under_way -= 1

    def do_answer(self, body, script):
        text, chat = script.says(body), "messages" in body
        choice = {"finish_reason": "stop", **({"message": {"content": text}} if chat else {"text": text})}
        choices = [{"index": n, **choice} for n in reversed(range(body.get("n", 1)))]
        usage = {"usage": {"prompt_tokens": 10, "completion_tokens": 5}} if script.usage else {}
        self.reply(200, json.dumps({"model": "there", "choices": choices, **usage}).encode())

    def do_fail(self, body, script):
        self.reply(500, b'{"error": {"message": "out of luck"}}')

    def do_echo(self, body, script):
        """As a proxy that shows what it was sent."""
        self.reply(500, json.dumps({"error": f"{'x' * 150} bad header {self.headers['Authorization']}"}).encode())

    def do_echo_page(self, body, script):
        self.reply(200, f"{'-' * 60} {self.headers['Authorization']}".encode())

    def do_echo_answer(self, body, script):
        data = json.dumps({"choices": [{"message": {"content": f"EMPTY {self.headers['Authorization']}"}}]})
        self.reply(200, data.replace("/", "\\/").encode())

    def do_thought(self, body, script):
        """All its tokens went into thinking."""
        self.reply(200, b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}')

    def do_busy(self, body, script):
        self.reply(429, b'{"error": "slow down"}', Retry_After="0.4")

    def do_refuse(self, body, script):
        self.reply(400, b'{"error": {"message": "too long"}}')

    def do_forbid(self, body, script):
        self.reply(401, b'{"error": {"message": "wrong key"}}')

    def do_no_credit(self, body, script):
        self.reply(402, b'{"error": {"message": "insufficient balance"}}')

    def do_page(self, body, script):
        self.reply(200, b"<html>Welcome to the proxy</html>")

    def do_empty(self, body, script):
        self.reply(200, b'{"choices": []}')

    def do_number(self, body, script):
        self.reply(200, b"7")

    def do_stall(self, body, script):
        time.sleep(6)

    def do_silent(self, body, script):
        time.sleep(1.5)

    def do_cut(self, body, script):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [{"mess')
        self.wfile.flush()
        self.close_connection = True


@contextmanager
def serving(script):
    """The address of a server that follows the script."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.script = True, script
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
