"""The Application Service API against an appservice that is not ours: delivery through failures and kills, typing and
receipts, questions, masquerading, registration files (DESIGN 4 and 17)."""

from __future__ import annotations

import pathlib
import random
import re
import subprocess
import tempfile
import time

import pytest

from fake_appservice import Appservice
from harness import Server, quote, wait_for

C = "/_matrix/client/v3"


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="heya-appservice-") as name:
        yield pathlib.Path(name)


@pytest.fixture
def appservice():
    """Makes appservices that end with the test."""
    made: list[Appservice] = []

    def make(name: str = "bridge", **more) -> Appservice:
        more.setdefault("users", f"@{name}_.*")
        made.append(Appservice(name, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def serve(fresh, folder: pathlib.Path, *services: Appservice, database: str = "sqlite", profile: str = "open", **config) -> Server:
    files = {one.id: one.registration(folder) for one in services}
    return fresh(database, profile, config={"appservices": files, **config})


def user(service: Appservice, server: Server, name: str) -> str:
    done = service.register(server, name)
    assert done.status == 200, done
    return done.json["user_id"]


def act(service: Appservice, server: Server, user_id: str, method: str, path: str, body: dict | None = None, **query):
    client = service.client(server)
    answer = client.request(method, path, json_body=body, query={"user_id": user_id, **query})
    client.close()
    return answer


def bridged_room(service: Appservice, server: Server, name: str = "bridge_1"):
    """A person's room with a user of the appservice in it: (person, room, the user's id)."""
    person, guest = server.register(), user(service, server, name)
    room = person.client.ok("POST", f"{C}/createRoom", {"name": "room", "invite": [guest]})["room_id"]
    done = act(service, server, guest, "POST", f"{C}/rooms/{quote(room)}/join", {})
    assert done.status == 200, done
    return person, room, guest


def stats(server: Server, service: Appservice) -> dict:
    return next(one for one in server.look("stats")["appservices"] if one["id"] == service.id)


# Delivery


def test_failing_and_killed_nothing_is_lost_doubled_or_turned_around(fresh, folder, appservice, database):
    """It answers 500, hangs, closes the connection, while events are sent and the server is killed."""
    service = appservice()
    server = serve(fresh, folder, service, database=database)
    person, room, _ = bridged_room(service, server)
    chance = random.Random(7)
    sent: list[str] = []

    def say(count: int) -> None:
        sent.extend(person.client.say(room, f"text {len(sent)}") for _ in range(count))

    say(3)
    wait_for(lambda: sent[-1] in [event["event_id"] for event in service.events()], what="the first events")
    for mode in ["500", "close", "hang", "ok", "hang", "500", "close"]:
        service.mode = mode
        before = len(service.transactions())
        say(chance.randint(2, 5))
        if mode != "ok":
            wait_for(lambda: len(service.transactions()) > before, what=f"a transaction in mode {mode}")
        if chance.random() < 0.6 or mode == "hang":
            server.kill()
            server.start()
            person.client.close()
            # What was under way comes again by itself, whatever the appservice does.
            again = len(service.transactions())
            wait_for(lambda: mode == "ok" or len(service.transactions()) > again, what="the transaction after the kill")
        say(1)
    failing = wait_for(lambda: (found := stats(server, service))["failures"] and found, what="failures in the numbers")
    assert failing["under_way"] > 0 and failing["behind"] > 0 and failing["age_ms"] >= 0
    service.mode = "ok"
    assert service.ping(server).status == 200
    wait_for(lambda: set(sent) <= {event["event_id"] for event in service.events()}, 10, what="all events after the ping")

    transactions = service.transactions()
    bodies: dict[str, set[bytes]] = {}
    order: list[str] = []
    for one in transactions:
        assert one.token == service.hs_token and not one.query, "the token is in the header only"
        bodies.setdefault(one.path, set()).add(one.body)
        if not order or order[-1] != one.path:
            order.append(one.path)
    assert all(len(same) == 1 for same in bodies.values()), "one id has one body, byte for byte"
    assert len(order) == len(set(order)), "an older transaction never comes after a newer one"
    assert len(transactions) > len(order), "something was sent again"
    assert service.most_under_way == 1, "one in flight"
    came = [event["event_id"] for event in service.events()]
    assert len(came) == len(set(came)), "each event in one transaction"
    assert [event for event in came if event in set(sent)] == sent, "in arrival order"
    wait_for(lambda: stats(server, service) | {"id": ""} == {"id": "", "failures": 0, "behind": 0, "under_way": 0, "age_ms": 0},
             what="an empty queue")
    assert server.count("SELECT COUNT(*) FROM appservice_transactions") == 0


def test_ping(fresh, folder, appservice):
    service = appservice()
    server = serve(fresh, folder, service)
    done = service.ping(server)
    assert done.status == 200 and isinstance(done.json["duration_ms"], int)
    ping = next(one for one in service.asked if one.path == "/_matrix/app/v1/ping")
    assert ping.method == "POST" and ping.json == {"transaction_id": "ping-1"} and ping.token == service.hs_token
    service.mode = "500"
    failed = service.ping(server)
    assert failed.told == (502, "M_BAD_STATUS") and failed.json["status"] == 500
    service.mode = "close"
    assert service.ping(server).told == (502, "M_CONNECTION_FAILED")
    client = service.client(server)
    assert client.post("/_matrix/client/v1/appservice/city/ping", {}).told == (403, "M_FORBIDDEN")
    assert client.post("/_matrix/client/v1/appservice/bridge/ping", {}, token="wrong").told == (401, "M_UNKNOWN_TOKEN")
    client.close()


def test_a_ping_wakes_the_delivery(fresh, folder, appservice):
    service = appservice()
    server = serve(fresh, folder, service)
    person, room, _ = bridged_room(service, server)
    service.mode = "500"
    event = person.client.say(room, "x")
    # From the seventh failure on it waits six seconds and more.
    wait_for(lambda: stats(server, service)["failures"] >= 7, 60, what="a long wait")
    service.mode = "ok"
    begun = time.monotonic()
    assert service.ping(server).status == 200
    wait_for(lambda: event in [one["event_id"] for one in service.events()], 10, 0.02, what="the event")
    assert time.monotonic() - begun < 5.0


def test_an_appservice_gets_the_rooms_of_its_users_and_no_others(fresh, folder, appservice):
    service, watcher = appservice(), appservice("watcher", users=None, rooms="!.*", exclusive=False)
    server = serve(fresh, folder, service, watcher)
    person, room, guest = bridged_room(service, server)
    other = person.client.ok("POST", f"{C}/createRoom", {"name": "another"})["room_id"]
    hidden = person.client.say(other, "not for the bridge")
    service.mode = "500"
    seen = person.client.say(room, "while it was in the room")
    person.client.ok("POST", f"{C}/rooms/{quote(room)}/kick", {"user_id": guest})
    after = person.client.say(room, "after it left")
    service.mode = "ok"
    service.ping(server)
    wait_for(lambda: after in [event["event_id"] for event in watcher.events()], what="the watcher's events")
    came = wait_for(lambda: (found := [event["event_id"] for event in service.events()]) and seen in found and found,
                    what="what its user saw before it left")
    left = wait_for(lambda: [event for event in service.events() if event.get("state_key") == guest
                             and event["content"]["membership"] == "leave"], what="its removal")
    assert left and hidden not in came and after not in [event["event_id"] for event in service.events()]
    assert {hidden, seen, after} <= {event["event_id"] for event in watcher.events()}
    assert all("age" in event["unsigned"] and event["room_id"] for event in watcher.events())


def test_a_new_appservice_begins_at_the_present(fresh, folder, appservice):
    service = appservice("watcher", users=None, rooms="!.*", exclusive=False)
    server = fresh("sqlite", "open")
    person = server.register()
    room = person.client.ok("POST", f"{C}/createRoom", {})["room_id"]
    old = person.client.say(room, "from before")
    server.stop()
    server.overrides = {"appservices": {"watcher": service.registration(folder)}}
    server._write_config()
    server.start()
    person.client.close()
    wait_for(lambda: stats(server, service)["behind"] == 0, what="the beginning")
    new = person.client.say(room, "from now on")
    wait_for(lambda: new in [event["event_id"] for event in service.events()], what="the new event")
    assert old not in [event["event_id"] for event in service.events()]


# Typing and receipts


def test_typing_and_receipts(fresh, folder, appservice):
    service = appservice(receive_ephemeral=True)
    deaf = appservice("deaf", users="@bridge_.*", exclusive=False)
    server = serve(fresh, folder, service, deaf)
    person, room, guest = bridged_room(service, server)
    event = person.client.say(room, "read me")
    other = person.client.ok("POST", f"{C}/createRoom", {})["room_id"]
    elsewhere = person.client.say(other, "x")
    for where, what in ((other, elsewhere), (room, event)):
        person.client.ok("PUT", f"{C}/rooms/{quote(where)}/typing/{quote(person.user_id)}", {"typing": True, "timeout": 30_000})
        for kind in ("m.read", "m.read.private"):
            person.client.ok("POST", f"{C}/rooms/{quote(where)}/receipt/{kind}/{quote(what)}", {})
    assert act(service, server, guest, "POST", f"{C}/rooms/{quote(room)}/receipt/m.read.private/{quote(event)}", {}).status == 200

    def receipts() -> dict:
        return {(kind, who, data.get("thread_id")): (told["room_id"], event_id) for told in service.ephemeral("m.receipt")
                for event_id, kinds in told["content"].items() for kind, people in kinds.items() for who, data in people.items()}

    wait_for(lambda: len(receipts()) == 2, what="the receipts")
    assert receipts() == {("m.read", person.user_id, None): (room, event), ("m.read.private", guest, None): (room, event)}
    wait_for(lambda: service.ephemeral("m.typing"), what="typing")
    assert service.ephemeral("m.typing")[-1] == {"type": "m.typing", "room_id": room, "content": {"user_ids": [person.user_id]}}
    person.client.ok("PUT", f"{C}/rooms/{quote(room)}/typing/{quote(person.user_id)}", {"typing": False})
    wait_for(lambda: service.ephemeral("m.typing")[-1]["content"]["user_ids"] == [], what="the end of typing")
    assert {told["room_id"] for kind in ("m.typing", "m.receipt") for told in service.ephemeral(kind)} == {room}
    # An appservice that did not ask for them gets none, and nothing of them is in a transaction with events.
    wait_for(lambda: event in [one["event_id"] for one in deaf.events()], what="the other's events")
    assert not any("ephemeral" in one.json for one in deaf.transactions())
    assert not any(one.json.get("ephemeral") and one.json["events"] for one in service.transactions())


def test_typing_stands_before_no_event_and_is_stored_nowhere(fresh, folder, appservice):
    service = appservice(receive_ephemeral=True)
    server = serve(fresh, folder, service)
    person, room, _ = bridged_room(service, server)
    first = person.client.say(room, "x")
    wait_for(lambda: first in [event["event_id"] for event in service.events()], what="the first event")
    service.mode = "500"
    typing = f"{C}/rooms/{quote(room)}/typing/{quote(person.user_id)}"
    person.client.ok("PUT", typing, {"typing": True, "timeout": 30_000})
    wait_for(lambda: service.ephemeral("m.typing"), what="typing that is refused")
    assert server.count("SELECT COUNT(*) FROM appservice_transactions") == 0
    event = person.client.say(room, "y")
    person.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/m.read/{quote(event)}", {})
    wait_for(lambda: event in [one["event_id"] for one in service.events()], what="the event, although typing was refused")
    assert server.count("SELECT COUNT(*) FROM appservice_transactions WHERE body LIKE '%m.typing%' OR body LIKE '%m.receipt%'") == 0
    server.kill()
    person.client.close()
    service.mode = "ok"
    told = len(service.ephemeral("m.typing"))
    server.start()
    # The receipt is told in the end; typing from before is nobody's concern any more.
    wait_for(lambda: any(event in one["content"] for one in service.ephemeral("m.receipt")), what="the receipt after the kill")
    assert len(service.ephemeral("m.typing")) == told


# Questions


def test_unknown_users_and_aliases_are_asked_for(fresh, folder, appservice):
    service = appservice(aliases="#bridge_.*")
    server = serve(fresh, folder, service)
    person = server.register()
    room = person.client.ok("POST", f"{C}/createRoom", {})["room_id"]
    name = server.server_name

    def makes_user(asked):
        return (200, {}) if service.register(server, "bridge_asked").status == 200 else (500, {})

    def makes_room(asked):
        client = service.client(server)
        client.ok("POST", f"{C}/createRoom", {"room_alias_name": "bridge_room", "preset": "public_chat"})
        client.close()
        return 200, {}

    service.answers = {f"/users/@bridge_asked:{name}": makes_user, f"/rooms/#bridge_room:{name}": makes_room}
    invite = f"{C}/rooms/{quote(room)}/invite"
    assert person.client.post(invite, {"user_id": f"@bridge_asked:{name}"}).status == 200
    assert person.client.post(invite, {"user_id": f"@bridge_nobody:{name}"}).told == (404, "M_NOT_FOUND")
    asked = service.questions("/users/")
    assert [one.path for one in asked] == [f"/_matrix/app/v1/users/{quote(f'@{one}:{name}')}".replace("%40", "@").replace("%3A", ":")
                                           for one in ("bridge_asked", "bridge_nobody")]
    assert all(one.token == service.hs_token and not one.query for one in asked)
    # Known now, and never asked for: somebody outside the namespace.
    assert person.client.get(f"{C}/profile/{quote(f'@bridge_asked:{name}')}").status == 200
    assert person.client.get(f"{C}/profile/{quote(f'@else:{name}')}").told == (404, "M_NOT_FOUND")
    assert len(service.questions("/users/")) == 2
    assert person.client.get(f"{C}/profile/{quote(f'@bridge_third:{name}')}").told == (404, "M_NOT_FOUND")
    assert len(service.questions("/users/")) == 3
    made = person.client.post(f"{C}/createRoom", {"invite": [f"@bridge_fourth:{name}"]})
    assert made.told == (404, "M_NOT_FOUND") and len(service.questions("/users/")) == 4

    found = person.client.ok("GET", f"{C}/directory/room/{quote(f'#bridge_room:{name}')}")
    assert found["servers"] == [name] and len(service.questions("/rooms/")) == 1
    assert person.client.ok("POST", f"{C}/join/{quote(f'#bridge_room:{name}')}", {})["room_id"] == found["room_id"]
    assert person.client.get(f"{C}/directory/room/{quote(f'#bridge_none:{name}')}").told == (404, "M_NOT_FOUND")
    assert person.client.get(f"{C}/directory/room/{quote(f'#else:{name}')}").told == (404, "M_NOT_FOUND")
    assert len(service.questions("/rooms/")) == 2
    assert person.client.ok("GET", f"{C}/rooms/{quote(found['room_id'])}/aliases")["aliases"] == [f"#bridge_room:{name}"]
    assert person.client.state(found["room_id"], "m.room.canonical_alias")["alias"] == f"#bridge_room:{name}"


def test_an_appservice_that_gives_no_answer_holds_nobody_up(fresh, folder, appservice):
    service = appservice()
    server = serve(fresh, folder, service)
    person = server.register()
    room = person.client.ok("POST", f"{C}/createRoom", {})["room_id"]
    service.answers = {f"/users/@bridge_slow:{server.server_name}": lambda asked: (0, {})}
    begun = time.monotonic()
    told = person.client.post(f"{C}/rooms/{quote(room)}/invite", {"user_id": f"@bridge_slow:{server.server_name}"}).told
    assert told == (404, "M_NOT_FOUND") and 4 < time.monotonic() - begun < 30


def test_other_networks(fresh, folder, appservice):
    service = appservice(protocols=["irc"], aliases="#bridge_.*")
    server = serve(fresh, folder, service)
    person = server.register()
    irc = {"user_fields": ["nick"], "location_fields": ["channel"], "icon": "mxc://x/y", "field_types": {},
           "instances": [{"network_id": "one", "desc": "One", "fields": {}}]}
    rows = [{"userid": f"@bridge_1:{server.server_name}", "protocol": "irc", "fields": {"nick": "one"}}]
    service.answers = {"/thirdparty/protocol/irc": lambda asked: (200, irc), "/thirdparty/user/irc": lambda asked: (200, rows),
                       "/thirdparty/user": lambda asked: (200, rows), "/thirdparty/location": lambda asked: (200, rows)}
    ask = person.client
    assert ask.ok("GET", f"{C}/thirdparty/protocols") == {"irc": irc}
    assert ask.ok("GET", f"{C}/thirdparty/protocol/irc") == irc
    assert ask.get(f"{C}/thirdparty/protocol/none").told == (404, "M_NOT_FOUND")
    assert ask.ok("GET", f"{C}/thirdparty/user/irc", query={"nick": "one & two", "access_token": "mine"}) == rows
    assert service.questions("/thirdparty/user/irc")[-1].query == {"nick": ["one & two"]}
    assert ask.get(f"{C}/thirdparty/location/irc").told == (404, "M_NOT_FOUND")
    assert ask.get(f"{C}/thirdparty/user/none").told == (404, "M_NOT_FOUND")
    assert ask.ok("GET", f"{C}/thirdparty/user", query={"userid": f"@bridge_1:{server.server_name}"}) == rows
    assert ask.ok("GET", f"{C}/thirdparty/location", query={"alias": f"#bridge_1:{server.server_name}"}) == rows
    assert ask.get(f"{C}/thirdparty/user").told == (400, "M_MISSING_PARAM")
    assert ask.get(f"{C}/thirdparty/location", query={"alias": "x"}).told == (400, "M_INVALID_PARAM")
    assert all(one.token == service.hs_token for one in service.questions())


# Acting as a user


def test_masquerading(fresh, folder, appservice):
    service, other = appservice(), appservice("other")
    server = serve(fresh, folder, service, other)
    guest = user(service, server, "bridge_1")
    whoami = f"{C}/account/whoami"
    own = service.client(server)
    assert own.ok("GET", whoami)["user_id"] == f"@bridgebot:{server.server_name}"
    assert act(service, server, guest, "GET", whoami).json["user_id"] == guest
    for name in ("other_1", "city", "otherbot", "stranger", "bridge_never_registered"):
        told = act(service, server, f"@{name}:{server.server_name}", "GET", whoami).told
        assert told == (403, "M_FORBIDDEN"), name
    assert act(service, server, "@bridge_1:elsewhere.example", "GET", whoami).told == (403, "M_FORBIDDEN")
    assert act(service, server, "nonsense", "GET", whoami).told == (400, "M_INVALID_PARAM")
    # Its own user is there from the start; names of others are kept for them.
    assert service.register(server, "bridgebot").told == (400, "M_USER_IN_USE")
    for name in ("other_1", "stranger", "otherbot"):
        assert service.register(server, name).told == (400, "M_EXCLUSIVE"), name
    # A session of a user of its own is not to be had: refused as specified, and the name stays free.
    assert service.register(server, "bridge_2", inhibit_login=False).told == (400, "M_APPSERVICE_LOGIN_UNSUPPORTED")
    assert service.register(server, "bridge_2").json == {"user_id": f"@bridge_2:{server.server_name}"}
    taken = server.public().post(f"{C}/register", {"username": "bridge_person", "password": "Ume-hana-37", "auth": {"type": "m.login.dummy"}})
    assert taken.told == (400, "M_EXCLUSIVE")
    own.close()


def test_acting_as_a_device(fresh, folder, appservice):
    service = appservice()
    server = serve(fresh, folder, service)
    person, room, guest = bridged_room(service, server)
    whoami = f"{C}/account/whoami"
    assert act(service, server, guest, "GET", whoami, device_id="PHONE").told == (400, "M_UNKNOWN_DEVICE")
    assert act(service, server, guest, "PUT", f"{C}/devices/PHONE", {"display_name": "phone"}).status == 201
    assert act(service, server, guest, "PUT", f"{C}/devices/PHONE", {"display_name": "a phone"}).status == 200
    assert act(service, server, guest, "GET", whoami, device_id="PHONE").json["device_id"] == "PHONE"
    assert act(service, server, guest, "GET", f"{C}/devices/PHONE").json["display_name"] == "a phone"
    # A transaction id belongs to the device: the same id on two devices is two messages.
    assert act(service, server, guest, "PUT", f"{C}/devices/TABLET", {}).status == 201
    send = f"{C}/rooms/{quote(room)}/send/m.room.message/same"
    ids = [act(service, server, guest, "PUT", send, {"msgtype": "m.text", "body": "x"}, device_id=device).json["event_id"]
           for device in ("PHONE", "PHONE", "TABLET")]
    assert ids[0] == ids[1] != ids[2]
    assert act(service, server, guest, "DELETE", f"{C}/devices/PHONE", {}).status == 200
    assert act(service, server, guest, "GET", whoami, device_id="PHONE").told == (400, "M_UNKNOWN_DEVICE")
    assert person.client.put(f"{C}/devices/NEW", {"display_name": "x"}).told == (404, "M_NOT_FOUND")


def test_aliases_are_kept_for_their_appservice(fresh, folder, appservice):
    service = appservice(aliases="#bridge_.*")
    server = serve(fresh, folder, service)
    person, room, guest = bridged_room(service, server)
    kept, free = (f"{C}/directory/room/{quote(f'#{name}:{server.server_name}')}" for name in ("bridge_x", "free"))
    assert person.client.put(kept, {"room_id": room}).told == (400, "M_EXCLUSIVE")
    assert person.client.post(f"{C}/createRoom", {"room_alias_name": "bridge_y"}).told == (400, "M_EXCLUSIVE")
    assert person.client.put(free, {"room_id": room}).status == 200
    assert person.client.put(free, {"room_id": room}).told == (409, "M_UNKNOWN")
    assert person.client.post(f"{C}/createRoom", {"room_alias_name": "free"}).told == (400, "M_ROOM_IN_USE")
    assert act(service, server, guest, "PUT", kept, {"room_id": room}).status == 200
    assert person.client.ok("GET", kept)["room_id"] == room
    assert person.client.delete(kept).told == (400, "M_EXCLUSIVE")
    assert server.register().client.delete(free).told == (403, "M_FORBIDDEN")
    assert person.client.delete(free).status == 200 and person.client.get(free).told == (404, "M_NOT_FOUND")
    assert act(service, server, guest, "DELETE", kept).status == 200


def test_rate_limits_are_for_its_users_only(fresh, folder, appservice):
    limited, free = appservice(rate_limited=True), appservice("free", rate_limited=False)
    city = serve(fresh, folder, limited, free, profile="city", policy={"rate_limits": True},
                 limits={"requests_per_second": 1, "requests_burst": 5})
    for service, end in ((limited, 429), (free, 200)):
        guest = user(service, city, f"{service.id}_1")
        told = [act(service, city, guest, "GET", f"{C}/account/whoami").status for _ in range(12)]
        assert told[0] == 200 and told[-1] == end, (service.id, told)
        own = service.client(city)
        assert {own.get(f"{C}/account/whoami").status for _ in range(12)} == {200}
        own.close()


# A city


def test_a_city_gives_no_person_away(fresh, folder, appservice):
    """However wide its namespace, an appservice is no person, and the city's ids are asked of nobody."""
    service = appservice("wide", users="@.*", exclusive=False, receive_ephemeral=True)
    bridge = appservice()
    server = serve(fresh, folder, service, bridge, profile="city")
    person = server.person()
    assert act(service, server, person.user_id, "GET", f"{C}/account/whoami").told == (403, "M_FORBIDDEN")
    for name in ("p999999", "f0001", "f9999", "city", "bridge_1", "bridgebot"):
        assert service.register(server, name).told == (400, "M_EXCLUSIVE"), name
    client = service.client(server)
    for name in ("p999999", "f9999", "wide_1"):
        assert client.get(f"{C}/profile/{quote(f'@{name}:{server.server_name}')}").told == (404, "M_NOT_FOUND")
    assert client.get(f"{C}/profile/{quote(f'@bridge_7:{server.server_name}')}").told == (404, "M_NOT_FOUND")
    assert not service.questions() and len(bridge.questions("/users/")) == 1
    # A wide namespace gets events all the same: that is what the operator has registered.
    room = server.room(person)
    event = person.client.say(room, "x")
    wait_for(lambda: event in [one["event_id"] for one in service.events()], what="the event")
    for kind in ("m.read.private", "m.read"):
        person.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/{kind}/{quote(event)}", {})
    wait_for(lambda: service.ephemeral("m.receipt"), what="the public receipt")
    assert [kind for told in service.ephemeral("m.receipt") for kinds in told["content"].values() for kind in kinds] == ["m.read"]
    # In a city rooms have numbers: no aliases but an appservice's.
    alias = f"{C}/directory/room/{quote(f'#x:{server.server_name}')}"
    assert person.client.put(alias, {"room_id": room}).told == (403, "M_FORBIDDEN")
    # Tokens of appservices are worth nothing outside.
    assert server.public(person.terminal, service.as_token).get(f"{C}/account/whoami").told == (401, "M_UNKNOWN_TOKEN")
    client.close()


def test_what_an_appservice_reads_is_in_the_audit_log(fresh, folder, appservice, database):
    """DESIGN 19: who looked, bridges too: what is sent to one, and what it reads as itself or as one of its users."""
    service = appservice()
    server = serve(fresh, folder, service, database=database, profile="city")
    person, guest = server.person(), user(service, server, "bridge_1")
    room, other = server.room(person), server.room(person)
    server.act(f"rooms/{quote(room)}/members", {"case": "bridge", "add": [guest]})
    assert act(service, server, guest, "POST", f"{C}/rooms/{quote(room)}/join", {}).status == 200

    def listing(of: str) -> tuple[list[str], list[str]]:
        """The lines of an appservice, and its marks."""
        number = server.look(f"rooms/{quote(of)}")["room_number"]
        done = subprocess.run(server.command("audit", "list", "--room", str(number)), capture_output=True, text=True, timeout=60,
                              cwd=server.folder, check=True)
        entries, _, marks = done.stdout.partition("閲覧のまとめ")
        return [line for line in entries.splitlines() if "appservice:" in line], [line for line in marks.splitlines() if "appservice:" in line]

    event = person.client.say(room, "x")
    person.client.say(other, "x")
    wait_for(lambda: event in [one["event_id"] for one in service.events()], what="the event")
    lines, _ = listing(room)
    assert len(lines) == 1 and re.search(r"appservice:bridge room\.delivered ok 端末- 証明書- - +transaction up to \d+", lines[0]), lines
    path = f"{C}/rooms/{quote(room)}"
    for read in (f"{path}/messages?dir=b", f"{path}/event/{quote(event)}", f"{path}/state", f"{path}/members", f"{path}/joined_members"):
        assert act(service, server, guest, "GET", *read.split("?")[:1], **({"dir": "b"} if "?" in read else {})).status == 200, read
    again = person.client.say(room, "y")
    wait_for(lambda: again in [one["event_id"] for one in service.events()], what="the next event")
    lines, _ = listing(room)
    assert len(lines) == 2, "the first look of an hour, each kind"
    assert re.search(rf"appservice:bridge room\.opened ok 端末- 証明書- 127\.0\.0\.1 {re.escape(guest)} history up to \d+", lines[1]), lines
    server.restart()  # marks are written every minute, and at the end
    _, marks = listing(room)
    counts = {re.search(r"端末- (\S+) (\d+)回", mark).groups() for mark in marks}
    assert ("開封", "5") in counts and {kind for kind, _ in counts} == {"配信", "開封"}, marks
    for look in ("room_summary", "rooms"):
        # A room's name is the subject's: whoever asks only for that has looked as well.
        third = server.room(person)
        server.act(f"rooms/{quote(third)}/members", {"case": f"bridge {look}", "add": [guest]})
        assert act(service, server, guest, "POST", f"{C}/rooms/{quote(third)}/join", {}).status == 200
        path = f"/_matrix/client/v1/{look}/{quote(third)}" + ("/hierarchy" if look == "rooms" else "")
        assert act(service, server, guest, "GET", path).status == 200
        assert any("room.opened" in line for line in listing(third)[0]), look
    assert listing(other) == ([], []), "nothing of rooms that it is not in; the city's own bot is the city"


# Registration files


@pytest.fixture(scope="module")
def stopped():
    """A city's folder that no server runs in."""
    server = Server(profile="city")
    server.stop()
    yield server
    server.remove()


def start(server: Server, **files: pathlib.Path) -> str:
    """What a start says that must fail."""
    server.overrides = {"appservices": {name: str(path) for name, path in files.items()}}
    server._write_config()
    done = subprocess.run(server.command("serve"), capture_output=True, text=True, timeout=60, check=False, cwd=server.folder)
    assert done.returncode == 1, done
    return done.stderr


GOOD = """
id: {name}
url: null
as_token: secret-as-{name}
hs_token: secret-hs-{name}
sender_localpart: {name}
namespaces:
  users: [{{exclusive: true, regex: '@{name}_.*'}}]
"""


@pytest.mark.parametrize(("change", "told"), [
    (("id: one\n", ""), "id is missing"),
    (("hs_token: secret-hs-one\n", ""), "hs_token is missing"),
    (("url: null\n", ""), "url is missing"),
    (("'@one_.*'", "'@one_(.*'"), "namespaces.users[0].regex cannot be used"),
    (("exclusive: true, ", ""), "namespaces.users[0].exclusive is missing"),
    (("users: [", "users: ["[:-1] + "[["), "this is no YAML that can be read, at line"),
    (("url: null", "url: file:///etc/passwd"), "url is not http:// or https://"),
])
def test_a_bad_registration_is_named(stopped, folder, change, told):
    text = GOOD.format(name="one")
    changed = text.replace(*change)
    assert changed != text
    path = folder / "one.yaml"
    path.write_text(changed)
    said = start(stopped, one=path)
    assert f"appservices.one: {path}: {told}" in said, said
    assert "secret-" not in said, "no token in an error"


def test_a_missing_file_is_named(stopped, folder):
    assert re.search(r"appservices.gone: .*gone.yaml: No such file", start(stopped, gone=folder / "gone.yaml"))


@pytest.mark.parametrize(("first", "second", "told"), [
    (("'@one_.*'", "'@x_.*'"), ("'@two_.*'", "'@x_[0-9]+'"), "claim the same users exclusively: @x_.* and @x_[0-9]+"),
    (("'@one_.*'", "'@one_.*'"), ("'@two_.*'", "'@one.*'"), "claims? .*exclusively"),
    (("", ""), ("secret-as-two", "secret-as-one"), "share id, as_token or sender_localpart"),
    (("", ""), ("'@two_.*'", "'@city.*'"), "exclusively"),
    (("", ""), ("'@two_.*'", "'@p1.*'"), "claims user ids that the city issues"),
    (("", ""), ("sender_localpart: two", "sender_localpart: p100001"), "claims user ids that the city issues"),
])
def test_two_that_cannot_live_together_refuse_the_start(stopped, folder, first, second, told):
    paths = {}
    for name, change in (("one", first), ("two", second)):
        paths[name] = folder / f"{name}.yaml"
        text = GOOD.format(name=name)
        paths[name].write_text(text.replace(*change) if change[0] else text)
    said = start(stopped, **paths)
    assert re.search(told, said) or told in said, said
    assert "secret-" not in said
