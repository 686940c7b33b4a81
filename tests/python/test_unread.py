"""Unread counts against a recomputation: random deeds of several people on several devices, and after each few of them the
counts that every device was told by sync equal what follows from /messages, the push rules and the receipts alone.

`HEYA_SEED=… pytest test_unread.py` plays another run, or one again; a failure prints its seed and the last deeds. `HEYA_STEPS` sets how
many deeds there are."""

from __future__ import annotations

import json
import os
import random
import re
import secrets

import pytest

from harness import Client, Person, Server, quote

STEPS = int(os.environ.get("HEYA_STEPS", "150"))
R = "/_matrix/client/v3/rooms/"


# What the rules say (client-server API, "Push Rules") ---------------------------------------------------------------------


def field(event: dict, path: str):
    """The value at a dotted path; a dot of a name is written with a backslash."""
    value = event
    for part in re.split(r"(?<!\\)\.", path):
        part = part.replace("\\.", ".").replace("\\\\", "\\")
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def matches(pattern: str, value: str, *, word: bool) -> bool:
    glob = re.escape(pattern.lower())
    glob = glob.replace(r"\*", ".*").replace(r"\?", ".")
    if word:
        return re.search(rf"(^|\W){glob}(\W|$)", value.lower(), re.S) is not None
    return re.fullmatch(glob, value.lower(), re.S) is not None


class Reader:
    """One person's view of one room, from which the counts follow."""

    def __init__(self, person: Person, room: str, members: int, name: str, power: int, notify_at: int) -> None:
        self.person, self.room, self.members, self.name = person, room, members, name
        self.power, self.notify_at = power, notify_at

    def holds(self, condition: dict, event: dict) -> bool:
        kind = condition["kind"]
        if kind == "event_match":
            value = event.get("room_id") if condition["key"] == "room_id" else field(event, condition["key"])
            if not isinstance(value, str):
                return False
            return matches(condition["pattern"], value, word=condition["key"] == "content.body")
        if kind == "event_property_is":
            value = field(event, condition["key"])
            return type(value) is type(condition["value"]) and value == condition["value"]
        if kind == "event_property_contains":
            value = field(event, condition["key"])
            return isinstance(value, list) and condition["value"] in value
        if kind == "contains_display_name":
            body = field(event, "content.body")
            return isinstance(body, str) and bool(self.name) and matches(self.name, body, word=True)
        if kind == "room_member_count":
            sign, number = re.fullmatch(r"(==|<=|>=|<|>)?(\d+)", condition["is"]).groups()
            number = int(number)
            return {None: self.members == number, "==": self.members == number, "<": self.members < number,
                    ">": self.members > number, "<=": self.members <= number, ">=": self.members >= number}[sign]
        if kind == "sender_notification_permission":
            return False  # `@room` is not among the deeds of people who may.
        raise AssertionError(f"a condition that this test does not know: {condition}")

    def verdict(self, rules: dict, event: dict) -> tuple[bool, bool]:
        """Whether an event notifies, and whether as a highlight."""
        if event["sender"] == self.person.user_id or "redacted_because" in event.get("unsigned", {}):
            return False, False
        event = event | {"room_id": self.room}
        for kind in ("override", "content", "room", "sender", "underride"):
            for rule in rules.get(kind, []):
                if not rule["enabled"]:
                    continue
                if kind == "content":
                    body = field(event, "content.body")
                    holds = (event["type"] == "m.room.message" and isinstance(body, str)
                             and matches(rule["pattern"], body, word=True))
                elif kind == "room":
                    holds = rule["rule_id"] == self.room
                elif kind == "sender":
                    holds = rule["rule_id"] == event["sender"]
                else:
                    # Rules of before mentions say nothing of an event that names whom it mentions.
                    if rule["rule_id"] in (".m.rule.contains_display_name", ".m.rule.roomnotif") and "m.mentions" in event["content"]:
                        continue
                    holds = all(self.holds(condition, event) for condition in rule.get("conditions", []))
                if kind == "content" and rule["rule_id"] == ".m.rule.contains_user_name" and "m.mentions" in event["content"]:
                    continue
                if holds:
                    notifies = "notify" in rule["actions"]
                    highlights = any(isinstance(action, dict) and action.get("set_tweak") == "highlight"
                                     and action.get("value", True) is not False for action in rule["actions"])
                    return notifies, notifies and highlights
        return False, False

    def counts(self, rules: dict, timeline: list[dict], receipts: list[tuple[str, str]]) -> dict[str, tuple[int, int]]:
        """Unread (notifications, highlights) by thread, "" being the main timeline. `timeline` is oldest first, `receipts`
        are (thread or "", event id)."""
        me = self.person.user_id
        place = {event["event_id"]: i for i, event in enumerate(timeline)}
        joins = [i for i, event in enumerate(timeline) if event["type"] == "m.room.member" and event.get("state_key") == me
                 and event["content"].get("membership") == "join"]
        threads = {event["event_id"]: thread_of(event) for event in timeline}
        everything = joins[-1] if joins else -1
        read: dict[str, int] = {}
        for thread, event_id in receipts:
            if event_id not in place:
                continue
            if thread == "":
                everything = max(everything, place[event_id])
            else:
                root = "" if thread == "main" else thread
                read[root] = max(read.get(root, -1), place[event_id])
        for i, event in enumerate(timeline):
            # Who writes in a thread, or outside of them, has read there.
            if event["sender"] == me and event["type"] != "m.room.member":
                root = threads[event["event_id"]]
                read[root] = max(read.get(root, -1), i)
        found: dict[str, tuple[int, int]] = {}
        for i, event in enumerate(timeline):
            root = threads[event["event_id"]]
            if i <= everything or i <= read.get(root, -1):
                continue
            notifies, highlights = self.verdict(rules, event)
            before = found.get(root, (0, 0))
            found[root] = (before[0] + notifies, before[1] + highlights)
        return found


