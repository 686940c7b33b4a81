"""Policies at work (issue 5c, 5e, 11): what a lock tells the person and the city, what the end of a retention tells the
city, and the ways in that a city has off, switched on."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import subprocess
import time

import pytest

from harness import Client, Person, Server, quote, wait_for
from test_room_life import Desk, desk_with_mail, lived, subject_room

C = "/_matrix/client/v3"
R = f"{C}/rooms/"
WHOAMI = f"{C}/account/whoami"
WRONG = "Wrong-1-password"


def told_by_city(server: Server, staff: Person, pattern: str) -> list[str]:
    """What the city's control room was told that matches, oldest first."""
    control = server.look("control")["control_room"]
    return [event["content"]["body"] for event in reversed(staff.client.messages(control))
            if event["sender"] == server.city_user and re.search(pattern, event["content"].get("body", ""))]


# Lockout -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk():
    """A city that sends mail."""
    with desk_with_mail() as desk:
        yield desk


def lockouts(desk: Desk, address: str | None = None) -> list:
    return [mail for mail in list(desk.server.post.mails)
            if "ログインの一時停止" in mail["Subject"] and (address is None or address in mail.to)]


def names_only_the_id(desk: Desk, person: Person, address: str) -> None:
    """The one lockout mail at this address: to the person alone, with the login id and nothing else of them."""
    wait_for(lambda: lockouts(desk, address), 20, 0.1, "the mail")
    # The bot's word is in the same commit, and the bridge asks at once: a second would be here soon.
    time.sleep(2)
    (mail,) = lockouts(desk, address)
    text = mail.get_content()
    assert mail.to == [address] and f"利用者ID「{person.login_id}」" in text
    everything = mail.as_string() + text + str(mail["Subject"])
    assert person.login_id not in str(mail["Subject"])
    name = person.client.ok("GET", f"{C}/profile/{quote(person.user_id)}")["displayname"]
    for secret in (*name.split(), "試験事業所", person.password, WRONG, person.token, person.user_id, person.device_id):
        assert secret not in everything, "a mail names nobody"
    # Nothing but the page where one logs in, without anything that would be a way in.
    links = re.findall(r"https?://\S+", text)
    assert links and all(link.rstrip("/") == desk.server.base for link in links), text


def test_a_lock_is_told_by_mail_to_whom_the_id_belongs(desk: Desk):
    """C10: only they know whether it was them."""
    server, (person, mate) = desk.server, desk.people
    address, other = desk.mailbox(person), desk.mailbox(mate)
    client = server.public(person.terminal)
    for _ in range(4):
        assert server.log_in(client, person.login_id, WRONG).status == 403
    assert not told_by_city(server, desk.staff, person.login_id) and not lockouts(desk)
    for _ in range(4):
        assert server.log_in(client, person.login_id, WRONG).status == 403
    names_only_the_id(desk, person, address)
    assert not lockouts(desk, other), "nobody else's business"
    assert len(told_by_city(server, desk.staff, f"利用者ID「{person.login_id}」.*ロックしました")) == 1


def test_a_lock_without_an_address_is_told_to_the_city_only(desk: Desk):
    server = desk.server
    person = server.person()
    before = len(lockouts(desk))
    for _ in range(6):
        server.log_in(server.public(person.terminal), person.login_id, WRONG)
    assert len(told_by_city(server, desk.staff, f"利用者ID「{person.login_id}」.*ロックしました")) == 1
    time.sleep(2)
    assert len(lockouts(desk)) == before


def test_a_lock_by_confirming_a_password_is_told_as_well(desk: Desk):
    """Whoever has somebody's open session and guesses the password in it (client-server API, "User-Interactive
    Authentication") is as much the city's business as whoever guesses it at the log-in."""
    server = desk.server
    person = server.person()
    address = desk.mailbox(person)
    device = person.log_in().ok("GET", WHOAMI)["device_id"]
    path = f"{C}/devices/{device}"
    session = person.client.delete(path, {}).json["session"]

    def guess(password: str):
        return person.client.delete(path, {"auth": {
            "type": "m.login.password", "session": session, "password": password,
            "identifier": {"type": "m.id.user", "user": person.login_id}}})

    pattern = f"利用者ID「{person.login_id}」.*ロックしました"
    for n in range(5):
        assert not told_by_city(server, desk.staff, pattern), f"after {n} failures"
        assert guess(WRONG).status == 401
    assert len(told_by_city(server, desk.staff, pattern)) == 1
    for _ in range(3):
        assert guess(WRONG).status == 401
    assert guess(person.password).status == 401, "locked: the right one is worth nothing"
    assert server.log_in(server.public(person.terminal), person.login_id, person.password).status == 403, "nor at the log-in"
    assert len(told_by_city(server, desk.staff, pattern)) == 1, "told once"
    assert person.client.get(f"{C}/devices/{device}").status == 200, "the device is still there"
    names_only_the_id(desk, person, address)
    done = subprocess.run(server.command("audit", "list", "--limit", "200"), capture_output=True, text=True, timeout=60,
                          cwd=server.folder)
    assert re.search(rf"{re.escape(person.user_id)}\S* login locked 端末{server.terminal_number(person)} ", done.stdout), done.stdout


