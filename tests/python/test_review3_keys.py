"""What a review of the whole server found in keys, messages to devices and notifications: a device that nobody may be, queues
that cost others, and apps that are told too much, too little or too late."""

from __future__ import annotations

import contextlib
import json
import pathlib
import secrets
import sqlite3
import time

import pytest

from harness import Person, Server, quote, wait_for
from test_keys import C, DEHYDRATED, FORBIDDEN, Device, dehydrated, inbox, send
# `world` and `as_found` are fixtures.
from test_push_http import Gateway, World, as_found, set_pusher, world

WHOAMI = f"{C}/account/whoami"


@pytest.fixture(scope="module")
def server() -> Server:
    """The open profile allows encryption."""
    server = Server(profile="open")
    yield server
    server.remove()


# The dehydrated device -----------------------------------------------------------------------------------------------


def proof(person: Person, password: str | None = None) -> dict:
    return {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.user_id},
            "password": password or person.password}


def dehydrate(person: Person) -> None:
    """A dehydrated device with the id DEHYD."""
    person.client.ok("PUT", DEHYDRATED, dehydrated(person, "DEHYD")[1])


def log_in_as(server: Server, person: Person, device_id: str, password: str | None = None):
    return server.public().post(f"{C}/login", proof(person, password) | {"device_id": device_id})


def test_nobody_logs_in_as_the_dehydrated_device(server: Server):
    """Such a session stood in no list of devices, so nothing ended it."""
    person = server.register()
    dehydrate(person)
    answer = log_in_as(server, person, "DEHYD")
    assert answer.told == FORBIDDEN, answer
    assert person.client.ok("GET", DEHYDRATED)["device_id"] == "DEHYD", "and it stays what it is"
    person.client.ok("DELETE", DEHYDRATED)
    assert log_in_as(server, person, "DEHYD").status == 200, "now it is any device's name"


@pytest.mark.parametrize("end", ["password", "logout/all", "deactivate"])
def test_the_end_of_everything_is_the_end_of_the_dehydrated_devices_name(server: Server, end: str):
    """Whatever was tried under its name before, no token of the account is good afterwards."""
    person = server.register()
    dehydrate(person)
    tokens = [answer.json["access_token"] for answer in (log_in_as(server, person, "DEHYD"), log_in_as(server, person, "PHONE"))
              if answer.status == 200]
    assert tokens
    person.client.ok("DELETE", DEHYDRATED)
    if end == "password":
        person.client.ok("POST", f"{C}/account/password",
                         {"new_password": "Ume-hana-38x", "logout_devices": True, "auth": proof(person)})
    elif end == "logout/all":
        person.client.ok("POST", f"{C}/logout/all", {})
    else:
        person.client.ok("POST", f"{C}/account/deactivate", {"auth": proof(person)})
    told = [server.public(token=token).get(WHOAMI).status for token in tokens]
    assert set(told) == {401}, told


# Messages to devices -------------------------------------------------------------------------------------------------


def read_bytes(server: Server) -> int:
    """What the process has read from files so far."""
    text = pathlib.Path(f"/proc/{server.process.pid}/io").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("rchar")).split()[1])


