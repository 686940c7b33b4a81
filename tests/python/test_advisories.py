"""Each class of security advisory that bit Matrix servers, as a test that bites back.

The classes are those of published advisories and of issue 3's list; each test says in a sentence what went wrong somewhere.
What other files hold is not repeated here: certificates, sessions and lockout in test_identity.py, malformed requests in
test_bad_input.py, who reads what of a room in test_visibility.py.
"""

from __future__ import annotations

import base64
import gzip
import json
import pathlib
import secrets
import struct
import threading
import time
import urllib.parse
import zlib
from typing import Any

import pytest

from harness import Answer, Client, Person, Server, quote

C = "/_matrix/client/v3"
V1 = "/_matrix/client/v1"


@pytest.fixture(scope="module")
def server() -> Server:
    server = Server(profile="open")
    yield server
    server.remove()


@pytest.fixture(scope="module")
def people(server) -> list[Person]:
    return [server.register() for _ in range(3)]


@pytest.fixture
def trio(people) -> tuple[Client, Client, Client, str, Person, Person, Person]:
    """Alice's room with Bob in it, and Eve outside: their clients, the room, and who they are."""
    alice, bob, eve = people
    room = alice.client.ok("POST", f"{C}/createRoom", {"preset": "private_chat", "name": "room", "invite": [bob.user_id]})["room_id"]
    bob.client.ok("POST", f"{C}/join/{quote(room)}", {})
    return alice.client, bob.client, eve.client, room, alice, bob, eve


def at(room: str, path: str = "") -> str:
    return f"{C}/rooms/{quote(room)}{path}"


def refused(answer: Answer, *allowed: int) -> Answer:
    """Refused as Matrix does, by one of these statuses (403 and 404 by default)."""
    assert answer.status in (allowed or (403, 404)) and answer.errcode, answer
    return answer


def healthy(client: Client, room: str | None = None) -> dict:
    """Whatever was done, the person syncs from nothing, and reads the room."""
    told = client.sync()
    if room:
        assert room in told["rooms"]["join"], "the room is gone from the sync"
        for path in ("/messages?dir=b", "/members", "/state", "/joined_members"):
            assert client.get(at(room, path)).status == 200, path
    return told


# Forged senders and rooms --------------------------------------------------------------------------------------------


def test_what_a_body_says_of_its_sender_counts_for_nothing(trio):
    """Servers took `sender`, `room_id` or `event_id` from what was sent, or `?user_id=` from who is no appservice."""
    alice, bob, _, room, a, b, _ = trio
    other = alice.ok("POST", f"{C}/createRoom", {})["room_id"]
    forged = {"sender": a.user_id, "user_id": a.user_id, "room_id": other, "event_id": "$forged", "origin_server_ts": 1,
              "state_key": a.user_id, "type": "m.room.member", "redacts": "$x", "unsigned": {"transaction_id": "x", "age": 1}}
    event = bob.ok("PUT", at(room, "/send/m.room.message/forged1"), {"msgtype": "m.text", "body": "x", **forged})["event_id"]
    told = bob.ok("GET", at(room, f"/event/{quote(event)}"))
    assert (told["sender"], told["room_id"], told["type"]) == (b.user_id, room, "m.room.message")
    assert told["event_id"] == event != "$forged" and told["origin_server_ts"] > 1 and "state_key" not in told
    for query in ({"user_id": a.user_id}, {"org.matrix.msc3202.device_id": "X", "user_id": a.user_id}):
        answer = bob.put(at(room, f"/send/m.room.message/{secrets.token_hex(4)}"), {"msgtype": "m.text", "body": "x"}, query=query)
        if answer.status == 200:
            assert bob.ok("GET", at(room, f"/event/{quote(answer.json['event_id'])}"))["sender"] == b.user_id
        assert bob.ok("GET", f"{C}/account/whoami", query=query)["user_id"] == b.user_id
    stamped = bob.put(at(room, f"/send/m.room.message/{secrets.token_hex(4)}"), {"msgtype": "m.text", "body": "x"}, query={"ts": 1})
    if stamped.status == 200:
        # "Timestamp massaging" is for appservices.
        assert bob.ok("GET", at(room, f"/event/{quote(stamped.json['event_id'])}"))["origin_server_ts"] > 1
    assert other not in bob.sync()["rooms"]["join"]


@pytest.mark.parametrize("content", [
    {"membership": "join"}, {"membership": "leave"}, {"membership": "ban"}, {"membership": "invite"},
    {"membership": "join", "join_authorised_via_users_server": "@alice"}, {"membership": "knock"}, {"membership": "owner"},
    {"membership": "invite", "third_party_invite": {"display_name": "x", "signed": {"mxid": "@x", "token": "t", "signatures": {}}}}])
def test_nobody_writes_anothers_membership(trio, content):
    alice, bob, eve, room, a, b, e = trio
    before = alice.state(room, "m.room.member", a.user_id)
    refused(bob.put(at(room, f"/state/m.room.member/{quote(a.user_id)}"), content), 400, 403)
    if content["membership"] != "invite" or "third_party_invite" in content:
        refused(bob.put(at(room, f"/state/m.room.member/{quote(e.user_id)}"), content), 400, 403)
    refused(eve.put(at(room, f"/state/m.room.member/{quote(e.user_id)}"), content), 400, 403)
    assert alice.state(room, "m.room.member", a.user_id) == before
    assert alice.get(at(room, f"/state/m.room.member/{quote(e.user_id)}")).status == 404 or content["membership"] == "invite"


def test_state_keys_that_name_a_user_are_theirs(trio):
    """A state key beginning with @ is its owner's (authorization rules)."""
    alice, bob, _, room, a, b, _ = trio
    levels = alice.state(room, "m.room.power_levels") | {"state_default": 0}
    alice.ok("PUT", at(room, "/state/m.room.power_levels/"), levels)
    refused(bob.put(at(room, f"/state/org.example.x/{quote(a.user_id)}"), {}), 403)
    assert bob.put(at(room, f"/state/org.example.x/{quote(b.user_id)}"), {}).status == 200


def test_a_created_room_says_who_made_it(trio):
    """`creation_content` and `initial_state` made rooms of others, or with others in them."""
    _, bob, _, _, a, b, _ = trio
    for body in (
        {"creation_content": {"creator": a.user_id, "room_version": "1", "m.federate": "x"}, "room_version": "10"},
        {"creation_content": {"sender": a.user_id, "room_id": "!forged:x", "additional_creators": [5]}},
        {"initial_state": [{"type": "m.room.create", "state_key": "", "content": {"creator": a.user_id}}]},
        {"initial_state": [{"type": "m.room.member", "state_key": a.user_id, "content": {"membership": "join"}}]},
        {"initial_state": [{"type": "m.room.power_levels", "state_key": "", "content": {"users": {a.user_id: 100, b.user_id: 0}}}]},
        {"power_level_content_override": {"users": {b.user_id: "100"}}},
        {"power_level_content_override": {"users_default": "x"}},
    ):
        answer = bob.post(f"{C}/createRoom", body)
        assert answer.status < 500, (body, answer)
        if answer.status == 200:
            room = answer.json["room_id"]
            create = next(one for one in bob.ok("GET", at(room, "/state")) if one["type"] == "m.room.create")
            assert create["sender"] == b.user_id and create["content"].get("creator", b.user_id) == b.user_id, body
            assert create["content"].get("room_version") != "1", body
            assert list(bob.ok("GET", at(room, "/joined_members"))["joined"]) == [b.user_id], body
            healthy(bob, room)
        else:
            refused(answer, 400, 403)


# One room's events in another ----------------------------------------------------------------------------------------


def test_an_event_is_found_in_its_room_only(trio):
    """Event caches keyed by event id alone gave away events of other rooms."""
    alice, bob, _, room, *_ = trio
    hidden = alice.ok("POST", f"{C}/createRoom", {"preset": "private_chat"})["room_id"]
    secret = alice.say(hidden, "hidden words", url="mxc://x/y")
    alice.ok("GET", at(hidden, f"/event/{quote(secret)}"))  # cached
    own = bob.ok("POST", f"{C}/createRoom", {"preset": "private_chat"})["room_id"]
    for where in (room, own, hidden):
        for path in (at(where, f"/event/{quote(secret)}"), at(where, f"/context/{quote(secret)}"),
                     f"{V1}/rooms/{quote(where)}/relations/{quote(secret)}"):
            answer = bob.get(path)
            assert answer.status in (403, 404) or b"hidden" not in answer.content, (path, answer)
        for path, body in ((f"/receipt/m.read/{quote(secret)}", {}), ("/read_markers", {"m.fully_read": secret, "m.read": secret})):
            answer = bob.post(at(where, path), body)
            assert answer.status < 500 and b"hidden" not in answer.content
        refused(bob.put(at(where, f"/redact/{quote(secret)}/{secrets.token_hex(4)}"), {}), 400, 403, 404)
        bob.put(at(where, f"/send/m.room.redaction/{secrets.token_hex(4)}"), {"redacts": secret})
    assert alice.ok("GET", at(hidden, f"/event/{quote(secret)}"))["content"]["body"] == "hidden words"
    # Related from the own room: neither bundled there nor here.
    for relation in ({"rel_type": "m.thread", "event_id": secret}, {"rel_type": "m.replace", "event_id": secret},
                     {"rel_type": "m.annotation", "event_id": secret, "key": "x"}, {"m.in_reply_to": {"event_id": secret}}):
        bob.put(at(own, f"/send/m.room.message/{secrets.token_hex(4)}"),
                {"msgtype": "m.text", "body": "mine", "m.new_content": {"body": "mine", "msgtype": "m.text"}, "m.relates_to": relation})
    assert "hidden words" not in json.dumps([bob.messages(own), bob.sync()])
    assert "mine" not in json.dumps([alice.ok("GET", at(hidden, f"/event/{quote(secret)}")), alice.messages(hidden)])
    told = alice.ok("GET", f"{V1}/rooms/{quote(hidden)}/relations/{quote(secret)}")
    assert told["chunk"] == []


