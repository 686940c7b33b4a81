"""History visibility × membership × every endpoint that reads a room.

For each setting of `m.room.history_visibility` and each way of coming and going a room is filled in stages: a message, a
photo, an answer in a thread, an edit and a topic each. Every stage's words are marked, so that a leak shows wherever in an
answer it stands. What is expected comes from "Room History Visibility" of the specification (`visible` in
test_sync_oracle.py) and, for who is not in the room any more, from the policy `former_members_read`:

* a member sees exactly what the rules say;
* a former member (`until_leave`) sees exactly what the rules say, up to where they left, and the state as they left it;
* with `nothing`, the city's default, former members see nothing but their own memberships;
* whoever was never a member may be refused, and sees nothing that the rules do not show to anybody.
"""

from __future__ import annotations

import functools
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness import Client, Person, Server, quote
from test_sync_oracle import visible

C = "/_matrix/client/v3"
MARK = re.compile(r"\b(?:mark|photo|thread|edit|topic|late)w\d+s\d+e\b")

SETTINGS = ["joined", "invited", "shared", "world_readable", "tightened", "loosened"]
# What happens to the guest between the stages.
STORIES = {
    "never": [[]],
    "invited": [["invite"]],
    "refused": [["invite"], ["leave"]],
    "withdrawn": [["invite"], ["kick"]],
    "banned from an invitation": [["invite"], ["ban"]],
    "joined": [["invite"], ["join"]],
    "joined without an invitation": [["public", "join"]],
    "left": [["invite", "join"], ["leave"]],
    "kicked": [["invite", "join"], ["kick"]],
    "banned": [["invite", "join"], ["ban"]],
    "unbanned": [["invite", "join"], ["ban"], ["unban"]],
    "rejoined": [["invite", "join"], ["leave"], ["invite", "join"]],
    "invited again": [["invite", "join"], ["leave"], ["invite"]],
    "refused after leaving": [["invite", "join"], ["leave"], ["invite"], ["leave"]],
    "knocked": [["knockable", "knock"]],
}
MEMBERS = {"joined", "joined without an invitation", "rejoined"}
FORMER = {"left", "kicked", "banned", "unbanned", "refused after leaving"}


