"""A city in three processes (server, city bot, e-mail bridge), a real SMTP server for its mail, and an ear on the wires
between them. Only the command line, the config file and HTTP are known here, nothing of the code."""

from __future__ import annotations

import asyncio
import collections
import datetime
import email
import email.message
import email.policy
import ipaddress
import os
import pathlib
import re
import secrets
import signal
import socket
import ssl
import subprocess
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from harness import Server, free_ports, wait_for

# The subcommand of each process, in the order in which they start.
PARTS = {"server": ("serve", "--server-only"), "city": ("city",), "mail": ("mail",)}
SENDER = "heya@city.example"


# Mail ----------------------------------------------------------------------------------------------------------------


class Mail:
    """A mail as the SMTP server took it."""

    def __init__(self, sender: str, to: list[str], raw: bytes) -> None:
        self.sender, self.to, self.raw = sender, to, raw
        self.parsed: email.message.EmailMessage = email.message_from_bytes(raw, policy=email.policy.default)
        self.id = str(self.parsed["Message-ID"])
        self.subject = str(self.parsed["Subject"])
        part = self.parsed.get_body(("plain",))
        assert part is not None, raw
        self.body: str = part.get_content()

    @property
    def rooms(self) -> set[int]:
        """The room numbers that the body names."""
        line = re.search(r"^部屋番号：(.*)$", self.body, re.M)
        return {int(number) for number in re.findall(r"\d+", line[1])} if line else set()

    @property
    def count(self) -> int:
        """How many notices it says to stand for."""
        found = re.search(r"(\d+) 件", self.body)
        assert found, self.body
        return int(found[1])

    def everything(self) -> str:
        """All that can be read of it: as sent, and headers and every part decoded."""
        parts = [self.raw.decode("utf-8", "replace"), *(f"{name}: {value}" for name, value in self.parsed.items())]
        for part in self.parsed.walk():
            if not part.is_multipart():
                parts += [part.get_content() if part.get_content_maintype() == "text" else "", part.get_filename() or ""]
        return "\n".join(parts)

    def __repr__(self) -> str:
        return f"<{self.subject} to {self.to} ({self.id})>"


class Smtp:
    """aiosmtpd: takes mail after STARTTLS and AUTH only, with a certificate by a CA of its own."""

    USER = "heya-mail"

    def __init__(self, folder: pathlib.Path, *, slow: float = 0.0) -> None:
        """`slow`: seconds at most between the mail and its 250."""
        folder.mkdir(parents=True, exist_ok=True)
        self.password = secrets.token_urlsafe(18)
        self.ca = folder / "smtp-ca.pem"
        self.mails: list[Mail] = []
        self.logins = 0
        self._slow = slow
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*self._certificates(folder))
        (self.port,) = free_ports(1)
        self._controller = Controller(
            self, hostname="127.0.0.1", port=self.port, tls_context=context, require_starttls=True, auth_required=True,
            authenticator=self._authenticate, data_size_limit=1 << 20, enable_SMTPUTF8=False)
        self._controller.start()

    def stop(self) -> None:
        self._controller.stop()

    def config(self) -> dict:
        """The `[mail]` settings of a city that sends through this server."""
        return {"enabled": True, "from": SENDER, "smtp_host": "localhost", "smtp_port": self.port,
                "smtp_security": "starttls", "smtp_user": self.USER, "smtp_ca": str(self.ca)}

    def _certificates(self, folder: pathlib.Path) -> tuple[str, str]:
        now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The mail server's CA")])

        def builder(name: x509.Name, public) -> x509.CertificateBuilder:
            return (x509.CertificateBuilder().subject_name(name).issuer_name(ca_name).public_key(public)
                    .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + 90 * day))

        ca = builder(ca_name, ca_key.public_key()).add_extension(x509.BasicConstraints(True, None), critical=True)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        leaf = builder(x509.Name([]), key.public_key()).add_extension(names, critical=True)
        self.ca.write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        pair = folder / "smtp.pem", folder / "smtp.key"
        pair[0].write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        pair[1].write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        return str(pair[0]), str(pair[1])

    def _authenticate(self, _server, _session, _envelope, _mechanism, given) -> AuthResult:
        fits = (isinstance(given, LoginPassword) and given.login == self.USER.encode()
                and given.password == self.password.encode())
        self.logins += fits
        return AuthResult(success=fits)

    async def handle_DATA(self, _server, session, envelope) -> str:  # noqa: N802 (aiosmtpd's name)
        if session.ssl is None or not session.authenticated:
            return "530 5.7.0 STARTTLS and AUTH first"
        self.mails.append(Mail(envelope.mail_from, list(envelope.rcpt_tos), bytes(envelope.content)))
        if self._slow:
            # A sender that dies now does not know that its mail has arrived.
            await asyncio.sleep(secrets.randbelow(1000) / 1000 * self._slow)
        return "250 2.0.0 taken"

    def of(self, address: str, *, subject: str = "", room: int | None = None, since: int = 0) -> list[Mail]:
        """Mails to an address, of a subject, about a room."""
        return [mail for mail in self.mails[since:] if address in mail.to and subject in mail.subject
                and (room is None or room in mail.rooms)]

    def expect(self, address: str, *, subject: str = "", room: int | None = None, since: int = 0, seconds: float = 30) -> Mail:
        """Waits for the first such mail."""
        what = f"a mail 「{subject}」 to {address} about room {room}; there are {self.mails[since:]}"
        return wait_for(lambda: self.of(address, subject=subject, room=room, since=since), seconds, what=what)[0]


