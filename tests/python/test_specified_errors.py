"""Answers that the specification's own data asks for (client-server API v1.19, OpenAPI): which error a request gets, what is
refused though a decoder would take it, and members that are left out where there is nothing to say."""

from __future__ import annotations

import secrets

import pytest

from harness import Client, Person, Server, quote, wait_for

C = "/_matrix/client/v3"
BAD_JSON, NOT_JSON = (400, "M_BAD_JSON"), (400, "M_NOT_JSON")
MISSING, INVALID = (400, "M_MISSING_PARAM"), (400, "M_INVALID_PARAM")
FORBIDDEN, NOT_FOUND, UNKNOWN = (403, "M_FORBIDDEN"), (404, "M_NOT_FOUND"), (400, "M_UNKNOWN")


@pytest.fixture(scope="module")
def server() -> Server:
    """The open profile: what a city's policies refuse can be asked for here."""
    server = Server(profile="open")
    yield server
    server.remove()


@pytest.fixture(scope="module")
def me(server: Server) -> Person:
    return server.register()


@pytest.fixture(scope="module")
def other(server: Server) -> Person:
    return server.register()


@pytest.fixture(scope="module")
def room(me: Person, other: Person) -> str:
    room = me.client.ok("POST", f"{C}/createRoom", {"invite": [other.user_id]})["room_id"]
    other.client.ok("POST", f"{C}/join/{quote(room)}", {})
    return room


# ── Nothing panics ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body, told", [
    (b"", MISSING), (b"{}", MISSING), (b'{"identifier":{"type":"m.id.user","user":"x"},"password":"x"}', MISSING),
    (b'{"type":null}', BAD_JSON), (b'{"type":5}', BAD_JSON), (b"[]", BAD_JSON), (b'["m.login.password"]', BAD_JSON),
    (b"null", BAD_JSON), (b"{", NOT_JSON),
])
def test_a_login_without_a_type_is_answered(server: Server, body: bytes, told: tuple):
    client, log = server.public(), len(server.log())
    assert client.post(f"{C}/login", body=body).told == told
    assert "panicked" not in server.log()[log:]


def test_a_login_without_a_type_is_answered_in_a_city(city: Server):
    person, log = city.person(), len(city.log())
    assert city.public(person.terminal).post(f"{C}/login", {}).told == MISSING
    assert city.public().post(f"{C}/login", {}).told == FORBIDDEN, "without a certificate nothing else is said"
    assert "panicked" not in city.log()[log:]


def test_an_unknown_type_of_login(server: Server):
    client = server.public()
    for kind in ("jp.example.none", "m.login.dummy"):
        assert client.post(f"{C}/login", {"type": kind}).told == UNKNOWN
    assert client.post(f"{C}/login", {"type": "m.login.password", "password": "x",
                                      "identifier": {"type": "m.id.phone", "country": "JP", "phone": "0"}}).told == INVALID


def test_an_early_refusal_reaches_the_client(server: Server, city: Server):
    """The answer comes though the body was never wanted: a client must see its M_UNKNOWN_TOKEN."""
    person = city.person()
    for one, terminal in ((server, None), (city, person.terminal)):
        for size in (100_000, 1_000_000, 20_000_000):
            for _ in range(5):
                client = one.public(terminal, "wrong")
                answer = client.request("POST", "/_matrix/media/v3/upload", body=b"x" * size,
                                        headers={"Content-Type": "text/plain"})
                assert answer.told == (401, "M_UNKNOWN_TOKEN")
                kept = client._connection
                assert client.get("/_matrix/client/versions").status == 200
                assert kept is not None and client._connection is kept, "the connection goes on"
                client.close()


# ── Bodies ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["keys/upload", "keys/query", "search", "createRoom", "pushers/set", "delete_devices"])
def test_a_list_is_no_object(me: Person, path: str):
    for body in (b"[null]", b"[]", b' [{"a":1}]', b"1", b'"x"'):
        assert me.client.post(f"{C}/{path}", body=body).told == BAD_JSON, body


@pytest.mark.parametrize("body, told", [
    (b"1.5", BAD_JSON), (b'{"presence":"online"}{}', NOT_JSON), (b"\xff", NOT_JSON), (b"{}", BAD_JSON),
    (b'{"presence":"x"}', INVALID), (b'{"presence":"online","status_msg":5}', BAD_JSON),
])
def test_presence_is_read_though_it_is_off(me: Person, body: bytes, told: tuple):
    path = f"{C}/presence/{quote(me.user_id)}/status"
    assert me.client.put(path, body=body).told == told
    assert me.client.put(path, {"presence": "unavailable", "status_msg": "x"}).json == {}


