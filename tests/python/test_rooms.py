"""Who reads and writes what in a room (REQUIREMENTS C15, H6, H18, H19; DESIGN 12–15), on both databases."""

from __future__ import annotations

import dataclasses
import json
import secrets

import pytest

from harness import Answer, Client, Person, Server, quote, wait_for

R = "/_matrix/client/v3/rooms/"
FORBIDDEN = (403, "M_FORBIDDEN")
NOT_FOUND = (404, "M_NOT_FOUND")
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360f8ffbf1e0006820282bf4b"
    "6ff40000000049454e44ae426082")


@dataclasses.dataclass
class World:
    """A room and people in every relation to it."""

    server: Server
    room: str
    member: Person
    invited: Person
    left: Person
    removed: Person
    never: Person
    event: str  # written before anyone left
    late: str  # written after they had left
    state_event: str
    mxc: str


def upload(person: Person, content: bytes = PNG, kind: str = "image/png") -> str:
    answer = person.client.post("/_matrix/media/v3/upload?filename=photo.png", body=content,
                                headers={"Content-Type": kind})
    assert answer.status == 200, answer
    return answer.json["content_uri"]


def media_path(mxc: str) -> str:
    return "/_matrix/client/v1/media/download/" + mxc.removeprefix("mxc://")


@pytest.fixture(scope="module")
def people(any_city: Server) -> list[Person]:
    """Five people of three facilities."""
    facilities = [any_city.facility() for _ in range(3)]
    return [any_city.person(facilities[n % 3]) for n in range(5)]


@pytest.fixture(scope="module")
def world(any_city: Server, people: list[Person]) -> World:
    server = any_city
    member, invited, left, removed, never = people
    room = server.room(member, left, removed)
    mxc = upload(member)
    member.client.say(room, "写真です", msgtype="m.image", url=mxc)
    event = member.client.say(room, "発熱が続いています")
    member.client.say(room, "返信", **{"m.relates_to": {"rel_type": "m.thread", "event_id": event}})
    # Whom the city adds is in at once; an invitation that stays open comes from a member with power (city staff).
    staff = server.first_staff()
    server.change_members(room, add=[staff])
    bot = server.as_city()
    levels = bot.ok("GET", f"{R}{quote(room)}/state/m.room.power_levels")
    levels["users"][staff.user_id] = 50
    bot.ok("PUT", f"{R}{quote(room)}/state/m.room.power_levels", levels)
    staff.client.ok("POST", f"{R}{quote(room)}/invite", {"user_id": invited.user_id})
    left.client.ok("POST", f"{R}{quote(room)}/leave", {})
    server.change_members(room, remove=[removed])
    late = member.client.say(room, "退出後の書き込み")
    state = member.client.ok("GET", f"{R}{quote(room)}/state/m.room.name?format=event")["event_id"]
    return World(server, room, member, invited, left, removed, never, event, late, state, mxc)


READS = {
    "event": lambda w: f"{R}{quote(w.room)}/event/{quote(w.event)}",
    "late event": lambda w: f"{R}{quote(w.room)}/event/{quote(w.late)}",
    "state event": lambda w: f"{R}{quote(w.room)}/event/{quote(w.state_event)}",
    "messages": lambda w: f"{R}{quote(w.room)}/messages?dir=b",
    "messages forwards": lambda w: f"{R}{quote(w.room)}/messages?dir=f",
    "context": lambda w: f"{R}{quote(w.room)}/context/{quote(w.event)}",
    "state": lambda w: f"{R}{quote(w.room)}/state",
    "one state": lambda w: f"{R}{quote(w.room)}/state/m.room.name",
    "one state with a slash": lambda w: f"{R}{quote(w.room)}/state/m.room.name/",
    "room sheet": lambda w: f"{R}{quote(w.room)}/state/jp.heya.room/",
    "members": lambda w: f"{R}{quote(w.room)}/members",
    "joined members": lambda w: f"{R}{quote(w.room)}/joined_members",
    "relations": lambda w: f"/_matrix/client/v1/rooms/{quote(w.room)}/relations/{quote(w.event)}",
    "thread": lambda w: f"/_matrix/client/v1/rooms/{quote(w.room)}/relations/{quote(w.event)}/m.thread",
    "thread of a type": lambda w: f"/_matrix/client/v1/rooms/{quote(w.room)}/relations/{quote(w.event)}/m.thread/m.room.message",
}

WRITES = {
    "send": lambda w: ("PUT", f"{R}{quote(w.room)}/send/m.room.message/{secrets.token_hex(4)}", {"msgtype": "m.text", "body": "x"}),
    "state": lambda w: ("PUT", f"{R}{quote(w.room)}/state/m.room.topic", {"topic": "x"}),
    "redact": lambda w: ("PUT", f"{R}{quote(w.room)}/redact/{quote(w.event)}/{secrets.token_hex(4)}", {}),
    "typing": lambda w: ("PUT", f"{R}{quote(w.room)}/typing/{{me}}", {"typing": True, "timeout": 1000}),
    "receipt": lambda w: ("POST", f"{R}{quote(w.room)}/receipt/m.read/{quote(w.event)}", {}),
    "private receipt": lambda w: ("POST", f"{R}{quote(w.room)}/receipt/m.read.private/{quote(w.event)}", {}),
    "read markers": lambda w: ("POST", f"{R}{quote(w.room)}/read_markers", {"m.fully_read": w.event, "m.read": w.event}),
    "invite": lambda w: ("POST", f"{R}{quote(w.room)}/invite", {"user_id": w.never.user_id}),
    "kick": lambda w: ("POST", f"{R}{quote(w.room)}/kick", {"user_id": w.member.user_id}),
    "ban": lambda w: ("POST", f"{R}{quote(w.room)}/ban", {"user_id": w.member.user_id}),
    "unban": lambda w: ("POST", f"{R}{quote(w.room)}/unban", {"user_id": w.member.user_id}),
}


def call(person: Person, method: str, path: str, body=None) -> Answer:
    return person.client.request(method, path.replace("{me}", quote(person.user_id)), json_body=body)