def thread_of(event: dict) -> str:
    relation = event["content"].get("m.relates_to") or {}
    return relation.get("event_id", "") if relation.get("rel_type") == "m.thread" else ""


# Devices ----------------------------------------------------------------------------------------------------------------


class Device:
    """A session that syncs, and remembers what it was told of each room."""

    def __init__(self, person: Person, client: Client, filter_: dict | None) -> None:
        self.person, self.client, self.filter = person, client, filter_
        self.since: str | None = None
        self.told: dict[str, tuple[int, int]] = {}
        self.threads: dict[str, dict[str, tuple[int, int]]] = {}
        # Rooms not told of since the rules changed: what a device shows of them may be old.
        self.stale: set[str] = set()

    def query(self) -> dict:
        return {"filter": json.dumps(self.filter)} if self.filter else {}

    def follow(self) -> None:
        answer = self.client.sync(self.since, **self.query())
        self.since = answer["next_batch"]
        self.take(answer)

    def take(self, answer: dict) -> None:
        for room, body in answer.get("rooms", {}).get("join", {}).items():
            if "unread_notifications" in body:
                self.told[room] = pair(body["unread_notifications"])
                self.stale.discard(room)
            if "unread_thread_notifications" in body:
                self.threads[room] = {root: pair(one) for root, one in body["unread_thread_notifications"].items()}


def pair(counts: dict) -> tuple[int, int]:
    return counts.get("notification_count", 0), counts.get("highlight_count", 0)


# The play ---------------------------------------------------------------------------------------------------------------


