"""The sync oracle: whatever many users do, a client that followed along knows what one that comes fresh is told.

Random operations by several users; every user has clients that sync now and then, each in its own way (limits that make
gaps, lazy members, `state` or `state_after`, filters, answers that get lost). At the end each client's folded knowledge
must equal a fresh initial sync with the same filter, the room's state, and what the specification lets the user see of
the timeline of somebody who was there from the beginning. `fold.py` folds; here is what is done and what is compared.

A failure prints its seed and the shortest list of operations found. To play it again:

    HEYA_ORACLE_SEED=17 HEYA_ORACLE_OPS='[…]' pytest test_sync_oracle.py -k replay

`HEYA_ORACLE_SECONDS=600` plays new seeds for ten minutes (`-k random`); the default is a few fixed seeds.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
import time
from typing import Any

import pytest

from fold import C, SLIDING, Folded, Odd, Options, Room, Slid, passes
from harness import Client, Person, Server, quote

USERS = 4
OPERATIONS = 130
SECONDS = float(os.environ.get("HEYA_ORACLE_SECONDS", "0"))
SEEDS = [1, 2, 3, 4, 5, 6]
SHRINK_SECONDS = float(os.environ.get("HEYA_ORACLE_SHRINK", "40"))

# How often each is drawn. An operation is a kind and four numbers that name who, where and what modulo what there is, so
# that any part of a list can be played.
KINDS = {
    "create": 2, "invite": 7, "join": 9, "leave": 4, "kick": 2, "ban": 2, "unban": 2, "forget": 2, "send": 26, "edit": 4,
    "react": 5, "thread": 8, "reply": 3, "redact": 4, "state": 5, "name": 3, "topic": 2, "power": 2, "receipt": 12,
    "markers": 3, "typing": 4, "global": 4, "room_data": 4, "tag": 3, "untag": 1, "profile": 3, "alias": 2, "unalias": 1,
    "rule": 3, "unrule": 1, "visibility": 3, "pin": 2, "join_rule": 2, "knock": 2, "sync": 34, "settle": 2,
}

Operation = list[Any]


def draw(seed: int, count: int = OPERATIONS) -> list[Operation]:
    dice = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    done = [[kind, *(dice.randrange(10_000) for _ in range(4))] for kind in dice.choices(kinds, weights, k=count)]
    if seed % 3 == 0:
        done.insert(count // 2, ["kill", 0, 0, 0, 0])
    return done


def manner(dice: random.Random, rooms: list[str], users: list[str]) -> Options:
    """One way of syncing; half of them without filters."""
    given: dict[str, Any] = {
        "limit": dice.choice([1, 2, 3, 5, 10, 50]), "state_after": dice.random() < 0.5, "lazy": dice.random() < 0.4,
        "redundant": dice.random() < 0.3, "threads": dice.random() < 0.6, "include_leave": dice.random() < 0.6,
    }
    if dice.random() < 0.5:
        given["lazy"] = False
        what = dice.choice(["types", "not_types", "senders", "not_senders", "url", "rooms", "not_rooms", "ephemeral", "data", "state"])
        match what:
            case "types":
                given["timeline"] = dice.choice(['{"types":["m.room.message"]}', '{"types":["m.r*"]}', '{"types":["m.*.message","m.reaction"]}'])
            case "not_types":
                given["timeline"] = dice.choice(['{"not_types":["m.room.message"]}', '{"not_types":["m.room.*"]}',
                                                 '{"types":["m.*"],"not_types":["m.reaction"]}'])
            case "senders":
                given["timeline"] = json.dumps({"senders": dice.sample(users, 2)})
            case "not_senders":
                given["timeline"] = json.dumps({"not_senders": dice.sample(users, 1)})
            case "url":
                given["timeline"] = json.dumps({"contains_url": dice.random() < 0.5})
            case "rooms":
                given["rooms"] = json.dumps({"rooms": rooms[:2]})
            case "not_rooms":
                given["rooms"] = json.dumps({"rooms": rooms[:2], "not_rooms": rooms[:1]} if dice.random() < 0.5 else {"not_rooms": rooms[:1]})
            case "ephemeral":
                given["ephemeral"] = dice.choice(['{"types":["m.receipt"]}', '{"not_types":["m.*"]}', '{"types":["m.typing"]}'])
            case "data":
                given["account_data"] = dice.choice(['{"types":["org.example.a"]}', '{"not_types":["m.push_rules"]}'])
                given["room_account_data"] = dice.choice(['{"types":["m.tag"]}', '{"not_types":["m.tag"]}'])
            case "state":
                given["state"] = dice.choice(['{"types":["m.room.member","m.room.name"]}', '{"not_types":["m.room.member"]}',
                                              '{"types":["org.example.*"]}'])
                given["state_after"] = True
    return Options(**given)


# The world -----------------------------------------------------------------------------------------------------------


class World:
    """Some users of a server, their rooms, and what was acknowledged."""

    def __init__(self, server: Server, seed: int, sliding: bool = False) -> None:
        self.server, self.seed = server, seed
        dice = random.Random(f"world {seed}")
        self.dice = dice
        self.users = [server.register() for _ in range(USERS)]
        self.by_id = {user.user_id: user for user in self.users}
        self.rooms: list[str] = []
        self.creator: dict[str, Person] = {}
        self.version: dict[str, str] = {}
        self.members: dict[str, dict[str, str]] = {}
        self.ever: dict[str, set[str]] = {}
        self.events: dict[str, list[str]] = {}
        self.roots: dict[str, list[str]] = {}
        self.aliases: list[tuple[str, str]] = []
        self.log: list[str] = []
        self.serial = 0
        for index in range(3):
            self.apply(["create", index, index * 5 + 3, 0, 0])
        self.clients: list[Any] = []
        ids = [user.user_id for user in self.users]
        for user in self.users:
            # Clients have devices of their own: what a server remembers of a device must not be shared.
            if sliding:
                self.clients.append(Slid(user.log_in(), user.user_id, limit=dice.choice([1, 3, 10, 20]), lazy=dice.random() < 0.5,
                                         conn_id=f"c{seed}", subscribe=self.rooms[:1] if dice.random() < 0.3 else None))
            else:
                self.clients += [Folded(user.log_in(), user.user_id, manner(dice, self.rooms, ids)) for _ in range(2)]

    # Who and where

    def within(self, room_id: str, number: int, states: tuple[str, ...] = ("join",)) -> Person:
        """Mostly a member, now and then anybody."""
        some = sorted(user for user, membership in self.members[room_id].items() if membership in states)
        if not some or number % 11 == 0:
            return self.users[number % len(self.users)]
        return self.by_id[some[number % len(some)]]

    def call(self, person: Person, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The JSON of an acknowledged operation, None of a refused one. Nothing here may break the server."""
        answer = person.client.request(method, path, json_body=body, **more)
        assert answer.status < 500, f"{method} {path} {body}: {answer}"
        assert answer.status == 200 or answer.errcode, f"{method} {path} {body}: {answer}"
        self.log.append(f"{answer.status} {person.user_id} {method} {path} {json.dumps(body)}"[:300])
        return answer.json if answer.status == 200 else None

    def send(self, person: Person, room_id: str, kind: str, content: dict) -> str | None:
        self.serial += 1
        done = self.call(person, "PUT", f"{C}/rooms/{quote(room_id)}/send/{kind}/o{self.serial}", content)
        if done and kind == "m.room.message":
            self.events[room_id].append(done["event_id"])
        return done and done["event_id"]

    def some_event(self, room_id: str, number: int) -> str | None:
        events = self.events[room_id]
        # The newer the likelier, as people do.
        return events[-1 - number % min(len(events), 12)] if events else None

    # What is done

    def apply(self, operation: Operation, actor: Person | None = None) -> None:
        kind, a, b, c, d = operation
        if kind == "create":
            return self.create(actor or self.users[a % len(self.users)], b, c, d)
        if kind in ("sync", "settle"):
            clients = self.clients if actor is None else [one for one in self.clients if one.user_id == actor.user_id]
            for client in clients if kind == "settle" else [clients[a % len(clients)]]:
                client.sync(lose=b % 9 == 0, full_state=c % 17 == 0)
            return None
        if kind == "kill":
            self.server.kill()
            self.server.start()
            return None
        room_id = self.rooms[b % len(self.rooms)]
        return getattr(self, f"do_{kind}")(actor, room_id, a, c, d)

    def create(self, person: Person, b: int, c: int, d: int) -> None:
        if len(self.rooms) >= 8:
            return
        version = ["12", "12", "11", "10"][b % 4]
        body: dict[str, Any] = {"preset": ["private_chat", "public_chat", "trusted_private_chat"][b % 3], "room_version": version}
        if b % 5:
            body["name"] = f"room {b}"
        if c % 3 == 1:
            body["initial_state"] = [{"type": "m.room.history_visibility", "state_key": "", "content": {
                "history_visibility": ["joined", "invited", "shared", "world_readable"][c % 4]}}]
        if d % 3 == 1:
            body["invite"] = [self.users[d % len(self.users)].user_id]
            body["is_direct"] = d % 2 == 0
            if body["invite"] == [person.user_id]:
                del body["invite"]
        done = self.call(person, "POST", f"{C}/createRoom", body)
        if done:
            room_id = done["room_id"]
            self.creator[room_id], self.version[room_id] = person, version
            self.members[room_id] = {person.user_id: "join"} | {user: "invite" for user in body.get("invite", [])}
            self.events[room_id], self.roots[room_id], self.ever[room_id] = [], [], {person.user_id}
            self.rooms.append(room_id)

    def membership(self, actor: Person, room_id: str, what: str, target: Person, becomes: str) -> None:
        # The creator stays: somebody must have seen everything.
        if target is self.creator[room_id] and becomes != "join":
            return
        own = target is actor
        done = self.call(actor, "POST", f"{C}/rooms/{quote(room_id)}/{what}", {} if own else {"user_id": target.user_id})
        if done is not None:
            self.members[room_id][target.user_id] = becomes
            if becomes == "join":
                self.ever[room_id].add(target.user_id)

    def do_invite(self, actor, room_id, a, c, d):
        self.membership(actor or self.within(room_id, a), room_id, "invite", self.users[c % len(self.users)], "invite")

    def do_join(self, actor, room_id, a, c, d):
        person = actor or self.within(room_id, a, ("invite", "leave"))
        self.membership(person, room_id, "join", person, "join")

    def do_leave(self, actor, room_id, a, c, d):
        person = actor or self.within(room_id, a, ("join", "invite", "knock"))
        self.membership(person, room_id, "leave", person, "leave")

    def power(self, actor, room_id, a):
        return actor or (self.creator[room_id] if a % 4 else self.within(room_id, a))

    def do_kick(self, actor, room_id, a, c, d):
        self.membership(self.power(actor, room_id, a), room_id, "kick", self.within(room_id, c, ("join", "invite", "knock")), "leave")

    def do_ban(self, actor, room_id, a, c, d):
        self.membership(self.power(actor, room_id, a), room_id, "ban", self.within(room_id, c, ("join", "invite")), "ban")

    def do_unban(self, actor, room_id, a, c, d):
        self.membership(self.power(actor, room_id, a), room_id, "unban", self.within(room_id, c, ("ban",)), "leave")

    def do_knock(self, actor, room_id, a, c, d):
        person = actor or self.within(room_id, a, ("leave",))
        if self.members[room_id].get(person.user_id) not in ("join", "invite", "ban"):
            if self.call(person, "POST", f"/_matrix/client/v3/knock/{quote(room_id)}", {}) is not None:
                self.members[room_id][person.user_id] = "knock"

    def do_forget(self, actor, room_id, a, c, d):
        person = actor or self.within(room_id, a, ("leave", "ban"))
        if self.call(person, "POST", f"{C}/rooms/{quote(room_id)}/forget", {}) is not None:
            for client in self.clients:
                if client.user_id == person.user_id:
                    client.forget(room_id)

    def do_send(self, actor, room_id, a, c, d):
        content: dict[str, Any] = {"msgtype": "m.text", "body": f"word {c}"}
        if c % 5 == 0:
            content["msgtype"] = "m.notice"
        if c % 7 == 0:
            content |= {"msgtype": "m.image", "url": "mxc://example.org/abc"}
        if c % 4 == 0:
            content["m.mentions"] = {"user_ids": [self.users[d % len(self.users)].user_id]} if d % 5 else {"room": True}
            content["body"] += " @room" if d % 5 == 0 else ""
        kind = "org.example.note" if c % 13 == 0 else "m.room.message"
        self.send(actor or self.within(room_id, a), room_id, kind, content)

    def related(self, actor, room_id, a, c, relation: dict, **more: Any) -> None:
        self.send(actor or self.within(room_id, a), room_id, "m.room.message",
                  {"msgtype": "m.text", "body": f"word {c}", "m.relates_to": relation, **more})

    def do_edit(self, actor, room_id, a, c, d):
        if event := self.some_event(room_id, d):
            self.related(actor, room_id, a, c, {"rel_type": "m.replace", "event_id": event},
                         **{"m.new_content": {"msgtype": "m.text", "body": f"better {c}"}})

    def do_react(self, actor, room_id, a, c, d):
        if event := self.some_event(room_id, d):
            self.send(actor or self.within(room_id, a), room_id, "m.reaction",
                      {"m.relates_to": {"rel_type": "m.annotation", "event_id": event, "key": "👍" if c % 2 else f"{c}"}})

    def do_thread(self, actor, room_id, a, c, d):
        roots = self.roots[room_id]
        if not roots or d % 4 == 0:
            if event := self.some_event(room_id, d):
                roots.append(event)
        if roots:
            more = {"m.mentions": {"user_ids": [self.users[d % len(self.users)].user_id]}} if c % 4 == 0 else {}
            self.related(actor, room_id, a, c, {"rel_type": "m.thread", "event_id": roots[d % len(roots)]}, **more)

    def do_reply(self, actor, room_id, a, c, d):
        if event := self.some_event(room_id, d):
            self.related(actor, room_id, a, c, {"m.in_reply_to": {"event_id": event}})

    def do_redact(self, actor, room_id, a, c, d):
        if event := self.some_event(room_id, d):
            self.serial += 1
            self.call(self.power(actor, room_id, a), "PUT", f"{C}/rooms/{quote(room_id)}/redact/{quote(event)}/o{self.serial}",
                      {"reason": "wrong"} if c % 2 else {})

    def put_state(self, person: Person, room_id: str, kind: str, content: dict, key: str = "") -> Any:
        return self.call(person, "PUT", f"{C}/rooms/{quote(room_id)}/state/{quote(kind)}/{quote(key)}", content)

    def do_state(self, actor, room_id, a, c, d):
        self.put_state(self.power(actor, room_id, a), room_id, "org.example.state", {"value": d % 7}, f"key{c % 3}")

    def do_name(self, actor, room_id, a, c, d):
        self.put_state(self.power(actor, room_id, a), room_id, "m.room.name", {"name": f"name {c}"} if c % 6 else {})

    def do_topic(self, actor, room_id, a, c, d):
        self.put_state(self.power(actor, room_id, a), room_id, "m.room.topic", {"topic": f"topic {c % 5}"})

    def do_pin(self, actor, room_id, a, c, d):
        event = self.some_event(room_id, c)
        self.put_state(self.power(actor, room_id, a), room_id, "m.room.pinned_events", {"pinned": [event] if event else []})

    def do_visibility(self, actor, room_id, a, c, d):
        value = ["joined", "invited", "shared", "world_readable"][c % 4]
        self.put_state(self.power(actor, room_id, a), room_id, "m.room.history_visibility", {"history_visibility": value})

    def do_join_rule(self, actor, room_id, a, c, d):
        self.put_state(self.power(actor, room_id, a), room_id, "m.room.join_rules", {"join_rule": ["invite", "public", "knock"][c % 3]})

    def do_power(self, actor, room_id, a, c, d):
        person, target = self.creator[room_id], self.users[c % len(self.users)]
        if actor not in (None, person) or target is person:
            return
        levels = person.client.state(room_id, "m.room.power_levels")
        levels.setdefault("users", {})[target.user_id] = [0, 50, 75][d % 3]
        self.put_state(person, room_id, "m.room.power_levels", levels)

    def do_receipt(self, actor, room_id, a, c, d):
        if event := self.some_event(room_id, d):
            kind = ["m.read", "m.read", "m.read.private", "m.fully_read"][c % 4]
            body: dict[str, Any] = {}
            if c % 4 < 3 and c % 5 == 0:
                body["thread_id"] = "main"
            if c % 4 < 3 and c % 5 == 1 and self.roots[room_id]:
                body["thread_id"] = self.roots[room_id][d % len(self.roots[room_id])]
            self.call(actor or self.within(room_id, a), "POST", f"{C}/rooms/{quote(room_id)}/receipt/{kind}/{quote(event)}", body)

    def do_markers(self, actor, room_id, a, c, d):
        if event := self.some_event(room_id, d):
            body = {"m.fully_read": event, "m.read": event} if c % 2 else {"m.fully_read": event, "m.read.private": event}
            self.call(actor or self.within(room_id, a), "POST", f"{C}/rooms/{quote(room_id)}/read_markers", body)

    def do_typing(self, actor, room_id, a, c, d):
        person = actor or self.within(room_id, a)
        self.call(person, "PUT", f"{C}/rooms/{quote(room_id)}/typing/{quote(person.user_id)}",
                  {"typing": True, "timeout": 120_000} if c % 3 else {"typing": False})

    def do_global(self, actor, room_id, a, c, d):
        person = actor or self.users[a % len(self.users)]
        kind = ["org.example.a", "org.example.b", "m.direct"][c % 3]
        self.call(person, "PUT", f"{C}/user/{quote(person.user_id)}/account_data/{kind}", {"value": d} if c % 3 < 2 else {person.user_id: [room_id]})

    def do_room_data(self, actor, room_id, a, c, d):
        person = actor or self.within(room_id, a)
        kind = ["org.example.a", "m.marked_unread"][c % 2]
        self.call(person, "PUT", f"{C}/user/{quote(person.user_id)}/rooms/{quote(room_id)}/account_data/{kind}",
                  {"value": d} if c % 2 == 0 else {"unread": d % 2 == 0})

    def do_tag(self, actor, room_id, a, c, d):
        person = actor or self.within(room_id, a)
        self.call(person, "PUT", f"{C}/user/{quote(person.user_id)}/rooms/{quote(room_id)}/tags/{['m.favourite', 'u.work'][c % 2]}",
                  {"order": d % 10 / 10})

    def do_untag(self, actor, room_id, a, c, d):
        person = actor or self.within(room_id, a)
        self.call(person, "DELETE", f"{C}/user/{quote(person.user_id)}/rooms/{quote(room_id)}/tags/{['m.favourite', 'u.work'][c % 2]}")

    def do_profile(self, actor, room_id, a, c, d):
        person = actor or self.users[a % len(self.users)]
        what, value = ("displayname", f"Name {d}") if c % 2 else ("avatar_url", "mxc://example.org/face")
        self.call(person, "PUT", f"{C}/profile/{quote(person.user_id)}/{what}", {what: value})

    def do_alias(self, actor, room_id, a, c, d):
        person = self.power(actor, room_id, a)
        alias = f"#a{c % 4}-{self.users[0].login_id}:{self.server.server_name}"
        if self.call(person, "PUT", f"{C}/directory/room/{quote(alias)}", {"room_id": room_id}) is not None:
            self.aliases.append((alias, room_id))
            if d % 2:
                self.put_state(person, room_id, "m.room.canonical_alias", {"alias": alias})

    def do_unalias(self, actor, room_id, a, c, d):
        if self.aliases:
            alias, room = self.aliases[c % len(self.aliases)]
            self.call(self.power(actor, room, a), "DELETE", f"{C}/directory/room/{quote(alias)}")

    def do_rule(self, actor, room_id, a, c, d):
        person = actor or self.users[a % len(self.users)]
        kind, rule, body = [
            ("room", room_id, {"actions": []}), ("room", room_id, {"actions": ["notify"]}),
            ("content", "word", {"pattern": f"*{d % 10}", "actions": ["notify", {"set_tweak": "highlight"}]}),
            ("sender", self.users[d % len(self.users)].user_id, {"actions": []}),
            ("override", "mine", {"actions": ["notify"], "conditions": [{"kind": "event_match", "key": "content.msgtype", "pattern": "m.notice"}]}),
        ][c % 5]
        self.call(person, "PUT", f"{C}/pushrules/global/{kind}/{quote(rule)}", body)

    def do_unrule(self, actor, room_id, a, c, d):
        person = actor or self.users[a % len(self.users)]
        kind, rule = [("room", room_id), ("content", "word"), ("override", "mine")][c % 3]
        self.call(person, "DELETE", f"{C}/pushrules/global/{kind}/{quote(rule)}")

    # The truth

    def been_in(self, room_id: str, user_id: str) -> bool:
        return user_id in self.ever[room_id]

    def visible(self, room_id: str, user_id: str) -> list[dict]:
        """What the specification lets a user see of a room's timeline ("Room History Visibility"), oldest first."""
        return visible(self.creator[room_id].client.messages(room_id, "f"), user_id)


    def until_the_end(self, room_id: str, user_id: str) -> list[dict]:
        """The room's events up to where the user's last membership ended."""
        events = self.creator[room_id].client.messages(room_id, "f")
        membership, end = None, 0
        for index, event in enumerate(events):
            if event["type"] == "m.room.member" and event["state_key"] == user_id:
                if membership == "join" and event["content"]["membership"] != "join":
                    end = index
                membership = event["content"]["membership"]
        return events[: end + 1]