@pytest.mark.parametrize("what", READS)
@pytest.mark.parametrize("who", ["member", "invited", "left", "removed", "never"])
def test_reading(world, who, what):
    """C15: rights follow membership. Former members read nothing (DESIGN 14)."""
    answer = call(getattr(world, who), "GET", READS[what](world))
    if who == "member":
        assert answer.status == 200, answer
    else:
        # Of one event it is not told whether it is there (client-server API, `GET …/event/{eventId}`).
        assert answer.told == (NOT_FOUND if what.endswith("event") else FORBIDDEN), answer
        assert "発熱" not in answer.text


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("who", ["invited", "left", "removed", "never"])
def test_writing(world, who, what):
    method, path, body = WRITES[what](world)
    assert call(getattr(world, who), method, path, body).told == FORBIDDEN


@pytest.mark.parametrize("what", ["state", "invite", "kick", "ban", "unban"])
def test_members_have_no_power(world, what):
    """DESIGN 14: members 0; invite, kick, ban, state 50."""
    method, path, body = WRITES[what](world)
    if "user_id" in body and what in ("kick", "ban"):
        body = {"user_id": world.server.first_staff().user_id}
    assert call(world.member, method, path, body).told == FORBIDDEN


@pytest.mark.parametrize("who", ["left", "removed", "never"])
def test_nobody_joins_uninvited(world, who):
    """H6; after a removal a new approval is needed."""
    person = getattr(world, who)
    for path in (f"{R}{quote(world.room)}/join", f"/_matrix/client/v3/join/{quote(world.room)}"):
        assert person.client.post(path).told == FORBIDDEN


@pytest.mark.parametrize("who", ["member", "invited", "left", "removed", "never"])
def test_search_sees_what_the_searcher_sees(world, who):
    """C15, DESIGN 16. A word of two characters is found."""
    person = getattr(world, who)
    for filter_ in ({}, {"rooms": [world.room]}):
        body = {"search_categories": {"room_events": {"search_term": "発熱", "filter": filter_}}}
        answer = person.client.post("/_matrix/client/v3/search", body)
        if answer.status == 200:
            found = answer.json["search_categories"]["room_events"]
            events = [hit["result"]["event_id"] for hit in found.get("results", [])]
            assert events == ([world.event] if who == "member" else [])
            assert found["count"] == len(events)
        else:
            assert who != "member" and answer.told == FORBIDDEN


@pytest.mark.parametrize("who", ["member", "invited", "left", "removed", "never"])
def test_media_belong_to_the_room(world, who):
    """C15, DESIGN 12: whoever may see a linked event; others are told as little as about a missing one."""
    client: Client = getattr(world, who).client
    path = media_path(world.mxc)
    missing = client.get(media_path(f"mxc://{world.server.server_name}/{'a' * 24}"))
    for one in (path, path + "/photo.png", path.replace("/download/", "/thumbnail/") + "?width=32&height=32"):
        answer = client.get(one)
        if who == "member":
            assert answer.status == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        else:
            assert (answer.status, answer.content) == (missing.status, missing.content), one
            assert answer.told in (NOT_FOUND, FORBIDDEN)
    for frozen in ("/_matrix/media/v3/download/", "/_matrix/media/r0/download/", "/_matrix/media/v3/thumbnail/"):
        assert client.get(frozen + world.mxc.removeprefix("mxc://") + "?width=1&height=1").status == 404


@pytest.mark.parametrize("who", ["invited", "left", "removed", "never"])
def test_sync_holds_nothing_of_the_room(world, who):
    person = getattr(world, who)
    answer = person.client.sync()
    assert world.room not in answer.get("rooms", {}).get("join", {})
    full = person.client.request("GET", "/_matrix/client/v3/sync", query={
        "filter": '{"room":{"include_leave":true}}', "full_state": "true"})
    for secret in ("発熱", "退出後", world.mxc):
        assert secret not in full.text, secret
    if who == "invited":
        kinds = {event["type"] for event in answer["rooms"]["invite"][world.room]["invite_state"]["events"]}
        assert "m.room.member" in kinds and "m.room.create" in kinds


@pytest.mark.parametrize("who", ["left", "removed"])
def test_a_former_member_is_told_that_it_ended_and_nothing_later(world, who):
    """A client that was away learns of the leave from its old token; of nothing written later."""
    person = getattr(world, who)
    answer = person.client.get("/_matrix/client/v3/joined_rooms")
    assert world.room not in answer.json["joined_rooms"]
    assert "退出後" not in person.client.get(
        "/_matrix/client/v3/sync", query={"filter": '{"room":{"include_leave":true}}'}).text


def test_account_data_of_a_room_is_ones_own(world):
    base = "/_matrix/client/v3/user/"
    path = f"{base}{quote(world.member.user_id)}/rooms/{quote(world.room)}/account_data/jp.example.test"
    assert world.member.client.put(path, {"a": 1}).status == 200
    assert world.never.client.get(path).told == FORBIDDEN
    assert world.never.client.put(path, {"a": 2}).told == FORBIDDEN
    own = f"{base}{quote(world.never.user_id)}/rooms/{quote(world.room)}/account_data/jp.example.test"
    assert world.never.client.put(own, {"a": 1}).told == FORBIDDEN


def test_a_room_that_does_not_exist_looks_like_one_of_others(world):
    """Nobody can try out room ids: same bytes."""
    other = "!" + "A" * 43
    for path in ("/messages?dir=b", "/state", "/members", "/joined_members", f"/event/{quote(world.event)}"):
        real = world.never.client.get(f"{R}{quote(world.room)}{path}")
        fake = world.never.client.get(f"{R}{quote(other)}{path}")
        assert (real.status, real.content) == (fake.status, fake.content), path
    for method, path, body in (
        ("PUT", "/send/m.room.message/t1", {"msgtype": "m.text", "body": "x"}), ("POST", "/join", {}), ("POST", "/leave", {}),
        ("POST", "/forget", {}), ("POST", "/invite", {"user_id": world.never.user_id}),
        ("POST", f"/receipt/m.read/{quote(world.event)}", {}), ("PUT", "/state/m.room.topic", {"topic": "x"}),
        ("PUT", f"/redact/{quote(world.event)}/t2", {}), ("PUT", "/typing/{me}", {"typing": True, "timeout": 1}),
    ):
        real = call(world.never, method, f"{R}{quote(world.room)}{path}", body)
        fake = call(world.never, method, f"{R}{quote(other)}{path}", body)
        assert (real.status, real.content) == (fake.status, fake.content), path


