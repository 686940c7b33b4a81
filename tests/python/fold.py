"""What a client knows after a row of syncs: `/v3/sync` and simplified sliding sync (MSC4186), folded by the letter.

Written from the specification ("Syncing", "Filtering", "Lazy-loading room members") and MSC4186, not from the server. A
folder takes answers and keeps what a client would show; nothing here compares. `Odd` is an answer that no client could
understand; the comparison is in test_sync_oracle.py.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from harness import Client, quote

C = "/_matrix/client/v3"
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"

Key = tuple[str, str]

class Odd(AssertionError):
    """An answer that contradicts itself or the specification."""


# Filters -------------------------------------------------------------------------------------------------------------


def like(pattern: str, text: str) -> bool:
    """`*` stands for any sequence of characters; nothing else is special (no recursion: patterns are ours)."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    if not text.startswith(first) or not text.endswith(rest[-1]) or len(text) < len(first) + len(rest[-1]):
        return False
    at = len(first)
    for piece in rest[:-1]:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return at <= len(text) - len(rest[-1])


def passes(given: dict | None, event: dict, room_id: str = "") -> bool:
    """Whether an EventFilter or RoomEventFilter lets an event through ("Filtering")."""
    given = given or {}
    kind, sender = event["type"], event.get("sender", "")
    if "types" in given and not any(like(pattern, kind) for pattern in given["types"]):
        return False
    if any(like(pattern, kind) for pattern in given.get("not_types", [])):
        return False
    if "senders" in given and sender not in given["senders"]:
        return False
    if sender in given.get("not_senders", []):
        return False
    if "rooms" in given and room_id not in given["rooms"] or room_id in given.get("not_rooms", []):
        return False
    if "contains_url" in given and ("url" in event["content"]) != given["contains_url"]:
        return False
    return True


# Rooms ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Segment:
    """A stretch of the timeline without holes, and the token from which what is before it is paged."""

    events: list[dict]
    prev_batch: str | None


class Room:
    """What a client keeps of one room."""

    def __init__(self) -> None:
        self.state: dict[Key, dict] = {}
        self.segments: list[Segment] = []
        self.senders: set[str] = set()
        self.account_data: dict[str, Any] = {}
        self.receipts: dict[tuple[str, str, str | None], str] = {}
        self.typing: set[str] = set()
        self.unread: dict[str, int] = {}
        self.threads: dict[str, dict[str, int]] = {}
        self.summary: dict[str, Any] = {}

    def put(self, event: dict) -> None:
        self.state[event["type"], event["state_key"]] = event

    def extend(self, events: list[dict], limited: bool, prev_batch: str | None) -> None:
        """Adds to the timeline; `limited` begins a segment of its own.

        Who comes back to a room may be told again what they knew (`limited` makes clients begin anew): that is where the
        new stretch joins the old one. Nothing else may come twice.
        """
        if limited and self.segments:
            have = [event["event_id"] for event in self.segments[-1].events]
            again = [event["event_id"] for event in events if event["event_id"] in have]
            if again and again == have[-len(again):] and again == [event["event_id"] for event in events[: len(again)]]:
                events, limited = events[len(again):], False
        known = {event["event_id"] for segment in self.segments for event in segment.events}
        for event in events:
            if event["event_id"] in known:
                raise Odd(f"{event['event_id']} ({event['type']}) came twice")
            known.add(event["event_id"])
            self.senders.add(event["sender"])
        if limited or not self.segments:
            self.segments.append(Segment(list(events), prev_batch))
        else:
            self.segments[-1].events += events

    def ephemeral(self, events: list[dict]) -> None:
        for event in events:
            if event["type"] == "m.typing":
                self.typing = set(event["content"]["user_ids"])
            elif event["type"] == "m.receipt":
                self.receipt(event["content"])
            else:
                raise Odd(f"unknown ephemeral event {event['type']}")

    def receipt(self, content: dict) -> None:
        for event_id, kinds in content.items():
            for kind, users in kinds.items():
                for user, one in users.items():
                    self.receipts[kind, user, one.get("thread_id")] = event_id

    def read(self) -> dict[tuple[str, str, str | None], str]:
        """The receipts. One event holds one receipt of a kind and user in its JSON: the unthreaded one covers the others."""
        return {key: event for key, event in self.receipts.items() if key[2] is None or self.receipts.get((*key[:2], None)) != event}

    def timeline(self, client: Client, room_id: str, page: int, filtered: dict | None = None) -> list[dict]:
        """All of it, oldest first: every gap is paged backwards through `/messages`, as a client scrolls."""
        whole: list[dict] = []
        index = len(self.segments) - 1
        while index >= 0:
            segment = self.segments[index]
            whole = segment.events + whole
            # What lies between is paged from here, over segments that held nothing.
            index -= 1
            while index >= 0 and not self.segments[index].events:
                index -= 1
            stop = self.segments[index].events[-1]["event_id"] if index >= 0 else None
            token, gap = segment.prev_batch, []
            while token is not None:
                query: dict[str, Any] = {"dir": "b", "from": token, "limit": page}
                if filtered:
                    query["filter"] = json.dumps(filtered)
                answer = client.ok("GET", f"{C}/rooms/{quote(room_id)}/messages", query=query)
                ids = [event["event_id"] for event in answer["chunk"]]
                if stop in ids:
                    gap += answer["chunk"][: ids.index(stop)]
                    break
                gap += answer["chunk"]
                token = answer.get("end")
            else:
                if stop is not None and segment.prev_batch is not None:
                    raise Odd(f"paging back from {segment.prev_batch} never reaches {stop}, which came before it")
            whole = gap[::-1] + whole
        return whole