def visible(events: list[dict], user_id: str) -> list[dict]:
    """The rules of "Room History Visibility" on a timeline from its beginning, for a user who may read at its end."""
    # From the end: whether the user joins at or after this event.
    joins_later = [False] * len(events)
    later = False
    for index in reversed(range(len(events))):
        event = events[index]
        if event["type"] == "m.room.member" and event["state_key"] == user_id and event["content"].get("membership") == "join":
            later = True
        joins_later[index] = later
    seen, visibility, membership = [], "shared", None
    for index, event in enumerate(events):
        before, was = visibility, membership
        if event["type"] == "m.room.history_visibility" and event["state_key"] == "":
            visibility = event["content"].get("history_visibility", "shared")
        if event["type"] == "m.room.member" and event["state_key"] == user_id:
            membership = event["content"].get("membership")

        def allowed(setting: str, standing: str | None) -> bool:
            return (setting == "world_readable" or standing == "join" or setting == "shared" and joins_later[index]
                    or setting == "invited" and standing == "invite")

        # Changes of the setting and of one's own membership count before and after.
        if any(allowed(setting, standing) for setting in {before, visibility} for standing in {was, membership}):
            seen.append(event)
    return seen


# The comparison ------------------------------------------------------------------------------------------------------


def same(what: str, folded: Any, fresh: Any) -> None:
    if folded == fresh:
        return
    if isinstance(folded, dict) and isinstance(fresh, dict):
        keys = {key for key in folded.keys() | fresh.keys() if folded.get(key) != fresh.get(key)}
        folded, fresh = ({key: one.get(key, "(absent)") for key in sorted(keys, key=str)} for one in (folded, fresh))
    raise Odd(f"{what}: folded {folded!r}, expected {fresh!r}")