def test_events_of_another_room_do_not_leak(world, any_city):
    """An event id with the path of a room that one is in."""
    mine = any_city.room(world.never)
    assert world.never.client.get(f"{R}{quote(mine)}/event/{quote(world.event)}").told == NOT_FOUND
    assert world.never.client.get(f"{R}{quote(mine)}/context/{quote(world.event)}").told == NOT_FOUND
    relations = f"/_matrix/client/v1/rooms/{quote(mine)}/relations/{quote(world.event)}"
    assert world.never.client.get(relations).told == NOT_FOUND
    redact = world.never.client.put(f"{R}{quote(mine)}/redact/{quote(world.event)}/t9", {})
    assert redact.told == NOT_FOUND
    # A relation to an event of a room that one is not in tells nothing about it.
    reply = world.never.client.say(mine, "x", **{"m.relates_to": {"rel_type": "m.thread", "event_id": world.event}})
    seen = world.never.client.get(f"{R}{quote(mine)}/event/{quote(reply)}")
    assert "発熱" not in seen.text
    related = world.member.client.ok(
        "GET", f"/_matrix/client/v1/rooms/{quote(world.room)}/relations/{quote(world.event)}")["chunk"]
    assert reply not in [event["event_id"] for event in related]


def test_media_cannot_be_stolen_by_linking(world, any_city):
    """DESIGN 12: a link counts only if its sender may read the medium."""
    thief = world.never
    room = any_city.room(thief)
    thief.client.say(room, "盗用", msgtype="m.image", url=world.mxc)
    assert thief.client.get(media_path(world.mxc)).status in (403, 404)
    thief.client.ok("PUT", f"/_matrix/client/v3/profile/{quote(thief.user_id)}/avatar_url", {"avatar_url": world.mxc})
    assert thief.client.get(media_path(world.mxc)).status in (403, 404), "by an avatar"


def test_a_newcomer_has_the_past(any_city, people):
    """DESIGN 14: history `shared`; the past before the invitation too. The city's members are added, not asked."""
    old, new = people[0], people[1]
    room = any_city.room(old)
    first = old.client.say(room, "最初の書き込み")
    mxc = upload(old)
    old.client.say(room, "古い写真", msgtype="m.image", url=mxc)
    since = new.client.sync()["next_batch"]
    done = any_city.change_members(room, add=[new])
    assert done == {"added": [new.user_id], "removed": [], "unchanged": []}
    joined = new.client.sync(since)["rooms"]["join"][room]
    events = joined["timeline"]["events"] + joined["state"]["events"]
    assert any(event["type"] == "m.room.create" for event in events)
    assert first in [event["event_id"] for event in new.client.messages(room)]
    assert new.client.get(f"{R}{quote(room)}/event/{quote(first)}").status == 200
    assert new.client.get(media_path(mxc)).content == PNG
    assert any_city.change_members(room, add=[new])["unchanged"] == [new.user_id]
    # Removed, all of it is gone again; added anew, it is back.
    any_city.change_members(room, remove=[new])
    assert new.client.get(f"{R}{quote(room)}/event/{quote(first)}").told == NOT_FOUND
    assert new.client.get(media_path(mxc)).status in (403, 404)
    any_city.change_members(room, add=[new])
    assert new.client.get(f"{R}{quote(room)}/event/{quote(first)}").status == 200


def test_removal_ends_a_waiting_sync_with_the_news(any_city, people):
    a, b = people[0], people[1]
    room = any_city.room(a, b)
    since = b.client.sync()["next_batch"]
    any_city.change_members(room, remove=[b])
    answer = b.client.sync(since, timeout=5000)
    assert room in answer["rooms"]["leave"]
    a.client.say(room, "b には見えない")
    again = b.client.sync(answer["next_batch"])
    assert "見えない" not in str(again)
    # From the old token again, too.
    assert "見えない" not in str(b.client.sync(since))


# DESIGN 14: what a city room is --------------------------------------------------------------------------------------


def _levels(server: Server, room: str) -> dict:
    return server.as_city().ok("GET", f"{R}{quote(room)}/state/m.room.power_levels")


def test_powers_of_a_city_room(any_city, people):
    member = people[0]
    staff = any_city.first_staff()
    room = any_city.room(member, staff, kind="subject", subject={
        "name": f"見本{secrets.token_hex(4)}", "birth_date": "1941-02-03", "address": "〇〇市", "eligibility": "home"})
    state = {(event["type"], event["state_key"]): event
             for event in member.client.ok("GET", f"{R}{quote(room)}/state")}
    create = state[("m.room.create", "")]
    assert create["sender"] == any_city.city_user and create["content"]["room_version"] == "12"
    assert "additional_creators" not in create["content"]
    assert create["content"].get("m.federate", True) is True or create["content"]["m.federate"] is False
    assert state[("m.room.join_rules", "")]["content"]["join_rule"] == "invite"
    assert state[("m.room.guest_access", "")]["content"]["guest_access"] == "forbidden"
    assert state[("m.room.history_visibility", "")]["content"]["history_visibility"] == "shared"
    assert ("m.room.encryption", "") not in state
    assert ("m.room.canonical_alias", "") not in state, "no alias is made from a person's name"
    levels = state[("m.room.power_levels", "")]["content"]
    assert levels["users"] == {staff.user_id: 50}
    for name, level in {"users_default": 0, "events_default": 0, "state_default": 50, "invite": 50, "kick": 50,
                        "ban": 50, "redact": 50}.items():
        assert levels[name] == level, name
    assert levels["notifications"]["room"] == 50
    assert levels["events"].get("m.room.message", 0) == 0
    assert levels["events"].get("m.room.name", levels["state_default"]) == 50
    sheet = state[("jp.heya.room", "")]["content"]
    assert sheet["kind"] == "subject" and sheet["status"] == "open" and isinstance(sheet["room_number"], int)
    assert any(key.startswith("subject") for key in sheet), "DESIGN 14: the subject's reference"
    joined = {key for (kind, key), event in state.items()
              if kind == "m.room.member" and event["content"]["membership"] == "join"}
    assert joined == {any_city.city_user, member.user_id, staff.user_id}
    row = any_city.look(f"rooms/{quote(room)}")
    assert row["room_number"] == sheet["room_number"] and row["members"] and row["status"] == "open"