# /v3/sync ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """How a client syncs."""

    limit: int = 10
    state_after: bool = False
    lazy: bool = False
    redundant: bool = False
    threads: bool = True
    include_leave: bool = True
    timeline: str = "{}"
    state: str = "{}"
    ephemeral: str = "{}"
    room_account_data: str = "{}"
    account_data: str = "{}"
    rooms: str = "{}"

    def filter(self) -> dict:
        timeline = json.loads(self.timeline) | {"limit": self.limit}
        state = json.loads(self.state)
        if self.threads:
            timeline["unread_thread_notifications"] = True
        if self.lazy:
            state["lazy_load_members"] = True
            if self.redundant:
                state["include_redundant_members"] = True
        room = json.loads(self.rooms) | {"timeline": timeline, "state": state, "include_leave": self.include_leave}
        for name, value in (("ephemeral", self.ephemeral), ("account_data", self.room_account_data)):
            if value != "{}":
                room[name] = json.loads(value)
        whole: dict[str, Any] = {"room": room}
        if self.account_data != "{}":
            whole["account_data"] = json.loads(self.account_data)
        return whole


class Folded:
    """A client of `/v3/sync`."""

    def __init__(self, client: Client, user_id: str, options: Options) -> None:
        self.client, self.user_id, self.options = client, user_id, options
        self.since: str | None = None
        self.joined: dict[str, Room] = {}
        self.left: dict[str, Room] = {}
        self.invited: dict[str, dict[Key, dict]] = {}
        self.knocked: dict[str, dict[Key, dict]] = {}
        self.account_data: dict[str, Any] = {}
        self.forgotten: set[str] = set()
        self.answers: list[dict] = []

    def forget(self, room_id: str) -> None:
        """The user said so, here or on another device."""
        self.left.pop(room_id, None)
        self.forgotten.add(room_id)

    def ask(self, since: str | None, full_state: bool = False, timeout: int = 0) -> dict:
        query: dict[str, Any] = {"filter": json.dumps(self.options.filter()), "timeout": timeout}
        if since:
            query["since"] = since
        if self.options.state_after:
            query["use_state_after"] = "true"
        if full_state:
            query["full_state"] = "true"
        return self.client.ok("GET", f"{C}/sync", query=query)

    def sync(self, lose: bool = False, full_state: bool = False, timeout: int = 0) -> bool:
        """One sync; with `lose` the first answer never arrives and the client asks again. True: it told something."""
        if lose:
            self.ask(self.since)
        answer = self.ask(self.since, full_state, timeout)
        self.answers = [*self.answers[-20:], answer]
        self.take(answer)
        rooms = answer.get("rooms", {})
        told = any(rooms.get(kind) for kind in ("join", "invite", "leave", "knock"))
        return told or bool(answer.get("account_data", {}).get("events"))

    def take(self, answer: dict) -> None:
        self.since = answer["next_batch"]
        for event in answer.get("account_data", {}).get("events", []):
            self.account_data[event["type"]] = event["content"]
        rooms = answer.get("rooms", {})
        sections = {kind: rooms.get(kind, {}) for kind in ("join", "invite", "leave", "knock")}
        ids = [room_id for section in sections.values() for room_id in section]
        if len(ids) != len(set(ids)):
            raise Odd(f"a room is in two sections: {sorted(ids)}")
        for room_id, told in sections["leave"].items():
            room = self.joined.pop(room_id, None) or self.left.pop(room_id, None) or Room()
            self.invited.pop(room_id, None)
            self.knocked.pop(room_id, None)
            self.room(room, told, room_id)
            if room_id not in self.forgotten:
                self.left[room_id] = room
        for room_id, told in sections["join"].items():
            room = self.joined.get(room_id) or self.left.pop(room_id, None) or Room()
            self.invited.pop(room_id, None)
            self.knocked.pop(room_id, None)
            self.left.pop(room_id, None)
            self.forgotten.discard(room_id)
            self.joined[room_id] = room
            self.room(room, told, room_id)
        for kind, name in (("invite", "invite_state"), ("knock", "knock_state")):
            for room_id, told in sections[kind].items():
                self.joined.pop(room_id, None)
                self.left.pop(room_id, None)
                self.invited.pop(room_id, None)
                self.knocked.pop(room_id, None)
                self.forgotten.discard(room_id)
                stripped = {(event["type"], event["state_key"]): event for event in told[name]["events"]}
                (self.invited if kind == "invite" else self.knocked)[room_id] = stripped

    def room(self, room: Room, told: dict, room_id: str) -> None:
        timeline = told.get("timeline", {})
        events = timeline.get("events", [])
        if len(events) > self.options.limit:
            raise Odd(f"{len(events)} events where the limit is {self.options.limit}")
        wanted = json.loads(self.options.timeline)
        for event in events:
            if not passes(wanted, event, room_id):
                raise Odd(f"the timeline's filter {wanted} lets {event} through")
        # "If state_after is missing, clients MUST behave as if they had not specified the parameter."
        after = self.options.state_after
        present, absent = ("state_after", "state") if after else ("state", "state_after")
        if told.get(absent) is not None:
            raise Odd(f"{absent} where use_state_after is {self.options.state_after}")
        if after and present not in told:
            raise Odd("no state_after, which is required even where it is empty")
        state = told.get(present, {}).get("events", [])
        keys = [(event["type"], event["state_key"]) for event in state]
        if len(keys) != len(set(keys)):
            raise Odd(f"{present} tells one key twice: {keys}")
        wanted = json.loads(self.options.state)
        for event in state:
            if not passes(wanted, event, room_id):
                raise Odd(f"the state's filter {wanted} lets {event} through")
            room.put(event)
        limited = timeline.get("limited", False)
        room.extend(events, limited, timeline.get("prev_batch"))
        if not after:
            for event in events:
                if "state_key" in event:
                    room.put(event)
        room.ephemeral(told.get("ephemeral", {}).get("events", []))
        for event in told.get("account_data", {}).get("events", []):
            room.account_data[event["type"]] = event["content"]
        if "unread_notifications" in told:
            room.unread = told["unread_notifications"]
        # Threads without notifications may be left out, so the object stands for all of them.
        if "unread_notifications" in told or "unread_thread_notifications" in told:
            room.threads = told.get("unread_thread_notifications", {})
        room.summary |= told.get("summary", {})


