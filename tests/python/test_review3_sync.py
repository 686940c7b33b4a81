"""What a review of the whole server found in both syncs and in small answers: filters that were not kept to, what a former
member is delivered, and words that stayed wrong."""

from __future__ import annotations

import json

import pytest

from harness import Person, Server, quote
from test_review3_rooms import C, R, join, leave, made

SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"


@pytest.fixture(scope="module")
def site() -> Server:
    """The open profile, where a former member reads what was written while they were there."""
    server = Server(profile="open")
    yield server
    server.remove()


def filtered(person: Person, wish: dict, since: str | None = None) -> dict:
    return person.client.sync(since, filter=json.dumps(wish))


def kinds(section: dict, *names: str) -> list[str]:
    for name in names:
        section = section.get(name, {})
    return [event["type"] for event in section.get("events", [])]


def put_data(person: Person, kind: str, room: str | None = None) -> None:
    place = f"/rooms/{quote(room)}" if room else ""
    person.client.ok("PUT", f"{C}/user/{quote(person.user_id)}{place}/account_data/{kind}", {"v": 1})


def kick(by: Person, room: str, whom: Person) -> None:
    by.client.ok("POST", f"{R}{quote(room)}/kick", {"user_id": whom.user_id})


# Filters -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy(site: Server) -> tuple[Person, Person, str]:
    """A room in which a person has account data, a receipt and somebody who types."""
    a, b = site.register(), site.register()
    room = made(a)
    join(b, room)
    said = a.client.say(room, "x")
    for kind in ("org.example.wanted", "org.example.other"):
        put_data(b, kind)
        put_data(b, kind, room)
    b.client.ok("POST", f"{R}{quote(room)}/receipt/m.read/{quote(said)}", {})
    a.client.ok("PUT", f"{R}{quote(room)}/typing/{quote(a.user_id)}", {"typing": True, "timeout": 120_000})
    return a, b, room


def test_a_filter_of_account_data_is_kept_to(busy):
    """First, and again for what comes later; of no room and of a room."""
    _, b, room = busy
    wish = {"account_data": {"types": ["org.example.w*"]}, "room": {"account_data": {"not_types": ["org.example.other"]}}}
    first = filtered(b, wish)
    assert kinds(first, "account_data") == ["org.example.wanted"]
    assert kinds(first, "rooms", "join", room, "account_data") == ["org.example.wanted"]
    for kind in ("org.example.other", "org.example.wanted"):
        put_data(b, kind)
        put_data(b, kind, room)
    later = filtered(b, wish, first["next_batch"])
    assert kinds(later, "account_data") == ["org.example.wanted"]
    assert kinds(later, "rooms", "join", room, "account_data") == ["org.example.wanted"]
    everything = b.client.sync()
    assert {"m.push_rules", "org.example.wanted", "org.example.other"} <= set(kinds(everything, "account_data"))
    nothing = filtered(b, {"account_data": {"types": []}, "room": {"account_data": {"not_rooms": [room]}}})
    assert kinds(nothing, "account_data") == [] == kinds(nothing, "rooms", "join", room, "account_data")


@pytest.mark.parametrize(("wish", "told"), [
    ({}, {"m.receipt", "m.typing"}), ({"types": ["m.receipt"]}, {"m.receipt"}), ({"not_types": ["m.receipt"]}, {"m.typing"}),
    ({"types": ["none"]}, set())])
def test_a_filter_of_receipts_and_typing_is_kept_to(busy, wish: dict, told: set[str]):
    _, b, room = busy
    assert set(kinds(filtered(b, {"room": {"ephemeral": wish}}), "rooms", "join", room, "ephemeral")) == told


def test_rooms_inside_the_parts_of_a_filter_are_kept_to(site: Server, busy):
    a, b, room = busy
    other = made(a)
    join(b, other)
    for one, without, of_other in (({"not_rooms": [room]}, room, other), ({"rooms": [other]}, room, other)):
        joined = filtered(b, {"room": {"timeline": one}})["rooms"]["join"]
        assert kinds(joined.get(without, {}), "timeline") == [] and kinds(joined[of_other], "timeline")
        joined = filtered(b, {"room": {"state": one, "timeline": {"limit": 1}}})["rooms"]["join"]
        assert kinds(joined.get(without, {}), "state") == [] and kinds(joined[of_other], "state")
        assert kinds(joined[without], "timeline"), "the other parts stay"