def test_tags_have_a_number_for_an_order(me: Person, room: str):
    path = f"{C}/user/{quote(me.user_id)}/rooms/{quote(room)}/tags"
    assert me.client.put(f"{path}/u.wrong", {"order": "x"}).told == BAD_JSON
    for n, right in enumerate(({}, {"order": 0}, {"order": 0.5})):
        assert me.client.put(f"{path}/u.{n}", right).status == 200
    assert me.client.ok("GET", path)["tags"] == {"u.0": {}, "u.1": {"order": 0}, "u.2": {"order": 0.5}}


def test_enumerations(me: Person, room: str):
    """Where the specification lists the words, no other is taken for one of them."""
    assert me.client.post(f"{C}/createRoom", {"visibility": "x"}).told == INVALID
    assert me.client.post(f"{C}/account/3pid/delete", {"medium": "x", "address": "a@example.jp"}).told == INVALID
    assert me.client.post(f"{C}/account/3pid/delete", {"medium": "email", "address": "a@example.jp"}).status == 200
    for wrong in ({"order_by": "x"}, {"groupings": {"group_by": [{"key": "x"}]}}, {"keys": ["x"]}):
        criteria = {"search_term": "x"} | wrong
        assert me.client.post(f"{C}/search", {"search_categories": {"room_events": criteria}}).told == INVALID, wrong
    right = {"search_term": "x", "order_by": "recent", "groupings": {"group_by": [{"key": "sender"}]}, "keys": ["content.body"]}
    assert me.client.post(f"{C}/search", {"search_categories": {"room_events": right}}).status == 200
    path = f"{C}/rooms/{quote(room)}"
    for query in ("members?membership=x", "members?not_membership=x", "state/m.room.create?format=x"):
        assert me.client.get(f"{path}/{query}").told == INVALID, query
    for query in ("members?membership=join", "members?not_membership=ban", "state/m.room.create?format=event",
                  "state/m.room.create?format=content", "state/m.room.create"):
        assert me.client.get(f"{path}/{query}").status == 200, query
    for name in ("use_state_after", "full_state"):
        assert me.client.get(f"{C}/sync?{name}=x").told == INVALID
        assert me.client.get(f"{C}/sync?{name}=false").status == 200


def test_pushers_name_what_is_missing(me: Person):
    whole = {"kind": "http", "app_id": "jp.example", "pushkey": "x", "app_display_name": "x", "device_display_name": "x",
             "lang": "ja", "data": {"url": "https://example.jp/_matrix/push/v1/notify"}}
    for name in whole:
        answer = me.client.post(f"{C}/pushers/set", {key: value for key, value in whole.items() if key != name})
        assert answer.told == MISSING and name in answer.json["error"]
    assert me.client.post(f"{C}/pushers/set", {"kind": None, "app_id": "jp.example", "pushkey": "x"}).status == 200


def test_a_pusher_is_not_deleted_for_want_of_a_kind(city: Server):
    """With ruma's decoder alone a body without `kind` was one to delete."""
    person = city.person()
    assert person.client.post(f"{C}/pushers/set", {"app_id": "m.email", "pushkey": "a@example.jp"}).told == MISSING


KEY = {"key": "AAAA", "signatures": {"@a:example.jp": {"ed25519:X": "BBBB"}}}


@pytest.mark.parametrize("kind", ["one_time_keys", "fallback_keys"])
def test_keys_are_keys(me: Person, kind: str):
    for wrong in ([None], None, 5, {}, {"key": "x"}, {"key": 5, "signatures": {}}, {"key": "x", "signatures": None},
                  {"key": "x", "signatures": {"@a:b": 5}}, {"key": "x", "signatures": {"@a:b": {"ed25519:X": 5}}}):
        answer = me.client.post(f"{C}/keys/upload", {kind: {"signed_curve25519:AAAA": wrong}})
        assert answer.told == INVALID, wrong
    for name, right in (("signed_curve25519:B", KEY), ("curve25519:C", "CCCC"), ("signed_curve25519:D", KEY | {"fallback": True})):
        assert me.client.post(f"{C}/keys/upload", {kind: {name: right}}).status == 200, right