class Play:
    def __init__(self, server: Server, seed: int, threads: bool) -> None:
        self.server, self.seed, self.threads = server, seed, threads
        self.random = random.Random(seed)
        self.log: list[str] = []
        # What all checks together expected: a play in which nothing was unread would prove nothing.
        self.sums = [0, 0]
        self.people = [server.person() for _ in range(3)]
        a, b, c = self.people
        self.rooms = {server.room(a, b, c): self.people, server.room(a, b): [a, b]}
        direct = a.client.ok("POST", "/_matrix/client/v3/createRoom", {"invite": [b.user_id], "is_direct": True})["room_id"]
        b.client.ok("POST", f"/_matrix/client/v3/join/{quote(direct)}", {})
        self.rooms[direct] = [a, b]
        filter_ = {"room": {"timeline": {"unread_thread_notifications": True}}} if threads else None
        self.devices = [Device(person, client, filter_) for person in self.people for client in (person.client, person.log_in())]
        self.names = {room: {person.user_id: person.client.state(room, "m.room.member", person.user_id).get("displayname", "")
                             for person in people} for room, people in self.rooms.items()}
        self.sizes = {room: len(people[0].client.ok("GET", f"{R}{quote(room)}/joined_members")["joined"])
                      for room, people in self.rooms.items()}

    def timeline(self, person: Person, room: str) -> list[dict]:
        return person.client.messages(room, "b")[::-1]

    # Deeds

    def step(self) -> None:
        deed = self.random.choices(
            [self.say, self.receipt, self.marker, self.redact, self.react, self.edit, self.rule, self.restart],
            [45, 25, 8, 6, 6, 4, 5, 0.7])[0]
        room = self.random.choice(list(self.rooms))
        person = self.random.choice(self.rooms[room])
        device = self.random.choice([one for one in self.devices if one.person is person])
        self.log.append(f"{len(self.log)}: {deed.__name__} {person.login_id} {room[:8]}")
        deed(device, room)

    def note(self, text: str) -> None:
        self.log[-1] += f" {text}"

    def say(self, device: Device, room: str) -> None:
        other = self.random.choice(self.rooms[room])
        kind = self.random.choice(["plain", "plain", "plain", "mention", "nobody", "localpart", "name", "word", "notice"])
        content: dict = {"msgtype": "m.text", "body": "体温は37度です"}
        if kind == "mention":
            content["m.mentions"] = {"user_ids": [other.user_id]}
        elif kind == "nobody":
            content |= {"m.mentions": {}, "body": f"{other.login_id} さん"}
        elif kind == "localpart":
            content["body"] = f"to {other.login_id}: please look"
        elif kind == "name":
            content["body"] = f"{self.names[room][other.user_id]} さん"
        elif kind == "word":
            content["body"] = "an urgent thing"
        elif kind == "notice":
            content["msgtype"] = "m.notice"
        if self.threads and self.random.random() < 0.5:
            roots = [event for event in self.timeline(device.person, room) if event["type"] == "m.room.message"
                     and not thread_of(event) and "redacted_because" not in event.get("unsigned", {})
                     and (event["content"].get("m.relates_to") or {}).get("rel_type") is None]
            if roots:
                root = self.random.choice(roots[-4:])["event_id"]
                content["m.relates_to"] = {"rel_type": "m.thread", "event_id": root}
                kind += f" in {root[:6]}"
        self.note(kind)
        device.client.ok("PUT", f"{R}{quote(room)}/send/m.room.message/{secrets.token_hex(6)}", content)

    def receipt(self, device: Device, room: str) -> None:
        timeline = self.timeline(device.person, room)
        event = self.random.choice(timeline[-12:])
        kind = self.random.choice(["m.read", "m.read", "m.read.private"])
        body = {}
        if self.threads and self.random.random() < 0.7:
            body["thread_id"] = thread_of(event) or "main"
        self.note(f"{kind} {len(timeline) - timeline.index(event)} from the end {body}")
        device.client.ok("POST", f"{R}{quote(room)}/receipt/{kind}/{quote(event['event_id'])}", body)

    def marker(self, device: Device, room: str) -> None:
        event = self.random.choice(self.timeline(device.person, room)[-6:])["event_id"]
        body = self.random.choice([{"m.read": event}, {"m.read.private": event}, {"m.fully_read": event, "m.read": event},
                                   {"m.fully_read": event}])
        self.note(",".join(body))
        device.client.ok("POST", f"{R}{quote(room)}/read_markers", body)

    def message(self, device: Device, room: str, own: bool) -> str | None:
        found = [event["event_id"] for event in self.timeline(device.person, room)[-15:]
                 if event["type"] == "m.room.message" and "redacted_because" not in event.get("unsigned", {})
                 and (event["sender"] == device.person.user_id) == own
                 and (event["content"].get("m.relates_to") or {}).get("rel_type") != "m.replace"]
        return self.random.choice(found) if found else None

    def redact(self, device: Device, room: str) -> None:
        if event := self.message(device, room, own=True):
            device.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(event)}/{secrets.token_hex(6)}", {})

    def react(self, device: Device, room: str) -> None:
        if event := self.message(device, room, own=False):
            device.client.put(f"{R}{quote(room)}/send/m.reaction/{secrets.token_hex(6)}",
                              {"m.relates_to": {"rel_type": "m.annotation", "event_id": event, "key": self.random.choice("👍👀✅")}})

    def edit(self, device: Device, room: str) -> None:
        if event := self.message(device, room, own=True):
            new = {"msgtype": "m.text", "body": "訂正"}
            device.client.ok("PUT", f"{R}{quote(room)}/send/m.room.message/{secrets.token_hex(6)}", {
                **new, "body": "* 訂正", "m.new_content": new, "m.relates_to": {"rel_type": "m.replace", "event_id": event}})

    def rule(self, device: Device, room: str) -> None:
        at = "/_matrix/client/v3/pushrules/global"
        which = self.random.choice(["mute", "unmute", "word", "no word", "message", "message on"])
        self.note(which)
        if which == "mute":
            device.client.ok("PUT", f"{at}/room/{quote(room)}", {"actions": []})
        elif which == "unmute":
            device.client.delete(f"{at}/room/{quote(room)}")
        elif which == "word":
            device.client.ok("PUT", f"{at}/content/urgent", {"pattern": "urgent", "actions": ["notify", {"set_tweak": "highlight"}]})
        elif which == "no word":
            device.client.delete(f"{at}/content/urgent")
        else:
            device.client.ok("PUT", f"{at}/underride/.m.rule.message/enabled", {"enabled": which == "message on"})
        for one in self.devices:
            if one.person is device.person:
                one.stale |= set(self.rooms)

    def restart(self, device: Device, room: str) -> None:
        self.server.restart()
        for one in self.devices:
            one.client.close()

    # What must hold

    def expected(self, person: Person) -> dict[str, dict[str, tuple[int, int]]]:
        rules = person.client.ok("GET", "/_matrix/client/v3/pushrules/")["global"]
        fresh = person.client.sync(filter=json.dumps({"room": {"timeline": {"limit": 1}}}))
        found = {}
        for room, people in self.rooms.items():
            if person not in people:
                continue
            receipts = []
            for event in fresh["rooms"]["join"][room]["ephemeral"]["events"]:
                if event["type"] != "m.receipt":
                    continue
                for event_id, kinds in event["content"].items():
                    for kind in ("m.read", "m.read.private"):
                        if person.user_id in kinds.get(kind, {}):
                            receipts.append((kinds[kind][person.user_id].get("thread_id", ""), event_id))
            reader = Reader(person, room, self.sizes[room], self.names[room][person.user_id], 0, 50)
            found[room] = reader.counts(rules, self.timeline(person, room), receipts)
        return found

    def check(self) -> None:
        for person in self.people:
            expected = self.expected(person)
            fresh = Device(person, person.client, self.devices[0].filter)
            fresh.take(person.client.sync(**fresh.query()))
            own = [device for device in self.devices if device.person is person]
            for device in own:
                device.follow()
            for room, by_thread in expected.items():
                whole = tuple(sum(counts[i] for counts in by_thread.values()) for i in (0, 1))
                main = by_thread.get("", (0, 0)) if self.threads else whole
                self.sums = [before + now for before, now in zip(self.sums, whole)]
                assert fresh.told[room] == main, (person.login_id, room, "a fresh sync", fresh.told[room], main)
                if self.threads:
                    there = {root: counts for root, counts in by_thread.items() if root and counts != (0, 0)}
                    told = {root: counts for root, counts in fresh.threads.get(room, {}).items() if counts != (0, 0)}
                    assert told == there, (person.login_id, room, "threads", told, there)
                for i, device in enumerate(own):
                    if room not in device.stale and not self.threads:
                        assert device.told[room] == main, (person.login_id, room, f"device {i}", device.told[room], main)

    def play(self) -> None:
        try:
            self.check()
            for i in range(STEPS):
                self.step()
                if i % 3 == 0:
                    self.check()
            self.check()
            assert min(self.sums) > 0, self.sums
        except BaseException:
            print(f"\nHEYA_SEED={self.seed}: the last deeds were\n  " + "\n  ".join(self.log[-25:]))
            raise


def seeds() -> list[int]:
    given = os.environ.get("HEYA_SEED")
    return [int(given)] if given else [1, 2]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", seeds())
def test_counts_are_what_follows(fresh, seed: int):
    Play(fresh(), seed, threads=False).play()


@pytest.mark.timeout(600)
def test_counts_on_postgres(postgres, fresh):
    Play(fresh("postgres"), seeds()[-1], threads=False).play()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", seeds())
def test_counts_of_threads(fresh, seed: int):
    """Per thread, where the client asks for it (MSC3773)."""
    server = fresh()
    a, b = server.person(), server.person()
    room = server.room(a, b)
    root = a.client.say(room, "親")
    a.client.say(room, "子", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})
    asked = b.client.sync(filter=json.dumps({"room": {"timeline": {"unread_thread_notifications": True}}}))
    if "unread_thread_notifications" not in asked["rooms"]["join"][room]:
        pytest.skip("this server does not count by thread yet")
    Play(server, seed, threads=True).play()
