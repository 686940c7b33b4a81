"""Starts the real server and enrols real people, for black-box tests.

Nothing here knows the server's code: it starts the binary with a config of its own, reads the handover sheets that the
first start writes, goes through the enrolment pages over TLS, and uses the internal listener with the command token
(docs/internal-api.md). `python -m harness up --people 3 --out city.json` keeps such a city up for other suites.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import html
import http.client
import itertools
import json
import os
import pathlib
import re
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from typing import Any

import requests
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12

ROOT = pathlib.Path(__file__).resolve().parents[2]
# At most so many of pytest-xdist's workers share a machine.
WORKERS = 8
# What is required within five seconds. HEYA_PATIENCE says how many times as long a slow machine may take.
REVOKED_WITHIN = 5.0 * float(os.environ.get("HEYA_PATIENCE", "1"))
CONTACT = "〇〇市 試験担当課\n電話 0000-00-1234"
# The newest installed.
PG_BIN = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name),
             default=pathlib.Path("/usr/lib/postgresql/15/bin"))

# Debian's package libfaketime: a clock that is ahead.
LIBFAKETIME = next(iter(glob.glob("/usr/lib/*/faketime/libfaketime.so.1")), None)


def binary() -> str:
    """The server under test: HEYA_BIN, or the debug build."""
    return os.environ.get("HEYA_BIN") or str(ROOT / "target" / "debug" / "heya")


def free_ports(count: int) -> list[int]:
    """Ports that are free, below those that the system hands out: while a server is stopped and started again, nobody's
    connection takes its port. Each of pytest-xdist's workers has a range of its own, so that none takes a port that
    another has just found free."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    first, width = 12_000, 20_000 // WORKERS
    ports: list[int] = []
    while len(ports) < count:
        port = first + worker * width + random.randrange(width)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


