"""HTTP pushers (REQUIREMENTS C19, C31; DESIGN 18), against gateways of our own over TLS: what they are told, what they are
never told, and that one which fails holds up nobody."""

from __future__ import annotations

import datetime
import html
import http.server
import ipaddress
import json
import pathlib
import re
import secrets
import ssl
import threading
import time
import urllib.parse

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from harness import Client, Person, Server, free_ports, quote, wait_for
from parts import City, Smtp

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
PATH = "/_matrix/push/v1/notify"


class Authority:
    """A CA for the gateways."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Gateways' CA")])
        self.certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self.key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(self.key, hashes.SHA256()))
        self.path = folder / "gateways-ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def context(self, host: str = "localhost") -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(host)]
        if host == "localhost":
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        certificate = (
            x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
            .issuer_name(self.certificate.subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + 30 * DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=False).sign(self.key, hashes.SHA256()))
        path = self.folder / f"{secrets.token_hex(6)}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


class Gateway:
    """A push gateway on a port of its own. `mode`: "ok", a status as text, "hang", "endless" (an answer without an end),
    "nonsense" (200 without JSON), "redirect" (to itself under another path). For the pushkeys in `busy` it answers 503."""

    def __init__(self, context: ssl.SSLContext | None, port: int | None = None) -> None:
        self.port = port or free_ports(1)[0]
        self.origin = f"https://localhost:{self.port}"
        self.url = self.origin + PATH
        self.mode = "ok"
        self.rejected: list[str] = []
        self.busy: set[str] = set()
        self.asked: list[tuple[str, dict, str]] = []
        self.headers: list[dict] = []
        self.stopped = threading.Event()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = body["notification"]["devices"][0]["pushkey"]
                mode = "503" if key in owner.busy else owner.mode
                owner.headers.append(dict(self.headers))
                owner.asked.append((self.path, body, mode))
                if mode == "hang":
                    while owner.mode == "hang" and not owner.stopped.wait(0.1):
                        pass
                    self.close_connection = True
                    return
                if mode == "endless":
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(1 << 40))
                    self.end_headers()
                    try:
                        while not owner.stopped.is_set():
                            self.wfile.write(b'{"rejected": ["' + b"x" * 65_536)
                    except OSError:
                        pass
                    self.close_connection = True
                    return
                status, content = 200, json.dumps({"rejected": owner.rejected}).encode()
                if mode == "nonsense":
                    content = b"<html>thank you</html>"
                elif mode == "redirect":
                    status = 307
                elif mode.isdigit():
                    status = int(mode)
                self.send_response(status)
                if mode == "redirect":
                    self.send_header("Location", f"{owner.origin}/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_) -> None:
                pass

        self.server = Quiet(("127.0.0.1", self.port), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self, key: str | None = None, mode: str | None = None) -> list[dict]:
        """The notifications, of one pushkey where it is named."""
        found = [body["notification"] for _, body, of in list(self.asked) if mode in (None, of)]
        return [one for one in found if key in (None, one["devices"][0]["pushkey"])]

    def events(self, key: str | None = None) -> list[str]:
        return [one["event_id"] for one in self.told(key) if "event_id" in one]

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


class World:
    """A city whose list has two gateways."""

    def __init__(self, folder: pathlib.Path, database: str = "sqlite") -> None:
        self.authority = Authority(folder)
        self.good, self.other = (Gateway(self.authority.context()) for _ in range(2))
        self.server = Server(database, config={"push": {
            "gateways": [self.good.origin, self.other.origin], "ca": str(self.authority.path)}})
        self.nurse, self.doctor = self.server.person(), self.server.person()
        self.room = self.server.room(self.nurse, self.doctor, name="見本一郎さんの部屋")

    def remove(self) -> None:
        self.server.remove()
        self.good.stop()
        self.other.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    made = World(tmp_path_factory.mktemp("push"))
    yield made
    made.remove()


@pytest.fixture(autouse=True)
def as_found(request):
    """Gateways answer again after each test."""
    yield
    if "world" in request.fixturenames:
        here = request.getfixturevalue("world")
        for gateway in (here.good, here.other):
            gateway.mode, gateway.rejected, gateway.busy = "ok", [], set()
        for person in (here.nurse, here.doctor):
            for key in keys_of(person.client):
                person.client.ok("POST", "/_matrix/client/v3/pushers/set",
                                 {"kind": None, "app_id": "jp.example.app", "pushkey": key})


def pusher(gateway_url: str, key: str, **data) -> dict:
    return {"kind": "http", "app_id": "jp.example.app", "pushkey": key, "app_display_name": "App",
            "device_display_name": "電話", "lang": "ja", "append": True,
            "data": {"url": gateway_url, "format": "event_id_only", **data}}


def set_pusher(client: Client, gateway_url: str, **data) -> str:
    key = secrets.token_hex(12)
    client.ok("POST", "/_matrix/client/v3/pushers/set", pusher(gateway_url, key, **data))
    return key


def keys_of(client: Client) -> set[str]:
    return {one["pushkey"] for one in client.ok("GET", "/_matrix/client/v3/pushers")["pushers"]}


def read(client: Client, room: str, event: str, **body) -> None:
    client.ok("POST", f"/_matrix/client/v3/rooms/{quote(room)}/receipt/m.read/{quote(event)}", body)


def test_a_gateway_is_told_ids_and_counts_only(world: World):
    key = set_pusher(world.nurse.client, world.good.url, brand="x", default_payload={"aps": {"mutable-content": 1}})
    first = world.doctor.client.say(world.room, "見本一郎さんが発熱しました")
    wait_for(lambda: first in world.good.events(key), what="the first notification")
    second = world.doctor.client.say(world.room, "確認をお願いします", **{"m.mentions": {"user_ids": [world.nurse.user_id]}})
    wait_for(lambda: {first, second} <= set(world.good.events(key)), what="both notifications")
    told = {one["event_id"]: one for one in world.good.told(key) if "event_id" in one}
    for event_id in (first, second):
        one = told[event_id]
        assert set(one) == {"event_id", "room_id", "prio", "counts", "devices"}
        assert one["room_id"] == world.room
        (device,) = one["devices"]
        assert device["app_id"] == "jp.example.app"
        assert abs(device["pushkey_ts"] - time.time()) < 600
        assert device["data"] == {"format": "event_id_only", "brand": "x", "default_payload": {"aps": {"mutable-content": 1}}}
    # A message in a room of several can wait, being named cannot.
    assert told[first]["prio"] == "low" and "tweaks" not in told[first]["devices"][0]
    assert told[second]["prio"] == "high"
    assert told[second]["devices"][0]["tweaks"]["highlight"] is True
    assert told[second]["counts"]["unread"] == told[first]["counts"]["unread"] + 1
    text = json.dumps(world.good.asked, ensure_ascii=False) + json.dumps(world.good.headers, ensure_ascii=False)
    for secret in ("見本", "発熱", world.doctor.user_id, world.nurse.user_id, world.nurse.token, "m.room.message", "部屋"):
        assert secret not in text, secret
    assert not any("Authorization" in headers for headers in world.good.headers)
    assert key not in world.server.log() and "notify" not in world.server.log()


def test_an_app_that_asks_for_everything_gets_ids_only(world: World):
    """Without a format the specification would tell everything: not outside the city."""
    key = secrets.token_hex(12)
    wish = pusher(world.good.url, key)
    del wish["data"]["format"]
    world.nurse.client.ok("POST", "/_matrix/client/v3/pushers/set", wish)
    event = world.doctor.client.say(world.room, "内容")
    wait_for(lambda: event in world.good.events(key))
    (one,) = [one for one in world.good.told(key) if one.get("event_id") == event]
    assert set(one) == {"event_id", "room_id", "prio", "counts", "devices"}
    wish["data"]["format"] = "everything"
    assert world.nurse.client.post("/_matrix/client/v3/pushers/set", wish).told == (400, "M_INVALID_PARAM")


def test_the_list_is_exact(world: World):
    stranger = Gateway(world.authority.context())
    try:
        client = world.nurse.client
        before = keys_of(client)
        for url, expected in {
            stranger.url: (403, "M_FORBIDDEN"),
            f"https://127.0.0.1:{world.good.port}{PATH}": (403, "M_FORBIDDEN"),
            f"https://localhost.example:{world.good.port}{PATH}": (403, "M_FORBIDDEN"),
            f"https://localhost:{world.good.port}0{PATH}": (400, "M_INVALID_PARAM"),
            f"http://localhost:{world.good.port}{PATH}": (400, "M_INVALID_PARAM"),
            f"{world.good.origin}/": (400, "M_INVALID_PARAM"),
            f"{world.good.url}?to=x": (400, "M_INVALID_PARAM"),
            f"https://localhost:{world.good.port}@localhost:{stranger.port}{PATH}": (400, "M_INVALID_PARAM"),
            f"{world.good.url}{'x' * 3000}": (400, "M_INVALID_PARAM"),
            "": (400, "M_INVALID_PARAM"),
        }.items():
            answer = client.post("/_matrix/client/v3/pushers/set", pusher(url, "stranger"))
            assert answer.told == expected, (url[:80], answer)
        assert keys_of(client) == before
        world.doctor.client.say(world.room, "外に出ない")
        time.sleep(1.5)
        assert not stranger.asked
    finally:
        stranger.stop()


def test_the_default_is_no_gateway(city: Server):
    answer = city.person().client.post("/_matrix/client/v3/pushers/set", pusher(f"https://push.example.jp{PATH}", "x"))
    assert answer.told == (403, "M_FORBIDDEN") and "通知サーバー" in answer.json["error"]


def test_reading_tells_the_count(world: World):
    """Somebody reads on another device: the app's badge follows, a few times a minute at most."""
    reader = world.server.person()
    room = world.server.room(reader, world.doctor)
    key = set_pusher(reader.client, world.good.url)
    events = [world.doctor.client.say(room, f"{i}") for i in range(4)]
    wait_for(lambda: set(events) <= set(world.good.events(key)))
    # The opening notice is the first.
    assert [one["counts"]["unread"] for one in world.good.told(key)][-1] == 5
    elsewhere = reader.log_in()
    for event in events:
        read(elsewhere, room, event)

    def alone() -> list[dict]:
        return [one for one in world.good.told(key) if "event_id" not in one]

    # A second after the first reading; where that comes into the middle of them, once more ten seconds later.
    wait_for(lambda: alone() and alone()[-1]["counts"] == {"unread": 0}, 40, what="the count")
    assert len(alone()) <= 2 and all(set(one) == {"counts", "devices", "prio"} for one in alone())
    # Over all rooms: one unread message elsewhere stays in the count.
    second = world.server.room(reader, world.doctor)
    other = world.doctor.client.say(second, "別の部屋")
    read(elsewhere, second, world.doctor.client.messages(second, limit=10)[1]["event_id"])
    last = world.doctor.client.say(room, "もう一つ")
    wait_for(lambda: last in world.good.events(key))
    assert next(one for one in world.good.told(key) if one.get("event_id") == last)["counts"] == {"unread": 2}
    # Who writes has read.
    reader.client.say(room, "見ました")
    wait_for(lambda: alone()[-1]["counts"] == {"unread": 1}, 40)


