"""What follows a room's closing (DESIGN 14, 15; REQUIREMENTS H19, C14, C16, C26–C28): closed → archived → exported, held,
purged; emergency access; redaction by order; the bot's words for them, and the word that chooses the mails."""

from __future__ import annotations

import base64
import contextlib
import datetime
import email
import email.policy
import hashlib
import html.parser
import itertools
import json
import pathlib
import re
import secrets
import shutil
import sqlite3
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator

import pytest
import requests
from aiosmtpd.controller import Controller

from harness import LIBFAKETIME, PG_BIN, Answer, Client, Person, Postgres, Server, free_ports, quote, wait_for
from test_rooms import FORBIDDEN, NOT_FOUND, PNG, R, READS, World, media_path, upload

STATE = (409, "JP_HEYA_ROOM_STATE")
NO_RETENTION = {"retention": {"subject_years": 0, "association_years": 0, "direct_years": 0}}
# No test writes these two characters anywhere else: where they are found, the room's index or text has stayed.
RARE = "齟齬"
_case = itertools.count(1)


# Helpers -------------------------------------------------------------------------------------------------------------


def life(server: Server, room: str, what: str, *, key: str | None = None, acting: str | Person = "command",
         **body) -> Answer:
    """One of the calls that follow a closing."""
    acting = acting.user_id if isinstance(acting, Person) else acting
    return server.act(f"rooms/{quote(room)}/{what}", {"case": f"life-{next(_case)}", **body}, key=key, expect=None,
                      acting=acting)


def lived(server: Server, room: str, what: str, **more) -> dict:
    answer = life(server, room, what, **more)
    assert answer.status == 200, f"{what}: {answer}"
    return answer.json


def status(server: Server, room: str) -> str:
    return server.look(f"rooms/{quote(room)}")["status"]


def subject_room(server: Server, *members: Person, name: str | None = None) -> tuple[str, str]:
    """A subject's room, named after the subject as the server does it; the room and the subject's name."""
    name = name or f"秘匿{secrets.token_hex(4)}"
    done = server.act("rooms", {
        "case": f"life-{next(_case)}-{secrets.token_hex(3)}", "kind": "subject", "opening_notice": f"{name}さんの部屋です。",
        "members": [person.user_id for person in members],
        "subject": {"name": name, "birth_date": "1931-07-08", "address": f"{name}宅", "eligibility": "home"}})
    return done["room_id"], name


def archived_room(server: Server, *members: Person) -> tuple[str, str]:
    room, name = subject_room(server, *members)
    server.close_room(room)
    lived(server, room, "archive")
    return room, name


def picture(person: Person, room: str, content: bytes | None = None, **more) -> tuple[str, bytes]:
    """A photo like no other, posted."""
    content = content or PNG + secrets.token_bytes(16)
    mxc = upload(person, content)
    person.client.say(room, more.pop("body", "写真です"), msgtype="m.image", url=mxc, **more)
    return mxc, content


def events_of(server: Server, room: str) -> int:
    return server.count(f"SELECT count(*) FROM events WHERE room_id = '{room}'")