def wait_for(condition, seconds: float = 20.0, every: float = 0.05, what: str = "a condition"):
    """Polls until the condition is true and returns its value; fails with what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(every)


def quote(text: str) -> str:
    """A path segment."""
    return urllib.parse.quote(text, safe="")


# PostgreSQL ----------------------------------------------------------------------------------------------------------


class Postgres:
    """A PostgreSQL to make databases in: HEYA_TEST_POSTGRES, or a throw-away cluster."""

    _shared: Postgres | None = None

    def __init__(self) -> None:
        self.folder: pathlib.Path | None = None
        self.url = os.environ.get("HEYA_TEST_POSTGRES", "")
        if not self.url:
            self._cluster()

    @classmethod
    def shared(cls) -> Postgres:
        """One for the whole run; raises RuntimeError with the reason where there can be none."""
        if cls._shared is None:
            cls._shared = cls()
        return cls._shared

    @staticmethod
    def _as_postgres(command: list[str]) -> list[str]:
        # The server refuses to run as root.
        return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command

    def _cluster(self) -> None:
        if not (PG_BIN / "initdb").exists():
            raise RuntimeError(f"no PostgreSQL: set HEYA_TEST_POSTGRES or install {PG_BIN}")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="heya-pg-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        data = self.folder / "data"
        (port,) = free_ports(1)
        self._run([PG_BIN / "initdb", "--locale=C", "-E", "UTF8", "-A", "trust", "-U", "postgres", "-D", data])
        # The tests kill our process, never the database or the machine: its fsync protects nothing here.
        options = f"-p {port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        self._run([PG_BIN / "pg_ctl", "-D", data, "-w", "-l", self.folder / "log", "-o", options, "start"])
        self.url = f"postgres://postgres@127.0.0.1:{port}/postgres"

    def _run(self, command: list[Any]) -> None:
        done = subprocess.run(
            self._as_postgres([str(word) for word in command]),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/", text=True, check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr}")

    def query(self, sql: str, database: str | None = None) -> str:
        """Runs one statement with psql."""
        url = self.url if database is None else self.database_url(database)
        psql = shutil.which("psql") or str(PG_BIN / "psql")
        done = subprocess.run([psql, url, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def database_url(self, name: str) -> str:
        parts = urllib.parse.urlsplit(self.url)
        return urllib.parse.urlunsplit(parts._replace(path=f"/{name}"))

    def create(self) -> str:
        """A new database with the collation that the server needs; its name."""
        name = f"heya_{secrets.token_hex(6)}"
        self.query(f"CREATE DATABASE {name} ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        return name

    def drop(self, name: str) -> None:
        self.query(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def stop(self) -> None:
        if self.folder is not None:
            with contextlib.suppress(RuntimeError):
                self._run([PG_BIN / "pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop"])
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
        Postgres._shared = None


# Clients -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Answer:
    """What came back."""

    status: int
    headers: Any
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def text(self) -> str:
        return self.content.decode()

    @property
    def errcode(self) -> str | None:
        """The Matrix error code; None where the body is no error object."""
        try:
            body = json.loads(self.content)
        except ValueError:
            return None
        return body.get("errcode") if isinstance(body, dict) else None

    @property
    def told(self) -> tuple[int, str | None]:
        """Status and error code, to compare with what is specified."""
        return self.status, self.errcode

    def __repr__(self) -> str:
        return f"<{self.status} {self.content[:300]!r}>"


class Client:
    """Talks HTTP to one address. Paths go out byte for byte as given; one connection is kept (not for threads)."""

    def __init__(self, base: str, *, ca: pathlib.Path | None = None, cert: tuple[pathlib.Path, pathlib.Path] | None = None,
                 token: str | None = None, timeout: float = 40.0) -> None:
        self.base, self.ca, self.cert, self.token, self.timeout = base.rstrip("/"), ca, cert, token, timeout
        parts = urllib.parse.urlsplit(self.base)
        self.scheme, self.host, self.port = parts.scheme, parts.hostname, parts.port
        self._connection: http.client.HTTPConnection | None = None
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """The TLS settings of this client, with its certificate where it has one."""
        if self._context is None:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            if self.cert:
                context.load_cert_chain(str(self.cert[0]), str(self.cert[1]))
            self._context = context
        return self._context

    def connect(self) -> http.client.HTTPConnection:
        """A new connection, with its handshake done."""
        if self.scheme == "https":
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout, context=self.context())
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(self, method: str, path: str, *, json_body: Any = None, body: bytes | None = None,
                headers: dict[str, str] | None = None, query: dict[str, Any] | None = None,
                token: str | None = None) -> Answer:
        """Sends a request. `token=""` sends none; a broken idle connection is opened again once."""
        if query:
            path += "?" + urllib.parse.urlencode(query)
        sent = {"Accept": "application/json"}
        token = self.token if token is None else token
        if token:
            sent["Authorization"] = f"Bearer {token}"
        if json_body is not None:
            body = json.dumps(json_body, ensure_ascii=False).encode()
            sent["Content-Type"] = "application/json"
        sent.update(headers or {})
        for attempt in (0, 1):
            fresh = self._connection is None
            if fresh:
                self._connection = self.connect()
            try:
                self._connection.request(method, path, body=body, headers=sent)
                response = self._connection.getresponse()
                content = response.read()
                if response.will_close:
                    self.close()
                return Answer(response.status, response.headers, content)
            except (http.client.HTTPException, OSError):
                self.close()
                if fresh or attempt:
                    raise
        raise AssertionError("unreachable")

    def get(self, path: str, **more: Any) -> Answer:
        return self.request("GET", path, **more)

    def post(self, path: str, json_body: Any = None, **more: Any) -> Answer:
        return self.request("POST", path, json_body={} if json_body is None and "body" not in more else json_body, **more)

    def put(self, path: str, json_body: Any = None, **more: Any) -> Answer:
        return self.request("PUT", path, json_body={} if json_body is None and "body" not in more else json_body, **more)

    def delete(self, path: str, json_body: Any = None, **more: Any) -> Answer:
        return self.request("DELETE", path, json_body=json_body, **more)

    # Short forms of what tests do all the time; each fails loudly.

    _txn = itertools.count()

    def ok(self, method: str, path: str, json_body: Any = None, **more: Any) -> Any:
        """The JSON of an answer that must be 200."""
        answer = self.request(method, path, json_body=json_body, **more)
        assert answer.status == 200, f"{method} {path}: {answer}"
        return answer.json

    def say(self, room_id: str, text: str = "こんにちは", txn: str | None = None, **content: Any) -> str:
        txn = txn or f"t{next(Client._txn)}-{secrets.token_hex(3)}"
        content = {"msgtype": "m.text", "body": text, **content}
        return self.ok("PUT", f"/_matrix/client/v3/rooms/{quote(room_id)}/send/m.room.message/{txn}", content)["event_id"]

    def messages(self, room_id: str, direction: str = "b", limit: int = 1000, start: str | None = None) -> list[dict]:
        """The whole timeline from one end, newest first for "b"."""
        events: list[dict] = []
        while True:
            query = {"dir": direction, "limit": limit} | ({"from": start} if start else {})
            page = self.ok("GET", f"/_matrix/client/v3/rooms/{quote(room_id)}/messages", query=query)
            events += page["chunk"]
            start = page.get("end")
            if start is None:
                return events

    def sync(self, since: str | None = None, timeout: int = 0, **query: Any) -> dict:
        query |= {"timeout": timeout} | ({"since": since} if since else {})
        return self.ok("GET", "/_matrix/client/v3/sync", query=query)

    def state(self, room_id: str, kind: str, key: str = "") -> dict:
        return self.ok("GET", f"/_matrix/client/v3/rooms/{quote(room_id)}/state/{quote(kind)}/{quote(key)}")


# The server ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Terminal:
    """A terminal's files and number."""

    cert: pathlib.Path
    key: pathlib.Path
    p12: pathlib.Path
    p12_password: str
    number: int = 0

    @property
    def pair(self) -> tuple[pathlib.Path, pathlib.Path]:
        return self.cert, self.key


