"""Server administration: suspending, locking and looking up by the specification, and Synapse's endpoints. City staff only,
each use in the audit log, and nothing that goes round DESIGN 3 and 15."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import subprocess
import threading
import time

import pytest

from harness import REVOKED_WITHIN, Client, Person, Server, quote, wait_for
from test_rooms import media_path, upload

C = "/_matrix/client/v1/admin"
S = "/_synapse/admin"
FORBIDDEN = (403, "M_FORBIDDEN")
SUSPENDED = (403, "M_USER_SUSPENDED")
LOCKED = (401, "M_USER_LOCKED")


class World:
    """A city whose staff use the admin API."""

    def __init__(self, database: str) -> None:
        self.server = Server(database, config={"policy": {"admin_api": True}})
        self.staff = self.server.first_staff()
        self.nurse, self.doctor = self.server.person(name="試験一郎"), self.server.person()
        self.room = self.server.room(self.nurse, self.doctor, name="見本の部屋")

    @property
    def admin(self) -> Client:
        return self.staff.client


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def world(request) -> World:
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    made = World(request.param)
    yield made
    made.server.remove()


def actions(server: Server, target: str = "") -> set[str]:
    """The actions in the audit log, of one target where it is named."""
    where = f"""WHERE entry LIKE '%"target":"{target}"%'""" if target else "WHERE 1 = 1"
    known = ("account.suspend", "account.resume", "account.lock", "account.unlock", "admin.whois", "admin.users", "admin.user",
             "admin.rooms", "admin.room", "admin.room.members", "admin.room.state", "device.delete", "room.delete", "room.deleted")
    return {action for action in known if server.count(f"SELECT COUNT(*) FROM audit {where} AND action = '{action}'")}


# Suspended ------------------------------------------------------------------------------------------------------------


def suspend(world: World, person: Person, to: bool) -> None:
    assert world.admin.ok("PUT", f"{C}/suspend/{quote(person.user_id)}", {"suspended": to}) == {"suspended": to}
    assert world.admin.ok("GET", f"{C}/suspend/{quote(person.user_id)}") == {"suspended": to}


def test_a_suspended_person_reads_and_goes(world: World):
    server = world.server
    person, other = server.person(), server.person()
    room, second = server.room(person, other), server.room(person, other)
    own, others = person.client.say(room, "自分の"), other.client.say(room, "人の")
    suspend(world, person, True)
    client, at = person.client, f"/_matrix/client/v3/rooms/{quote(room)}"
    # Written to the room, or to what others see of the person: refused.
    for method, path, body in [
        ("PUT", f"{at}/send/m.room.message/x1", {"msgtype": "m.text", "body": "x"}),
        ("PUT", f"{at}/send/m.reaction/x2", {"m.relates_to": {"rel_type": "m.annotation", "event_id": others, "key": "x"}}),
        ("PUT", f"{at}/state/m.room.topic", {"topic": "x"}),
        ("PUT", f"{at}/typing/{quote(person.user_id)}", {"typing": True, "timeout": 1000}),
        ("POST", f"{at}/invite", {"user_id": world.nurse.user_id}),
        ("POST", f"{at}/kick", {"user_id": other.user_id}),
        ("POST", f"{at}/join", {}),
        ("POST", f"/_matrix/client/v3/join/{quote(room)}", {}),
        ("POST", "/_matrix/client/v3/createRoom", {"invite": [other.user_id], "is_direct": True}),
        ("PUT", f"/_matrix/client/v3/profile/{quote(person.user_id)}/displayname", {"displayname": "x"}),
        ("POST", "/_matrix/media/v1/create", {}),
        ("POST", "/_matrix/media/v3/upload", {}),
        ("PUT", f"{at}/redact/{quote(others)}/x3", {}),
    ]:
        assert client.request(method, path, json_body=body).told == SUSPENDED, path
    # Reading, one's own words, settings, and going: allowed.
    assert client.messages(room) and client.sync()["rooms"]["join"][room]
    client.ok("POST", f"{at}/receipt/m.read/{quote(others)}", {})
    client.ok("PUT", f"{at}/redact/{quote(own)}/x4", {})
    client.ok("PUT", f"/_matrix/client/v3/user/{quote(person.user_id)}/account_data/jp.example.x", {"a": 1})
    client.ok("POST", "/_matrix/client/v3/search", {"search_categories": {"room_events": {"search_term": "人の"}}})
    client.ok("POST", f"/_matrix/client/v3/rooms/{quote(second)}/leave", {})
    again = person.log_in()
    assert again.put(f"{at}/send/m.room.message/x5", {"msgtype": "m.text", "body": "x"}).told == SUSPENDED
    again.ok("POST", "/_matrix/client/v3/logout", {})
    # Over a restart, and until it ends.
    server.restart()
    for one in (person, other, world.nurse, world.doctor, world.staff):
        one.client.close()
    assert client.put(f"{at}/send/m.room.message/x6", {"msgtype": "m.text", "body": "x"}).told == SUSPENDED
    suspend(world, person, False)
    client.say(room, "また")
    assert {"account.suspend", "account.resume"} <= actions(server, person.user_id)


# Locked ---------------------------------------------------------------------------------------------------------------


def test_a_locked_person_can_only_log_out(world: World):
    server = world.server
    person = server.person()
    room = server.room(person, world.doctor)
    since = person.client.sync()["next_batch"]
    waiting, answers = person.log_in(), []
    thread = threading.Thread(target=lambda: answers.append((time.monotonic(), waiting.get(
        f"/_matrix/client/v3/sync?since={since}&timeout=30000"))))
    # Nothing newer than this may be on its way.
    since = waiting.sync(since)["next_batch"]
    thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert world.admin.ok("PUT", f"{C}/lock/{quote(person.user_id)}", {"locked": True}) == {"locked": True}
    thread.join(40)
    assert answers[0][1].told == LOCKED and answers[0][0] - began < REVOKED_WITHIN, "a long poll ends"
    for method, path in [("GET", "/_matrix/client/v3/sync"), ("GET", "/_matrix/client/v3/account/whoami"),
                         ("GET", f"/_matrix/client/v3/rooms/{quote(room)}/messages?dir=b"),
                         ("GET", "/_matrix/client/v3/capabilities"), ("POST", "/_matrix/client/v3/keys/query")]:
        answer = person.client.request(method, path, json_body={} if method == "POST" else None)
        assert answer.told == LOCKED and answer.json["soft_logout"] is True, path
    # Logging in fails like every failure (C11).
    refused = server.log_in(server.public(person.terminal), person.login_id, person.password)
    wrong = server.log_in(server.public(person.terminal), person.login_id, "Wrong-pass-99")
    assert (refused.status, refused.content) == (wrong.status, wrong.content) and refused.status == 403
    waiting.ok("POST", "/_matrix/client/v3/logout", {})
    assert world.admin.ok("PUT", f"{C}/lock/{quote(person.user_id)}", {"locked": False}) == {"locked": False}
    person.client.say(room, "また")
    assert waiting.get("/_matrix/client/v3/account/whoami").told == (401, "M_UNKNOWN_TOKEN")
    assert {"account.lock", "account.unlock"} <= actions(server, person.user_id)


# Who may --------------------------------------------------------------------------------------------------------------


def test_only_city_staff(world: World):
    """Authorisation comes before any look-up: nobody learns who exists."""
    server = world.server
    nobody = f"@p999999:{server.server_name}"
    for user_id in (world.doctor.user_id, nobody, "@x:other.example", world.nurse.user_id, world.staff.user_id):
        for method, path, body in [("GET", f"{C}/suspend/", None), ("PUT", f"{C}/suspend/", {"suspended": True}),
                                   ("GET", f"{C}/lock/", None), ("PUT", f"{C}/lock/", {"locked": True})]:
            answer = world.nurse.client.request(method, path + quote(user_id), json_body=body)
            assert answer.told == FORBIDDEN and "市職員" in answer.json["error"], (method, user_id)
    for method, path in [("GET", f"{S}/v2/users"), ("GET", f"{S}/v1/rooms"), ("DELETE", f"{S}/v2/rooms/{quote(world.room)}"),
                         ("GET", f"{S}/v2/users/{quote(world.doctor.user_id)}"), ("GET", f"{S}/v1/server_version"),
                         ("PUT", f"{S}/v2/users/{quote(world.nurse.user_id)}"), ("POST", f"{S}/v1/deactivate/{quote(world.doctor.user_id)}")]:
        answer = world.nurse.client.request(method, path, json_body={} if method != "GET" else None)
        assert answer.told == FORBIDDEN, path
    # Never a program's token, not even the city's own bot.
    bot = server.as_city()
    assert bot.get(f"{C}/suspend/{quote(world.doctor.user_id)}").told == FORBIDDEN
    assert bot.get(f"{S}/v2/users").told == FORBIDDEN
    assert bot.get(f"/_matrix/client/v3/admin/whois/{quote(world.doctor.user_id)}").told == FORBIDDEN
    # What staff are told of whom there is not, and of each other.
    assert world.admin.get(f"{C}/suspend/{quote(nobody)}").told == (404, "M_NOT_FOUND")
    assert world.admin.get(f"{C}/lock/@x:other.example").told == (400, "M_INVALID_PARAM")
    colleague = server.person(1) if server.look("facilities")["facilities"][0]["kind"] == "city" else None
    for user_id in filter(None, (world.staff.user_id, server.city_user, colleague and colleague.user_id)):
        assert world.admin.put(f"{C}/lock/{quote(user_id)}", {"locked": True}).told == FORBIDDEN, user_id
    assert world.admin.put(f"{C}/lock/{quote(world.nurse.user_id)}", {"locked": "yes"}).told == (400, "M_BAD_JSON")
    assert world.admin.get("/_matrix/client/v3/account/whoami").status == 200


def test_the_capability_is_told_to_those_who_have_it(world: World):
    def told(client: Client) -> dict:
        return client.ok("GET", "/_matrix/client/v3/capabilities")["capabilities"]

    assert told(world.admin)["m.account_moderation"] == {"suspend": True, "lock": True}
    assert "m.account_moderation" not in told(world.nurse.client)


def test_whois(world: World):
    path = "/_matrix/client/v3/admin/whois/"
    for client in (world.nurse.client, world.admin):
        told = client.ok("GET", path + quote(world.nurse.user_id))
        assert told["user_id"] == world.nurse.user_id
        (connection,) = told["devices"][world.nurse.device_id]["sessions"][0]["connections"]
        assert connection["ip"] == "127.0.0.1" and abs(connection["last_seen"] / 1000 - time.time()) < 120
    assert world.doctor.client.get(path + quote(world.nurse.user_id)).told == FORBIDDEN
    assert world.admin.get(path + quote(f"@p999999:{world.server.server_name}")).told == (404, "M_NOT_FOUND")
    assert "admin.whois" in actions(world.server, world.nurse.user_id)


# Synapse's ------------------------------------------------------------------------------------------------------------


def test_off_by_default(city: Server):
    staff = city.first_staff()
    for path in (f"{S}/v2/users", f"{S}/v1/rooms", f"{S}/v1/server_version"):
        assert staff.client.get(path).told == (404, "M_UNRECOGNIZED")
    person = city.person()
    assert staff.client.ok("GET", f"{C}/lock/{quote(person.user_id)}") == {"locked": False}


def test_users_are_listed(world: World):
    everybody, start = [], 0
    while True:
        page = world.admin.ok("GET", f"{S}/v2/users?limit=2&from={start}")
        assert len(page["users"]) <= 2
        everybody += page["users"]
        if "next_token" not in page:
            break
        start = int(page["next_token"])
    names = [user["name"] for user in everybody]
    assert len(names) == len(set(names)) == page["total"] and names == sorted(names)
    by_name = {user["name"]: user for user in everybody}
    assert by_name[world.staff.user_id]["admin"] is True and by_name[world.nurse.user_id]["admin"] is False
    assert world.server.city_user not in by_name
    (found,) = world.admin.ok("GET", f"{S}/v2/users?name={quote('試験一郎')}")["users"]
    assert found["name"] == world.nurse.user_id
    newest = world.admin.ok("GET", f"{S}/v2/users?order_by=creation_ts&dir=b")["users"]
    assert [user["creation_ts"] for user in newest] == sorted((user["creation_ts"] for user in newest), reverse=True)
    one = world.admin.ok("GET", f"{S}/v2/users/{quote(world.nurse.user_id)}")
    assert one["threepids"] == [] and one["deactivated"] is False and one["locked"] is False
    for bad in ("limit=x", "from=-1", "order_by=x", "dir=x", "guests=maybe"):
        assert world.admin.get(f"{S}/v2/users?{bad}").told == (400, "M_INVALID_PARAM"), bad
    assert world.admin.get(f"{S}/v2/users/{quote('@x:other.example')}").told == (400, "M_INVALID_PARAM")
    assert world.admin.get(f"{S}/v2/users/{quote('@p999999:' + world.server.server_name)}").told == (404, "M_NOT_FOUND")
    text = json.dumps(everybody) + json.dumps(one)
    assert "password" not in text and "token" not in text
    assert {"admin.users", "admin.user"} <= actions(world.server)


def listed(world: World, query: str = "") -> list[dict]:
    """All pages of a list of users."""
    users, start = [], 0
    while True:
        page = world.admin.ok("GET", f"{S}/v2/users?limit=3&from={start}&{query}")
        users += page["users"]
        assert start + len(page["users"]) <= page["total"]
        if "next_token" not in page:
            assert len(users) == page["total"]
            return users
        assert len(page["users"]) == 3 and int(page["next_token"]) == start + 3
        start = int(page["next_token"])


def test_a_list_of_users_is_in_the_order_that_was_asked_for(world: World):
    """On one page and over several, there and back; nobody twice, and nobody left out."""
    person, ended = world.server.person(), world.server.person()
    world.admin.ok("PUT", f"{C}/lock/{quote(person.user_id)}", {"locked": True})
    world.admin.ok("PUT", f"{S}/v2/users/{quote(ended.user_id)}", {"deactivated": True})
    told_apart = set()
    for key in ("name", "displayname", "avatar_url", "user_type", "creation_ts", "last_seen_ts", "admin", "deactivated",
                "is_guest", "locked", "shadow_banned"):
        query = f"order_by={key}&deactivated=true&locked=true"

        def ranks(users: list[dict], key: str = key) -> list[tuple]:
            return [(user[key] is not None, user[key] or 0) for user in users]

        there, back = listed(world, query), listed(world, f"{query}&dir=b")
        names = [user["name"] for user in there]
        assert len(set(names)) == len(names) and {person.user_id, ended.user_id, world.staff.user_id} <= set(names), key
        assert ranks(there) == sorted(ranks(there)), key
        assert ranks(back) == sorted(ranks(back), reverse=True), key
        assert len(back) == len(names) and {user["name"] for user in back} == set(names), key
        whole = world.admin.ok("GET", f"{S}/v2/users?limit=1000&dir=f&{query}")
        assert [user["name"] for user in whole["users"]] == names and whole["total"] == len(names), key
        past = world.admin.ok("GET", f"{S}/v2/users?from={len(names)}&{query}")
        assert past == {"users": [], "total": len(names)}, key
        told_apart |= {key} if len(set(ranks(there))) > 1 else set()
    assert {"name", "displayname", "creation_ts", "last_seen_ts", "admin", "deactivated", "locked"} <= told_apart


def test_users_are_searched_by_name_and_id(world: World):
    mark = f"印{secrets.token_hex(3)}"
    one, two = world.server.person(name=f"{mark} Hanako"), world.server.person(name=f"別人 {mark}")
    gone, locked = world.server.person(name=f"{mark} 退職"), world.server.person(name=f"{mark} 停止")
    world.admin.ok("PUT", f"{S}/v2/users/{quote(gone.user_id)}", {"deactivated": True})
    world.admin.ok("PUT", f"{C}/lock/{quote(locked.user_id)}", {"locked": True})

    def found(query: str) -> set[str]:
        return {user["name"] for user in listed(world, query)}

    assert found(f"name={quote(mark)}") == {one.user_id, two.user_id}
    assert found(f"name={quote(mark)}&deactivated=true") == {one.user_id, two.user_id, gone.user_id}
    assert found(f"name={quote(mark)}&locked=true") == {one.user_id, two.user_id, locked.user_id}
    assert found(f"name={quote(mark + ' hANAKO')}") == {one.user_id}, "capitals and small letters alike"
    assert found(f"name={one.login_id.upper()}") == {one.user_id}
    assert found(f"user_id={quote(two.user_id)}") == {two.user_id} == found(f"user_id={two.login_id[1:]}")
    assert found(f"user_id={quote(one.user_id)}&name={quote('別人 ' + mark)}") == {two.user_id}, "with a name the id is not looked at"
    assert found(f"name={secrets.token_hex(8)}") == set() == found(f"user_id={secrets.token_hex(8)}")
    assert found("admins=true") >= {world.staff.user_id} and one.user_id not in found("admins=true")
    assert world.staff.user_id not in found("admins=false") and one.user_id in found("admins=false")


def test_a_search_by_id_finds_no_names(world: World):
    """Synapse's `user_id` looks at ids alone, its `name` at names and at ids before the server's name."""
    person = world.server.person(name=f"印{secrets.token_hex(3)}")
    mark = world.admin.ok("GET", f"{S}/v2/users/{quote(person.user_id)}")["displayname"]
    assert [user["name"] for user in listed(world, f"name={quote(mark)}")] == [person.user_id]
    assert listed(world, f"user_id={quote(mark)}") == []
    assert listed(world, f"name={quote(':' + world.server.server_name)}") == []


def test_users_are_not_changed_around_the_city(world: World):
    """DESIGN 3: accounts, names and passwords go by two sheets; what is left is ending and locking."""
    path = f"{S}/v2/users/"
    for user_id, body in [(f"@p123456:{world.server.server_name}", {"password": "Ume-hana-37"}),
                          (world.nurse.user_id, {"password": "Ume-hana-37"}), (world.nurse.user_id, {"admin": True}),
                          (world.nurse.user_id, {"displayname": "別人"})]:
        assert world.admin.put(path + quote(user_id), body).told == FORBIDDEN, body
    assert world.admin.post(f"{S}/v1/reset_password/{quote(world.nurse.user_id)}", {"new_password": "Ume-hana-37"}).told == FORBIDDEN
    assert world.server.log_in(world.server.public(world.nurse.terminal), world.nurse.login_id, world.nurse.password).status == 200
    person = world.server.person()
    assert world.admin.ok("PUT", path + quote(person.user_id), {"locked": True})["locked"] is True
    assert person.client.get("/_matrix/client/v3/sync").told == LOCKED
    assert world.admin.ok("PUT", path + quote(person.user_id), {"locked": False})["locked"] is False
    assert world.admin.put(path + quote(world.staff.user_id), {"deactivated": True}).told == FORBIDDEN
    key = world.admin.ok("PUT", f"{S}/v1/suspend/{quote(person.user_id)}", {"suspend": True})
    assert key == {f"user_{person.user_id}_suspended": True}
    assert world.admin.ok("GET", path + quote(person.user_id))["suspended"] is True
    done = world.admin.ok("PUT", path + quote(person.user_id), {"deactivated": True})
    assert done["deactivated"] is True
    # Their own terminal's certificate is revoked with the account.
    assert person.client.get("/_matrix/client/v3/sync").json["jp.heya.certificate"] == "revoked"
    assert world.admin.put(path + quote(person.user_id), {"deactivated": False}).told == FORBIDDEN
    other = world.server.person()
    assert world.admin.ok("POST", f"{S}/v1/deactivate/{quote(other.user_id)}", {}) == {"id_server_unbind_result": "no-support"}
    assert other.client.get("/_matrix/client/v3/sync").json["jp.heya.certificate"] == "revoked"


def test_devices(world: World):
    person = world.server.person()
    second, third = person.log_in(), person.log_in()
    path = f"{S}/v2/users/{quote(person.user_id)}"
    devices = world.admin.ok("GET", f"{path}/devices")
    assert devices["total"] == 3 and person.device_id in {one["device_id"] for one in devices["devices"]}
    one, two = (client.ok("GET", "/_matrix/client/v3/account/whoami")["device_id"] for client in (second, third))
    assert world.admin.ok("GET", f"{path}/devices/{one}")["last_seen_ip"] == "127.0.0.1"
    assert world.admin.get(f"{path}/devices/NONE").told == (404, "M_NOT_FOUND")
    world.admin.ok("DELETE", f"{path}/devices/{one}")
    assert second.get("/_matrix/client/v3/account/whoami").told == (401, "M_UNKNOWN_TOKEN")
    world.admin.ok("POST", f"{path}/delete_devices", {"devices": [two]})
    assert third.get("/_matrix/client/v3/account/whoami").told == (401, "M_UNKNOWN_TOKEN")
    assert person.client.get("/_matrix/client/v3/account/whoami").status == 200
    assert world.admin.post(f"{path}/delete_devices", {"devices": ["x"] * 501}).told == (400, "M_INVALID_PARAM")
    assert "device.delete" in actions(world.server, person.user_id)


def test_what_a_user_has(world: World):
    uri = upload(world.nurse)
    path = f"{S}/v1/users/{quote(world.nurse.user_id)}"
    assert world.room in world.admin.ok("GET", f"{path}/joined_rooms")["joined_rooms"]
    media = world.admin.ok("GET", f"{path}/media?limit=1")
    assert media["media"][0]["media_id"] == uri.rsplit("/", 1)[1] and media["media"][0]["upload_name"] == "photo.png"
    assert world.admin.ok("GET", f"{path}/pushers") == {"pushers": [], "total": 0}
    assert world.admin.get(media_path(uri)).status == 404, "knowing of a file is not reading it"


def test_rooms_are_listed(world: World):
    rooms, start = [], 0
    while True:
        page = world.admin.ok("GET", f"{S}/v1/rooms?limit=3&from={start}")
        assert page["offset"] == start
        rooms += page["rooms"]
        if "next_batch" not in page:
            break
        start = page["next_batch"]
    assert len({room["room_id"] for room in rooms}) == len(rooms) == page["total_rooms"]
    assert [room["name"] or "" for room in rooms] == sorted(room["name"] or "" for room in rooms)
    (found,) = world.admin.ok("GET", f"{S}/v1/rooms?search_term={quote('見本の')}")["rooms"]
    assert found["room_id"] == world.room and found["joined_members"] == 3 and found["creator"] == world.server.city_user
    assert found["version"] == "12" and found["join_rules"] == "invite" and found["jp.heya.status"] == "open"
    sizes = [room["joined_members"] for room in world.admin.ok("GET", f"{S}/v1/rooms?order_by=joined_members")["rooms"]]
    assert sizes == sorted(sizes, reverse=True)
    one = f"{S}/v1/rooms/{quote(world.room)}"
    assert world.admin.ok("GET", one)["name"] == "見本の部屋"
    members = world.admin.ok("GET", f"{one}/members")
    assert set(members["members"]) == {world.nurse.user_id, world.doctor.user_id, world.server.city_user}
    state = world.admin.ok("GET", f"{one}/state")["state"]
    assert {"m.room.create", "m.room.member", "jp.heya.room"} <= {event["type"] for event in state}
    assert not any(event["type"] == "m.room.message" for event in state)
    assert world.admin.get(f"{S}/v1/rooms/{quote('!none:' + world.server.server_name)}").told == (404, "M_NOT_FOUND")
    assert {"admin.rooms", "admin.room", "admin.room.members", "admin.room.state"} <= actions(world.server)


def delete(world: World, room: str, **body):
    return world.admin.delete(f"{S}/v2/rooms/{quote(room)}", body)


def finished(world: World, delete_id: str) -> dict | None:
    told = world.admin.ok("GET", f"{S}/v2/rooms/delete_status/{delete_id}")
    assert told["status"] in ("shutting_down", "purging", "complete")
    return told if told["status"] == "complete" else None


def test_city_rooms_are_not_deleted(world: World):
    """DESIGN 15: closed, archived, kept, purged; in no state by this way."""
    room = world.server.room(world.nurse, world.doctor)
    assert delete(world, room).told == FORBIDDEN
    world.server.close_room(room)
    assert delete(world, room).told == FORBIDDEN
    control = world.server.look("control")
    for one in (control["control_room"], control["announcement_room"]):
        assert delete(world, one).told == FORBIDDEN
    assert world.nurse.client.messages(room)
    assert world.admin.get(f"{S}/v2/rooms/{quote(room)}/delete_status").told == (404, "M_NOT_FOUND")


def direct(world: World, first: Person, second: Person) -> str:
    room = first.client.ok("POST", "/_matrix/client/v3/createRoom", {"invite": [second.user_id], "is_direct": True})["room_id"]
    second.client.ok("POST", f"/_matrix/client/v3/join/{quote(room)}", {})
    return room


def test_a_room_of_two_is_deleted(world: World):
    server = world.server
    first, second = server.person(), server.person()
    server.room(first, second)
    room = direct(world, first, second)
    since = second.client.sync()["next_batch"]
    uri = upload(first, b"\x89PNG\r\n\x1a\n only here " + room.encode())
    first.client.say(room, "写真", msgtype="m.image", url=uri)
    first.client.say(room, "二人だけの話")
    assert delete(world, room, purge=False).told == (400, "M_INVALID_PARAM")
    assert delete(world, room, block=True).told == (400, "M_INVALID_PARAM")
    number = server.count(f"SELECT from_order FROM room_state WHERE room_id = '{room}' AND type = 'm.room.create'")
    entries = f"SELECT COUNT(*) FROM search_terms WHERE room = {number}"
    wait_for(lambda: server.count(entries), what="the room in the search index")
    delete_id = delete(world, room, purge=True).json["delete_id"]
    told = wait_for(lambda: finished(world, delete_id), what="the deletion")
    assert set(told["shutdown_room"]["kicked_users"]) == {first.user_id, second.user_id}
    assert world.admin.ok("GET", f"{S}/v2/rooms/{quote(room)}/delete_status")["results"][0]["delete_id"] == delete_id
    assert world.admin.get(f"{S}/v2/rooms/delete_status/none").told == (404, "M_NOT_FOUND")
    # Gone for everybody, and they are told.
    assert room not in second.client.sync()["rooms"]["join"]
    assert room in second.client.sync(since)["rooms"]["leave"]
    for client in (first.client, second.client):
        assert client.get(f"/_matrix/client/v3/rooms/{quote(room)}/messages?dir=b").status in (403, 404)
        assert client.put(f"/_matrix/client/v3/rooms/{quote(room)}/send/m.room.message/z", {"msgtype": "m.text", "body": "x"}).status in (403, 404)
        assert client.post(f"/_matrix/client/v3/join/{quote(room)}", {}).status in (403, 404)
        assert client.get(media_path(uri)).status == 404
        found = client.ok("POST", "/_matrix/client/v3/search", {"search_categories": {"room_events": {"search_term": "二人だけ"}}})
        assert found["search_categories"]["room_events"]["results"] == []
    for table in ("events", "room_state", "receipts", "relations", "media_links"):
        assert server.count(f"SELECT COUNT(*) FROM {table} WHERE room_id = '{room}'") == 0, table
    assert server.count(entries) == 0
    assert server.count(f"SELECT COUNT(*) FROM media WHERE media_id = '{uri.rsplit('/', 1)[1]}'") == 0
    assert {"room.delete", "room.deleted"} <= actions(server)
    # Two people can begin anew.
    assert direct(world, first, second) != room


def test_a_room_is_deleted_once(world: World):
    """Whoever orders a finished deletion again is told that there is no such room, and nothing of the first order changes."""
    server = world.server
    first, second = server.person(), server.person()
    server.room(first, second)
    room = direct(world, first, second)
    first.client.say(room, "二人だけの話")
    delete_id = delete(world, room).json["delete_id"]
    done = wait_for(lambda: finished(world, delete_id), what="the deletion")
    orders = world.admin.ok("GET", f"{S}/v2/rooms/{quote(room)}/delete_status")
    assert orders == {"results": [done]}
    tip = second.client.sync()["next_batch"]
    for restarted in (False, True):
        if restarted:
            server.restart()
            for one in (first, second, world.nurse, world.doctor, world.staff):
                one.client.close()
        for body in ({}, {"purge": True}, {"force_purge": True}):
            assert delete(world, room, **body).told == (404, "M_NOT_FOUND")
        assert world.admin.ok("GET", f"{S}/v2/rooms/{quote(room)}/delete_status") == orders
        assert finished(world, delete_id) == done
        assert room not in second.client.sync(tip).get("rooms", {}).get("leave", {}), "nobody leaves twice"
    entries = "SELECT COUNT(*) FROM audit WHERE action = '{}' AND room_id = '" + room + "'"
    assert server.count(entries.format("room.delete")) == 1 == server.count(entries.format("room.deleted"))
    assert direct(world, first, second) != room


def test_a_deletion_that_was_killed_goes_on(database: str, fresh):
    server = fresh(database, config={"policy": {"admin_api": True}})
    world = World.__new__(World)
    world.server, world.staff = server, server.first_staff()
    first, second = server.person(), server.person()
    server.room(first, second)
    room, kept = direct(world, first, second), server.room(first, second)
    for i in range(1_200):
        first.client.say(room, f"{i}")
    first.client.say(kept, "残る")
    delete_id = delete(world, room).json["delete_id"]
    time.sleep(0.05)
    server.kill()
    left = server.count(f"SELECT COUNT(*) FROM events WHERE room_id = '{room}'")
    server.start()
    for one in (first, second, world.staff):
        one.client.close()
    assert first.client.put(f"/_matrix/client/v3/rooms/{quote(room)}/send/m.room.message/z", {"msgtype": "m.text", "body": "x"}).status in (403, 404)
    wait_for(lambda: finished(world, delete_id), 40, what=f"the rest ({left} events were left)")
    assert server.count(f"SELECT COUNT(*) FROM events WHERE room_id = '{room}'") == 0
    assert any(event["content"].get("body") == "残る" for event in first.client.messages(kept))
    done = subprocess.run(server.command("audit", "verify"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# The open profile -----------------------------------------------------------------------------------------------------


def test_the_open_profile_has_registered_administrators(fresh):
    server = fresh("sqlite", "open")
    client = server.public()
    nonce = client.ok("GET", f"{S}/v1/register")["nonce"]
    mac = hmac.new(server.secret("registration.secret").encode(), b"\0".join([nonce.encode(), b"root", b"Ume-hana-37", b"admin"]),
                   hashlib.sha1).hexdigest()
    made = client.ok("POST", f"{S}/v1/register", {"nonce": nonce, "username": "root", "password": "Ume-hana-37", "admin": True, "mac": mac})
    root = server.public(token=made["access_token"])
    user = server.register()
    assert user.client.get(f"{S}/v2/users").told == FORBIDDEN
    assert {one["name"] for one in root.ok("GET", f"{S}/v2/users")["users"]} == {made["user_id"], user.user_id}
    path = f"{S}/v2/users/{quote('@new:' + server.server_name)}"
    answer = root.put(path, {"password": "Ume-hana-38", "displayname": "New"})
    assert answer.status == 201 and answer.json["displayname"] == "New"
    assert server.log_in(server.public(), "new", "Ume-hana-38").status == 200
    root.ok("POST", f"{S}/v1/reset_password/{quote('@new:' + server.server_name)}", {"new_password": "Ume-hana-39"})
    assert server.log_in(server.public(), "new", "Ume-hana-38").status == 403
    assert server.log_in(server.public(), "new", "Ume-hana-39").status == 200
    assert root.put(path, {"admin": True}).json["admin"] is True
    assert root.put(f"{C}/lock/{quote('@new:' + server.server_name)}", {"locked": True}).told == FORBIDDEN
    assert root.put(f"{S}/v2/users/{quote(made['user_id'])}", {"admin": False}).told == FORBIDDEN
    room = user.client.ok("POST", "/_matrix/client/v3/createRoom", {"preset": "public_chat", "visibility": "public"})["room_id"]
    delete_id = root.delete(f"{S}/v2/rooms/{quote(room)}", {}).json["delete_id"]
    wait_for(lambda: root.ok("GET", f"{S}/v2/rooms/delete_status/{delete_id}")["status"] == "complete")
    assert user.client.ok("GET", "/_matrix/client/v3/publicRooms")["chunk"] == []