def test_tokens_of_one_room_open_no_other(trio):
    alice, bob, eve, room, *_ = trio
    hidden = alice.ok("POST", f"{C}/createRoom", {})["room_id"]
    alice.say(hidden, "hidden words")
    token = alice.ok("GET", at(hidden, "/messages?dir=b&limit=1"))["end"]
    since = alice.sync()["next_batch"]
    for where, client in ((room, bob), (hidden, bob), (hidden, eve)):
        for query in ({"dir": "b", "from": token}, {"dir": "f", "from": token}, {"dir": "b", "from": since}, {"dir": "b", "to": token}):
            answer = client.get(at(where, "/messages"), query=query)
            assert answer.status in (200, 400, 403) and b"hidden" not in answer.content, answer
    assert b"hidden" not in eve.get(f"{C}/sync", query={"since": since}).content


# Redaction -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["10", "11", "12"])
def test_redactions_need_the_right_to_redact(people, version):
    """Redactions sent as ordinary events, with `redacts` in odd places, went past the check."""
    alice, bob = people[0], people[1]
    room = alice.client.ok("POST", f"{C}/createRoom", {"preset": "private_chat", "room_version": version, "invite": [bob.user_id]})["room_id"]
    bob.client.ok("POST", f"{C}/join/{quote(room)}", {})
    posts = {"message": alice.client.say(room, "stays"),
             "state": alice.client.ok("PUT", at(room, "/state/m.room.topic/"), {"topic": "stays"})["event_id"]}
    for what, event in posts.items():
        refused(bob.client.put(at(room, f"/redact/{quote(event)}/{secrets.token_hex(4)}"), {}), 403)
        for content in ({"redacts": event}, {"redacts": event, "reason": "x"}, {"redacts": [event]}, {"content": {"redacts": event}}):
            answer = bob.client.put(at(room, f"/send/m.room.redaction/{secrets.token_hex(4)}"), content)
            assert answer.status < 500, answer
        answer = bob.client.put(at(room, f"/state/m.room.redaction/{quote(bob.user_id)}"), {"redacts": event})
        assert answer.status < 500
        told = alice.client.ok("GET", at(room, f"/event/{quote(event)}"))
        assert "stays" in json.dumps(told["content"]) and "redacted_because" not in told.get("unsigned", {}), what
    # One's own may go, and goes everywhere.
    mine = bob.client.say(room, "unsaid-word")
    bob.client.ok("PUT", at(room, f"/redact/{quote(mine)}/{secrets.token_hex(4)}"), {})
    told = [bob.client.messages(room), bob.client.sync(), alice.client.sync(), bob.client.ok("GET", at(room, f"/context/{quote(mine)}")),
            alice.client.ok("POST", f"{C}/search", {"search_categories": {"room_events": {"search_term": "unsaid-word"}}})["search_categories"]["room_events"]["results"],
            alice.client.ok("GET", f"{C}/notifications?limit=100")]
    assert "unsaid-word" not in json.dumps(told)


def test_a_redacted_edit_does_not_live_on(trio):
    """Edits of a redacted event, and redacted edits, were still bundled or listed with their content."""
    alice, bob, _, room, *_ = trio
    post = alice.say(room, "first-word")
    edit = alice.say(room, "* second-word", **{"m.relates_to": {"rel_type": "m.replace", "event_id": post},
                                                "m.new_content": {"msgtype": "m.text", "body": "second-word"}})
    alice.ok("PUT", at(room, f"/redact/{quote(edit)}/{secrets.token_hex(4)}"), {})
    told = [bob.ok("GET", at(room, f"/event/{quote(post)}")), bob.messages(room), bob.sync(),
            bob.ok("GET", f"{V1}/rooms/{quote(room)}/relations/{quote(post)}")]
    assert "second-word" not in json.dumps(told)


# Receipts and typing -------------------------------------------------------------------------------------------------


def test_receipts_and_typing_of_who_is_not_there(trio):
    """Receipts and typing of non-members were stored and sent to the room."""
    alice, bob, eve, room, a, b, e = trio
    post = alice.say(room)
    since = alice.sync()["next_batch"]
    alice.ok("POST", at(room, "/invite"), {"user_id": e.user_id})
    for client in (eve,):
        for kind in ("m.read", "m.read.private", "m.fully_read"):
            refused(client.post(at(room, f"/receipt/{kind}/{quote(post)}"), {}))
        refused(client.post(at(room, "/read_markers"), {"m.read": post, "m.fully_read": post}))
        refused(client.put(at(room, f"/typing/{quote(e.user_id)}"), {"typing": True, "timeout": 30000}))
    refused(bob.put(at(room, f"/typing/{quote(a.user_id)}"), {"typing": True, "timeout": 30000}), 403)
    told = json.dumps([alice.sync(since)["rooms"]["join"].get(room, {}).get("ephemeral"), alice.sync()["rooms"]["join"][room]["ephemeral"]])
    assert e.user_id not in told and a.user_id not in told
    for body in ({"thread_id": 5}, {"thread_id": "nonsense"}, {"thread_id": ""}, {"thread_id": "$" + "x" * 300}, {"ts": 1, a.user_id: {}}):
        answer = bob.post(at(room, f"/receipt/m.read/{quote(post)}"), body)
        assert answer.status in (200, 400), answer
    for kind in ("m.read.other", "", "m.seen", "../x"):
        refused(bob.post(at(room, f"/receipt/{quote(kind)}/{quote(post)}"), {}), 400, 404)
    healthy(alice, room)


def test_private_receipts_are_private(trio):
    alice, bob, _, room, a, b, _ = trio
    post = alice.say(room)
    since = alice.sync()["next_batch"]
    bob.ok("POST", at(room, f"/receipt/m.read.private/{quote(post)}"), {})
    assert "m.read.private" not in json.dumps([alice.sync(since), alice.sync()["rooms"]["join"][room]])
    own = bob.sync()["rooms"]["join"][room]["ephemeral"]["events"]
    assert own[0]["content"][post]["m.read.private"].keys() == {b.user_id}


# Coming, going and power ---------------------------------------------------------------------------------------------


def test_bans_are_not_lifted_by_who_is_banned(trio):
    """A banned user left, knocked or was kicked, and was not banned any more."""
    alice, bob, _, room, a, b, _ = trio
    alice.ok("PUT", at(room, "/state/m.room.join_rules/"), {"join_rule": "public"})
    alice.ok("POST", at(room, "/ban"), {"user_id": b.user_id})
    for answer in (bob.post(at(room, "/leave"), {}), bob.post(at(room, "/join"), {}), bob.post(f"{C}/knock/{quote(room)}", {}),
                   bob.put(at(room, f"/state/m.room.member/{quote(b.user_id)}"), {"membership": "leave"}),
                   bob.post(at(room, "/unban"), {"user_id": b.user_id}), bob.post(at(room, "/kick"), {"user_id": b.user_id}),
                   alice.post(at(room, "/invite"), {"user_id": b.user_id})):
        assert answer.status in (403, 404), answer
        assert alice.state(room, "m.room.member", b.user_id)["membership"] == "ban"
    bob.post(at(room, "/forget"), {})
    refused(bob.post(at(room, "/join"), {}))
    assert alice.state(room, "m.room.member", b.user_id)["membership"] == "ban"


def test_who_may_kick_does_not_unban(trio):
    """Kicking a banned user made them a mere former member, for who may kick and not ban."""
    alice, bob, eve, room, a, b, e = trio
    alice.ok("POST", at(room, "/ban"), {"user_id": e.user_id})
    levels = alice.state(room, "m.room.power_levels")
    levels |= {"kick": 10, "ban": 60, "users": levels.get("users", {}) | {b.user_id: 20}}
    alice.ok("PUT", at(room, "/state/m.room.power_levels/"), levels)
    for path in ("/kick", "/unban"):
        refused(bob.post(at(room, path), {"user_id": e.user_id}), 403)
    assert alice.state(room, "m.room.member", e.user_id)["membership"] == "ban"


