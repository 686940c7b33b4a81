"""An appservice library that knows nothing of this server, mautrix, as bridges use it (issue 3): its registration file, its
checks of the connection, ghosts, rooms, both directions, typing and receipts, questions, and what came while it was away.

People come through mutual TLS in a city with its defaults, but where a test says otherwise."""

from __future__ import annotations

import json
import pathlib
import tempfile
import time

import aiohttp
import pytest
from mautrix.errors import IntentError, MExclusive, MForbidden, MNotFound, MUnknownToken
from mautrix.types import EventType, Membership, MessageType, RoomCreatePreset, SpecVersions, TextMessageEventContent

from harness import Person, Server, quote, wait_for
from mautrix_bridge import Bridge
from test_rooms import PNG

C = "/_matrix/client/v3"
UPLOAD_BYTES = 20_000_000


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="heya-mautrix-") as name:
        yield pathlib.Path(name)


def bridged(server: Server, folder: pathlib.Path) -> Bridge:
    """Adds a bridge to a server that is there already, as an operator does: the bridge's file, and a restart."""
    bridge = Bridge(server, folder)
    server.stop()
    server.overrides = {**server.overrides, "appservices": {"bridge": str(folder / "registration.yaml")}}
    server._write_config()
    server.start()
    bridge.start()
    return bridge


@pytest.fixture(scope="module")
def shared():
    with tempfile.TemporaryDirectory(prefix="heya-mautrix-") as name:
        server = Server(config={"limits": {"upload_bytes": UPLOAD_BYTES}})
        bridge = None
        try:
            bridge = bridged(server, pathlib.Path(name))
            yield server, bridge
        finally:
            if bridge:
                bridge.close()
            server.remove()


@pytest.fixture
def place(shared):
    """A city with its defaults and a bridge, for the tests that share them; each has people and rooms of its own."""
    server, bridge = shared
    if bridge.az is None:
        bridge.start()  # a test ended while it was away
    return server, bridge


class Watch:
    """Somebody's `/sync`, from now on."""

    def __init__(self, person: Person) -> None:
        self.person, self.since = person, person.client.sync()["next_batch"]
        self.timeline: dict[str, list[dict]] = {}
        self.ephemeral: dict[str, list[dict]] = {}
        self.invited: dict[str, dict] = {}

    def until(self, found, what: str):
        deadline = time.monotonic() + 20
        while not (value := found()):
            assert time.monotonic() < deadline, f"{self.person.user_id} never saw {what}"
            answer = self.person.client.sync(self.since, 2000)
            self.since = answer["next_batch"]
            self.invited |= answer["rooms"].get("invite", {})
            for room_id, room in answer["rooms"].get("join", {}).items():
                self.timeline.setdefault(room_id, []).extend(room["timeline"]["events"])
                self.ephemeral.setdefault(room_id, []).extend(room.get("ephemeral", {}).get("events", []))
        return value

    def event(self, room: str, event_id: str) -> dict:
        """Waits for an event; it comes once."""
        found = self.until(lambda: [one for one in self.timeline.get(room, []) if one["event_id"] == event_id], event_id)
        assert len(found) == 1
        return found[0]

    def typing(self, room: str, who: list[str]) -> bool:
        return self.until(lambda: any(one["type"] == "m.typing" and one["content"]["user_ids"] == who
                                      for one in self.ephemeral.get(room, [])), f"that {who} write")


def portal(server: Server, bridge: Bridge, *people: Person, ghost: str) -> str:
    """The city opens a room, and adds the bridge's bot and a ghost: the bridge joins as which it was invited."""
    guest = bridge.ghost(ghost)
    bridge.run(guest.ensure_registered())
    room = server.room(*people)
    bridge.portals.add(room)
    add_to(server, room, bridge.bot.mxid, guest.mxid)
    wait_for(lambda: {bridge.bot.mxid, guest.mxid} <= members(people[0], room), what="the bridge in the room")
    return room


