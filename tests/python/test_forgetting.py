"""What piles up has an end: mails that were sent, codes that ran out, signatures on devices that are gone, transaction ids,
nonces, apps that registered themselves. And nothing goes before its time, or while somebody needs it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time

import pytest

from fake_appservice import Appservice
from harness import LIBFAKETIME, Answer, Client, Person, Postgres, Server, quote, wait_for
from test_appservice import act, appservice, bridged_room, folder, serve  # noqa: F401 (fixtures)
from test_keys import DEHYDRATED, SIGNATURES, UPLOAD, Device, Identity, dehydrated, device, encrypted_room, lists, password, query
from test_oauth import CITY, App
from test_policies import by_secret

C = "/_matrix/client/v3"
NONCE = "/_synapse/admin/v1/register"
INVALID, LIMITED = (400, "M_INVALID_PARAM"), (429, "M_LIMIT_EXCEEDED")
DAY_MS = 86_400_000
needs_clock = pytest.mark.skipif(LIBFAKETIME is None, reason="needs Debian's libfaketime: months cannot be waited for")


def rows(server: Server, table: str, where: str = "1 = 1") -> int:
    return server.count(f"SELECT COUNT(*) FROM {table} WHERE {where}")


def write(server: Server, sql: str) -> None:
    """Writes into the database of a server that is stopped."""
    if server.postgres_name:
        Postgres.shared().query(sql, server.postgres_name)
        return
    with contextlib.closing(sqlite3.connect(server.data / "heya.sqlite")) as connection, connection:
        connection.execute(sql)


def hourly(server: Server, person: Person, offset: str) -> None:
    """Goes to a time, and waits until the hourly work has been done: in one unit with what this file is about, it ends the
    tokens that last an hour."""
    person.client.ok("POST", f"{C}/user/{quote(person.user_id)}/openid/request_token", {})
    assert rows(server, "openid_tokens") == 1
    server.later(offset)
    person.client.close()
    wait_for(lambda: rows(server, "openid_tokens") == 0, 60, 0.1, "the hourly work")


# Mails and codes -----------------------------------------------------------------------------------------------------


class Bridge:
    """Sends the mails of a server whose own bridge is off, as docs/internal-api.md has it."""

    def __init__(self, server: Server, person: Person) -> None:
        self.server, self.person = server, person
        self.http = Client(server.internal_base, token=server.secret("mail.token"))

    def owe(self, address: str) -> str:
        """The server owes a mail to an address; its id, when it has been leased."""
        ask = {"client_secret": address.replace("@", "."), "email": address, "send_attempt": 1}
        self.person.client.ok("POST", f"{C}/account/3pid/email/requestToken", ask)
        return wait_for(lambda: self.leased().get(address), 60, 0.1, "the mail")

    def leased(self) -> dict[str, str]:
        told = self.http.ok("POST", "/_heya/v1/mail/lease", {"max": 50, "wait_ms": 0})
        return {mail["to"]: mail["id"] for mail in told["mails"]}

    def settle(self, mail: str, outcome: str) -> str:
        self.http.ok("POST", "/_heya/v1/mail/done", {"id": mail, "outcome": outcome})
        return mail

    def known(self, *mails: str) -> list[bool]:
        return [rows(self.server, "mails", f"id = {mail}") == 1 for mail in mails]


@needs_clock
def test_mails_and_codes_are_kept_for_a_month(database: str, fresh):
    """A mail 30 days after it was owed, sent, refused, or with a link that ended long ago; a code 30 days after its end, which is
    30 days after it was issued, spent or not."""
    server = fresh(database, config={"policy": {"openid_tokens": True, "rate_limits": False}})
    person, absent = server.person(), server.issue()
    bridge = Bridge(server, person)

    def codes(*people: Person) -> list[int]:
        return [rows(server, "enrolment_codes", f"user_id = '{one.user_id}'") for one in people]

    sent, refused = bridge.settle(bridge.owe("a@example.jp"), "sent"), bridge.settle(bridge.owe("b@example.jp"), "refused")
    assert rows(server, "threepid_checks") == 2
    hourly(server, person, "+29d")
    assert bridge.known(sent, refused) == [True, True] and codes(person, absent) == [1, 1]
    assert rows(server, "threepid_checks") == 0, "the links were good for a day"
    young, waits = bridge.settle(bridge.owe("c@example.jp"), "sent"), bridge.owe("d@example.jp")
    newcomer = server.issue()
    hourly(server, person, "+31d")
    assert bridge.known(sent, refused) == [False, False]
    assert bridge.known(young, waits) == [True, True]
    assert codes(person, absent, newcomer) == [1, 1, 1], "they ended yesterday"
    hourly(server, person, "+58d")
    assert codes(person, absent, newcomer) == [1, 1, 1] and bridge.known(young, waits) == [True, True]
    server.enrol(newcomer)
    hourly(server, person, "+61d")
    assert codes(person, absent, newcomer) == [0, 0, 1]
    # What nobody took waits no longer: its link was good for a day.
    assert bridge.known(young, waits) == [False, False] and not bridge.leased()


# Signatures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def talk(request: pytest.FixtureRequest) -> Server:
    """The open profile allows encryption."""
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    server = Server(request.param, profile="open", config={"policy": {"rate_limits": False}})
    yield server
    server.remove()


def log_out(person: Person, gone: Device) -> None:
    gone.client.ok("POST", f"{C}/logout", {})


def delete(person: Person, gone: Device) -> None:
    asked = person.client.delete(f"{C}/devices/{quote(gone.id)}", {})
    person.client.ok("DELETE", f"{C}/devices/{quote(gone.id)}", password(person, asked.json["session"]))


def delete_many(person: Person, gone: Device) -> None:
    asked = person.client.post(f"{C}/delete_devices", {"devices": [gone.id]})
    person.client.ok("POST", f"{C}/delete_devices", {"devices": [gone.id]} | password(person, asked.json["session"]))


@pytest.mark.parametrize("end", [log_out, delete, delete_many])
def test_signatures_end_with_their_device(talk: Server, end):
    """What was signed on it, and what it signed. Who takes its name afterwards is nobody that was verified."""
    a, b = talk.register(), talk.register()
    encrypted_room(a, b)
    kept, mine = device(a), Identity(a.user_id)
    kept_keys = kept.publish()
    a.client.ok("POST", UPLOAD, mine.body())
    gone = device(a, fresh=True)
    keys = gone.publish()
    on_kept, on_gone = (mine.self_signing.sign(one, a.user_id) for one in (kept_keys, keys))
    by_kept = kept.key.sign(mine.object("master"), a.user_id, kept.id)
    by_both = gone.key.sign(by_kept, a.user_id, gone.id)
    told = a.client.ok("POST", SIGNATURES, {a.user_id: {kept.id: on_kept, gone.id: on_gone, mine.master.public: by_both}})
    assert told == {"failures": {}}

    def signed(one: Device) -> int:
        return rows(talk, "key_signatures", f"signer = '{a.user_id}' AND (target = '{one.id}' OR key_id = 'ed25519:{one.id}')")

    def seen(of: Device) -> dict | None:
        shown = query(b.client, a.user_id)["device_keys"][a.user_id]
        return shown[of.id]["signatures"] if of.id in shown else None

    assert seen(kept) == on_kept["signatures"] and seen(gone) == on_gone["signatures"]
    assert query(b.client, a.user_id)["master_keys"][a.user_id] == by_both
    assert signed(kept) == signed(gone) == 2
    since = b.client.sync()["next_batch"]
    end(a, gone)
    assert signed(gone) == 0 and signed(kept) == 2
    assert seen(gone) is None and seen(kept) == on_kept["signatures"]
    assert query(b.client, a.user_id)["master_keys"][a.user_id] == by_kept
    assert a.user_id in lists(b.client.sync(since))[0], "whoever talks to them is told"
    # The name comes again, first with the keys that were signed, as from a copy, then with others.
    again = Device(a.log_in(device_id=gone.id), a.user_id, gone.id)
    again.client.ok("POST", f"{C}/keys/upload", {"device_keys": keys})
    assert seen(again) == keys["signatures"]
    end(a, again)
    other = Device(a.log_in(device_id=gone.id), a.user_id, gone.id)
    assert other.publish()["signatures"] == seen(other) != keys["signatures"]
    assert signed(gone) == 0


def test_a_signature_beside_the_end_of_its_device(talk: Server):
    """What was signed is checked before it is stored: a device that ended meanwhile gets no signature, which another of its
    name would inherit."""
    a = talk.register()
    mine = Identity(a.user_id)
    a.client.ok("POST", UPLOAD, mine.body())
    told = []
    for n in range(40):
        gone = device(a, fresh=True)
        signed = {a.user_id: {gone.id: mine.self_signing.sign(gone.publish(), a.user_id)}}
        ready = threading.Barrier(2)
        other = talk.public(token=a.token)
        other.get(f"{C}/account/whoami")

        def sign() -> None:
            ready.wait()
            told.append(other.post(SIGNATURES, signed))

        thread = threading.Thread(target=sign)
        thread.start()
        ready.wait()
        time.sleep((n % 12) * 0.0004)
        log_out(a, gone)
        thread.join()
        other.close()
        assert rows(talk, "key_signatures", f"target = '{gone.id}'") == 0, (n, told[-1])
    # Before the end it is taken, after it there is no such key; both were told, and nothing else.
    refused = [answer.json["failures"][a.user_id] for answer in told if answer.json["failures"]]
    assert all(answer.status == 200 for answer in told)
    assert {one["errcode"] for failures in refused for one in failures.values()} <= {"M_NOT_FOUND"}


def test_signatures_end_with_a_dehydrated_device(talk: Server):
    """Another in its place is another device, also under its name."""
    a = talk.register()
    mine = Identity(a.user_id)
    a.client.ok("POST", UPLOAD, mine.body())
    _, body = dehydrated(a, "DEHYDRATED")
    a.client.ok("PUT", DEHYDRATED, body)
    signed = mine.self_signing.sign(body["device_keys"], a.user_id)
    shown = lambda: query(a.client, a.user_id)["device_keys"][a.user_id]  # noqa: E731
    for name in ("DEHYDRATED", "ANOTHER"):
        assert a.client.ok("POST", SIGNATURES, {a.user_id: {"DEHYDRATED": signed}}) == {"failures": {}}
        assert shown()["DEHYDRATED"]["signatures"] == signed["signatures"]
        another = body if name == "DEHYDRATED" else dehydrated(a, name)[1]
        a.client.ok("PUT", DEHYDRATED, another)
        assert shown()[name]["signatures"] == another["device_keys"]["signatures"]
        assert rows(talk, "key_signatures", f"target_user = '{a.user_id}' AND target = 'DEHYDRATED'") == 0
    assert "DEHYDRATED" not in shown()


# Transactions of appservices -----------------------------------------------------------------------------------------


@needs_clock
def test_a_transaction_is_as_old_as_the_servers_clock_says(fresh, folder, appservice, database):  # noqa: F811
    """An appservice says when something was written (application service API, "Timestamp massaging"), not when it has sent
    it: what it sends again is known for 30 days, from long ago or from times to come."""
    service: Appservice = appservice()
    server = serve(fresh, folder, service, database=database)
    person, room, guest = bridged_room(service, server)
    times = {"old": 1, "now": None, "future": 4_102_444_800_000}

    def send(txn: str, ts: int | None) -> str:
        done = act(service, server, guest, "PUT", f"{C}/rooms/{quote(room)}/send/m.room.message/{txn}",
                   {"msgtype": "m.text", "body": txn}, **({} if ts is None else {"ts": ts}))
        assert done.status == 200, done
        return done.json["event_id"]

    def said() -> int:
        return sum(event["type"] == "m.room.message" for event in person.client.messages(room))

    sent = {txn: send(txn, ts) for txn, ts in times.items()}
    for txn in ("old", "future"):
        event = person.client.ok("GET", f"{C}/rooms/{quote(room)}/event/{quote(sent[txn])}")
        assert event["origin_server_ts"] == times[txn]
    for offset in ("+2h", "+29d"):
        hourly(server, person, offset)
        assert {txn: send(txn, ts) for txn, ts in times.items()} == sent and said() == 3, offset
    hourly(server, person, "+31d")
    assert rows(server, "transactions", f"user_id = '{guest}'") == 0
    assert not set(sent.values()) & {send(txn, ts) for txn, ts in times.items()} and said() == 6


# Nonces --------------------------------------------------------------------------------------------------------------


def test_nonces_are_given_out_slowly(fresh):
    """Forty at once to one address, then one a second."""
    server = fresh(config={"policy": {"client_certificate": "off", "shared_secret_registration": True, "rate_limits": True}})
    client, begun, given, refused = server.public(), time.monotonic(), [], []
    while len(refused) < 20:
        answer = client.get(NONCE)
        (given if answer.status == 200 else refused).append(answer)
        assert len(given) <= 41 + (time.monotonic() - begun), "there is no limit"
    assert len(given) >= 40
    for answer in refused:
        assert answer.told == LIMITED and "nonce" not in answer.json
        assert answer.headers["Retry-After"] == "2" and answer.json["retry_after_ms"] == 2_000
    # Those that were given stay good, and there is another after as long as the refusal says.
    assert by_secret(server, "first", nonce=given[0].json["nonce"], client=client).status == 200
    wait_for(lambda: client.get(NONCE).status == 200, 30, 2.0, "the next nonce")


def test_a_thousand_nonces_are_kept(fresh):
    """Whoever asks without an end makes the oldest forgotten, and the server no larger."""
    server = fresh(profile="open")
    client = server.public()
    nonces = [client.ok("GET", NONCE)["nonce"] for _ in range(1_001)]
    assert len(set(nonces)) == 1_001
    assert by_secret(server, "oldest", nonce=nonces[0], client=client).told == INVALID
    for n in (1, 500, 1_000):
        assert by_secret(server, f"u{n}", nonce=nonces[n], client=client).status == 200, n


# Apps that register themselves ---------------------------------------------------------------------------------------


def register(http: Client, name: object) -> Answer:
    return http.post("/oauth2/register", {"client_uri": "https://app.example.com/", "client_name": f"試験アプリ{name}",
                                          "redirect_uris": ["https://app.example.com/"], "token_endpoint_auth_method": "none"})


def test_one_address_registers_so_many_apps(fresh):
    """Thirty new ones in an hour, also where nothing else is counted. The same app is no new one, however often it is
    installed."""
    server = fresh(config=CITY)
    person = server.person()
    app = App(server, person.terminal)
    tokens = app.log_in(person)
    http = server.public(person.terminal)
    made = [register(http, n) for n in range(29)]
    assert [one.status for one in made] == [201] * 29, made[-1]
    for n in range(29, 40):
        refused = register(http, n)
        assert refused.told == LIMITED and refused.headers["Retry-After"] == "600", refused
    assert rows(server, "oauth_clients") == 30
    for n in (0, 28):
        again = register(http, n)
        assert again.status == 201 and again.json["client_id"] == made[n].json["client_id"]
    assert App(server, person.terminal).id == app.id
    assert app.refresh(tokens["refresh_token"]).status == 200
    assert rows(server, "oauth_clients") == 30


@needs_clock
def test_apps_that_nobody_uses_give_way(database: str, fresh):
    """At two thousand, those that nobody has used within a day of their registration; what is in use never does, and where
    all are young or in use, there is room for no other."""
    server = fresh(database, config=CITY)
    person = server.person()
    app = App(server, person.terminal)
    tokens = app.log_in(person)
    http = server.public(person.terminal)
    unused = register(http, "誰も使わない").json["client_id"]
    server.stop()
    later = int(time.time() * 1000) + 2 * DAY_MS
    write(server, "INSERT INTO oauth_clients (client_id, metadata, created_at) VALUES "
          + ", ".join(f"('f{n}', '{{}}', {later})" for n in range(1_998)))

    def go(offset: str) -> None:
        server.later(offset)
        http.close()
        app.http = server.public(person.terminal)

    go("+2d")
    made = register(http, "新しい")
    assert made.status == 201, made
    assert rows(server, "oauth_clients", f"client_id = '{unused}'") == 0
    for client_id in (app.id, made.json["client_id"]):
        assert rows(server, "oauth_clients", f"client_id = '{client_id}'") == 1
    for n in range(3):
        refused = register(http, n)
        assert refused.told == LIMITED and refused.headers["Retry-After"] == "3600", refused
    assert rows(server, "oauth_clients") == 2_000
    assert register(http, "新しい").json["client_id"] == made.json["client_id"], "who is registered is"
    tokens = app.refresh(tokens["refresh_token"]).json
    assert app.whoami(tokens["access_token"]) == (200, None)
    go("+4d")
    assert register(http, "次の日").status == 201
    assert rows(server, "oauth_clients") == 2
    tokens = app.refresh(tokens["refresh_token"]).json
    assert app.whoami(tokens["access_token"]) == (200, None)