def test_device_keys_are_whole(me: Person):
    whole = {"user_id": me.user_id, "device_id": me.client.ok("GET", f"{C}/account/whoami")["device_id"],
             "algorithms": ["m.olm.v1.curve25519-aes-sha2"], "keys": {"ed25519:X": "x"}, "signatures": {}}
    for change in ({"algorithms": [True]}, {"algorithms": None}, {"keys": {"ed25519:X": 5}}, {"signatures": None},
                   {"signatures": {me.user_id: 5}}, {"user_id": "@x:example.jp"}):
        assert me.client.post(f"{C}/keys/upload", {"device_keys": whole | change}).told == INVALID, change
    for name in whole:
        part = {key: value for key, value in whole.items() if key != name}
        assert me.client.post(f"{C}/keys/upload", {"device_keys": part}).told == INVALID, name
    assert me.client.post(f"{C}/keys/upload", {"device_keys": whole}).status == 200


def test_what_goes_to_a_device_is_an_object(me: Person, other: Person, room: str):
    path = f"{C}/sendToDevice/jp.example.x"
    since = other.client.sync()["next_batch"]
    for wrong in ("text", 5, None, [{}]):
        body = {"messages": {other.user_id: {"*": wrong}}}
        assert me.client.put(f"{path}/{secrets.token_hex(4)}", body).told == BAD_JSON
    me.client.ok("PUT", f"{path}/{secrets.token_hex(4)}", {"messages": {other.user_id: {"*": {"a": 1}}}})
    told = other.client.sync(since)["to_device"]["events"]
    assert [event["content"] for event in told] == [{"a": 1}]


def test_a_ping_takes_an_object(fresh):
    server = fresh(bot=False)
    bot = server.as_city()
    path = "/_matrix/client/v1/appservice/city/ping"
    for body in (b'"x"', b"1", b"[]", b'{"transaction_id":5}'):
        assert bot.post(path, body=body).told == BAD_JSON, body


# ── Codes ───────────────────────────────────────────────────────────────────────────────────


def test_receipts_of_a_thread(me: Person, room: str):
    event = me.client.say(room)
    path = f"{C}/rooms/{quote(room)}/receipt"
    assert me.client.post(f"{path}/m.read/{quote(event)}", {"thread_id": ""}).told == INVALID
    assert me.client.post(f"{path}/m.fully_read/{quote(event)}", {"thread_id": "main"}).told == INVALID
    assert me.client.post(f"{path}/m.read/{quote(event)}", {"thread_id": 5}).status == 400
    assert me.client.post(f"{path}/m.read/{quote(event)}", {"thread_id": "main"}).status == 200
    assert me.client.post(f"{path}/m.fully_read/{quote(event)}", {}).status == 200


def test_account_data_of_the_server(me: Person, room: str):
    for kind in ("m.fully_read", "m.push_rules"):
        for path in ("", f"/rooms/{quote(room)}"):
            answer = me.client.put(f"{C}/user/{quote(me.user_id)}{path}/account_data/{kind}", {"event_id": "$x"})
            assert answer.told == (405, "M_BAD_JSON"), (kind, path)


def test_forgetting_comes_after_leaving(server: Server, me: Person, room: str):
    assert me.client.post(f"{C}/rooms/{quote(room)}/forget").told == UNKNOWN
    gone = server.register()
    me.client.ok("POST", f"{C}/rooms/{quote(room)}/invite", {"user_id": gone.user_id})
    gone.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
    assert gone.client.post(f"{C}/rooms/{quote(room)}/forget").status == 200


def test_an_event_is_not_found_by_strangers(server: Server, me: Person, room: str):
    event, stranger = me.client.say(room), server.register()
    unknown = f"{C}/rooms/{quote('!' + 'A' * 43)}/event/{quote(event)}"
    seen = stranger.client.get(f"{C}/rooms/{quote(room)}/event/{quote(event)}")
    assert seen.told == NOT_FOUND and seen.content == stranger.client.get(unknown).content
    assert me.client.ok("GET", f"{C}/rooms/{quote(room)}/event/{quote(event)}")["event_id"] == event


def test_the_directory_tells_nothing_of_unknown_rooms(server: Server, me: Person, room: str):
    stranger = server.register()
    for unknown in ("!unknown:example.jp", "!" + "A" * 43, room):
        answer = stranger.client.put(f"{C}/directory/list/room/{quote(unknown)}", {"visibility": "public"})
        assert answer.told == NOT_FOUND, unknown
    assert me.client.put(f"{C}/directory/list/room/{quote(room)}", {"visibility": "private"}).status == 200


