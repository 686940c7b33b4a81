"""A client library that knows nothing of this server, matrix-nio, through mutual TLS (REQUIREMENTS H1, H3, H13)."""

from __future__ import annotations

import asyncio
import io
import ssl

import nio
import pytest

from harness import Person, Server, Terminal
from test_rooms import PNG


def context(server: Server, terminal: Terminal | None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(server.ca))
    if terminal:
        made.load_cert_chain(str(terminal.cert), str(terminal.key))
    return made


class Phone:
    """A matrix-nio client on a terminal, logged in."""

    def __init__(self, person: Person, terminal: Terminal | None = None, name: str = "試験の端末") -> None:
        self.person, self.name = person, name
        self.client = nio.AsyncClient(person.server.base, person.login_id,
                                      config=nio.AsyncClientConfig(max_limit_exceeded=0, max_timeouts=0),
                                      ssl=context(person.server, terminal or person.terminal))
        self.seen: list[nio.Event] = []
        self.ephemeral: list[nio.EphemeralEvent] = []

    async def __aenter__(self) -> Phone:
        answer = await self.client.login(self.person.password, device_name=self.name)
        assert isinstance(answer, nio.LoginResponse), answer
        self.client.add_event_callback(lambda _room, event: self.seen.append(event), nio.Event)
        self.client.add_ephemeral_callback(lambda _room, event: self.ephemeral.append(event), nio.EphemeralEvent)
        await self.sync()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def sync(self, timeout: int = 0) -> nio.SyncResponse:
        answer = await self.client.sync(timeout=timeout, since=self.client.next_batch)
        assert isinstance(answer, nio.SyncResponse), answer
        return answer

    async def until(self, found, what: str):
        """Syncs until something has been seen."""
        for _ in range(10):
            value = found()
            if value:
                return value
            await self.sync(timeout=3000)
        raise AssertionError(f"never saw {what}")

    async def say(self, room: str, text: str) -> str:
        answer = await self.client.room_send(room, "m.room.message", {"msgtype": "m.text", "body": text})
        assert isinstance(answer, nio.RoomSendResponse), answer
        return answer.event_id

    def bodies(self) -> list[str]:
        return [event.body for event in self.seen if isinstance(event, nio.RoomMessageText)]


def run(coroutine) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.fixture(scope="module")
def pair(any_city: Server) -> tuple[Person, Person]:
    facility = any_city.facility()
    return any_city.person(facility), any_city.person(facility)


def test_two_people_talk(any_city, pair):
    """Log in, sync, send, receive, read receipts, typing, redact, leave."""
    room = any_city.room(*pair, name="話し合いの部屋")

    async def talk() -> None:
        async with Phone(pair[0]) as a, Phone(pair[1]) as b:
            assert a.client.rooms[room].display_name == "話し合いの部屋"
            assert not a.client.rooms[room].encrypted
            assert set(a.client.rooms[room].users) == {any_city.city_user, pair[0].user_id, pair[1].user_id}
            event = await a.say(room, "発熱が続いています")
            await b.until(lambda: "発熱が続いています" in b.bodies(), "the message")
            assert b.seen[-1].sender == pair[0].user_id
            assert isinstance(await b.client.room_typing(room, True, 10_000), nio.RoomTypingResponse)
            await a.until(lambda: any(isinstance(e, nio.TypingNoticeEvent) and pair[1].user_id in e.users
                                      for e in a.ephemeral), "typing")
            assert isinstance(await b.client.update_receipt_marker(room, event), nio.UpdateReceiptMarkerResponse)
            assert isinstance(await b.client.room_read_markers(room, event, event), nio.RoomReadMarkersResponse)
            await a.until(lambda: any(isinstance(e, nio.ReceiptEvent) and any(
                one.event_id == event and one.user_id == pair[1].user_id for one in e.receipts) for e in a.ephemeral), "the receipt")
            answered = await b.say(room, "了解")
            await a.until(lambda: "了解" in a.bodies(), "the answer")
            assert isinstance(await b.client.room_redact(room, answered, "誤記"), nio.RoomRedactResponse)
            await a.until(lambda: any(isinstance(e, nio.RedactionEvent) and e.redacts == answered for e in a.seen), "the redaction")
            back = await a.client.room_messages(room, a.client.next_batch, limit=50)
            assert isinstance(back, nio.RoomMessagesResponse), back
            assert [e.body for e in back.chunk if isinstance(e, nio.RoomMessageText)][:1] == ["発熱が続いています"]
            assert isinstance(await b.client.room_leave(room), nio.RoomLeaveResponse)
            await a.until(lambda: pair[1].user_id not in a.client.rooms[room].users, "the leave")
            gone = await b.client.room_messages(room, "", limit=5)
            assert isinstance(gone, nio.RoomMessagesError) and gone.status_code == "M_FORBIDDEN"
            assert isinstance(await b.client.room_forget(room), nio.RoomForgetResponse)
            assert isinstance(await a.client.logout(), nio.LogoutResponse)

    run(talk())


