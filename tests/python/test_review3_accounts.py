"""What a review of the whole server found in accounts: proofs that go stale while they are looked at, places that are never
given back, locks that hit somebody else, and what outlives the end of a session."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import sqlite3
import threading
import time
import urllib.parse

import pytest

from harness import Answer, Client, Enrolment, Person, Server, quote, wait_for
from test_oauth import CITY, LENIENT, App, Browser, begin_device, poll_device

C = "/_matrix/client/v3"
WHOAMI = f"{C}/account/whoami"
FORM = "application/x-www-form-urlencoded"
_nobody = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Server:
    """A city of this file's own: were places for hashing used up, others would fail without knowing why."""
    server = Server(config={"policy": {"password_reset_by_mail": True}})
    yield server
    server.remove()


# Requests whose answer nobody waits for ------------------------------------------------------------------------------


def login_body(login_id: str, password: str) -> bytes:
    return json.dumps({"type": "m.login.password", "identifier": {"type": "m.id.user", "user": login_id},
                       "password": password}).encode()


class Raw:
    """A connection of its own, on which one request is sent; from another loopback address where one is given."""

    def __init__(self, client: Client, source: str = "127.0.0.1") -> None:
        self.client = client
        raw = socket.create_connection((client.host, client.port), timeout=client.timeout, source_address=(source, 0))
        self.socket = client.context().wrap_socket(raw, server_hostname=client.host)

    def post(self, path: str, body: bytes, kind: str = "application/json", **headers: str) -> None:
        lines = [f"POST {path} HTTP/1.1", f"Host: {self.client.host}:{self.client.port}", f"Content-Type: {kind}",
                 f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def answer(self) -> tuple[int, str]:
        """Status, and headers and body as they came."""
        answer = http.client.HTTPResponse(self.socket)
        answer.begin()
        return answer.status, f"{answer.headers}\n{answer.read().decode(errors='replace')}"

    def close(self) -> None:
        self.socket.close()


def strangers(server: Server, terminal, count: int) -> list[Raw]:
    """So many log-ins as nobody, each of another ID: they keep the hashing busy, and the next one waits behind them."""
    all_of_them = [Raw(server.public(terminal)) for _ in range(count)]
    for one in all_of_them:
        one.post(f"{C}/login", login_body(f"p9{next(_nobody):06}", "Nobody-knows-37"))
    return all_of_them


def gone(connections: list[Raw]) -> None:
    for one in connections:
        one.close()


class Threads:
    """Calls at once; their answers in the order in which they were begun."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.answers: list = []

    def go(self, call) -> None:
        at = len(self.answers)
        self.answers.append(None)

        def run() -> None:
            self.answers[at] = call()

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def all(self) -> list:
        for thread in self.threads:
            thread.join(60)
        return self.answers


def there_is_room(server: Server, person: Person) -> None:
    """Somebody logs in behind a crowd: two hundred may wait at once."""
    client = server.public(person.terminal)
    wait_for(lambda: server.log_in(client, person.login_id, person.password).status == 200, 30, 0.5, "a place to log in")
    right = Raw(client)
    crowd = strangers(server, person.terminal, 170)
    time.sleep(0.5)
    right.post(f"{C}/login", login_body(person.login_id, person.password))
    time.sleep(0.3)
    gone(crowd)
    assert right.answer()[0] == 200


def test_who_goes_away_while_logging_in_leaves_no_place_taken(server: Server):
    """A browser tab that is closed, a phone in a lift: two hundred of them, and nobody logged in any more until a restart."""
    person = server.person()
    for _ in range(6):
        waiting = strangers(server, person.terminal, 80)
        time.sleep(0.3)  # until most of them wait for their turn
        gone(waiting)
    there_is_room(server, person)


def test_who_goes_away_while_enrolling_leaves_no_place_taken(server: Server):
    """The enrolment page asks for no certificate: strangers must not be able to end all logging in from there."""
    person = server.person()
    # Forty at once are let through from each address.
    for house in (2, 4, 6):
        waiting = [Raw(Client(server.enrol_base, ca=server.ca), f"127.0.0.{house + n % 2}") for n in range(76)]
        for one in waiting:
            one.post("/enrol", f"login_id=p9{next(_nobody):06}&password=x&code=ABCD".encode(), FORM)
        time.sleep(0.3)
        gone(waiting)
    there_is_room(server, person)


# What is under way while the city resets a password ------------------------------------------------------------------


def change(client: Client, person: Person, old: str, new: str) -> Answer:
    auth = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.login_id}, "password": old}
    return client.post(f"{C}/account/password", {"new_password": new, "logout_devices": False, "auth": auth})


def test_a_log_in_under_way_during_a_reset_makes_no_session(server: Server):
    """The city resets a password because somebody else knows it: who is typing it at that moment is out, too."""
    mate = server.person()
    for _ in range(3):
        person = server.person(mate.facility)
        clients = [server.public(mate.terminal) for _ in range(3)]
        for client in clients:
            client._connection = client.connect()
        # Old log-ins look at the password while the reset waits behind the strangers, and are judged after it.
        waiting = strangers(server, mate.terminal, 8)
        both = Threads()
        both.go(lambda person=person: server.act(f"accounts/{quote(person.user_id)}/reset"))
        time.sleep(0.05)
        for client in clients:
            both.go(lambda client=client, person=person: server.log_in(client, person.login_id, person.password))
        _, *answers = both.all()
        gone(waiting)
        for answer in answers:
            if answer.status == 200:
                token = answer.json["access_token"]
                assert server.public(mate.terminal, token).get(WHOAMI).status == 401, "a session of the old password lives"


def test_a_change_of_password_under_way_does_not_undo_a_reset(server: Server):
    """Whoever has the old password could otherwise keep the account with a word of their own."""
    mate = server.person()
    for _ in range(3):
        person = server.person(mate.facility)
        shared, new = person.log_in(mate.terminal), "Thief-keeps-it-3"
        both = Threads()
        both.go(lambda: change(shared, person, person.password, new))
        time.sleep(0.02)
        both.go(lambda: server.act(f"accounts/{quote(person.user_id)}/reset"))
        both.all()
        assert server.log_in(server.public(mate.terminal), person.login_id, new).status == 403


# Enrolment -----------------------------------------------------------------------------------------------------------


class LastStep:
    """Somebody at the last step of the enrolment, whose button can be pressed on any connection."""

    def __init__(self, server: Server) -> None:
        self.server, self.person = server, server.issue()
        initial, code = server.secrets_of(self.person)
        self.pages = Enrolment(server)
        assert self.pages.begin(self.person.login_id, initial, code).url.endswith("/enrol/password"), self.pages.page
        self.form = urllib.parse.urlencode({
            "csrf": self.pages.csrf(), "terminal_label": "uketsuke", "ownership": "facility",
            "new_password": "Ume-hana-3779", "new_password_again": "Ume-hana-3779"}).encode()
        self.cookie = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.pages.session.cookies)

    def press(self) -> Raw:
        raw = Raw(Client(self.server.enrol_base, ca=self.server.ca))
        raw.post("/enrol/password", self.form, FORM, Cookie=self.cookie)
        return raw

    def is_done(self) -> bool:
        """The certificate can be fetched, and logs the person in."""
        self.pages.get("/enrol/done")
        terminal = self.pages.fetch()
        return self.server.log_in(self.server.public(terminal), self.person.login_id, "Ume-hana-3779").status == 200


def test_a_second_press_of_the_last_button_is_no_refusal(server: Server):
    step = LastStep(server)
    answers = [raw.answer() for raw in [step.press(), step.press()]]
    assert [status for status, _ in answers] == [303, 303], answers
    assert all("/enrol/done" in text for _, text in answers)
    assert step.is_done()


def test_an_enrolment_whose_connection_breaks_can_be_finished(server: Server):
    """The code is spent by then: without the certificate the person would have to come to the city again."""
    whole = LastStep(server)
    begun = time.monotonic()
    assert whole.press().answer()[0] == 303
    took = time.monotonic() - begun
    step = LastStep(server)
    with contextlib.closing(sqlite3.connect(server.data / "heya.sqlite", isolation_level=None)) as lock:
        # Somebody else writes: the unit has to wait, and the connection breaks meanwhile.
        lock.execute("BEGIN IMMEDIATE")
        raw = step.press()
        time.sleep(min(3 * took, 4) + 0.5)
        raw.close()
        time.sleep(0.3)
        lock.execute("ROLLBACK")
    status, text = step.press().answer()
    assert status == 303 and "/enrol/done" in text, text
    assert step.is_done()


# Locks ---------------------------------------------------------------------------------------------------------------


def test_one_terminal_does_not_lock_an_id_everywhere(server: Server):
    """Thirty wrong passwords typed in one facility lock the ID there, and nobody out of their own."""
    victim, other = server.person(), server.person()
    client = server.public(other.terminal)
    for n in range(30):
        assert server.log_in(client, victim.login_id, f"wrong-password-{n}").status == 403
    assert server.log_in(client, victim.login_id, victim.password).status == 403, "locked here"
    assert server.log_in(server.public(victim.terminal), victim.login_id, victim.password).status == 200


def test_guesses_at_once_do_not_pass_the_ceiling(server: Server):
    """Five wrong tries lock. Thirty that come in the same moment are no more than five."""
    person = server.person()
    guesses = [Raw(server.public(person.terminal)) for _ in range(30)]
    right = Raw(server.public(person.terminal))
    for n, guess in enumerate(guesses):
        guess.post(f"{C}/login", login_body(person.login_id, f"wrong-{n}"))
    # All are on their way, and not one was judged; the right one is the thirty-first.
    time.sleep(0.5)
    right.post(f"{C}/login", login_body(person.login_id, person.password))
    assert right.answer()[0] == 403
    assert {guess.answer()[0] for guess in guesses} == {403}
    assert server.log_in(server.public(person.terminal), person.login_id, person.password).status == 403


def test_who_asks_on_while_limited_gets_through(fresh):
    """Everybody of a facility comes from one address: who is refused and tries again soon must come in as fast as the limit
    allows, not never."""
    server = fresh(config={"policy": {"rate_limits": True}})
    person = server.person()
    client = server.public(person.terminal)
    # Refreshing counts to the same allowance, without the hash of a password.
    wait_for(lambda: client.post(f"{C}/refresh", {"refresh_token": "x"}).status == 429, 60, 0, "the limit")
    through = []

    def comes_in() -> bool:
        through.append(server.log_in(client, person.login_id, person.password).status == 200)
        return sum(through) >= 3

    # One a second is allowed, and two a second ask.
    wait_for(comes_in, 60, 0.5, "three of those who ask on")


# Ends that end everything --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenient() -> Server:
    server = Server(config=LENIENT)
    yield server
    server.remove()


@pytest.mark.parametrize("end", ["password", "logout/all"])
def test_an_approved_app_gets_nothing_after_everything_was_ended(lenient: Server, end: str):
    """Whoever approved it knew the old password; the app asks only now."""
    person = lenient.person()
    app = App(lenient)
    begun = begin_device(app)
    browser = Browser(lenient, person.terminal)
    browser.get("/oauth2/link")
    done = browser.post("/oauth2/link", code=begun["user_code"], action="approve", login_id=person.login_id,
                        password=person.password)
    assert done.status_code == 200, browser.page
    if end == "password":
        assert change(person.client, person, person.password, "Sakana-oyogu-88").status == 200
    else:
        person.client.ok("POST", f"{C}/logout/all", {})
    answer = poll_device(app, begun)
    assert answer.status == 400 and "access_token" not in answer.json, answer


def mails(server: Server) -> list[tuple[str, str, dict]]:
    """What waits to be sent: template, address, parameters."""
    with contextlib.closing(sqlite3.connect(server.data / "heya.sqlite", timeout=10)) as connection:
        rows = connection.execute("SELECT template, address, parameters FROM mails ORDER BY id").fetchall()
    return [(template, address, json.loads(parameters)) for template, address, parameters in rows]


def ask_for_link(client: Client, what: str, secret: str, address: str) -> Answer:
    return client.post(f"{C}/{what}/email/requestToken", {"client_secret": secret, "email": address, "send_attempt": 1})


def test_nobody_fills_a_mailbox(server: Server):
    """A terminal's certificate is enough to ask; the address may be anybody's."""
    client = server.public(server.person().terminal)
    for n in range(15):
        assert ask_for_link(client, "account/3pid", f"secret{n}", "victim@elsewhere.example").status == 200
    sent = [mail for mail in mails(server) if mail[1] == "victim@elsewhere.example"]
    assert 1 <= len(sent) <= 5, len(sent)


def add_address(server: Server, person: Person, address: str) -> None:
    sid = ask_for_link(person.client, "account/3pid", "secret1", address).json["sid"]
    (token,) = urllib.parse.parse_qs(urllib.parse.urlsplit(mails(server)[-1][2]["link"]).query)["token"]
    pages = Client(server.enrol_base, ca=server.ca)

    def press() -> bool:
        """Presses are counted by address, and all tests have one."""
        answer = pages.post("/mail/verify", body=f"token={token}".encode(), headers={"Content-Type": FORM})
        assert answer.status in (200, 429), answer
        return answer.status == 200

    wait_for(press, 60, 1, "a moment that is not busy")
    auth = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.login_id},
            "password": person.password}
    person.client.ok("POST", f"{C}/account/3pid/add", {"sid": sid, "client_secret": "secret1", "auth": auth})


def test_a_new_id_has_the_address_of_the_ended_one(server: Server):
    """A nurse who changes the facility gets a new ID and keeps the address; a forgotten password is replaced by mail."""
    old = server.person()
    address = f"hanako{next(_nobody)}@example.jp"
    add_address(server, old, address)
    server.act(f"accounts/{quote(old.user_id)}/end", {"reason": "異動"})
    new = server.person()
    add_address(server, new, address)
    before = len(mails(server))
    assert ask_for_link(server.public(new.terminal), "account/password", "reset1", address).status == 200
    assert [mail[1] for mail in mails(server)[before:]] == [address], "no mail with a link for a new password"


@pytest.mark.parametrize("table", ["terminals", "devices"])
def test_when_something_was_last_used_outlives_the_server(fresh, table: str):
    """The city looks for terminals that nobody uses any more, and people for log-ins that they do not know."""
    server = fresh()
    person = server.person()
    client = person.log_in()
    time.sleep(1.1)
    used = int(time.time() * 1000)
    person.client.sync()
    assert server.stop() == 0
    server.start()
    if table == "terminals":
        (row,) = server.look(f"accounts/{quote(person.user_id)}/terminals")["terminals"]
        assert row["last_seen"] is not None and row["last_seen"] >= used - 1000, row
        return
    client.close()
    devices = {one["device_id"]: one for one in client.ok("GET", f"{C}/devices")["devices"]}
    assert devices[person.device_id]["last_seen_ts"] >= used - 1000, devices


# Small words ---------------------------------------------------------------------------------------------------------


def test_guests_are_told_that_they_are(fresh):
    server = fresh(profile="open")
    guest = server.public().ok("POST", f"{C}/register?kind=guest", {})
    assert server.public(token=guest["access_token"]).ok("GET", WHOAMI)["is_guest"] is True
    assert server.register().client.ok("GET", WHOAMI).get("is_guest", False) is False


def test_a_nul_in_a_form_is_refused(fresh, database: str):
    """PostgreSQL takes none: what the person did was answered with an error of the server's."""
    server = fresh(database, config=CITY)
    person = server.person()
    browser = Browser(server, person.terminal)
    browser.get("/account")
    assert browser.post("/account", action="sign_in", login_id="p1\0", password="x").status_code == 400, browser.page
    browser.get("/account")
    assert browser.post("/account", action="sign_in", login_id=person.login_id, password=person.password).status_code == 303
    browser.get("/account")
    assert browser.post("/account", action="end", device_id="A\0B").status_code == 400, browser.page
    assert Enrolment(server).begin("p1\0", "x", "y").status_code == 400
    assert "ERROR" not in server.log()


def test_pushers_end_with_the_session_that_set_them(fresh):
    """A device that logs in again is perhaps another person's: notifications of the session before must not go on."""
    server = fresh(config={"push": {"gateways": ["https://push.example.jp"]}})
    person = server.person()
    first = person.log_in(device_id="PHONE")
    pusher = {"kind": "http", "app_id": "jp.example.app", "pushkey": "key", "app_display_name": "App", "lang": "ja",
              "device_display_name": "電話", "append": True,
              "data": {"url": "https://push.example.jp/_matrix/push/v1/notify", "format": "event_id_only"}}
    other = dict(pusher, pushkey="other")
    first.ok("POST", f"{C}/pushers/set", pusher)
    person.client.ok("POST", f"{C}/pushers/set", other)
    again = person.log_in(device_id="PHONE")
    keys = [one["pushkey"] for one in again.ok("GET", f"{C}/pushers")["pushers"]]
    assert keys == ["other"], keys
    assert server.count("SELECT count(*) FROM pushers") == 1