def test_invitations_by_address(me: Person, room: str):
    by_address = {"id_server": "id.example.jp", "id_access_token": "x", "medium": "email", "address": "a@example.jp"}
    told = (403, "M_SERVER_NOT_TRUSTED")
    assert me.client.post(f"{C}/rooms/{quote(room)}/invite", by_address).told == told
    assert me.client.post(f"{C}/createRoom", {"invite_3pid": [by_address]}).told == told


def test_aliases_of_a_room_lead_to_it(server: Server, me: Person):
    room = me.client.ok("POST", f"{C}/createRoom", {})["room_id"]
    elsewhere = me.client.ok("POST", f"{C}/createRoom", {})["room_id"]
    path = f"{C}/rooms/{quote(room)}/state/m.room.canonical_alias"
    here, there = (f"#{secrets.token_hex(4)}:{server.server_name}" for _ in range(2))
    me.client.ok("PUT", f"{C}/directory/room/{quote(here)}", {"room_id": room})
    me.client.ok("PUT", f"{C}/directory/room/{quote(there)}", {"room_id": elsewhere})
    for wrong in ({"alias": "no alias"}, {"alias": 5}, {"alt_aliases": here}, {"alt_aliases": [here, "x"]}):
        assert me.client.put(path, wrong).told == INVALID, wrong
    for wrong in ({"alias": there}, {"alias": "#nowhere:example.jp"}, {"alias": here, "alt_aliases": [there]}):
        assert me.client.put(path, wrong).told == (400, "M_BAD_ALIAS"), wrong
    for right in ({"alias": here, "alt_aliases": [here]}, {"alias": ""}, {}, {"alias": None, "alt_aliases": [here]}):
        assert me.client.put(path, right).status == 200, right
    # An alias that is gone does not keep another from being set, and is not taken anew.
    me.client.ok("DELETE", f"{C}/directory/room/{quote(here)}")
    second = f"#{secrets.token_hex(4)}:{server.server_name}"
    me.client.ok("PUT", f"{C}/directory/room/{quote(second)}", {"room_id": room})
    assert me.client.put(path, {"alias": second, "alt_aliases": [here]}).status == 200
    assert me.client.put(path, {"alias": second}).status == 200
    assert me.client.put(path, {"alias": here}).told == (400, "M_BAD_ALIAS")


# ── What there is not is left out ───────────────────────────────────────────────────────────