def test_full_queues_cost_others_nothing(fresh):
    """Eight devices that fetch nothing have eight megabytes each waiting. A message to all of them is not counted out from
    the disk again each time, while everybody else waits for the same writer."""
    server = fresh(profile="open")
    a, b = server.register(), server.register()
    room = a.client.ok("POST", f"{C}/createRoom", {"invite": [b.user_id]})["room_id"]
    b.client.ok("POST", f"{C}/join/{quote(room)}", {})
    devices = [f"OLD{n}" for n in range(8)]
    tokens = [log_in_as(server, b, device).json["access_token"] for device in devices]
    server.stop()
    large = json.dumps({"type": "m.test", "sender": a.user_id, "content": {"x": "z" * (1 << 20)}})
    with contextlib.closing(sqlite3.connect(server.data / "heya.sqlite")) as db:
        db.executemany("INSERT INTO to_device (user_id, device_id, position, event) VALUES (?, ?, ?, ?)",
                       ((b.user_id, device, n, large) for device in devices for n in range(1, 10)))
        db.commit()
    server.start()
    a.client.close(), b.client.close()
    waiting = len(devices) * 9 * len(large)
    assert send(a.client, {b.user_id: {"*": {"n": 0}}}).status == 200
    before = read_bytes(server)
    for n in range(1, 6):
        assert send(a.client, {b.user_id: {"*": {"n": n}}}).status == 200
    read = read_bytes(server) - before
    assert read < waiting // 2, f"{read >> 20} MiB read for five messages, while {waiting >> 20} MiB wait"
    # The ceiling holds, for each device of its own.
    assert [one["n"] for one in inbox(b.client.sync())] == list(range(6))
    names = "', '".join(devices)
    assert server.count(f"SELECT count(*) FROM to_device WHERE device_id IN ('{names}')") == 9 * len(devices)
    # Whoever has fetched what waited gets messages again, the others do not.
    back = server.public(token=tokens[0])
    fetched = back.sync()
    back.sync(fetched["next_batch"])
    assert send(a.client, {b.user_id: {"*": {"n": 7}}}).status == 200
    assert inbox(back.sync(fetched["next_batch"]))[-1] == {"n": 7}
    assert server.count(f"SELECT count(*) FROM to_device WHERE device_id = '{devices[1]}'") == 9


def test_a_device_that_has_fetched_gets_messages_again(server: Server):
    """Counted in memory, and forgotten when it fetches: by `since`, and not before."""
    a, b = server.register(), server.register()
    room = a.client.ok("POST", f"{C}/createRoom", {"invite": [b.user_id]})["room_id"]
    b.client.ok("POST", f"{C}/join/{quote(room)}", {})
    large, sent = {"x": "y" * 60_000}, 0
    for _ in range(150):
        assert send(a.client, {b.user_id: {"*": large}}).status == 200
        sent += 1
    of_b = f"SELECT count(*) FROM to_device WHERE user_id = '{b.user_id}'"
    held = server.count(of_b)
    assert (8 << 20) // 61_000 <= held < sent, "about eight megabytes"
    since = b.client.sync()["next_batch"]
    assert send(a.client, {b.user_id: {"*": large}}).status == 200
    assert server.count(of_b) == held, "told, but not yet acknowledged"
    b.client.sync(since)
    assert send(a.client, {b.user_id: {"*": {"n": 1}}}).status == 200
    got = []
    while part := inbox(told := b.client.sync(since)):
        got, since = got + part, told["next_batch"]
    assert got[-1] == {"n": 1}


def test_no_ciphertext_beside_the_rooms_of_a_city(city: Server):
    """What is sent so is in no room, no search, no export, no audit log."""
    a, b = city.person(), city.person()
    city.room(a, b)
    answer = send(a.client, {b.user_id: {"*": {"ciphertext": "x"}}}, kind="m.room.encrypted")
    assert answer.told == FORBIDDEN, answer
    assert inbox(b.client.sync()) == []
    assert send(a.client, {b.user_id: {"*": {"n": 1}}}, kind="m.test").status == 200, "other messages do pass"


# Notifications -------------------------------------------------------------------------------------------------------


def own_data(person: Person, kind: str, content: dict) -> None:
    person.client.ok("PUT", f"{C}/user/{quote(person.user_id)}/account_data/{kind}", content)


def test_one_phone_that_is_not_served_delays_the_others_by_seconds(world: World):
    """A gateway that answers 503 for one app's key goes on for everybody else."""
    third = world.server.person()
    stuck, fine = set_pusher(world.nurse.client, world.good.url), set_pusher(world.doctor.client, world.good.url)
    world.good.busy = {stuck}
    third.client.say(world.server.room(world.nurse, third))
    wait_for(lambda: world.good.told(stuck, "503"), what="the first try")
    second = third.client.say(world.server.room(world.doctor, third))
    wait_for(lambda: second in world.good.events(fine), 40, what="the other's notification")