def test_a_rejected_key_goes(world: World):
    key, kept = set_pusher(world.nurse.client, world.good.url), set_pusher(world.nurse.client, world.other.url)
    world.good.rejected = [key, kept, "someone-else's"]
    event = world.doctor.client.say(world.room, "届かない電話")
    wait_for(lambda: key not in keys_of(world.nurse.client), what="the pusher to go")
    wait_for(lambda: event in world.other.events(kept))
    assert kept in keys_of(world.nurse.client), "a gateway speaks for the keys that it was asked about"
    count = len(world.good.told(key))
    wait_for(lambda: world.doctor.client.say(world.room, "次") in world.other.events(kept) or len(world.other.events(kept)) > 1)
    assert len(world.good.told(key)) == count


def test_a_session_takes_its_pushers_along(world: World):
    """C19: log-out, another device's deletion, a lost terminal, the end of an account: nothing is told any more."""
    server = world.server
    for end in ("logout", "logout/all", "delete", "terminal", "reset", "account"):
        person = server.person()
        room = server.room(person, world.doctor)
        staying = set_pusher(person.client, world.other.url)
        phone_terminal = server.further_terminal(person)
        phone = person.log_in(phone_terminal)
        key = set_pusher(phone, world.other.url)
        first = world.doctor.client.say(room, "まだ")
        wait_for(lambda: first in world.other.events(key) and first in world.other.events(staying))
        gone = {key, staying} if end in ("logout/all", "reset", "account") else {key}
        if end == "logout":
            phone.ok("POST", "/_matrix/client/v3/logout", {})
        elif end == "logout/all":
            phone.ok("POST", "/_matrix/client/v3/logout/all", {})
        elif end == "delete":
            device = phone.ok("GET", "/_matrix/client/v3/account/whoami")["device_id"]
            auth = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.user_id}, "password": person.password}
            asked = person.client.delete(f"/_matrix/client/v3/devices/{device}", {})
            person.client.ok("DELETE", f"/_matrix/client/v3/devices/{device}", {"auth": auth | {"session": asked.json["session"]}})
        elif end == "terminal":
            server.revoke(server.terminal_number(person))
        elif end == "reset":
            server.act(f"accounts/{quote(person.user_id)}/reset")
        else:
            server.act(f"accounts/{quote(person.user_id)}/end", {"reason": "退職"})
        where = "', '".join(sorted({key, staying}))
        left = server.count(f"SELECT COUNT(*) FROM pushers WHERE pushkey IN ('{where}')")
        assert left == 2 - len(gone), end
        after = world.doctor.client.say(room, "もう")
        if staying not in gone:
            assert keys_of(person.client) == {staying}
            wait_for(lambda: after in world.other.events(staying))
        mark = world.doctor.client.say(world.room, "目印")
        check = set_pusher(world.nurse.client, world.other.url)
        last = world.doctor.client.say(world.room, "目印2")
        wait_for(lambda: last in world.other.events(check))
        assert mark and not any(after in world.other.events(one) for one in gone), end