def test_a_withdrawn_invitation_lets_nobody_in(trio):
    alice, _, eve, room, _, _, e = trio
    alice.ok("POST", at(room, "/invite"), {"user_id": e.user_id})
    alice.ok("POST", at(room, "/kick"), {"user_id": e.user_id})
    refused(eve.post(at(room, "/join"), {}), 403)
    refused(eve.put(at(room, f"/state/m.room.member/{quote(e.user_id)}"), {"membership": "join"}), 403)


@pytest.mark.parametrize("version", ["10", "11", "12"])
@pytest.mark.parametrize("change", [
    {"users_default": "100"}, {"events_default": "0"}, {"ban": "0"}, {"kick": None}, {"state_default": 1.5}, {"invite": True},
    {"users": {"@x:localhost": "100"}}, {"users": {"nobody": 1}}, {"users": ["@x:localhost"]}, {"events": {"m.room.name": "0"}},
    {"notifications": {"room": "0"}}, {"users_default": 2**53}, {"users_default": -(2**53)}, {"users_default": 10**30},
    {"users": {"@x:localhost": {}}}], ids=json.dumps)
def test_power_is_a_number(people, version, change):
    """Powers given as strings were read as numbers by some servers and as nothing by others."""
    alice, bob = people[0], people[1]
    room = alice.client.ok("POST", f"{C}/createRoom", {"preset": "private_chat", "room_version": version})["room_id"]
    levels = alice.client.state(room, "m.room.power_levels")
    refused(alice.client.put(at(room, "/state/m.room.power_levels/"), levels | change), 400, 403)
    assert alice.client.state(room, "m.room.power_levels") == levels
    refused(alice.client.post(f"{C}/createRoom", {"room_version": version, "power_level_content_override": change}), 400, 403)


def test_nobody_raises_anybody_above_themselves(trio):
    alice, bob, eve, room, a, b, e = trio
    levels = alice.state(room, "m.room.power_levels")
    levels["users"] = {b.user_id: 50, e.user_id: 50}
    levels["events"]["m.room.power_levels"] = 50
    alice.ok("PUT", at(room, "/state/m.room.power_levels/"), levels)
    for change in ({"users": {b.user_id: 60, e.user_id: 50}}, {"users": {b.user_id: 50, e.user_id: 100}}, {"users": {b.user_id: 50}},
                   {"users": {b.user_id: 50, e.user_id: 0}}, {"ban": 60}, {"events": levels["events"] | {"m.room.name": 60}},
                   {"users_default": 60}, {"users": {b.user_id: 50, e.user_id: 50, a.user_id: 100}},
                   {"events": {k: v for k, v in levels["events"].items() if v <= 50}}, {"users": {b.user_id.upper(): 50}}):
        refused(bob.put(at(room, "/state/m.room.power_levels/"), levels | change), 400, 403)
    assert alice.state(room, "m.room.power_levels") == levels


# Aliases -------------------------------------------------------------------------------------------------------------


def test_aliases_are_not_stolen(server, trio):
    """Aliases were overwritten, removed by others, or claimed in `m.room.canonical_alias` without being the room's."""
    alice, bob, eve, room, *_ = trio
    local = f"kept{secrets.token_hex(4)}"
    alias = f"#{local}:{server.server_name}"
    where = f"{C}/directory/room/{quote(alias)}"
    alice.ok("PUT", where, {"room_id": room})
    own = eve.ok("POST", f"{C}/createRoom", {"preset": "public_chat"})["room_id"]
    assert eve.put(where, {"room_id": own}).told[0] == 409
    refused(eve.put(f"{C}/directory/room/{quote('#new' + local + ':' + server.server_name)}", {"room_id": room}))
    refused(eve.delete(where))
    refused(eve.post(f"{C}/createRoom", {"room_alias_name": local}), 400)
    for name in ("a:b", "x" * 300, "あ\x00"):
        refused(eve.post(f"{C}/createRoom", {"room_alias_name": name}), 400)
    for foreign in (f"#{local}:example.org", f"#{local}", f"{local}:{server.server_name}", "#" + "x" * 260 + f":{server.server_name}"):
        answer = eve.put(f"{C}/directory/room/{quote(foreign)}", {"room_id": own})
        assert answer.status in (400, 403, 404), (foreign, answer)
    assert eve.ok("GET", where)["room_id"] == room
    joined = eve.post(f"{C}/join/{quote(alias)}", {})
    refused(joined, 403)


def test_a_room_names_its_own_aliases_only(server, people):
    """`m.room.canonical_alias` showed a room under the address of another: 400 M_BAD_ALIAS by the specification."""
    alice, eve = people[0].client, people[2].client
    local = f"theirs{secrets.token_hex(4)}"
    alias = f"#{local}:{server.server_name}"
    room = alice.ok("POST", f"{C}/createRoom", {"room_alias_name": local})["room_id"]
    own = eve.ok("POST", f"{C}/createRoom", {})["room_id"]
    assert alice.put(at(room, "/state/m.room.canonical_alias/"), {"alias": alias}).status == 200
    for content in ({"alias": alias}, {"alt_aliases": [alias]}, {"alias": f"#none{local}:{server.server_name}"}, {"alias": 5}, {"alt_aliases": "x"}):
        answer = eve.put(at(own, "/state/m.room.canonical_alias/"), content)
        assert answer.status == 400 and answer.errcode in ("M_BAD_ALIAS", "M_INVALID_PARAM", "M_BAD_JSON"), (content, answer)


def test_an_alias_has_a_name(server, people):
    """`room_alias_name: ""` took the alias `#:server`, which no directory can hand out twice."""
    client = people[0].client
    assert client.post(f"{C}/createRoom", {"room_alias_name": ""}).status in (200, 400)
    refused(client.get(f"{C}/directory/room/{quote('#:' + server.server_name)}"), 400, 404)


# Patterns ------------------------------------------------------------------------------------------------------------

CATASTROPHES = ["*a" * 40 + "*b", "*" * 500, "?" * 500, "*?" * 200 + "z", "(a+)+$", "[a-z]*" * 30, "a" * 1000, "\\", "[", "*[!", "**/**" * 50, "あ*" * 60]


def test_patterns_of_push_rules_cost_little(people):
    """Globs turned into regular expressions hung servers for minutes."""
    alice, bob = people[0], people[1]
    room = alice.client.ok("POST", f"{C}/createRoom", {"preset": "private_chat", "invite": [bob.user_id]})["room_id"]
    bob.client.ok("POST", f"{C}/join/{quote(room)}", {})
    made = []
    for number, pattern in enumerate(CATASTROPHES):
        for kind, body in (("content", {"pattern": pattern, "actions": ["notify"]}),
                           ("override", {"conditions": [{"kind": "event_match", "key": "content.body", "pattern": pattern}], "actions": ["notify"]})):
            answer = bob.client.put(f"{C}/pushrules/global/{kind}/p{number}", body)
            assert answer.status in (200, 400), answer
            if answer.status == 200:
                made.append((kind, f"p{number}"))
    for body in ({"conditions": [{"kind": "room_member_count", "is": "<<<<9" * 50}], "actions": []},
                 {"conditions": [{"kind": "room_member_count", "is": "9" * 400}], "actions": []},
                 {"conditions": [{"kind": "event_match", "key": "content." * 500, "pattern": "*"}], "actions": []},
                 {"conditions": [{"kind": "event_match", "key": "content\\.body\\", "pattern": "*"}], "actions": []},
                 {"conditions": [{"kind": "sender_notification_permission", "key": "\0" * 5}], "actions": []},
                 {"conditions": [{"kind": "event_property_is", "key": "content.body", "value": {"a": []}}], "actions": []},
                 {"conditions": [{"kind": "unknown" * 50}] * 200, "actions": []}):
        answer = bob.client.put(f"{C}/pushrules/global/override/odd{secrets.token_hex(3)}", body)
        assert answer.status in (200, 400), answer
    bob.client.put(f"{C}/profile/{quote(bob.user_id)}/displayname", {"displayname": "(a+)+[*?\\"})
    try:
        for body in ("a" * 30000, "ab" * 15000, "あ" * 10000, "a " * 15000):
            began = time.monotonic()
            alice.client.say(room, body)
            bob.client.sync()
            assert time.monotonic() - began < 20, "a pattern that backtracks takes minutes"
    finally:
        for kind, rule in made:
            bob.client.delete(f"{C}/pushrules/global/{kind}/{rule}")
        bob.client.put(f"{C}/profile/{quote(bob.user_id)}/displayname", {"displayname": "bob"})


def test_patterns_of_filters_and_searches_cost_little(trio):
    alice, _, _, room, *_ = trio
    for _ in range(30):
        alice.ok("PUT", at(room, f"/send/{'a' * 200}/{secrets.token_hex(4)}"), {})
    for pattern in CATASTROPHES:
        began = time.monotonic()
        given = json.dumps({"room": {"rooms": [room], "timeline": {"types": [pattern], "not_types": [pattern + "x"], "limit": 100}}})
        assert alice.get(f"{C}/sync", query={"filter": given}).status in (200, 400)
        for term in (pattern, f'"{pattern}', f"{pattern} NEAR/1 x", f"body:{pattern} OR *"):
            assert alice.post(f"{C}/search", {"search_categories": {"room_events": {"search_term": term}}}).status in (200, 400)
            assert alice.post(f"{C}/user_directory/search", {"search_term": term}).status in (200, 400)
        assert alice.post(f"{C}/publicRooms", {"filter": {"generic_search_term": pattern}}).status in (200, 400, 403)
        assert time.monotonic() - began < 20, pattern