# Retention -----------------------------------------------------------------------------------------------------------


def test_the_city_is_told_once_that_a_retention_has_run_out(database: str, fresh):
    """REQUIREMENTS C28: kept until then, and then it is the city's turn: once for each room, at the next look."""
    server = fresh(database, config={"retention": {"subject_years": 0}})
    member, staff = server.person(), server.first_staff()

    def number(room: str) -> int:
        return server.look(f"rooms/{quote(room)}")["room_number"]

    def archived(held: bool = False, kind: str = "subject") -> tuple[str, int]:
        room = subject_room(server, member)[0] if kind == "subject" else server.room(member, kind=kind)
        if held:
            lived(server, room, "hold", reason="訴訟のため")
        server.close_room(room)
        lived(server, room, "archive")
        return room, number(room)

    def notices() -> list[str]:
        """The room numbers of each notice."""
        bodies = told_by_city(server, staff, "保存期間が過ぎた部屋があります")
        return [re.search(r"部屋番号：([\d、]+)", body)[1] for body in bodies]

    def told(room_number: int) -> bool:
        return any(str(room_number) in one.split("、") for one in notices())

    (_, first), (held, kept), (_, meeting) = archived(), archived(held=True), archived(kind="association")
    closed, _ = subject_room(server, member)
    server.close_room(closed)
    server.restart()
    wait_for(lambda: told(first), 60, 0.2, "the word that the retention has run out")
    (body,) = told_by_city(server, staff, "保存期間が過ぎた部屋があります")
    for word in ("書き出し", "消去", "法的保全"):
        assert word in body, "what the city can do now"
    assert "秘匿" not in body, "rooms are named by their numbers"

    # Each start looks again: the second room of each is what shows that it has looked.
    _, second = archived()
    server.restart()
    wait_for(lambda: told(second), 60, 0.2, "the second room")
    assert notices() == [str(first), str(second)], "the first is not told again; held, kept for five years, or only closed: not told"
    lived(server, held, "release", reason="終結")
    server.restart()
    wait_for(lambda: told(kept), 60, 0.2, "the room that is no longer held")
    assert notices() == [str(first), str(second), str(kept)] and not told(meeting) and not told(number(closed))


# Ways in that a city has off -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenient():
    """A city's profile on loopback, with the policies that this part is about switched on."""
    server = Server(config={"policy": {"client_certificate": "off", "registration": "token", "shared_secret_registration": True,
                                       "public_directory": True, "create_rooms": "everybody"}})
    yield server
    server.remove()


def by_token(server: Server, name: str, token: str | None, *, client: Client | None = None, password: str = "Ume-hana-37"):
    client = client or server.public()
    body = {"username": name, "password": password}
    asked = client.post(f"{C}/register", body)
    if token is None or asked.status != 401:
        return asked
    assert asked.json["flows"] == [{"stages": ["m.login.registration_token"]}], asked
    auth = {"type": "m.login.registration_token", "token": token, "session": asked.json["session"]}
    return client.post(f"{C}/register", body | {"auth": auth})


def the_token(server: Server) -> str:
    """Made when somebody first asks."""
    by_token(server, f"first{secrets.token_hex(4)}", "not-the-token")
    return server.secret("registration.token")


def by_secret(server: Server, name: str, *, admin: bool = False, client: Client | None = None, nonce: str | None = None,
              secret: str | None = None, said_admin: bool | None = None):
    """Synapse documentation, "Shared-Secret Registration": HMAC-SHA1 of nonce, name, password and role, NUL between."""
    client = client or server.public()
    if nonce is None:
        asked = client.get("/_synapse/admin/v1/register")
        if asked.status != 200:
            return asked
        nonce = asked.json["nonce"]
    mac = hmac.new((secret or server.secret("registration.secret")).encode(), digestmod=hashlib.sha1)
    mac.update(b"\0".join([nonce.encode(), name.encode(), b"Ume-hana-37", b"admin" if admin else b"notadmin"]))
    return client.post("/_synapse/admin/v1/register", {
        "nonce": nonce, "username": name, "password": "Ume-hana-37", "mac": mac.hexdigest(),
        "admin": admin if said_admin is None else said_admin})