def test_a_locked_person_is_told_nothing(world: World):
    """What happens meanwhile waits in the room; the app's pusher stays and is told again afterwards."""
    person = world.server.person()
    room = world.server.room(person, world.doctor)
    key, check = set_pusher(person.client, world.other.url), set_pusher(world.nurse.client, world.other.url)
    lock = f"/_matrix/client/v1/admin/lock/{quote(person.user_id)}"
    world.server.first_staff().client.ok("PUT", lock, {"locked": True})
    meanwhile = world.doctor.client.say(room, "その間")
    mark = world.doctor.client.say(world.room, "目印")
    wait_for(lambda: mark in world.other.events(check))
    assert meanwhile not in world.other.events(key)
    world.server.first_staff().client.ok("PUT", lock, {"locked": False})
    after = world.doctor.client.say(room, "その後")
    wait_for(lambda: after in world.other.events(key))
    assert meanwhile not in world.other.events(key)


def test_a_mail_pusher_is_the_persons(world: World):
    """An e-mail pusher is not a device's: it needs an address, which these people have not."""
    answer = world.nurse.client.post("/_matrix/client/v3/pushers/set", {
        "kind": "email", "app_id": "m.email", "pushkey": "a@example.jp", "app_display_name": "x",
        "device_display_name": "x", "lang": "ja", "data": {}})
    assert answer.told == (400, "M_INVALID_PARAM")