def ids(events: list[dict]) -> list[str]:
    return [f"{event['event_id']} {event['type']}" for event in events]


def same_order(what: str, folded: list[dict], expected: list[dict]) -> None:
    """Each event once, in one order, and with the content it has."""
    if ids(folded) != ids(expected):
        have, want = ids(folded), ids(expected)
        raise Odd(f"{what}: missing {[one for one in want if one not in have]}, beyond {[one for one in have if one not in want]}, "
                  f"twice {[one for one in set(have) if have.count(one) > 1]}; folded {have}, expected {want}")
    for one, other in zip(folded, expected, strict=True):
        for name in ("sender", "origin_server_ts", "state_key"):
            assert one.get(name) == other.get(name), (what, one, other)
        if "redacted_because" not in other.get("unsigned", {}):
            assert one["content"] == other["content"], (what, one, other)


def compare_room(world: World, client: Folded, room_id: str, folded: Room, fresh: Room, joined: bool) -> None:
    options, desk = client.options, world.by_id[client.user_id].client
    where = f"{room_id} of {client.user_id}"
    timeline, state = json.loads(options.timeline), json.loads(options.state)
    seen = world.visible(room_id, client.user_id)

    # State: of the keys that the filters let through.
    if joined:
        truth = {(event["type"], event["state_key"]): event
                 for event in desk.ok("GET", f"{C}/rooms/{quote(room_id)}/state")}
        told = truth
        if options.lazy:
            known = {key for key in folded.state if key[0] == "m.room.member"}
            must = {("m.room.member", sender) for sender in folded.senders | {client.user_id}}
            if must - known:
                raise Odd(f"{where}: members {sorted(must - known)} must be known with lazy loading and are not")
            told = {key: event for key, event in truth.items() if key[0] != "m.room.member" or key in known}
    else:
        told = fresh.state
        if options.lazy:
            told = {key: event for key, event in told.items() if key[0] != "m.room.member" or key in folded.state}
    # Where the state of the timeline counts as state, an event that the timeline's filter holds back is unknown.
    told = {key: event["event_id"] for key, event in told.items()
            if passes(state, event, room_id) and (options.state_after or passes(timeline, event, room_id))}
    have = {key: event["event_id"] for key, event in folded.state.items()
            if key in told}
    same(f"state of {where}", have, told)
    if joined:
        # And a fresh client learns the same.
        first = {key: event["event_id"] for key, event in fresh.state.items() if key in told}
        same(f"state of {where}, fresh", first, {key: value for key, value in told.items()
                                                 if not options.lazy or key in fresh.state or key[0] != "m.room.member"})

    # The timeline, gaps and all.
    filtered = timeline or None
    whole = folded.timeline(client.client, room_id, world.dice.choice([1, 4, 50]), filtered)
    expected = [event for event in seen if passes(timeline, event, room_id)]
    again = fresh.timeline(desk, room_id, 7, filtered)
    if not joined:
        # After the end only what anybody may read could come: whether it does is the server's choice.
        past = {event["event_id"] for event in world.until_the_end(room_id, client.user_id)}
        whole, expected, again = ([event for event in some if event["event_id"] in past] for some in (whole, expected, again))
    if "contains_url" in timeline:
        # A redacted event has lost its url: what it was when it came and what it is now may pass differently.
        redacted = {event["event_id"] for event in seen if "redacted_because" in event.get("unsigned", {})}
        whole, expected, again = ([event for event in some if event["event_id"] not in redacted] for some in (whole, expected, again))
    same_order(f"timeline of {where}", whole, expected)
    same_order(f"fresh timeline of {where}", again, expected)

    same(f"account data of {where}", folded.account_data, fresh.account_data)
    if joined:
        same(f"receipts of {where}", folded.read(), fresh.read())
        same(f"typing of {where}", folded.typing, fresh.typing)
        same(f"unread of {where}", folded.unread, fresh.unread)
        counted = [{root: one for root, one in room.threads.items() if any(one.values())} for room in (folded, fresh)]
        same(f"unread threads of {where}", *counted)
        same(f"summary of {where}", folded.summary, fresh.summary)
        members = [event["content"]["membership"] for key, event in truth.items() if key[0] == "m.room.member"]
        assert fresh.summary["m.joined_member_count"] == members.count("join"), where
        assert fresh.summary["m.invited_member_count"] == members.count("invite"), where
        private = [key for key in folded.receipts if key[0] == "m.read.private" and key[1] != client.user_id]
        assert not private, (where, private)