def audit(server: Server, room: str | None = None) -> str:
    words = ["audit", "list", "--limit", "1000"]
    if room is not None:
        words += ["--room", str(server.look(f"rooms/{quote(room)}")["room_number"])]
    done = subprocess.run(server.command(*words), capture_output=True, text=True, timeout=60, cwd=server.folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def search(person: Person, word: str) -> list[str]:
    body = {"search_categories": {"room_events": {"search_term": word}}}
    found = person.client.ok("POST", "/_matrix/client/v3/search", body)["search_categories"]["room_events"]
    return [hit["result"]["event_id"] for hit in found.get("results", [])]


def found(person: Person, word: str, wanted: str) -> None:
    """Waits until a search finds the event: the index follows what was written."""
    wait_for(lambda: wanted in search(person, word), 30, 0.1, f"{word} in the index")


def fill(server: Server, room: str, count: int, text: str = "記録", workers: int = 8) -> None:
    """Many events, quickly: as the city, without TLS."""
    numbers = iter(range(count))
    lock = threading.Lock()
    failures: list[str] = []

    def work() -> None:
        client = server.as_city()
        while not failures:
            with lock:
                n = next(numbers, None)
            if n is None:
                return
            path = f"{R}{quote(room)}/send/m.room.message/fill-{n}"
            answer = client.put(path, {"msgtype": "m.text", "body": f"{text} {n} " + "経過は良好です。" * 20})
            if answer.status != 200:
                failures.append(str(answer))

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


class Call(threading.Thread):
    """An internal call in the background, whose server may die."""

    def __init__(self, server: Server, path: str, body: dict, key: str) -> None:
        super().__init__(daemon=True)
        self.client = Client(server.internal_base, token=server.secret("command.token"), timeout=100)
        self.path, self.body, self.key = path, {"acting": "command", **body}, key
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        with contextlib.suppress(Exception):
            self.answer = self.client.post(f"/_heya/v1/{self.path}", self.body, headers={"Idempotency-Key": self.key})


def at_once(condition, thread: Call, what: str) -> bool:
    """Waits for a moment during a call; False if the call was answered before it came."""
    deadline = time.monotonic() + 60
    while thread.answer is None:
        if condition():
            return thread.answer is None
        assert time.monotonic() < deadline, f"waited for {what}"
    return False


@pytest.fixture(scope="module")
def folk(any_city: Server) -> list[Person]:
    """Four people of two facilities."""
    facilities = [any_city.facility() for _ in range(2)]
    return [any_city.person(facilities[n % 2]) for n in range(4)]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def forgetful(request: pytest.FixtureRequest):
    """A city that keeps nothing: what is archived may be purged."""
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    server = Server(request.param, config=NO_RETENTION)
    server.crew = [server.person(name=f"担当{n}{secrets.token_hex(2)}") for n in range(3)]
    yield server
    server.remove()


# 1. Closing ----------------------------------------------------------------------------------------------------------


def test_no_write_path_leads_into_a_closed_room(any_city: Server, folk):
    """DESIGN 15, H19: 403 for members, staff with power in the room, and the city's own appservice."""
    server, (a, b, c, d) = any_city, folk
    staff, city = server.first_staff(), server.as_city()
    room = server.room(a, b, staff)
    event = a.client.say(room, "発熱")
    own = {p.user_id: p.client.say(room, "自分の投稿") for p in (a, staff)}
    notice = city.say(room, "市の投稿")
    sheet = a.client.state(room, "jp.heya.room")
    server.close_room(room)
    before = events_of(server, room)
    path = f"{R}{quote(room)}"
    mxc = upload(a)
    wrong = {}
    for name, client, me in (("member", a.client, a.user_id), ("staff", staff.client, staff.user_id),
                             ("city", city, server.city_user)):
        txn = secrets.token_hex(4)
        mine = own.get(me, notice)
        tries = {
            "send": ("PUT", f"{path}/send/m.room.message/{txn}", {"msgtype": "m.text", "body": "x"}),
            "send again by POST": ("POST", f"{path}/send/m.room.message", {"msgtype": "m.text", "body": "x"}),
            "a linked upload": ("PUT", f"{path}/send/m.room.message/{txn}m", {"msgtype": "m.image", "body": "x", "url": mxc}),
            "a later send": ("PUT", f"{path}/send/m.room.message/{txn}d?org.matrix.msc4140.delay=1000",
                             {"msgtype": "m.text", "body": "x"}),
            "an old time": ("PUT", f"{path}/send/m.room.message/{txn}o?ts=1000", {"msgtype": "m.text", "body": "x"}),
            "edit": ("PUT", f"{path}/send/m.room.message/{txn}e", {
                "msgtype": "m.text", "body": "* y", "m.new_content": {"msgtype": "m.text", "body": "y"},
                "m.relates_to": {"rel_type": "m.replace", "event_id": mine}}),
            "reaction": ("PUT", f"{path}/send/m.reaction/{txn}r", {
                "m.relates_to": {"rel_type": "m.annotation", "event_id": event, "key": "👍"}}),
            "redact": ("PUT", f"{path}/redact/{quote(event)}/{txn}", {}),
            "redact own": ("PUT", f"{path}/redact/{quote(mine)}/{txn}n", {}),
            "topic": ("PUT", f"{path}/state/m.room.topic", {"topic": "x"}),
            "status": ("PUT", f"{path}/state/jp.heya.room", {**sheet, "status": "open"}),
            "power": ("PUT", f"{path}/state/m.room.power_levels", {"events_default": 0, "users": {me: 100}}),
            "tombstone": ("PUT", f"{path}/state/m.room.tombstone", {"body": "x", "replacement_room": room}),
            "upgrade": ("POST", f"{path}/upgrade", {"new_version": "12"}),
            "invite": ("POST", f"{path}/invite", {"user_id": c.user_id}),
            "member event": ("PUT", f"{path}/state/m.room.member/{quote(c.user_id)}", {"membership": "invite"}),
            "ban": ("POST", f"{path}/ban", {"user_id": b.user_id}),
            "unban": ("POST", f"{path}/unban", {"user_id": c.user_id}),
            "typing": ("PUT", f"{path}/typing/{quote(me)}", {"typing": True, "timeout": 1000}),
        }
        if name != "city":
            tries["kick"] = ("POST", f"{path}/kick", {"user_id": b.user_id})
        for what, (method, where, body) in tries.items():
            answer = client.request(method, where, json_body=body)
            # A path that the specification does not have may be unknown instead.
            allowed = {"send again by POST": (404, 405, 403), "upgrade": (403, 404)}.get(what, (403,))
            if answer.status not in allowed:
                wrong[f"{name}: {what}"] = answer
    for answer in (d.client.post(f"{path}/join"), d.client.post(f"/_matrix/client/v3/join/{quote(room)}"),
                   d.client.post(f"/_matrix/client/v3/knock/{quote(room)}")):
        if answer.status not in (403, 404):
            wrong["from outside"] = answer
    for add in (c, d):
        answer = server.act(f"rooms/{quote(room)}/members", {"case": "x", "add": [add.user_id], "notice": "追加"}, expect=None)
        if answer.told != FORBIDDEN:
            wrong["members/add"] = answer
    answer = server.act(f"rooms/{quote(room)}/members", {"case": "x", "add": [], "remove": [], "notice": "書き込み"}, expect=None)
    if answer.status == 200 and events_of(server, room) != before:
        wrong["members: a notice alone"] = answer
    assert not wrong, wrong
    assert events_of(server, room) == before
    # What was uploaded is nobody else's: no event shows it.
    assert b.client.get(media_path(mxc)).status in (403, 404)
    assert "typing" not in json.dumps(b.client.sync()["rooms"]["join"][room].get("ephemeral", {}))


def test_no_other_room_pretends_to_be_a_closed_one(any_city: Server, folk):
    """createRoom writes nothing into the old room, and nobody but the city makes a city room's sheet."""
    server, (a, b, *_) = any_city, folk
    staff = server.first_staff()
    room = server.room(a, b, staff)
    sheet = a.client.state(room, "jp.heya.room")
    server.close_room(room)
    before = events_of(server, room)
    for person in (a, staff):
        for body in (
            {"creation_content": {"predecessor": {"room_id": room}}},
            {"creation_content": {"predecessor": {"room_id": room}}, "is_direct": True, "invite": [b.user_id]},
            {"initial_state": [{"type": "jp.heya.room", "state_key": "", "content": {**sheet, "status": "open"}}],
             "is_direct": True, "invite": [b.user_id]},
            {"room_id": room}, {"initial_state": [{"type": "jp.heya.room", "state_key": "", "room_id": room, "content": sheet}]},
        ):
            answer = person.client.post("/_matrix/client/v3/createRoom", body)
            if answer.status == 200:
                made = answer.json["room_id"]
                assert made != room
                assert person.client.get(f"{R}{quote(made)}/state/jp.heya.room").status in (403, 404), body
                assert server.internal.get(f"/_heya/v1/rooms/{quote(made)}").told == NOT_FOUND
    bot = server.as_city().post("/_matrix/client/v3/createRoom", {"creation_content": {"predecessor": {"room_id": room}}})
    assert bot.status in (200, 400, 403), bot
    # The same case again is the same room, and it stays closed.
    assert events_of(server, room) == before and status(server, room) == "closed"


def test_what_goes_on_in_a_closed_room(any_city: Server, folk):
    server, (a, b, c, d) = any_city, folk
    room = server.room(a, b, c, d)
    event = a.client.say(room, "よろしくお願いします")
    server.close_room(room)
    since = b.client.sync()["next_batch"]
    path = f"{R}{quote(room)}"
    assert a.client.post(f"{path}/receipt/m.read/{quote(event)}").status == 200
    assert event in json.dumps(b.client.sync(since)["rooms"]["join"][room]["ephemeral"]), "others see the receipt"
    assert a.client.post(f"{path}/receipt/m.read.private/{quote(event)}").status == 200
    assert a.client.post(f"{path}/read_markers", {"m.fully_read": event, "m.read": event}).status == 200
    own = f"/_matrix/client/v3/user/{quote(a.user_id)}/rooms/{quote(room)}"
    assert a.client.put(f"{own}/account_data/jp.example.note", {"a": 1}).status == 200
    assert a.client.get(f"{own}/account_data/jp.example.note").json == {"a": 1}
    assert a.client.put(f"{own}/tags/m.favourite", {"order": 0.5}).status == 200
    assert a.client.delete(f"{own}/tags/m.favourite").status == 200
    assert c.client.post(f"{path}/leave").status == 200
    assert c.client.post(f"{path}/forget").status == 200
    assert server.change_members(room, remove=[d])["removed"] == [d.user_id]
    assert d.client.get(f"{path}/event/{quote(event)}").told == NOT_FOUND
    assert a.client.messages(room)
    wait_for(lambda: search(a, "よろしく"), 30, 0.1, "what was written in the index")
    server.act(f"rooms/{quote(room)}/reopen", {"case": "r", "notice": "再開しました。"})
    assert status(server, room) == "open"
    assert "再開しました。" in json.dumps(a.client.messages(room)[:5], ensure_ascii=False)
    assert b.client.say(room, "また書けます")


def test_a_notice_does_not_enter_a_closed_liaison_room(any_city: Server):
    """The city's notices are writes as others are."""
    server = any_city
    facility = server.facility()
    person = server.person(facility, kind="facility")
    body = {"case": "n1", "body": "お知らせ一", "facilities": [facility]}
    assert server.act("announcements", body)["facilities"] == 1
    joined = person.client.ok("GET", "/_matrix/client/v3/joined_rooms")["joined_rooms"]
    room = next(row["room_id"] for row in server.look("rooms")["rooms"]
                if row["kind"] == "liaison" and row["room_id"] in joined)
    server.close_room(room)
    before = events_of(server, room)
    answer = server.act("announcements", {**body, "case": "n2", "body": "お知らせ二"}, expect=None)
    assert answer.status in (200, 403, 409), answer
    assert events_of(server, room) == before
    if answer.status == 200:
        assert "お知らせ二" in person.client.get("/_matrix/client/v3/sync").text, "answered 200 and told to nobody"


# 2. Archive ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archived(any_city: Server, folk):
    """A room before and after its archiving, with what its members had from it."""
    server, (a, b, c, d) = any_city, folk
    room, name = subject_room(server, a, b)
    mxc, _ = picture(a, room)
    event = b.client.say(room, f"発熱が続いています {name}")
    b.client.say(room, "返信", **{"m.relates_to": {"rel_type": "m.thread", "event_id": event}})
    a.client.say(room, "あなたへ", **{"m.mentions": {"user_ids": [b.user_id]}})
    state = a.client.ok("GET", f"{R}{quote(room)}/state/m.room.name?format=event")["event_id"]
    world = World(server, room, a, c, a, b, d, event, event, state, mxc)
    world.name, world.open = name, life(server, room, "archive")
    server.close_room(room)
    world.since = {p.user_id: p.client.sync()["next_batch"] for p in (a, b)}
    waiting = {}

    def wait() -> None:
        client = server.public(b.terminal, b.token)
        waiting["answer"] = client.sync(world.since[b.user_id], timeout=15000)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    world.key = secrets.token_hex(8)
    world.answer = lived(server, room, "archive", key=world.key, case="the same")
    thread.join(30)
    world.waited = waiting.get("answer")
    return world


def test_archiving_removes_everybody(archived):
    server, room = archived.server, archived.room
    assert archived.open.told == STATE and archived.open.json["status"] == "open"
    assert archived.answer == {"archived": True, "removed": 2}
    assert lived(server, room, "archive", key=archived.key, case="the same") == archived.answer, "the same key"
    assert lived(server, room, "archive") == {"archived": True, "removed": 0}
    row = server.look(f"rooms/{quote(room)}")
    assert (row["status"], row["members"]) == ("archived", []) and row["archived_at"] >= row["closed_at"]
    assert room in [one["room_id"] for one in server.look("rooms?status=archived")["rooms"]]
    assert room not in [one["room_id"] for one in server.look("rooms?status=closed")["rooms"]]
    assert "room.archive" in audit(server, room)


@pytest.mark.parametrize("what", [*READS, "context of late", "timestamp", "threads", "hierarchy", "aliases", "summary",
                                  "event report", "own account data", "initial sync"])
def test_former_members_read_nothing_of_an_archived_room(archived, what):
    """DESIGN 14, 15: hidden from all who were in it."""
    w = archived
    more = {
        "context of late": ("GET", f"{R}{quote(w.room)}/context/{quote(w.event)}?limit=50"),
        "timestamp": ("GET", f"/_matrix/client/v1/rooms/{quote(w.room)}/timestamp_to_event?ts=0&dir=f"),
        "threads": ("GET", f"/_matrix/client/v1/rooms/{quote(w.room)}/threads"),
        "hierarchy": ("GET", f"/_matrix/client/v1/rooms/{quote(w.room)}/hierarchy"),
        "aliases": ("GET", f"{R}{quote(w.room)}/aliases"),
        "summary": ("GET", f"/_matrix/client/v1/room_summary/{quote(w.room)}"),
        "event report": ("POST", f"{R}{quote(w.room)}/report/{quote(w.event)}"),
        "own account data": ("GET", f"/_matrix/client/v3/user/{{me}}/rooms/{quote(w.room)}/account_data/m.fully_read"),
        "initial sync": ("GET", f"{R}{quote(w.room)}/initialSync"),
    }
    method, path = more.get(what) or ("GET", READS[what](w))
    for person in (w.left, w.removed, w.never, w.server.first_staff()):
        answer = person.client.request(method, path.replace("{me}", quote(person.user_id)),
                                       json_body={"reason": "x"} if method == "POST" else None)
        if what == "event report":
            # The same answer as for an event that there is not: test_rooms_more.py.
            assert answer.status == 200 and answer.json == {}
            continue
        assert answer.status in ((403,) if what in READS and not what.endswith("event") else (403, 404)), answer
        assert "発熱" not in answer.text and w.name not in answer.text
    city = w.server.as_city().request(method, path.replace("{me}", quote(w.server.city_user)),
                                      json_body={"reason": "x"} if method == "POST" else None)
    assert city.status in (200, 403, 404), city


def test_an_archived_room_is_in_no_search_medium_or_list(archived):
    w = archived
    for person in (w.left, w.removed, w.server.first_staff()):
        assert w.event not in search(person, "発熱")
        assert w.room not in person.client.ok("GET", "/_matrix/client/v3/joined_rooms")["joined_rooms"]
        assert w.name not in person.client.get("/_matrix/client/v3/notifications").text
        assert w.room not in person.client.get("/_matrix/client/v3/notifications").text
    # b, who did not upload it.
    for path in (media_path(w.mxc), media_path(w.mxc).replace("/download/", "/thumbnail/") + "?width=32&height=32"):
        assert w.removed.client.get(path).status in (403, 404)


def test_the_photographer_reads_nothing_of_an_archived_room_either(archived):
    assert archived.left.client.get(media_path(archived.mxc)).status in (403, 404)


def test_sync_tells_of_the_archiving_once(archived):
    w = archived
    assert w.waited is not None and w.room in w.waited["rooms"]["leave"], "a waiting sync ends with the news"
    for person in (w.left, w.removed):
        first = person.client.sync(w.since[person.user_id])
        assert w.room in first["rooms"]["leave"]
        assert w.room not in first["rooms"].get("join", {})
        told = json.dumps(first["rooms"]["leave"][w.room], ensure_ascii=False)
        assert "発熱" not in told and w.name not in told, told
        second = person.client.sync(first["next_batch"])
        assert w.room not in second.get("rooms", {}).get("leave", {})
        assert w.room not in json.dumps(person.client.sync())
        full = person.client.get("/_matrix/client/v3/sync", query={
            "filter": '{"room":{"include_leave":true}}', "full_state": "true"}).text
        assert "発熱が続いています" not in full and w.name not in full and w.mxc not in full


def test_an_archived_room_is_not_brought_back(archived):
    server, room = archived.server, archived.room
    before = events_of(server, room)
    added = server.act(f"rooms/{quote(room)}/members", {"case": "x", "add": [archived.left.user_id]}, expect=None)
    assert added.status in (403, 409), added
    again = server.act(f"rooms/{quote(room)}/reopen", {"case": "y", "notice": "再開"}, expect=None)
    assert again.status in (403, 409), again
    for person in (archived.left, archived.removed):
        assert person.client.post(f"{R}{quote(room)}/join").told == FORBIDDEN
        assert person.client.put(f"{R}{quote(room)}/send/m.room.message/z", {"msgtype": "m.text", "body": "x"}).told == FORBIDDEN
    city = server.as_city()
    assert city.put(f"{R}{quote(room)}/send/m.room.message/z", {"msgtype": "m.text", "body": "x"}).told == FORBIDDEN
    assert city.post(f"{R}{quote(room)}/invite", {"user_id": archived.left.user_id}).told == FORBIDDEN
    assert events_of(server, room) == before and status(server, room) == "archived"
    for person in (archived.left, archived.removed):
        assert person.client.post(f"{R}{quote(room)}/forget").status == 200


# 3. Legal hold -------------------------------------------------------------------------------------------------------


def test_a_hold_stands_above_retention(forgetful: Server):
    """C28: legal hold wins over retention."""
    server = forgetful
    room, _ = subject_room(server, *server.crew)
    for reason in ({}, {"reason": ""}, {"reason": "  "}):
        assert life(server, room, "hold", **reason).told == (400, "M_MISSING_PARAM"), reason
    assert lived(server, room, "hold", reason="訴訟のため") == {"held": True}, "an open room may be held"
    assert lived(server, room, "hold", reason="訴訟のため、二度目") == {"held": True}
    server.close_room(room)
    lived(server, room, "archive")
    row = server.look(f"rooms/{quote(room)}")
    assert row["held"] is True and row["purge_from"] is not None
    assert life(server, room, "purge").told == (409, "JP_HEYA_HELD")
    server.restart()
    assert life(server, room, "purge").told == (409, "JP_HEYA_HELD"), "after a restart, too"
    assert events_of(server, room) > 5
    assert lived(server, room, "release", reason="終結") == {"held": False}
    assert lived(server, room, "release") == {"held": False}
    assert server.look(f"rooms/{quote(room)}")["held"] is False
    told = audit(server, room)
    assert lived(server, room, "purge")["events"] > 5
    assert "room.hold" in told and "訴訟のため" in told and "room.hold.end" in told


# Who may do all this -------------------------------------------------------------------------------------------------


def test_only_the_city_may(any_city: Server, folk):
    """Every call: the city's token, acting staff, a key."""
    server, (a, *_) = any_city, folk
    staff = server.first_staff()
    room, _ = archived_room(server, a)
    calls = {"archive": {}, "hold": {"reason": "x"}, "release": {}, "export": {}, "purge": {},
             "break-glass": {"reason": "x"}, "break-glass/end": {}, "redact": {"event_id": "$x", "reason": "x"}}
    mail = Client(server.internal_base, token=server.secret("mail.token"))
    for what, body in calls.items():
        path = f"/_heya/v1/rooms/{quote(room)}/{what}"
        body = {"case": "w", "acting": staff.user_id, **body}
        key = {"Idempotency-Key": secrets.token_hex(8)}
        for token in (a.token, staff.token, "", "nonsense"):
            assert server.internal.post(path, body, headers=key, token=token).status == 401, what
        assert mail.post(path, body, headers=key).status in (401, 403), what
        for client in (a.client, staff.client, server.public(a.terminal, server.secret("command.token"))):
            assert client.post(path, body, headers=key).status in (401, 404), what
        for acting in (a.user_id, server.city_user, f"@p999999:{server.server_name}", "@x:elsewhere.example"):
            assert life(server, room, what, acting=acting, **calls[what]).told == FORBIDDEN, (what, acting)
        without = {name: value for name, value in body.items() if name != "acting"}
        assert server.internal.post(path, without, headers=key).status in (400, 403), what
        assert server.internal.post(path, body).status == 400, f"{what} without a key"
        if what != "break-glass/end":
            assert life(server, "!" + "A" * 43, what, acting=staff, **calls[what]).told == NOT_FOUND, what
    row = server.look(f"rooms/{quote(room)}")
    assert (row["status"], row["held"]) == ("archived", False)
    assert a.client.get(f"{R}{quote(room)}/state").told == FORBIDDEN
    direct = a.client.ok("POST", "/_matrix/client/v3/createRoom", {"is_direct": True, "invite": [server.city_user]})["room_id"]
    for what, body in calls.items():
        if what != "break-glass/end":
            assert life(server, direct, what, acting=staff, **body).status in (400, 403, 404, 409), f"{what} of a private room"
    assert a.client.say(direct, "まだ使えます")
    for name in ("control_room", "announcement_room"):
        special = server.look("control")[name]
        server.act(f"rooms/{quote(special)}/close", {"case": "x", "notice": "x"}, expect=400)
        for what in ("archive", "purge"):
            assert life(server, special, what).told == STATE


def test_ending_in_a_room_that_is_none(any_city: Server):
    server = any_city
    answer = life(server, "!" + "A" * 43, "break-glass/end", acting=server.first_staff())
    assert answer.told == NOT_FOUND, answer


# 4. Export -----------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What a browser would make of index.html."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def whole(server: Server, answer: dict) -> pathlib.Path:
    """Checks that an exported folder is what its manifest and the answer say; the folder."""
    folder = server.data / answer["folder"]
    assert folder.parent == server.data / "exports"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    there = {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}
    del there["manifest.json"]
    assert manifest["files"] == answer["files"] == there
    assert {name: manifest[name] for name in ("room_number", "events", "media")} == {
        name: answer[name] for name in ("room_number", "events", "media")}
    assert {"index.html", "events.jsonl"} <= set(there)
    assert len(lines(folder)) == answer["events"]
    assert len([name for name in there if name.startswith("media/")]) == answer["media"]
    for path in (server.data / "exports", folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
        assert not path.is_symlink()
    return folder


def canonical(value) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def test_an_export_is_readable_and_complete(any_city: Server):
    """C27: readable, printable, complete; H19: export before deletion."""
    server = any_city
    a = server.person(server.facility("<b>太字</b>&事業所"), name="書出\"花子<i>")
    b = server.person(name="読取次郎")
    names = {p.user_id: server.search(p.login_id)["accounts"][0]["display_name"] for p in (a, b)}
    room, subject = subject_room(server, a, b)
    mxc, content = picture(a, room)
    odd = {"html": "<script>alert('x')</script><b onclick=alert(1)>太い</b>", "amp": "&lt;&amp; 「引用」 \"二重\" '一重'",
           "path": "../../etc/passwd", "lines": "一行目\n二行目\n  字下げ", "emoji": "😀 𠮷野 ①㈱"}
    for text in odd.values():
        b.client.say(room, text, format="org.matrix.custom.html", formatted_body="<img src=x onerror=alert(1)><script>x</script>")
    gone = b.client.say(room, "取り消す投稿の本文")
    b.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(gone)}/r1", {"reason": "書き間違い"})
    edited = a.client.say(room, "直す前の本文")
    a.client.say(room, "* 直した後の本文", **{"m.new_content": {"msgtype": "m.text", "body": "直した後の本文"},
                                      "m.relates_to": {"rel_type": "m.replace", "event_id": edited}})
    a.client.ok("PUT", f"{R}{quote(room)}/send/jp.example.vital/v1", {"temperature": "36.5"})
    # Files whose names and addresses lead elsewhere.
    evil = upload(a, PNG + b"evil")
    for name in ("../../../../evil-a.png", "..\\..\\evil-b.png", "/evil-c.png", "evil\u202egnp.exe", "evil-d.png\n<script>", "." * 3):
        a.client.say(room, name, msgtype="m.file", url=evil, filename=name, info={"mimetype": "../../x/<script>"})
    for url in (f"mxc://{server.server_name}/../../keys/ca.key", f"mxc://{server.server_name}/..%2f..%2fkeys%2fca.key",
                "mxc://evil.example/abc", "https://evil.example/x.png", "javascript:alert(1)", "file:///etc/passwd", "mxc://"):
        a.client.request("PUT", f"{R}{quote(room)}/send/m.room.message/{secrets.token_hex(4)}",
                         json_body={"msgtype": "m.image", "body": "x.png", "url": url})
    a.client.say(room, "https://evil.example/ と javascript:alert(1)")
    # Another room's photo, linked by somebody who cannot see it.
    other = server.person()
    stolen, stolen_content = picture(other, server.room(other), PNG + b"another room's")
    b.client.say(room, "盗用", msgtype="m.image", url=stolen)
    saw = {event["event_id"]: event for event in b.client.messages(room, "f")}
    answer = lived(server, room, "export")
    folder = whole(server, answer)
    assert re.fullmatch(r"exports/\d{4}-[A-Za-z0-9_-]+", answer["folder"]), "no name of a person in it"

    # events.jsonl: every event, in the room's order, as it was signed, and what the members saw.
    rows = lines(folder)
    assert [row["event_id"] for row in rows] == list(saw)
    for row in rows:
        pdu, seen = row["pdu"], saw[row["event_id"]]
        for name in ("type", "sender", "content", "origin_server_ts", "state_key"):
            assert pdu.get(name) == seen.get(name), (name, pdu, seen)
        bare = {name: value for name, value in pdu.items() if name not in ("unsigned", "signatures", "hashes")}
        if "redacted_because" not in seen.get("unsigned", {}):
            digest = base64.b64encode(hashlib.sha256(canonical(bare)).digest()).decode().rstrip("=")
            assert pdu["hashes"]["sha256"] == digest
        assert pdu["signatures"][server.server_name]
    text = (folder / "events.jsonl").read_text(encoding="utf-8")
    assert "取り消す投稿の本文" not in text, "what was removed is the auditor's"

    # Media: only this room's.
    hashes = {sha256(path) for path in (folder / "media").iterdir()}
    assert hashlib.sha256(content).hexdigest() in hashes
    assert hashlib.sha256(stolen_content).hexdigest() not in hashes, "a link is no right to read"
    assert hashes == {hashlib.sha256(one).hexdigest() for one in (content, PNG + b"evil")}
    assert not list(server.data.rglob("*evil*")) and not list(server.folder.glob("evil*"))
    assert (server.data / "keys" / "ca.key").read_bytes() not in [path.read_bytes() for path in folder.rglob("*") if path.is_file()]

    # index.html
    source = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(source)
    for text in odd.values():
        assert text in page.text, text
    for name in names.values():
        assert name in page.text, name
    assert subject in page.text and "写真です" in page.text and "直した後の本文" in page.text
    assert "取り消す投稿の本文" not in source
    assert re.search("取り消|削除され|取消", page.text), "removed posts are marked"
    assert "lang" in dict(page.tags)["html"] and dict(page.tags)["html"]["lang"] == "ja"
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "b", "i"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "data", "action"):
            if attributes.get(name):
                target = (folder / urllib.parse.unquote(attributes[name])).resolve()
                assert folder.resolve() in target.parents and target.is_file(), (tag, attributes)
    shown = [sha256(folder / attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    assert hashlib.sha256(content).hexdigest() in shown


def test_an_export_holds_nothing_that_a_click_would_run(any_city: Server, folk):
    """A file in the folder is opened beside patients' data, without a server's headers around it."""
    server, (a, *_) = any_city, folk
    room = server.room(a)
    script = b"<html><script>fetch('events.jsonl')</script></html>"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    for content, kind, name in ((script, "text/html", "a.html"), (svg, "image/svg+xml", "b.svg"), (script, "image/png", "c.html"),
                                (b"MZ\x90\x00", "application/x-msdownload", "d.exe"), (b"@echo off", "text/plain", "e.bat")):
        answer = a.client.post(f"/_matrix/media/v3/upload?filename={name}", body=content, headers={"Content-Type": kind})
        if answer.status == 200:
            a.client.say(room, name, msgtype="m.file", url=answer.json["content_uri"], filename=name, info={"mimetype": kind})
    folder = whole(server, lived(server, room, "export"))
    active = {".html", ".htm", ".xhtml", ".svg", ".svgz", ".xml", ".mht", ".js", ".exe", ".bat", ".cmd", ".hta"}
    found = [path.name for path in (folder / "media").iterdir() if path.suffix.lower() in active] if (folder / "media").is_dir() else []
    assert not found, found


STABLE_POLL, UNSTABLE_POLL = "m.poll", "org.matrix.msc3381.poll"


def poll(person: Person, room: str, prefix: str, question: str, answers: dict[str, str], most: int = 1) -> str:
    """Asks a question as clients do, by the accepted names of MSC3381 or by the earlier ones that many still send. Without
    the text for clients that know no polls, which may leave the answers out."""
    if prefix == STABLE_POLL:
        content = {"m.text": [{"body": question}], "m.poll": {
            "kind": "m.disclosed", "max_selections": most, "question": {"m.text": [{"body": question}]},
            "answers": [{"m.id": key, "m.text": [{"body": text}]} for key, text in answers.items()]}}
    else:
        text = "org.matrix.msc1767.text"
        content = {text: question, f"{prefix}.start": {
            "kind": f"{prefix}.disclosed", "max_selections": most, "question": {text: question},
            "answers": [{"id": key, text: answer} for key, answer in answers.items()]}}
    return sent(person, room, f"{prefix}.start", content)


def vote(person: Person, room: str, prefix: str, start: str, *keys: str) -> None:
    chosen = {"m.selections": list(keys)} if prefix == STABLE_POLL else {f"{prefix}.response": {"answers": list(keys)}}
    sent(person, room, f"{prefix}.response", chosen | {"m.relates_to": {"rel_type": "m.reference", "event_id": start}})


def sent(person: Person, room: str, kind: str, content: dict) -> str:
    return person.client.ok("PUT", f"{R}{quote(room)}/send/{kind}/{secrets.token_hex(6)}", content)["event_id"]


@pytest.mark.parametrize("prefix", [STABLE_POLL, UNSTABLE_POLL])
def test_an_exported_poll_can_be_read(any_city: Server, folk, prefix: str):
    """Question, answers, who voted for what and the end, in words: an answer's id says nothing to who reads the page."""
    server, (a, b, c, *_) = any_city, folk
    room, _ = subject_room(server, a, b, c)
    answers = {secrets.token_hex(8): text for text in ("木曜日の午後", "金曜日の<b>午前</b>", "どちらでも")}
    thursday, friday, either = answers
    start = poll(a, room, prefix, "担当者会議はいつがよいですか", answers, 2)
    vote(b, room, prefix, start, thursday)
    vote(c, room, prefix, start, friday, either)
    vote(b, room, prefix, start, friday)
    vote(c, room, prefix, start, "no-such-answer")
    text = {"m.text": [{"body": "会議は金曜日に決まりました"}]} if prefix == STABLE_POLL else {
        "org.matrix.msc1767.text": "会議は金曜日に決まりました", f"{prefix}.end": {}}
    sent(a, room, f"{prefix}.end", text | {"m.relates_to": {"rel_type": "m.reference", "event_id": start}})
    folder = whole(server, lived(server, room, "export"))
    source = (folder / "index.html").read_text(encoding="utf-8")
    asked, first, two, second, spoilt, end = (Page(part).text for part in source.split("<article>")[-6:])
    assert "担当者会議はいつがよいですか" in asked and a.login_id in asked
    for answer in answers.values():
        assert answer in asked, answer
    for told, voter, chosen in ((first, b, {thursday}), (two, c, {friday, either}), (second, b, {friday}), (spoilt, c, set())):
        assert voter.login_id in told
        assert {key for key, answer in answers.items() if answer in told} == chosen, told
    assert "会議は金曜日に決まりました" in end and a.login_id in end
    # Words only: no name of a type, no id of an answer.
    for word in (prefix, "msc3381", *answers, "no-such-answer"):
        assert word not in source, word


def test_a_vote_says_nothing_of_who_asks_in_anothers_place(any_city: Server, folk):
    """B puts words of B's into A's poll; C votes; A takes the poll back. The page must not say that C chose B's words."""
    server, (a, b, c, *_) = any_city, folk
    room, _ = subject_room(server, a, b, c)
    start = poll(a, room, STABLE_POLL, "いつにしますか", {"x": "木曜日"}, 1)
    sent(b, room, f"{STABLE_POLL}.start", {
        "m.relates_to": {"rel_type": "m.replace", "event_id": start},
        "m.new_content": {"m.poll": {"question": {"m.text": [{"body": "?"}]}, "answers": [{"m.id": "x", "m.text": [{"body": "偽の言葉"}]}]}}})
    vote(c, room, STABLE_POLL, start, "x")
    a.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(start)}/back", {})
    folder = whole(server, lived(server, room, "export"))
    articles = [Page(part).text for part in (folder / "index.html").read_text(encoding="utf-8").split("<article>")]
    votes = [text for text in articles if "投票への回答" in text]
    assert len(votes) == 1 and c.login_id in votes[0] and "偽の言葉" not in votes[0], votes


def test_the_same_export_again(any_city: Server, folk):
    server, (a, b, *_) = any_city, folk
    room, _ = subject_room(server, a, b)
    picture(a, room)
    key = secrets.token_hex(8)
    first = lived(server, room, "export", key=key, case="e")
    assert lived(server, room, "export", key=key, case="e") == first
    a.client.say(room, "その後")
    assert lived(server, room, "export", key=key, case="e") == first, "what the first call answered"
    whole(server, first)
    second = lived(server, room, "export")
    assert second["folder"] != first["folder"] and second["events"] == first["events"] + 1
    # In every state, and everybody's at once.
    server.close_room(room)
    closed = lived(server, room, "export")
    lived(server, room, "archive")
    again = lived(server, room, "export")
    assert closed["events"] < again["events"], "the removals are events"
    for answer in (first, second, closed, again):
        whole(server, answer)
    key = secrets.token_hex(8)
    calls = [Call(server, f"rooms/{quote(room)}/export", {"case": "both"}, key) for _ in range(3)]
    for call in calls:
        call.join(60)
    assert [call.answer.status for call in calls] == [200] * 3
    assert len({call.answer.json["folder"] for call in calls}) == 1, "the same call waits for the same export"
    assert audit(server, room).count("room.export") >= 4


BIG = 2500


def test_an_export_that_was_killed_is_made_whole(database: str, fresh):
    server = fresh(database)
    a = server.person()
    room, _ = subject_room(server, a)
    for _ in range(5):
        picture(a, room, PNG + secrets.token_bytes(3_000_000))
    fill(server, room, BIG)
    key, body = secrets.token_hex(8), {"case": "killed"}
    exports = server.data / "exports"
    kills = 0
    for threshold in (1, 400_000, 1_500_000):
        call = Call(server, f"rooms/{quote(room)}/export", body, key)
        written = lambda: exports.exists() and sum(  # noqa: E731
            path.stat().st_size for path in exports.rglob("*") if path.is_file()) >= threshold
        with contextlib.suppress(FileNotFoundError):
            if at_once(written, call, "a part of the export"):
                server.kill()
                kills += 1
        call.join(30)
        if server.process.poll() is not None:
            server.start()
        if call.answer is not None:
            break
    assert kills, "never in the middle"
    answer = server.act(f"rooms/{quote(room)}/export", body, key=key)
    folder = whole(server, answer)
    assert answer["events"] == events_of(server, room) >= BIG
    assert len({row["event_id"] for row in lines(folder)}) == answer["events"]
    assert answer["media"] == 5
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>") and f"記録 {BIG - 1} " in page and "記録 0 " in page
    assert server.act(f"rooms/{quote(room)}/export", body, key=key) == answer
    assert [path for path in exports.iterdir()] == [folder], "no half of an export lies about"


# 5. Purge ------------------------------------------------------------------------------------------------------------


def test_nothing_is_purged_before_its_time(any_city: Server, folk):
    """C28: five years by default."""
    server, (a, *_) = any_city, folk
    room, _ = subject_room(server, a)
    assert life(server, room, "purge").told == STATE
    server.close_room(room)
    answer = life(server, room, "purge")
    assert answer.told == STATE and answer.json["status"] == "closed"
    lived(server, room, "archive")
    answer = life(server, room, "purge")
    row = server.look(f"rooms/{quote(room)}")
    assert answer.told == (409, "JP_HEYA_RETAINED")
    japan = datetime.timezone(datetime.timedelta(hours=9))
    assert answer.json["until"] == datetime.datetime.fromtimestamp(row["purge_from"] / 1000, japan).date().isoformat()
    years = (row["purge_from"] - row["closed_at"]) / (365.2425 * 86_400_000)
    assert abs(years - 5) < 0.01, years
    assert row["status"] == "archived" and events_of(server, room) > 5


def forms(word: str) -> list[bytes]:
    """A word as it may stand in a file."""
    return [word.encode(), json.dumps(word)[1:-1].encode(), word.encode("utf-16-le"), urllib.parse.quote(word).encode()]


def dump(server: Server) -> str:
    """All rows of all tables."""
    if server.postgres_name:
        url = Postgres.shared().database_url(server.postgres_name)
        done = subprocess.run([PG_BIN / "pg_dump", "--data-only", "--inserts", url], capture_output=True, check=True)
        return done.stdout.decode(errors="replace")
    with contextlib.closing(sqlite3.connect(f"file:{server.data / 'heya.sqlite'}?mode=ro", uri=True, timeout=10)) as connection:
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = []
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                rows.append(table + ": " + "|".join(
                    one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in row))
        return "\n".join(rows)


class Purged:
    """A room that had everything and is purged; beside it another one that must not notice."""

    def __init__(self, server: Server) -> None:
        self.server = server
        a, b, c = server.crew
        self.people = (a, b, c)
        staff = server.first_staff()
        self.room, self.name = subject_room(server, a, b)
        self.other = server.room(a, c, name="ほかの部屋")
        self.other_event = c.client.say(self.other, "ほかの部屋の発熱")
        self.words = [self.name, f"本文{secrets.token_hex(6)}", RARE, f"取消{secrets.token_hex(6)}", f"反応{secrets.token_hex(4)}",
                      f"題名{secrets.token_hex(6)}", f"目印{secrets.token_hex(6)}", f"通報{secrets.token_hex(6)}"]
        self.mxc, self.content = picture(a, self.room, body=f"{self.words[1]}の写真", filename=f"{self.name}.png")
        b.client.get(media_path(self.mxc).replace("/download/", "/thumbnail/") + "?width=32&height=32")
        self.shared, self.shared_content = picture(a, self.room)
        a.client.say(self.other, "同じ写真", msgtype="m.image", url=self.shared)
        # The same bytes, uploaded twice, once for each room.
        self.twin_content = PNG + secrets.token_bytes(16)
        self.twin, _ = picture(b, self.room, self.twin_content)
        self.other_twin, _ = picture(c, self.other, self.twin_content)
        self.event = b.client.say(self.room, f"{self.words[1]} {RARE}があります")
        for n in range(30):
            a.client.say(self.room, f"{self.words[1]} {n}")
        gone = b.client.say(self.room, self.words[3])
        b.client.ok("PUT", f"{R}{quote(self.room)}/redact/{quote(gone)}/p1", {"reason": self.words[3]})
        b.client.ok("PUT", f"{R}{quote(self.room)}/send/m.reaction/p2", {
            "m.relates_to": {"rel_type": "m.annotation", "event_id": self.event, "key": self.words[4]}})
        server.as_city().ok("PUT", f"{R}{quote(self.room)}/state/m.room.topic", {"topic": self.words[5]})
        a.client.ok("POST", f"{R}{quote(self.room)}/receipt/m.read/{quote(self.event)}", {})
        a.client.ok("POST", f"{R}{quote(self.room)}/read_markers", {"m.fully_read": self.event})
        a.client.ok("PUT", f"/_matrix/client/v3/user/{quote(a.user_id)}/rooms/{quote(self.room)}/account_data/jp.example.note",
                    {"note": self.words[6]})
        b.client.ok("POST", f"{R}{quote(self.room)}/report/{quote(self.event)}", {"reason": self.words[7]})
        self.since = {p.user_id: p.client.sync()["next_batch"] for p in (a, b)}
        wait_for(lambda: search(b, RARE) == [self.event], 30, 0.1, "the event in the index, alone")
        server.close_room(self.room)
        lived(server, self.room, "break-glass", reason="確認のため", acting=staff)
        lived(server, self.room, "break-glass/end", acting=staff)
        lived(server, self.room, "archive")
        self.export = lived(server, self.room, "export")
        self.ids = [row["event_id"] for row in lines(server.data / self.export["folder"])]
        shutil.rmtree(server.data / "exports")  # the city has taken it away
        self.other_before = c.client.messages(self.other)
        self.key = secrets.token_hex(8)
        self.answer = lived(server, self.room, "purge", key=self.key, case="purge")


@pytest.fixture(scope="module")
def purged(forgetful: Server) -> Purged:
    return Purged(forgetful)


def test_an_auditor_is_told_of_a_purge(purged: Purged):
    """Not that nothing was ever edited or redacted there (C26)."""
    server = purged.server
    words = ("audit", "originals", "--room", str(purged.answer["room_number"]), "--reason", "監査")
    done = subprocess.run(server.command(*words), capture_output=True, text=True, timeout=60, cwd=server.folder)
    assert done.returncode == 0 and re.fullmatch(r"部屋番号\d+の部屋は消去されています。\n", done.stdout), done


def test_a_purge_tells_what_it_did(purged: Purged):
    server = purged.server
    answer, row = purged.answer, server.look(f"rooms/{quote(purged.room)}")
    assert answer["events"] == purged.export["events"] and (answer["media"], purged.export["media"]) == (2, 3)  # one stays: another room shows it
    assert answer["room_number"] == purged.export["room_number"] == row["room_number"]
    assert answer["opened_by_case"].startswith("life-")
    assert answer["digest"] == hashlib.sha256("".join(f"{one}\n" for one in purged.ids).encode()).hexdigest()
    assert lived(server, purged.room, "purge", key=purged.key, case="purge") == answer
    assert (row["status"], row["members"], row["name"]) == ("purged", [], None)
    assert purged.room in [one["room_id"] for one in server.look("rooms?status=purged")["rooms"]]
    page = (server.data / answer["certificate"])
    assert page.stat().st_mode & 0o777 == 0o600
    text = page.read_text(encoding="utf-8")
    assert not [word for word in purged.words if word in text] and "1931" not in text
    assert not [p.login_id for p in purged.people if p.login_id in text]
    assert answer["digest"] in text and f"{answer['events']}件" in text and f"{answer['media']}件" in text
    assert "消去証明書" in text and "<script" not in text
    told = audit(server, purged.room)
    assert "room.purge" in told and answer["digest"] in told
    assert not [word for word in purged.words if word in told]
    verified = subprocess.run(server.command("audit", "verify"), capture_output=True, text=True, timeout=60, cwd=server.folder)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_purged_room_is_reached_by_nobody(purged: Purged):
    server = purged.server
    a, b, c = purged.people
    staff = server.first_staff()
    for person in (a, b, c, staff):
        for path in (f"/event/{quote(purged.event)}", "/messages?dir=b", "/state", "/members", "/joined_members",
                     f"/context/{quote(purged.event)}", "/state/m.room.name"):
            assert person.client.get(f"{R}{quote(purged.room)}{path}").status in (403, 404), path
        assert purged.event not in search(person, purged.words[1]) and not search(person, RARE)
        for mxc in (purged.mxc, purged.twin):
            assert person.client.get(media_path(mxc)).status in (403, 404)
        whole_sync = person.client.get("/_matrix/client/v3/sync", query={
            "filter": '{"room":{"include_leave":true}}', "full_state": "true"})
        assert whole_sync.status == 200 and not [word for word in purged.words if word in whole_sync.text]
    city = server.as_city()
    for path in (f"/event/{quote(purged.event)}", "/messages?dir=b", "/state", "/state/jp.heya.room"):
        assert city.get(f"{R}{quote(purged.room)}{path}").status in (403, 404), path
    assert purged.room not in city.ok("GET", "/_matrix/client/v3/joined_rooms")["joined_rooms"]
    # An old token goes on.
    for person in (a, b):
        answer = person.client.get("/_matrix/client/v3/sync", query={"since": purged.since[person.user_id]})
        assert answer.status in (200, 400), answer
        assert not [word for word in purged.words if word in answer.text]
    for what, more in (("export", {}), ("hold", {"reason": "x"}), ("archive", {}),
                       ("break-glass", {"reason": "x", "acting": staff}), ("redact", {"event_id": purged.event, "reason": "x"})):
        assert life(server, purged.room, what, **more).status in (403, 404, 409), what
    for what in ("reopen", "members"):
        body = {"case": "x", "notice": "x", "add": [a.user_id]} if what == "members" else {"case": "x", "notice": "x"}
        assert server.act(f"rooms/{quote(purged.room)}/{what}", body, expect=None).status in (403, 404, 409), what
    assert a.client.post(f"{R}{quote(purged.room)}/forget").status in (200, 403, 404)


def test_a_client_that_was_away_is_told_that_it_left(purged: Purged):
    """Else the room stays in its list and its store for ever. A token that is refused is as good: it begins afresh."""
    # Not the first one: that one has asked to forget the room.
    for person in purged.people[1:2]:
        answer = person.client.get("/_matrix/client/v3/sync", query={"since": purged.since[person.user_id]})
        if answer.status == 200:
            assert purged.room in answer.json.get("rooms", {}).get("leave", {}), answer
        else:
            assert answer.told == (400, "M_UNKNOWN_POS")


def test_a_purged_room_stays_purged_after_a_restart(purged: Purged):
    server = purged.server
    server.restart()
    test_a_purged_room_is_reached_by_nobody(purged)
    assert lived(server, purged.room, "purge", key=purged.key, case="purge") == purged.answer
    test_other_rooms_do_not_notice_a_purge(purged)


def test_a_purge_ends_emergency_access(forgetful: Server):
    """Who reads an archived room in an emergency reads nothing more, and the server goes on."""
    server, staff = forgetful, forgetful.first_staff()
    room, name = archived_room(server, server.crew[0])
    lived(server, room, "break-glass", acting=staff, reason="確認")
    assert name in json.dumps(staff.client.messages(room), ensure_ascii=False)
    lived(server, room, "purge")
    for path in ("/messages?dir=b", "/state", "/members"):
        assert staff.client.get(f"{R}{quote(room)}{path}").status in (403, 404)
    assert room not in json.dumps(staff.client.sync().get("rooms", {}).get("join", {}))
    assert life(server, room, "break-glass/end", acting=staff).status in (200, 409)


def test_other_rooms_do_not_notice_a_purge(purged: Purged):
    a, b, c = purged.people
    bare = [{name: value for name, value in event.items() if name != "unsigned"} for event in c.client.messages(purged.other)]
    assert bare == [{name: value for name, value in event.items() if name != "unsigned"} for event in purged.other_before]
    found(c, "発熱", purged.other_event)
    for person in (a, c):
        assert person.client.get(media_path(purged.shared)).content == purged.shared_content
        assert person.client.get(media_path(purged.other_twin)).content == purged.twin_content
    assert b.client.get(media_path(purged.shared)).status in (403, 404), "b was in the purged room only"
    assert b.client.get(media_path(purged.twin)).status in (403, 404)


def test_a_purge_leaves_no_row(purged: Purged):
    """Every table, on both databases."""
    rows = dump(purged.server)
    left = {word: next(line[:300] for line in rows.splitlines() if word in line) for word in purged.words if word in rows}
    assert not left, left
    digest = hashlib.sha256(purged.content).hexdigest()
    assert digest not in rows


def test_a_purge_leaves_no_file(purged: Purged):
    server = purged.server
    names = {path.name: path for path in server.data.rglob("*") if path.is_file()}
    assert hashlib.sha256(purged.content).hexdigest() not in names
    assert hashlib.sha256(purged.shared_content).hexdigest() in names
    for path in (server.data / "media").rglob("*"):
        assert path.is_dir() or purged.content[-16:] not in path.read_bytes(), path
    for path in names.values():
        if "sqlite" not in path.name:
            assert not [word for word in purged.words if word.encode() in path.read_bytes()], path
    assert not [word for word in purged.words if word in server.log()]


def remains(folder: pathlib.Path, words: list[str]) -> dict[str, int]:
    """How often words stand in the raw bytes of the database's files."""
    found = {}
    for path in sorted(folder.glob("heya.sqlite*")):
        raw = path.read_bytes()
        for word in words:
            count = sum(raw.count(form) for form in set(forms(word)))
            if count:
                found[f"{path.name}: {word}"] = count
    return found


def anywhere(server: Server, words: list[str]) -> dict[str, int]:
    """How often words stand in the bytes of the files in the data folder, whatever they are."""
    found = {}
    for path in server.data.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            found |= {f"{path.name}: {word}": count for word in words if (count := sum(raw.count(form) for form in set(forms(word))))}
    return found


@pytest.fixture(scope="module")
def stopped() -> dict[str, dict[str, int]]:
    """What is left in the bytes of SQLite's files: while the server runs, when it has stopped, and after a checkpoint."""
    server = Server(config=NO_RETENTION)
    try:
        server.crew = [server.person() for _ in range(3)]
        room = Purged(server)
        # Where the log was being read when the purge ended, housekeeping empties it within a minute.
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not remains(server.data, room.words), 75, 0.5)
        found = {"running": remains(server.data, room.words)}
        server.stop()
        found["stopped"] = remains(server.data, room.words)
        with contextlib.closing(sqlite3.connect(server.data / "heya.sqlite")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        found["checkpointed"] = remains(server.data, room.words)
        return found
    finally:
        server.remove()


def test_a_purge_leaves_no_bytes_in_the_database_file(stopped):
    """Free pages of SQLite keep what was deleted, unless it is told otherwise."""
    assert not stopped["checkpointed"], stopped["checkpointed"]


def test_a_purge_leaves_no_bytes_beside_a_stopped_database(stopped):
    """The write-ahead log has every page as it was before the purge."""
    assert not stopped["stopped"], stopped["stopped"]


def test_a_purge_leaves_no_bytes_beside_a_running_database(stopped):
    """A server runs for months: the log is not cleaned by stopping it."""
    assert not stopped["running"], stopped["running"]


@pytest.mark.parametrize("how", ["after a crash", "when it is free"])
def test_a_purge_leaves_no_bytes_where_somebody_read_meanwhile(fresh, how: str):
    """A reader of SQLite's file, such as a backup, keeps the write-ahead log, with the pages as they were: it is emptied at
    the next start where the server died before it could be, and within a minute where it goes on."""
    server = fresh(config=NO_RETENTION)
    server.crew = [server.person() for _ in range(3)]
    # A connection that may write would empty the log itself when it is closed.
    path = f"file:{server.data / 'heya.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM accounts").fetchone()[0] > 3
        room = Purged(server)
        assert status(server, room.room) == "purged"
        if how == "after a crash":
            server.kill()
        assert anywhere(server, room.words), "nothing is left over: this proves nothing"
    if how == "after a crash":
        assert anywhere(server, room.words), "nothing is left over: this proves nothing"
        server.start()
        left = anywhere(server, room.words)
        assert not left, left
    else:
        wait_for(lambda: not anywhere(server, room.words), 75, 0.5, "the write-ahead log to be emptied")
    assert status(server, room.room) == "purged"
    assert room.other_event in [event["event_id"] for event in server.crew[2].log_in().messages(room.other)]