def test_events_as_they_were_signed(busy):
    """`event_format`: `federation`."""
    _, b, room = busy
    plain, signed = (filtered(b, {"room": {"timeline": {"limit": 3}}} | more)["rooms"]["join"][room]
                     for more in ({}, {"event_format": "federation"}))
    for part in ("timeline", "state"):
        raw = signed[part]["events"]
        assert [event["type"] for event in raw] == kinds(plain, part) and raw
        assert all({"hashes", "signatures", "auth_events", "depth"} <= set(event) for event in raw)
        assert not any("hashes" in event for event in plain[part]["events"])


# Who was there, and is not -------------------------------------------------------------------------------------------


def put_out_unseen(site: Server, *texts: str) -> tuple[list[str], int]:
    """Somebody joins a room of which no device is told yet, others write, and they are put out; what a device is then told
    of the room, and how many deliveries of it are on record."""
    a, b = site.register(), site.register()
    room = made(a)
    join(b, room)
    since = filtered(b, {"room": {"not_rooms": [room]}})["next_batch"]
    for text in texts:
        a.client.say(room, text)
    kick(a, room, b)
    delivered = f"SELECT count(*) FROM audit WHERE room_id = '{room}' AND actor = '{b.user_id}' AND action = 'room.delivered'"
    assert site.count(delivered) == 0
    timeline = b.client.sync(since)["rooms"]["leave"][room]["timeline"]["events"]
    return [event["content"].get("body", event["type"]) for event in timeline], site.count(delivered)


def test_what_a_former_member_is_delivered_is_on_record(site: Server):
    """Who was shown what, and when (C23): also where the last posts come with the word that it is over."""
    told, deliveries = put_out_unseen(site, "MISSED")
    assert told == ["MISSED", "m.room.member"] and deliveries == 1


def test_the_end_alone_is_no_delivery(site: Server):
    """Whoever is told that it is over and nothing else has read nothing."""
    told, deliveries = put_out_unseen(site)
    assert told == ["m.room.member"] and deliveries == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_ones_own_notes_of_a_room_that_one_left(site: Server, when: str):
    """Written on another device while this one was away, before the room was left or after."""
    a, b = site.register(), site.register()
    room = made(a)
    join(b, room)
    wish = {"room": {"include_leave": True}}
    since = filtered(b, wish)["next_batch"]
    if when == "before":
        put_data(b, "org.example.note", room)
        leave(b, room)
    else:
        leave(b, room)
        since = filtered(b, wish, since)["next_batch"]
        put_data(b, "org.example.note", room)
    told = filtered(b, wish, since)
    assert kinds(told, "rooms", "leave", room, "account_data") == ["org.example.note"], told["rooms"]
    again = filtered(b, wish, told["next_batch"])
    assert kinds(again, "rooms", "leave", room, "account_data") == []


# Sliding sync --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meanwhile", ["a message elsewhere", ""], ids=["message", "nothing"])
def test_typing_that_ended_out_of_sight_is_told(site: Server, meanwhile: str):
    """Otherwise somebody types for ever in a room that comes back into the window."""
    a, c = site.register(), site.register()
    first, second = made(a), made(a)
    join(c, first), join(c, second)
    a.client.say(second, "b"), a.client.say(first, "a")
    body = {"lists": {"l": {"ranges": [[0, 0]], "timeline_limit": 1, "required_state": []}},
            "extensions": {"typing": {"enabled": True}}}
    pos = None

    def ask() -> tuple[dict, dict]:
        nonlocal pos
        told = c.client.ok("POST", SLIDING, body, query={"timeout": 0} | ({"pos": pos} if pos else {}))
        pos = told["pos"]
        return told.get("rooms", {}), told["extensions"].get("typing", {}).get("rooms", {})

    def type_in(room: str, is_typing: bool) -> None:
        a.client.ok("PUT", f"{R}{quote(room)}/typing/{quote(a.user_id)}", {"typing": is_typing, "timeout": 120_000})

    assert first in ask()[0]
    type_in(first, True)
    assert ask()[1][first]["content"]["user_ids"] == [a.user_id]
    a.client.say(second, "b2")
    assert second in ask()[0]
    type_in(first, False)
    if meanwhile:
        a.client.say(second, meanwhile)
    assert first not in ask()[1], "out of the window"
    a.client.say(first, "a2")
    rooms, typing = ask()
    assert first in rooms and typing[first]["content"]["user_ids"] == []