def test_a_pusher_moves_with_the_app(world: World):
    """Without `append` the same app and key of somebody else is replaced (one phone, two accounts)."""
    key = secrets.token_hex(12)
    world.nurse.client.ok("POST", "/_matrix/client/v3/pushers/set", pusher(world.good.url, key))
    world.doctor.client.ok("POST", "/_matrix/client/v3/pushers/set", pusher(world.good.url, key) | {"append": False})
    assert key not in keys_of(world.nurse.client) and key in keys_of(world.doctor.client)
    world.doctor.client.ok("POST", "/_matrix/client/v3/pushers/set", {"kind": None, "app_id": "jp.example.app", "pushkey": key})
    assert key not in keys_of(world.doctor.client)


@pytest.mark.parametrize("mode", [
    "hang", "503", "500", "endless", "nonsense", "redirect", "404"])
def test_one_gateway_holds_up_nobody(world: World, mode: str):
    bad, fine = set_pusher(world.nurse.client, world.good.url), set_pusher(world.nurse.client, world.other.url)
    world.good.mode = mode
    # So many that ten seconds for each of them, after which the server gives up, were longer than the wait.
    events = [world.doctor.client.say(world.room, f"{mode} {i}") for i in range(6)]
    wait_for(lambda: set(events) <= set(world.other.events(fine)), 40, what="the other gateway, while this one is as it is")
    wait_for(lambda: world.good.told(bad), what="a try")
    if mode == "503":
        wait_for(lambda: len(world.good.told(bad)) >= 3, what="tries again")
    world.good.mode = "ok"
    if mode in ("hang", "503"):
        # Nothing is lost where it takes nothing for a while; it gets it in order.
        wait_for(lambda: set(events) <= {one.get("event_id") for one in world.good.told(bad, "ok")}, 60, what="all of it")
    last = world.doctor.client.say(world.room, "その後")
    wait_for(lambda: last in world.good.events(bad), 60, what="it goes on")
    if mode == "redirect":
        assert {path for path, _, _ in world.good.asked} == {PATH}
    if mode in ("404", "redirect"):
        assert sum(one.get("event_id") == events[0] for one in world.good.told(bad)) == 1, "refused for good"