@contextlib.contextmanager
def watching(server: Server, room: str, events: int):
    """Gives a function that returns as soon as the first of so many events have gone."""
    sql = f"SELECT count(*) FROM events WHERE room_id = '{room}'"
    if server.postgres_name:
        url = Postgres.shared().database_url(server.postgres_name)
        loop = f"DO $$ BEGIN WHILE ({sql}) >= {events} LOOP PERFORM pg_sleep(0.001); END LOOP; END $$"
        psql = subprocess.Popen([shutil.which("psql") or PG_BIN / "psql", url, "-X", "-c", loop],
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(0.5)  # it is connected and counts
        try:
            yield lambda: psql.wait(60)
        finally:
            psql.kill()
            psql.wait()
        return
    path = f"file:{server.data / 'heya.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True, timeout=10)) as connection:
        yield lambda: wait_for(lambda: connection.execute(sql).fetchone()[0] < events, 60, 0, "the purge to begin")


@pytest.mark.parametrize("how", ["by itself", "by the same call"])
def test_a_purge_that_was_killed_goes_on(database: str, fresh, how: str):
    server = fresh(database, config=NO_RETENTION)
    a, b = server.person(), server.person()
    staff = server.first_staff()
    other = server.room(a, b)
    kept = b.client.say(other, "残る投稿")
    for _ in range(3):
        room, name = subject_room(server, a, b)
        photos = [picture(a, room)[1] for _ in range(5)]
        fill(server, room, BIG, RARE)
        server.close_room(room)
        lived(server, room, "archive")
        export = lived(server, room, "export")
        ids = [row["event_id"] for row in lines(server.data / export["folder"])]
        shutil.rmtree(server.data / "exports")
        key, body = secrets.token_hex(8), {"case": "killed"}
        with watching(server, room, export["events"]) as begun:
            call = Call(server, f"rooms/{quote(room)}/purge", body, key)
            begun()
            server.kill()
        call.join(30)
        left = events_of(server, room)
        print(f"killed with {left} of {export['events']} events left")
        server.start()
        # A purge may be over before the kill comes: another room, then.
        if call.answer is None and left < export["events"]:
            break
    assert call.answer is None and left < export["events"], "not in the middle"
    if status(server, room) != "purged":
        assert a.client.get(f"{R}{quote(room)}/messages?dir=b").told == FORBIDDEN
        for what, more in (("export", {}), ("archive", {}), ("break-glass", {"reason": "x", "acting": staff})):
            assert life(server, room, what, **more).status in (403, 409), what
    if how == "by itself":
        wait_for(lambda: status(server, room) == "purged", 90, 0.5, "the purge to go on by itself")
    answer = server.act(f"rooms/{quote(room)}/purge", body, key=key)
    assert (answer["events"], answer["media"]) == (export["events"], 5)
    assert answer["digest"] == hashlib.sha256("".join(f"{one}\n" for one in ids).encode()).hexdigest()
    assert status(server, room) == "purged" and events_of(server, room) == 0
    assert answer["digest"] in (server.data / answer["certificate"]).read_text(encoding="utf-8")
    rows = dump(server)
    assert name not in rows and RARE not in rows
    if database == "sqlite":
        wait_for(lambda: not anywhere(server, [name, RARE]), 75, 0.2, "the write-ahead log to be emptied")
    files = {path.name for path in (server.data / "media").rglob("*")}
    assert not files & {hashlib.sha256(photo).hexdigest() for photo in photos}
    assert kept in [event["event_id"] for event in a.client.messages(other)]
    assert a.client.say(other, "続けられます")
    assert audit(server, room).count("room.purged") == 1


# 6. Emergency access -------------------------------------------------------------------------------------------------


def test_emergency_access(any_city: Server, folk):
    """C14, C16: with a reason, told in the room at that moment, for a time, logged."""
    server, (a, b, *_) = any_city, folk
    staff = server.first_staff()
    room, name = subject_room(server, a, b)
    mxc, content = picture(a, room)
    event = a.client.say(room, f"緊急の内容 {name}")
    path = f"{R}{quote(room)}"
    assert staff.client.get(f"{path}/event/{quote(event)}").told == NOT_FOUND
    for reason in ({}, {"reason": ""}, {"reason": " "}):
        assert life(server, room, "break-glass", acting=staff, **reason).told == (400, "M_MISSING_PARAM"), reason
    assert life(server, room, "break-glass", acting=a, reason="x").told == FORBIDDEN
    assert life(server, room, "break-glass", reason="x").status in (400, 403), "of a person, not of a command"
    assert staff.client.get(f"{path}/event/{quote(event)}").told == NOT_FOUND
    since, staff_since = a.client.sync()["next_batch"], staff.client.sync()["next_batch"]
    now = time.time() * 1000
    key = secrets.token_hex(8)
    asked = {"acting": staff, "reason": "救急搬送の確認", "notice": "市が緊急閲覧を行います。", "key": key, "case": "b"}
    answer = lived(server, room, "break-glass", **asked)
    assert abs(answer["until"] - now - 24 * 3_600_000) < 60_000
    assert lived(server, room, "break-glass", **asked) == answer
    part = a.client.sync(since)["rooms"]["join"][room]["timeline"]["events"]
    notices = [one for one in part if one["content"].get("body") == "市が緊急閲覧を行います。"]
    assert len(notices) == 1 and notices[0]["sender"] == server.city_user
    joined = [one for one in part if one["type"] == "m.room.member" and one["state_key"] == staff.user_id
              and one["content"]["membership"] == "join"]
    assert joined and joined[0]["origin_server_ts"] - notices[0]["origin_server_ts"] < 30_000
    # Reads everything that a member reads.
    assert staff.client.get(f"{path}/event/{quote(event)}").status == 200
    assert event in [one["event_id"] for one in staff.client.messages(room)]
    assert staff.client.get(media_path(mxc)).content == content
    found(staff, name, event)
    assert room in staff.client.sync(staff_since)["rooms"]["join"]
    # Closed: reads on, writes nothing.
    server.close_room(room)
    assert staff.client.get(f"{path}/messages?dir=b").status == 200
    for method, where, body in (("PUT", "/send/m.room.message/q", {"msgtype": "m.text", "body": "x"}),
                                ("PUT", f"/redact/{quote(event)}/q", {}), ("POST", "/invite", {"user_id": folk[2].user_id}),
                                ("POST", "/kick", {"user_id": a.user_id}), ("PUT", "/state/m.room.topic", {"topic": "x"}),
                                ("PUT", f"/typing/{quote(staff.user_id)}", {"typing": True, "timeout": 1000})):
        assert staff.client.request(method, path + where, json_body=body).told == FORBIDDEN, where
    assert lived(server, room, "break-glass/end", acting=staff) == {}
    assert staff.client.get(f"{path}/event/{quote(event)}").told == NOT_FOUND
    for where in ("/messages?dir=b", "/state", "/members"):
        assert staff.client.get(path + where).told == FORBIDDEN, where
    assert staff.client.get(media_path(mxc)).status in (403, 404)
    assert event not in search(staff, name)
    assert life(server, room, "break-glass/end", acting=staff).status in (200, 409), "ended is ended"
    assert a.client.get(f"{path}/event/{quote(event)}").status == 200, "members stay"
    told = audit(server, room)
    assert "room.break_glass" in told and "救急搬送の確認" in told and "room.break_glass.end" in told
    assert re.search(re.escape(staff.user_id) + r".*room\.opened", told), "what was read is logged as all reading is"


@pytest.mark.parametrize("state", ["closed", "archived"])
def test_emergency_access_where_nobody_writes(any_city: Server, folk, state: str):
    """The notice is written all the same (DESIGN 15: break-glass note); without one, the reason stands there."""
    server, (a, b, *_) = any_city, folk
    staff = server.first_staff()
    room, name = subject_room(server, a, b)
    mxc, content = picture(a, room)
    event = a.client.say(room, f"閉じた部屋の内容 {name}")
    server.close_room(room)
    if state == "archived":
        lived(server, room, "archive")
    lived(server, room, "break-glass", acting=staff, reason="事故の調査")
    timeline = staff.client.messages(room)
    assert "事故の調査" in [one["content"].get("body") for one in timeline]
    assert event in [one["event_id"] for one in timeline]
    assert staff.client.get(media_path(mxc)).content == content
    found(staff, name, event)
    assert staff.client.put(f"{R}{quote(room)}/send/m.room.message/q", {"msgtype": "m.text", "body": "x"}).told == FORBIDDEN
    assert status(server, room) == state
    if state == "closed":
        assert "事故の調査" in [one["content"].get("body") for one in a.client.messages(room)]
    else:
        assert a.client.get(f"{R}{quote(room)}/messages?dir=b").told == FORBIDDEN, "for the one who asked only"
    lived(server, room, "break-glass/end", acting=staff)
    assert staff.client.get(f"{R}{quote(room)}/messages?dir=b").told == FORBIDDEN
    assert server.look(f"rooms/{quote(room)}")["members"] == [] or state == "closed"


def test_archiving_ends_emergency_access(any_city: Server, folk):
    server, (a, *_) = any_city, folk
    staff = server.first_staff()
    room, _ = subject_room(server, a)
    server.close_room(room)
    lived(server, room, "break-glass", acting=staff, reason="確認")
    lived(server, room, "archive")
    assert staff.client.get(f"{R}{quote(room)}/messages?dir=b").told == FORBIDDEN


def test_emergency_access_does_not_throw_a_member_out(any_city: Server, folk):
    """Staff who are members anyway stay members when it ends."""
    server, (a, *_) = any_city, folk
    staff = server.first_staff()
    room = server.room(a, staff)
    answer = life(server, room, "break-glass", acting=staff, reason="確認")
    assert answer.status in (200, 400, 409), answer
    life(server, room, "break-glass/end", acting=staff)
    assert staff.client.get(f"{R}{quote(room)}/messages?dir=b").status == 200
    assert staff.client.say(room, "メンバーのままです")


def test_emergency_access_is_of_each_person(any_city: Server, folk):
    server, (a, *_) = any_city, folk
    one, two = server.first_staff(), server.person(1)
    room, _ = subject_room(server, a)
    for person in (one, two):
        lived(server, room, "break-glass", acting=person, reason="確認")
    lived(server, room, "break-glass/end", acting=one)
    read = [person.client.get(f"{R}{quote(room)}/messages?dir=b").status for person in (one, two)]
    assert read == [403, 200]


def test_who_was_added_meanwhile_stays(any_city: Server, folk):
    server, staff = any_city, any_city.first_staff()
    room, _ = subject_room(server, folk[0])
    lived(server, room, "break-glass", acting=staff, reason="確認")
    server.change_members(room, add=[staff])
    lived(server, room, "break-glass/end", acting=staff)
    assert staff.client.get(f"{R}{quote(room)}/messages?dir=b").status == 200


@pytest.mark.skipif(LIBFAKETIME is None, reason="needs Debian's libfaketime: 24 hours cannot be waited for")
def test_emergency_access_ends_by_itself(database: str, fresh):
    server = fresh(database, config={"policy": {"break_glass_hours": 2}})
    a, staff = server.person(), server.first_staff()
    room, _ = subject_room(server, a)
    event = a.client.say(room, "内容")
    now = time.time() * 1000
    until = lived(server, room, "break-glass", acting=staff, reason="確認")["until"]
    assert abs(until - now - 2 * 3_600_000) < 60_000
    server.later("+1h")
    assert staff.client.get(f"{R}{quote(room)}/event/{quote(event)}").status == 200, "one hour of two"
    server.later("+3h")
    wait_for(lambda: staff.client.get(f"{R}{quote(room)}/event/{quote(event)}").status == 404, 75, 0.5, "its end")
    assert a.client.get(f"{R}{quote(room)}/event/{quote(event)}").status == 200
    assert staff.user_id not in a.client.ok("GET", f"{R}{quote(room)}/joined_members")["joined"]
    wait_for(lambda: "room.break_glass.end" in audit(server, room), 60, 1, "an entry in the audit log")


@pytest.mark.skipif(LIBFAKETIME is None, reason="needs Debian's libfaketime: five years cannot be waited for")
def test_five_years_later(database: str, fresh):
    """C28 with its default."""
    server = fresh(database)
    room, name = archived_room(server, server.person())
    until = server.look(f"rooms/{quote(room)}")["purge_from"]
    assert life(server, room, "purge").told == (409, "JP_HEYA_RETAINED")
    days = int((until / 1000 - time.time()) / 86_400)
    server.later(f"+{days - 1}d")
    assert life(server, room, "purge").told == (409, "JP_HEYA_RETAINED")
    server.later(f"+{days + 2}d")
    assert lived(server, room, "purge")["events"] > 5
    assert name not in dump(server)


# Rooms of two people ------------------------------------------------------------------------------------------------


def of_two(a: Person, b: Person) -> str:
    """A direct room with both in it."""
    room = a.client.ok("POST", "/_matrix/client/v3/createRoom", {"is_direct": True, "invite": [b.user_id]})["room_id"]
    b.client.ok("POST", f"/_matrix/client/v3/join/{quote(room)}", {})
    return room


def left(room: str, *people: Person) -> None:
    for person in people:
        person.client.ok("POST", f"{R}{quote(room)}/leave", {})


def archived_by_itself(server: Server, room: str) -> dict | None:
    """The row of a room that the server has archived; each start looks, and each minute."""
    return next((row for row in server.look("rooms?status=archived")["rooms"] if row["room_id"] == room), None)


def test_a_room_of_two_ends_when_nobody_is_left(database: str, fresh):
    """C28: while somebody is in it, never by itself; then it goes the way of the city's rooms."""
    server = fresh(database)
    facility = server.facility()
    a, b, c = (server.person(facility) for _ in range(3))
    server.room(a, b, c)
    room, kept, ended = of_two(a, b), of_two(a, c), of_two(b, c)
    secret = f"相談{secrets.token_hex(5)}"
    event = a.client.say(room, secret)
    mxc, content = picture(b, room)
    a.client.ok("PUT", f"{R}{quote(room)}/state/m.room.name", {"name": secret})
    waiting = a.client.ok("POST", "/_matrix/client/v3/createRoom", {"is_direct": True, "invite": [c.user_id]})["room_id"]
    left(room, a)
    left(kept, c)
    left(ended, b)
    left(waiting, a)
    server.restart()
    wait_for(lambda: archived_by_itself(server, waiting), 20, 0.2, "the room that nobody came into")
    assert waiting not in c.client.sync()["rooms"].get("invite", {}), "nobody is invited into it any more"
    for still in (room, kept, ended):
        assert archived_by_itself(server, still) is None, "somebody is there"
    b.client.say(room, "まだいます")
    assert life(server, room, "hold", reason="x").status == 404, "no room of the city yet"
    before = int(time.time() * 1000) - 5_000
    left(room, b)
    server.act(f"accounts/{quote(c.user_id)}/end", {"reason": "退職"})
    server.restart()
    row = wait_for(lambda: archived_by_itself(server, room), 20, 0.2, "the room that both have left")
    wait_for(lambda: archived_by_itself(server, ended), 20, 0.2, "the room of somebody who has left and an ended account")
    assert archived_by_itself(server, kept) is None
    assert row["kind"] == "direct" and row["members"] == 0 and secret not in json.dumps(row, ensure_ascii=False)
    assert row["name"] == f"二人の部屋（{'、'.join(sorted([a.login_id, b.login_id]))}）"
    assert before < row["closed_at"] < time.time() * 1000, "counted from when the last one left"
    assert abs(row["purge_from"] - row["closed_at"] - 5 * 31_557_600_000) < 1
    log = audit(server, room)
    assert re.search(rf"server room\.archive ok .*{a.login_id}", log) and secret not in log
    # Nobody comes back; what the city does as a member of its rooms it cannot do here.
    for person in (a, b):
        assert person.client.post(f"/_matrix/client/v3/join/{quote(room)}", {}).status == 403
        assert person.client.get(f"{R}{quote(room)}/event/{quote(event)}").status in (403, 404)
    staff = server.first_staff()
    assert life(server, room, "break-glass", acting=staff, reason="確認").told == STATE
    assert life(server, room, "redact", event_id=event, reason="x").told == STATE
    assert server.act(f"rooms/{quote(room)}/reopen", {"case": "x1", "notice": "x"}, expect=None).told == STATE
    # What is left: hold, export, and the end when the time has come.
    lived(server, room, "hold", reason="訴訟のため")
    assert life(server, room, "purge").told == (409, "JP_HEYA_HELD")
    lived(server, room, "release")
    assert life(server, room, "purge").told == (409, "JP_HEYA_RETAINED")
    export = lived(server, room, "export")
    folder = whole(server, export)
    assert secret in (folder / "index.html").read_text() and hashlib.sha256(content).hexdigest() in export["files"].values()


def test_a_room_of_two_is_purged_as_others_are(forgetful: Server):
    server = forgetful
    a, b, c = server.crew
    server.room(a, b, c)
    secret = f"二人{secrets.token_hex(5)}"
    room, other = of_two(a, b), of_two(a, c)
    a.client.say(room, secret)
    mxc, content = picture(b, room, filename=f"{secret}.png")
    a.client.say(other, "別の部屋")
    left(room, a, b)
    server.restart()
    row = wait_for(lambda: archived_by_itself(server, room), 20, 0.2, "its end")
    staff = server.first_staff()
    number = str(row["room_number"])
    wait_for(lambda: any(re.search(rf"部屋番号：.*\b{number}\b", event["content"].get("body", ""))
                         for event in staff.client.messages(server.look("control")["control_room"])), 20, 0.2,
             "the word that its retention has run out")
    done = lived(server, room, "purge")
    assert done["events"] > 5 and done["media"] == 1
    page = (server.data / done["certificate"]).read_text()
    assert "二人の部屋" in page and secret not in page
    assert secret not in dump(server)
    assert events_of(server, room) == 0 and server.look(f"rooms/{quote(room)}")["status"] == "purged"
    assert not [path for path in (server.data / "media").rglob("*") if path.is_file() and path.read_bytes() == content]
    assert c.client.put(f"{R}{quote(other)}/send/m.room.message/still", {"msgtype": "m.text", "body": "続く"}).status == 200


# 7. Redaction by order -----------------------------------------------------------------------------------------------


def test_redaction_by_order(any_city: Server, folk):
    """DESIGN 15, C26: in any state; the original stays for the auditor."""
    server, (a, b, *_) = any_city, folk
    staff = server.first_staff()
    room, _ = subject_room(server, a, b)
    word = f"誤記{secrets.token_hex(5)}"
    mxc, content = picture(a, room, body=word)
    first = a.client.messages(room)[0]["event_id"]
    second = b.client.say(room, f"{word} 二つ目")
    third = b.client.say(room, f"{word} 三つ目")
    create = a.client.ok("GET", f"{R}{quote(room)}/state/jp.heya.room?format=event")["event_id"]
    elsewhere = a.client.say(server.room(a), word)
    wait_for(lambda: len(search(b, word)) >= 3, 30, what="the index")
    assert lived(server, room, "redact", event_id=second, reason="開いた部屋で", acting=staff)["event_id"].startswith("$")
    server.close_room(room)
    since = b.client.sync()["next_batch"]
    assert life(server, room, "redact", reason="x", acting=staff).told[0] == 400
    for bad in ("$x", "x", 5, elsewhere, "$" + "A" * 43):
        assert life(server, room, "redact", event_id=bad, reason="x", acting=staff).status in (400, 404), bad
    assert life(server, room, "redact", event_id=create, reason="x", acting=staff).status in (400, 403), "what a room is stays"
    key = secrets.token_hex(8)
    done = lived(server, room, "redact", event_id=first, reason="別の方の写真", acting=staff, key=key, case="r")
    assert lived(server, room, "redact", event_id=first, reason="別の方の写真", acting=staff, key=key, case="r") == done
    seen = b.client.ok("GET", f"{R}{quote(room)}/event/{quote(first)}")
    assert seen["content"] == {} and seen["unsigned"]["redacted_because"]["event_id"] == done["event_id"]
    told = b.client.sync(since)["rooms"]["join"][room]["timeline"]["events"]
    assert [one["type"] for one in told] == ["m.room.redaction"], told
    assert first not in search(b, word) and third in search(b, word)
    assert b.client.get(media_path(mxc)).status in (403, 404)
    assert status(server, room) == "closed"
    assert a.client.put(f"{R}{quote(room)}/redact/{quote(third)}/t", {}).told == FORBIDDEN
    lived(server, room, "archive")
    lived(server, room, "redact", event_id=third, reason="保管した部屋で", acting=staff)
    answer = lived(server, room, "export")
    folder = whole(server, answer)
    assert word not in (folder / "index.html").read_text() and word not in (folder / "events.jsonl").read_text()
    assert hashlib.sha256(content).hexdigest() not in answer["files"].values()
    log = audit(server, room)
    for event, reason in ((first, "別の方の写真"), (second, "開いた部屋で"), (third, "保管した部屋で")):
        assert re.search(re.escape(staff.user_id) + r".*room\.redact.*" + re.escape(event) + ".*" + reason, log), log
    originals = server.count(f"SELECT count(*) FROM event_originals WHERE event_id IN ('{first}', '{second}', '{third}')")
    assert originals == 3, "for the auditor"


# 8. Which mails ------------------------------------------------------------------------------------------------------


class Post:
    """A mailbox behind a real SMTP server."""

    def __init__(self) -> None:
        self.mails: list[email.message.EmailMessage] = []
        self.controller = Controller(self, hostname="127.0.0.1", port=0)

    async def handle_DATA(self, server, session, envelope) -> str:  # noqa: N802 (aiosmtpd's name)
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        mail.to = envelope.rcpt_tos
        self.mails.append(mail)
        return "250 OK"

    def to(self, address: str) -> list[str]:
        return [mail.get_content() for mail in list(self.mails) if address in mail.to]


@contextlib.contextmanager
def desk_with_mail(database: str = "sqlite", *, bot: bool = False, **config: dict) -> Iterator[Desk]:
    """Somebody at the control room of a city whose mails come into a box."""
    post = Post()
    # The port is not known before it is bound, and aiosmtpd checks port 0 by connecting to it.
    (port,) = free_ports(1)
    post.controller = Controller(post, hostname="127.0.0.1", port=port)
    post.controller.start()
    server = Server(database, bot=bot, config=config | {"mail": {
        "enabled": True, "smtp_host": "localhost", "smtp_port": port, "smtp_security": "none", "digest_seconds": 1}})
    try:
        server.post = post
        yield Desk(server)
    finally:
        server.remove()
        post.controller.stop()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def desk(request: pytest.FixtureRequest):
    """A city with bot and bridge that keeps nothing, and somebody at the control room."""
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    with desk_with_mail(request.param, bot=True, **NO_RETENTION) as desk:
        yield desk


class Desk:
    """City staff in the control room."""

    def __init__(self, server: Server) -> None:
        self.server, self.staff = server, server.first_staff()
        self.control = server.look("control")["control_room"]
        self.people = [server.person(name=f"窓口{n}{secrets.token_hex(2)}") for n in range(2)]

    def say(self, text: str, expect: str, *, person: Person | None = None, room: str | None = None) -> str:
        """Writes, and waits for the bot's answer that matches; the answer."""
        person, room = person or self.staff, room or self.control
        before = {event["event_id"] for event in person.client.messages(room)}
        person.client.say(room, text)
        return self.answer(expect, before, person, room, text)

    def approved(self, text: str, expect: str) -> str:
        """What never comes back is shown first and done when it is approved."""
        case = re.search(r"案件 (\d+)", self.say(text, "承認"))[1]
        return self.say(f"承認 {case}", expect)

    def answer(self, expect: str, before: set[str], person: Person, room: str, text: str) -> str:
        seen: list[str] = []

        def found() -> str | None:
            seen[:] = [event["content"].get("body", "") for event in person.client.messages(room)
                       if event["event_id"] not in before and event["sender"] == self.server.city_user]
            return next((body for body in seen if re.search(expect, body)), None)

        try:
            return wait_for(found, 60, 0.1)
        except AssertionError:
            raise AssertionError(f"{text!r}: waited for {expect!r}, the bot said {seen}") from None

    def number(self, room: str) -> int:
        return self.server.look(f"rooms/{quote(room)}")["room_number"]

    def mailbox(self, person: Person) -> str:
        """Adds and proves an address and switches mails on, as a standard client does it."""
        address = f"{person.login_id}-{secrets.token_hex(3)}@mail.example.jp"
        secret = secrets.token_hex(8)
        sid = person.client.ok("POST", "/_matrix/client/v3/account/3pid/email/requestToken", {
            "client_secret": secret, "email": address, "send_attempt": 1})["sid"]
        text = wait_for(lambda: self.server.post.to(address), 20, 0.1, "the mail that proves the address")[0]
        link = re.search(r"https://\S+", text)[0]
        browser = requests.Session()
        browser.verify, browser.trust_env = str(self.server.ca), False
        page = browser.get(link, timeout=20)
        form = {name: html.unescape(value) for name, value in re.findall(r'name="([^"]+)" value="([^"]*)"', page.text)}
        action = re.search(r'<form[^>]*action="([^"]+)"', page.text)
        done = browser.post(urllib.parse.urljoin(link, html.unescape(action[1])) if action else link, data=form, timeout=20)
        assert done.status_code == 200, done.text
        path, body = "/_matrix/client/v3/account/3pid/add", {"client_secret": secret, "sid": sid}
        answer = person.client.post(path, body)
        if answer.status == 401:
            auth = {"type": "m.login.password", "session": answer.json["session"], "password": person.password,
                    "identifier": {"type": "m.id.user", "user": person.login_id}}
            answer = person.client.post(path, {**body, "auth": auth})
        assert answer.status == 200, answer
        self.pusher(person, address)
        return address

    def pusher(self, person: Person, address: str) -> None:
        person.client.ok("POST", "/_matrix/client/v3/pushers/set", {
            "kind": "email", "app_id": "m.email", "pushkey": address, "app_display_name": "Email Notifications",
            "device_display_name": address, "lang": "ja", "data": {"brand": "Element"}, "append": True})

    def mails(self, address: str) -> int:
        return len(self.server.post.to(address))


def scope(server: Server, person: Person, value: str | None, acting: Person | None = None) -> Answer:
    return server.as_city().post(
        f"/_heya/v1/accounts/{quote(person.user_id)}/mail-scope",
        {"scope": value, "acting": (acting or person).user_id}, headers={"Idempotency-Key": secrets.token_hex(8)})


def test_the_mails_that_one_chose(desk: Desk):
    server, (a, b) = desk.server, desk.people
    staff = desk.staff
    assert scope(server, b, "all").told[0] in (200, 404, 409), "without an address"
    room, name = subject_room(server, a, b)
    direct = a.client.ok("POST", "/_matrix/client/v3/createRoom", {"is_direct": True, "invite": [b.user_id]})["room_id"]
    b.client.post(f"/_matrix/client/v3/join/{quote(direct)}")
    address = desk.mailbox(b)
    scope(server, b, "highlight")
    assert scope(server, b, None).json == {"scope": "highlight", "pushers": 1}
    for acting in (a, staff):
        assert scope(server, b, "all", acting).told == FORBIDDEN
    for bad in ("everything", "", 5, ["all"], "Message"):
        assert scope(server, b, bad).status == 400, bad
    assert b.client.post(f"/_heya/v1/accounts/{quote(b.user_id)}/mail-scope", {"scope": "all", "acting": b.user_id}).status in (401, 404)
    assert scope(server, b, None).json["scope"] == "highlight"

    def told(text: str, to: str = room, wait: float = 60, **more) -> bool:
        """Whether a post makes a mail within so many seconds; the next thing is only tried when it is settled."""
        before = desk.mails(address)
        a.client.say(to, text, **more)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: desk.mails(address) > before, wait, 0.1)
        return desk.mails(address) > before

    mention = {"m.mentions": {"user_ids": [b.user_id]}}
    assert not told("ふつうの投稿", wait=6)
    assert told("あなたへ", **mention)
    assert scope(server, b, "direct").json == {"scope": "direct", "pushers": 1}
    assert not told("ふつうの投稿", wait=6)
    assert told("二人の部屋で", direct)
    assert told("あなたへ", **mention)
    assert scope(server, b, "all").json == {"scope": "all", "pushers": 1}
    assert scope(server, b, None).json == {"scope": "all", "pushers": 1}
    assert told("ふつうの投稿")
    assert told("あなたへ", **mention)
    desk.pusher(b, address)  # a client that sets its pusher again
    assert scope(server, b, None).json == {"scope": "all", "pushers": 1}, "a choice outlives the client's switch"
    server.restart()
    assert scope(server, b, None).json == {"scope": "all", "pushers": 1}
    assert told("再起動のあとの投稿")
    assert scope(server, b, "highlight").json["scope"] == "highlight"
    assert not told("ふつうの投稿", wait=6)
    everything = "".join(mail.as_string() + mail.get_content() for mail in server.post.mails)
    assert name not in everything and "ふつうの投稿" not in everything