def test_searching_for_everything_finds_no_strangers(city):
    """`%`, `_` and the empty word listed the whole directory."""
    lonely, stranger = city.person(), city.person(name="見知らぬ花子")
    for term in ("%", "_", "*", "", "%%", "@", "p", ":", "花", "見知らぬ", stranger.login_id, '"', "\\"):
        answer = lonely.client.post(f"{C}/user_directory/search", {"search_term": term})
        assert answer.status in (200, 400), answer
        if answer.status == 200:
            assert {one["user_id"] for one in answer.json["results"]} <= {lonely.user_id}, term


# Malformed things that broke syncs -----------------------------------------------------------------------------------

ODD_STATE = [
    ("m.room.name", {"name": 5}), ("m.room.name", {"name": None}), ("m.room.name", {"name": {"a": 1}}), ("m.room.name", {"name": "x" * 20000}),
    ("m.room.name", {"name": "\u202egnp.exe\u2066\u0000"[:-1]}), ("m.room.topic", {"topic": []}), ("m.room.topic", {"m.topic": 5, "topic": "x"}),
    ("m.room.avatar", {"url": 5}), ("m.room.avatar", {"url": "javascript:alert(1)"}), ("m.room.avatar", {"url": None}),
    ("m.room.canonical_alias", {"alias": []}), ("m.room.join_rules", {}), ("m.room.join_rules", {"join_rule": 7}),
    ("m.room.join_rules", {"join_rule": "restricted", "allow": "x"}), ("m.room.join_rules", {"join_rule": "restricted", "allow": [{"type": 5}, 7]}),
    ("m.room.history_visibility", {"history_visibility": "everyone"}), ("m.room.history_visibility", {"history_visibility": 1}),
    ("m.room.guest_access", {"guest_access": []}), ("m.room.encryption", {"algorithm": 5}), ("m.room.tombstone", {"replacement_room": 1}),
    ("m.room.pinned_events", {"pinned": "x"}), ("m.room.server_acl", {"allow": "x", "deny": [5]}), ("m.space.child", {"via": 3}),
    ("m.room.third_party_invite", {"public_key": 1}), ("m.room.power_levels", {}), ("m.room.create", {"creator": 5}), ("m.room.member", {}),
    ("m.room.member", {"membership": "join", "displayname": 5}), ("m.room.member", {"membership": "join", "avatar_url": {"x": 1}}),
    ("m.room.member", {"membership": "join", "displayname": None, "is_direct": "yes", "reason": 5}), ("m.room.aliases", {"aliases": 5}),
]


@pytest.mark.parametrize(("kind", "content"), ODD_STATE, ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:40])
def test_odd_state_breaks_nobodys_sync(trio, kind, content):
    """A room's name that is a number, or an invitation to such a room, kept people from ever syncing again."""
    alice, bob, eve, room, a, _, e = trio
    since, key = bob.sync()["next_batch"], a.user_id if kind == "m.room.member" else ""
    answer = alice.put(at(room, f"/state/{kind}/{quote(key)}"), content)
    assert answer.status == 200 or answer.status in (400, 403) and answer.errcode, answer
    alice.post(at(room, "/invite"), {"user_id": e.user_id})
    assert "rooms" in bob.sync(since) or answer.status != 200
    healthy(bob, room)
    told = eve.sync()
    assert room in told["rooms"].get("invite", {}) or kind in ("m.room.power_levels",), "the invitation is not told"
    eve.get(f"{V1}/room_summary/{quote(room)}")
    assert eve.get(f"{C}/publicRooms").status in (200, 403)
    assert bob.get(f"{V1}/rooms/{quote(room)}/hierarchy").status in (200, 404)
    eve.post(at(room, "/leave"), {})
    healthy(eve)