def photo(seed: int) -> bytes:
    """A PNG of its own for each seed."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + seed.to_bytes(3, "big") * 2
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b""))


def events_in(value: Any) -> Iterator[dict]:
    """Every event in an answer, those in `unsigned` too."""
    if isinstance(value, dict):
        if "event_id" in value and "content" in value and "type" in value:
            yield value
        for one in value.values():
            yield from events_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from events_in(one)


def without_previous(value: Any) -> Any:
    """An answer without `prev_content`, which has a test of its own."""
    if isinstance(value, dict):
        return {key: without_previous(one) for key, one in value.items() if key != "prev_content"}
    return [without_previous(one) for one in value] if isinstance(value, list) else value


class World:
    """One room, its guest, and what the specification says about them."""

    serial = 0

    def __init__(self, server: Server, keeper: Person, guest: Person, late: Person, setting: str, story: str) -> None:
        World.serial += 1
        self.number, self.server, self.keeper, self.guest = World.serial, server, keeper, guest
        self.setting, self.story = setting, story
        first = {"tightened": "shared", "loosened": "joined"}.get(setting, setting)
        self.room = keeper.client.ok("POST", f"{C}/createRoom", {
            "preset": "private_chat", "name": f"room {self.number}", "initial_state": [
                {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": first}}]})["room_id"]
        self.path = f"{C}/rooms/{quote(self.room)}"
        self.media: dict[str, str] = {}
        self.messages: list[str] = []
        self.possible = True
        self.since = guest.client.sync(filter=json.dumps({"room": {"rooms": [self.room]}}))["next_batch"]
        self.stage(0)
        for index, happening in enumerate(STORIES[story], 1):
            if index == 1 and setting in ("tightened", "loosened"):
                self.put("m.room.history_visibility", {"history_visibility": "joined" if setting == "tightened" else "shared"})
            for what in happening:
                self.possible = self.possible and self.happen(what)
            self.stage(index)
        # Somebody whom only later members should know.
        self.late = late
        keeper.client.ok("POST", f"{self.path}/invite", {"user_id": late.user_id})
        late.client.ok("POST", f"{self.path}/join", {})
        self.events = keeper.client.messages(self.room, "f")
        self.by_id = {event["event_id"]: event for event in self.events}
        mine = [event for event in self.events if event["type"] == "m.room.member" and event["state_key"] == guest.user_id]
        self.membership = mine[-1]["content"]["membership"] if mine else None
        self.seen = {event["event_id"] for event in visible(self.events, guest.user_id)}
        self.own = {event["event_id"] for event in mine}
        ended = [index for index, event in enumerate(self.events) if event in mine and event["content"]["membership"] in ("leave", "ban")
                 and self.was_member_before(index)]
        self.ended = ended[-1] if ended else None

    def was_member_before(self, index: int) -> bool:
        mine = [event for event in self.events[:index]
                if event["type"] == "m.room.member" and event["state_key"] == self.guest.user_id]
        return bool(mine) and mine[-1]["content"]["membership"] == "join"

    # Filling

    def word(self, kind: str, stage: int) -> str:
        return f"{kind}w{self.number}s{stage}e"

    def put(self, kind: str, content: dict) -> str:
        return self.keeper.client.ok("PUT", f"{self.path}/state/{kind}/", content)["event_id"]

    def stage(self, number: int) -> None:
        keeper = self.keeper.client
        message = keeper.say(self.room, self.word("mark", number), **{"m.mentions": {"user_ids": [self.guest.user_id]}})
        self.messages.append(message)
        done = keeper.request("POST", "/_matrix/media/v3/upload", body=photo(World.serial * 16 + number), headers={"Content-Type": "image/png"})
        assert done.status == 200, done
        uri = done.json["content_uri"]
        image = keeper.say(self.room, self.word("photo", number), msgtype="m.image", url=uri)
        self.media[image] = uri
        keeper.say(self.room, self.word("thread", number), **{"m.relates_to": {"rel_type": "m.thread", "event_id": self.messages[0]}})
        keeper.say(self.room, "* " + self.word("edit", number), **{
            "m.relates_to": {"rel_type": "m.replace", "event_id": self.messages[0]},
            "m.new_content": {"msgtype": "m.text", "body": self.word("edit", number)}})
        self.put("m.room.topic", {"topic": self.word("topic", number)})

    def happen(self, what: str) -> bool:
        keeper, guest = self.keeper.client, self.guest.client
        match what:
            case "invite" | "kick" | "ban" | "unban":
                keeper.ok("POST", f"{self.path}/{what}", {"user_id": self.guest.user_id})
            case "join" | "leave":
                guest.ok("POST", f"{self.path}/{what}", {})
            case "public" | "knockable":
                self.put("m.room.join_rules", {"join_rule": "public" if what == "public" else "knock"})
            case "knock":
                return guest.post(f"/_matrix/client/v3/knock/{quote(self.room)}", {}).status == 200
        return True

    # What is expected

    @property
    def nothing(self) -> bool:
        return self.server.overrides.get("policy", {}).get("former_members_read", "nothing") == "nothing" and self.server.profile == "city"

    def standing(self) -> str:
        if self.membership == "join":
            return "member"
        if self.story in FORMER:
            return "nobody" if self.nothing else "former"
        return "nobody"

    @functools.cache  # noqa: B019 - worlds live as long as the tests
    def may(self) -> set[str]:
        """The events that may be shown."""
        if self.standing() == "nobody" and self.nothing and self.story not in ("invited", "invited again", "knocked"):
            # A city tells nobody who is not in the room anything of it, whatever its setting.
            return self.own
        return self.seen | self.own

    @functools.cache  # noqa: B019
    def must(self) -> set[str]:
        """The events that must be shown."""
        if self.standing() == "member":
            return self.seen
        if self.standing() == "former":
            return {event["event_id"] for event in self.events[: self.ended + 1]} & self.seen
        return set()

    @functools.cache  # noqa: B019
    def state_now(self) -> dict[tuple[str, str], dict]:
        """The state that the guest may ask for: of now, of when they left, or none."""
        events = {"member": self.events, "former": self.events[: (self.ended or 0) + 1]}.get(self.standing(), [])
        if self.peeked:
            events = self.events
        return {(event["type"], event["state_key"]): event for event in events if "state_key" in event}

    @functools.cache  # noqa: B019
    def states(self) -> set[str]:
        """State events that may be told as state: those that stood while there was something to see."""
        told = {event["event_id"] for event in self.state_now().values()}
        if self.standing() == "nobody" and not self.peeked:
            return told
        now: dict[tuple[str, str], str] = {}
        for event in self.events:
            if event["event_id"] in self.may():
                told |= set(now.values())
            if "state_key" in event:
                now[event["type"], event["state_key"]] = event["event_id"]
        return told

    @property
    def peeked(self) -> bool:
        """Whether the room is one that anybody may read: who is not in it reads it as of now."""
        return self.standing() != "member" and not self.nothing and self.by_last("m.room.history_visibility") == "world_readable"

    def by_last(self, kind: str) -> str:
        return [event for event in self.events if event["type"] == kind][-1]["content"].get("history_visibility", "")

    def marks(self, ids: set[str]) -> set[str]:
        return {mark for event_id in ids for mark in MARK.findall(json.dumps(self.by_id[event_id]["content"]))}

    def leaks(self, answers: list[Any], allowed: set[str], state: bool = False) -> None:
        """Fails where an answer holds an event, or a marked word, that is not allowed."""
        now = self.states() if state else set()
        for event in (one for answer in answers for one in events_in(answer)):
            if event["event_id"] in self.by_id:
                assert event["event_id"] in allowed | now, f"leaked: {event}"
        words = {mark for answer in answers for mark in MARK.findall(json.dumps(without_previous(answer)))
                 if mark.split("w")[1].split("s")[0] == str(self.number)}
        assert words <= self.marks(allowed | now), f"leaked words: {sorted(words - self.marks(allowed | now))}"

    def complete(self, found: set[str], wanted: set[str]) -> None:
        missing = [self.by_id[one] for one in wanted - found]
        assert not missing, f"missing: {[(one['type'], one['content'].get('body') or one['content'].get('membership')) for one in missing]}"


# The endpoints -------------------------------------------------------------------------------------------------------
# Each reads as the guest and checks what came.

Endpoint = Callable[[World, Client], None]
ENDPOINTS: dict[str, Endpoint] = {}


def endpoint(function: Endpoint) -> Endpoint:
    ENDPOINTS[function.__name__] = function
    return function


def quote_of(path: str) -> str:
    """The room in a path."""
    return next((part for part in path.split("?")[0].split("/") if part.startswith("%21")), "…")


def served(client: Client, method: str, path: str, **more: Any) -> Any:
    """The answer, None where it refuses; skips where the server has no such endpoint."""
    answer = client.request(method, path, **more)
    assert answer.status < 500, answer
    if answer.told == (404, "M_UNRECOGNIZED"):
        pytest.skip(f"{method} {path.split('?')[0].replace(quote_of(path), '…')} is not served")
    assert answer.status == 200 or answer.errcode, answer
    return answer.json if answer.status == 200 else None


def paged(world: World, client: Client, direction: str) -> list[dict]:
    chunk, start = [], None
    while True:
        query = {"dir": direction, "limit": 4} | ({"from": start} if start else {})
        page = served(client, "GET", f"{world.path}/messages", query=query)
        if page is None:
            return chunk
        world.leaks([page], world.may(), state=True)
        chunk += page["chunk"]
        start = page.get("end")
        if start is None:
            return chunk


@endpoint
def messages_backwards(world: World, client: Client) -> None:
    chunk = paged(world, client, "b")
    world.leaks([chunk], world.may())
    world.complete({event["event_id"] for event in chunk}, world.must())


@endpoint
def messages_forwards(world: World, client: Client) -> None:
    chunk = paged(world, client, "f")
    world.leaks([chunk], world.may())
    world.complete({event["event_id"] for event in chunk}, world.must())


@endpoint
def event(world: World, client: Client) -> None:
    found = set()
    for event_id in world.by_id:
        answer = client.get(f"{world.path}/event/{quote(event_id)}")
        assert answer.status in (200, 403, 404), answer
        if answer.status == 200:
            assert answer.json["event_id"] == event_id
            world.leaks([answer.json], world.may())
            found.add(event_id)
    world.complete(found, world.must())


@endpoint
def context(world: World, client: Client) -> None:
    found = set()
    for event_id in [*world.messages, *sorted(world.own), *(one for one in world.by_id if world.by_id[one]["type"] == "m.room.topic")]:
        answer = client.get(f"{world.path}/context/{quote(event_id)}?limit=20")
        assert answer.status in (200, 403, 404), answer
        if answer.status == 200:
            told = answer.json
            world.leaks([told.get("event"), told.get("events_before"), told.get("events_after")], world.may())
            world.leaks([told["state"]], world.may(), state=True)
            found.add(event_id)
    world.complete(found, world.must() & (set(world.messages) | world.own))


def with_its_gap(world: World, client: Client, room: dict) -> set[str]:
    """The events of a sync's timeline, and, where it is `limited`, those before it: with `state` it begins after the state
    that is hidden inside it, which would be told nowhere else."""
    timeline = room.get("timeline", {})
    events = {one["event_id"] for one in timeline.get("events", [])}
    if timeline.get("limited"):
        before = served(client, "GET", f"{world.path}/messages", query={"dir": "b", "limit": 100, "from": timeline["prev_batch"]})
        events |= {one["event_id"] for one in before["chunk"]}
    return events


@endpoint
def sync_from_nothing(world: World, client: Client) -> None:
    for after in ("false", "true"):
        told = client.sync(use_state_after=after, filter=json.dumps(
            {"room": {"rooms": [world.room], "include_leave": True, "timeline": {"limit": 100}}}))
        told.pop("account_data", None)
        rooms = told.get("rooms", {})
        room = {**rooms.get("join", {}), **rooms.get("leave", {})}.get(world.room, {})
        world.leaks([room], world.may(), state=True)
        timeline = room.get("timeline", {}).get("events", [])
        world.leaks([timeline], world.may())
        if world.standing() != "nobody":
            world.complete(with_its_gap(world, client, room), world.must())


@endpoint
def sync_from_before(world: World, client: Client) -> None:
    told = client.sync(world.since, filter=json.dumps({"room": {"rooms": [world.room], "timeline": {"limit": 100}}}))
    room = {**told.get("rooms", {}).get("join", {}), **told.get("rooms", {}).get("leave", {})}.get(world.room, {})
    world.leaks([room], world.may(), state=True)
    world.leaks([room.get("timeline", {})], world.may())
    if world.standing() == "member":
        world.complete(with_its_gap(world, client, room), world.must())
    if world.membership in ("leave", "ban"):
        # That it ended is told in any case.
        assert any(one["event_id"] in world.own for one in events_in(room)), room


@endpoint
def state(world: World, client: Client) -> None:
    told = served(client, "GET", f"{world.path}/state")
    expected = {key: one["event_id"] for key, one in world.state_now().items()}
    if told is None:
        assert world.standing() == "nobody", "refused"
        return
    world.leaks([told], world.may(), state=True)
    if not world.peeked:
        assert {(one["type"], one["state_key"]): one["event_id"] for one in told} == expected


@endpoint
def state_of_one_key(world: World, client: Client) -> None:
    topic = served(client, "GET", f"{world.path}/state/m.room.topic")
    if topic is None:
        assert world.standing() == "nobody", "refused"
        return
    assert ("m.room.topic", "") in world.state_now(), "leaked"
    if world.peeked:
        return
    assert topic == world.state_now()["m.room.topic", ""]["content"]
    late = client.get(f"{world.path}/state/m.room.member/{quote(world.late.user_id)}")
    assert (late.status == 200) == (("m.room.member", world.late.user_id) in world.state_now()), late


@endpoint
def members(world: World, client: Client) -> None:
    told = served(client, "GET", f"{world.path}/members")
    if told is None:
        assert world.standing() == "nobody", "refused"
        return
    expected = {key: one["event_id"] for key, one in world.state_now().items() if key[0] == "m.room.member"}
    if not world.peeked:
        assert {(one["type"], one["state_key"]): one["event_id"] for one in told["chunk"]} == expected


@endpoint
def members_at_the_end(world: World, client: Client) -> None:
    """`at` must not lead further than what the guest sees: with the newest token that the keeper has."""
    newest = world.keeper.client.sync(filter=json.dumps({"room": {"rooms": [world.room]}}))["next_batch"]
    told = served(client, "GET", f"{world.path}/members", query={"at": newest})
    if told is not None:
        assert {one["event_id"] for one in told["chunk"]} <= world.states() | world.may()


@endpoint
def members_in_the_past(world: World, client: Client) -> None:
    start = world.keeper.client.ok("GET", f"{world.path}/messages?dir=f&limit=1")["start"]
    told = served(client, "GET", f"{world.path}/members", query={"at": start})
    if told is not None:
        world.leaks([told], world.may(), state=True)


@endpoint
def joined_members(world: World, client: Client) -> None:
    told = served(client, "GET", f"{world.path}/joined_members")
    if world.standing() == "member":
        assert world.late.user_id in told["joined"]
    elif told is not None:
        # "403: You aren't a member of the room." A room that anybody reads may answer.
        assert ("m.room.member", world.late.user_id) in world.state_now()


@endpoint
def relations(world: World, client: Client) -> None:
    root = world.messages[0]
    found = set()
    for path in ("", "/m.thread", "/m.replace", "/m.thread/m.room.message"):
        for direction in "bf":
            told = served(client, "GET", f"/_matrix/client/v1/rooms/{quote(world.room)}/relations/{quote(root)}{path}?dir={direction}&limit=100")
            if told is not None:
                world.leaks([told], world.may())
                found |= {one["event_id"] for one in told["chunk"]}
    if root in world.must():
        children = {one["event_id"] for one in world.events if one["content"].get("m.relates_to", {}).get("event_id") == root}
        world.complete(found, world.must() & children)


@endpoint
def bundled_aggregations(world: World, client: Client) -> None:
    """Counts and newest answers of what the guest does not see are not told beside what they see."""
    root = world.messages[0]
    answer = client.get(f"{world.path}/event/{quote(root)}")
    if answer.status != 200:
        assert root not in world.must()
        return
    bundled = answer.json.get("unsigned", {}).get("m.relations", {})
    world.leaks([bundled], world.may())
    thread = bundled.get("m.thread")
    answers = [one for one in world.events if one["content"].get("m.relates_to", {}).get("rel_type") == "m.thread"
               and one["event_id"] in world.may()]
    if thread:
        assert thread["count"] <= len(answers), (thread["count"], len(answers))
    elif world.standing() == "member":
        assert not answers


@endpoint
def previous_content(world: World, client: Client) -> None:
    """`prev_content` "is only returned if … the client has permission to see the previous event"."""
    answers = [client.get(f"{world.path}{path}") for path in ("/messages?dir=b&limit=100", "/state", f"/context/{quote(world.messages[-1])}?limit=50")]
    answers.append(client.get(f"{C}/sync", query={"filter": json.dumps({"room": {"rooms": [world.room], "include_leave": True, "timeline": {"limit": 100}}})}))
    allowed = world.marks(world.may() | world.states())
    for answer in answers:
        for event in events_in(answer.json):
            words = set(MARK.findall(json.dumps(event.get("unsigned", {}).get("prev_content"))))
            assert words <= allowed, f"leaked as the previous content of {event}"


@endpoint
def threads(world: World, client: Client) -> None:
    for include in ("all", "participated"):
        told = served(client, "GET", f"/_matrix/client/v1/rooms/{quote(world.room)}/threads?include={include}")
        if told is None:
            assert world.standing() != "member"
            continue
        world.leaks([told], world.may())
        if include == "all":
            answers = {one["event_id"] for one in world.events if one["content"].get("m.relates_to", {}).get("rel_type") == "m.thread"}
            if world.messages[0] in world.must() and answers & world.must():
                world.complete({one["event_id"] for one in told["chunk"]}, {world.messages[0]})


@endpoint
def search(world: World, client: Client) -> None:
    for stage, message in enumerate(world.messages):
        for kind in ("mark", "photo", "topic"):
            told = served(client, "POST", f"{C}/search", json_body={"search_categories": {"room_events": {
                "search_term": world.word(kind, stage), "keys": ["content.body", "content.name", "content.topic"], "include_state": True,
                "event_context": {"before_limit": 5, "after_limit": 5, "include_profile": True}}}})
            room_events = told["search_categories"]["room_events"]
            results = [one["result"] for one in room_events["results"]]
            world.leaks([results], world.may())
            world.leaks([one.get("context") for one in room_events["results"]], world.may())
            world.leaks([room_events.get("state")], world.may(), state=True)
            if not results:
                # Neither a number tells that there would be something.
                assert room_events.get("count", 0) == 0, room_events
            if kind == "mark" and world.standing() == "member" and message in world.seen:
                assert message in {one["event_id"] for one in results}, "not found"


@endpoint
def timestamp_to_event(world: World, client: Client) -> None:
    for one in world.events[:: max(1, len(world.events) // 6)]:
        for direction in "fb":
            told = served(client, "GET", f"/_matrix/client/v1/rooms/{quote(world.room)}/timestamp_to_event?ts={one['origin_server_ts']}&dir={direction}")
            if told is not None:
                assert told["event_id"] in world.may(), "leaked"


@endpoint
def initial_sync_of_the_room(world: World, client: Client) -> None:
    told = served(client, "GET", f"{world.path}/initialSync?limit=100")
    if told is not None:
        world.leaks([told.get("messages")], world.may())
        world.leaks([told.get("state")], world.may(), state=True)


@endpoint
def events_stream(world: World, client: Client) -> None:
    told = served(client, "GET", f"{C}/events?room_id={quote(world.room)}&timeout=0")
    if told is not None:
        world.leaks([told], world.may(), state=True)


@endpoint
def media(world: World, client: Client) -> None:
    for event_id, uri in world.media.items():
        where = uri.removeprefix("mxc://")
        told = [client.get(f"/_matrix/client/v1/media/download/{where}").status,
                client.get(f"/_matrix/client/v1/media/download/{where}/a.png").status,
                client.get(f"/_matrix/client/v1/media/thumbnail/{where}?width=32&height=32&method=crop").status]
        assert set(told) <= {200, 403, 404}, told
        if event_id not in world.may():
            assert 200 not in told, f"leaked: {world.by_id[event_id]['content']['body']} {told}"
        if event_id in world.must():
            assert set(told) == {200}, f"missing: {world.by_id[event_id]['content']['body']} {told}"


@endpoint
def notifications(world: World, client: Client) -> None:
    told = client.ok("GET", f"{C}/notifications?limit=1000")
    mine = [one for one in told["notifications"] if one["room_id"] == world.room]
    world.leaks([mine], world.may() | {one["event"]["event_id"] for one in mine if one["event"]["type"] == "m.room.member"})


@endpoint
def summary_and_hierarchy(world: World, client: Client) -> None:
    for path in (f"/_matrix/client/v1/room_summary/{quote(world.room)}", f"/_matrix/client/v1/rooms/{quote(world.room)}/hierarchy"):
        told = served(client, "GET", path)
        if told is None:
            assert world.standing() != "member", path
            continue
        rules = [one for one in world.events if one["type"] == "m.room.join_rules"][-1]["content"]["join_rule"]
        open_to_all = rules in ("public", "knock") or world.by_last("m.room.history_visibility") == "world_readable"
        assert world.membership in ("join", "invite") or open_to_all, f"told of a room that is none of the guest's: {told}"


@endpoint
def previews_in_an_invitation(world: World, client: Client) -> None:
    """The stripped state of an invitation names the room and holds no post, topic's history or other member."""
    told = client.sync(filter=json.dumps({"room": {"rooms": [world.room]}})).get("rooms", {}).get("invite", {}).get(world.room)
    assert (told is not None) == (world.membership == "invite")
    if told is None:
        return
    for one in told["invite_state"]["events"]:
        assert set(one) <= {"type", "state_key", "sender", "content", "origin_server_ts", "event_id", "room_id", "unsigned"}
        assert one["type"] in ("m.room.create", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.join_rules",
                               "m.room.canonical_alias", "m.room.encryption") or one["state_key"] in (world.guest.user_id, world.keeper.user_id)
    assert any(one["type"] == "m.room.create" for one in told["invite_state"]["events"])