def add_to(server: Server, room: str, *user_ids: str) -> None:
    server.act(f"rooms/{quote(room)}/members", {"case": f"case-{time.time_ns()}", "add": list(user_ids), "remove": []})


def members(person: Person, room: str) -> set[str]:
    return set(person.client.ok("GET", f"{C}/rooms/{quote(room)}/joined_members")["joined"])


def happened_once(bridge: Bridge) -> None:
    """Each event in one transaction, each transaction of one body, and the library read all of it."""
    def held() -> list[str]:
        return [event["event_id"] for bodies in list(bridge.bodies.values()) for event in json.loads(bodies[0])["events"]]

    wait_for(lambda: {event.event_id for event in bridge.events} == set(held()), what="all events at the library's handler")
    came, sent = [event.event_id for event in bridge.events], held()
    assert len(came) == len(set(came)), "an event came twice"
    assert len(sent) == len(set(sent)), "an event is in two transactions"
    assert all(len(set(bodies)) == 1 for bodies in bridge.bodies.values()), "a transaction came again as another"
    assert not bridge.complaints.said


# The way in


def test_the_file_that_the_library_writes_is_taken(place):
    """Its own user has a random name; the bot is one of the namespace. Both spellings of what asks for typing are there."""
    server, bridge = place
    written, name = bridge.registration, server.server_name.replace(".", r"\.")
    assert written["namespaces"] == {
        "users": [{"exclusive": True, "regex": f"@bridge_.*:{name}"}, {"exclusive": True, "regex": f"@bridgebot:{name}"}],
        "aliases": [{"exclusive": True, "regex": rf"\#bridge_.*:{name}"}]}
    assert written["rate_limited"] is False
    assert written["receive_ephemeral"] is True and written["de.sorunome.msc2409.push_ephemeral"] is True
    assert written["sender_localpart"] != "bridgebot"
    assert server.count(f"SELECT COUNT(*) FROM accounts WHERE user_id = '@{written['sender_localpart']}:{server.server_name}'") == 1


def test_the_checks_of_the_connection_pass(place):
    """`wait_for_connection`: versions, whoami (refused until the bot is registered), ping, what may be uploaded."""
    server, bridge = place
    versions = bridge.run(bridge.bot.versions(no_cache=True))
    assert versions.supports(SpecVersions.V17) and versions.supports(SpecVersions.V111) and versions.supports_at_least(SpecVersions.V11)
    assert bridge.run(bridge.bot.whoami()).user_id == bridge.bot.mxid == f"@bridgebot:{server.server_name}"
    assert ("POST", "/_matrix/app/v1/ping") in bridge.requests
    # The library tells 0 ms as -1, and has no other number below 0.
    before = bridge.requests.count(("POST", "/_matrix/app/v1/ping"))
    took = bridge.run(bridge.az.ping_self("once more"))
    assert (took == -1 or 0 < took < 10_000) and bridge.requests.count(("POST", "/_matrix/app/v1/ping")) == before + 1
    assert bridge.matrix.media_config.upload_size == UPLOAD_BYTES
    assert bridge.run(bridge.bot.get_displayname(bridge.bot.mxid)) == "電話の橋"
    assert not bridge.complaints.said

    async def with_a_wrong_token():
        api = type(bridge.bot.api)(base_url=server.internal_base, bot_mxid=bridge.bot.mxid, token="wrong", log=bridge.az.log,
                                   state_store=bridge.store, client_session=bridge.az.http_session)
        with pytest.raises(MUnknownToken):
            await api.bot_intent().whoami()

    bridge.run(with_a_wrong_token())


def test_who_is_whom(place):
    """A ghost is whom the bridge says; a person of the city, another's user or one that is not registered is nobody of its."""
    server, bridge = place
    person = server.person()

    async def check():
        ghost = bridge.ghost("whoami")
        with pytest.raises(MForbidden):
            await ghost.whoami()
        await ghost.ensure_registered()
        assert (await ghost.whoami()).user_id == ghost.mxid
        # The store has forgotten, the server has not: what it says then is what the library passes over.
        bridge.store._registered.pop(ghost.mxid)
        await ghost.ensure_registered()
        assert await bridge.store.is_registered(ghost.mxid)
        for mxid in (person.user_id, server.city_user, f"@somebody:{server.server_name}"):
            with pytest.raises(MForbidden):
                await bridge.bot.user(mxid).whoami()
            with pytest.raises(MExclusive):
                await bridge.bot.user(mxid).ensure_registered()

    bridge.run(check())