# Simplified sliding sync ---------------------------------------------------------------------------------------------


class Slid:
    """A client of MSC4186 with one growing list and all extensions."""

    def __init__(self, client: Client, user_id: str, *, limit: int, lazy: bool, conn_id: str, window: int = 1000,
                 subscribe: list[str] | None = None) -> None:
        self.client, self.user_id, self.limit, self.lazy, self.conn_id = client, user_id, limit, lazy, conn_id
        self.window, self.subscribe = window, subscribe or []
        self.pos: str | None = None
        self.restarts = 0
        self.to_device_since: str | None = None
        self.rooms: dict[str, Room] = {}
        self.membership: dict[str, str] = {}
        self.invited: dict[str, dict[Key, dict]] = {}
        self.account_data: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.to_device: list[dict] = []

    def body(self) -> dict:
        member = "$LAZY" if self.lazy else "*"
        state = [["*", "*"]] if not self.lazy else [
            *[[kind, "*"] for kind in ("m.room.create", "m.room.name", "m.room.topic", "m.room.avatar", "m.room.join_rules",
                                       "m.room.power_levels", "m.room.history_visibility", "m.room.canonical_alias",
                                       "m.room.pinned_events", "org.example.state")], ["m.room.member", member], ["m.room.member", "$ME"]]
        room = {"required_state": state, "timeline_limit": self.limit}
        extensions: dict[str, Any] = {name: {"enabled": True} for name in ("to_device", "e2ee", "account_data", "receipts", "typing")}
        if self.to_device_since:
            extensions["to_device"]["since"] = self.to_device_since
        body: dict[str, Any] = {"conn_id": self.conn_id, "lists": {"all": room | {"ranges": [[0, self.window - 1]]}},
                                "extensions": extensions}
        if self.subscribe:
            body["room_subscriptions"] = {room_id: room for room_id in self.subscribe}
        return body

    def ask(self, pos: str | None, timeout: int = 0) -> dict:
        query: dict[str, Any] = {"timeout": timeout} | ({"pos": pos} if pos else {})
        answer = self.client.post(SLIDING, self.body(), query=query)
        if pos and answer.told == (400, "M_UNKNOWN_POS"):
            # "The client must start a new connection": it knows of no room then.
            self.pos, self.restarts = None, self.restarts + 1
            self.rooms, self.membership, self.invited, self.facts, self.account_data = {}, {}, {}, {}, {}
            return self.ask(None, timeout)
        assert answer.status == 200, answer
        return answer.json

    def sync(self, lose: bool = False, timeout: int = 0, **_: Any) -> bool:
        if lose:
            self.ask(self.pos)
        answer = self.ask(self.pos, timeout)
        self.take(answer)
        extensions = answer.get("extensions", {})
        return bool(answer.get("rooms")) or any(
            extensions.get(name, {}).get(part) for name, part in
            (("account_data", "global"), ("account_data", "rooms"), ("receipts", "rooms"), ("typing", "rooms"), ("to_device", "events")))

    def forget(self, room_id: str) -> None:
        if self.membership.get(room_id) in ("leave", "ban"):
            self.rooms.pop(room_id, None)
            self.membership.pop(room_id, None)
            self.invited.pop(room_id, None)

    def take(self, answer: dict) -> None:
        self.pos = answer["pos"]
        for name, told in answer.get("lists", {}).items():
            self.counts[name] = told["count"]
        for room_id, told in answer.get("rooms", {}).items():
            self.room(room_id, told)
        extensions = answer.get("extensions", {})
        data = extensions.get("account_data", {})
        for event in data.get("global", []):
            self.account_data[event["type"]] = event["content"]
        for room_id, events in data.get("rooms", {}).items():
            for event in events:
                self.rooms.setdefault(room_id, Room()).account_data[event["type"]] = event["content"]
        for name in ("receipts", "typing"):
            for room_id, event in extensions.get(name, {}).get("rooms", {}).items():
                self.rooms.setdefault(room_id, Room()).ephemeral([event])
        if "to_device" in extensions:
            self.to_device_since = extensions["to_device"]["next_batch"]
            self.to_device += extensions["to_device"].get("events", [])

    def room(self, room_id: str, told: dict) -> None:
        room = self.rooms.setdefault(room_id, Room())
        timeline = told.get("timeline", [])
        # "The maximum number of timeline events to return."
        if len(timeline) > max(self.limit, 0):
            raise Odd(f"{len(timeline)} events where timeline_limit is {self.limit}")
        live = told.get("num_live")
        if live is not None and live > len(timeline):
            raise Odd(f"num_live {live} of {len(timeline)} events")
        if told.get("initial"):
            # The connection knows nothing of the room: what comes stands for all of it.
            room.state, room.segments = {}, []
        if timeline or told.get("initial"):
            limited = told.get("limited", False) or bool(told.get("initial"))
            room.extend(timeline, limited, told.get("prev_batch"))
        for event in timeline:
            if "state_key" in event:
                room.put(event)
        # What is required stands at the timeline's end.
        for event in told.get("required_state", []):
            room.put(event)
        if told.get("invite_state") is not None:
            self.invited[room_id] = {(event["type"], event["state_key"]): event for event in told["invite_state"]}
            own = self.invited[room_id].get(("m.room.member", self.user_id))
            self.membership[room_id] = own["content"]["membership"] if own else "invite"
        else:
            own = room.state.get(("m.room.member", self.user_id))
            if own:
                self.membership[room_id] = own["content"]["membership"]
                self.invited.pop(room_id, None)
        if told.get("membership", self.membership.get(room_id)) != self.membership.get(room_id):
            raise Odd(f"membership is {told['membership']}, one's own event says {self.membership.get(room_id)}")
        for name in ("notification_count", "highlight_count"):
            if name in told:
                room.unread[name] = told[name]
        for name in ("name", "avatar", "joined_count", "invited_count", "is_dm", "heroes"):
            if name in told:
                self.facts.setdefault(room_id, {})[name] = told[name]
