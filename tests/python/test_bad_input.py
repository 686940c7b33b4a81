"""What comes from outside and is wrong gets the specified error: never a 5xx, never a half-written event, and the server
goes on (client-server API, "Standard error response"; appendices, "Canonical JSON")."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import time

import pytest

from harness import Client, Person, Server, quote, wait_for

C = "/_matrix/client/v3"
BAD_JSON, NOT_JSON = (400, "M_BAD_JSON"), (400, "M_NOT_JSON")
TOO_LARGE = (413, "M_TOO_LARGE")
UNRECOGNIZED = (404, "M_UNRECOGNIZED")


@pytest.fixture(scope="module")
def server(fresh_module) -> Server:
    return fresh_module(config={"limits": {"request_seconds": 8, "handshake_seconds": 6}})


@pytest.fixture(scope="module")
def fresh_module():
    servers: list[Server] = []

    def make(**named) -> Server:
        servers.append(Server(**named))
        return servers[-1]

    yield make
    for server in servers:
        server.remove()


@pytest.fixture(scope="module")
def person(server: Server) -> Person:
    return server.person()


@pytest.fixture(scope="module")
def room(server: Server, person: Person) -> str:
    return server.room(person, server.first_staff())


@pytest.fixture(autouse=True)
def nothing_happened(server: Server, person: Person, room: str):
    """Around every test: as many events as before, no error in the log, and the server answers."""
    counts = ["SELECT count(*) FROM events", "SELECT count(*) FROM accounts", "SELECT count(*) FROM rooms"]
    before = [server.count(sql) for sql in counts]
    log = len(server.log())
    yield
    assert server.healthy()
    assert [server.count(sql) for sql in counts] == before, "something was written"
    new = server.log()[log:]
    assert "panicked" not in new and " ERROR " not in new, new
    assert person.client.get(f"{C}/account/whoami").status == 200


def endpoints(server: Server, person: Person, room: str) -> dict[str, tuple[Client, str, str, dict]]:
    """Endpoints that take JSON, with a body of the right shape (which is sent only with faults)."""
    r, me = f"{C}/rooms/{quote(room)}", quote(person.user_id)
    client, bot, inside = person.client, server.as_city(), server.internal
    return {
        "send": (client, "PUT", f"{r}/send/m.room.message/{secrets.token_hex(4)}", {"msgtype": "m.text"}),
        "state": (bot, "PUT", f"{r}/state/m.room.topic", {"topic": "x"}),
        "redact": (client, "PUT", f"{r}/redact/{quote('$' + 'a' * 43)}/{secrets.token_hex(4)}", {}),
        "createRoom": (client, "POST", f"{C}/createRoom", {}),
        "invite": (client, "POST", f"{r}/invite", {"user_id": "@x:y"}),
        "typing": (client, "PUT", f"{r}/typing/{me}", {"typing": True}),
        "read_markers": (client, "POST", f"{r}/read_markers", {}),
        "account data": (client, "PUT", f"{C}/user/{me}/account_data/jp.example.x", {}),
        "filter": (client, "POST", f"{C}/user/{me}/filter", {}),
        "profile": (client, "PUT", f"{C}/profile/{me}/displayname", {"displayname": "x"}),
        "search": (client, "POST", f"{C}/search", {"search_categories": {}}),
        "directory": (client, "POST", f"{C}/user_directory/search", {"search_term": "x"}),
        "keys/query": (client, "POST", f"{C}/keys/query", {"device_keys": {}}),
        "keys/upload": (client, "POST", f"{C}/keys/upload", {}),
        "keys/claim": (client, "POST", f"{C}/keys/claim", {"one_time_keys": {}}),
        "to device": (client, "PUT", f"{C}/sendToDevice/m.x/{secrets.token_hex(4)}", {"messages": {}}),
        "pushers": (client, "POST", f"{C}/pushers/set", {"kind": None, "app_id": "x", "pushkey": "x"}),
        "pushrule": (client, "PUT", f"{C}/pushrules/global/override/x", {"actions": [], "conditions": []}),
        "delete devices": (client, "POST", f"{C}/delete_devices", {"devices": []}),
        "password": (client, "POST", f"{C}/account/password", {"new_password": "x"}),
        "login": (server.public(person.terminal), "POST", f"{C}/login", {"type": "m.login.password"}),
        "facilities": (inside, "POST", "/_heya/v1/facilities", {"name": "x", "kind": "care", "acting": "command"}),
        "accounts": (inside, "POST", "/_heya/v1/accounts", {"facility": 1, "kind": "personal", "acting": "command"}),
        "rooms": (inside, "POST", "/_heya/v1/rooms", {"case": "x", "kind": "association", "acting": "command"}),
        "announcements": (inside, "POST", "/_heya/v1/announcements", {"case": "x", "body": "x", "acting": "command"}),
    }


ENDPOINTS = ["send", "state", "redact", "createRoom", "invite", "typing", "read_markers", "account data", "filter", "profile",
             "search", "directory", "keys/query", "keys/upload", "keys/claim", "to device", "pushers", "pushrule",
             "delete devices", "password", "login", "facilities", "accounts", "rooms", "announcements"]


def faulty(good: dict) -> dict[str, tuple[bytes, set]]:
    """Bodies with one fault, and the errors that fit."""
    text = json.dumps(good).encode()
    open_ = text[:-1] + (b"," if good else b"")
    return {
        "broken": (open_, {NOT_JSON}),
        "two values": (text + b"{}", {NOT_JSON}),
        "trailing text": (text + b" x", {NOT_JSON}),
        "no JSON": (b"hello=world", {NOT_JSON}),
        "single quotes": (b"{'a': 1}", {NOT_JSON}),
        "bad UTF-8": (open_ + b'"zz":"\xff\xfe"}', {NOT_JSON}),
        "overlong UTF-8": (open_ + b'"zz":"\xc0\x80"}', {NOT_JSON}),
        "a surrogate in UTF-8": (open_ + b'"zz":"\xed\xa0\x80"}', {NOT_JSON}),
        "half a surrogate pair": (open_ + b'"zz":"\\ud800"}', {NOT_JSON, BAD_JSON}),
        "a raw control character": (open_ + b'"zz":"a\x01b"}', {NOT_JSON}),
        "a byte order mark": (b"\xef\xbb\xbf" + text, {NOT_JSON}),
        "UTF-16": (text.decode().encode("utf-16"), {NOT_JSON}),
        "NUL in a value": (open_ + b'"zz":"a\\u0000b"}', {BAD_JSON}),
        "NUL in a key": (open_ + b'"z\\u0000z":1}', {BAD_JSON}),
        "duplicate key": (open_ + b'"zz":1,"zz":2}', {BAD_JSON}),
        "duplicate key, escaped": (open_ + b'"zz":1,"z\\u007a":2}', {BAD_JSON}),
        "duplicate key inside": (open_ + b'"zz":[{"a":1,"a":1}]}', {BAD_JSON}),
        "deep": (open_ + b'"zz":' + b"[" * 5000 + b"]" * 5000 + b"}", {BAD_JSON}),
        "deep objects": (open_ + b'"zz":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", {BAD_JSON}),
        "a huge number": (open_ + b'"zz":1e999}', {BAD_JSON, NOT_JSON}),
        "NaN": (open_ + b'"zz":NaN}', {NOT_JSON}),
        "a list": (b"[]", {BAD_JSON}),
        "a string": (b'"x"', {BAD_JSON}),
        "null": (b"null", {BAD_JSON}),
        "a number": (b"1", {BAD_JSON}),
        "too large": (open_ + b'"zz":"' + b"x" * (1 << 20) + b'"}', {TOO_LARGE}),
    }


@pytest.mark.parametrize("fault", list(faulty({})))
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_faulty_bodies(server, person, room, endpoint, fault):
    client, method, path, good = endpoints(server, person, room)[endpoint]
    body, fitting = faulty(good)[fault]
    answer = client.request(method, path, body=body, headers={
        "Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(8)})
    assert answer.told in fitting, answer
    if fault not in ("a number",):
        assert b"zz" not in answer.content, "what was sent is repeated"


@pytest.mark.parametrize("content", [
    b'{"body":1.5}', b'{"body":{"a":[1.0]}}', b'{"body":1e2}', b'{"body":9007199254740992}', b'{"body":-9007199254740992}',
    b'{"body":123456789012345678901234567890}', b'{"body":-0.0}',
])
def test_numbers_that_events_cannot_hold(server, person, room, content):
    """Appendices, "Canonical JSON": integers within 2^53 only."""
    r = f"{C}/rooms/{quote(room)}"
    for path in (f"{r}/send/m.room.message/{secrets.token_hex(4)}", f"{r}/send/jp.example.x/{secrets.token_hex(4)}"):
        assert person.client.put(path, body=content).told == BAD_JSON
    assert server.as_city().put(f"{r}/state/jp.example.x", body=content).told == BAD_JSON
    create = b'{"initial_state":[{"type":"jp.example.x","state_key":"","content":' + content + b"}]}"
    assert server.as_city().post(f"{C}/createRoom", body=create).told == BAD_JSON


def test_an_empty_body_is_no_event(server, person, room):
    r = f"{C}/rooms/{quote(room)}"
    assert person.client.request("PUT", f"{r}/send/m.room.message/{secrets.token_hex(4)}", body=b"").told == NOT_JSON
    assert server.as_city().request("PUT", f"{r}/state/jp.example.x", body=b"").told == NOT_JSON


def test_numbers_that_events_can_hold(server, person, room):
    content = {"a": 9007199254740991, "b": -9007199254740991, "c": 0}
    with_it = person.client.put(f"{C}/rooms/{quote(room)}/send/m.room.redaction/x", content)
    assert with_it.status == 400, "redactions have an endpoint of their own"


@pytest.mark.parametrize("size", [65_537, 100_000, 900_000])
def test_events_have_at_most_65536_bytes(server, person, room, size):
    """Client-server API, "Size limits". The whole event counts, so a content of that size is too large."""
    body = json.dumps({"msgtype": "m.text", "body": "x" * size}).encode()
    r = f"{C}/rooms/{quote(room)}"
    assert person.client.put(f"{r}/send/m.room.message/{secrets.token_hex(4)}", body=body).told == TOO_LARGE
    assert server.as_city().put(f"{r}/state/jp.example.x", body=body).told == TOO_LARGE


def test_the_size_of_the_whole_event_counts(server, person, room):
    """65,400 bytes of text and the event's other fields are more than 65,536."""
    body = {"msgtype": "m.text", "body": "x" * 65_400}
    path = f"{C}/rooms/{quote(room)}/send/m.room.message/{secrets.token_hex(4)}"
    assert person.client.put(path, body).told == TOO_LARGE