def test_nobody_is_mailed_about_somebody_they_ignore(desk: Desk):
    """Neither about a mention; about everybody else's as before, and about theirs again when it is over."""
    server, (a, pest) = desk.server, desk.people
    friend = server.person()
    quiet, loud = server.room(a, pest, friend), server.room(a, pest, friend)
    numbers = {desk.number(quiet): "quiet", desk.number(loud): "loud"}
    address = desk.mailbox(a)
    scope(server, a, "highlight")
    mention = {"m.mentions": {"user_ids": [a.user_id]}}

    def ignore(*users: Person) -> None:
        a.client.ok("PUT", f"/_matrix/client/v3/user/{quote(a.user_id)}/account_data/m.ignored_user_list",
                    {"ignored_users": {user.user_id: {} for user in users}})

    def told() -> set[str]:
        lines = re.findall(r"^部屋番号：(.*)$", "\n".join(server.post.to(address)), re.M)
        return {numbers[int(number)] for line in lines for number in re.findall(r"\d+", line) if int(number) in numbers}

    ignore(pest)
    pest.client.say(quiet, "無視される人から", **mention)
    friend.client.say(loud, "ほかの人から", **mention)
    wait_for(lambda: "loud" in told(), 20, 0.1, "the mail about the other's mention")
    # A digest lasts a second; the next mail is behind whatever was on its way.
    before = desk.mails(address)
    friend.client.say(loud, "もう一度", **mention)
    wait_for(lambda: desk.mails(address) > before, 20, 0.1, "the next mail")
    assert told() == {"loud"}
    ignore()
    pest.client.say(quiet, "また読まれる人から", **mention)
    wait_for(lambda: "quiet" in told(), 20, 0.1, "the mail about whom they ignore no more")