def test_what_a_gateway_missed_while_it_was_away_is_told(world: World):
    """It cannot be reached: that is nobody's phone, and everything waits."""
    keys = {person.user_id: set_pusher(person.client, world.good.url) for person in (world.nurse, world.doctor)}
    third = world.server.person()
    room = world.server.room(world.nurse, world.doctor, third)
    mark = third.client.say(room, "前")
    wait_for(lambda: all(mark in world.good.events(key) for key in keys.values()), what="the notifications before")
    # Connections that are kept are closed at the next request.
    world.good.mode = "hang"
    world.good.stop()
    events = [third.client.say(room, f"{n}") for n in range(3)]
    time.sleep(4)  # longer than the tries of a key that is not served
    world.good = Gateway(world.authority.context(), world.good.port)
    wait_for(lambda: all(set(events) <= set(world.good.events(key)) for key in keys.values()), 60, what="what was missed")


def test_a_gateway_that_takes_nothing_for_a_while_is_told_afterwards(world: World):
    """Many phones, none served: then it is the gateway, and what came last waits for it."""
    third = world.server.person()
    people = [world.server.person(third.facility) for _ in range(6)]
    keys = [set_pusher(person.client, world.good.url) for person in people]
    world.good.mode = "503"
    events = [third.client.say(world.server.room(person, third)) for person in people]
    wait_for(lambda: len(world.good.told(mode="503")) >= 9, 60, what="the tries")
    time.sleep(2)
    world.good.mode = "ok"
    wait_for(lambda: events[-1] in world.good.events(keys[-1]), 60, what="what waited")


def test_the_list_of_notifications_leaves_out_whom_one_ignores(world: World):
    third = world.server.person()
    room = world.server.room(world.doctor, third, world.nurse)
    heard = third.client.say(room, "まだ")
    own_data(world.doctor, "m.ignored_user_list", {"ignored_users": {third.user_id: {}}})
    try:
        ignored, other = third.client.say(room, "もう"), world.nurse.client.say(room, "別の人")
        listed = world.doctor.client.ok("GET", f"{C}/notifications")["notifications"]
        told = {one["event"]["event_id"] for one in listed}
        assert other in told and not told & {heard, ignored}, told
    finally:
        own_data(world.doctor, "m.ignored_user_list", {"ignored_users": {}})


def test_a_phone_rings_for_no_invitation_that_its_owner_does_not_see(world: World):
    third = world.server.person(world.doctor.facility)
    world.server.room(world.nurse, third, world.doctor)
    key = set_pusher(third.client, world.good.url)
    own_data(third, "org.matrix.msc4155.invite_permission_config", {"enabled": True, "ignored_users": [world.nurse.user_id]})
    hidden, shown = (person.client.ok("POST", f"{C}/createRoom", {"is_direct": True, "invite": [third.user_id]})["room_id"]
                     for person in (world.nurse, world.doctor))
    assert hidden not in third.client.sync()["rooms"].get("invite", {})
    wait_for(lambda: shown in [one.get("room_id") for one in world.good.told(key)], what="the other invitation")
    time.sleep(0.5)
    assert hidden not in [one.get("room_id") for one in world.good.told(key)]


def test_being_added_to_a_room_is_told_to_apps(world: World):
    """The city adds people without asking them: they must hear of it."""
    third = world.server.person()
    key = set_pusher(third.client, world.good.url)
    room = world.server.room(world.nurse, world.doctor)
    world.server.change_members(room, add=[third])
    wait_for(lambda: room in [one.get("room_id") for one in world.good.told(key)], what="the word of the room")


def test_a_newcomer_is_not_rung_for_what_was_before(world: World):
    """The gateway was away meanwhile; what is told late is told to those who were there."""
    third = world.server.person()
    fine, new = set_pusher(world.doctor.client, world.good.url), set_pusher(third.client, world.good.url)
    room = world.server.room(world.nurse, world.doctor)
    world.good.mode = "hang"
    world.nurse.client.say(room, "止まる")
    before = world.nurse.client.say(room, "前")
    world.server.change_members(room, add=[third])
    after = world.nurse.client.say(room, "後")
    time.sleep(0.5)
    world.good.mode = "ok"

    def told(key: str) -> list[str]:
        return [one["event_id"] for one in world.good.told(key, "ok") if "event_id" in one]

    wait_for(lambda: before in told(fine) and after in told(new), 60, what="what waited")
    time.sleep(0.5)
    assert before not in told(new)