@pytest.mark.parametrize(("kind", "key"), [
    ("t" * 256, "x"), ("m.room.topic", "k" * 256), ("あ" * 86, "x"), ("jp.example", "あ" * 86), ("t" * 30_000, "x")])
def test_types_and_state_keys_have_at_most_255_bytes(server, person, room, kind, key):
    r = f"{C}/rooms/{quote(room)}"
    bot = server.as_city()
    for answer in (bot.put(f"{r}/state/{quote(kind)}/{quote(key)}", {"x": 1}),
                   bot.put(f"{r}/send/{quote(kind)}/{secrets.token_hex(4)}", {"x": 1}) if len(kind) > 80 else None):
        if answer is not None:
            assert answer.status in (400, 413) and answer.errcode in ("M_TOO_LARGE", "M_INVALID_PARAM", "M_BAD_JSON"), answer


LONG = "a" * 300


@pytest.mark.parametrize(("method", "path"), [
    ("PUT", f"{C}/rooms/!{LONG}/send/m.room.message/x"),
    ("PUT", f"{C}/rooms/%21{LONG}:localhost/send/m.room.message/x"),
    ("GET", f"{C}/rooms/x/messages?dir=b"),
    ("GET", f"{C}/rooms/%23alias:localhost/state"),
    ("GET", f"{C}/rooms/%00/state"),
    ("GET", f"{C}/rooms/!a%00b:localhost/state"),
    ("GET", f"{C}/rooms/%FF%FE/state"),
    ("GET", f"{C}/rooms/%21%E3%81/state"),
    ("GET", f"{C}/rooms/%2521x/state"),
    ("GET", f"{C}/rooms/..%2f..%2fetc%2fpasswd/state"),
    ("GET", f"{C}/rooms/%zz/state"),
    ("GET", f"{C}/rooms/%/state"),
    ("GET", f"{C}/profile/@{LONG}:localhost"),
    ("GET", f"{C}/profile/nobody"),
    ("GET", f"{C}/profile/@a%00b:localhost"),
    ("GET", f"{C}/profile/@%E3%81%82%00:localhost/displayname"),
    ("GET", f"{C}/devices/{LONG}"),
    ("GET", f"{C}/devices/a%00b"),
    ("GET", f"{C}/pushrules/global/nonsense/x"),
    ("GET", f"{C}/pushrules/global/override/a%00b"),
    ("GET", f"{C}/user/@x%00:y/account_data/z"),
    ("GET", "/_matrix/client/v1/media/download/localhost/../../../../etc/passwd"),
    ("GET", "/_matrix/client/v1/media/download/localhost/..%2F..%2Fkeys%2Fca.key"),
    ("GET", "/_matrix/client/v1/media/download/localhost/a%00b"),
    ("GET", "/_matrix/client/v1/media/download/%2e%2e/%2e%2e"),
    ("GET", "/_matrix/client/v1/media/thumbnail/localhost/abc?width=0&height=0"),
    ("GET", "/_matrix/client/v1/media/thumbnail/localhost/abc?width=99999999999999999999&height=1"),
    ("GET", "/_matrix/client/v1/media/thumbnail/localhost/abc"),
    ("GET", f"{C}/join/!x"),
    ("POST", f"{C}/join/%23nobody:localhost"),
    ("POST", f"{C}/join/nonsense"),
    ("GET", "/%2e%2e/%2e%2e/keys/ca.key"),
    ("GET", "/../keys/ca.key"),
    ("GET", "//etc/passwd"),
    ("GET", "/_matrix/client/v3/sync/../account/whoami"),
    ("GET", "/_matrix//client/v3/sync"),
    ("GET", "/_matrix/client/v3/sync/"),
    ("GET", "/_matrix/client/v4/sync"),
    ("GET", "/_matrix/nonsense"),
    ("GET", "/_heya/nonsense"),
    ("GET", f"{C}/" + "x" * 20_000),
])
def test_odd_paths(server, person, method, path):
    answer = person.client.request(method, path, body=b"{}" if method != "GET" else None)
    assert 400 <= answer.status < 500, answer
    assert b"root:" not in answer.content and b"PRIVATE KEY" not in answer.content
    if path.startswith("/_matrix/") and len(path) < 10_000:
        assert answer.errcode is not None and answer.errcode.startswith("M_"), answer