def compare(world: World, client: Folded) -> None:
    desk = world.by_id[client.user_id].client
    fresh = Folded(desk, client.user_id, client.options)
    fresh.sync()
    same("joined rooms", sorted(client.joined), sorted(fresh.joined))
    same("invitations", {room: stripped(one) for room, one in client.invited.items()},
         {room: stripped(one) for room, one in fresh.invited.items()})
    same("knocks", sorted(client.knocked), sorted(fresh.knocked))
    if client.options.include_leave:
        same("left rooms", sorted(client.left), sorted(fresh.left))
    same("account data", client.account_data, fresh.account_data)
    wanted = json.loads(client.options.rooms)
    joined = desk.ok("GET", f"{C}/joined_rooms")["joined_rooms"]
    same("joined_rooms", sorted(client.joined), sorted(
        room for room in joined if room in wanted.get("rooms", joined) and room not in wanted.get("not_rooms", [])))
    for room_id, room in client.joined.items():
        compare_room(world, client, room_id, room, fresh.joined[room_id], True)
    if client.options.include_leave:
        for room_id, room in client.left.items():
            # Of a room one never was in there is nothing to compare but that it ended.
            if world.been_in(room_id, client.user_id):
                compare_room(world, client, room_id, room, fresh.left[room_id], False)