def test_an_urgent_post_says_so_in_its_mail(desk: Desk):
    """H17, 重要度: what a post begins with; its text is in no mail, and a correction does not ring again."""
    server, (a, b) = desk.server, desk.people
    room, _ = subject_room(server, a, b)
    address = desk.mailbox(b)
    scope(server, b, "all")

    def subject_of_next(text: str, **more) -> str:
        mails = [mail for mail in list(server.post.mails) if address in mail.to]
        a.client.say(room, text, **more)
        new = wait_for(lambda: [mail for mail in list(server.post.mails) if address in mail.to][len(mails):], 20, 0.1, text)
        return new[0]["Subject"]

    service = re.sub("着信のお知らせ$", "", subject_of_next("ふつうの投稿です"))
    assert service.startswith("【") and "至急" not in service and "重要" not in service
    assert subject_of_next("【至急】酸素が足りません") == f"【至急】{service}着信のお知らせ"
    assert subject_of_next("[重要] 来週の予定") == f"【重要】{service}着信のお知らせ"
    event = a.client.say(room, "まちがい")
    time.sleep(3)  # the digest of one second: its mail is out
    a.client.say(room, "* 【至急】訂正です", **{
        "m.new_content": {"msgtype": "m.text", "body": "【至急】訂正です"}, "m.relates_to": {"rel_type": "m.replace", "event_id": event}})
    assert subject_of_next("そのあとの投稿") == f"{service}着信のお知らせ"
    everything = "".join(mail.as_string() + mail.get_content() for mail in server.post.mails)
    assert "酸素" not in everything and "来週の予定" not in everything