def test_encoded_and_plain_paths_are_the_same_resource(server, person, room):
    """A state key with a slash, a percent sign, a question mark: what is written is what is read."""
    client = person.client
    plain = client.get(f"{C}/rooms/{room.replace('!', '%21')}/state/m.room.name")
    assert plain.status == 200 and plain.content == client.get(f"{C}/rooms/{room}/state/m.room.name").content
    assert client.get(f"{C}/rooms/{quote(room)}/state/m.room.name%2F").status == 404
    assert client.get(f"{C}/rooms/{quote(room)}/state/m.room.name/%2F").status == 404
    me = quote(person.user_id)
    for kind in ("jp.example.a/b", "jp.example.a%2Fb", "jp.example.あ", "jp.example.a b", "jp.example.a+b", "jp.example.a?b#c"):
        value = {"v": secrets.token_hex(4)}
        assert client.put(f"{C}/user/{me}/account_data/{quote(kind)}", value).status == 200
        assert client.get(f"{C}/user/{me}/account_data/{quote(kind)}").json == value, kind
        changed = [event for event in client.sync()["account_data"]["events"] if event["content"] == value]
        assert [event["type"] for event in changed] == [kind]


@pytest.mark.parametrize(("method", "path"), [
    ("POST", f"{C}/sync"), ("DELETE", f"{C}/login"), ("GET", f"{C}/createRoom"), ("PATCH", f"{C}/createRoom"),
    ("PUT", f"{C}/search"), ("GET", f"{C}/logout"), ("DELETE", f"{C}/account/whoami"), ("POST", "/_matrix/client/versions"),
    ("GET", "/_matrix/media/v3/upload"), ("TRACE", f"{C}/sync"), ("PROPFIND", f"{C}/sync"), ("X", f"{C}/sync"),
])
def test_wrong_methods(server, person, method, path):
    """Client-server API, "Common error codes": M_UNRECOGNIZED with 405 where the path takes another method."""
    assert person.client.request(method, path).told == (405, "M_UNRECOGNIZED")