# In a room of the city


def test_a_conversation_in_a_room_of_the_city(place):
    server, bridge = place
    person, staff = server.person(), server.first_staff()
    ghost = bridge.ghost("taro")

    async def dress():
        await ghost.ensure_registered()
        await ghost.set_displayname("太郎(電話)")
        url = await ghost.upload_media(PNG, mime_type="image/png", filename="顔.png")
        await ghost.set_avatar_url(url)
        profile = await ghost.get_profile(ghost.mxid)
        assert (profile.displayname, profile.avatar_url) == ("太郎(電話)", url)
        return url

    avatar = bridge.run(dress())
    watch = Watch(person)
    room = portal(server, bridge, person, staff, ghost="taro")
    shown = person.client.state(room, "m.room.member", ghost.mxid)
    assert shown == {"membership": "join", "displayname": "太郎(電話)", "avatar_url": avatar}
    picture = person.client.get(f"/_matrix/client/v1/media/download/{avatar.removeprefix('mxc://')}")
    assert picture.status == 200 and picture.content == PNG
    welcome = watch.until(lambda: [one for one in watch.timeline.get(room, []) if one["sender"] == bridge.bot.mxid
                                   and one["type"] == "m.room.message"], "the bot's welcome")
    assert [one["content"]["msgtype"] for one in welcome] == ["m.notice"]

    # From the person to the other network
    said = [person.client.say(room, f"もしもし {n}") for n in range(3)]
    bridge.got(said[-1])
    wait_for(lambda: len(bridge.bridged) >= 3, what="what was said on the other network")
    assert [one for one in bridge.bridged if one[2] in said] == [(person.user_id, f"もしもし {n}", said[n]) for n in range(3)]
    assert bridge.got(said[0]).content.msgtype == MessageType.TEXT and bridge.got(said[0]).sender == person.user_id

    # And back: an answer with a time of its own, an edit, a reaction, a redaction
    async def answer():
        sent = await ghost.send_text(room, "はい、太郎です", timestamp=1_700_000_000_000)
        changed = TextMessageEventContent(msgtype=MessageType.TEXT, body="はい、太郎の娘です")
        changed.set_edit(sent)
        edit = await ghost.send_message(room, changed)
        reaction = await ghost.react(room, said[0], "👍")
        wrong = await ghost.send_text(room, "間違い")
        return sent, edit, reaction, wrong, await ghost.redact(room, wrong, reason="間違い")

    sent, edit, reaction, wrong, redaction = bridge.run(answer())
    seen = watch.event(room, sent)
    assert (seen["sender"], seen["content"]["body"], seen["origin_server_ts"]) == (ghost.mxid, "はい、太郎です", 1_700_000_000_000)
    seen = watch.event(room, edit)
    assert seen["content"]["m.relates_to"] == {"rel_type": "m.replace", "event_id": sent}
    assert seen["content"]["m.new_content"] == {"msgtype": "m.text", "body": "はい、太郎の娘です"}
    now = person.client.ok("GET", f"{C}/rooms/{quote(room)}/event/{quote(sent)}")
    assert now["unsigned"]["m.relations"]["m.replace"]["event_id"] == edit
    assert watch.event(room, reaction)["content"]["m.relates_to"] == {"rel_type": "m.annotation", "event_id": said[0], "key": "👍"}
    assert watch.event(room, redaction)["content"] == {"redacts": wrong, "reason": "間違い"}
    assert person.client.ok("GET", f"{C}/rooms/{quote(room)}/event/{quote(wrong)}")["content"] == {}

    # The same by the person
    relates = {"rel_type": "m.annotation", "event_id": sent, "key": "❤"}
    send = f"{C}/rooms/{quote(room)}/send"
    person.client.ok("PUT", f"{send}/m.reaction/mautrix-r", {"m.relates_to": relates})
    bridge.told("reaction", person.user_id, sent, "❤")
    edited = person.client.say(room, "* もしもし？", **{"m.new_content": {"msgtype": "m.text", "body": "もしもし？"},
                                                  "m.relates_to": {"rel_type": "m.replace", "event_id": said[0]}})
    assert bridge.got(edited).content.get_edit() == said[0]
    person.client.ok("PUT", f"{C}/rooms/{quote(room)}/redact/{quote(said[1])}/mautrix-x", {"reason": "訂正"})
    bridge.told("redaction", person.user_id, said[1], "訂正")
    assert bridge.run(ghost.get_event(room, said[0])).content.body == "もしもし 0"
    happened_once(bridge)