def stripped(state: dict) -> dict:
    for event in state.values():
        assert "event_id" not in event or event["type"], event
    return {key: (event["sender"], event["content"]) for key, event in state.items()}


def compare_slid(world: World, client: Slid) -> None:
    user = world.by_id[client.user_id]
    fresh = Slid(user.client, user.user_id, limit=client.limit, lazy=client.lazy, conn_id=f"fresh-{secrets.token_hex(4)}")
    fresh.sync()
    plain = Folded(user.client, user.user_id, Options(limit=20))
    plain.sync()
    active = [{room: membership for room, membership in one.membership.items() if membership in ("join", "invite", "knock")}
              for one in (client, fresh)]
    same("memberships", *active)
    same("memberships against /v3/sync", active[0], dict.fromkeys(plain.joined, "join") | dict.fromkeys(plain.invited, "invite")
         | dict.fromkeys(plain.knocked, "knock"))
    same("counts of lists", client.counts, fresh.counts)
    same("account data", client.account_data, plain.account_data)
    same("invitations", {room: stripped(client.invited[room]) for room in plain.invited},
         {room: stripped(fresh.invited[room]) for room in plain.invited})
    for room_id in plain.joined:
        where, mine, other, known = f"{room_id} of {user.user_id}", client.rooms[room_id], fresh.rooms[room_id], plain.joined[room_id]
        truth = {(event["type"], event["state_key"]): event["event_id"]
                 for event in user.client.ok("GET", f"{C}/rooms/{quote(room_id)}/state")}
        asked = {tuple(one) for one in client.body()["lists"]["all"]["required_state"]}

        def told(key: tuple[str, str], room: Room) -> bool:
            if ("*", "*") in asked:
                return True
            if key[0] == "m.room.member":
                return key[1] in {event["sender"] for event in room.segments[-1].events} | {user.user_id}
            return (key[0], "*") in asked

        for name, room in (("folded", mine), ("fresh", other)):
            expected = {key: value for key, value in truth.items() if told(key, room)}
            same(f"{name} state of {where}", {key: event["event_id"] for key, event in room.state.items() if key in expected}, expected)
        expected = world.visible(room_id, user.user_id)
        same_order(f"timeline of {where}", mine.timeline(client.client, room_id, 5), expected)
        same_order(f"fresh timeline of {where}", other.timeline(user.client, room_id, 50), expected)
        # Of a room that is new to a connection only receipts of the events that it is told come with it.
        told_events = {event["event_id"] for segment in mine.segments for event in segment.events}
        have, want = mine.read(), known.read()
        same(f"receipts of {where}", {key: event for key, event in have.items() if key in want},
             {key: event for key, event in want.items() if key in have or event in told_events})
        same(f"typing of {where}", mine.typing, known.typing)
        same(f"room data of {where}", mine.account_data, known.account_data)
        same(f"unread of {where}", mine.unread, other.unread)
        facts = [{name: one for name, one in each.facts.get(room_id, {}).items() if one not in (False, None)} for each in (client, fresh)]
        if "heroes" not in facts[1]:
            # They are told where a room has no name of its own; one that got a name takes nothing back.
            facts[0].pop("heroes", None)
        same(f"facts of {where}", *facts)