def test_staff_added_later_have_their_power(any_city, people):
    """DESIGN 14: city staff who are members have 50."""
    staff = any_city.first_staff()
    room = any_city.room(people[0])
    any_city.change_members(room, add=[staff])
    assert _levels(any_city, room)["users"].get(staff.user_id) == 50


def test_nobody_but_the_city_changes_what_a_room_is(any_city, people):
    member, staff = people[0], any_city.first_staff()
    room = any_city.room(member, staff)
    levels = _levels(any_city, room)
    base = f"{R}{quote(room)}/state/"
    for person in (member, staff):
        mine = levels | {"users": levels["users"] | {person.user_id: 100}}
        for path, content in {
            "m.room.power_levels": mine,
            "m.room.history_visibility": {"history_visibility": "world_readable"},
            "m.room.join_rules": {"join_rule": "public"},
            "m.room.guest_access": {"guest_access": "can_join"},
            "m.room.encryption": {"algorithm": "m.megolm.v1.aes-sha2"},
            "m.room.tombstone": {"body": "x", "replacement_room": room},
            "m.room.server_acl": {"allow": ["*"]},
            "jp.heya.room": {"kind": "subject", "room_number": 1, "status": "open"},
            "m.room.create": {"room_version": "12"},
        }.items():
            assert person.client.put(base + path, content).told == FORBIDDEN, path
    assert staff.client.put(base + "m.room.name", {"name": "新しい名前"}).status == 200
    assert staff.client.put(base + "m.room.topic", {"topic": "話題"}).status == 200
    assert member.client.put(base + "m.room.name", {"name": "だめ"}).told == FORBIDDEN
    assert _levels(any_city, room) == levels


def test_redaction_is_ones_own_or_by_power(any_city, people):
    a, b = people[0], people[1]
    staff = any_city.first_staff()
    room = any_city.room(a, b, staff)

    def redact(person: Person, event: str) -> tuple:
        return person.client.put(f"{R}{quote(room)}/redact/{quote(event)}/{secrets.token_hex(4)}",
                                 {"reason": "誤記"}).told

    own, others, third = (a.client.say(room, f"消される{n}") for n in range(3))
    assert redact(b, own) == FORBIDDEN
    assert redact(a, own) == (200, None)
    assert redact(staff, others) == (200, None)
    for event in (own, others):
        seen = b.client.ok("GET", f"{R}{quote(room)}/event/{quote(event)}")
        assert seen["content"] == {} and seen["unsigned"]["redacted_because"]["content"]["reason"] == "誤記"
    assert "消される0" not in str(b.client.messages(room)) and "消される1" not in str(b.client.sync())
    found = b.client.ok("POST", "/_matrix/client/v3/search", {
        "search_categories": {"room_events": {"search_term": "消される0", "filter": {"rooms": [room]}}}})
    assert not any("消される0" in str(hit) for hit in found["search_categories"]["room_events"]["results"])
    assert b.client.ok("GET", f"{R}{quote(room)}/event/{quote(third)}")["content"]["body"] == "消される2"


def test_announcement_and_control_room(any_city, people):
    """DESIGN 14: facility IDs are in the announcement room and cannot write there; control: city staff only."""
    control = any_city.look("control")
    facility = any_city.facility()
    shared = any_city.person(facility, kind="facility")
    announcement = control["announcement_room"]
    joined = shared.client.get("/_matrix/client/v3/joined_rooms").json["joined_rooms"]
    assert joined == [announcement], "H11: in it at once, and in nothing else"
    answer = shared.client.put(f"{R}{quote(announcement)}/send/m.room.message/t", {"msgtype": "m.text", "body": "x"})
    assert answer.told == FORBIDDEN
    done = any_city.act("announcements", {"case": f"n-{secrets.token_hex(3)}", "body": "市からのお知らせです", "facilities": None})
    assert done["event_ids"][0] in [event["event_id"] for event in shared.client.messages(announcement)]
    # One per facility, in its liaison room.
    done = any_city.act("announcements", {"case": f"n-{secrets.token_hex(3)}", "body": "個別の連絡", "facilities": [facility]})
    rooms = set(shared.client.get("/_matrix/client/v3/joined_rooms").json["joined_rooms"]) - {announcement}
    assert len(rooms) == 1
    liaison = rooms.pop()
    assert done["event_ids"][0] in [event["event_id"] for event in shared.client.messages(liaison)]
    shared.client.say(liaison, "了解しました")
    staff = any_city.first_staff()
    inside = any_city.look(f"rooms/{quote(control['control_room'])}")
    # Other tests of this city may have issued IDs to more staff; who is in the room was put there.
    assert staff.user_id in {member["user_id"] for member in inside["members"]} <= set(control["staff"])
    assert people[0].client.get(f"{R}{quote(control['control_room'])}/messages?dir=b").told == FORBIDDEN
    for protected in (announcement, control["control_room"]):
        answer = any_city.act(f"rooms/{quote(protected)}/close", {"case": "x", "notice": "x"}, expect=None)
        assert 400 <= answer.status < 500


def test_facility_has_one_facility_id(any_city):
    facility = any_city.facility()
    any_city.issue(facility, "facility")
    answer = any_city.act("accounts", {"facility": facility, "kind": "facility", "pledge": True}, expect=None)
    assert answer.told == (409, "JP_HEYA_EXISTS")
    answer = any_city.act("accounts", {"facility": facility, "kind": "personal", "name": "無誓約"}, expect=None)
    assert answer.told == (400, "M_INVALID_PARAM"), "H8"


