"""An appservice that is not ours: takes transactions, answers questions, and fails when it is told to."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import pathlib
import secrets
import select
import threading
import time
import urllib.parse
from typing import Any, Callable

from harness import Client, Server, free_ports, quote


@dataclasses.dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    query: dict[str, list[str]]
    token: str
    body: bytes
    mode: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Appservice:
    """Listens on a port of its own. `mode` says what happens to transactions and pings: "ok", "500", "hang" (until the
    mode changes or the server hangs up, then closes), "close" (takes it and closes without an answer)."""

    def __init__(self, name: str, *, users: str | None = None, aliases: str | None = None, rooms: str | None = None,
                 exclusive: bool = True, **more: Any) -> None:
        (self.port,) = free_ports(1)
        self.id, self.mode = name, "ok"
        self.as_token, self.hs_token = f"as-{secrets.token_hex(16)}", f"hs-{secrets.token_hex(16)}"
        self.namespaces = {kind: [(exclusive, regex)] if regex else []
                           for kind, regex in {"users": users, "aliases": aliases, "rooms": rooms}.items()}
        self.more = more
        self.asked: list[Asked] = []
        self.under_way = 0
        self.most_under_way = 0
        # Answers to questions: path below /_matrix/app/v1 → a function that gives (status, JSON).
        self.answers: dict[str, Callable[[Asked], tuple[int, Any]]] = {}
        self._lock = threading.Lock()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def do_PUT(self) -> None:
                owner._transaction(self)

            def do_POST(self) -> None:
                owner._transaction(self)

            def do_GET(self) -> None:
                owner._question(self)

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.mode = "ok"
        self._http.shutdown()
        self._http.server_close()

    def registration(self, folder: pathlib.Path) -> str:
        """Writes the registration file as appservices do, in YAML; its path."""
        lines = [f"# Written by {self.id}.", f"id: {self.id}", f"url: http://127.0.0.1:{self.port}", f"as_token: {self.as_token}",
                 f"hs_token: {self.hs_token}", f"sender_localpart: {self.id}bot", "some.unknown.key: [1, {x: y}]"]
        lines += [f"{key}: {json.dumps(value)}" for key, value in self.more.items()]
        lines.append("namespaces:")
        for kind, all_of_kind in self.namespaces.items():
            lines.append(f"  {kind}:" + ("" if all_of_kind else " []"))
            lines += [f"    - exclusive: {str(exclusive).lower()}\n      regex: '{regex}'" for exclusive, regex in all_of_kind]
        path = folder / f"{self.id}.yaml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    # Towards the server

    def client(self, server: Server) -> Client:
        return Client(server.internal_base, token=self.as_token)

    def register(self, server: Server, name: str, inhibit_login: bool = True):
        """Makes one of its users; the answer."""
        client = self.client(server)
        body = {"type": "m.login.application_service", "username": name}
        answer = client.post("/_matrix/client/v3/register", body | ({"inhibit_login": True} if inhibit_login else {}))
        client.close()
        return answer

    def ping(self, server: Server):
        client = self.client(server)
        answer = client.post(f"/_matrix/client/v1/appservice/{quote(self.id)}/ping", {"transaction_id": "ping-1"})
        client.close()
        return answer

    # What came

    def transactions(self) -> list[Asked]:
        with self._lock:
            return [one for one in self.asked if one.method == "PUT"]

    def questions(self, part: str = "") -> list[Asked]:
        with self._lock:
            return [one for one in self.asked if one.method == "GET" and part in one.path]

    def events(self) -> list[dict]:
        """The events of all transactions, each transaction once, in the order in which they first came."""
        seen: dict[str, list[dict]] = {}
        for one in self.transactions():
            seen.setdefault(one.path, one.json["events"])
        return [event for events in seen.values() for event in events]

    def ephemeral(self, kind: str) -> list[dict]:
        return [event for one in self.transactions() for event in one.json.get("ephemeral", []) if event["type"] == kind]

    # Answering

    def _read(self, request: http.server.BaseHTTPRequestHandler) -> Asked:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        parts = urllib.parse.urlsplit(request.path)
        asked = Asked(request.command, parts.path, urllib.parse.parse_qs(parts.query),
                      (request.headers.get("Authorization") or "").removeprefix("Bearer "), body, self.mode)
        with self._lock:
            self.asked.append(asked)
        return asked

    @staticmethod
    def _answer(request: http.server.BaseHTTPRequestHandler, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _hang(self, request: http.server.BaseHTTPRequestHandler) -> None:
        while self.mode == "hang":
            readable, _, _ = select.select([request.connection], [], [], 0.02)
            if readable:
                return

    def _transaction(self, request: http.server.BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.under_way += request.command == "PUT"
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            asked = self._read(request)
            if asked.token == self.hs_token and asked.mode == "hang":
                self._hang(request)
        finally:
            with self._lock:
                # Before the answer: the next one may come at once.
                self.under_way -= request.command == "PUT"
        if asked.token != self.hs_token:
            self._answer(request, 403, {"errcode": "M_FORBIDDEN"})
        elif asked.mode == "500":
            self._answer(request, 500, {"errcode": "M_UNKNOWN"})
        elif asked.mode in ("hang", "close"):
            request.close_connection = True
        else:
            self._answer(request, 200, {})

    def _question(self, request: http.server.BaseHTTPRequestHandler) -> None:
        asked = self._read(request)
        path = urllib.parse.unquote(asked.path.removeprefix("/_matrix/app/v1"))
        if asked.token != self.hs_token:
            self._answer(request, 403, {"errcode": "M_FORBIDDEN"})
        elif path in self.answers:
            status, body = self.answers[path](asked)
            if status == 0:
                time.sleep(40)
            self._answer(request, status or 200, body)
        else:
            self._answer(request, 404, {"errcode": "M_NOT_FOUND"})