def test_typing_and_receipts_both_ways(place):
    server, bridge = place
    person = server.person()
    room = portal(server, bridge, person, ghost="typing")
    ghost, watch = bridge.ghost("typing"), Watch(person)
    said = person.client.say(room, "読んでください")
    bridge.got(said)

    typing = f"{C}/rooms/{quote(room)}/typing/{quote(person.user_id)}"

    def typers() -> list[list[str]]:
        return [one.content.user_ids for one in bridge.ephemeral if one.type == EventType.TYPING and one.room_id == room]

    person.client.ok("PUT", typing, {"typing": True, "timeout": 30_000})
    wait_for(lambda: typers() == [[person.user_id]], what="that the person writes")
    person.client.ok("PUT", typing, {"typing": False})
    wait_for(lambda: typers() == [[person.user_id], []], what="that the person has stopped")
    bridge.run(ghost.set_typing(room, timeout=30_000))
    watch.typing(room, [ghost.mxid])
    bridge.run(ghost.set_typing(room, timeout=0))
    watch.typing(room, [])

    bridge.run(ghost.mark_read(room, said))
    found = watch.until(lambda: [one["content"] for one in watch.ephemeral.get(room, []) if one["type"] == "m.receipt"
                                 and ghost.mxid in one["content"].get(said, {}).get("m.read", {})], "the ghost's receipt")
    assert len(found) == 1
    answered = bridge.run(ghost.send_text(room, "読みました"))
    watch.event(room, answered)
    person.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/m.read.private/{quote(said)}", {})
    person.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/m.read/{quote(answered)}", {})
    bridge.told("read", room, person.user_id, answered)
    of_person = [one for one in bridge.matrix.told if one[0] == "read" and one[2] == person.user_id]
    assert of_person == [("read", room, person.user_id, answered)], "the public one, once"
    happened_once(bridge)


def test_the_librarys_store_knows_what_the_server_knows(place):
    """Without double puppets. Members and powers, learnt from transactions, are the room's."""
    server, bridge = place
    person, other = server.person(), server.person()
    room = portal(server, bridge, person, other, ghost="store")
    ghost = bridge.ghost("store")
    server.change_members(room, remove=[other])
    bridge.told("kick", room, other.user_id, server.city_user)

    # What came by itself.
    known = bridge.store.members[room]
    assert (known[bridge.bot.mxid].membership, known[ghost.mxid].membership) == (Membership.JOIN, Membership.JOIN)
    assert known[other.user_id].membership == Membership.LEAVE

    # What it asks for.
    async def compare():
        store = bridge.store
        created = await ghost.get_state_event(room, EventType.ROOM_CREATE, format="event")
        assert created.room_id == room and created.sender == server.city_user and created.content.supports_creator_power
        state = await ghost.get_state(room)
        levels = next(event.content for event in state if event.type == EventType.ROOM_POWER_LEVELS)
        assert await store.get_power_levels(room) == levels == await ghost.get_power_levels(room, ignore_cache=True)
        assert await store.has_power_level(room, server.city_user, EventType.ROOM_POWER_LEVELS)
        assert await store.has_power_level(room, ghost.mxid, EventType.ROOM_MESSAGE)
        assert not await store.has_power_level(room, ghost.mxid, EventType.ROOM_NAME)
        assert await store.get_membership(room, other.user_id) == Membership.LEAVE
        return set(await store.get_members(room, (Membership.JOIN,))), set(await ghost.get_room_members(room))

    stored, asked = bridge.run(compare())
    assert stored == asked == members(person, room) == {person.user_id, bridge.bot.mxid, ghost.mxid, server.city_user}