def nulls(value, path="") -> list[str]:
    """Where an answer says null."""
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in nulls(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [found for inner in value for found in nulls(inner, path)]
    return [path] if value is None else []


def test_no_null_for_what_there_is_not(server: Server):
    me = server.register()
    room = me.client.ok("POST", f"{C}/createRoom", {})["room_id"]
    me.client.say(room, "なにもない")
    devices = me.client.ok("GET", f"{C}/devices")
    assert devices["devices"] and not nulls(devices)
    assert not nulls(me.client.ok("GET", f"{C}/devices/{quote(devices['devices'][0]['device_id'])}"))
    me.client.ok("PUT", f"{C}/devices/{quote(devices['devices'][0]['device_id'])}", {"display_name": "電話"})
    assert me.client.ok("GET", f"{C}/devices")["devices"][0]["display_name"] == "電話"
    assert me.client.ok("DELETE", f"{C}/profile/{quote(me.user_id)}/displayname") == {}
    assert me.client.ok("GET", f"{C}/rooms/{quote(room)}/joined_members") == {"joined": {me.user_id: {}}}
    asked = {"search_term": "なにもない", "event_context": {"include_profile": True}}

    def found():
        answer = me.client.ok("POST", f"{C}/search", {"search_categories": {"room_events": asked}})
        return answer["search_categories"]["room_events"]["results"]

    wait_for(found, 30, what="the event in the index")
    assert not nulls(found()) and found()[0]["context"]["profile_info"] == {me.user_id: {}}


# ── Profile fields ──────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def open_server(request: pytest.FixtureRequest) -> Server:
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    server = Server(request.param, profile="open")
    yield server
    server.remove()


def field(person: Person, key: str) -> str:
    return f"{C}/profile/{quote(person.user_id)}/{quote(key)}"


def test_profile_fields_hold_any_json(open_server: Server):
    me, reader = open_server.register(), open_server.register()
    fields = me.client.ok("GET", f"{C}/capabilities")["capabilities"]["m.profile_fields"]
    assert fields == {"enabled": True}
    assert me.client.ok("GET", "/_matrix/client/versions")["unstable_features"]["uk.tcpip.msc4133.stable"] is True
    values = {"jp.example.shift": {"from": 9}, "m.tz": "Asia/Tokyo", "jp.example.list": [1, 2.5, None, "看護師"],
              "jp.example.none": None, "jp.example.yes": True, "jp.example.text": "あ'\"\\", "m.example_field": 1}
    for key, value in values.items():
        assert me.client.ok("PUT", field(me, key), {key: value}) == {}
        assert reader.client.ok("GET", field(me, key)) == {key: value}
    name = me.client.ok("GET", field(me, "displayname"))
    assert reader.client.ok("GET", f"{C}/profile/{quote(me.user_id)}") == values | name
    me.client.ok("PUT", field(me, "jp.example.shift"), {"jp.example.shift": 10})
    assert reader.client.ok("GET", field(me, "jp.example.shift")) == {"jp.example.shift": 10}
    for _ in range(2):
        assert me.client.ok("DELETE", field(me, "jp.example.shift")) == {}, "deleted, or it does not exist"
    assert reader.client.get(field(me, "jp.example.shift")).told == NOT_FOUND
    assert reader.client.put(field(me, "jp.example.yes"), {"jp.example.yes": False}).told == FORBIDDEN
    assert reader.client.delete(field(me, "jp.example.yes")).told == FORBIDDEN
    # They outlive a restart.
    open_server.restart()
    assert reader.client.ok("GET", field(me, "jp.example.yes")) == {"jp.example.yes": True}


def test_profile_fields_have_limits(open_server: Server):
    me = open_server.register()
    for key in ("shift", "Jp.example", "jp..example", "jp.example.", ".x", "jp.9", "jp.exämple", "jp example.x"):
        assert me.client.put(field(me, key), {key: 1}).told == INVALID, key
        assert me.client.delete(field(me, key)).told == INVALID, key
    long = "jp." + "x" * 253
    assert me.client.put(field(me, long), {long: 1}).told == (400, "M_KEY_TOO_LARGE")
    assert me.client.put(field(me, long[:-1]), {long[:-1]: 1}).status == 200
    assert me.client.put(field(me, "jp.example.a"), {"jp.example.b": 1}).told == MISSING
    for zone in (5, None, "", "x" * 256):
        assert me.client.put(field(me, "m.tz"), {"m.tz": zone}).told == INVALID, zone
    assert me.client.put(field(me, "displayname"), {"displayname": 5}).told == INVALID
    assert me.client.put(field(me, "jp.example.a"), {"jp.example.a": "x" * 40_000}).status == 200
    for key in ("jp.example.a", "jp.example.b"):
        answer = me.client.put(field(me, key), {key: "x" * (66_000 if key.endswith("a") else 30_000)})
        assert answer.told == (400, "M_PROFILE_TOO_LARGE")
    profile = me.client.ok("GET", f"{C}/profile/{quote(me.user_id)}")
    assert len(profile["jp.example.a"]) == 40_000 and "jp.example.b" not in profile


def test_an_ended_account_keeps_no_fields(open_server: Server):
    me, reader = open_server.register(), open_server.register()
    me.client.ok("PUT", field(me, "jp.example.shift"), {"jp.example.shift": 1})
    me.client.ok("POST", f"{C}/account/deactivate", {"auth": {
        "type": "m.login.password", "identifier": {"type": "m.id.user", "user": me.user_id}, "password": me.password}})
    assert reader.client.get(field(me, "jp.example.shift")).told == NOT_FOUND
    assert open_server.count(f"SELECT count(*) FROM profile_fields WHERE user_id = '{me.user_id}'") == 0


def test_in_a_city_a_profile_is_the_registers(city: Server):
    """Names are the register's (H10); a picture is one's own; nothing else is shown of a person."""
    person = city.person()
    client: Client = person.client
    fields = client.ok("GET", f"{C}/capabilities")["capabilities"]["m.profile_fields"]
    assert fields == {"enabled": True, "allowed": ["avatar_url"]}
    for key, value in (("displayname", "x"), ("m.tz", "Asia/Tokyo"), ("jp.example.shift", {"from": 9})):
        assert client.put(field(person, key), {key: value}).told == FORBIDDEN, key
        assert client.delete(field(person, key)).told == FORBIDDEN, key
    assert set(client.ok("GET", f"{C}/profile/{quote(person.user_id)}")) == {"displayname"}
    assert client.put(field(person, "avatar_url"), {"avatar_url": ""}).status == 200