# 9. The bot's words --------------------------------------------------------------------------------------------------


def test_a_rooms_life_in_words(desk: Desk):
    """As staff type them in the control room."""
    server, (a, b) = desk.server, desk.people
    room, name = subject_room(server, a, b)
    picture(a, room)
    event = a.client.say(room, f"取り消してほしい投稿 {name}")
    n = desk.number(room)
    desk.approved(f"保管 {n}", "終了")  # an open room cannot be
    assert status(server, room) == "open"
    desk.say(f"終了 {n}", "完了")
    assert status(server, room) == "closed"
    # Emergency access, in the room at that moment.
    desk.say(f"緊急閲覧 {n}", "理由")
    assert desk.staff.client.get(f"{R}{quote(room)}/messages?dir=b").told == FORBIDDEN
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d|期限", desk.say(f"緊急閲覧 {n} 事故の調査のため", "完了"))
    assert event in [one["event_id"] for one in desk.staff.client.messages(room)]
    assert "事故の調査のため" in json.dumps(a.client.messages(room), ensure_ascii=False)
    desk.say(f"緊急閲覧終了 {n}", "完了")
    assert desk.staff.client.get(f"{R}{quote(room)}/messages?dir=b").told == FORBIDDEN
    # Redaction by order, by a link as a client copies it.
    link = f"https://matrix.to/#/{quote(room)}/{quote(event)}?via={server.server_name}"
    desk.say(f"投稿取消 {n} {link} 書き間違いのため", "完了")
    assert a.client.ok("GET", f"{R}{quote(room)}/event/{quote(event)}")["content"] == {}
    assert re.search(r"room\.redact.*書き間違いのため", audit(server, room))
    # Archive, list, export.
    assert "2" in desk.approved(f"保管 {n}", "完了")
    assert status(server, room) == "archived"
    assert f"{n}" in desk.say("一覧 保管", "保管した部屋")
    told = desk.say(f"書き出し {n}", "exports/")
    folder = server.data / re.search(r"exports/[\w-]+", told)[0]
    assert (folder / "index.html").is_file() and (folder / "manifest.json").is_file()
    # Hold and release.
    desk.say(f"法的保全 {n}", "理由")
    assert not server.look(f"rooms/{quote(room)}")["held"]
    desk.say(f"法的保全 {n} 訴訟のため", "完了")
    assert server.look(f"rooms/{quote(room)}")["held"]
    case = re.search(r"案件 (\d+)", desk.say(f"消去 {n}", "承認"))[1]
    assert status(server, room) == "archived", "not at once"
    desk.say(f"承認 {case}", "保全")
    assert status(server, room) == "archived"
    desk.say(f"差し戻し {case} 保全中のため", "差し戻")
    desk.say(f"保全解除 {n} 終結したため", "完了")
    assert not server.look(f"rooms/{quote(room)}")["held"]
    # Purge: shown, then approved.
    shown = desk.say(f"消去 {n}", "承認")
    assert f"部屋 {n}" in shown and "元に戻せ" in shown
    assert status(server, room) == "archived" and events_of(server, room) > 5
    case = re.search(r"案件 (\d+)", shown)[1]
    told = desk.say(f"承認 {case}", "完了")
    assert status(server, room) == "purged" and events_of(server, room) == 0
    assert f"certificates/{n:04}.html" in told, told
    listed = desk.say("一覧 保管", "保管した部屋|ありません")
    assert not re.search(rf"・{n}\b", listed), listed
    actions = audit(server, room)
    for action in ("room.close", "room.break_glass", "room.archive", "room.export", "room.hold", "room.hold.end", "room.purge"):
        assert re.search(re.escape(desk.staff.user_id) + r".*" + re.escape(action) + r"\b", actions), action