def test_a_city_decides_who_is_in_its_rooms(place):
    """A bridge brings nobody into a room of the city, and opens none but for two."""
    server, bridge = place
    person, stranger = server.person(), server.person()
    room = portal(server, bridge, person, ghost="guest")
    ghost, further = bridge.ghost("guest"), bridge.ghost("further")

    async def refused():
        # Its bot has no power to invite; what the library says to that is its own.
        with pytest.raises(IntentError, match="Failed to join"):
            await further.ensure_joined(room)
        with pytest.raises(MForbidden):
            await ghost.create_room(name="部屋", invitees=[person.user_id, bridge.bot.mxid])
        with pytest.raises(MForbidden):
            await ghost.create_room(name="部屋")
        with pytest.raises(MForbidden):
            await ghost.create_room(is_direct=True, invitees=[stranger.user_id])
        # The library looks at the powers that it knows, and does not even ask.
        with pytest.raises(IntentError, match="Power level"):
            await ghost.set_room_name(room, "別の名前")
        direct = await ghost.create_room(is_direct=True, invitees=[person.user_id])
        with pytest.raises(MForbidden):
            await ghost.invite_user(direct, stranger.user_id)
        with pytest.raises(MForbidden):
            await ghost.send_state_event(direct, EventType.ROOM_ENCRYPTION, {"algorithm": "m.megolm.v1.aes-sha2"})
        return direct

    watch = Watch(person)
    direct = bridge.run(refused())
    assert further.mxid not in members(person, room)
    watch.until(lambda: direct in watch.invited, "the ghost's invitation")
    person.client.ok("POST", f"{C}/join/{quote(direct)}", {})
    bridge.told("join", direct, person.user_id)
    bridge.portals.add(direct)
    said = person.client.say(direct, "二人だけです")
    wait_for(lambda: (person.user_id, "二人だけです", said) in bridge.bridged, what="what was said to the ghost")
    answered = bridge.run(ghost.send_notice(direct, "はい"))
    assert watch.event(direct, answered)["content"] == {"msgtype": "m.notice", "body": "はい"}
    person.client.ok("POST", f"{C}/rooms/{quote(direct)}/leave", {})
    bridge.told("leave", direct, person.user_id)
    happened_once(bridge)


# Media


def test_what_a_ghost_sends_is_seen(place):
    """An image with the library's two ways to upload: at once, and the id first."""
    server, bridge = place
    person = server.person()
    room = portal(server, bridge, person, ghost="photo")
    ghost, watch = bridge.ghost("photo"), Watch(person)

    async def send():
        urls = [await ghost.upload_media(PNG, mime_type="image/png", filename="一.png"),
                await ghost.upload_media(PNG, mime_type="image/png", filename="二.png", async_upload=True)]
        return [(url, await ghost.send_image(room, url, file_name="写真.png")) for url in urls]

    for url, event_id in bridge.run(send()):
        assert watch.event(room, event_id)["content"]["url"] == url
        got = person.client.get(f"/_matrix/client/v1/media/download/{url.removeprefix('mxc://')}")
        assert got.status == 200 and got.content == PNG
    assert not bridge.complaints.said


def photo(server: Server, bridge: Bridge, ghost: str):
    """A person's photo in a room with the bridge, as the bridge's handler got it."""
    person = server.person()
    room = portal(server, bridge, person, ghost=ghost)
    url = person.client.request("POST", "/_matrix/media/v3/upload", body=PNG, headers={"Content-Type": "image/png"}).json["content_uri"]
    event = bridge.got(person.client.say(room, "写真.png", msgtype="m.image", url=url))
    assert event.content.url == url
    return event.content.url