def test_registration_by_token(lenient: Server):
    """Client-server API, "Token-authenticated registration"; the token is in `keys/registration.token`."""
    token, name = the_token(lenient), f"t{secrets.token_hex(4)}"
    assert len(token) >= 16
    assert (lenient.data / "keys" / "registration.token").stat().st_mode & 0o077 == 0
    for wrong in ("", token[:-1], token + "x", token.swapcase()):
        assert by_token(lenient, name, wrong).status == 401, wrong
    dummy = lenient.public().post(f"{C}/register", {"username": name, "password": "Ume-hana-37", "auth": {"type": "m.login.dummy"}})
    assert dummy.status == 401, "another stage is not the one asked for"
    assert lenient.log_in(lenient.public(), name, "Ume-hana-37").status == 403, "nobody was made"
    done = by_token(lenient, name, token)
    assert done.status == 200 and done.json["user_id"] == f"@{name}:{lenient.server_name}", done
    assert lenient.public(token=done.json["access_token"]).ok("GET", WHOAMI)["user_id"] == done.json["user_id"]
    assert by_token(lenient, name, token).told == (400, "M_USER_IN_USE")
    assert lenient.log_in(lenient.public(), name, "Ume-hana-37").status == 200
    assert token not in lenient.log()


def test_a_token_does_not_stand_in_for_a_certificate(fresh):
    """Each policy is for itself: where every connection shows a certificate, registering does, too."""
    server = fresh(config={"policy": {"registration": "token", "shared_secret_registration": True}})
    terminal = server.person().terminal
    with_one = server.public(terminal)
    by_token(server, "first", "not-the-token", client=with_one)
    token = server.secret("registration.token")
    for answer in (by_token(server, "a1", token), by_secret(server, "a2"), by_secret(server, "a3", nonce="x")):
        assert answer.told == (403, "M_FORBIDDEN") and answer.json["jp.heya.certificate"] == "none", answer
    assert by_token(server, "a4", token, client=with_one).status == 200
    assert by_secret(server, "a5", client=with_one).status == 200


def test_registration_by_shared_secret(lenient: Server):
    name = f"s{secrets.token_hex(4)}"
    assert by_secret(lenient, name, secret="not the secret").told == (403, "M_FORBIDDEN")
    assert by_secret(lenient, name, nonce=secrets.token_hex(16)).status == 400, "a nonce of one's own"
    assert by_secret(lenient, name, admin=False, said_admin=True).told == (403, "M_FORBIDDEN"), "the role is signed"
    assert lenient.log_in(lenient.public(), name, "Ume-hana-37").status == 403, "nobody was made"
    nonce = lenient.public().ok("GET", "/_synapse/admin/v1/register")["nonce"]
    done = by_secret(lenient, name, nonce=nonce)
    assert done.status == 200 and done.json["user_id"] == f"@{name}:{lenient.server_name}", done
    assert lenient.public(token=done.json["access_token"]).ok("GET", WHOAMI) == {
        "user_id": done.json["user_id"], "device_id": done.json["device_id"]}
    assert by_secret(lenient, f"s{secrets.token_hex(4)}", nonce=nonce).status == 400, "a nonce is good once"
    assert by_secret(lenient, name).told == (400, "M_USER_IN_USE")
    assert by_secret(lenient, f"s{secrets.token_hex(4)}", admin=True).status == 200
    assert lenient.secret("registration.secret") not in lenient.log()


def two(server: Server) -> tuple[Client, Client, str]:
    """Two who registered, and the second's id."""
    made = [by_token(server, f"d{secrets.token_hex(4)}", the_token(server)).json for _ in range(2)]
    a, b = (server.public(token=one["access_token"]) for one in made)
    return a, b, made[1]["user_id"]


def test_everybody_makes_rooms(lenient: Server):
    a, b, b_id = two(lenient)
    room = a.ok("POST", f"{C}/createRoom", {"name": "勉強会", "invite": [b_id], "preset": "private_chat"})["room_id"]
    b.ok("POST", f"{C}/join/{quote(room)}", {})
    event = b.say(room, "入りました")
    assert event in [one["event_id"] for one in a.messages(room)]
    # The city's own rooms stay what they are.
    control = lenient.look("control")["control_room"]
    assert a.post(f"{C}/join/{quote(control)}", {}).status == 403