def test_a_room_of_twos_end_in_words(desk: Desk):
    server, (a, b) = desk.server, desk.people
    server.room(a, b)
    room = of_two(a, b)
    a.client.say(room, "ふたりだけの話")
    left(room, b, a)
    server.restart()
    n = wait_for(lambda: archived_by_itself(server, room), 20, 0.2, "its end")["room_number"]
    listed = desk.say("一覧 保管", "保管した部屋")
    ids = "、".join(sorted([a.login_id, b.login_id]))
    assert re.search(rf"・{n}　二人の部屋（{ids}）", listed), listed
    desk.say(f"法的保全 {n} 調査のため", "完了")
    desk.say(f"保全解除 {n} 終わったため", "完了")
    assert "exports/" in desk.say(f"書き出し {n}", "exports/")
    desk.say(f"緊急閲覧 {n} 確認のため", "部屋の今の状態ではできません")
    assert f"certificates/{n:04}.html" in desk.approved(f"消去 {n}", "完了")
    assert events_of(server, room) == 0


def test_words_that_do_not_fit(desk: Desk):
    """Wrong numbers and states are told, not done."""
    server, (a, b) = desk.server, desk.people
    room, _ = subject_room(server, a, b)
    n = desk.number(room)
    desk.say("保管 99999", "見つかりません|ありません|番号")
    desk.say("消去", "部屋番号|番号")
    case = re.search(r"案件 (\d+)", desk.say(f"消去 {n}", "承認|保管"))
    if case:  # an open room: told at the approval at the latest
        desk.say(f"承認 {case[1]}", "行えません|保管|終了")
        desk.say(f"差し戻し {case[1]} まちがい", "差し戻")
    desk.say(f"投稿取消 {n} これ 理由", "リンク|投稿")
    desk.say(f"緊急閲覧終了 {n}", ".")
    assert status(server, room) == "open" and a.client.say(room, "変わりません")
    assert desk.staff.client.get(f"{R}{quote(room)}/messages?dir=b").told == FORBIDDEN
    # English, and full width.
    desk.say(f"close {n}", "完了|[Dd]one")
    wide = str(n).translate(str.maketrans("0123456789", "０１２３４５６７８９"))
    desk.approved(f"保管　{wide}", "完了")
    assert status(server, room) == "archived"
    desk.say(f"hold {n} lawsuit", "完了|[Dd]one")
    assert server.look(f"rooms/{quote(room)}")["held"]
    desk.say(f"release {n} over", "完了|[Dd]one")