def test_one_room_per_case_and_subject(any_city, people):
    """H6, H7, H16."""
    name = f"見本{secrets.token_hex(4)}"
    case = f"case-{secrets.token_hex(4)}"
    body = {"case": case, "kind": "subject", "members": [people[0].user_id, people[1].user_id],
            "opening_notice": "開設しました。",
            "subject": {"name": name, "birth_date": "1940-01-01", "address": "〇〇市", "eligibility": "home"}}
    first = any_city.act("rooms", body)
    assert any_city.act("rooms", body) == first, "again with the same case: the same answer"
    state = people[0].client.state(first["room_id"], "m.room.name")
    assert state["name"] == f"{name}さんの部屋"
    second = any_city.act("rooms", body | {"case": case + "b"}, expect=None)
    assert second.told == (409, "JP_HEYA_SUBJECT_HAS_ROOM") and second.json["room_number"] == first["room_number"]
    spaced = body["subject"] | {"name": "\u3000".join([name[:2], name[2:]])}
    assert any_city.act("rooms", body | {"case": case + "c", "subject": spaced}, expect=None).status == 409
    assert any_city.act("rooms", body | {"case": case + "d", "confirm_second": True})["room_id"] != first["room_id"]
    for change in ({"eligibility": "approved"}, {"eligibility": "approved", "approval_note": " "}, {"eligibility": "other"},
                   {"address": ""}, {"birth_date": ""}, {"name": " "}):
        bad = body | {"case": case + "e", "confirm_second": True, "subject": body["subject"] | change}
        assert any_city.act("rooms", bad, expect=None).told == (400, "M_INVALID_PARAM"), change
    bad = body | {"case": case + "f", "confirm_second": True, "members": ["@p999999:" + any_city.server_name]}
    assert any_city.act("rooms", bad, expect=None).status == 404
    rooms = any_city.look("rooms?status=open")["rooms"]
    assert len([room for room in rooms if name in room["name"]]) == 2, "nothing half made"


def test_rooms_are_opened_by_the_city(any_city, people):
    a, b, c = people[0], people[1], people[4]
    path = "/_matrix/client/v3/createRoom"
    any_city.room(a, b)
    for body in ({}, {"name": "勝手な部屋"}, {"invite": [a.user_id]}, {"preset": "public_chat", "invite": [b.user_id]},
                 {"invite": [b.user_id, c.user_id]},
                 {"invite": [b.user_id], "initial_state": [{"type": "m.room.join_rules", "content": {"join_rule": "public"}}]}):
        assert a.client.post(path, body).told == FORBIDDEN, body
    stranger = any_city.person()
    assert a.client.post(path, {"invite": [stranger.user_id], "is_direct": True}).told == FORBIDDEN, "no room in common"
    direct = a.client.ok("POST", path, {"invite": [b.user_id], "is_direct": True, "preset": "trusted_private_chat"})["room_id"]
    b.client.ok("POST", f"{R}{quote(direct)}/join", {})
    a.client.say(direct, "二人の話")
    # It stays a room of two.
    assert a.client.post(f"{R}{quote(direct)}/invite", {"user_id": c.user_id}).told == FORBIDDEN
    for content in ({"join_rule": "public"}, {"join_rule": "knock"}):
        a.client.put(f"{R}{quote(direct)}/state/m.room.join_rules", content)
        assert c.client.post(f"{R}{quote(direct)}/join").told == FORBIDDEN
    assert c.client.get(f"{R}{quote(direct)}/messages?dir=b").told == FORBIDDEN


def test_other_room_versions(any_city):
    """DESIGN 5: room version 12, 11 and 10; anything else is told so."""
    bot = any_city.as_city()
    path = "/_matrix/client/v3/createRoom"
    for version in ("9", "1", "13", "x"):
        answer = bot.post(path, {"room_version": version, "name": "x"})
        assert answer.told == (400, "M_UNSUPPORTED_ROOM_VERSION"), version
    for version in ("10", "11", "12"):
        room = bot.ok("POST", path, {"room_version": version})["room_id"]
        create = bot.ok("GET", f"{R}{quote(room)}/state/m.room.create")
        assert create["room_version"] == version
        assert (":" in room) == (version != "12")
    capabilities = bot.ok("GET", "/_matrix/client/v3/capabilities")["capabilities"]["m.room_versions"]
    assert capabilities["default"] == "12" and set(capabilities["available"]) == {"10", "11", "12"}


def test_nobody_writes_in_anothers_name(any_city, people):
    a, b = people[0], people[1]
    room = any_city.room(a, b)
    sent = a.client.put(f"{R}{quote(room)}/send/m.room.message/t?user_id={quote(b.user_id)}",
                        {"msgtype": "m.text", "body": "x", "sender": b.user_id})
    assert sent.status == 200
    seen = b.client.ok("GET", f"{R}{quote(room)}/event/{quote(sent.json['event_id'])}")
    assert seen["sender"] == a.user_id
    member = f"{R}{quote(room)}/state/m.room.member/{quote(b.user_id)}"
    for content in ({"membership": "join", "displayname": "偽名"}, {"membership": "leave"}, {"membership": "ban"}):
        assert a.client.put(member, content).told == FORBIDDEN
    assert a.client.put(f"{R}{quote(room)}/typing/{quote(b.user_id)}", {"typing": True, "timeout": 1}).told == FORBIDDEN
    bot = any_city.as_city()
    answer = bot.put(f"{R}{quote(room)}/send/m.room.message/t2?user_id={quote(a.user_id)}", {"msgtype": "m.text", "body": "x"})
    assert answer.told == FORBIDDEN, "the bot acts as the city only"
    # A state key that begins with @ is its owner's only.
    path = f"{R}{quote(room)}/state/jp.example.test/{quote(b.user_id)}"
    assert any_city.first_staff() and a.client.put(path, {"x": 1}).told == FORBIDDEN


