"""Simplified sliding sync (MSC4186, the form of its unstable path), and unread counts by thread (v1.4)."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from harness import Client, Person, Server, quote

C = "/_matrix/client/v3"
PATH = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
ALL = [["*", "*"]]
EXTENSIONS = {"to_device": {"enabled": True}, "e2ee": {"enabled": True}, "account_data": {"enabled": True},
              "receipts": {"enabled": True}, "typing": {"enabled": True}}


@pytest.fixture(scope="module")
def server() -> Server:
    server = Server(profile="open")
    yield server
    server.remove()


def window(end: int = 99, limit: int = 10, state: Any = None, **more: Any) -> dict:
    return {"ranges": [[0, end]], "timeline_limit": limit, "required_state": state or [], **more}


def ask(client: Client, pos: str | None = None, timeout: int = 0, **body: Any):
    query = {"timeout": timeout} | ({"pos": pos} if pos else {})
    return client.post(PATH, body, query=query)


def sliding(client: Client, pos: str | None = None, timeout: int = 0, **body: Any) -> dict:
    answer = ask(client, pos, timeout, **body)
    assert answer.status == 200, answer
    return answer.json


def bodies(room: dict) -> list[str]:
    return [event["content"].get("body") for event in room.get("timeline", []) if event["type"] == "m.room.message"]


def make(owner: Person, *others: Person, name: str | None = "room", **more: Any) -> str:
    content = {"invite": [o.user_id for o in others], **({"name": name} if name else {}), **more}
    room = owner.client.ok("POST", f"{C}/createRoom", content)["room_id"]
    for other in others:
        other.client.ok("POST", f"{C}/join/{quote(room)}", {})
    return room


def test_it_is_announced(server):
    assert server.public().get("/_matrix/client/versions").json["unstable_features"]["org.matrix.simplified_msc3575"] is True


def test_a_window_over_the_newest_rooms(server):
    me = server.register()
    rooms = [make(me, name=f"r{n}") for n in range(5)]
    me.client.say(rooms[1], "newest")
    first = sliding(me.client, lists={"all": window(1)})
    assert first["lists"]["all"]["count"] == 5
    assert set(first["rooms"]) == {rooms[1], rooms[4]}, "the two with the newest activity"
    assert first["rooms"][rooms[1]]["initial"] and bodies(first["rooms"][rooms[1]]) == ["newest"]
    assert first["rooms"][rooms[1]]["name"] == "r1" and first["rooms"][rooms[1]]["lists"] == ["all"]
    assert first["rooms"][rooms[1]]["joined_count"] == 1 and first["rooms"][rooms[1]]["invited_count"] == 0
    assert first["rooms"][rooms[1]]["bump_stamp"] > first["rooms"][rooms[4]]["bump_stamp"]
    wider = sliding(me.client, first["pos"], lists={"all": window(3)})
    assert set(wider["rooms"]) == {rooms[2], rooms[3]}, "what was told is not told again"
    # A room that something happens in moves into the window.
    me.client.say(rooms[0], "woken")
    moved = sliding(me.client, wider["pos"], lists={"all": window(3)})
    assert set(moved["rooms"]) == {rooms[0]} and moved["rooms"][rooms[0]]["initial"]
    two = sliding(me.client, lists={"a": {"ranges": [[0, 0], [4, 4]], "timeline_limit": 1, "required_state": []}}, conn_id="two")
    assert set(two["rooms"]) == {rooms[0], rooms[2]}


def test_only_what_is_new(server):
    me, other = server.register(), server.register()
    room = make(me, other)
    first = sliding(me.client, lists={"all": window()})
    other.client.say(room, "one")
    other.client.say(room, "two")
    second = sliding(me.client, first["pos"], lists={"all": window()})
    told = second["rooms"][room]
    assert bodies(told) == ["one", "two"] and told["num_live"] == 2
    assert "initial" not in told and "limited" not in told and "name" not in told and "joined_count" not in told
    assert told["notification_count"] == 2 and told["highlight_count"] == 0
    nothing = sliding(me.client, second["pos"], lists={"all": window()})
    assert "rooms" not in nothing
    # The gap is told, and prev_batch leads into it.
    for n in range(6):
        other.client.say(room, f"g{n}")
    gap = sliding(me.client, nothing["pos"], lists={"all": window(limit=2)})["rooms"][room]
    assert bodies(gap) == ["g4", "g5"] and gap["limited"] is True
    page = me.client.ok("GET", f"{C}/rooms/{quote(room)}/messages", query={"dir": "b", "from": gap["prev_batch"], "limit": 4})
    assert [event["content"]["body"] for event in page["chunk"]] == ["g3", "g2", "g1", "g0"]


def test_an_answer_may_be_lost(server):
    """"The server cannot assume that a client has received a response" (MSC4186, Connections)."""
    me = server.register()
    room = make(me)
    first = sliding(me.client, lists={"all": window()})
    me.client.say(room, "once")
    for _ in range(6):
        again = sliding(me.client, first["pos"], lists={"all": window()})
        assert bodies(again["rooms"][room]) == ["once"]
    after = sliding(me.client, again["pos"], lists={"all": window()})
    assert "rooms" not in after
    # Once the next one is used, the old one is gone.
    assert ask(me.client, first["pos"], lists={"all": window()}).told == (400, "M_UNKNOWN_POS")


def test_positions_of_others_are_not_known(server):
    me, other = server.register(), server.register()
    make(me)
    pos = sliding(me.client, lists={"all": window()}, conn_id="a")["pos"]
    for client, more in ((other.client, {"conn_id": "a"}), (me.client, {"conn_id": "b"}), (me.client, {})):
        assert ask(client, pos, lists={}, **more).told == (400, "M_UNKNOWN_POS")
    for bad in ("x", "s1_", "s1_a_b", "h1_x_1_1", "あ", pos + "0"):
        assert ask(me.client, bad, conn_id="a").told == (400, "M_UNKNOWN_POS"), bad


def test_after_a_restart_the_client_begins_afresh():
    server = Server(profile="open")
    try:
        me = server.register()
        room = make(me)
        pos = sliding(me.client, lists={"all": window()})["pos"]
        server.kill()
        server.start()
        me.client.close()
        assert ask(me.client, pos, lists={"all": window()}).told == (400, "M_UNKNOWN_POS")
        assert room in sliding(me.client, lists={"all": window()})["rooms"]
    finally:
        server.remove()


def test_it_waits_and_wakes(server):
    me, other = server.register(), server.register()
    room = make(me, other)
    pos = sliding(me.client, lists={"all": window()})["pos"]
    begun = time.monotonic()
    empty = sliding(me.client, pos, 300, lists={"all": window()})
    assert 0.25 < time.monotonic() - begun < 5 and "rooms" not in empty
    threading.Timer(0.3, lambda: other.client.say(room, "wake")).start()
    begun = time.monotonic()
    woken = sliding(me.client, empty["pos"], 20_000, lists={"all": window()})
    assert time.monotonic() - begun < 5 and bodies(woken["rooms"][room]) == ["wake"]
    # A new question is answered at once, with news or without.
    begun = time.monotonic()
    sliding(me.client, woken["pos"], 20_000, lists={"all": window(), "more": window()})
    assert time.monotonic() - begun < 5


def test_required_state(server):
    me, other = server.register(), server.register()
    room = make(me, other, topic="about")

    def kinds(told: dict) -> set[tuple[str, str]]:
        return {(event["type"], event["state_key"]) for event in told.get("required_state", [])}

    def initial(*state: list[str]) -> set[tuple[str, str]]:
        return kinds(sliding(me.client, conn_id=json.dumps(state)[:80], lists={"a": window(state=list(state), limit=1)})["rooms"][room])

    assert initial() == set()
    assert initial(["m.room.topic", ""], ["m.room.name", "x"]) == {("m.room.topic", "")}
    assert initial(["m.room.member", "$ME"]) == {("m.room.member", me.user_id)}
    assert initial(["m.room.member", "*"]) == {("m.room.member", me.user_id), ("m.room.member", other.user_id)}
    everything = initial(["*", "*"])
    assert {("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", "")} <= everything
    me.client.say(room, "mine")
    assert initial(["m.room.member", "$LAZY"]) == {("m.room.member", me.user_id)}, "who wrote what is told"
    # What changes is told; what is asked for now and was not before, too.
    first = sliding(me.client, lists={"a": window(state=[["m.room.topic", ""]])})
    me.client.ok("PUT", f"{C}/rooms/{quote(room)}/state/m.room.topic/", {"topic": "changed"})
    me.client.ok("PUT", f"{C}/rooms/{quote(room)}/state/m.room.name/", {"name": "renamed"})
    second = sliding(me.client, first["pos"], lists={"a": window(state=[["m.room.topic", ""]])})
    told = second["rooms"][room]
    assert kinds(told) == {("m.room.topic", "")} and told["required_state"][0]["content"]["topic"] == "changed"
    assert told["name"] == "renamed"
    more = sliding(me.client, second["pos"], lists={"a": window(state=[["m.room.topic", ""], ["m.room.name", ""]])})
    assert kinds(more["rooms"][room]) == {("m.room.name", "")}
    # Members whom nobody had to know come when they write.
    lazy = [["m.room.member", "$LAZY"]]
    quiet = sliding(me.client, conn_id="lazy", lists={"a": window(state=lazy, limit=1)})
    other.client.say(room, "I")
    spoke = sliding(me.client, quiet["pos"], conn_id="lazy", lists={"a": window(state=lazy, limit=1)})
    assert ("m.room.member", other.user_id) in kinds(spoke["rooms"][room])


def test_a_subscription_shows_more(server):
    """A list tells one event of each room; the room that somebody opens is told with more (Changing room configs)."""
    me = server.register()
    room = make(me)
    for n in range(5):
        me.client.say(room, f"m{n}")
    lists = {"all": window(limit=1)}
    first = sliding(me.client, lists=lists)
    assert bodies(first["rooms"][room]) == ["m4"]
    opened = sliding(me.client, first["pos"], lists=lists,
                     room_subscriptions={room: {"timeline_limit": 4, "required_state": [["m.room.create", ""]]}})
    told = opened["rooms"][room]
    assert bodies(told) == ["m1", "m2", "m3", "m4"] and told["expanded_timeline"] is True and told["limited"] is True
    assert told["num_live"] == 0 and [e["type"] for e in told["required_state"]] == ["m.room.create"]
    quiet = sliding(me.client, opened["pos"], lists=lists, room_subscriptions={room: {"timeline_limit": 4, "required_state": []}})
    assert "rooms" not in quiet
    # A room that is in no window is told all the same.
    lone = sliding(me.client, conn_id="lone", room_subscriptions={room: {"timeline_limit": 1, "required_state": []}})
    assert bodies(lone["rooms"][room]) == ["m4"] and "lists" not in lone["rooms"][room]


def test_what_happened_out_of_sight_is_told_later(server):
    me = server.register()
    a, b = make(me, name="a"), make(me, name="b")
    me.client.say(a, "a1")
    first = sliding(me.client, lists={"w": window(1)}, extensions=EXTENSIONS)
    assert set(first["rooms"]) == {a, b}
    # Only the newest room is in the window from here on: a.
    me.client.say(a, "a2")
    pos = sliding(me.client, first["pos"], lists={"w": window(0)}, extensions=EXTENSIONS)["pos"]
    me.client.ok("PUT", f"{C}/user/{me.user_id}/rooms/{quote(b)}/account_data/jp.heya.test", {"n": 1})
    pos = sliding(me.client, pos, lists={"w": window(0)}, extensions=EXTENSIONS)["pos"]
    me.client.ok("POST", f"{C}/rooms/{quote(b)}/receipt/m.read/{quote(me.client.messages(b)[0]['event_id'])}", {})
    pos = sliding(me.client, pos, lists={"w": window(0)}, extensions=EXTENSIONS)["pos"]
    back = sliding(me.client, pos, lists={"w": window(1)}, extensions=EXTENSIONS)
    assert {"type": "jp.heya.test", "content": {"n": 1}} in back["extensions"]["account_data"]["rooms"][b]
    assert me.user_id in json.dumps(back["extensions"]["receipts"]["rooms"][b])
    assert "initial" not in back.get("rooms", {}).get(b, {})


def test_filters(server):
    me, other = server.register(), server.register()
    plain, space, dm = make(me, name="p"), make(me, name="s", creation_content={"type": "m.space"}), make(me, other, name="d")
    me.client.ok("PUT", f"{C}/user/{me.user_id}/account_data/m.direct", {other.user_id: [dm]})
    me.client.ok("PUT", f"{C}/user/{me.user_id}/rooms/{quote(plain)}/tags/m.favourite", {"order": 0.1})
    me.client.ok("PUT", f"{C}/rooms/{quote(space)}/state/m.space.child/{quote(plain)}", {"via": ["x"]})
    invited = other.client.ok("POST", f"{C}/createRoom", {"invite": [me.user_id], "name": "i"})["room_id"]
    hidden = make(me, name="e", initial_state=[{"type": "m.room.encryption", "state_key": "",
                                                "content": {"algorithm": "m.megolm.v1.aes-sha2"}}])

    def listed(**filters: Any) -> set[str]:
        answer = sliding(me.client, conn_id="f", lists={"l": window(filters=filters)})
        assert answer["lists"]["l"]["count"] == len(answer.get("rooms", {}))
        return set(answer.get("rooms", {}))

    everything = {plain, space, dm, invited, hidden}
    assert listed() == everything
    assert listed(is_dm=True) == {dm} and listed(is_dm=False) == everything - {dm}
    assert listed(is_invite=True) == {invited} and listed(is_invite=False) == everything - {invited}
    assert listed(is_encrypted=True) == {hidden} and listed(is_encrypted=False) == everything - {hidden}
    assert listed(room_types=["m.space"]) == {space} and listed(not_room_types=["m.space"]) == everything - {space}
    assert listed(room_types=[None]) == everything - {space}
    assert listed(tags=["m.favourite"]) == {plain} and listed(not_tags=["m.favourite"]) == everything - {plain}
    assert listed(spaces=[space]) == {plain} and listed(spaces=[plain]) == set()
    told = sliding(me.client, conn_id="dm", lists={"l": window()})["rooms"]
    assert told[dm]["is_dm"] is True and "is_dm" not in told[plain]


def test_a_room_becomes_direct(server):
    me, other = server.register(), server.register()
    room = make(me, other)
    pos = sliding(me.client, lists={"l": window()}, extensions=EXTENSIONS)["pos"]
    me.client.ok("PUT", f"{C}/user/{me.user_id}/account_data/m.direct", {other.user_id: [room]})
    told = sliding(me.client, pos, lists={"l": window()}, extensions=EXTENSIONS)
    assert told["rooms"][room]["is_dm"] is True
    assert told["extensions"]["account_data"]["global"] == [{"type": "m.direct", "content": {other.user_id: [room]}}]


def test_invited_joined_removed(server):
    me, owner = server.register(), server.register()
    pos = sliding(me.client, lists={"l": window(state=ALL)})["pos"]
    room = owner.client.ok("POST", f"{C}/createRoom", {"invite": [me.user_id], "name": "in"})["room_id"]
    secret = owner.client.say(room, "before")
    invited = sliding(me.client, pos, lists={"l": window(state=ALL)})
    told = invited["rooms"][room]
    assert told["membership"] == "invite" and "timeline" not in told and "required_state" not in told
    stripped = {event["type"]: event for event in told["invite_state"]}
    assert stripped["m.room.name"]["content"]["name"] == "in" and "m.room.create" in stripped
    assert all(set(event) == {"type", "state_key", "sender", "content"} for event in told["invite_state"])
    assert secret not in json.dumps(invited)
    quiet = sliding(me.client, invited["pos"], lists={"l": window(state=ALL)})
    assert "rooms" not in quiet, "an invitation is told once"
    me.client.ok("POST", f"{C}/join/{quote(room)}", {})
    joined = sliding(me.client, quiet["pos"], lists={"l": window(state=ALL)})
    assert joined["rooms"][room]["initial"] is True and joined["rooms"][room]["membership"] == "join"
    assert secret in json.dumps(joined["rooms"][room]["timeline"])
    owner.client.ok("POST", f"{C}/rooms/{quote(room)}/kick", {"user_id": me.user_id, "reason": "out"})
    after = owner.client.say(room, "after")
    removed = sliding(me.client, joined["pos"], lists={"l": window(state=ALL)})
    told = removed["rooms"][room]
    assert told["membership"] == "leave" and after not in json.dumps(removed)
    assert [event["content"]["membership"] for event in told["timeline"]] == ["leave"]
    assert removed["lists"]["l"]["count"] == 0
    gone = sliding(me.client, removed["pos"], lists={"l": window(state=ALL)})
    assert "rooms" not in gone, "that one is out is told once"
    # A client that begins afresh is told what it may still show from before.
    fresh = sliding(me.client, lists={"l": window()}, conn_id="fresh")
    assert fresh["rooms"][room]["membership"] == "leave"
    assert sliding(me.client, room_subscriptions={room: {"timeline_limit": 9, "required_state": ALL}}, conn_id="sub").get(
        "rooms", {}).get(room, {}).get("membership") != "join"


def test_not_ones_own_rooms(server):
    me, owner = server.register(), server.register()
    room = make(owner)
    answer = sliding(me.client, room_subscriptions={room: {"timeline_limit": 9, "required_state": ALL},
                                                    "!nowhere:x": {"timeline_limit": 1, "required_state": []}})
    assert "rooms" not in answer


def test_receipts_and_typing(server):
    me, other, third = server.register(), server.register(), server.register()
    room = make(me, other, third)
    old = me.client.say(room, "old")
    third.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/m.read/{quote(old)}", {})
    event = me.client.say(room, "new")
    other.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/m.read/{quote(event)}", {})
    first = sliding(me.client, lists={"l": window(limit=1)}, extensions=EXTENSIONS)
    receipts = first["extensions"]["receipts"]["rooms"][room]["content"]
    assert other.user_id in receipts[event]["m.read"] and old not in receipts, "of what is shown"
    assert "typing" not in first["extensions"]
    other.client.ok("PUT", f"{C}/rooms/{quote(room)}/typing/{quote(other.user_id)}", {"typing": True, "timeout": 30000})
    third.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/m.read/{quote(event)}", {})
    second = sliding(me.client, first["pos"], lists={"l": window(limit=1)}, extensions=EXTENSIONS)
    assert second["extensions"]["typing"]["rooms"][room] == {"type": "m.typing", "content": {"user_ids": [other.user_id]}}
    assert list(second["extensions"]["receipts"]["rooms"][room]["content"][event]["m.read"]) == [third.user_id]
    assert "rooms" not in second
    # A private receipt is one's own.
    other.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/m.read.private/{quote(me.client.say(room, 'p'))}", {})
    third_time = sliding(me.client, second["pos"], lists={"l": window(limit=1)}, extensions=EXTENSIONS)
    assert "m.read.private" not in json.dumps(third_time)
    # Extensions may be for some rooms only.
    other.client.ok("PUT", f"{C}/rooms/{quote(room)}/typing/{quote(other.user_id)}", {"typing": False})
    none = sliding(me.client, third_time["pos"], lists={"l": window(limit=1)},
                   extensions={"typing": {"enabled": True, "lists": ["other"], "rooms": []}})
    assert "typing" not in none["extensions"]


def test_counts_follow_ones_own_receipt(server):
    me, other = server.register(), server.register()
    room = make(me, other)
    first = sliding(me.client, lists={"l": window()})
    event = other.client.say(room, "unread")
    second = sliding(me.client, first["pos"], lists={"l": window()})
    assert second["rooms"][room]["notification_count"] == 1
    me.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/m.read/{quote(event)}", {})
    third = sliding(me.client, second["pos"], lists={"l": window()})
    assert third["rooms"][room]["notification_count"] == 0 and "timeline" not in third["rooms"][room]


def test_messages_to_the_device(server):
    me, other = server.register(), server.register()
    make(me, other)
    send = lambda n: other.client.ok("PUT", f"{C}/sendToDevice/jp.heya.test/t{n}",  # noqa: E731
                                     {"messages": {me.user_id: {me.device_id: {"n": n}}}})
    for n in range(3):
        send(n)
    enabled = {"to_device": {"enabled": True, "limit": 2}}
    first = sliding(me.client, extensions=enabled)["extensions"]["to_device"]
    assert [event["content"]["n"] for event in first["events"]] == [0, 1]
    again = sliding(me.client, extensions=enabled)["extensions"]["to_device"]
    assert [event["content"]["n"] for event in again["events"]] == [0, 1], "until they are acknowledged"
    enabled["to_device"]["since"] = first["next_batch"]
    rest = sliding(me.client, extensions=enabled)
    assert [event["content"]["n"] for event in rest["extensions"]["to_device"]["events"]] == [2]
    enabled["to_device"]["since"] = rest["extensions"]["to_device"]["next_batch"]
    threading.Timer(0.2, send, [3]).start()
    woken = sliding(me.client, rest["pos"], 20_000, extensions=enabled)
    assert [event["content"]["n"] for event in woken["extensions"]["to_device"]["events"]] == [3]
    assert sliding(me.client)["extensions"] == {}


def test_limits(server):
    me = server.register()
    many = {f"l{n}": window() for n in range(101)}
    bad = [{"lists": many}, {"lists": {"x" * 300: window()}}, {"conn_id": "x" * 300}, {"txn_id": "x" * 300},
           {"lists": {"l": window(state=[["t", "k"]] * 201)}}, {"lists": {"l": {"ranges": [[0, 1]] * 201}}},
           {"lists": {"l": {"ranges": [[5, 1]]}}},
           {"lists": {f"l{n}": window(state=[["x" * 250, "k"]] * 100) for n in range(2)}},
           {"room_subscriptions": {f"!r{n}:x": {"timeline_limit": 1, "required_state": []} for n in range(501)}}]
    for body in bad:
        assert ask(me.client, **body).told == (400, "M_INVALID_PARAM"), str(body)[:80]
    for body in ({"lists": []}, {"lists": {"l": {"ranges": [[-1, 2]]}}}, {"lists": {"l": {"timeline_limit": "x"}}},
                 {"extensions": 7}, {"room_subscriptions": {"nonsense": {}}}):
        assert ask(me.client, **body).told == (400, "M_BAD_JSON"), body
    assert me.client.post(PATH, {}, query={"timeout": "x"}).told == (400, "M_INVALID_PARAM")
    assert sliding(me.client, txn_id="mine")["txn_id"] == "mine"


def test_unread_counts_by_thread(server):
    """Client-server API, "Receiving notifications": with `unread_thread_notifications` threads are counted apart."""
    me, other = server.register(), server.register()
    room = make(me, other)
    apart = json.dumps({"room": {"timeline": {"unread_thread_notifications": True}}})

    def counts() -> tuple[int, dict[str, int], int]:
        told = me.client.sync(filter=apart)["rooms"]["join"][room]
        threads = {root: c["notification_count"] for root, c in told.get("unread_thread_notifications", {}).items()}
        total = me.client.sync()["rooms"]["join"][room]["unread_notifications"]["notification_count"]
        return told["unread_notifications"]["notification_count"], threads, total

    def read(event: str, thread: str | None = None, kind: str = "m.read") -> None:
        body = {} if thread is None else {"thread_id": thread}
        me.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/{kind}/{quote(event)}", body)

    def reply(root: str, text: str) -> str:
        return other.client.say(room, text, **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})

    one, two = other.client.say(room, "one"), other.client.say(room, "two")
    in_one, in_two = reply(one, "in one"), [reply(two, f"in two {n}") for n in range(2)]
    assert counts() == (2, {one: 1, two: 2}, 5)
    read(two, "main")
    assert counts() == (0, {one: 1, two: 2}, 3), "the main timeline says nothing of threads"
    read(in_two[0], two, "m.read.private")
    assert counts() == (0, {one: 1, two: 1}, 2)
    later = other.client.say(room, "later")
    assert counts() == (1, {one: 1, two: 1}, 3)
    read(in_one, one)
    assert counts() == (1, {two: 1}, 2)
    read(later)
    assert counts() == (0, {}, 0), "a receipt without a thread is for all of them"
    # More than memory holds lies between: threads are found in the database.
    old = reply(one, "old")
    for n in range(150):
        other.client.say(room, f"n{n}")
    newest = other.client.say(room, "newest")
    read(newest, "main")
    assert counts() == (0, {one: 1}, 1)
    me.client.say(room, "mine", **{"m.relates_to": {"rel_type": "m.thread", "event_id": one}})
    assert counts() == (0, {}, 0), "who writes in a thread has read it"
    assert old


def test_a_rule_on_a_long_text(server):
    """A word that could stand at twenty thousand places of a text must not exhaust the server's stack."""
    me, other = server.register(), server.register()
    room = make(me, other)
    me.client.ok("PUT", f"{C}/pushrules/global/content/a", {"pattern": "a", "actions": ["notify"]})
    other.client.say(room, "xa " * 20_000)
    assert me.client.sync()["rooms"]["join"][room]["unread_notifications"]["notification_count"] == 1