@pytest.mark.parametrize("path", ["/_matrix/client/v3/nothing", "/_matrix/client/unstable/x", "/_matrix/x", "/_synapse/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_unknown_paths(server, person, method, path):
    assert person.client.request(method, path, body=b"{}").told == UNRECOGNIZED


TOKENS = ["", "x", "0", "-1", "s1_x_1", "99999999999999999999999", "s1_0_0_0_0_0", "%00", "t1-2_3", "あ", "a" * 5_000,
          "' OR 1=1 --", "null", "1.5"]


@pytest.mark.parametrize("token", TOKENS)
def test_odd_tokens(server, person, room, token):
    """A `since` that is not ours: M_UNKNOWN_POS or M_INVALID_PARAM; empty is as good as none."""
    r, encoded = f"{C}/rooms/{quote(room)}", quote(token)
    if token:
        sync = person.client.get(f"{C}/sync?since={encoded}")
        assert sync.status == 400 and sync.errcode in ("M_UNKNOWN_POS", "M_INVALID_PARAM"), sync
    for path in (f"{r}/messages?dir=b&from={encoded}", f"{r}/messages?dir=f&from={encoded}", f"{r}/messages?dir=b&to={encoded}",
                 f"{r}/members?at={encoded}", f"{C}/keys/changes?from={encoded}&to={encoded}",
                 f"{C}/notifications?from={encoded}", f"/_matrix/client/v1/rooms/{quote(room)}/relations/%24x?from={encoded}"):
        answer = person.client.get(path)
        assert answer.status in (200, 400, 404) and (answer.status == 200) <= (token == "" or "notif" in path), (path, answer)
    search = person.client.post(f"{C}/search?next_batch={encoded}",
                                {"search_categories": {"room_events": {"search_term": "x"}}})
    assert search.status == (400 if token else 200), search


@pytest.mark.parametrize("query", [
    "dir=x", "", "dir=b&limit=-1", "dir=b&limit=x", "dir=b&limit=1.5", "dir=b&limit=99999999999999999999", "dir=b&filter=x",
    "dir=b&filter=%7B", "dir=b&filter=%5B%5D", "dir=b&filter=%7B%22limit%22%3A%22x%22%7D"])
def test_odd_queries(server, person, room, query):
    answer = person.client.get(f"{C}/rooms/{quote(room)}/messages?{query}")
    assert answer.status == 400 and answer.errcode in ("M_INVALID_PARAM", "M_MISSING_PARAM", "M_BAD_JSON", "M_NOT_JSON"), answer


@pytest.mark.parametrize("query", [
    "timeout=x", "timeout=-1", "full_state=maybe", "filter=%7B", "filter=%5B%5D", "filter=99999", "filter=%00",
    "set_presence=x", "timeout=99999999999999999999999"])
def test_odd_sync_queries(server, person, query):
    answer = person.client.get(f"{C}/sync?{query}")
    assert answer.status in (200, 400, 404), answer
    if not query.startswith(("set_presence",)):
        assert answer.status != 200, "taken as if it were right"


def test_a_huge_limit_is_cut(server, person, room):
    for limit in (1, 1_000_000, 9007199254740991):
        answer = person.client.get(f"{C}/rooms/{quote(room)}/messages?dir=b&limit={limit}")
        assert answer.status == 200
    assert person.client.get(f"{C}/sync?filter=" + quote(json.dumps({"room": {"timeline": {"limit": 10**9}}}))).status == 200


def test_huge_filters(server, person):
    me = quote(person.user_id)
    big = {"room": {"rooms": [f"!{n}:localhost" for n in range(50_000)]}}
    answer = person.client.post(f"{C}/user/{me}/filter", big)
    assert answer.status in (400, 413), answer
    in_query = person.client.get(f"{C}/sync?filter=" + quote(json.dumps({"room": {"rooms": ["!x"] * 3000}})))
    assert in_query.status < 500
    many = {"room": {"timeline": {"senders": [f"@{n}:x" for n in range(1000)], "not_types": ["*" * 200] * 100}}}
    began = time.monotonic()
    answer = person.client.post(f"{C}/user/{me}/filter", many)
    assert answer.status < 500 and time.monotonic() - began < 20
    star = {"room": {"timeline": {"types": ["*a" * 60 + "b"]}}}
    assert person.client.get(f"{C}/sync?filter=" + quote(json.dumps(star))).status in (200, 400)
    assert time.monotonic() - began < 30, "wildcards backtrack"


def test_filters_of_one_person_are_limited(server, person):
    """Everything from outside has a limit in count."""
    me = quote(person.user_id)
    told = set()
    for n in range(1100):
        answer = person.client.post(f"{C}/user/{me}/filter", {"room": {"timeline": {"limit": n + 1}}})
        told.add(answer.status)
        if answer.status != 200:
            break
    assert told - {200} and max(told) < 500, "1,100 filters were kept"


@pytest.mark.parametrize("token", ["", " ", "x" * 10_000, "あ", "Bearer x", "a\tb", "' OR '1'='1", "../..", "null"])
def test_odd_access_tokens(server, person, token):
    client = server.public(person.terminal)
    answer = client.get(f"{C}/account/whoami", headers={"Authorization": f"Bearer {token}".encode().decode("latin-1")})
    assert answer.status == 401 and answer.errcode in ("M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"), answer
    for header in ("Basic eDp5", f"bearer{token}", "Bearer", ""):
        answer = client.get(f"{C}/account/whoami", headers={"Authorization": header.encode().decode("latin-1")})
        assert answer.status == 401


@pytest.mark.parametrize("user", [
    "", "@", "@:", ":", "@x", "@x:", "@" + "x" * 300 + ":y", "@x:y:z:w", "@a b:localhost", "@あ:localhost", "x\u0000y", "p1\n",
    "😀" * 5000, "'; DROP TABLE accounts; --", None, 7, [], {}])
def test_odd_ids_at_login(server, person, user):
    answer = server.public(person.terminal).post(f"{C}/login", {
        "type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": "x"})
    assert answer.status in (400, 403), answer
    assert answer.errcode in ("M_FORBIDDEN", "M_BAD_JSON", "M_INVALID_PARAM"), answer


@pytest.mark.parametrize("more", [
    {"device_id": "x" * 300}, {"device_id": "x" * 10_000}, {"device_id": "a\0b"}, {"device_id": 7}, {"device_id": "あ" * 100},
    {"initial_device_display_name": "x" * 100_000}, {"initial_device_display_name": 7}])
def test_devices_at_login(server, person, more):
    answer = server.log_in(server.public(person.terminal), person.login_id, person.password, **more)
    if answer.status == 200:
        # Cut to a sensible length is as good as refused.
        client = server.public(person.terminal, answer.json["access_token"])
        device = client.ok("GET", f"{C}/devices/{quote(answer.json['device_id'])}")
        assert len(device["device_id"].encode()) <= 255 and len(device.get("display_name") or "") <= 255, "no limit"
    else:
        assert answer.status == 400 and answer.errcode in ("M_BAD_JSON", "M_INVALID_PARAM"), answer


def test_an_empty_device_id_is_none(server, person):
    done = server.log_in(server.public(person.terminal), person.login_id, person.password, device_id="")
    assert done.status == 400 or done.json["device_id"] != ""


COUNTS = {
    "types of account data": 1_200, "tags": 600, "one-time keys": 30, "uploads that nobody shows": 400,
    "messages that wait for a device": 200,
}


def test_odd_uploads(server, person):
    client = person.client
    for name, kind, content in (
        ("x.exe", "application/octet-stream", b"MZ" + b"\0" * 100),
        ("photo.png", "image/png", b"MZ" + b"\0" * 100),
        ("x.docm", "application/vnd.ms-word.document.macroEnabled.12", b"PK\3\4" + b"\0" * 100),
        ("x.sh", "text/x-sh", b"#!/bin/sh\n"),
        ("x.js", "text/javascript", b"alert(1)"),
    ):
        answer = client.post(f"/_matrix/media/v3/upload?filename={name}", body=content, headers={"Content-Type": kind})
        assert answer.told == (403, "M_FORBIDDEN"), f"C33: {name} was taken: {answer}"
    for name in ("a/b", "..", "a\0b", "x" * 5000, "a\nb"):
        answer = client.post(f"/_matrix/media/v3/upload?filename={quote(name)}", body=b"hello", headers={"Content-Type": "text/plain"})
        assert answer.status < 500, answer
    assert client.post("/_matrix/media/v3/upload", body=b"x", headers={"Content-Type": "no\u00e9 type; x"}).status < 500
    # Nothing that a browser runs comes back as something that it runs.
    for kind, content in (("text/html", b"<script>alert(1)</script>"), ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>")):
        answer = client.post("/_matrix/media/v3/upload", body=content, headers={"Content-Type": kind})
        if answer.status == 200:
            got = client.get("/_matrix/client/v1/media/download/" + answer.json["content_uri"].removeprefix("mxc://"))
            assert got.headers["Content-Disposition"].startswith("attachment"), kind
            assert "sandbox" in got.headers["Content-Security-Policy"]


# On the wire ---------------------------------------------------------------------------------------------------------


def _tls(server: Server, person: Person | None) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(server.ca))
    if person:
        context.load_cert_chain(str(person.terminal.cert), str(person.terminal.key))
    plain = socket.create_connection(("127.0.0.1", server.ports[0]), timeout=20)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(plain, server_hostname="localhost")


def _head(server: Server, person: Person, method: str, path: str, *more: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {server.server_name}", f"Authorization: Bearer {person.token}", *more, "", ""]
    return "\r\n".join(lines).encode()


def _read_all(tls: ssl.SSLSocket) -> bytes:
    parts = []
    try:
        while part := tls.recv(65536):
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts)


def test_a_body_that_never_comes(server, person, room):
    path = f"{C}/rooms/{quote(room)}/send/m.room.message/slow"
    for sent in (b"", b'{"msg'):
        with _tls(server, person) as tls:
            began = time.monotonic()
            tls.sendall(_head(server, person, "PUT", path, "Content-Length: 100") + sent)
            answer = _read_all_until_answer(tls)
            assert time.monotonic() - began < 25, "limits.request_seconds is 8"
            assert answer == b"" or answer.split()[1][:1] == b"4", answer[:200]


def _read_all_until_answer(tls: ssl.SSLSocket) -> bytes:
    tls.settimeout(40)
    try:
        return tls.recv(65536)
    except (ConnectionError, ssl.SSLError):
        return b""


def test_a_body_that_drips(server, person, room):
    """A byte now and then does not keep it open for ever."""
    path = f"{C}/rooms/{quote(room)}/send/m.room.message/drip"
    with _tls(server, person) as tls:
        tls.sendall(_head(server, person, "PUT", path, "Transfer-Encoding: chunked"))
        tls.settimeout(0.5)
        began = time.monotonic()
        while time.monotonic() - began < 30:
            try:
                tls.sendall(b"1\r\n \r\n")
            except OSError:
                break
            try:
                if tls.recv(1000) is not None:
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - began < 25


def test_a_head_that_never_ends(server, person):
    with _tls(server, person) as tls:
        began = time.monotonic()
        tls.sendall(f"GET {C}/sync HTTP/1.1\r\nHost: {server.server_name}\r\n".encode())
        answer = _read_all_until_answer(tls)
        assert time.monotonic() - began < 25 and (answer == b"" or b" 4" in answer[:15])


def test_a_handshake_that_never_begins(server, person):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=40) as plain:
        assert plain.recv(100) == b""
    assert time.monotonic() - began < 20, "limits.handshake_seconds is 6"


def test_an_endless_body_is_cut_at_the_limit(server, person, room):
    path = f"{C}/rooms/{quote(room)}/send/m.room.message/endless"
    with _tls(server, person) as tls:
        tls.sendall(_head(server, person, "PUT", path, "Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sent = 0
        try:
            while sent < 200 << 20:
                tls.sendall(chunk)
                sent += 65536
                tls.setblocking(False)
                try:
                    if tls.recv(1):
                        break
                except (ssl.SSLWantReadError, BlockingIOError):
                    pass
                finally:
                    tls.settimeout(10)
        except OSError:
            pass
        assert sent < 20 << 20, "it reads on for ever"


@pytest.mark.parametrize("lines", [
    ["Content-Length: 4", "Transfer-Encoding: chunked"], ["Content-Length: 4", "Content-Length: 5"], ["Content-Length: -1"],
    ["Content-Length: 99999999999999999999"], ["Transfer-Encoding: x"], ["X: a\0b"], [": x"], ["x" * 70_000 + ": y"],
    ["X: " + "y" * 200_000], [f"X{n}: y" for n in range(2000)],
])
def test_odd_heads(server, person, room, lines):
    """Smuggling, and heads beyond all measure."""
    path = f"{C}/user/@nobody:example.jp/account_data/odd"  # refused in any case
    with _tls(server, person) as tls:
        tls.settimeout(10)
        try:
            tls.sendall(_head(server, person, "PUT", path, *lines, "Connection: close") + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
        except OSError:
            pass
        answer = _read_all(tls)
    assert answer == b"" or answer.split()[1][:1] == b"4", answer[:200]
    assert answer.count(b"HTTP/1.1 ") <= 1, "a second request was taken from the body"


def test_garbage_instead_of_http(server, person):
    for garbage in (b"\0" * 1000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", secrets.token_bytes(2000), b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"):
        with _tls(server, person) as tls:
            tls.settimeout(10)
            tls.sendall(garbage)
            answer = _read_all(tls)
            assert not answer.startswith((b"HTTP/1.1 5", b"HTTP/1.1 2")), answer[:100]
    with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP/1.1 2" not in plain.recv(1000)


def test_other_hosts_in_the_request_line(server, person):
    with _tls(server, person) as tls:
        tls.sendall(f"GET https://example.jp/_matrix/client/versions HTTP/1.1\r\nHost: {server.server_name}\r\n"
                    "Connection: close\r\n\r\n".encode())
        assert _read_all(tls).split()[1] in (b"421", b"400")
    with _tls(server, person) as tls:
        tls.sendall(b"GET /_matrix/client/versions HTTP/1.0\r\n\r\n")
        assert _read_all(tls).split()[1] in (b"421", b"400"), "no host at all"


def test_a_client_that_hangs_up_writes_nothing(server, person, room):
    path = f"{C}/rooms/{quote(room)}/send/m.room.message/half"
    tls = _tls(server, person)
    tls.sendall(_head(server, person, "PUT", path, "Content-Length: 100") + b'{"msgtype": "m.text", "body": "half')
    tls.close()
    wait_for(lambda: person.client.get(f"{C}/account/whoami").status == 200)


@pytest.mark.parametrize("fields", [
    {}, {"login_id": "x"}, {"login_id": "x" * 20_000}, {"login_id": "\0", "password": "\0", "code": "\0"},
    {"login_id": "p1", "password": "x" * 15_000, "code": "y"}, {"login_id": "<script>alert(1)</script>", "password": "x", "code": "y"}])
def test_odd_enrolment_forms(server, fields):
    import requests

    for path in ("/enrol", "/enrol/password", "/mail/verify"):
        try:
            answer = requests.post(server.enrol_base + path, data=fields, verify=str(server.ca), timeout=30,
                                   allow_redirects=False)
        except requests.ConnectionError:
            assert len(str(fields)) > 16_384, "only a form beyond the limit may be cut off"
            continue
        assert answer.status_code < 500, (path, answer)
        assert "<script>alert" not in answer.text


def test_an_enrolment_form_that_is_none(server):
    import requests

    raw = requests.post(server.enrol_base + "/enrol", data=b"%%%\xff\xfe&=&&login_id", verify=str(server.ca), timeout=30)
    assert raw.status_code < 500


@pytest.mark.parametrize("key", ["", "x" * 129, "x" * 10_000])
def test_idempotency_keys_have_a_limit(server, key):
    answer = server.internal.post("/_heya/v1/facilities", {"name": "x", "kind": "care", "pledge": True, "acting": "command"},
                                  headers={"Idempotency-Key": key})
    assert 400 <= answer.status < 500


def test_internal_bodies_have_at_most_64_kib(server):
    """docs/internal-api.md."""
    body = {"case": "x", "kind": "association", "name": "x", "opening_notice": "y" * 70_000, "acting": "command"}
    answer = server.act("rooms", body, expect=None)
    assert answer.status in (400, 413), answer


@pytest.mark.parametrize("what", COUNTS)
def test_counts_have_a_limit(server, person, room, what):
    """Everything that comes from outside has a limit in count; which, is the server's to say."""
    other = server.first_staff()
    me, client = quote(person.user_id), person.client
    sent = "y" * 50_000

    def one(n: int):
        match what:
            case "types of account data":
                return client.put(f"{C}/user/{me}/account_data/jp.example.n{n}", {"a": 1})
            case "tags":
                return client.put(f"{C}/user/{me}/rooms/{quote(room)}/tags/u.{n}", {})
            case "one-time keys":
                keys = {f"signed_curve25519:{n}_{k}": {"key": "x", "signatures": {}} for k in range(190)}
                return client.post(f"{C}/keys/upload", {"one_time_keys": keys})
            case "uploads that nobody shows":
                return client.post("/_matrix/media/v3/upload", body=b"%d" % n, headers={"Content-Type": "text/plain"})
            case _:
                return client.put(f"{C}/sendToDevice/m.x/{secrets.token_hex(4)}-{n}", {"messages": {other.user_id: {"*": {"x": sent}}}})

    for n in range(COUNTS[what]):
        answer = one(n)
        if answer.status != 200:
            assert 400 <= answer.status < 500 and answer.errcode, answer
            return
    if what == "one-time keys":
        # Old ones may go instead.
        assert client.ok("POST", f"{C}/keys/upload", {})["one_time_key_counts"]["signed_curve25519"] < 5_000
    elif what == "messages that wait for a device":
        waiting, since = 0, None
        while True:  # what has been kept comes in pages
            answer = other.client.sync(since)
            part = answer.get("to_device", {}).get("events", [])
            waiting, since = waiting + len(part), answer["next_batch"]
            if not part:
                break
        assert waiting < COUNTS[what], f"{waiting} messages, 10 MB, waited for one device"
    else:
        pytest.fail(f"no limit: {COUNTS[what]} were kept")
