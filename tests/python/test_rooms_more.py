"""Rooms beyond everyday talk: reports, events by time, summaries, spaces, upgrades, knocking, shared rooms, invite
filters, presence, and what clients of before `/sync` ask. Each is asked by an outsider, by somebody who was removed, and in
a room that was closed.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time

import pytest

from harness import Person, Server, quote

C = "/_matrix/client/v3"
V1 = "/_matrix/client/v1"
_txn = itertools.count()


@pytest.fixture(scope="module")
def open_server() -> Server:
    server = Server(profile="open", config={"policy": {"presence": True}})
    yield server
    server.remove()


@pytest.fixture(scope="module")
def people(any_city: Server):
    return [any_city.person() for _ in range(4)]


def make(person: Person, **body) -> str:
    return person.client.ok("POST", f"{C}/createRoom", body)["room_id"]


def join(person: Person, room: str):
    return person.client.post(f"{C}/join/{quote(room)}", {})


def put_state(person: Person, room: str, kind: str, content: dict, key: str = ""):
    return person.client.put(f"{C}/rooms/{quote(room)}/state/{quote(kind)}/{quote(key)}", content)


def joined(person: Person, room: str) -> bool:
    return room in person.client.ok("GET", f"{C}/joined_rooms")["joined_rooms"]


# Reports -------------------------------------------------------------------------------------------------------------


def control_texts(server: Server) -> list[str]:
    staff = server.first_staff()
    room = server.look("control")["control_room"]
    return [event["content"].get("body", "") for event in staff.client.messages(room) if event["type"] == "m.room.message"]


def test_reports_reach_the_city_without_content(any_city, people):
    a, b, former, outsider = people
    room = any_city.room(a, b, former)
    event = b.client.say(room, "見本一郎さんの話")
    any_city.change_members(room, remove=[former])
    reason = f"理由{secrets.token_hex(4)}"
    r, e = quote(room), quote(event)
    number = a.client.state(room, "jp.heya.room")["room_number"]
    before = len(control_texts(any_city))
    # The same answer for what there is, what there is not, and what one cannot see.
    for person, path in ((a, f"rooms/{r}/report/{e}"), (a, f"rooms/{r}/report/{quote('$nothing')}"),
                         (outsider, f"rooms/{r}/report/{e}"), (former, f"rooms/{r}/report/{e}"),
                         (a, f"rooms/{r}/report"), (a, f"rooms/{quote('!nothing')}/report"),
                         (a, f"users/{quote(b.user_id)}/report"), (a, f"users/{quote('@nobody:' + any_city.server_name)}/report")):
        answer = person.client.post(f"{C}/{path}", {"reason": reason})
        assert answer.status == 200 and answer.json == {}, path
    told = control_texts(any_city)[: -before or None]
    assert len(told) == 3, told
    assert any(f"部屋番号{number}の投稿（{event}）" in text for text in told)
    assert any(f"部屋番号{number}について" in text for text in told)
    assert any(f"「{b.login_id}」について" in text and f"「{a.login_id}」から" in text for text in told)
    assert not any(reason in text or "見本一郎" in text for text in told)
    assert reason not in any_city.log()
    # The reason is on the internal listener, for whoever follows it up.
    reports = any_city.look("reports")["reports"]
    mine = [report for report in reports if report["reason"] == reason]
    assert len(mine) == 3 and mine[-1]["event_id"] == event and mine[-1]["room_number"] == number
    assert any_city.look(f"reports?before={mine[-1]['id']}")["reports"] == [one for one in reports if one["id"] < mine[-1]["id"]]
    # A closed room can be reported.
    any_city.close_room(room)
    assert a.client.post(f"{C}/rooms/{r}/report/{e}", {"reason": "終了後"}).status == 200
    assert len(control_texts(any_city)) == before + 4


def test_reports_are_bounded(any_city):
    person = any_city.person()
    path = f"{C}/rooms/{quote('!nothing')}/report"
    assert person.client.post(path, {"reason": "あ" * 1001}).told == (413, "M_TOO_LARGE")
    answers = [person.client.post(path, {"reason": "x"}).status for _ in range(52)]
    assert answers == [200] * 50 + [429] * 2
    assert person.client.post(f"{C}/users/{quote(person.user_id)}/report", {"reason": 3}).told == (400, "M_BAD_JSON")


# Events by time ------------------------------------------------------------------------------------------------------


def test_the_event_closest_to_a_time(any_city, people):
    a, b, former, outsider = people
    room = any_city.room(a, b, former)
    events = []
    for i in range(5):
        event = a.client.say(room, str(i))
        events.append((event, a.client.ok("GET", f"{C}/rooms/{quote(room)}/event/{quote(event)}")["origin_server_ts"]))
        time.sleep(0.02)
    path = f"{V1}/rooms/{quote(room)}/timestamp_to_event"

    def closest(ts: int, direction: str):
        return b.client.get(f"{path}?ts={ts}&dir={direction}")

    for event, ts in events:
        for direction in ("f", "b"):
            assert closest(ts, direction).json == {"event_id": event, "origin_server_ts": ts}
    between = (events[1][1] + events[2][1]) // 2
    assert closest(between, "f").json["event_id"] == events[2][0]
    assert closest(between, "b").json["event_id"] == events[1][0]
    assert closest(0, "f").json["event_id"] == a.client.messages(room, "f")[0]["event_id"]
    assert closest(events[-1][1] + 10**9, "b").json["event_id"] == events[-1][0]
    assert closest(0, "b").told == (404, "M_NOT_FOUND")
    assert closest(events[-1][1] + 10**9, "f").told == (404, "M_NOT_FOUND")
    assert b.client.get(f"{path}?ts=x&dir=f").told == (400, "M_INVALID_PARAM")
    any_city.change_members(room, remove=[former])
    for person in (outsider, former):
        assert person.client.get(f"{path}?ts=0&dir=f").told == (403, "M_FORBIDDEN")
    any_city.close_room(room)
    assert closest(events[0][1], "f").json["event_id"] == events[0][0]


# Summaries -----------------------------------------------------------------------------------------------------------


def test_a_citys_rooms_are_summed_up_for_their_members_only(any_city, people):
    a, b, former, outsider = people
    room = any_city.room(a, b, former, name="会議の部屋")
    any_city.change_members(room, remove=[former])
    path = f"{V1}/room_summary/{quote(room)}"
    told = a.client.ok("GET", path)
    assert told["name"] == "会議の部屋" and told["num_joined_members"] == 3 and told["membership"] == "join"
    assert told["join_rule"] == "invite" and told["room_version"] == "12" and told["world_readable"] is False
    assert "topic" not in told and "allowed_room_ids" not in told
    assert a.client.ok("GET", f"/_matrix/client/unstable/im.nheko.summary/rooms/{quote(room)}/summary") == told
    nothing = outsider.client.get(f"{V1}/room_summary/{quote('!nothing')}")
    for person in (outsider, former):
        answer = person.client.get(path)
        assert answer.told == (404, "M_NOT_FOUND") and answer.json == nothing.json, "as one that does not exist"
    assert outsider.client.get(f"{V1}/room_summary/{quote('#x:' + any_city.server_name)}").told == (404, "M_NOT_FOUND")
    any_city.close_room(room)
    assert a.client.ok("GET", path)["name"] == "会議の部屋"
    # Who is invited sees what they are invited to.
    direct = make(a, invite=[b.user_id], is_direct=True)
    assert b.client.ok("GET", f"{V1}/room_summary/{quote(direct)}")["membership"] == "invite"


def test_public_and_knockable_rooms_are_summed_up_for_all(open_server):
    a, b = open_server.register(), open_server.register()
    for rule, seen in (("public", True), ("knock", True), ("invite", False), ("private", False)):
        room = make(a, name=rule, initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": rule}}])
        answer = b.client.get(f"{V1}/room_summary/{quote(room)}")
        if seen:
            assert answer.json["join_rule"] == rule and answer.json["membership"] == "leave"
        else:
            assert answer.told == (404, "M_NOT_FOUND"), rule
    name = f"summary{secrets.token_hex(3)}"
    room = make(a, preset="public_chat", room_alias_name=name, topic="主題", creation_content={"type": "m.space"})
    told = b.client.ok("GET", f"{V1}/room_summary/{quote(f'#{name}:{open_server.server_name}')}")
    assert told["room_id"] == room and told["topic"] == "主題" and told["room_type"] == "m.space"
    a.client.ok("POST", f"{C}/rooms/{quote(room)}/ban", {"user_id": b.user_id})
    assert b.client.get(f"{V1}/room_summary/{quote(room)}").told == (404, "M_NOT_FOUND")


# Spaces --------------------------------------------------------------------------------------------------------------


def put_child(person: Person, space: str, room: str, **content) -> None:
    answer = put_state(person, space, "m.space.child", {"via": ["example.jp"], **content}, room)
    assert answer.status == 200, answer


def tree(person: Person, space: str, **query) -> dict:
    return person.client.ok("GET", f"{V1}/rooms/{quote(space)}/hierarchy", query=query)


def test_a_space_is_walked_depth_first(open_server):
    a, b = open_server.register(), open_server.register()
    space = make(a, name="space", preset="public_chat", creation_content={"type": "m.space"})
    inner = make(a, name="inner", preset="public_chat", creation_content={"type": "m.space"})
    rooms = [make(a, name=f"room{i}", preset="public_chat") for i in range(4)]
    hidden = make(a, name="hidden")
    put_child(a, space, rooms[0], order="b", suggested=True)
    put_child(a, space, inner, order="a")
    put_child(a, space, rooms[1])
    put_child(a, space, hidden)
    put_child(a, inner, rooms[2], suggested=True)
    put_child(a, inner, space)  # a circle
    put_state(a, space, "m.space.child", {}, rooms[3])  # taken out
    names = lambda told: [room["name"] for room in told["rooms"]]  # noqa: E731
    whole = tree(b, space)
    assert names(whole) == ["space", "inner", "room2", "room0", "room1"] and "next_batch" not in whole
    assert names(tree(a, space)) == ["space", "inner", "room2", "room0", "room1", "hidden"], "its member sees it"
    first = whole["rooms"][0]
    assert [child["state_key"] for child in first["children_state"]] == [inner, rooms[0], rooms[1], hidden]
    assert set(first["children_state"][0]) == {"type", "state_key", "content", "sender", "origin_server_ts"}
    assert first["room_type"] == "m.space" and first["num_joined_members"] == 1
    assert whole["rooms"][2]["children_state"] == []
    assert names(tree(b, space, max_depth=1)) == ["space", "inner", "room0", "room1"]
    assert names(tree(b, space, max_depth=0)) == ["space"]
    assert names(tree(b, space, suggested_only="true")) == ["space", "room0"]
    told, start = [], None
    while True:
        page = tree(b, space, limit=2, **({"from": start} if start else {}))
        assert len(page["rooms"]) <= 2
        told += names(page)
        start = page.get("next_batch")
        if start is None:
            break
    assert told == names(whole)
    path = f"{V1}/rooms/{quote(space)}/hierarchy"
    start = tree(b, space, limit=2)["next_batch"]
    for query in (f"from={start}&suggested_only=true", f"from={start}&max_depth=1", "from=x"):
        assert b.client.get(f"{path}?{query}").told == (400, "M_INVALID_PARAM"), query
    for room in (hidden, "!nothing"):
        assert b.client.get(f"{V1}/rooms/{quote(room)}/hierarchy").told == (403, "M_FORBIDDEN")


def test_a_citys_room_is_a_hierarchy_for_its_members_only(any_city, people):
    a, _, former, outsider = people
    room = any_city.room(a, former)
    any_city.change_members(room, remove=[former])
    assert len(tree(a, room)["rooms"]) == 1
    for person in (former, outsider):
        assert person.client.get(f"{V1}/rooms/{quote(room)}/hierarchy").told == (403, "M_FORBIDDEN")
    any_city.close_room(room)
    assert len(tree(a, room)["rooms"]) == 1


# Upgrades ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old,new", [("10", "11"), ("10", "12"), ("11", "12"), ("12", "12"), ("12", "11"), ("12", "10")])
def test_a_room_is_upgraded(open_server, old, new):
    a, b, banned, outsider = (open_server.register() for _ in range(4))
    name = f"upgrade{secrets.token_hex(3)}"
    room = make(a, room_version=old, preset="public_chat", name="古い部屋", topic="主題", room_alias_name=name,
                visibility="public", power_level_content_override={"users": {b.user_id: 50} | ({a.user_id: 100} if old != "12" else {})})
    assert join(b, room).status == 200
    a.client.ok("POST", f"{C}/rooms/{quote(room)}/ban", {"user_id": banned.user_id, "reason": "x"})
    path = f"{C}/rooms/{quote(room)}/upgrade"
    assert b.client.post(path, {"new_version": new}).told == (403, "M_FORBIDDEN")
    assert outsider.client.post(path, {"new_version": new}).told == (403, "M_FORBIDDEN")
    assert a.client.post(path, {"new_version": "9"}).told == (400, "M_UNSUPPORTED_ROOM_VERSION")
    assert a.client.post(path, {"new_version": "x.y"}).told == (400, "M_UNSUPPORTED_ROOM_VERSION")
    made = a.client.ok("POST", path, {"new_version": new, "additional_creators": [b.user_id]})["replacement_room"]
    assert a.client.state(room, "m.room.tombstone")["replacement_room"] == made
    create = a.client.state(made, "m.room.create")
    assert create["predecessor"]["room_id"] == room and create["room_version"] == new
    assert create.get("additional_creators") == ([b.user_id] if new == "12" else None)
    assert ("event_id" in create["predecessor"]) == (new != "12")
    assert a.client.state(made, "m.room.name")["name"] == "古い部屋"
    assert a.client.state(made, "m.room.topic")["topic"] == "主題"
    assert a.client.state(made, "m.room.join_rules")["join_rule"] == "public"
    alias = f"#{name}:{open_server.server_name}"
    assert b.client.ok("GET", f"{C}/directory/room/{quote(alias)}")["room_id"] == made
    assert a.client.state(made, "m.room.canonical_alias")["alias"] == alias
    listed = lambda one: outsider.client.ok("GET", f"{C}/directory/list/room/{quote(one)}")["visibility"]  # noqa: E731
    assert listed(made) == "public"
    levels = a.client.state(made, "m.room.power_levels")
    if new == "12":
        assert not {a.user_id, b.user_id} & set(levels["users"]), "creators are not among the users"
    else:
        assert levels["users"][a.user_id] == 100 and levels["users"][b.user_id] == 50
    # In the old room only those with power go on writing.
    late = b.client.put(f"{C}/rooms/{quote(room)}/send/m.room.message/late", {"msgtype": "m.text", "body": "x"})
    assert late.status == 200, "power 50"
    assert a.client.state(room, "m.room.power_levels")["events_default"] == 50
    assert join(b, made).status == 200 and join(outsider, made).status == 200
    assert join(banned, made).told == (403, "M_FORBIDDEN"), "bans are taken over"
    b.client.say(made, "新しい部屋で")
    # Who has power without end, or the most there is, may go on deciding.
    assert put_state(a, made, "m.room.name", {"name": "新しい部屋"}).status == 200
    assert put_state(b, made, "m.room.tombstone", {"body": "x", "replacement_room": room}).status == (200 if new == "12" else 403)


def test_a_space_takes_its_rooms_along(open_server):
    a = open_server.register()
    space = make(a, creation_content={"type": "m.space"}, room_version="11")
    room = make(a)
    put_child(a, space, room)
    made = a.client.ok("POST", f"{C}/rooms/{quote(space)}/upgrade", {"new_version": "12"})["replacement_room"]
    assert a.client.state(made, "m.room.create")["type"] == "m.space"
    assert a.client.state(made, "m.space.child", room)["via"]


def test_what_people_set_for_a_room_goes_along_with_its_upgrade(open_server):
    """Tags, that it is direct, and their own push rules: with whoever upgrades, and with who comes after."""
    a, b, c = (open_server.register() for _ in range(3))
    room = make(a, preset="public_chat")
    assert join(b, room).status == 200
    mute = {"conditions": [{"kind": "event_match", "key": "room_id", "pattern": room}], "actions": []}
    for one in (a, b, c):
        own = f"{C}/user/{quote(one.user_id)}"
        if one is not c:
            one.client.ok("PUT", f"{own}/rooms/{quote(room)}/tags/m.favourite", {"order": 0.5})
        one.client.ok("PUT", f"{own}/account_data/m.direct", {a.user_id: [room, "!other:x"]})
        one.client.ok("PUT", f"{C}/pushrules/global/override/{quote(room)}", mute)
        one.client.ok("PUT", f"{C}/pushrules/global/room/{quote(room)}", {"actions": ["notify"]})
    made = a.client.ok("POST", f"{C}/rooms/{quote(room)}/upgrade", {"new_version": "12"})["replacement_room"]
    for one in (b, c):
        assert join(one, made).status == 200
    for one, was_there in ((a, True), (b, True), (c, False)):
        own = f"{C}/user/{quote(one.user_id)}"
        assert one.client.ok("GET", f"{own}/rooms/{quote(made)}/tags")["tags"] == ({"m.favourite": {"order": 0.5}} if was_there else {})
        assert (made in one.client.ok("GET", f"{own}/account_data/m.direct")[a.user_id]) == was_there
        rules = one.client.ok("GET", f"{C}/pushrules/")["global"]
        names = {kind: [rule["rule_id"] for rule in rules[kind]] for kind in ("override", "room")}
        assert (made in names["override"]) == was_there and (made in names["room"]) == was_there, names
        if was_there:
            muted = next(rule for rule in rules["override"] if rule["rule_id"] == made)
            assert muted["conditions"][0]["pattern"] == made


def test_rooms_of_the_city_are_not_upgraded(any_city, people):
    a, b, former, outsider = people
    room = any_city.room(a, b, former)
    any_city.change_members(room, remove=[former])
    direct = make(a, invite=[b.user_id], is_direct=True)
    staff = any_city.first_staff()
    mine = any_city.room(a, staff)
    closed = any_city.room(a)
    any_city.close_room(closed)
    for person, one in ((a, room), (former, room), (outsider, room), (a, direct), (staff, mine), (a, closed)):
        answer = person.client.post(f"{C}/rooms/{quote(one)}/upgrade", {"new_version": "12"})
        assert answer.told == (403, "M_FORBIDDEN"), answer
    assert not any(event["type"] == "m.room.tombstone" for event in a.client.messages(room) + a.client.messages(direct))


# Room versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["10", "11", "12"])
def test_each_version_is_made_joined_and_ruled(open_server, version):
    a, b, c = (open_server.register() for _ in range(3))
    room = make(a, room_version=version, invite=[b.user_id], preset="trusted_private_chat")
    assert a.client.state(room, "m.room.create")["room_version"] == version
    assert join(b, room).status == 200 and join(c, room).told == (403, "M_FORBIDDEN")
    # A trusted person has the creator's power: as a creator in version 12, by level before.
    assert put_state(b, room, "m.room.name", {"name": "x"}).status == 200
    levels = a.client.state(room, "m.room.power_levels")
    named = {**levels, "users": {**levels["users"], a.user_id: 100}}
    if version == "12":
        assert levels["users"] == {}
        assert put_state(a, room, "m.room.power_levels", named).told == (403, "M_FORBIDDEN"), "creators have no level"
        kick = a.client.post(f"{C}/rooms/{quote(room)}/kick", {"user_id": b.user_id})
        assert kick.told == (403, "M_FORBIDDEN"), "creators are equals"
    else:
        assert levels["users"] == {a.user_id: 100, b.user_id: 100}


# Knocking and restricted rooms ---------------------------------------------------------------------------------------


def rule(name: str, *rooms: str) -> list[dict]:
    allow = {"allow": [{"type": "m.room_membership", "room_id": room} for room in rooms]} if rooms else {}
    return [{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": name, **allow}}]


def knock(person: Person, room: str, reason: str = "入れてください"):
    return person.client.post(f"{C}/knock/{quote(room)}", {"reason": reason})


@pytest.mark.parametrize("version", ["10", "11", "12"])
def test_who_knocks_is_let_in(open_server, version):
    a, b, c = (open_server.register() for _ in range(3))
    room = make(a, name="入口", room_version=version, initial_state=rule("knock"))
    assert join(b, room).told == (403, "M_FORBIDDEN")
    since = b.client.sync()["next_batch"]
    assert knock(b, room).json == {"room_id": room}
    told = b.client.sync(since)["rooms"]["knock"][room]["knock_state"]["events"]
    assert any(event["type"] == "m.room.name" and event["content"]["name"] == "入口" for event in told)
    assert any(event["type"] == "m.room.create" for event in told)
    assert a.client.state(room, "m.room.member", b.user_id)["membership"] == "knock"
    assert a.client.state(room, "m.room.member", b.user_id)["reason"] == "入れてください"
    # Who knocks reads nothing yet.
    assert b.client.get(f"{C}/rooms/{quote(room)}/messages?dir=b").told == (403, "M_FORBIDDEN")
    a.client.ok("POST", f"{C}/rooms/{quote(room)}/invite", {"user_id": b.user_id})
    assert join(b, room).status == 200
    assert knock(b, room).told == (403, "M_FORBIDDEN"), "a member does not knock"
    # A knock is taken back, or turned down.
    assert knock(c, room).status == 200
    c.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
    assert knock(c, room).status == 200
    a.client.ok("POST", f"{C}/rooms/{quote(room)}/kick", {"user_id": c.user_id})
    assert a.client.state(room, "m.room.member", c.user_id)["membership"] == "leave"
    a.client.ok("POST", f"{C}/rooms/{quote(room)}/ban", {"user_id": c.user_id})
    assert knock(c, room).told == (403, "M_FORBIDDEN")
    assert knock(c, make(a)).told == (403, "M_FORBIDDEN"), "an invited-only room"
    assert knock(c, "!nothing").told == (404, "M_NOT_FOUND")
    assert knock(c, room, "あ" * 1001).told == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("version", ["10", "11", "12"])
@pytest.mark.parametrize("name", ["restricted", "knock_restricted"])
def test_members_of_another_room_come_in(open_server, version, name):
    a, b, c, former = (open_server.register() for _ in range(4))
    lobby = make(a, preset="public_chat", room_version=version)
    room = make(a, room_version=version, initial_state=rule(name, "!nothing", lobby))
    for person in (b, former):
        assert join(person, lobby).status == 200
    former.client.ok("POST", f"{C}/rooms/{quote(lobby)}/leave", {})
    assert b.client.ok("GET", f"{V1}/room_summary/{quote(room)}")["allowed_room_ids"] == ["!nothing", lobby]
    assert join(b, room).status == 200
    member = a.client.state(room, "m.room.member", b.user_id)
    assert member["join_authorised_via_users_server"] == a.user_id
    for person in (c, former):
        assert join(person, room).told == (403, "M_FORBIDDEN")
        assert person.client.get(f"{V1}/room_summary/{quote(room)}").status == (200 if name == "knock_restricted" else 404)
        assert knock(person, room).status == (200 if name == "knock_restricted" else 403)
    # Whoever has the power to invite stands for it; with nobody left, nobody comes in.
    b.client.say(room, "x")
    assert put_state(a, room, "m.room.power_levels", {**a.client.state(room, "m.room.power_levels"), "invite": 50}).status == 200
    a.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
    assert join(c, lobby).status == 200 and join(c, room).told == (403, "M_FORBIDDEN")


def test_a_city_knows_neither_knocking_nor_restricted_rooms(any_city, people):
    a, b, former, outsider = people
    room = any_city.room(a, former)
    any_city.change_members(room, remove=[former])
    closed = any_city.room(a)
    any_city.close_room(closed)
    for person, one in ((outsider, room), (former, room), (a, room), (outsider, closed), (outsider, "!nothing")):
        assert knock(person, one).told == (403, "M_FORBIDDEN")
    assert outsider.client.post(f"{C}/knock/{quote('#x:' + any_city.server_name)}", {}).told == (403, "M_FORBIDDEN")
    assert a.client.post(f"{C}/createRoom", {"invite": [b.user_id], "initial_state": rule("knock")}).told == (403, "M_FORBIDDEN")


def test_where_everybody_makes_rooms_the_join_rules_are_still_off(fresh):
    server = fresh(config={"policy": {"create_rooms": "everybody"}})
    a, b = server.person(), server.person()
    for name in ("knock", "restricted", "knock_restricted"):
        answer = a.client.post(f"{C}/createRoom", {"initial_state": rule(name, "!x")})
        assert answer.told == (403, "M_FORBIDDEN"), name
    room = make(a)
    assert put_state(a, room, "m.room.join_rules", {"join_rule": "knock"}).told == (403, "M_FORBIDDEN")
    assert put_state(a, room, "m.room.join_rules", {"join_rule": "public"}).status == 200
    assert knock(b, room).told == (403, "M_FORBIDDEN")
    # Not in a list: outsiders are not told that it exists.
    assert b.client.get(f"{V1}/room_summary/{quote(room)}").told == (404, "M_NOT_FOUND")


def test_a_city_that_wants_them_has_them(fresh):
    server = fresh(config={"policy": {"create_rooms": "everybody", "knocking": True, "restricted_joins": True}})
    a, b, c = (server.person() for _ in range(3))
    entrance = make(a, initial_state=rule("knock"))
    assert knock(b, entrance).status == 200
    assert knock(b, make(a)).told == (403, "M_FORBIDDEN")
    assert knock(b, "!nothing").told == (403, "M_FORBIDDEN"), "as a room that one may not knock on"
    city_room = server.room(a, c)
    room = make(a, initial_state=rule("restricted", city_room))
    assert join(c, room).status == 200 and join(b, room).told == (403, "M_FORBIDDEN")
    server.close_room(city_room)
    assert knock(b, city_room).told == (403, "M_FORBIDDEN")


# Shared rooms --------------------------------------------------------------------------------------------------------


def test_rooms_shared_with_somebody(any_city):
    a, b, c = (any_city.person() for _ in range(3))
    both = [any_city.room(a, b) for _ in range(2)]
    any_city.room(a)
    former = any_city.room(a, b)
    any_city.change_members(former, remove=[b])
    for path in (f"{V1}/mutual_rooms", "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms"):
        told = a.client.ok("GET", path, query={"user_id": b.user_id})
        assert set(both) <= set(told["joined"]) and former not in told["joined"]
        assert told["count"] == len(told["joined"]) and "next_batch" not in told
    told = a.client.ok("GET", f"{V1}/mutual_rooms", query={"user_id": c.user_id})
    assert not set(both) & set(told["joined"])
    nobody = a.client.ok("GET", f"{V1}/mutual_rooms", query={"user_id": f"@nobody:{any_city.server_name}"})
    assert nobody == {"joined": [], "count": 0}
    for query in (f"user_id={quote(a.user_id)}", "user_id=x", f"user_id={quote(b.user_id)}&from=x"):
        assert a.client.get(f"{V1}/mutual_rooms?{query}").told == (400, "M_INVALID_PARAM")
    assert a.client.get(f"{V1}/mutual_rooms").told == (400, "M_MISSING_PARAM")


def test_the_directory_knows_colleagues(any_city):
    facility, other = any_city.facility(), any_city.facility("別の事業所")
    a, colleague = any_city.person(facility), any_city.person(facility, name="同僚花子")
    stranger, sharer = any_city.person(other, name="他人花子"), any_city.person(other, name="同室花子")
    any_city.room(a, sharer)

    def found(term: str) -> list[str]:
        return [one["user_id"] for one in a.client.ok("POST", f"{C}/user_directory/search", {"search_term": term})["results"]]

    assert found("同僚花子") == [colleague.user_id] and found("同室花子") == [sharer.user_id]
    assert found("他人花子") == [] and stranger.user_id not in found("花子")


# Invite filters ------------------------------------------------------------------------------------------------------


def set_data(person: Person, kind: str, content: dict) -> None:
    person.client.ok("PUT", f"{C}/user/{quote(person.user_id)}/account_data/{kind}", content)


@pytest.mark.parametrize("kind", ["m.invite_permission_config", "org.matrix.msc4380.invite_permission_config"])
def test_invitations_are_blocked(any_city, kind):
    a, b = any_city.person(), any_city.person()
    any_city.room(a, b)
    direct = {"invite": [b.user_id], "is_direct": True}
    set_data(b, kind, {"default_action": "block"})
    assert a.client.post(f"{C}/createRoom", direct).told == (403, "M_INVITE_BLOCKED")
    # The city's invitations always arrive.
    assert joined(b, any_city.room(a, b))
    for content in ({"default_action": "allow"}, {"default_action": 1}, {}):
        set_data(b, kind, content)
        assert a.client.post(f"{C}/createRoom", direct).status == 200, content


def test_invitations_by_sender(open_server):
    a, b, c = (open_server.register() for _ in range(3))
    kind = "org.matrix.msc4155.invite_permission_config"
    room, other = make(a), make(c)
    invite = lambda person, one: person.client.post(f"{C}/rooms/{quote(one)}/invite", {"user_id": b.user_id})  # noqa: E731
    set_data(b, kind, {"blocked_users": [f"@{a.user_id[1:4]}*"], "allowed_users": [c.user_id]})
    assert invite(a, room).told == (403, "M_INVITE_BLOCKED") and invite(c, other).status == 200
    set_data(b, kind, {"ignored_users": [a.user_id]})
    assert invite(a, room).status == 200
    told = b.client.sync()["rooms"]["invite"]
    assert other in told and room not in told
    set_data(b, kind, {"blocked_servers": ["*"], "enabled": False})
    assert room in b.client.sync()["rooms"]["invite"]


# Presence ------------------------------------------------------------------------------------------------------------


def presence(person: Person, of: Person) -> dict:
    return person.client.ok("GET", f"{C}/presence/{quote(of.user_id)}/status")


def test_presence_is_told_to_those_who_share_a_room(open_server):
    a, b, c = (open_server.register() for _ in range(3))
    room = make(a, invite=[b.user_id])
    assert join(b, room).status == 200
    path = f"{C}/presence/{quote(a.user_id)}/status"
    since = b.client.sync(set_presence="offline")["next_batch"]
    a.client.ok("PUT", path, {"presence": "unavailable", "status_msg": "外出中"})
    told = b.client.sync(since, set_presence="offline", timeout=5000)["presence"]["events"]
    (event,) = [one for one in told if one["sender"] == a.user_id]
    assert event["type"] == "m.presence" and event["content"]["presence"] == "unavailable"
    assert event["content"]["status_msg"] == "外出中"
    assert presence(b, a)["presence"] == "unavailable" and presence(b, b)["presence"] == "offline"
    # Syncing says that one is there, unless it says otherwise.
    a.client.sync()
    assert presence(b, a)["presence"] == "online" and presence(b, a)["currently_active"] is True
    assert presence(b, a)["status_msg"] == "外出中"
    assert c.client.get(path).told == (403, "M_FORBIDDEN")
    assert a.user_id not in str(c.client.sync().get("presence", {}))
    assert c.client.put(path, {"presence": "online"}).told == (403, "M_FORBIDDEN")
    assert a.client.put(path, {"presence": "asleep"}).told == (400, "M_INVALID_PARAM")
    assert a.client.put(path, {"presence": "online", "status_msg": "あ" * 256}).told == (400, "M_INVALID_PARAM")
    assert a.client.get(f"{C}/sync?set_presence=asleep").told == (400, "M_INVALID_PARAM")


def test_a_city_keeps_no_presence(any_city, people):
    a, b, _, outsider = people
    any_city.room(a, b)
    path = f"{C}/presence/{quote(a.user_id)}/status"
    a.client.ok("PUT", path, {"presence": "online", "status_msg": "います"})
    assert presence(b, a) == {"presence": "offline"}
    assert "presence" not in b.client.sync()
    lonely = any_city.person()
    assert lonely.client.get(path).told in ((403, "M_FORBIDDEN"), (200, None)), "200 where the announcement room is shared"


# What clients of before /sync ask ------------------------------------------------------------------------------------


def test_initial_sync_and_one_event(any_city, people):
    a, b, former, outsider = people
    room = any_city.room(a, b, former)
    events = [b.client.say(room, str(i)) for i in range(3)]
    any_city.change_members(room, remove=[former])
    whole = a.client.ok("GET", f"{C}/initialSync", query={"limit": 2})
    mine = next(one for one in whole["rooms"] if one["room_id"] == room)
    assert mine["membership"] == "join" and len(mine["messages"]["chunk"]) == 2 and mine["visibility"] == "private"
    assert any(event["type"] == "m.room.create" for event in mine["state"]) and whole["end"]
    older = a.client.ok("GET", f"{C}/rooms/{quote(room)}/messages", query={"dir": "b", "from": mine["messages"]["start"]})
    assert events[0] in [event["event_id"] for event in older["chunk"]]
    assert events[2] not in [event["event_id"] for event in older["chunk"]]
    # By this clients peek: nobody does, members neither.
    assert a.client.get(f"{C}/rooms/{quote(room)}/initialSync").told == (403, "M_FORBIDDEN")
    path = f"{C}/events/{quote(events[0])}"
    assert a.client.ok("GET", path)["content"]["body"] == "0"
    for person in (former, outsider):
        assert person.client.get(path).told == (404, "M_NOT_FOUND")
        assert person.client.get(f"{C}/rooms/{quote(room)}/initialSync").told == (403, "M_FORBIDDEN")
        assert room not in [one["room_id"] for one in person.client.ok("GET", f"{C}/initialSync")["rooms"]]
    assert a.client.get(f"{C}/events/{quote('$nothing')}").told == (404, "M_NOT_FOUND")
    assert a.client.get(f"{C}/initialSync?limit=x").told == (400, "M_INVALID_PARAM")
    any_city.close_room(room)
    assert a.client.ok("GET", path)["event_id"] == events[0]


def test_a_networks_list_is_its_appservices(any_city, people, open_server):
    a, _, _, _ = people
    room = any_city.room(a)
    path = f"{C}/directory/list/appservice/irc/"
    assert a.client.put(path + quote(room), {"visibility": "public"}).told == (403, "M_FORBIDDEN")
    person = open_server.register()
    made = make(person, preset="public_chat")
    assert person.client.put(path + quote(made), {"visibility": "public"}).told == (403, "M_FORBIDDEN")
    listed = person.client.ok("POST", f"{C}/publicRooms", {"third_party_instance_id": "irc"})
    assert listed["chunk"] == []