ODD_MESSAGES = [
    {"m.relates_to": 5}, {"m.relates_to": {"rel_type": 5, "event_id": 6}}, {"m.relates_to": {"event_id": None}},
    {"m.relates_to": {"rel_type": "m.thread", "event_id": "x" * 5000}}, {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$x", "key": {"a": 1}}},
    {"m.relates_to": {"m.in_reply_to": []}}, {"m.mentions": 5}, {"m.mentions": {"user_ids": "x", "room": "yes"}},
    {"m.mentions": {"user_ids": [5, None, "@" + "x" * 300]}}, {"m.new_content": 5, "m.relates_to": {"rel_type": "m.replace", "event_id": "$x"}},
    {"body": 5}, {"body": None, "msgtype": None}, {"url": 5, "info": {"thumbnail_url": []}}, {"url": "mxc://../../etc/passwd"},
    {"url": "mxc://x/" + "y" * 5000}, {"file": {"url": {}}}, {"format": 1, "formatted_body": ["x"]}, {"": "", ".": {".": 1}, "a\\.b": 1},
]


@pytest.mark.parametrize("content", ODD_MESSAGES, ids=lambda value: json.dumps(value)[:50])
def test_odd_messages_break_nobodys_sync(trio, content):
    alice, bob, _, room, *_ = trio
    since = bob.sync()["next_batch"]
    answer = alice.put(at(room, f"/send/m.room.message/{secrets.token_hex(4)}"), {"msgtype": "m.text", "body": "x"} | content)
    assert answer.status == 200 or answer.status in (400, 403, 404) and answer.errcode, answer
    bob.sync(since)
    healthy(bob, room)
    if answer.status == 200:
        event = answer.json["event_id"]
        for path in (at(room, f"/event/{quote(event)}"), at(room, f"/context/{quote(event)}"), f"{V1}/rooms/{quote(room)}/relations/{quote(event)}"):
            assert bob.get(path).status == 200, path
        bob.ok("POST", at(room, f"/receipt/m.read/{quote(event)}"), {})
    assert bob.get(f"{C}/notifications").status == 200


def test_malformed_keys_break_neither_sync_nor_queries(people):
    """Device keys of another device, of the wrong shape or size were stored and broke whoever asked for them."""
    alice, bob = people[0], people[1]
    device = alice.device_id
    good = {"user_id": alice.user_id, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": {f"ed25519:{device}": "a" * 43, f"curve25519:{device}": "b" * 43}, "signatures": {alice.user_id: {f"ed25519:{device}": "c" * 86}}}
    deep: Any = "x"
    for _ in range(60):
        deep = {"a": deep}
    bodies = [
        {"device_keys": good | {"user_id": bob.user_id}}, {"device_keys": good | {"device_id": "OTHER"}}, {"device_keys": 5},
        {"device_keys": {k: v for k, v in good.items() if k != "keys"}}, {"device_keys": good | {"keys": {"x": 5}}},
        {"device_keys": good | {"signatures": {bob.user_id: {"ed25519:X": "y"}}}}, {"device_keys": good | {"algorithms": "x"}},
        {"device_keys": good | {"unsigned": {"device_display_name": "forged"}, "extra": deep}}, {"one_time_keys": 5},
        {"one_time_keys": {"nocolon": {"key": "x"}}}, {"one_time_keys": {":": "x"}}, {"one_time_keys": {"signed_curve25519:A": 5}},
        {"one_time_keys": {"signed_curve25519:" + "A" * 2000: {"key": "x"}}}, {"one_time_keys": {f"signed_curve25519:{n}": {"key": "k"} for n in range(3000)}},
        {"fallback_keys": {"signed_curve25519:F": {"key": [], "fallback": "no"}}}, {"fallback_keys": "x"}, {"device_keys": good},
    ]
    since = bob.client.sync()["next_batch"]
    for body in bodies:
        answer = alice.client.post(f"{C}/keys/upload", body)
        assert answer.status == 200 or answer.status in (400, 403, 413) and answer.errcode, (str(body)[:200], answer)
        told = bob.client.ok("POST", f"{C}/keys/query", {"device_keys": {alice.user_id: []}})
        for one in told.get("device_keys", {}).get(alice.user_id, {}).values():
            assert one["user_id"] == alice.user_id and one["device_id"] == device, body
            assert one.get("unsigned", {}).get("device_display_name") != "forged"
        assert bob.client.ok("POST", f"{C}/keys/query", {"device_keys": {bob.user_id: []}})["device_keys"].get(bob.user_id, {}).get(device) is None
        claimed = bob.client.post(f"{C}/keys/claim", {"one_time_keys": {alice.user_id: {device: "signed_curve25519"}}})
        assert claimed.status == 200, claimed
        healthy(alice.client)
    bob.client.sync(since)
    for path, body in (("keys/query", {"device_keys": {"nobody": []}}), ("keys/query", {"device_keys": {f"@{n}:x": [] for n in range(3000)}}),
                       ("keys/claim", {"one_time_keys": {"x": {"y": 5}}}), ("keys/query", {"device_keys": {alice.user_id: [5]}}),
                       ("keys/device_signing/upload", {"master_key": {"user_id": bob.user_id, "usage": ["master"], "keys": {"ed25519:x": "x"}}}),
                       ("keys/device_signing/upload", {"master_key": 5}), ("keys/signatures/upload", {bob.user_id: {"X": {}}}), ("keys/signatures/upload", {"x": 5})):
        answer = alice.client.post(f"{C}/{path}", body)
        assert answer.status < 500 and (answer.status == 200 or answer.errcode), (path, str(body)[:100], answer)
    healthy(alice.client)


@pytest.mark.parametrize("where", ["account", "room", "filter", "rule", "message", "state", "device", "to-device", "profile"])
def test_deep_and_large_json(trio, where):
    """Nesting blew the stack; a megabyte of account data came with every sync."""
    alice, _, _, room, a, *_ = trio
    deep = b'{"a":' * 20000 + b"1" + b"}" * 20000
    wide = json.dumps({"x": "y" * 700_000}).encode()
    for body in (deep, b"[" * 50000, b'{"a":' * 50000, wide):
        method, path = {
            "account": ("PUT", f"{C}/user/{quote(a.user_id)}/account_data/org.example.deep"),
            "room": ("PUT", f"{C}/user/{quote(a.user_id)}/rooms/{quote(room)}/account_data/org.example.deep"),
            "filter": ("POST", f"{C}/user/{quote(a.user_id)}/filter"), "rule": ("PUT", f"{C}/pushrules/global/override/deep"),
            "message": ("PUT", at(room, f"/send/m.room.message/{secrets.token_hex(4)}")), "state": ("PUT", at(room, "/state/org.example.deep/")),
            "device": ("PUT", f"{C}/devices/{a.device_id}"), "to-device": ("PUT", f"{C}/sendToDevice/m.x/{secrets.token_hex(4)}"),
            "profile": ("PUT", f"{C}/profile/{quote(a.user_id)}/org.example.deep")}[where]
        answer = alice.request(method, path, body=body, headers={"Content-Type": "application/json"})
        if body is wide and answer.status == 200:
            continue
        assert answer.status in (400, 403, 404, 413) and answer.errcode, (where, answer)
    assert len(json.dumps(healthy(alice))) < 3_000_000


# To-device -----------------------------------------------------------------------------------------------------------


def test_to_device_messages_name_their_true_sender(people):
    alice, bob = people[0], people[1]
    # Messages reach those with whom one shares a room.
    room = people[2].client.ok("POST", f"{C}/createRoom", {"invite": [bob.user_id]})["room_id"]
    bob.client.ok("POST", f"{C}/join/{room}", {})
    since = bob.client.sync()["next_batch"]
    for target in ("*", bob.device_id):
        body = {"sender": alice.user_id, "messages": {bob.user_id: {target: {"sender": "@forged:x", "type": "m.forged", "body": target}}}}
        people[2].client.ok("PUT", f"{C}/sendToDevice/m.room_key_request/{secrets.token_hex(4)}", body)
    got = bob.client.sync(since).get("to_device", {}).get("events", [])
    assert len(got) == 2 and {(one["sender"], one["type"]) for one in got} == {(people[2].user_id, "m.room_key_request")}
    for body in ({"messages": {bob.user_id: {"*": 5}}}, {"messages": {bob.user_id: 5}}, {"messages": {"nobody": {"*": {}}}}, {"messages": []},
                 {"messages": {bob.user_id: {"nodevice": {}}}}, {}, {"messages": {bob.user_id: {"*": {"x": "y" * 200_000}}}}):
        answer = alice.client.put(f"{C}/sendToDevice/m.x/{secrets.token_hex(4)}", body)
        assert answer.status in (200, 400, 413), answer
    healthy(bob.client)


# Other people's things -----------------------------------------------------------------------------------------------


def test_what_belongs_to_a_user_is_theirs(trio):
    """Account data, filters, tags, devices and pushers of others were read or changed by their ids."""
    alice, bob, _, room, a, b, _ = trio
    alice.ok("PUT", f"{C}/user/{quote(a.user_id)}/account_data/org.example.secret", {"value": "hidden words"})
    alice.ok("PUT", f"{C}/user/{quote(a.user_id)}/rooms/{quote(room)}/account_data/org.example.secret", {"value": "hidden words"})
    alice.ok("PUT", f"{C}/user/{quote(a.user_id)}/rooms/{quote(room)}/tags/u.secret", {"order": 0.5})
    filter_id = alice.ok("POST", f"{C}/user/{quote(a.user_id)}/filter", {"event_fields": ["hidden"]})["filter_id"]
    mine = f"{C}/user/{quote(a.user_id)}"
    for method, path, body in (
        ("GET", "/account_data/org.example.secret", None), ("PUT", "/account_data/org.example.secret", {}), ("GET", f"/filter/{filter_id}", None),
        ("POST", "/filter", {}), ("GET", f"/rooms/{quote(room)}/account_data/org.example.secret", None), ("GET", f"/rooms/{quote(room)}/tags", None),
        ("PUT", f"/rooms/{quote(room)}/account_data/org.example.secret", {}), ("PUT", f"/rooms/{quote(room)}/tags/u.x", {}),
        ("DELETE", f"/rooms/{quote(room)}/tags/u.secret", None), ("POST", "/openid/request_token", {})):
        answer = refused(bob.request(method, mine + path, json_body=body))
        assert b"hidden" not in answer.content
    # A filter's id is worth something to its owner only.
    answer = bob.get(f"{C}/sync", query={"filter": filter_id})
    assert answer.status in (400, 404) or answer.status == 200 and b.user_id in answer.text
    for guess in ("0", "1", "2", "-1", "99999999999999999999", "x", "a" * 1000):
        assert bob.get(f"{C}/sync", query={"filter": guess}).status in (200, 400, 404)
    for method, path, body in (("GET", f"{C}/devices/{a.device_id}", None), ("PUT", f"{C}/devices/{a.device_id}", {"display_name": "x"}),
                               ("PUT", f"{C}/profile/{quote(a.user_id)}/displayname", {"displayname": "x"}),
                               ("PUT", f"{C}/profile/{quote(a.user_id)}/avatar_url", {"avatar_url": "mxc://x/y"}),
                               ("PUT", f"{C}/presence/{quote(a.user_id)}/status", {"presence": "online"}),
                               ("GET", f"{C}/admin/whois/{quote(a.user_id)}", None)):
        refused(bob.request(method, path, json_body=body))
    assert b"hidden" not in bob.get(f"{C}/sync").content
    refused(bob.put(f"{C}/user/{quote(b.user_id)}/account_data/m.push_rules", {}), 400, 403, 405)
    refused(bob.put(f"{C}/user/{quote(b.user_id)}/account_data/m.fully_read", {}), 400, 403, 405)
    refused(bob.put(f"{C}/user/{quote(b.user_id)}/rooms/{quote(room)}/account_data/m.fully_read", {"event_id": "$x"}), 400, 403, 405)


def test_transaction_ids_belong_to_a_device(server, trio):
    """The same transaction id from another device, user or room gave the first one's event, or nothing."""
    alice, bob, _, room, a, *_ = trio
    other_room = alice.ok("POST", f"{C}/createRoom", {"invite": []})["room_id"]
    second = a.log_in()
    txn = secrets.token_hex(6)
    body = {"msgtype": "m.text", "body": "x"}
    path = at(room, f"/send/m.room.message/{txn}")
    first = alice.ok("PUT", path, body)["event_id"]
    assert alice.ok("PUT", path, body)["event_id"] == first
    ids = {first, second.ok("PUT", path, body)["event_id"], bob.ok("PUT", path, body)["event_id"],
           alice.ok("PUT", at(other_room, f"/send/m.room.message/{txn}"), body)["event_id"]}
    assert len(ids) == 4
    redaction = alice.ok("PUT", at(room, f"/redact/{quote(first)}/{txn}"), {})["event_id"]
    assert redaction not in ids
    own = {one["event_id"]: one["unsigned"].get("transaction_id") for one in alice.messages(room)}
    theirs = {one["event_id"]: one["unsigned"].get("transaction_id") for one in [*second.messages(room), *bob.messages(room)]}
    assert own[redaction] == txn
    assert theirs[redaction] is None, "another device is told the transaction id"
    second.ok("POST", f"{C}/logout", {})


def test_logging_in_as_a_device_replaces_it_for_its_owner_only(server, people):
    alice, bob = people[0], people[1]
    mine = server.public(token=server.log_in(server.public(), alice.login_id, alice.password, device_id="SHARED").json["access_token"])
    theirs = server.public(token=server.log_in(server.public(), bob.login_id, bob.password, device_id="SHARED").json["access_token"])
    assert mine.get(f"{C}/account/whoami").json["user_id"] == alice.user_id
    assert theirs.get(f"{C}/account/whoami").json["user_id"] == bob.user_id
    again = server.public(token=server.log_in(server.public(), alice.login_id, alice.password, device_id="SHARED").json["access_token"])
    assert mine.get(f"{C}/account/whoami").status == 401
    assert theirs.get(f"{C}/account/whoami").status == 200
    for client in (again, theirs):
        client.ok("POST", f"{C}/logout", {})


def test_pushers_and_links_reach_nowhere_they_should_not(trio):
    """Push gateways and link previews were ways into the server's own network."""
    alice, bob, *_ = trio
    for url in ("http://127.0.0.1:1/_matrix/push/v1/notify", "https://169.254.169.254/_matrix/push/v1/notify", "file:///etc/passwd", "gopher://x", "",
                "https://localhost/_matrix/push/v1/notify", "https://[::1]/_matrix/push/v1/notify", "https://example.org/other"):
        answer = alice.post(f"{C}/pushers/set", {"kind": "http", "app_id": "x", "app_display_name": "x", "device_display_name": "x", "lang": "en",
                                                 "pushkey": secrets.token_hex(4), "data": {"url": url}})
        assert answer.status in (400, 403) and answer.errcode, (url, answer)
    for url in ("http://127.0.0.1:22/", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "http://[::ffff:127.0.0.1]/", "http://0/"):
        for path in (f"{V1}/media/preview_url", "/_matrix/media/v3/preview_url"):
            answer = alice.get(path, query={"url": url})
            assert answer.status in (400, 403, 404), answer
    for body in ({"id_server": "127.0.0.1:1", "medium": "email", "address": "x@example.org", "id_access_token": "x"},):
        room = trio[3]
        answer = alice.post(at(room, "/invite"), body)
        assert answer.status in (400, 403), answer


# Media ---------------------------------------------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes | None = None, frames: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    if rows is None:
        packer = zlib.compressobj(9)
        line, parts = b"\0" * (1 + (width + 7) // 8), []
        for _ in range(height):
            parts.append(packer.compress(line))
        rows = b"".join([*parts, packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def upload(client: Client, body: bytes, kind: str, **query: str) -> Answer:
    return client.request("POST", "/_matrix/media/v3/upload", body=body, headers={"Content-Type": kind}, query=query)


@pytest.mark.parametrize("path", [
    "..%2f..%2f..%2fheya.sqlite", "%2e%2e/%2e%2e/heya.sqlite", "..%5c..%5cheya.sqlite", "%00", "....//....//x", "%2fetc%2fpasswd", "..", ".",
    "a%2f..%2fb", "%c0%ae%c0%ae%c0%afx", "C:%5cx", "x" * 5000, "%ff%fe", "aa%0d%0aX:%20y"])
def test_media_paths_lead_nowhere_else(server, people, path):
    """Media ids with dots and slashes read any file of the server."""
    client, name = people[0].client, server.server_name
    for stem in ("/_matrix/client/v1/media/download", "/_matrix/client/v1/media/thumbnail", "/_matrix/media/v3/download"):
        for url in (f"{stem}/{quote(name)}/{path}", f"{stem}/{path}/x", f"{stem}/{quote(name)}/abc/{path}"):
            answer = client.get(url + ("?width=32&height=32" if "thumbnail" in stem else ""))
            assert answer.status in (400, 403, 404, 414, 421, 431) and b"SQLite" not in answer.content and b"root:" not in answer.content, answer
            assert "X" not in answer.headers


def memory(server: Server) -> int:
    """MiB that the server holds."""
    text = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


@pytest.mark.parametrize("bomb", ["declared", "compressed", "wide", "truncated", "gif", "idat"])
def test_pictures_that_unpack_to_gigabytes(server, people, bomb):
    """A picture of some kilobytes took all memory when a thumbnail of it was made."""
    client = people[0].client
    before = memory(server)
    body, kind = {
        "declared": lambda: (png(60000, 60000, zlib.compress(b"\0" * 100)), "image/png"),
        "compressed": lambda: (png(30000, 30000), "image/png"),
        "wide": lambda: (png(2_000_000_000, 1, zlib.compress(b"\0" * 1000)), "image/png"),
        "truncated": lambda: (png(500, 500)[:200], "image/png"),
        "gif": lambda: (b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0\0\0\0\xff\xff\xff"
                        + (b"\x21\xf9\x04\0\0\0\0\0,\0\0\0\0" + struct.pack("<HH", 65535, 65535) + b"\0\x02\x02L\x01\0") * 200 + b";", "image/gif"),
        "idat": lambda: (png(10, 10, zlib.compress(b"\0" * 100_000_000)), "image/png"),
    }[bomb]()
    peak, over = [before], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak.append(memory(server))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        began = time.monotonic()
        done = upload(client, body, kind)
        assert done.status in (200, 400, 403, 413, 415), done
        if done.status == 200:
            where = done.json["content_uri"].removeprefix("mxc://")
            for method in ("scale", "crop"):
                answer = client.get(f"{V1}/media/thumbnail/{where}?width=96&height=96&method={method}")
                assert answer.status in (200, 400, 404, 413, 415), answer
                assert len(answer.content) < 1_000_000
        assert time.monotonic() - began < 60
    finally:
        over.set()
        watcher.join()
    assert max(peak) - before < 300, f"{max(peak) - before} MiB more"
    assert client.get(f"{C}/account/whoami").status == 200


@pytest.mark.parametrize("query", [
    "width=1000000&height=1000000", "width=-1&height=-1", "width=0&height=0", "width=99999999999999999999&height=1", "width=a&height=b", "",
    "width=32&height=32&method=explode", "width=1&height=100000&method=crop", "width=32&height=32&animated=maybe", "width=32&height=32&timeout_ms=99999999999"])
def test_thumbnails_of_any_size(people, query):
    """Each size that is asked for was computed and stored."""
    client = people[0].client
    where = upload(client, png(64, 64), "image/png").json["content_uri"].removeprefix("mxc://")
    began = time.monotonic()
    answer = client.get(f"{V1}/media/thumbnail/{where}?{query}")
    assert answer.status in (200, 400), answer
    assert time.monotonic() - began < 20 and len(answer.content) < 2_000_000


def test_sizes_of_thumbnails_do_not_pile_up(server, people):
    """A thousand sizes of one picture must not be a thousand files."""
    client = people[0].client
    where = upload(client, png(800, 800), "image/png").json["content_uri"].removeprefix("mxc://")
    count = lambda: sum(1 for path in (server.data / "media").rglob("*") if path.is_file())
    before = count()
    for size in range(30, 150, 3):
        client.get(f"{V1}/media/thumbnail/{where}?width={size}&height={size + 1}&method=scale")
    assert count() - before < 20


def test_bodies_are_not_unpacked(trio):
    """A compressed request of kilobytes unpacked to gigabytes."""
    alice, _, _, room, *_ = trio
    bomb = gzip.compress(b'{"msgtype":"m.text","body":"' + b"a" * 50_000_000 + b'"}')
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        answer = alice.request("PUT", at(room, f"/send/m.room.message/{secrets.token_hex(4)}"), body=bomb,
                               headers={"Content-Type": "application/json", "Content-Encoding": encoding})
        assert answer.status in (400, 415) and answer.errcode, answer


ACTIVE = [
    (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "image/svg+xml"),
    (b"<!DOCTYPE html><script>alert(1)</script>", "text/html"), (b"<html><script>alert(1)</script>", "image/png"),
    (b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><script>alert(1)</script></html>", "application/xhtml+xml"),
    (b"alert(1)", "application/javascript"), (b"alert(1)", "text/javascript; charset=x"), (b"%PDF-1.4 /JavaScript", "application/pdf"),
    (b"x", "text/html;charset=utf-8,image/png"), (b"x", "multipart/x-mixed-replace; boundary=x"), (b"<script>", "text/plain"),
    (b"<b>x", "application/xml"), (b"GIF89a/*<svg/onload=alert(1)>*/", "image/gif"), (b"x", "image/png\r\nX-Evil: 1"),
]


@pytest.mark.parametrize(("body", "kind"), ACTIVE, ids=lambda value: value if isinstance(value, str) else None)
def test_what_could_run_is_inert(people, body, kind):
    """Media served under the client's origin ran as pages of it."""
    client = people[0].client
    try:
        done = upload(client, body, kind, filename='x".html\r\nX-Evil: 1')
    except ValueError:
        return  # our own client refuses the line break
    if done.status != 200:
        refused(done, 400, 403, 415)
        return
    where = done.json["content_uri"].removeprefix("mxc://")
    names = ["", "/index.html", "/" + quote('a"; x=y.svg'), "/" + quote("a\r\nX-Evil: 1")]
    for url in (f"{V1}/media/download/{where}{name}" for name in names):
        answer = client.get(url)
        if answer.status != 200:
            refused(answer, 400, 404)
            continue
        headers = answer.headers
        shown = headers["Content-Type"].split(";")[0].strip().lower()
        # "Serving inline content": only these may be shown in place.
        inline = {"text/css", "text/plain", "text/csv", "application/json", "application/ld+json", "image/jpeg", "image/gif", "image/png", "image/apng",
                  "image/webp", "image/avif", "video/mp4", "video/webm", "video/ogg", "video/quicktime", "audio/mp4", "audio/webm", "audio/aac",
                  "audio/mpeg", "audio/ogg", "audio/wave", "audio/wav", "audio/x-wav", "audio/x-pn-wav", "audio/flac", "audio/x-flac"}
        assert headers["Content-Disposition"].startswith("attachment") or headers["Content-Disposition"].startswith("inline") and shown in inline, url
        assert shown not in ("text/html", "image/svg+xml", "application/xhtml+xml") or headers["Content-Disposition"].startswith("attachment")
        policy = headers["Content-Security-Policy"]
        assert "sandbox" in policy and "default-src 'none'" in policy and "script-src 'none'" in policy.replace("default-src 'none'", "script-src 'none'")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert "X-Evil" not in headers


# User-interactive authentication -------------------------------------------------------------------------------------


def password_of(person: Person, session: str, **more: Any) -> dict:
    return {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.login_id}, "password": person.password, "session": session} | more


def test_a_confirmed_session_is_for_one_operation(server):
    """A confirmation for one thing was good for another, for another device, and for ever."""
    person = server.register()
    victim = server.register()
    devices = [server.log_in(server.public(), person.login_id, person.password).json["device_id"] for _ in range(4)]
    client = person.client
    asked = client.delete(f"{C}/devices/{devices[0]}", {})
    assert asked.status == 401 and asked.json["session"] and not asked.json.get("completed"), asked
    session = asked.json["session"]
    # A session that was never confirmed is worth nothing.
    assert client.delete(f"{C}/devices/{devices[0]}", {"auth": {"session": session}}).status == 401
    # Nor is another person's password, nor the session in another's hands.
    assert client.delete(f"{C}/devices/{devices[0]}", {"auth": password_of(victim, session)}).status in (401, 403)
    assert victim.client.post(f"{C}/account/deactivate", {"auth": password_of(person, session)}).status in (400, 401, 403)
    assert victim.client.get(f"{C}/account/whoami").status == 200
    client.ok("DELETE", f"{C}/devices/{devices[0]}", {"auth": password_of(person, session)})
    for method, path, body in (("DELETE", f"{C}/devices/{devices[1]}", {}), ("POST", f"{C}/delete_devices", {"devices": [devices[1]]}),
                               ("POST", f"{C}/account/password", {"new_password": "Matsu-kaze-58"}), ("POST", f"{C}/account/deactivate", {}),
                               ("DELETE", f"{C}/devices/{devices[0]}", {})):
        answer = client.request(method, path, json_body=body | {"auth": {"session": session}})
        assert answer.status in (400, 401, 403, 404), (path, answer)
    assert client.get(f"{C}/account/whoami").status == 200
    assert client.get(f"{C}/devices/{devices[1]}").status == 200
    # Begun for one, finished for another: the stage is done, the thing is not.
    session = client.delete(f"{C}/devices/{devices[1]}", {}).json["session"]
    for method, path, body in (("POST", f"{C}/account/deactivate", {}), ("DELETE", f"{C}/devices/{devices[2]}", {}),
                               ("POST", f"{C}/account/password", {"new_password": "Matsu-kaze-58"})):
        answer = client.request(method, path, json_body=body | {"auth": password_of(person, session)})
        assert answer.status in (400, 401, 403), (path, answer)
    session = client.post(f"{C}/delete_devices", {"devices": [devices[1]]}).json["session"]
    answer = client.post(f"{C}/delete_devices", {"devices": [devices[2], devices[3]], "auth": password_of(person, session)})
    assert answer.status in (400, 401, 403), "confirmed for one device, done for two others"
    left = {one["device_id"] for one in client.ok("GET", f"{C}/devices")["devices"]}
    assert {devices[1], devices[2], devices[3]} <= left


def test_stages_are_not_skipped(server):
    client = server.register().client
    for auth in ({"type": "m.login.dummy"}, {"type": "m.login.token", "token": "x"}, {"type": "m.login.sso"}, {"type": "m.oauth"}, {"session": "x"},
                 {"type": "m.login.password"}, {"type": "m.login.password", "password": ""}, {}, {"type": 5}, {"completed": ["m.login.password"]}):
        answer = client.post(f"{C}/account/deactivate", {"auth": auth})
        assert answer.status in (400, 401, 403), (auth, answer)
    assert client.get(f"{C}/account/whoami").status == 200


# Secrets at rest -----------------------------------------------------------------------------------------------------


def test_no_password_and_no_token_is_stored_or_logged():
    """Passwords stood in stored registration sessions, in logs of requests, and in error messages."""
    server = Server(profile="open", config={"server": {"log": "debug"}}, env={"RUST_LOG": "trace", "RUST_BACKTRACE": "1"})
    try:
        words = {name: f"Fuji-{secrets.token_hex(8)}-{number}" for number, name in enumerate(
            ("first", "changed", "wrong", "as user", "confirm", "registered", "confirm wrong", "in query"))}
        person = server.register(password=words["first"])
        client = person.client
        server.log_in(server.public(), person.login_id, words["wrong"])
        server.log_in(server.public(), words["as user"], "x")
        server.public().post(f"{C}/login", {"type": "m.login.password", "user": person.login_id, "password": words["wrong"], "x": [1.5]})
        server.public().request("POST", f"{C}/login", body=b'{"type":"m.login.password","password":"' + words["wrong"].encode() + b'"', headers={"Content-Type": "application/json"})
        server.public().get(f"{C}/login?password={words['in query']}&access_token={words['in query']}")
        device = server.log_in(server.public(), person.login_id, words["first"]).json["device_id"]
        session = client.delete(f"{C}/devices/{device}", {}).json["session"]
        client.delete(f"{C}/devices/{device}", {"auth": {"type": "m.login.password", "session": session, "password": words["confirm wrong"],
                                                           "identifier": {"type": "m.id.user", "user": person.login_id}}})
        client.post(f"{C}/delete_devices", {"devices": [device], "auth": {"type": "m.login.password", "password": words["first"], "identifier": {"type": "m.id.user", "user": person.login_id}}})
        asked = client.post(f"{C}/account/password", {"new_password": words["changed"]})
        client.post(f"{C}/account/password", {"new_password": words["changed"], "auth": password_of(person, asked.json.get("session", ""))})
        # Registration that is begun and never finished.
        server.public().post(f"{C}/register", {"username": f"half{secrets.token_hex(3)}", "password": words["registered"]})
        server.public().post(f"{C}/register", {"username": "half way", "password": words["registered"], "auth": {"type": "m.login.dummy"}})
        assert server.log_in(server.public(), person.login_id, words["changed"]).status == 200
        token = client.token
        needles = list(words.values()) + [token]
        time.sleep(0.3)
        server.stop()
        found = []
        for path in [server.folder / "log", *server.data.rglob("*")]:
            if path.is_file():
                content = path.read_bytes()
                for word in needles:
                    forms = [word.encode(), base64.b64encode(word.encode()).rstrip(b"="), word.encode("utf-16-le"), urllib.parse.quote(word).encode()]
                    if any(form in content for form in forms):
                        found.append((path.name, next((name for name, value in words.items() if value == word), "token")))
        assert not found, found
    finally:
        server.remove()


# Who there is --------------------------------------------------------------------------------------------------------


def test_who_has_an_account_is_not_told(city):
    """Profiles, directory, log-in and password reset told strangers which ids exist."""
    inside, stranger = city.person(), city.person()
    nobody = inside.user_id.replace("@p", "@p9")
    for path in ("{}", "{}/displayname", "{}/avatar_url"):
        real, made_up = (stranger.client.get(f"{C}/profile/{path.format(quote(user))}") for user in (inside.user_id, nobody))
        assert real.told == made_up.told and real.status in (403, 404), path
        assert real.content == made_up.content
    real, made_up = (stranger.client.get(f"{C}/presence/{quote(user)}/status") for user in (inside.user_id, nobody))
    assert real.told == made_up.told
    real, made_up = (stranger.client.post(f"{C}/keys/query", {"device_keys": {user: []}}) for user in (inside.user_id, nobody))
    assert real.json.get("device_keys", {}).get(inside.user_id, {}) == made_up.json.get("device_keys", {}).get(nobody, {})
    room = None
    for user in (inside.user_id, nobody):
        answer = stranger.client.post(f"{C}/createRoom", {"is_direct": True, "invite": [user], "preset": "trusted_private_chat"})
        room = answer.told if room is None else room
        assert answer.told == room and answer.status in (400, 403), answer
    for term in (inside.login_id, inside.user_id, "p", ""):
        answer = stranger.client.post(f"{C}/user_directory/search", {"search_term": term})
        assert inside.user_id not in answer.text
    for path in ("account/3pid/email/requestToken", "account/password/email/requestToken", "register/email/requestToken"):
        told = [stranger.client.post(f"{C}/{path}", {"client_secret": "abc", "email": address, "send_attempt": 1}, token="").told
                for address in ("nobody@example.org", "someone@example.org")]
        assert told[0] == told[1], path
    assert stranger.client.get(f"{C}/register/available?username={inside.login_id}").status in (403, 404)
    assert stranger.client.get(f"{V1}/mutual_rooms", query={"user_id": inside.user_id}).told == \
        stranger.client.get(f"{V1}/mutual_rooms", query={"user_id": nobody}).told


def test_presence_is_for_who_shares_a_room(server):
    one, other = server.register(), server.register()
    for client in (one.client, other.client):
        client.put(f"{C}/presence/{quote(one.user_id)}/status", {"presence": "online", "status_msg": "hidden words"})
    answer = other.client.get(f"{C}/presence/{quote(one.user_id)}/status")
    assert answer.status in (403, 404) or b"hidden" not in answer.content, answer
    assert b"hidden" not in other.client.get(f"{C}/sync").content


def test_devices_tell_others_no_more_than_keys(server, people):
    """Names, addresses and times of devices went out with their keys."""
    alice = people[0]
    named = server.public()
    done = server.log_in(named, alice.login_id, alice.password, initial_device_display_name="ward 3 hidden desk")
    named.token, device = done.json["access_token"], done.json["device_id"]
    named.ok("POST", f"{C}/keys/upload", {"device_keys": {
        "user_id": alice.user_id, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"], "keys": {f"ed25519:{device}": "a" * 43},
        "signatures": {alice.user_id: {f"ed25519:{device}": "c" * 86}}}})
    stranger = server.register()
    told = stranger.client.ok("POST", f"{C}/keys/query", {"device_keys": {alice.user_id: []}})
    assert "last_seen" not in json.dumps(told) and "127.0.0.1" not in json.dumps(told)
    assert "hidden desk" not in json.dumps(told), "the name of a device is told to who shares no room with its owner"
    named.ok("POST", f"{C}/logout", {})


# Invitations ---------------------------------------------------------------------------------------------------------


def test_invitations_of_ignored_people_are_not_shown(server):
    """Client-server API, "Ignoring Users"."""
    one, pest = server.register(), server.register()
    one.client.ok("PUT", f"{C}/user/{quote(one.user_id)}/account_data/m.ignored_user_list", {"ignored_users": {pest.user_id: {}}})
    since = one.client.sync()["next_batch"]
    room = pest.client.ok("POST", f"{C}/createRoom", {"invite": [one.user_id], "name": "unwanted"})["room_id"]
    assert room not in one.client.sync().get("rooms", {}).get("invite", {})
    assert room not in one.client.sync(since).get("rooms", {}).get("invite", {})
    shared = one.client.ok("POST", f"{C}/createRoom", {"preset": "public_chat"})["room_id"]
    pest.client.ok("POST", f"{C}/join/{quote(shared)}", {})
    since = one.client.sync()["next_batch"]
    pest.client.say(shared, "unwanted words")
    assert b"unwanted words" not in one.client.get(f"{C}/sync", query={"since": since}).content
    assert b"unwanted words" not in one.client.get(f"{C}/sync").content
    for odd in ({"ignored_users": 5}, {"ignored_users": ["x"]}, {"ignored_users": {"nobody": {}}}, {"ignored_users": {one.user_id: {}}}, {}):
        one.client.put(f"{C}/user/{quote(one.user_id)}/account_data/m.ignored_user_list", odd)
        healthy(one.client, shared)


@pytest.mark.parametrize("data", [
    ("m.direct", {"@x": 5}), ("m.direct", []), ("m.direct", {"@x:y": [5, None]}), ("m.push_rules", {"global": {}}), ("m.tag", {"tags": 5}),
    ("m.ignored_user_list", {"ignored_users": None}), ("m.marked_unread", {"unread": "yes"}), ("", {}), ("x" * 5000, {}), ("m.invite_permission_config", {"default_action": 5})],
    ids=lambda value: json.dumps(value)[:40])
def test_odd_account_data_breaks_no_sync(trio, data):
    alice, _, _, room, a, *_ = trio
    kind, content = data
    for path in (f"{C}/user/{quote(a.user_id)}/account_data/{quote(kind)}", f"{C}/user/{quote(a.user_id)}/rooms/{quote(room)}/account_data/{quote(kind)}"):
        answer = alice.put(path, content)
        assert answer.status == 200 or answer.status in (400, 403, 404, 405) and answer.errcode, answer
    healthy(alice, room)
    alice.say(room, "goes on")


# Simplified sliding sync ---------------------------------------------------------------------------------------------

SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"


def test_subscribing_to_a_room_lets_nobody_read_it(trio):
    """Rooms that were asked for by id were sent to whoever asked."""
    alice, bob, eve, _, a, b, e = trio
    room = alice.ok("POST", f"{C}/createRoom", {"preset": "private_chat", "name": "hidden words", "invite": [b.user_id]})["room_id"]
    alice.say(room, "hidden words")
    alice.ok("PUT", at(room, f"/typing/{quote(a.user_id)}"), {"typing": True, "timeout": 30000})
    asked = {"required_state": [["*", "*"]], "timeline_limit": 20}
    for client in (eve, bob):
        body = {"conn_id": secrets.token_hex(4), "room_subscriptions": {room: asked, "!none:x": asked}, "lists": {"all": asked | {"ranges": [[0, 99]]}},
                "extensions": {name: {"enabled": True, "rooms": ["*", room]} for name in ("receipts", "typing", "account_data", "e2ee", "to_device")}}
        answer = client.post(SLIDING, body)
        if answer.told == (404, "M_UNRECOGNIZED"):
            pytest.skip("sliding sync is not served")
        assert answer.status == 200, answer
        told = answer.json
        rooms, extensions = told.get("rooms", {}), told.get("extensions", {})
        if client is eve:
            assert room not in rooms and b"hidden" not in answer.content and room not in json.dumps(extensions)
        else:
            # Invited: the stripped state and nothing else.
            assert not any(rooms[room].get(name) for name in ("timeline", "required_state", "prev_batch"))
            assert room not in extensions.get("typing", {}).get("rooms", {})
        # A position is worth something to its own connection only.
        for thief, name in ((alice, body["conn_id"]), (client, "another")):
            stolen = thief.post(SLIDING, body | {"conn_id": name}, query={"pos": told["pos"]})
            assert stolen.told == (400, "M_UNKNOWN_POS"), stolen


@pytest.mark.parametrize("change", [
    {"lists": {"a": {"ranges": [[5, 1]], "timeline_limit": 1}}}, {"lists": {"a": {"ranges": [[0, 2**53 - 1]], "timeline_limit": 2**53 - 1}}},
    {"lists": {"a": {"ranges": [[-1, 5]], "timeline_limit": 1}}}, {"lists": {"a": {"ranges": [[0, 1]] * 5000, "timeline_limit": 1}}},
    {"lists": {f"l{n}": {"ranges": [[0, 99]], "timeline_limit": 50, "required_state": [["*", "*"]]} for n in range(500)}},
    {"lists": {"a" * 5000: {"ranges": [[0, 1]], "timeline_limit": 1}}}, {"lists": {"a": {"ranges": [[0, 9]], "timeline_limit": 1, "required_state": [["a*" * 100, "$LAZY"]] * 2000}}},
    {"lists": 5}, {"lists": {"a": {}}}, {"lists": {"a": {"ranges": "x"}}}, {"room_subscriptions": {"nonsense": {"timeline_limit": 1}}},
    {"room_subscriptions": {f"!{n}:x": {"timeline_limit": 1} for n in range(5000)}}, {"extensions": {"unknown": {"enabled": True}, "typing": 5}},
    {"extensions": {"to_device": {"enabled": True, "since": "nonsense", "limit": 10**9}}}, {"conn_id": "x" * 100_000}, {"conn_id": 5}, {"txn_id": "y" * 100_000}],
    ids=lambda value: json.dumps(value)[:50])
def test_odd_sliding_syncs(trio, change):
    alice, _, _, room, *_ = trio
    answer = alice.post(SLIDING, {"conn_id": "odd"} | change)
    if answer.told == (404, "M_UNRECOGNIZED"):
        pytest.skip("sliding sync is not served")
    assert answer.status == 200 or answer.status in (400, 413) and answer.errcode, answer
    assert len(answer.content) < 5_000_000
    for pos in ("nonsense", "", "0", "x" * 5000):
        answer = alice.post(SLIDING, {"conn_id": "odd"}, query={"pos": pos})
        assert answer.status in (200, 400), answer
    healthy(alice, room)


def test_connections_of_sliding_sync_do_not_pile_up(server, people):
    """Each `conn_id` held memory for ever."""
    client = people[0].client
    body = {"lists": {"all": {"ranges": [[0, 99]], "timeline_limit": 1, "required_state": [["*", "*"]]}}}
    if client.post(SLIDING, body).told == (404, "M_UNRECOGNIZED"):
        pytest.skip("sliding sync is not served")
    for number in range(50):
        client.post(SLIDING, body | {"conn_id": f"warm{number}"})
    before = memory(server)
    for number in range(150):
        client.post(SLIDING, body | {"conn_id": f"many{number}"})
    assert memory(server) - before < 40