# Lazy members who leave ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(site: Server) -> list[Person]:
    """Enough people that who comes after them is no hero of a room, whom every sync tells."""
    return [site.register() for _ in range(6)]


@pytest.mark.parametrize("after", [False, True], ids=["state", "state_after"])
@pytest.mark.parametrize("when", ["first", "next", "gap"])
def test_a_lazy_member_who_wrote_and_left_is_told_as_they_were(site: Server, crowd, when: str, after: bool):
    """Where somebody writes, changes their name, writes again and leaves in one timeline, their earlier membership stands
    before it, with the name that they wrote under, though it is older than the last sync; and each change says what it
    replaced. `state_after` holds the end of it."""
    a, reader, *others = crowd
    b = site.register()
    room = made(a)
    for person in (*others, reader, b):
        join(person, room)
    me = f"{R}{quote(room)}/state/m.room.member/{quote(b.user_id)}"
    b.client.ok("PUT", me, {"membership": "join", "displayname": "前の名前"})
    for n in range(8):
        a.client.say(room, f"{n}")
    query = {"filter": json.dumps({"room": {"timeline": {"limit": 6}, "state": {"lazy_load_members": True}}})}
    if after:
        query["use_state_after"] = "true"

    def told(events: list[dict]) -> list[tuple[str, str | None]]:
        return [(event["content"]["membership"], event["content"].get("displayname")) for event in events
                if event["type"] == "m.room.member" and event["state_key"] == b.user_id]

    name = "state_after" if after else "state"
    first = reader.client.sync(**query)
    assert told(first["rooms"]["join"][room][name]["events"]) == [], "who is not needed is not told"
    if when == "gap":
        for n in range(8):
            a.client.say(room, f"too many: {n}")
    one = b.client.say(room, "一つ目")
    b.client.ok("PUT", me, {"membership": "join", "displayname": "後の名前"})
    two = b.client.say(room, "二つ目")
    leave(b, room)
    part = reader.client.sync(None if when == "first" else first["next_batch"], **query)["rooms"]["join"][room]
    timeline = part["timeline"]["events"]
    # Beside a first sync there are the two before.
    assert [event["event_id"] for event in timeline if event["type"] == "m.room.message" and event["sender"] == b.user_id] == [one, two]
    assert part["timeline"]["limited"] == (when != "next")
    renamed, left = (event for event in timeline if event["type"] == "m.room.member")
    assert told([renamed, left])[0] == ("join", "後の名前") and left["content"]["membership"] == "leave"
    for event, before in ((renamed, "前の名前"), (left, "後の名前")):
        assert event["unsigned"]["prev_content"] == {"membership": "join", "displayname": before}
        assert event["unsigned"]["prev_sender"] == b.user_id
    assert left["unsigned"]["replaces_state"] == renamed["event_id"]
    state = part[name]["events"]
    if after:
        assert [event["event_id"] for event in state if event.get("state_key") == b.user_id] == [left["event_id"]]
    else:
        assert told(state) == [("join", "前の名前")]


# Small answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2**63 - 1, 2**63 - 2, -(2**63), 2**62])
def test_a_token_beyond_all_places_is_refused(site: Server, order: int):
    a = site.register()
    room = made(a)
    epoch = a.client.sync()["next_batch"].split("_")[1]
    for direction in "bf":
        answer = a.client.get(f"{R}{quote(room)}/messages", query={"dir": direction, "from": f"r1_{epoch}_{order}"})
        assert answer.status == 400, answer
    assert a.client.get(f"{C}/sync", query={"since": f"h1_{epoch}_{order}_0", "timeout": 0}).status == 400
    assert a.client.get(f"{R}{quote(room)}/messages", query={"dir": "b", "from": f"r1_{epoch}_{10**6}"}).status == 200
    assert "panick" not in site.log()


def test_an_alias_without_a_name_is_refused(site: Server):
    a = site.register()
    room = made(a)
    answer = a.client.post(f"{C}/createRoom", {"room_alias_name": ""})
    assert answer.status == 400, answer
    answer = a.client.put(f"{C}/directory/room/{quote('#:' + site.server_name)}", {"room_id": room})
    assert answer.status == 400, answer
    assert a.client.ok("GET", f"{C}/joined_rooms")["joined_rooms"] == [room], "nothing was made"


def test_the_versions_are_those_that_are_served(site: Server):
    versions = site.public().ok("GET", "/_matrix/client/versions")["versions"]
    assert {f"v1.{n}" for n in range(11, 20)} <= set(versions)
