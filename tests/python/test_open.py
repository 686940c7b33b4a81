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


def test_guests_come_where_a_room_lets_them_in(open_server):
    """Client-server API, "Guest Access"."""
    host = open_server.register()
    closed = host.client.ok("POST", f"{C}/createRoom", {"name": "closed", "preset": "public_chat"})["room_id"]
    room = host.client.ok("POST", f"{C}/createRoom", {"name": "open", "preset": "public_chat", "initial_state": [
        {"type": "m.room.guest_access", "state_key": "", "content": {"guest_access": "can_join"}}]})["room_id"]
    made = open_server.public().post(f"{C}/register?kind=guest", {})
    assert made.status == 200 and made.json["user_id"].startswith("@guest."), made
    guest = open_server.public(token=made.json["access_token"])
    assert guest.post(f"{C}/join/{quote(closed)}", {}).told == (403, "M_GUEST_ACCESS_FORBIDDEN")
    assert guest.post(f"{C}/join/{quote(room)}", {}).status == 200
    event = guest.ok("PUT", f"{C}/rooms/{quote(room)}/send/m.room.message/g1", {"msgtype": "m.text", "body": "hi"})["event_id"]
    assert event in [one["event_id"] for one in host.client.messages(room)]
    for method, path in (("POST", "/createRoom"), ("POST", f"/rooms/{quote(room)}/invite"), ("POST", "/search"),
                         ("PUT", f"/profile/{quote(made.json['user_id'])}/avatar_url")):
        assert guest.request(method, f"{C}{path}", json_body={"user_id": host.user_id}).told == (403, "M_GUEST_ACCESS_FORBIDDEN"), path
    assert guest.request("POST", "/_matrix/media/v3/upload", json_body={}).told == (403, "M_GUEST_ACCESS_FORBIDDEN")
    taken = open_server.public().post(f"{C}/register", {"username": "guest.me", "password": "x-Y-1", "auth": {"type": "m.login.dummy"}})
    assert taken.told == (400, "M_EXCLUSIVE")


def test_the_open_profile_with_tls(tmp_path):
    """For clients that refuse plain HTTP: TLS, and no certificate asked for."""
    import socket
    import ssl
    import time

    from harness import binary, free_ports

    public, enrol, internal = free_ports(3)
    config = tmp_path / "config.toml"
    config.write_text(f"""[server]
public_url = "https://localhost:{public}"
listen = "127.0.0.1:{public}"
enrol_listen = "127.0.0.1:{enrol}"
internal_listen = "127.0.0.1:{internal}"
data_dir = "{tmp_path}/data"
""")
    refused = subprocess.run([binary(), "--config", str(config), "serve", "--tls"], capture_output=True, text=True, timeout=30)
    assert refused.returncode == 1 and "--profile open" in refused.stderr
    server = subprocess.Popen([binary(), "--config", str(config), "serve", "--profile", "open", "--tls"], stderr=subprocess.DEVNULL)
    try:
        context = ssl.create_default_context()
        deadline = time.monotonic() + 20
        while True:
            try:
                context.load_verify_locations(cafile=str(next((tmp_path / "data" / "keys").glob("ca*.pem"))))
                with socket.create_connection(("127.0.0.1", public)) as raw, context.wrap_socket(raw, server_hostname="localhost") as tls:
                    tls.sendall(f"GET /_matrix/client/versions HTTP/1.1\r\nHost: localhost:{public}\r\nConnection: close\r\n\r\n".encode())
                    assert tls.recv(12) == b"HTTP/1.1 200"
                    return
            except (OSError, StopIteration):
                assert time.monotonic() < deadline, "no TLS"
                time.sleep(0.1)
    finally:
        server.terminate()
        server.wait(20)


def test_messages_to_a_device_come_once_and_after_quiet(open_server):
    """Client-server API, "Send-to-Device messaging": told until acknowledged by the next sync, then gone; and what comes
    after many quiet syncs is not missed."""
    a, b = (open_server.register() for _ in range(2))
    room = a.client.ok("POST", f"{C}/createRoom", {"invite": [b.user_id]})["room_id"]
    b.client.ok("POST", f"{C}/join/{quote(room)}", {})
    device = b.client.ok("GET", f"{C}/account/whoami")["device_id"]
    since = b.client.sync()["next_batch"]
    for n in range(3):
        for _ in range(3):
            quiet = b.client.sync(since)
            assert not quiet.get("to_device", {}).get("events")
            since = quiet["next_batch"]
        a.client.ok("PUT", f"{C}/sendToDevice/m.test/{n}", {"messages": {b.user_id: {device: {"n": n}}}})
        for _ in range(2):
            told = b.client.sync(since)
            assert [event["content"] for event in told["to_device"]["events"]] == [{"n": n}]
        since = told["next_batch"]


def test_new_device_keys_are_told_to_whoever_shares_a_room(open_server):
    """Client-server API, "Tracking the device list": also after quiet syncs, and to nobody else."""
    a, b, stranger = (open_server.register() for _ in range(3))
    room = a.client.ok("POST", f"{C}/createRoom", {"invite": [b.user_id]})["room_id"]
    b.client.ok("POST", f"{C}/join/{quote(room)}", {})
    device = b.client.ok("GET", f"{C}/account/whoami")["device_id"]
    since, far = a.client.sync()["next_batch"], stranger.client.sync()["next_batch"]
    for n in range(2):
        since = a.client.sync(since)["next_batch"]
        b.client.ok("POST", f"{C}/keys/upload", {"device_keys": {
            "user_id": b.user_id, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": {f"curve25519:{device}": f"key{n}"}, "signatures": {}}})
        told = a.client.sync(since)
        assert told["device_lists"]["changed"] == [b.user_id]
        since = told["next_batch"]
        assert not a.client.sync(since).get("device_lists", {}).get("changed")
    assert not stranger.client.sync(far).get("device_lists", {}).get("changed")