def test_a_photo_goes_from_one_to_the_other(any_city, pair):
    room = any_city.room(*pair)

    async def share() -> None:
        async with Phone(pair[0]) as a, Phone(pair[1]) as b:
            answer, _ = await a.client.upload(lambda *_: io.BytesIO(PNG), content_type="image/png", filename="創部.png", filesize=len(PNG))
            assert isinstance(answer, nio.UploadResponse), answer
            early = await b.client.download(answer.content_uri)
            assert isinstance(early, nio.DownloadError), "not shown to anybody yet"
            sent = await a.client.room_send(room, "m.room.message", {
                "msgtype": "m.image", "body": "創部.png", "url": answer.content_uri, "info": {"mimetype": "image/png", "size": len(PNG)}})
            assert isinstance(sent, nio.RoomSendResponse)
            await b.until(lambda: any(isinstance(e, nio.RoomMessageImage) for e in b.seen), "the photo")
            image = next(e for e in b.seen if isinstance(e, nio.RoomMessageImage))
            got = await b.client.download(image.url)
            assert isinstance(got, nio.MemoryDownloadResponse), got
            assert (got.body, got.content_type, got.filename) == (PNG, "image/png", "創部.png")
            small = await b.client.thumbnail(any_city.server_name, image.url.rsplit("/", 1)[1], 32, 32)
            assert isinstance(small, nio.ThumbnailResponse), small

    run(share())


def test_three_devices_of_one_id(any_city, pair):
    """H13: every device its own session; what one writes the others have; each its own transaction ids."""
    person = pair[0]
    second = any_city.further_terminal(person)
    room = any_city.room(*pair)

    async def three() -> None:
        async with Phone(person, name="一台目") as a, Phone(person, second, "二台目") as b, Phone(person, name="三台目") as c:
            assert len({phone.client.device_id for phone in (a, b, c)}) == 3
            for phone, text in ((a, "一"), (b, "二"), (c, "三")):
                await phone.say(room, text)
            for phone in (a, b, c):
                await phone.until(lambda phone=phone: phone.bodies()[-3:] == ["一", "二", "三"], "all three in order")
                own = [e for e in phone.seen if isinstance(e, nio.RoomMessageText) and
                       e.source.get("unsigned", {}).get("transaction_id")]
                assert len(own) == 1, "only the device that sent it is told its transaction id"
            listed = await a.client.devices()
            assert isinstance(listed, nio.DevicesResponse)
            names = {device.id: device.display_name for device in listed.devices}
            assert [names[phone.client.device_id] for phone in (a, b, c)] == ["一台目", "二台目", "三台目"]
            # Ending one from another takes the password; the others go on.
            asked = await a.client.delete_devices([c.client.device_id])
            assert isinstance(asked, nio.DeleteDevicesAuthResponse), asked
            auth = {"type": "m.login.password", "session": asked.session, "password": person.password,
                    "identifier": {"type": "m.id.user", "user": person.login_id}}
            assert isinstance(await a.client.delete_devices([c.client.device_id], auth), nio.DeleteDevicesResponse)
            ended = await c.client.sync(timeout=0)
            assert isinstance(ended, nio.SyncError) and ended.status_code == "M_UNKNOWN_TOKEN"
            await b.sync()
            # Reading on one clears the unread mark on the other.
            mate = any_city.public(pair[1].terminal, pair[1].token)
            mate.say(room, "未読です")
            await b.until(lambda: b.client.rooms[room].unread_notifications, "an unread mark")
            await a.sync()
            last = a.seen[-1].event_id
            await a.client.update_receipt_marker(room, last)
            await b.until(lambda: not b.client.rooms[room].unread_notifications, "the mark gone")

    run(three())


def test_a_library_without_a_certificate_is_told_why(any_city, pair):
    async def refused() -> None:
        client = nio.AsyncClient(any_city.base, pair[0].login_id, ssl=context(any_city, None))
        answer = await client.login(pair[0].password)
        assert isinstance(answer, nio.LoginError) and answer.status_code == "M_FORBIDDEN"
        await client.close()

    run(refused())


def test_a_waiting_sync_hears_at_once(any_city, pair):
    """H1: a post reaches every member's open client."""
    room = any_city.room(*pair)

    async def wait() -> None:
        async with Phone(pair[0]) as a, Phone(pair[1]) as b:
            waiting = asyncio.create_task(b.sync(timeout=20_000))
            await asyncio.sleep(0.2)  # let it begin to wait
            began = asyncio.get_running_loop().time()
            await a.say(room, "すぐ届く")
            await asyncio.wait_for(waiting, 10)
            if "すぐ届く" not in b.bodies():
                await b.until(lambda: "すぐ届く" in b.bodies(), "the message")
            assert asyncio.get_running_loop().time() - began < 5

    run(wait())