# Playing -------------------------------------------------------------------------------------------------------------


def settle(world: World) -> None:
    for client in world.clients:
        for _ in range(6):
            if not client.sync():
                break
        else:
            raise Odd(f"the syncs of {client.user_id} never come to rest: {getattr(client, 'answers', [])[-2:]}")


def check(world: World) -> None:
    settle(world)
    for client in world.clients:
        try:
            (compare_slid if isinstance(client, Slid) else compare)(world, client)
        except AssertionError as error:
            raise Odd(f"{getattr(client, 'options', 'sliding')}\n{error}") from error


def play(server: Server, seed: int, operations: list[Operation], sliding: bool = False) -> None:
    world = World(server, seed, sliding)
    for number, operation in enumerate(operations):
        world.apply(operation)
        if number % 65 == 64:
            check(world)
    check(world)


def kind_of(error: AssertionError) -> str:
    """What an error says without its ids, so that shrinking does not wander to another one."""
    told = str(error).splitlines()[-1]
    return told.split(" of ")[0].split(":")[0][:40]


def explain(server: Server, seed: int, operations: list[Operation], error: AssertionError, sliding: bool) -> str:
    """The shortest list found by leaving out halves, quarters, and so on, in the time there is."""
    deadline, part, best, why = time.monotonic() + SHRINK_SECONDS, 2, operations, error
    while time.monotonic() < deadline and part <= 2 * len(best):
        size = max(1, len(best) // part)
        for start in range(0, len(best), size):
            shorter = best[:start] + best[start + size:]
            try:
                play(server, seed, shorter, sliding)
            except AssertionError as now:
                if kind_of(now) != kind_of(error):
                    continue
                best, why, part = shorter, now, max(2, part - 1)
                break
            if time.monotonic() > deadline:
                break
        else:
            part *= 2
    return (f"seed {seed}, {len(operations)} operations: {error}\n\nshortest found, {len(best)} operations: {why}\n"
            f"HEYA_ORACLE_SEED={seed} HEYA_ORACLE_OPS='{json.dumps(best)}' HEYA_ORACLE_SLIDING={int(sliding)}")


def run(server: Server, seed: int, sliding: bool = False) -> None:
    operations = draw(seed)
    try:
        play(server, seed, operations, sliding)
    except AssertionError as error:
        pytest.fail(explain(server, seed, operations, error, sliding))


@pytest.fixture(scope="module")
def server() -> Server:
    server = Server(profile="open")
    yield server
    server.remove()


def slides(server: Server) -> bool:
    return server.public().ok("GET", "/_matrix/client/versions").get("unstable_features", {}).get("org.matrix.simplified_msc3575") is True


@pytest.mark.parametrize("seed", SEEDS)
def test_folded_syncs_are_a_fresh_sync(server, seed):
    run(server, seed)


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_folded_sliding_syncs_are_a_fresh_sync(server, seed):
    if not slides(server):
        pytest.skip("/versions does not say org.matrix.simplified_msc3575: true")
    run(server, seed, sliding=True)


def test_syncs_while_everybody_writes(server):
    """Each user works in a thread of their own and their clients wait on long polls meanwhile."""
    world = World(server, 77)
    errors: list[BaseException] = []
    over = threading.Event()

    def guarded(work) -> threading.Thread:
        def body() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - reported below
                errors.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def write(user: Person) -> None:
        for operation in draw(1000 + world.users.index(user), 70):
            if operation[0] not in ("sync", "settle", "kill", "forget", "create"):
                world.apply(operation, user)

    def follow(client: Folded) -> None:
        while not over.is_set():
            client.sync(timeout=300)

    writers = [guarded(lambda user=user: write(user)) for user in world.users]
    followers = [guarded(lambda client=client: follow(client)) for client in world.clients]
    for thread in writers:
        thread.join()
    over.set()
    for thread in followers:
        thread.join()
    if errors:
        raise errors[0]
    check(world)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_counts_are_what_a_recount_says(server, seed):
    """Unread counts against the default push rules and the receipts, recounted here ("Receiving notifications", "Threading")."""
    dice = random.Random(f"counts {seed}")
    writer, other, reader = (server.register() for _ in range(3))
    room = writer.client.ok("POST", f"{C}/createRoom", {"preset": "public_chat"})["room_id"]
    path = f"{C}/rooms/{quote(room)}"
    for person in (other, reader):
        person.client.ok("POST", f"{path}/join", {})
    events: list[tuple[str, str, int, int]] = []  # id, thread ("main" or its root), counts, highlights
    read: dict[str | None, int] = {}  # by thread; None: all of them

    def send(person: Person, kind: str, content: dict) -> str:
        return person.client.ok("PUT", f"{path}/send/{kind}/c{len(events)}-{secrets.token_hex(3)}", content)["event_id"]

    for step in range(90):
        person, main = dice.choice([writer, other]), [one for one in events if one[1] == "main"]
        match dice.choice(["text", "text", "notice", "mention", "room", "thread", "thread", "edit", "reaction", "state", "read", "read"]):
            case "text":
                events.append((person.client.say(room, f"{step}"), "main", 1, 0))
            case "notice":
                events.append((person.client.say(room, f"{step}", msgtype="m.notice"), "main", 0, 0))
            case "mention":
                events.append((person.client.say(room, f"{step}", **{"m.mentions": {"user_ids": [reader.user_id]}}), "main", 1, 1))
            case "room":
                # Only the writer, who made the room, may call everybody; from the other it is an ordinary post.
                events.append((person.client.say(room, f"{step}", **{"m.mentions": {"room": True}}), "main", 1, int(person is writer)))
            case "thread" if main:
                roots = [one[1] for one in events if one[1] != "main"]
                root = dice.choice(roots) if roots and dice.random() < 0.6 else dice.choice(main)[0]
                more, loud = ({"m.mentions": {"user_ids": [reader.user_id]}}, 1) if dice.random() < 0.3 else ({}, 0)
                events.append((person.client.say(room, f"{step}", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}}, **more), root, 1, loud))
            case "edit" if main:
                # Of one's own, or it is none; `.m.rule.suppress_edits` either way.
                send(person, "m.room.message", {"msgtype": "m.text", "body": "* x", "m.new_content": {"msgtype": "m.text", "body": "x"},
                                                "m.relates_to": {"rel_type": "m.replace", "event_id": dice.choice(main)[0]}})
            case "reaction" if events:
                send(person, "m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": dice.choice(events)[0], "key": f"{step}"}})
            case "state":
                writer.client.ok("PUT", f"{path}/state/m.room.topic/", {"topic": f"{step}"})
            case "read" if events:
                index = dice.randrange(len(events))
                thread = dice.choice([None, events[index][1]])
                if index > read.get(thread, -1):
                    read[thread] = index
                    reader.client.ok("POST", f"{path}/receipt/{dice.choice(['m.read', 'm.read.private'])}/{quote(events[index][0])}",
                                     {"thread_id": thread} if thread else {})
        if step % 6 == 5 or step == 89:
            counts: dict[str, list[int]] = {}
            for index, (_, thread, one, loud) in enumerate(events):
                if index > max(read.get(None, -1), read.get(thread, -1)):
                    told = counts.setdefault(thread, [0, 0])
                    told[0], told[1] = told[0] + one, told[1] + loud
            want = {thread: tuple(told) for thread, told in counts.items() if any(told)}
            for threads in (True, False):
                answer = reader.client.sync(filter=json.dumps({"room": {"rooms": [room], "timeline": {"limit": 1, "unread_thread_notifications": threads}}}))
                room_told = answer["rooms"]["join"][room]

                def pair(one: dict) -> tuple[int, int]:
                    return one.get("notification_count", 0), one.get("highlight_count", 0)

                have = {thread: pair(one) for thread, one in room_told.get("unread_thread_notifications", {}).items() if any(pair(one))}
                whole = pair(room_told["unread_notifications"])
                if threads:
                    if any(whole):
                        have["main"] = whole
                    assert have == want, f"seed {seed}, step {step}"
                else:
                    assert whole == tuple(sum(one[index] for one in want.values()) for index in (0, 1)), f"seed {seed}, step {step}"