def test_members_do_not_command_a_rooms_life(desk: Desk):
    """Only staff, only in the control room."""
    server, (a, b) = desk.server, desk.people
    room, _ = subject_room(server, a, b)
    n = desk.number(room)
    direct = a.client.ok("POST", "/_matrix/client/v3/createRoom", {"is_direct": True, "invite": [server.city_user]})["room_id"]
    event = b.client.say(room, "消されない投稿")
    exports = server.data / "exports"
    before = {path.name for path in exports.iterdir()} if exports.exists() else set()
    for place in (room, direct):
        for text in ("法的保全 {n} 理由", "書き出し {n}", "緊急閲覧 {n} 理由", "保管 {n}", "投稿取消 {n} {event} 理由", "消去 {n}"):
            a.client.say(place, text.format(n=n, event=event))
    desk.say("ヘルプ", "使えることば")  # the bot has read what came before
    row = server.look(f"rooms/{quote(room)}")
    assert (row["status"], row["held"], len(row["members"])) == ("open", False, 2)
    assert ({path.name for path in exports.iterdir()} if exports.exists() else set()) == before
    assert b.client.ok("GET", f"{R}{quote(room)}/event/{quote(event)}")["content"]["body"] == "消されない投稿"
    told = audit(server, room)
    assert not [word for word in ("room.hold", "room.export", "room.break_glass", "room.archive", "room.redact", "room.purge")
                if word in told], told


def test_the_word_for_mails(desk: Desk):
    server = desk.server
    desk.say("メール通知", "メール通知")
    desk.mailbox(desk.staff)
    for text, value in (("メール通知 すべて", "all"), ("メール通知 ダイレクト", "direct"), ("メール通知 自分宛て", "highlight"),
                        ("メール通知　全て", "all"), ("メール通知 自分宛", "highlight")):
        desk.say(text, "メール通知")
        wait_for(lambda: scope(server, desk.staff, None).json["scope"] == value, 60, 0.2, f"{text}: {value}")
    # By a member, in the room with the city alone, for oneself.
    member = server.person()
    desk.mailbox(member)
    direct = member.client.ok("POST", "/_matrix/client/v3/createRoom",
                              {"is_direct": True, "invite": [server.city_user]})["room_id"]
    members = f"{R}{quote(direct)}/joined_members"
    wait_for(lambda: server.city_user in member.client.ok("GET", members)["joined"], 20, 0.2, "the city")
    desk.say("メール通知 すべて", "メール通知", person=member, room=direct)
    wait_for(lambda: scope(server, member, None).json == {"scope": "all", "pushers": 1}, 60, 0.2, "the member's choice")
    assert scope(server, desk.staff, None).json["scope"] == "highlight", "nobody else's"


def test_help_knows_the_words(desk: Desk):
    told = desk.say("ヘルプ", "使えることば")
    for word in ("保管", "書き出し", "法的保全", "保全解除", "消去", "緊急閲覧", "緊急閲覧終了", "投稿取消", "一覧"):
        assert word in told, word


def test_help_knows_the_word_for_mails(desk: Desk):
    assert "メール通知" in desk.say("ヘルプ", "使えることば")


CONSENT = """同意の報告
対象者氏名：{name}
生年月日：1929-03-04
住所：〇〇市{name}町
説明者：{who}
説明者の職種：看護師
説明日：2026/01/20
①情報共有への同意：はい
②市が情報を取得することへの同意：はい"""
OPENING = """開設
対象者氏名：{name}
生年月日：1929-03-04
住所：〇〇市{name}町
要件：①
メンバー：{member}"""


@pytest.fixture(scope="module")
def by_word(desk: Desk):
    """A subject's room from consent to purge, by words alone."""
    server, (a, _) = desk.server, desk.people
    name = f"秘匿{secrets.token_hex(5)}"
    desk.say(CONSENT.format(name=name, who="窓口の看護師"), "同意")
    scans = []
    for _ in range(3):
        form = b"%PDF-1.4 " + secrets.token_bytes(24)
        sent = desk.staff.client.post(f"/_matrix/media/v3/upload?filename={quote(f'{name}.pdf')}", body=form,
                                      headers={"Content-Type": "application/pdf"})
        scans.append((sent.json["content_uri"], form))
    reported = next(event["event_id"] for event in desk.staff.client.messages(desk.control) if name in event["content"].get("body", "")
                    and event["sender"] == desk.staff.user_id)
    # Somebody else's file, which no room shows yet, is named as well.
    others = upload(a, PNG + secrets.token_bytes(16))
    for mxc, _ in scans[:2]:
        before = {event["event_id"] for event in desk.staff.client.messages(desk.control)}
        scan = desk.staff.client.say(desk.control, f"{name}.pdf", msgtype="m.file", url=mxc, filename=f"{name}.pdf", also=others,
                                     **{"m.relates_to": {"m.in_reply_to": {"event_id": reported}}})
        assert name in desk.answer("同意書：添付あり", before, desk.staff, desk.control, "the scan")
        if mxc == scans[0][0]:
            # Taken back: the file of another one, perhaps.
            desk.staff.client.ok("PUT", f"{R}{quote(desk.control)}/redact/{quote(scan)}/taken", {})
    # A better picture in place of the second.
    file = {"msgtype": "m.file", "body": f"{name}.pdf", "url": scans[2][0], "filename": f"{name}.pdf"}
    desk.staff.client.say(desk.control, f"* {name}.pdf", msgtype="m.file", url=scans[2][0], filename=f"{name}.pdf",
                          **{"m.new_content": file, "m.relates_to": {"rel_type": "m.replace", "event_id": scan}})
    known = {row["room_id"] for row in server.look("rooms")["rooms"]}
    desk.say(OPENING.format(name=name, member=a.login_id), "完了")
    room = next(row["room_id"] for row in server.look("rooms")["rooms"] if row["room_id"] not in known)
    n = desk.number(room)
    text = f"内容{secrets.token_hex(6)}"
    a.client.say(room, text)
    a.client.say(room, f"{name}さんの部屋を終了してください")
    wait_for(lambda: "終了" in desk.staff.client.messages(desk.control)[0]["content"].get("body", ""), 20, 0.2, "the request")
    desk.say(f"終了 {n}", "完了|すでに")
    if status(server, room) != "closed":
        case = re.findall(r"・(\d+) ", desk.say("案件", "・"))[-1]
        desk.say(f"承認 {case}", "完了")
    desk.approved(f"保管 {n}", "完了")
    case = re.search(r"案件 (\d+)", desk.say(f"消去 {n}", "承認"))[1]
    desk.say(f"承認 {case}", "完了")
    assert status(server, room) == "purged"
    desk.scans, desk.others = scans, others
    return server, desk, name, text


def test_the_bot_forgets_the_purged_too(by_word):
    """The purge answers which case opened the room: so that the bot drops consent and cases."""
    server, _, name, text = by_word
    time.sleep(1)  # what the bot still writes
    with contextlib.closing(sqlite3.connect(f"file:{server.data / 'city.sqlite'}?mode=ro", uri=True, timeout=10)) as connection:
        left = []
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            left += [(table, str(row)[:300]) for row in connection.execute(f'SELECT * FROM "{table}"') if name in str(row) or text in str(row)]
    assert not left, left


def test_the_server_forgets_the_purged_too(by_word):
    server, desk, name, text = by_word
    left = [line[:400] for line in dump(server).splitlines() if name in line or text in line]
    assert not left, "\n".join(left)


def test_the_scan_of_the_consent_goes_too(by_word):
    """H15: form 4 as the control room has it goes with its subject, at once and with its file; so do one that was taken back
    and one that took another's place."""
    server, desk, _, _ = by_word
    for mxc, form in desk.scans:
        assert desk.staff.client.get(media_path(mxc)).status == 404
        assert server.count(f"SELECT count(*) FROM media WHERE media_id = '{mxc.rsplit('/', 1)[1]}'") == 0
        assert not [path for path in (server.data / "media").rglob("*") if path.is_file() and path.read_bytes() == form]
    assert server.count(f"SELECT count(*) FROM media WHERE media_id = '{desk.others.rsplit('/', 1)[1]}'") == 1, "not theirs"