@dataclasses.dataclass
class Person:
    """Somebody with an ID, a terminal, and a session on it."""

    server: Server
    user_id: str
    login_id: str
    facility: int
    password: str = ""
    terminal: Terminal | None = None
    token: str = ""
    device_id: str = ""
    sheets: list[str] = dataclasses.field(default_factory=list)
    _client: Client | None = None

    @property
    def client(self) -> Client:
        """The one client of the person's first session."""
        if self._client is None:
            self._client = self.server.public(self.terminal, self.token)
        return self._client

    def log_in(self, terminal: Terminal | None = None, **more: Any) -> Client:
        """A further session on a terminal (the person's own by default), as a client of its own."""
        client = self.server.public(terminal or self.terminal)
        done = self.server.log_in(client, self.login_id, self.password, **more)
        assert done.status == 200, done
        client.token = done.json["access_token"]
        return client


_serial = itertools.count(1)


class Server:
    """One running server with its own folder, ports and database."""

    def __init__(self, database: str = "sqlite", profile: str = "city", *, bot: bool = False,
                 config: dict[str, dict[str, Any]] | None = None, folder: pathlib.Path | None = None,
                 env: dict[str, str] | None = None) -> None:
        self.profile, self.database, self.bot, self.env = profile, database, bot, env or {}
        self.folder = folder or pathlib.Path(tempfile.mkdtemp(prefix="heya-test-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self.folder / "data"
        self.overrides = config or {}
        self.process: subprocess.Popen | None = None
        self.postgres_name: str | None = None
        if database == "postgres":
            self.postgres_name = Postgres.shared().create()
        self.first: Person | None = None
        self._facilities: dict[str, int] = {}
        self._internal = threading.local()
        self.ports = free_ports(5)
        self._write_config()
        self.start()

    # Running

    def _write_config(self) -> None:
        public, enrol, internal, bot, mail = self.ports
        scheme = "https" if self.profile == "city" else "http"
        self.base = f"{scheme}://localhost:{public}"
        self.enrol_base = f"{scheme}://localhost:{enrol}"
        self.internal_base = f"http://127.0.0.1:{internal}"
        self.server_name = f"localhost:{public}"
        tables: dict[str, dict[str, Any]] = {
            "server": {
                "public_url": self.base, "listen": f"127.0.0.1:{public}", "enrol_listen": f"127.0.0.1:{enrol}",
                "internal_listen": f"127.0.0.1:{internal}", "data_dir": str(self.data),
                "database_url": Postgres.shared().database_url(self.postgres_name) if self.postgres_name else "sqlite:",
            },
            "policy": {"rate_limits": False},
            "city": {"contact": CONTACT, "bot": self.bot, "bot_listen": f"127.0.0.1:{bot}"},
            "mail": {"listen": f"127.0.0.1:{mail}"},
        }
        for table, values in self.overrides.items():
            tables.setdefault(table, {}).update(values)
        # Every JSON string, number, list and boolean is TOML as well; a table within a line is not.
        def toml(value: Any) -> str:
            if isinstance(value, dict):
                return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
            return json.dumps(value)

        lines = []
        for table, values in tables.items():
            lines.append(f"[{table}]")
            lines += [f"{key} = {toml(value)}" for key, value in values.items()]
        (self.folder / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        return [binary(), "--config", str(self.folder / "config.toml"), *arguments]

    def start(self) -> None:
        """Starts the process and waits until it answers."""
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(self.command("serve", "--profile", self.profile), stdout=log, stderr=log,
                                            cwd=self.folder, env=os.environ | self.env)
        wait_for(self.healthy, 60, 0.02, f"the server (see {self.folder}/log)")

    def healthy(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()[-3000:]}")
        try:
            with socket.create_connection(("127.0.0.1", self.ports[2]), timeout=5) as probe:
                probe.sendall(b"GET /_heya/health HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return b" 200 " in probe.makefile("rb").readline()
        except OSError:
            return False

    def log(self) -> str:
        """What the server has logged."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Ends the process at once, as a power failure would (of the process)."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._internal = threading.local()

    def stop(self) -> int:
        """Asks the process to stop; its exit status."""
        assert self.process is not None
        self._internal = threading.local()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def restart(self) -> None:
        self.stop()
        self.start()

    def later(self, offset: str) -> None:
        """Starts the process again with a clock that is ahead of the real one ("+91d", "+61s"); needs LIBFAKETIME."""
        assert LIBFAKETIME is not None
        self.env = self.env | {"LD_PRELOAD": LIBFAKETIME, "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                               "DONT_FAKE_MONOTONIC": "1"}
        self.restart()

    def remove(self) -> None:
        """Stops the server and removes what it leaves."""
        self.stop()
        if self.postgres_name:
            Postgres.shared().drop(self.postgres_name)
        if not os.environ.get("HEYA_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)

    # Clients

    @property
    def ca(self) -> pathlib.Path | None:
        return self.data / "keys" / "ca.pem" if self.profile == "city" else None

    def public(self, terminal: Terminal | None = None, token: str | None = None) -> Client:
        return Client(self.base, ca=self.ca, cert=terminal.pair if terminal else None, token=token)

    def secret(self, name: str) -> str:
        return (self.data / "keys" / name).read_text().strip()

    @property
    def internal(self) -> Client:
        """The internal listener as a local command; one connection per thread."""
        if not hasattr(self._internal, "client"):
            self._internal.client = Client(self.internal_base, token=self.secret("command.token"))
        return self._internal.client

    def as_city(self, localpart: str | None = None) -> Client:
        """The internal listener as the city's own appservice."""
        registration = json.loads(self.secret("city.registration.json"))
        return Client(self.internal_base, token=registration["as_token"])

    @property
    def city_user(self) -> str:
        return f"@city:{self.server_name}"

    # The city's work, by /_heya/v1

    def act(self, path: str, body: dict | None = None, *, key: str | None = None, expect: int | None = 200,
            acting: str = "command") -> Any:
        """A call that changes something."""
        answer = self.internal.post(f"/_heya/v1/{path}", {"acting": acting, **(body or {})},
                                    headers={"Idempotency-Key": key or secrets.token_hex(8)})
        if expect is None:
            return answer
        assert answer.status == expect, f"{path}: {answer}"
        return answer.json

    def look(self, path: str) -> Any:
        return self.internal.ok("GET", f"/_heya/v1/{path}")

    def search(self, query: str) -> Any:
        """The accounts whose login id, name or facility fits."""
        return self.internal.ok("POST", "/_heya/v1/accounts/search", {"query": query})

    def facility(self, name: str | None = None, kind: str = "care") -> int:
        name = name or f"試験事業所{next(_serial)}"
        if name not in self._facilities:
            self._facilities[name] = self.act("facilities", {"name": name, "kind": kind, "pledge": True})["facility"]
        return self._facilities[name]

    def issue(self, facility: int | None = None, kind: str = "personal", name: str | None = None) -> Person:
        """An account that is not enrolled yet, with its sheets."""
        facility = self.facility() if facility is None else facility
        body: dict[str, Any] = {"facility": facility, "kind": kind, "pledge": True}
        if kind == "personal":
            body |= {"name": name or f"試験太郎{next(_serial)}", "profession": "看護師"}
        done = self.act("accounts", body)
        return Person(self, done["user_id"], done["login_id"], facility, sheets=done["sheets"])

    def sheet(self, path: str) -> list[str]:
        """The values on a handover sheet: [login id, initial password, URL] or [code, URL]."""
        text = (self.data / path).read_text(encoding="utf-8")
        return [html.unescape(value) for value in re.findall(r'<span class="value[^"]*">([^<]*)</span>', text)]

    def secrets_of(self, person: Person) -> tuple[str, str]:
        """Initial password and code from the person's two sheets."""
        password = next(sheet for sheet in person.sheets if "password" in sheet)
        code = next(sheet for sheet in person.sheets if "code" in sheet)
        return self.sheet(password)[1], self.sheet(code)[0]

    def enrol(self, person: Person, *, password: str | None = None, label: str = "受付のパソコン") -> Terminal:
        """Goes through the enrolment pages as a person does, on the first terminal."""
        initial, code = self.secrets_of(person)
        person.password = password or f"Ume-{secrets.token_hex(4)}-37"
        person.terminal = Enrolment(self).through(person.login_id, initial, code, person.password, label=label)
        return person.terminal

    def further_terminal(self, person: Person, label: str = "訪問用スマートフォン") -> Terminal:
        sheets = self.act(f"accounts/{quote(person.user_id)}/codes")["sheets"]
        return Enrolment(self).through(person.login_id, person.password, self.sheet(sheets[0])[0], None, label=label)

    def log_in(self, client: Client, login_id: str, password: str, **more: Any) -> Answer:
        body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": login_id}, "password": password}
        return client.post("/_matrix/client/v3/login", body | more, token="")

    def person(self, facility: int | None = None, kind: str = "personal", name: str | None = None) -> Person:
        """Somebody enrolled and logged in."""
        person = self.issue(facility, kind, name)
        return self._ready(person)

    def _ready(self, person: Person) -> Person:
        self.enrol(person)
        done = self.log_in(self.public(person.terminal), person.login_id, person.password)
        assert done.status == 200, done
        person.token, person.device_id = done.json["access_token"], done.json["device_id"]
        return person

    def first_staff(self) -> Person:
        """The city's first member of staff, enrolled from the sheets of the first start."""
        if self.first is None:
            sheets = sorted(f"sheets/{path.name}" for path in (self.data / "sheets").glob("000[12]-*.html"))
            password = next(sheet for sheet in sheets if "password" in sheet)
            login_id = self.sheet(password)[0]
            control = self.look("control")
            user_id = f"@{login_id}:{control['server_name']}"
            self.first = self._ready(Person(self, user_id, login_id, 0, sheets=sheets))
        return self.first

    def room(self, *members: Person, kind: str = "association", name: str | None = None, **more: Any) -> str:
        """Opens a room of the city with these members; its id."""
        body = {"case": f"case-{next(_serial)}-{secrets.token_hex(3)}", "kind": kind, "name": name or "試験の部屋",
                "members": [person.user_id for person in members], "opening_notice": "部屋を開設しました。"}
        return self.act("rooms", body | more)["room_id"]

    def change_members(self, room_id: str, add: list[Person] = (), remove: list[Person] = ()) -> dict:
        body = {"case": f"case-{next(_serial)}", "add": [p.user_id for p in add], "remove": [p.user_id for p in remove]}
        return self.act(f"rooms/{quote(room_id)}/members", body)

    def close_room(self, room_id: str) -> None:
        self.act(f"rooms/{quote(room_id)}/close", {"case": f"case-{next(_serial)}", "notice": "この部屋は終了しました。"})

    def revoke(self, terminal: int) -> dict:
        return self.act(f"terminals/{terminal}/revoke", {"reason": "試験"})

    def terminal_number(self, person: Person, serial: str | None = None) -> int:
        """The number of the person's newest terminal, or of the one with this certificate."""
        rows = self.look(f"accounts/{quote(person.user_id)}/terminals")["terminals"]
        if serial is not None:
            rows = [row for row in rows if row["serial"] == serial]
        return max(row["terminal"] for row in rows)

    # The open profile

    def register(self, name: str | None = None, password: str = "Ume-hana-37") -> Person:
        """An account of the open profile."""
        name = name or f"u{next(_serial)}{secrets.token_hex(3)}"
        done = self.public().ok("POST", "/_matrix/client/v3/register",
                                {"username": name, "password": password, "auth": {"type": "m.login.dummy"}})
        return Person(self, done["user_id"], name, 0, password, None, done["access_token"], done["device_id"])

    # The database, for counting only

    def count(self, sql: str) -> int:
        """One number from the database, read beside the server."""
        if self.postgres_name:
            return int(Postgres.shared().query(sql, self.postgres_name))
        import sqlite3

        with contextlib.closing(sqlite3.connect(self.data / "heya.sqlite", timeout=10)) as connection:
            return connection.execute(sql).fetchone()[0]


class Enrolment:
    """The enrolment pages, as a browser sees them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.session = requests.Session()
        self.session.verify = str(server.ca)
        self.session.trust_env = False
        self.page = ""
        self.answer: requests.Response | None = None

    def url(self, path: str) -> str:
        return self.server.enrol_base + path

    def _take(self, answer: requests.Response) -> requests.Response:
        self.answer, self.page = answer, answer.content.decode(errors="replace")
        return answer

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]*)"', self.page)
        return html.unescape(found[1]) if found else ""

    def get(self, path: str) -> requests.Response:
        return self._take(self.session.get(self.url(path), timeout=60))

    def begin(self, login_id: str, password: str, code: str) -> requests.Response:
        """Step one. Tries are counted by address, and all tests have one: where it is busy, a person tries again."""
        deadline = time.monotonic() + 30
        while True:
            self.get("/enrol")
            form = {"csrf": self.csrf(), "login_id": login_id, "password": password, "code": code}
            answer = self._take(self.session.post(self.url("/enrol"), data=form, timeout=60))
            if "混み合っています" not in self.page or time.monotonic() > deadline:
                return answer
            time.sleep(0.5)

    def choose(self, password: str | None, *, again: str | None = None, label: str = "受付のパソコン",
               ownership: str = "facility", csrf: str | None = None) -> requests.Response:
        """Step two."""
        form = {"csrf": self.csrf() if csrf is None else csrf, "terminal_label": label, "ownership": ownership}
        if password is not None:
            form |= {"new_password": password, "new_password_again": password if again is None else again}
        return self._take(self.session.post(self.url("/enrol/password"), data=form, timeout=60))

    def fetch(self, path: str = "/enrol/terminal.p12") -> Terminal:
        """Step three: the certificate, unpacked into PEM files."""
        found = re.search(r'<p class="secret"[^>]*>([^<]+)</p>', self.page)
        assert found, self.page
        password = html.unescape(found[1])
        answer = self.session.get(self.url(path), timeout=60)
        assert answer.status_code == 200, answer
        return unpack(answer.content, password, self.server.folder / "terminals")

    def through(self, login_id: str, password: str, code: str, new_password: str | None, *,
                label: str = "受付のパソコン") -> Terminal:
        """All three steps."""
        answer = self.begin(login_id, password, code)
        assert answer.status_code == 200, f"step one: {answer.status_code} {self.page}"
        answer = self.choose(new_password, label=label)
        assert answer.status_code == 200 and answer.url.endswith("/enrol/done"), f"step two: {answer} {self.page}"
        return self.fetch()


def unpack(content: bytes, password: str, folder: pathlib.Path) -> Terminal:
    """A .p12 file as PEM files."""
    folder.mkdir(parents=True, exist_ok=True)
    key, certificate, _ = pkcs12.load_key_and_certificates(content, password.encode())
    assert key is not None and certificate is not None
    stem = folder / f"{certificate.serial_number:x}"
    terminal = Terminal(stem.with_suffix(".pem"), stem.with_suffix(".key"), stem.with_suffix(".p12"), password)
    terminal.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    terminal.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    terminal.key.chmod(0o600)
    terminal.p12.write_bytes(content)
    terminal.number = 0
    return terminal


# The command line ----------------------------------------------------------------------------------------------------


def up(people: int, out: pathlib.Path, database: str, encryption: str) -> None:
    """A city with people in one room, up until SIGTERM; what a browser test needs goes to `out`."""
    server = Server(database, bot=True, config={"policy": {"encryption": encryption}})
    try:
        staff = server.first_staff()
        facility = server.facility("あおば訪問看護", "visiting_nurse")
        members = [server.person(facility, name=f"試験花子{i}") for i in range(1, people + 1)]
        rooms = {"association": server.room(staff, *members, name="在宅医療連携会議")}
        rooms["subject"] = server.room(
            *members, kind="subject", name=None,
            subject={"name": "見本一郎", "birth_date": "1940-01-01", "address": "〇〇市見本1-1", "eligibility": "home"})
        control = server.look("control")
        rooms |= {"control": control["control_room"], "announcement": control["announcement_room"]}

        def described(person: Person) -> dict:
            terminal = person.terminal
            return {"user_id": person.user_id, "login_id": person.login_id, "password": person.password,
                    "access_token": person.token, "device_id": person.device_id, "p12": str(terminal.p12),
                    "p12_password": terminal.p12_password, "cert": str(terminal.cert), "key": str(terminal.key)}

        city = {"base_url": server.base, "enrol_url": f"{server.enrol_base}/enrol", "internal_url": server.internal_base,
                "ca": str(server.ca), "server_name": server.server_name, "folder": str(server.folder),
                "staff": described(staff), "people": [described(person) for person in members], "rooms": rooms}
        partial = out.with_suffix(".part")
        partial.write_text(json.dumps(city, ensure_ascii=False, indent=2), encoding="utf-8")
        partial.replace(out)  # whoever waits for the file finds it whole
        print(f"up: {server.base} ({out})", flush=True)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not stop.wait(0.5):
            assert server.process is not None
            if server.process.poll() is not None:
                raise SystemExit(f"the server ended:\n{server.log()[-3000:]}")
    finally:
        server.remove()
        if Postgres._shared is not None:
            Postgres._shared.stop()


def main() -> None:
    arguments = argparse.ArgumentParser(prog="harness", description=__doc__)
    commands = arguments.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="a city with people, up until SIGTERM")
    start.add_argument("--people", type=int, default=3)
    start.add_argument("--out", type=pathlib.Path, default=pathlib.Path("city.json"))
    start.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    start.add_argument("--encryption", choices=["forbidden", "allowed"], default="forbidden")
    given = arguments.parse_args()
    up(given.people, given.out, given.database, given.encryption)


if __name__ == "__main__":
    sys.exit(main())