# An ear on the wire --------------------------------------------------------------------------------------------------


class Ear:
    """Forwards connections to a port, and keeps the request lines that go through (plain HTTP/1.1)."""

    # It may follow a body, which ends without a line's end.
    LINE = re.compile(rb"((?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) [^ \r\n]+) HTTP/1\.[01]\r\n")

    def __init__(self, name: str, to: int) -> None:
        self.name, self._to = name, to
        self.lines: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, listening: bool) -> None:
        rest = b""
        try:
            while piece := source.recv(65_536):
                if listening:
                    rest += piece
                    for found in self.LINE.finditer(rest):
                        self.lines.append(found[1].decode("utf-8", "replace"))
                    # A request line may be cut by the end of a piece.
                    rest = rest[rest.rfind(b"\n"):] if b"\n" in rest else rest[-16_384:]
                sink.sendall(piece)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

    def close(self) -> None:
        self._listener.close()


# The three processes -------------------------------------------------------------------------------------------------


class City(Server):
    """A server with the bot and the bridge beside it, each a process of its own. With `ears` every request between them
    goes through an `Ear`: the bot and the bridge then have config files of their own that name its port."""

    def __init__(self, database: str = "sqlite", *, smtp: Smtp, folder: pathlib.Path, ears: bool = False,
                 config: dict | None = None, env: dict[str, str] | None = None) -> None:
        self.smtp, self.with_ears = smtp, ears
        self.processes: dict[str, subprocess.Popen] = {}
        self.ears: list[Ear] = []
        self.starts: collections.Counter[str] = collections.Counter()
        tables = {"mail": smtp.config() | {"digest_seconds": 1}}
        for name, values in (config or {}).items():
            tables[name] = tables.get(name, {}) | values
        super().__init__(database, "city", bot=True, config=tables, folder=folder, env=env)

    # Configuration

    def _write_config(self) -> None:
        if not self.with_ears:
            super()._write_config()
            return
        _, _, internal, bot, mail = self.ports
        to_server, to_bot, to_mail = Ear("to the server", internal), Ear("to the bot", bot), Ear("to the bridge", mail)
        self.ears = [to_server, to_bot, to_mail]
        super()._write_config()
        own = (self.folder / "config.toml").read_text(encoding="utf-8")
        listen = 'listen = "127.0.0.1:{}"'.format
        # Bot and bridge call the server, and are called by it, through the ears.
        (self.folder / "beside.toml").write_text(
            own.replace("internal_" + listen(internal), "internal_" + listen(to_server.port)), encoding="utf-8")
        own = own.replace("bot_" + listen(bot), "bot_" + listen(to_bot.port))
        own = own.replace("\n" + listen(mail), "\n" + listen(to_mail.port))
        (self.folder / "config.toml").write_text(own, encoding="utf-8")

    def part_command(self, part: str) -> list[str]:
        command = self.command(*PARTS[part])
        if self.with_ears and part != "server":
            command[2] = str(self.folder / "beside.toml")
        return command

    # Running

    def start(self) -> None:
        """Starts what does not run, in order, and waits until each answers."""
        for part in PARTS:
            if part not in self.processes:
                self.start_part(part)

    def start_part(self, part: str) -> None:
        """Starts one process and waits until it listens."""
        self.starts[part] += 1
        with open(self.folder / f"{part}.log", "ab") as log:
            self.processes[part] = subprocess.Popen(self.part_command(part), stdout=log, stderr=log, cwd=self.folder,
                                                    env=os.environ | self.env)
        wait_for(lambda: self.part_listens(part), 60, 0.02, f"{part} (see {self.folder}/{part}.log)")
        if part == "server":
            self.process = self.processes[part]
            secret = self.data / "keys" / "smtp.password"
            if not secret.exists():
                secret.touch(mode=0o600)
                secret.write_text(self.smtp.password + "\n", encoding="utf-8")

    def part_listens(self, part: str) -> bool:
        ended = self.processes[part].poll()
        assert ended is None, f"{part} ended with {ended}:\n{self.log_of(part)[-3000:]}"
        if part == "server":
            self.process = self.processes[part]
            return self.healthy()
        try:
            socket.create_connection(("127.0.0.1", self.ports[{"city": 3, "mail": 4}[part]]), timeout=5).close()
            return True
        except OSError:
            return False

    def log_of(self, part: str) -> str:
        path = self.folder / f"{part}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def log(self) -> str:
        return "\n".join(self.log_of(part) for part in PARTS)

    def kill_part(self, part: str) -> None:
        """kill -9, of this process alone."""
        process = self.processes.pop(part)
        process.kill()
        process.wait()
        if part == "server":
            self._internal = threading.local()

    def kill(self) -> None:
        for part in list(self.processes):
            self.kill_part(part)

    def stop(self) -> int:
        """Asks each to stop, the server last; 0 where all ended well."""
        worst = 0
        for part in reversed(PARTS):
            process = self.processes.pop(part, None)
            if process is None:
                continue
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            worst = worst or process.returncode
        self._internal = threading.local()
        return worst

    def remove(self) -> None:
        super().remove()
        for ear in self.ears:
            ear.close()

    # Commands

    def heya(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess:
        """A command as the city's administrator types it."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout, cwd=self.folder,
                              env=os.environ | self.env, check=False)


# The bot's words -----------------------------------------------------------------------------------------------------


def sheets_in(answer: str) -> list[str]:
    """The handover sheets that the bot names."""
    line = re.search(r"^票：([^（\n]*)", answer, re.M)
    assert line, answer
    return [path.strip() for path in line[1].split("、")]


def login_id_in(answer: str) -> str:
    found = re.search(r"利用者ID：([^（\n]+)（", answer)
    assert found, answer
    return found[1]


def case_shown(event: dict) -> int | None:
    """The number of a case that this message of the bot shows to the city."""
    body = event.get("content", {}).get("body", "")
    found = re.match(r"案件 (\d+)（依頼：", body)
    return int(found[1]) if found else None


def today() -> str:
    """The date in Japan."""
    return datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=9))).strftime("%Y-%m-%d")