def test_transaction_ids(any_city, people):
    """The same transaction of a session is one event; of another session, another."""
    a = people[0]
    room = any_city.room(a)
    one, again = a.client.say(room, "一度", txn="same"), a.client.say(room, "二度", txn="same")
    assert one == again
    other = a.log_in().say(room, "別の端末", txn="same")
    assert other != one
    assert sum(event["type"] == "m.room.message" for event in a.client.messages(room)) == 3  # with the notice
    redacted = {a.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(one)}/r1", {})["event_id"] for _ in range(2)}
    assert len(redacted) == 1


def test_names_follow_the_rule(any_city, people):
    """H10: a name is the facility's and the person's, and nobody takes another's in one room or in all."""
    a, b = people[0], people[1]
    staff = any_city.first_staff()
    room = any_city.room(a, b, staff)
    real = a.client.state(room, "m.room.member", a.user_id)["displayname"]
    spoofs = [
        ("PUT", f"{R}{quote(room)}/state/m.room.member/{quote(a.user_id)}", {"membership": "join", "displayname": "〇〇市 担当者"}),
        ("PUT", f"/_matrix/client/v3/profile/{quote(a.user_id)}/displayname", {"displayname": "〇〇市 担当者"}),
        ("DELETE", f"/_matrix/client/v3/profile/{quote(a.user_id)}/displayname", None),
    ]
    for method, path, body in spoofs:
        answer = a.client.request(method, path, json_body=body)
        assert answer.status in (200, 403), answer
        assert b.client.state(room, "m.room.member", a.user_id)["displayname"] == real, f"{method} {path}"
        assert b.client.ok("GET", f"/_matrix/client/v3/profile/{quote(a.user_id)}")["displayname"] == real
    capabilities = a.client.ok("GET", "/_matrix/client/v3/capabilities")["capabilities"]
    assert capabilities.get("m.set_displayname", {}).get("enabled") is False or (
        "displayname" in str(capabilities.get("m.profile_fields"))), "clients must not offer what is refused"


def test_what_a_room_is_cannot_be_redacted_away(any_city, people):
    """DESIGN 14: state that only the city may set stays, though staff may redact others' events."""
    member, staff = people[0], any_city.first_staff()
    room = any_city.room(member, staff)
    for event in member.client.ok("GET", f"{R}{quote(room)}/state"):
        if event["type"] in ("jp.heya.room", "m.room.power_levels", "m.room.create", "m.room.join_rules",
                             "m.room.history_visibility", "m.room.guest_access"):
            path = f"{R}{quote(room)}/redact/{quote(event['event_id'])}/{secrets.token_hex(4)}"
            for person in (member, staff):
                assert person.client.put(path, {}).told == FORBIDDEN, (event["type"], person.login_id)
            assert member.client.state(room, event["type"]) == event["content"]