def test_a_ghost_reads_what_a_person_sends(place):
    """The library's request, with the ghost's name added to it."""
    server, bridge = place
    url = photo(server, bridge, "album")

    async def fetch():
        ghost = bridge.ghost("album")
        ghost.api.as_user_id = ghost.mxid
        return await ghost.download_media(url)

    assert bridge.run(fetch()) == PNG


def test_a_bridge_reads_what_a_person_sends(place):
    """`download_media` names no user: it asks as the appservice's own user, who is in no room."""
    server, bridge = place
    url = photo(server, bridge, "download")
    assert bridge.run(bridge.ghost("download").download_media(url)) == PNG


# Questions


def test_an_unknown_ghost_is_made_when_it_is_invited(place):
    """City staff invite somebody of the other network by name."""
    server, bridge = place
    staff, person = server.first_staff(), server.person()
    room = server.room(staff, person)
    bridge.portals.add(room)
    asked: list[str] = []

    async def make(user_id: str):
        asked.append(user_id)
        if "nobody" in user_id:
            return None
        ghost = bridge.bot.user(user_id)
        await ghost.ensure_registered()
        await ghost.set_displayname("花子(電話)")
        return {"made": True}

    bridge.query_user = make
    try:
        invite = f"{C}/rooms/{quote(room)}/invite"
        assert staff.client.post(invite, {"user_id": bridge.id_of("nobody")}).told == (404, "M_NOT_FOUND")
        assert staff.client.post(invite, {"user_id": bridge.id_of("hanako")}).status == 200
        assert asked == [bridge.id_of("nobody"), bridge.id_of("hanako")]
        # Who may not invite asks for nobody.
        assert person.client.post(invite, {"user_id": bridge.id_of("jiro")}).told == (403, "M_FORBIDDEN")
    finally:
        bridge.query_user = None
    wait_for(lambda: bridge.id_of("hanako") in members(staff, room), what="the ghost in the room")
    assert person.client.state(room, "m.room.member", bridge.id_of("hanako"))["displayname"] == "花子(電話)"
    happened_once(bridge)