# The matrix ----------------------------------------------------------------------------------------------------------


class Place:
    """A server with a keeper, a guest and a latecomer, and the rooms made in it so far."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.keeper, self.guest, self.late = (self.somebody() for _ in range(3))
        self.worlds: dict[tuple[str, str], World] = {}

    def somebody(self) -> Person:
        return self.server.register()

    def world(self, setting: str, story: str) -> World:
        if (setting, story) not in self.worlds:
            self.worlds[setting, story] = World(self.server, self.keeper, self.guest, self.late, setting, story)
        world = self.worlds[setting, story]
        if not world.possible:
            pytest.skip("the server lets nobody knock")
        return world


@pytest.fixture(scope="module")
def until_leave():
    server = Server(profile="open")
    yield Place(server)
    server.remove()


@pytest.fixture(scope="module")
def nothing():
    """A city whose people make rooms of their own; what it says of former members is the default."""
    server = Server(config={"policy": {"client_certificate": "off", "registration": "open", "create_rooms": "everybody",
                                       "public_directory": True}})
    yield Place(server)
    server.remove()


# Defects that are known: which endpoint, where, and why. One that is mended fails until it is taken from here.
KNOWN: list[tuple[str, Callable[[World], bool], str]] = []


def run(world: World) -> None:
    """Reads the room by every endpoint; fails with all that was wrong."""
    wrong = {}
    for name, function in ENDPOINTS.items():
        reason = next((why for names, where, why in KNOWN if name in names.split() and where(world)), None)
        try:
            function(world, world.guest.client)
        except pytest.skip.Exception:
            continue  # test_what_is_served says so
        except AssertionError as error:
            if reason is None:
                wrong[name] = str(error).split("\nassert")[0][:600]
        else:
            if reason is not None:
                wrong[name] = f"right now; no longer known as: {reason}"
    assert not wrong, json.dumps(wrong, ensure_ascii=False, indent=1)


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_read_until_one_leaves(until_leave, setting, story):
    run(until_leave.world(setting, story))


@pytest.mark.parametrize("story", [*sorted(FORMER), "refused", "never", "rejoined"])
@pytest.mark.parametrize("setting", ["joined", "shared", "world_readable"])
def test_former_members_read_nothing_in_a_city(nothing, setting, story):
    run(nothing.world(setting, story))


@pytest.mark.parametrize("name", ENDPOINTS)
def test_what_is_served(until_leave, name):
    """Skipped for an endpoint that is not served, which the matrix then passes over."""
    world = until_leave.world("shared", "joined")
    try:
        ENDPOINTS[name](world, world.guest.client)
    except AssertionError:
        pass  # the matrix tells