def test_mail_does_not_wait_for_gateways(tmp_path):
    """The bridge's follower is another one than a gateway's: a mention is mailed while a gateway hangs."""
    authority = Authority(tmp_path)
    gateway = Gateway(authority.context())
    smtp = Smtp(tmp_path / "smtp")
    city = City(smtp=smtp, folder=tmp_path / "city", config={"push": {"gateways": [gateway.origin], "ca": str(authority.path)}})
    try:
        nurse, doctor = city.person(), city.person()
        room = city.room(nurse, doctor)
        address = f"{nurse.login_id}@mail.example.jp"
        confirm(city, smtp, nurse, address)
        gateway.mode = "hang"
        key = set_pusher(nurse.client, gateway.url)
        # So many that ten seconds for each of them, after which the server gives up, were longer than the wait.
        for n in range(5):
            doctor.client.say(room, f"動かない通知サーバー {n}")
        wait_for(lambda: gateway.told(key), what="the gateway to hang")
        since = len(smtp.mails)
        doctor.client.say(room, "お願いします", **{"m.mentions": {"user_ids": [nurse.user_id]}})
        smtp.expect(address, since=since, seconds=40)
    finally:
        gateway.mode = "ok"
        city.remove()
        smtp.stop()
        gateway.stop()


def confirm(city: City, smtp: Smtp, person: Person, address: str) -> None:
    """Adds and proves an address and switches mails on, as a client does."""
    secret, at = secrets.token_hex(8), "/_matrix/client/v3/account/3pid"
    sid = person.client.ok("POST", f"{at}/email/requestToken", {"client_secret": secret, "email": address, "send_attempt": 1})["sid"]
    link = re.search(r"https://\S+", smtp.expect(address).body)[0]
    browser = requests.Session()
    browser.verify, browser.trust_env = str(city.ca), False
    page = browser.get(link, timeout=20)
    form = {name: html.unescape(value) for name, value in re.findall(r'name="([^"]+)" value="([^"]*)"', page.text)}
    action = re.search(r'<form[^>]*action="([^"]+)"', page.text)
    done = browser.post(urllib.parse.urljoin(link, html.unescape(action[1])) if action else link, data=form, timeout=20)
    assert done.status_code == 200, done.text
    body = {"client_secret": secret, "sid": sid}
    answer = person.client.post(f"{at}/add", body)
    if answer.status == 401:
        auth = {"type": "m.login.password", "session": answer.json["session"], "password": person.password,
                "identifier": {"type": "m.id.user", "user": person.login_id}}
        answer = person.client.post(f"{at}/add", {**body, "auth": auth})
    assert answer.status == 200, answer
    person.client.ok("POST", "/_matrix/client/v3/pushers/set", {
        "kind": "email", "app_id": "m.email", "pushkey": address, "app_display_name": "Mail", "device_display_name": address,
        "lang": "ja", "data": {}, "append": True})