@pytest.mark.parametrize("profile", ["city", "open"])
def test_a_room_is_made_when_its_alias_is_asked_for(fresh, folder, profile):
    """In the open profile for everybody. In a city whose rooms are everybody's to open, for whom the bridge invites: the
    alias tells others nothing."""
    server = fresh("sqlite", profile, config={"policy": {"create_rooms": "everybody"}} if profile == "city" else {})
    bridge = bridged(server, folder)
    try:
        make = server.person if profile == "city" else server.register
        person, other = make(), make()
        asked: list[str] = []

        async def room_of(alias: str):
            asked.append(alias)
            if "none" in alias:
                return None
            preset = RoomCreatePreset.PRIVATE if profile == "city" else RoomCreatePreset.PUBLIC
            made = await bridge.bot.create_room(alias_localpart=alias.split(":")[0][1:], preset=preset, name="電話の部屋",
                                                invitees=[person.user_id] if profile == "city" else [], initial_state=[])
            bridge.portals.add(made)
            return {"room": made}

        bridge.query_alias = room_of
        alias, none = (f"#bridge_{name}:{server.server_name}" for name in ("room", "none"))
        assert person.client.get(f"{C}/directory/room/{quote(none)}").told == (404, "M_NOT_FOUND")
        room = person.client.ok("POST", f"{C}/join/{quote(alias)}", {})["room_id"]
        assert asked == [none, alias] and bridge.portals == {room}
        assert bridge.run(bridge.bot.resolve_room_alias(alias)).room_id == room
        found = other.client.get(f"{C}/directory/room/{quote(alias)}")
        assert found.told == (404, "M_NOT_FOUND") if profile == "city" else found.json["room_id"] == room
        bridge.told("join", room, person.user_id)

        # Here the bot has power, and the library uses it: a ghost that is not in the room is invited by the bot.
        ghost, watch = bridge.ghost("jiro"), Watch(person)
        sent = bridge.run(ghost.send_text(room, "次郎です"))
        assert watch.event(room, sent)["sender"] == ghost.mxid
        bridge.run(bridge.bot.kick_user(room, ghost.mxid, reason="番号の変更"))
        out = watch.until(lambda: [one for one in watch.timeline[room] if one.get("state_key") == ghost.mxid
                                   and one["content"]["membership"] == "leave"], "that the ghost is out")
        # Until its bridge has heard it, the library may take the ghost for a member still: its join comes after the request.
        bridge.got(out[0]["event_id"])
        sent = bridge.run(ghost.send_text(room, "また次郎です"))
        assert watch.event(room, sent)["content"]["body"] == "また次郎です"

        async def furnish():
            await bridge.bot.set_room_name(room, "新しい名前")
            await bridge.bot.set_room_topic(room, "題")
            levels = await bridge.bot.get_power_levels(room)
            levels.set_user_level(ghost.mxid, 50)
            await bridge.bot.set_power_levels(room, levels)
            await ghost.pin_message(room, sent)
            await bridge.bot.add_room_alias(room, "bridge_second")
            return await ghost.get_pinned_messages(room)

        assert bridge.run(furnish()) == [sent]
        assert person.client.state(room, "m.room.name")["name"] == "新しい名前"
        assert person.client.state(room, "m.room.topic")["topic"] == "題"
        second = f"#bridge_second:{server.server_name}"
        assert set(person.client.ok("GET", f"{C}/rooms/{quote(room)}/aliases")["aliases"]) == {alias, second}
        bridge.query_alias = None
        bridge.run(bridge.bot.remove_room_alias("bridge_second"))
        with pytest.raises(MNotFound):
            bridge.run(bridge.bot.resolve_room_alias(second))
        happened_once(bridge)
    finally:
        bridge.close()


# Away


def test_a_transaction_whose_answer_was_lost_is_handled_once(place):
    """The server sends it again under the same id, and the library knows the id."""
    server, bridge = place
    person = server.person()
    room = portal(server, bridge, person, ghost="lost")
    bridge.got(person.client.say(room, "一"))
    happened_once(bridge)
    before = set(bridge.bodies)
    bridge.losing = 3
    said = [person.client.say(room, f"二 {n}") for n in range(5)]
    wait_for(lambda: set(said) <= set(bridge.ids(room)), what="all of it")
    tries = lambda: [len(bodies) for path, bodies in list(bridge.bodies.items()) if path not in before]
    wait_for(lambda: not bridge.losing and sum(tries()) == len(tries()) + 3, what="one more try for each lost answer")
    happened_once(bridge)
    assert [one for one in bridge.ids(room) if one in said] == said


@pytest.mark.parametrize("forgets", [False, True], ids=["with its store", "without its store"])
def test_what_came_while_it_was_away(place, forgets):
    """The bridge ends; people go on, and the server is started anew. When the bridge is back it gets all, in order, once."""
    server, bridge = place
    person = server.person()
    room = portal(server, bridge, person, ghost="away")
    before = person.client.say(room, "まだいます")
    bridge.got(before)
    bridge.stop()
    had = len(bridge.ids(room))
    if forgets:
        (bridge.folder / "mx-state.json").unlink()
    said = [person.client.say(room, f"留守番 {n}") for n in range(7)]
    send = f"{C}/rooms/{quote(room)}/send"
    relates = {"rel_type": "m.annotation", "event_id": said[0], "key": "👍"}
    said.append(person.client.ok("PUT", f"{send}/m.reaction/away", {"m.relates_to": relates})["event_id"])
    server.restart()
    person.client.close()
    said += [person.client.say(room, f"留守番 {n}") for n in range(7, 120)]
    begun = time.monotonic()
    bridge.start()
    bridge.got(said[-1])
    assert time.monotonic() - begun < 30, "the ping of its start wakes the delivery"
    assert bridge.ids(room)[had:] == said
    wait_for(lambda: [one[2] for one in bridge.bridged if one[2] in said] == [one for one in said if one != said[7]],
             what="what was said, on the other network, in order")
    assert bridge.bridged.count((person.user_id, "留守番 0", said[0])) == 1
    ghost = bridge.ghost("away")
    assert bridge.run(bridge.store.is_joined(room, ghost.mxid)) is not forgets
    # A store that knows nothing any more learns it: registered already, joined already.
    answered = bridge.run(ghost.send_text(room, "ただいま"))
    assert person.client.ok("GET", f"{C}/rooms/{quote(room)}/event/{quote(answered)}")["content"]["body"] == "ただいま"
    bridge.got(person.client.say(room, "お帰りなさい"))
    happened_once(bridge)


