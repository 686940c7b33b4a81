"""The open profile, for client developers and test suites: loopback only, no certificates, everybody registers."""

from __future__ import annotations

import subprocess

import pytest

from harness import Server, quote

C = "/_matrix/client/v3"


@pytest.fixture(scope="module")
def open_server() -> Server:
    server = Server(profile="open")
    yield server
    server.remove()


def test_register_talk_leave(open_server):
    a, b, c = (open_server.register() for _ in range(3))
    room = a.client.ok("POST", f"{C}/createRoom", {"name": "room", "invite": [b.user_id]})["room_id"]
    assert room in b.client.sync()["rooms"]["invite"]
    b.client.ok("POST", f"{C}/join/{quote(room)}", {})
    event = a.client.say(room, "hello")
    assert event in [one["event_id"] for one in b.client.messages(room)]
    assert c.client.get(f"{C}/rooms/{quote(room)}/messages?dir=b").told == (403, "M_FORBIDDEN")
    b.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
    later = a.client.say(room, "later")
    # Here former members read up to where they left.
    assert b.client.get(f"{C}/rooms/{quote(room)}/event/{quote(event)}").status == 200
    assert b.client.get(f"{C}/rooms/{quote(room)}/event/{quote(later)}").status == 404


def test_registration_asks_for_its_one_stage(open_server):
    asked = open_server.public().post(f"{C}/register", {"username": "stage", "password": "Ume-hana-37"})
    assert asked.status == 401 and asked.json["flows"] == [{"stages": ["m.login.dummy"]}] and asked.json["session"]
    person = open_server.register("taken")
    again = open_server.public().post(f"{C}/register", {"username": "taken", "password": "x-Y-1", "auth": {"type": "m.login.dummy"}})
    assert again.told == (400, "M_USER_IN_USE")
    for bad in ("", "あ", "a b", "x" * 300, "a:b", "@a"):
        answer = open_server.public().post(f"{C}/register", {"username": bad, "password": "x-Y-1", "auth": {"type": "m.login.dummy"}})
        assert answer.told == (400, "M_INVALID_USERNAME"), bad
    reserved = open_server.public().post(f"{C}/register", {"username": "city", "password": "x-Y-1", "auth": {"type": "m.login.dummy"}})
    assert reserved.told in ((400, "M_USER_IN_USE"), (400, "M_EXCLUSIVE"))
    assert person.client.get(f"{C}/account/whoami").status == 200


def test_it_says_that_it_is_open(open_server):
    assert "OPEN PROFILE" in open_server.public().get("/_heya/health").json["warning"]
    assert "OPEN PROFILE" in open_server.log()


def test_it_never_listens_to_the_outside(tmp_path):
    """Policies this open are for loopback only."""
    config = tmp_path / "config.toml"
    config.write_text(f'[server]\nlisten = "0.0.0.0:0"\ndata_dir = "{tmp_path}/data"\n')
    from harness import binary

    done = subprocess.run([binary(), "--config", str(config), "serve", "--profile", "open"], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and "loopback" in done.stderr