# What the oracle found, each by itself --------------------------------------------------------------------------------

def test_filters_hold_for_rooms_that_ended(server):
    alice, bob = server.register(), server.register()
    room = alice.client.ok("POST", f"{C}/createRoom", {"invite": [bob.user_id]})["room_id"]
    since = bob.client.sync()["next_batch"]
    bob.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
    given = {"room": {"timeline": {"types": ["m.room.message"]}, "state": {"not_types": ["m.room.member"]}}}
    told = bob.client.sync(since, filter=json.dumps(given))["rooms"]["leave"][room]
    assert told["timeline"]["events"] == [] and told.get("state", {}).get("events", []) == []


def test_an_invitation_stays_what_it_was(server):
    alice, bob = server.register(), server.register()
    room = alice.client.ok("POST", f"{C}/createRoom", {"invite": [bob.user_id], "name": "first"})["room_id"]
    first = bob.client.sync()
    alice.client.ok("PUT", f"{C}/rooms/{quote(room)}/state/m.room.name/", {"name": "second"})
    alice.client.ok("PUT", f"{C}/profile/{quote(alice.user_id)}/displayname", {"displayname": "another name"})
    told = bob.client.sync(first["next_batch"]).get("rooms", {}).get("invite", {}).get(room, first["rooms"]["invite"][room])
    assert bob.client.sync()["rooms"]["invite"][room] == told