def test_others_cannot_edit(any_city, people):
    """Client-server API, "Event replacements": an edit by another sender is none."""
    a, b = people[0], people[1]
    room = any_city.room(a, b)
    event = a.client.say(room, "本人の言葉")
    b.client.request("PUT", f"{R}{quote(room)}/send/m.room.message/{secrets.token_hex(4)}", json_body={
        "msgtype": "m.text", "body": "* 偽の言葉", "m.new_content": {"msgtype": "m.text", "body": "偽の言葉"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": event}})
    seen = a.client.ok("GET", f"{R}{quote(room)}/event/{quote(event)}")
    assert seen["content"]["body"] == "本人の言葉" and "偽" not in str(seen)
    own = a.client.say(room, "* 直した言葉", **{
        "m.new_content": {"msgtype": "m.text", "body": "直した言葉"}, "m.relates_to": {"rel_type": "m.replace", "event_id": event}})
    found = a.client.ok("GET", f"/_matrix/client/v1/rooms/{quote(room)}/relations/{quote(event)}/m.replace")["chunk"]
    assert own in [one["event_id"] for one in found]


def test_a_redacted_photo_is_gone(any_city, people):
    """DESIGN 12: media need an event that still shows them."""
    a, b = people[0], people[1]
    room = any_city.room(a, b)
    mxc = upload(a)
    event = a.client.say(room, "写真", msgtype="m.image", url=mxc)
    assert b.client.get(media_path(mxc)).status == 200
    a.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(event)}/r", {})
    assert b.client.get(media_path(mxc)).status in (403, 404)


def test_notifications_of_a_former_member_tell_nothing(any_city, people):
    """DESIGN 14: nothing on every read path."""
    a = people[0]
    b = any_city.person()
    room = any_city.room(a, b)
    a.client.say(room, "あなたあての機微な内容", **{"m.mentions": {"user_ids": [b.user_id]}})

    def listed() -> str:
        return str(b.client.ok("GET", "/_matrix/client/v3/notifications"))

    before = listed()
    any_city.change_members(room, remove=[b])
    assert "機微" not in listed(), before
    unread = b.client.sync().get("rooms", {}).get("join", {})
    assert room not in unread


def test_receipts_and_typing_reach_members_only(any_city, people):
    a, b, c = people[0], people[1], people[2]
    room = any_city.room(a, b, c)
    since = c.client.sync()["next_batch"]
    event = a.client.say(room, "x")
    any_city.change_members(room, remove=[c])
    b.client.ok("POST", f"{R}{quote(room)}/receipt/m.read/{quote(event)}", {})
    b.client.ok("PUT", f"{R}{quote(room)}/typing/{quote(b.user_id)}", {"typing": True, "timeout": 5000})
    for token in (since, None):
        assert b.user_id not in str(c.client.sync(token).get("rooms", {}).get("leave", {}).get(room, {}).get("ephemeral"))
        assert room not in c.client.sync(token).get("rooms", {}).get("join", {})
    # A private receipt is nobody else's.
    later = a.client.say(room, "y")
    since = b.client.sync()["next_batch"]
    a.client.ok("POST", f"{R}{quote(room)}/receipt/m.read.private/{quote(later)}", {})
    assert "m.read.private" not in str(b.client.sync(since))


# DESIGN 13: no encryption -------------------------------------------------------------------------------------------


def test_encryption_is_refused_on_every_way_in(any_city, people):
    a, b = people[0], people[1]
    staff, bot = any_city.first_staff(), any_city.as_city()
    room = any_city.room(a, b, staff)
    content = {"algorithm": "m.megolm.v1.aes-sha2"}
    encrypted = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "sender_key": "x", "device_id": "x", "session_id": "x"}
    for client in (a.client, staff.client, bot):
        assert client.put(f"{R}{quote(room)}/state/m.room.encryption", content).told == FORBIDDEN
        assert client.put(f"{R}{quote(room)}/state/m.room.encryption/", content).told == FORBIDDEN
        assert client.put(f"{R}{quote(room)}/state/m.room.encryption/x", content).told == FORBIDDEN
        assert client.put(f"{R}{quote(room)}/state/m.room.encrypted/x", encrypted).told == FORBIDDEN
        assert client.put(f"{R}{quote(room)}/send/m.room.encrypted/e1", encrypted).told == FORBIDDEN
        assert client.put(f"{R}{quote(room)}/send/m.room.encryption/e2", content).told == FORBIDDEN
    initial = [{"type": "m.room.encryption", "state_key": "", "content": content}]
    path = "/_matrix/client/v3/createRoom"
    assert a.client.post(path, {"invite": [b.user_id], "is_direct": True, "initial_state": initial}).told == FORBIDDEN
    assert bot.post(path, {"initial_state": initial}).told == FORBIDDEN
    with_levels = {"invite": [b.user_id], "is_direct": True, "power_level_content_override": {"events": {"m.room.encryption": 0}}}
    direct = a.client.ok("POST", path, with_levels)["room_id"]
    assert a.client.put(f"{R}{quote(direct)}/state/m.room.encryption", content).told == FORBIDDEN


def test_no_client_gets_a_key_screen(any_city, people):
    """STACK, "A city without encryption"."""
    a, b = people[0], people[1]
    for kind in ("m.secret_storage.default_key", "m.secret_storage.key.abc", "m.cross_signing.master", "m.megolm_backup.v1"):
        path = f"/_matrix/client/v3/user/{quote(a.user_id)}/account_data/{kind}"
        assert a.client.put(path, {"key": "x"}).told == FORBIDDEN, kind
        assert a.client.get(path).told == NOT_FOUND
    room = any_city.room(a, b)
    path = f"/_matrix/client/v3/user/{quote(a.user_id)}/rooms/{quote(room)}/account_data/m.secret_storage.key.x"
    assert a.client.put(path, {"key": "x"}).told == FORBIDDEN
    key = {"user_id": a.user_id, "usage": ["master"], "keys": {"ed25519:x": "x"}}
    for path in ("keys/device_signing/upload", "keys/signatures/upload", "room_keys/version"):
        assert a.client.post(f"/_matrix/client/v3/{path}", {"master_key": key}).told == FORBIDDEN, path
    assert a.client.get("/_matrix/client/v3/room_keys/version").told == NOT_FOUND
    versions = a.client.ok("GET", "/_matrix/client/versions")
    for feature in ("org.matrix.e2e_cross_signing", "org.matrix.msc3814"):
        assert feature not in versions.get("unstable_features", {})
    assert any(version.startswith("v1.") and int(version[3:]) <= 13 for version in versions["versions"])
    device_keys = {"user_id": a.user_id, "device_id": a.device_id, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
                   "keys": {f"curve25519:{a.device_id}": "x", f"ed25519:{a.device_id}": "y"}, "signatures": {}}
    assert a.client.post("/_matrix/client/v3/keys/upload", {"device_keys": device_keys}).status == 200
    found = b.client.ok("POST", "/_matrix/client/v3/keys/query", {"device_keys": {a.user_id: []}})
    assert list(found["device_keys"][a.user_id]) == [a.device_id]
    for name in ("master_keys", "self_signing_keys", "user_signing_keys"):
        assert not found.get(name)


# DESIGN 15: closing is enforced --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(any_city: Server, people: list[Person]) -> World:
    """A closed room with its members and staff."""
    member, other = people[0], people[1]
    staff = any_city.first_staff()
    room = any_city.room(member, other, staff)
    mxc = upload(member)
    member.client.say(room, "写真", msgtype="m.image", url=mxc)
    event = member.client.say(room, "発熱")
    state = member.client.ok("GET", f"{R}{quote(room)}/state/m.room.name?format=event")["event_id"]
    any_city.close_room(room)
    return World(any_city, room, member, people[2], people[3], people[3], people[4], event, event, state, mxc)


CLOSED_WRITES = {
    "message": ("PUT", "/send/m.room.message/{txn}", {"msgtype": "m.text", "body": "x"}),
    "reaction": ("PUT", "/send/m.reaction/{txn}", {"m.relates_to": {"rel_type": "m.annotation", "event_id": "{event}", "key": "👍"}}),
    "custom event": ("PUT", "/send/jp.heya.vital/{txn}", {"x": 1}),
    "redaction": ("PUT", "/redact/{event}/{txn}", {}),
    "name": ("PUT", "/state/m.room.name", {"name": "x"}),
    "custom state": ("PUT", "/state/jp.example.state/x", {"x": 1}),
    "power levels": ("PUT", "/state/m.room.power_levels", {"users": {}}),
    "room sheet": ("PUT", "/state/jp.heya.room", {"kind": "association", "room_number": 1, "status": "open"}),
    "own name in the room": ("PUT", "/state/m.room.member/{me}", {"membership": "join", "displayname": "x"}),
    "invite": ("POST", "/invite", {"user_id": "{never}"}),
    "ban": ("POST", "/ban", {"user_id": "{other}"}),
    "typing": ("PUT", "/typing/{me}", {"typing": True, "timeout": 1000}),
    "v1 send": ("PUT", "/send/m.room.redaction/{txn}", {"redacts": "{event}"}),
}


@pytest.mark.parametrize("what", CLOSED_WRITES)
@pytest.mark.parametrize("who", ["member", "staff", "city"])
def test_a_closed_room_takes_nothing(closed, people, who, what):
    """H19: 403 for everyone, the bot and staff too."""
    method, path, body = CLOSED_WRITES[what]
    server = closed.server
    client, me = {
        "member": (closed.member.client, closed.member.user_id),
        "staff": (server.first_staff().client, server.first_staff().user_id),
        "city": (server.as_city(), server.city_user),
    }[who]

    def filled(value, encode=False):
        if isinstance(value, dict):
            return {key: filled(one) for key, one in value.items()}
        if not isinstance(value, str):
            return value
        words = {"{txn}": secrets.token_hex(4), "{event}": closed.event, "{me}": me, "{never}": closed.never.user_id,
                 "{other}": people[1].user_id}
        for word, meaning in words.items():
            value = value.replace(word, quote(meaning) if encode else meaning)
        return value

    before = server.count("SELECT count(*) FROM events")
    answer = client.request(method, f"{R}{quote(closed.room)}{filled(path, True)}", json_body=filled(body))
    if what == "v1 send":
        assert answer.status in (400, 403), answer
    else:
        assert answer.told == FORBIDDEN, answer
    assert server.count("SELECT count(*) FROM events") == before


def test_closing_is_seen_and_reading_goes_on(closed, people):
    client = closed.member.client
    assert closed.event in [event["event_id"] for event in client.messages(closed.room)]
    assert client.messages(closed.room)[0]["type"] in ("jp.heya.room", "m.room.power_levels", "m.room.message")
    assert "この部屋は終了しました。" in str(client.messages(closed.room)[:5])
    assert client.state(closed.room, "jp.heya.room")["status"] == "closed"
    levels = client.state(closed.room, "m.room.power_levels")
    everybody = [*levels["users"].values(), levels["users_default"]]
    assert levels["events_default"] > max(everybody), "composers disappear"
    assert all(level > max(everybody) for kind, level in levels["events"].items()), levels
    assert client.get(media_path(closed.mxc)).status == 200
    body = {"search_categories": {"room_events": {"search_term": "発熱", "filter": {"rooms": [closed.room]}}}}
    wait_for(lambda: client.ok("POST", "/_matrix/client/v3/search", body)["search_categories"]["room_events"]["count"] == 1,
             30, 0.1, "the event in the index")


def test_what_is_still_allowed_in_a_closed_room(any_city, people):
    """DESIGN 15: receipts, read markers, account data, leaving, removal by the server, forget, reopening."""
    a, b, c = people[0], people[1], people[2]
    room = any_city.room(a, b, c)
    event = a.client.say(room, "x")
    any_city.close_room(room)
    any_city.close_room(room)  # again: the same answer, nothing new
    notices = [e for e in a.client.messages(room) if "終了しました" in e["content"].get("body", "")]
    assert len(notices) == 1
    assert a.client.post(f"{R}{quote(room)}/receipt/m.read/{quote(event)}").status == 200
    assert a.client.post(f"{R}{quote(room)}/read_markers", {"m.fully_read": event}).status == 200
    tags = f"/_matrix/client/v3/user/{quote(a.user_id)}/rooms/{quote(room)}/tags/m.lowpriority"
    assert a.client.put(tags, {"order": 0}).status == 200
    assert b.client.post(f"{R}{quote(room)}/leave").status == 200
    assert b.client.post(f"{R}{quote(room)}/forget").status == 200
    assert any_city.change_members(room, remove=[c])["removed"] == [c.user_id]
    added = any_city.act(f"rooms/{quote(room)}/members", {"case": "x", "add": [c.user_id]}, expect=None)
    assert added.told == FORBIDDEN, "a closed room takes no new members"
    number = any_city.look(f"rooms/{quote(room)}")
    assert number["status"] == "closed"
    any_city.act(f"rooms/{quote(room)}/reopen", {"case": "y", "notice": "再開しました。"})
    assert a.client.say(room, "再開後")
    levels = a.client.state(room, "m.room.power_levels")
    assert levels["events_default"] == 0
    assert any_city.look(f"rooms/{quote(room)}")["status"] == "open"


def test_reopening_restores_the_powers_exactly(any_city, people):
    staff = any_city.first_staff()
    room = any_city.room(people[0], staff)
    before = _levels(any_city, room)
    any_city.close_room(room)
    any_city.act(f"rooms/{quote(room)}/reopen", {"case": "y", "notice": "再開しました。"})
    assert _levels(any_city, room) == before


def test_a_name_change_does_not_break_on_a_closed_room(any_city, people):
    """A profile is written to all of a person's rooms: a closed one must neither stop it nor take it."""
    person = any_city.person()
    shut, open_ = any_city.room(person), any_city.room(person)
    any_city.close_room(shut)
    path = f"/_matrix/client/v3/profile/{quote(person.user_id)}/avatar_url"
    answer = person.client.put(path, {"avatar_url": upload(person)})
    assert answer.status in (200, 403), answer
    if answer.status == 200:
        member = person.client.state(open_, "m.room.member", person.user_id)
        assert member.get("avatar_url")
        assert "avatar_url" not in person.client.state(shut, "m.room.member", person.user_id)
    # Ending the person works with a closed room among theirs.
    done = any_city.act(f"accounts/{quote(person.user_id)}/end", {"reason": "退職"})
    assert done["rooms"] == 2


@pytest.mark.parametrize(("asked", "answered"), [
    (None, "state"), ("use_state_after", "state_after"), ("org.matrix.msc4222.use_state_after", "org.matrix.msc4222.state_after")])
def test_the_state_of_a_long_room_comes_under_the_name_it_was_asked_by(any_city: Server, asked, answered):
    """matrix-js-sdk, and Element Web with it, still reads the name from before v1.16: a second device would see no state of a
    room with more than one page of posts."""
    person = any_city.person()
    room = any_city.room(person, name="長い部屋")
    for n in range(12):
        person.client.say(room, f"記録 {n}")
    query = {"filter": json.dumps({"room": {"timeline": {"limit": 5}}})} | ({asked: "true"} if asked else {})
    joined = person.log_in().sync(**query)["rooms"]["join"][room]
    assert joined["timeline"]["limited"] and len(joined["timeline"]["events"]) == 5
    assert [key for key in joined if "state" in key] == [answered]
    kinds = {event["type"] for event in joined[answered]["events"]}
    assert {"m.room.create", "m.room.name", "m.room.member", "m.room.power_levels"} <= kinds