def test_a_public_room_may_be_made_where_there_is_a_directory(lenient: Server):
    """Made, and the list may be asked for; what is in the list is at the end of this file."""
    a, b, b_id = two(lenient)
    made = a.ok("POST", f"{C}/createRoom", {"name": "公開", "visibility": "public", "preset": "public_chat", "invite": [b_id]})
    b.ok("POST", f"{C}/join/{quote(made['room_id'])}", {})
    assert a.state(made["room_id"], "m.room.join_rules") == {"join_rule": "public"}
    for method, body in (("GET", None), ("POST", {})):
        assert isinstance(b.ok(method, f"{C}/publicRooms", body)["chunk"], list)


def test_what_is_switched_on_here_refuses_in_a_city(city: Server):
    """The defaults of the same settings, asked for by somebody with a certificate and a session."""
    person = city.person()
    assert by_token(city, "x", None, client=city.public(person.terminal)).told == (403, "M_FORBIDDEN")
    assert by_token(city, "x", None).json["jp.heya.certificate"] == "none"
    bare = city.public(person.terminal)
    assert bare.get(f"{C}/register/available?username=x").told == (403, "M_FORBIDDEN")
    for answer in (by_secret(city, "x", client=bare), by_secret(city, "x", client=bare, nonce="x")):
        assert answer.told == (404, "M_UNRECOGNIZED")
    for answer in (person.client.get(f"{C}/publicRooms"), person.client.post(f"{C}/publicRooms"),
                   person.client.post(f"{C}/createRoom", {"visibility": "public"}),
                   person.client.post(f"{C}/createRoom", {"name": "勉強会"})):
        assert answer.told == (403, "M_FORBIDDEN"), answer


def test_the_directory_lists_public_rooms(lenient: Server):
    """Client-server API, "Listing rooms": visibility "public" puts a room into the list."""
    a, b, _ = two(lenient)
    room = a.ok("POST", f"{C}/createRoom", {"name": "公開", "visibility": "public", "preset": "public_chat"})["room_id"]
    hidden = a.ok("POST", f"{C}/createRoom", {"name": "内輪", "preset": "public_chat"})["room_id"]
    rooms = [one["room_id"] for one in b.ok("GET", f"{C}/publicRooms")["chunk"]]
    assert room in rooms and hidden not in rooms


def test_tokens_of_the_directory_are_numbers_of_any_size(lenient: Server):
    _, b, _ = two(lenient)
    far = b.ok("GET", f"{C}/publicRooms?since=p{2**64 - 1}&limit=10")
    assert far["chunk"] == [] and "next_batch" not in far
    for bad in ("x", "p", "p-1", f"p{2**64}"):
        assert b.get(f"{C}/publicRooms?since={bad}").told == (400, "M_INVALID_PARAM"), bad


def test_a_public_room_is_joined_without_an_invitation(lenient: Server):
    a, b, _ = two(lenient)
    room = a.ok("POST", f"{C}/createRoom", {"name": "公開", "visibility": "public", "preset": "public_chat"})["room_id"]
    b.ok("POST", f"{C}/join/{quote(room)}", {})


def test_a_room_is_put_into_the_directory_later(lenient: Server):
    a, _, _ = two(lenient)
    path = f"{C}/directory/list/room/"
    room = a.ok("POST", f"{C}/createRoom", {"name": "後から", "preset": "public_chat"})["room_id"]
    assert a.ok("GET", path + quote(room)) == {"visibility": "private"}
    a.ok("PUT", path + quote(room), {"visibility": "public"})
    assert a.ok("GET", path + quote(room)) == {"visibility": "public"}


def test_the_rules_for_passwords_hold_for_who_registers(lenient: Server):
    """`policy.password_length_min` is 8, and the account is like every other afterwards."""
    answer = by_token(lenient, f"w{secrets.token_hex(4)}", the_token(lenient), password="a")
    assert answer.told == (400, "M_WEAK_PASSWORD"), answer


def test_a_registration_does_not_take_an_id_that_the_city_issues_next(lenient: Server):
    last = lenient.issue().login_id
    for one in (f"{last[0]}{int(last[1:]) + 1}", "f9999", "city", "guest.me"):
        assert by_token(lenient, one, the_token(lenient)).told == (400, "M_EXCLUSIVE"), one
    assert lenient.issue().login_id == f"{last[0]}{int(last[1:]) + 1}"