def test_a_second_invitation_is_told(server):
    alice, bob = server.register(), server.register()
    room = alice.client.ok("POST", f"{C}/createRoom", {"invite": [bob.user_id], "is_direct": True})["room_id"]
    first = bob.client.sync()
    alice.client.ok("POST", f"{C}/rooms/{quote(room)}/invite", {"user_id": bob.user_id})
    told = bob.client.sync(first["next_batch"]).get("rooms", {}).get("invite", {}).get(room, first["rooms"]["invite"][room])
    assert bob.client.sync()["rooms"]["invite"][room] == told


@pytest.mark.parametrize("was", ["joined", "invited"])
def test_other_devices_are_told_of_a_room_that_was_forgotten(server, was):
    alice, bob = server.register(), server.register()
    room = alice.client.ok("POST", f"{C}/createRoom", {"preset": "public_chat", "invite": [bob.user_id]})["room_id"]
    if was == "joined":
        bob.client.ok("POST", f"{C}/join/{quote(room)}", {})
    since = bob.client.sync()["next_batch"]
    for what in ("leave", "forget"):
        bob.client.ok("POST", f"{C}/rooms/{quote(room)}/{what}", {})
    assert room in bob.client.sync(since).get("rooms", {}).get("leave", {})


def test_account_data_comes_with_a_room_that_one_comes_back_to(server):
    alice, bob = server.register(), server.register()
    room = alice.client.ok("POST", f"{C}/createRoom", {"preset": "public_chat"})["room_id"]
    path = f"{C}/user/{quote(bob.user_id)}/rooms/{quote(room)}"
    bob.client.ok("POST", f"{C}/join/{quote(room)}", {})
    bob.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
    bob.client.ok("PUT", f"{path}/account_data/org.example.a", {"value": 1})
    since = bob.client.sync()["next_batch"]
    bob.client.ok("POST", f"{C}/join/{quote(room)}", {})
    told = bob.client.sync(since)["rooms"]["join"][room]["account_data"]["events"]
    assert {"type": "org.example.a", "content": {"value": 1}} in told


def test_state_that_changed_out_of_sight_is_known(server):
    alice, bob = server.register(), server.register()
    room = alice.client.ok("POST", f"{C}/createRoom", {"preset": "private_chat"})["room_id"]
    path = f"{C}/rooms/{quote(room)}"
    alice.client.say(room, "seen")
    alice.client.ok("PUT", f"{path}/state/m.room.history_visibility/", {"history_visibility": "invited"})
    alice.client.ok("PUT", f"{path}/state/org.example.state/", {"value": 1})
    alice.client.ok("POST", f"{path}/invite", {"user_id": bob.user_id})
    bob.client.ok("POST", f"{path}/join", {})
    client = Folded(bob.client, bob.user_id, Options(limit=50))
    client.sync()
    assert ("org.example.state", "") in client.joined[room].state


@pytest.mark.skipif(not SECONDS, reason="HEYA_ORACLE_SECONDS is not set: the long run")
@pytest.mark.timeout(0)
def test_random_seeds(server):
    deadline, sliding = time.monotonic() + SECONDS, slides(server)
    while time.monotonic() < deadline:
        seed = secrets.randbelow(10**9)
        run(server, seed)
        if sliding:
            run(server, seed, sliding=True)


@pytest.mark.skipif("HEYA_ORACLE_OPS" not in os.environ, reason="HEYA_ORACLE_OPS is not set: nothing to replay")
@pytest.mark.timeout(0)
def test_replay(server):
    operations, sliding = json.loads(os.environ["HEYA_ORACLE_OPS"]), os.environ.get("HEYA_ORACLE_SLIDING") == "1"
    assert not sliding or slides(server), SLIDING
    play(server, int(os.environ["HEYA_ORACLE_SEED"]), operations, sliding)