# What the library takes for granted, and Heya does not do


def direct_room(server: Server, bridge: Bridge, person: Person, ghost: str) -> str:
    """A ghost's room with somebody who has come in."""
    portal(server, bridge, person, ghost=ghost)
    direct = bridge.run(bridge.ghost(ghost).create_room(is_direct=True, invitees=[person.user_id]))
    person.client.ok("POST", f"{C}/join/{quote(direct)}", {})
    bridge.told("join", direct, person.user_id)
    return direct


def test_an_invitation_of_who_is_in_already(place):
    """`invite_user` goes on where the answer says that they are in the room."""
    server, bridge = place
    person = server.person()
    direct = direct_room(server, bridge, person, "twice")
    bridge.run(bridge.ghost("twice").invite_user(direct, person.user_id))
    assert bridge.run(bridge.store.get_membership(direct, person.user_id)) == Membership.JOIN


def test_leaving_a_room_one_was_never_in(place):
    """`leave_room` goes on where the answer says that the user is not in the room."""
    server, bridge = place
    room = server.room(server.person())
    ghost = bridge.ghost("never")
    bridge.run(ghost.leave_room(room))
    assert bridge.run(bridge.store.get_membership(room, ghost.mxid)) == Membership.LEAVE


@pytest.mark.parametrize("whom", ["a stranger", "nobody", "elsewhere"])
def test_an_invitation_with_further_fields_is_an_invitation(place, whom):
    """`invite_user` with `extra_content` sends the member event itself: a direct room stays one of two all the same, and
    nobody is invited who does not exist or is another server's."""
    server, bridge = place
    person = server.person()
    direct = direct_room(server, bridge, person, "further")
    target = {"a stranger": lambda: server.person().user_id, "nobody": lambda: f"@p999999:{server.server_name}",
              "elsewhere": lambda: "@somebody:elsewhere.example"}[whom]()
    with pytest.raises((MForbidden, MNotFound)):
        bridge.run(bridge.ghost("further").invite_user(direct, target, extra_content={"fi.mau.will_auto_accept": True}))
    assert all(one["state_key"] != target for one in person.client.ok("GET", f"{C}/rooms/{quote(direct)}/members")["chunk"])


def test_a_removal_with_further_fields_is_in_the_audit_log(place):
    """`kick_user` with `extra_content` sends the member event itself, and is a change of membership all the same (C23)."""
    server, bridge = place
    person = server.person()
    direct, ghost = direct_room(server, bridge, person, "removal"), bridge.ghost("removal")

    def lines() -> int:
        return server.count(f"SELECT COUNT(*) FROM audit WHERE action = 'member.remove' AND room_id = '{direct}'")

    bridge.run(ghost.kick_user(direct, person.user_id, reason="番号の変更"))
    if lines() != 1:
        pytest.fail("without further fields there is a line")
    bridge.run(ghost.invite_user(direct, person.user_id))
    person.client.ok("POST", f"{C}/join/{quote(direct)}", {})
    bridge.run(ghost.kick_user(direct, person.user_id, reason="番号の変更", extra_content={"fi.mau.reason": "x"}))
    if person.client.get(f"{C}/rooms/{quote(direct)}/joined_members").status != 403:
        pytest.fail("the person is out")
    assert lines() == 2