def test_the_certificate_is_checked(fresh, tmp_path):
    authority = Authority(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    gateways = [Gateway(Authority(other).context()), Gateway(authority.context("push.example.jp")), Gateway(None),
                Gateway(authority.context())]
    server = fresh(config={"push": {"gateways": [one.origin for one in gateways], "ca": str(authority.path)}})
    try:
        nurse, doctor = server.person(), server.person()
        room = server.room(nurse, doctor)
        for gateway in gateways:
            set_pusher(nurse.client, gateway.url)
        event = doctor.client.say(room)
        wait_for(lambda: event in gateways[3].events())
        wait_for(lambda: server.log().count("is not to be reached") >= 3)
        assert not any(gateway.asked for gateway in gateways[:3])
    finally:
        for gateway in gateways:
            gateway.stop()


def test_killed_nothing_is_lost(database: str, tmp_path):
    """The cursor is durable: what was said while the gateway was away and the server dead arrives, once each at least, in
    order; a gateway that came off the list is never called again."""
    here = World(tmp_path, database)
    try:
        key = set_pusher(here.nurse.client, here.good.url)
        here.good.mode = "503"
        events = [here.doctor.client.say(here.room, f"{i}") for i in range(3)]
        wait_for(lambda: here.good.told(key))
        here.server.kill()
        here.good.mode = "ok"
        here.server.start()
        wait_for(lambda: set(events) <= {one.get("event_id") for one in here.good.told(key, "ok")}, 30, what="all of it")
        order = [one["event_id"] for one in here.good.told(key, "ok") if "event_id" in one]
        assert [event for event in dict.fromkeys(order) if event in events] == events
        here.server.stop()
        asked = len(here.good.asked)
        here.server.overrides["push"]["gateways"] = [here.other.origin]
        here.server._write_config()
        here.server.start()
        fine = set_pusher(here.nurse.log_in(), here.other.url)
        last = here.doctor.log_in().say(here.room, "その後")
        wait_for(lambda: last in here.other.events(fine))
        assert len(here.good.asked) == asked
    finally:
        here.remove()


def test_counts_go_to_no_gateway_that_is_off_the_list(database: str, tmp_path):
    """A gateway comes off the list between two runs, and everybody's app is still set to it: what is read and written
    then is told to the others alone. Back on the list it is told again."""
    here = World(tmp_path, database)
    server, good, other = here.server, here.good, here.other

    def listed(*gateways: Gateway) -> None:
        server.stop()
        server.overrides["push"]["gateways"] = [gateway.origin for gateway in gateways]
        server._write_config()
        server.start()
        for client in (here.nurse.client, here.doctor.client):
            client.close()

    def last(gateway: Gateway, key: str) -> int:
        """The last count that it was told, alone or with an event: what was just told may be told again after a restart."""
        return gateway.told(key)[-1]["counts"]["unread"]

    try:
        key, fine = set_pusher(here.nurse.client, good.url), set_pusher(here.nurse.client, other.url)
        first = here.doctor.client.say(here.room, "一つ目")
        for gateway, one in ((good, key), (other, fine)):
            wait_for(lambda: first in gateway.events(one), what="the first")
        listed(other)
        asked = len(good.asked)
        assert keys_of(here.nurse.client) == {key, fine}, "the app's setting stays"
        # By reading, by a new message, by writing.
        read(here.nurse.client, here.room, first)
        wait_for(lambda: last(other, fine) == 0, 30, what="the count after reading")
        second = here.doctor.client.say(here.room, "二つ目")
        wait_for(lambda: second in other.events(fine), what="the second")
        here.nurse.client.say(here.room, "見ました")
        wait_for(lambda: last(other, fine) == 0, 30, what="the count after writing")
        assert here.nurse.client.post("/_matrix/client/v3/pushers/set", pusher(good.url, key)).told == (403, "M_FORBIDDEN")
        # With no gateway at all.
        listed()
        told = len(other.asked)
        third = here.doctor.client.say(here.room, "三つ目")
        read(here.nurse.client, here.room, third)
        assert here.nurse.client.sync()["rooms"]["join"][here.room]["unread_notifications"]["notification_count"] == 0
        assert len(other.asked) == told
        listed(other)
        fourth = here.doctor.client.say(here.room, "四つ目")
        wait_for(lambda: fourth in other.events(fine), 30, what="the fourth")
        assert len(good.asked) == asked, "off the list all the while"
        # It goes on, and what was read meanwhile is told to nobody.
        listed(good, other)
        fifth = here.doctor.client.say(here.room, "五つ目")
        for gateway, one in ((good, key), (other, fine)):
            wait_for(lambda: fifth in gateway.events(one), 30, what="the fifth")
            assert third not in gateway.events(one)
        assert second not in good.events(key)
        read(here.nurse.client, here.room, fifth)
        wait_for(lambda: last(good, key) == 0, 30, what="the count again")
        assert "ERROR" not in server.log() and "panick" not in server.log()
        # Whoever forgets an app while its gateway is off the list, forgets it.
        listed(other)
        here.nurse.client.ok("POST", "/_matrix/client/v3/pushers/set", {"kind": None, "app_id": "jp.example.app", "pushkey": key})
        assert keys_of(here.nurse.client) == {fine}
    finally:
        here.remove()


def test_what_was_read_is_not_told(world: World):
    """A gateway that was away is not told what was read meanwhile."""
    reader = world.server.person()
    room = world.server.room(reader, world.doctor)
    key = set_pusher(reader.client, world.good.url)
    world.good.mode = "503"
    first = world.doctor.client.say(room, "一つ目")
    wait_for(lambda: world.good.told(key))
    second = world.doctor.client.say(room, "二つ目")
    read(reader.client, room, second)
    world.good.mode = "ok"
    third = world.doctor.client.say(room, "三つ目")
    wait_for(lambda: third in world.good.events(key), 60)
    assert second not in world.good.events(key) and first in world.good.events(key)


def test_bad_lists_are_refused(tmp_path):
    """A list that cannot mean what it says is no reason to start."""
    import subprocess

    from harness import binary

    for gateway in ("http://push.example.jp", "https://push.example.jp/path", "push.example.jp", "https://a@push.example.jp",
                    "https://*.example.jp/x"):
        config = tmp_path / "config.toml"
        config.write_text(f'[push]\ngateways = ["{gateway}"]\n[server]\ndata_dir = "{tmp_path}/data"\n', encoding="utf-8")
        done = subprocess.run([binary(), "--config", str(config), "serve"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0 and "push.gateways" in done.stdout + done.stderr, gateway


def test_only_the_person_reads_their_pushers(world: World):
    key = set_pusher(world.nurse.client, world.good.url)
    assert key not in keys_of(world.doctor.client)
    person: Person = world.nurse
    answer = person.client.post("/_matrix/client/v3/pushers/set", pusher(world.good.url, "x" * 513))
    assert answer.told == (400, "M_INVALID_PARAM")
    answer = person.client.post("/_matrix/client/v3/pushers/set", pusher(world.good.url, "big", blob="x" * 9000))
    assert answer.told == (413, "M_TOO_LARGE")
