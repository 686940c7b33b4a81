"""The story of a city, from its first log-in to a room's end (REQUIREMENTS; README, "First steps"), on both databases.

Three processes (`heya serve --server-only`, `heya city`, `heya mail`), people with matrix-nio, mail through aiosmtpd
with STARTTLS and AUTH, enrolment and the mail's link through the pages, the audit log through its commands. An ear on
the wires between the processes hears every URL that they request.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import html
import io
import json
import pathlib
import re
import secrets
import sqlite3
import time
import urllib.parse

import nio
import pytest
import requests

from harness import REVOKED_WITHIN, Client, Enrolment, Person, Postgres, Terminal, quote
from parts import City, Mail, Smtp, case_shown, login_id_in, sheets_in, today
from test_clients import Phone, context
from test_rooms import PNG

# Whom the room is about: no word of it stands anywhere else.
SURNAME, GIVEN = "鬼灯坂", "凪右衛門"
SUBJECT = f"{SURNAME} {GIVEN}"
READING = "ほおずきざか なぎえもん"
BORN, BORN_ISO = "昭和11年11月23日", "1936-11-23"
ADDRESS = "〇〇市架空台八丁目19-4"
# A word of what is written in the room.
FINDING = "褥瘡ステージ"
# Somebody of the family, whom a member takes for a member of the network.
RELATIVE = "霧降谷紫乃"
PRIVATE = [SURNAME, GIVEN, *READING.split(), BORN, BORN_ISO, "架空台", FINDING, RELATIVE]

STATION, OFFICE = "ひばり訪問看護", "あおば居宅介護支援"
NURSE, MANAGER = "山川里子", "佐藤花子"
MANAGERS_MAIL, STATIONS_MAIL = "care-manager@office.example", "desk@station.example"
NOTICE = "研修会を来月開きます。くわしくは後日お知らせします。"


def spellings(words: list[str] = PRIVATE) -> list[str]:
    """The words in every spelling that a program might make of them."""
    found: set[str] = set()
    for word in words:
        raw = word.encode()
        found |= {word, quote(word), quote(word).lower(), urllib.parse.quote_plus(word), html.escape(word),
                  json.dumps(word)[1:-1], json.dumps(word)[1:-1].upper().replace("\\U", "\\u"), raw.hex(),
                  "".join(f"={byte:02X}" for byte in raw), ascii(word)[1:-1], repr(raw)[2:-1]}
        # In base64 the letters depend on where the word begins; the middle of each of the three is certain.
        for shift in range(3) if len(raw) > 8 else ():
            found.add(base64.b64encode(b"\0" * shift + raw).decode()[4:-4])
    return sorted(found, key=len)


SPELLINGS = spellings()


def leaks(text: str) -> list[str]:
    """Which private words stand in a text, however spelt."""
    return [word for word in SPELLINGS if word in text]


class Seat(Phone):
    """Somebody at a terminal with matrix-nio, who reads everything that comes."""

    FILTER = {"room": {"timeline": {"limit": 200}}}

    def __init__(self, person: Person, terminal: Terminal | None = None) -> None:
        super().__init__(person, terminal)
        self.read: list[tuple[str, dict]] = []  # room, event

    @property
    def id(self) -> str:
        return self.person.user_id

    @property
    def raw(self) -> Client:
        """For calls that matrix-nio does not have; the same terminal and session."""
        return self.person.server.public(self.person.terminal, self.client.access_token)

    async def sync(self, timeout: int = 0) -> nio.SyncResponse:
        answer = await self.client.sync(timeout=timeout, since=self.client.next_batch, sync_filter=self.FILTER)
        assert isinstance(answer, nio.SyncResponse), answer
        for room, joined in answer.rooms.join.items():
            assert not joined.timeline.limited or len(self.read) == 0 or len(joined.timeline.events) < 200
            self.read += [(room, event.source) for event in [*joined.state, *joined.timeline.events]]
        return answer

    @property
    def mark(self) -> int:
        return len(self.read)

    async def reads(self, what: str, fits, since: int = 0) -> tuple[str, dict]:
        """Waits for an event."""
        def found():
            return next(((room, event) for room, event in self.read[since:] if fits(room, event)), None)
        return await self.until(found, what)

    async def hears(self, room: str, text: str, since: int = 0) -> dict:
        """Waits for somebody else's message with a text."""
        def fits(where: str, event: dict) -> bool:
            return where == room and event["sender"] != self.id and text in str(event["content"].get("body", ""))
        return (await self.reads(f"「{text}」", fits, since))[1]

    async def room_of(self, **note) -> str:
        """The room with such a note of the city's (`jp.heya.room`)."""
        def fits(_room: str, event: dict) -> bool:
            return event["type"] == "jp.heya.room" and note.items() <= event["content"].items()
        return (await self.reads(f"a room {note}", fits))[0]

    async def send(self, room: str, kind: str, content: dict):
        return await self.client.room_send(room, kind, content)


class Tale:
    """The story's people and places; `play` goes through it once."""

    def __init__(self, database: str, folder: pathlib.Path) -> None:
        self.database = database
        self.smtp = Smtp(folder / "smtp")
        self.city = City(database, smtp=self.smtp, folder=folder / "city", ears=True,
                         env={"HEYA_LOG": "debug", "RUST_BACKTRACE": "1"})
        self.took: dict[str, float] = {}
        self.secrets: list[str] = [self.smtp.password]
        self.everybody: list[Seat] = []
        self.number = 0
        self.told: bool | None = None

    def end(self) -> None:
        self.city.remove()
        self.smtp.stop()

    def play(self) -> Tale:
        """The whole story; a second call is for whoever needs it to have been told."""
        if self.told is None:
            self.told = False
            asyncio.run(asyncio.wait_for(self._steps(), 550))
            self.told = True
        if not self.told:
            pytest.fail("the story did not come to its end: see test_the_story", pytrace=False)
        return self

    async def _steps(self) -> None:
        steps = [self.the_first_enrols, self.two_facilities, self.each_enrols, self.both_factors, self.a_room_is_opened,
                 self.everybody_writes, self.one_more_member, self.a_notice, self.a_terminal_is_lost,
                 self.the_room_is_closed, self.the_log_is_proved]
        try:
            for step in steps:
                began = time.monotonic()
                await step()
                self.took[step.__name__] = round(time.monotonic() - began, 2)
        finally:
            for seat in self.everybody:
                await seat.client.close()

    # What steps are made of

    def issued(self, login_id: str, sheets: list[str], facility: int = 0) -> Person:
        return Person(self.city, f"@{login_id}:{self.city.server_name}", login_id, facility, sheets=sheets)

    async def enrolled(self, person: Person, label: str) -> Seat:
        """From two sheets of paper to an open client."""
        self.secrets += self.city.secrets_of(person)
        self.city.enrol(person, label=label)
        self.secrets += [person.password, person.terminal.p12_password]
        return await self.seated(person)

    async def seated(self, person: Person) -> Seat:
        seat = await Seat(person).__aenter__()
        self.everybody.append(seat)
        self.secrets.append(seat.client.access_token)
        return seat

    async def command(self, text: str, answer: str) -> str:
        """The member of staff writes in the control room; the bot's answer."""
        mark = self.staff.mark
        await self.staff.say(self.control, text)
        return (await self.staff.hears(self.control, answer, mark))["content"]["body"]

    async def case(self, about: str, since: int) -> tuple[int, dict]:
        """A case that the bot shows to the city."""
        def fits(room: str, event: dict) -> bool:
            return room == self.control and case_shown(event) is not None and about in event["content"]["body"]
        _, event = await self.staff.reads(f"the case 「{about}」", fits, since)
        return case_shown(event), event

    # 1

    async def the_first_enrols(self) -> None:
        sheets = sorted(f"sheets/{path.name}" for path in (self.city.data / "sheets").iterdir())
        assert len(sheets) == 2, sheets
        password = next(sheet for sheet in sheets if "password" in sheet)
        self.staff = await self.enrolled(self.issued(self.city.sheet(password)[0], sheets), "窓口のパソコン")
        self.control = await self.staff.room_of(kind="control")

    # 2

    async def two_facilities(self) -> None:
        for name, kind in ((STATION, "訪問看護"), (OFFICE, "介護")):
            assert name in await self.command(f"事業所登録 {name} {kind} 誓約済", "事業所番号：")
        people = []
        for what in (f"{STATION} 施設ID", f"{STATION} {NURSE} 看護師", f"{OFFICE} {MANAGER} ケアマネジャー"):
            told = await self.command(f"発行 {what} 誓約済", "票：")
            sheets = sheets_in(told)
            assert len(sheets) == 2 and ["password" in sheet for sheet in sheets].count(True) == 1, sheets
            person = self.issued(login_id_in(told), sheets)
            password, code = self.city.secrets_of(person)
            assert password not in told and code not in told, "what is on the sheets is said in no room"
            for sheet in sheets:
                path = self.city.data / sheet
                assert path.stat().st_mode & 0o077 == 0, "the sheets are their owner's only"
                assert (password in path.read_text(encoding="utf-8")) != (code in path.read_text(encoding="utf-8"))
            people.append(person)
        self.of_station, self.of_nurse, self.of_manager = people

    # 3

    async def each_enrols(self) -> None:
        self.station = await self.enrolled(self.of_station, "事務所のパソコン")
        self.announcement = await self.station.room_of(kind="announcement")
        self.nurse = await self.enrolled(self.of_nurse, "訪問用スマートフォン1号")
        self.manager = await self.enrolled(self.of_manager, "居宅のパソコン")

    # 4

    async def both_factors(self) -> None:
        person = self.manager.person

        async def refused(terminal: Terminal | None, login_id: str, password: str) -> tuple:
            client = nio.AsyncClient(self.city.base, login_id, ssl=context(self.city, terminal))
            try:
                answer = await client.login(password)
                assert isinstance(answer, nio.LoginError), answer
                return answer.status_code, answer.message
            finally:
                await client.close()

        without = await refused(None, person.login_id, person.password)
        assert without[0] == "M_FORBIDDEN"
        wrong = await refused(person.terminal, person.login_id, "Wrong-password-1")
        foreign = await refused(self.station.person.terminal, person.login_id, person.password)
        nobody = await refused(person.terminal, "p999999", person.password)
        assert wrong[0] == "M_FORBIDDEN" and wrong == foreign == nobody, "the refusals tell which factor failed"
        seat = await Seat(person).__aenter__()
        assert isinstance(await seat.client.logout(), nio.LogoutResponse)
        await seat.client.close()

    # 5

    async def a_room_is_opened(self) -> None:
        self.mail_by_link(self.manager, MANAGERS_MAIL)
        self.mail_by_link(self.station, STATIONS_MAIL)
        made = await self.manager.client.room_create(
            is_direct=True, invite=[self.city.city_user], preset=nio.RoomPreset.trusted_private_chat)
        assert isinstance(made, nio.RoomCreateResponse), made
        self.direct = direct = made.room_id
        await self.manager.hears(direct, "窓口です")

        async def ask(text: str, answer: str) -> str:
            mark = self.manager.mark
            await self.manager.say(direct, text)
            return (await self.manager.hears(direct, answer, mark))["content"]["body"]

        assert "②市が情報を取得することへの同意" in await ask("同意の報告", "そろっていません")
        mark = self.staff.mark
        early = f"開設依頼\n対象者氏名：{SUBJECT}\n生年月日：{BORN}\n住所：{ADDRESS}\n要件：①\nメンバー：{STATION}、{self.staff.person.login_id}"
        assert "同意の報告がまだありません" in await ask(early, "同意の報告がまだありません"), "no room without consent"
        await ask(f"同意の報告\n対象者氏名：{SUBJECT}\n生年月日：{BORN}\n住所：{ADDRESS}\n説明者：{MANAGER}\n"
                  f"説明者の職種：ケアマネジャー\n説明日：{today()}\n①情報共有への同意：はい\n"
                  "②市が情報を取得することへの同意：はい", "同意の報告を受け付けました")
        await self.staff.hears(self.control, "同意の報告がありました", mark)
        await ask("部屋の開設をお願いします", "要件：")
        mark, told, mails = self.staff.mark, self.manager.mark, len(self.smtp.mails)
        await ask(early, "市への依頼として受け付けました")
        number, event = await self.case("部屋の開設", mark)
        assert SUBJECT in event["content"]["body"] and "承認の前に確認が必要" not in event["content"]["body"]
        await self.manager.sync()
        assert not [room for room, e in self.manager.read if e["type"] == "jp.heya.room" and e["content"]["kind"] == "subject"], \
            "nothing is opened before the approval"
        await self.command(f"承認 {number}", f"案件 {number} を完了しました")
        answer = await self.manager.hears(direct, "部屋番号は ", told)
        self.number = int(re.search(r"部屋番号は (\d+) です", answer["content"]["body"])[1])
        self.room = await self.manager.room_of(room_number=self.number)
        await self.manager.hears(self.room, "この部屋を開設しました")
        self.exactly_as_it_must_be(self.manager.raw.ok("GET", f"/_matrix/client/v3/rooms/{quote(self.room)}/state"))
        for address in (MANAGERS_MAIL, STATIONS_MAIL):
            mail = self.smtp.expect(address, subject="部屋の開設", room=self.number, since=mails)
            assert mail.rooms == {self.number} and f"部屋番号：{self.number}" in mail.body

    def mail_by_link(self, seat: Seat, address: str) -> None:
        """An address, as a client's settings add it: mail, page, button, password. matrix-nio has no calls for it."""
        client, person, mails = seat.raw, seat.person, len(self.smtp.mails)
        secret = secrets.token_urlsafe(18)
        asked = client.ok("POST", "/_matrix/client/v3/account/3pid/email/requestToken",
                          {"client_secret": secret, "email": address, "send_attempt": 1})
        mail = self.smtp.expect(address, subject="メールアドレスの確認", since=mails)
        (link,) = re.findall(r"https://\S+", mail.body.replace(self.city.base + "\n", ""))
        assert link.startswith(self.city.enrol_base + "/"), "the page that needs no certificate"
        token = urllib.parse.parse_qs(urllib.parse.urlsplit(link).query)["token"][0]
        self.secrets.append(token)

        def add() -> tuple[int, str | None]:
            body = {"client_secret": secret, "sid": asked["sid"]}
            first = client.post("/_matrix/client/v3/account/3pid/add", body)
            assert first.status == 401 and "session" in first.json, first
            body["auth"] = {"type": "m.login.password", "session": first.json["session"], "password": person.password,
                            "identifier": {"type": "m.id.user", "user": person.login_id}}
            return client.post("/_matrix/client/v3/account/3pid/add", body).told

        browser = requests.Session()
        browser.verify, browser.trust_env = str(self.city.ca), False
        # A mail scanner follows links, and more than once.
        browser.head(link, timeout=20)
        for _ in range(2):
            page = browser.get(link, timeout=20)
            assert page.status_code == 200 and "確認する" in page.text
        assert add()[0] == 400, "looking at the page confirms nothing"
        form = re.search(r"<form\b[^>]*>(.*?)</form>", page.text, re.S)
        assert form and 'method="post"' in form[0] and "<button" in form[1]
        fields = {html.unescape(name): html.unescape(value)
                  for name, value in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form[1])}
        pressed = browser.post(page.url, data=fields, timeout=20)
        assert pressed.status_code == 200 and "確認しました" in pressed.text
        again = browser.post(page.url, data=fields, timeout=20)
        assert again.status_code == 403 and "このリンクは使えません" in again.text, "the button works once"
        assert add() == (200, None)
        listed = client.ok("GET", "/_matrix/client/v3/account/3pid")["threepids"]
        assert [(one["medium"], one["address"]) for one in listed] == [("email", address)]
        client.ok("POST", "/_matrix/client/v3/pushers/set", {
            "kind": "email", "app_id": "m.email", "pushkey": address, "app_display_name": "Email Notifications",
            "device_display_name": address, "lang": "ja", "data": {}, "append": True})
        assert len(self.smtp.of(address, subject="メールアドレスの確認")) == 1

    def exactly_as_it_must_be(self, state: list[dict]) -> None:
        """Members and powers of a subject's room (DESIGN 14)."""
        def of(kind: str) -> list[dict]:
            return [event for event in state if event["type"] == kind]

        def content(kind: str) -> dict:
            (event,) = of(kind)
            return event["content"]

        city = self.city.city_user
        assert {(event["state_key"], event["content"]["membership"]) for event in of("m.room.member")} == {
            (user, "join") for user in (city, self.staff.id, self.station.id, self.manager.id)}
        (create,) = of("m.room.create")
        assert create["sender"] == city and create["content"]["room_version"] == "12"
        assert not create["content"].get("additional_creators")
        powers = content("m.room.power_levels")
        assert powers["users"] == {self.staff.id: 50}
        assert {key: powers[key] for key in (
            "users_default", "events_default", "state_default", "invite", "kick", "ban", "redact")} == {
            "users_default": 0, "events_default": 0, "state_default": 50, "invite": 50, "kick": 50, "ban": 50, "redact": 50}
        assert powers["notifications"]["room"] == 50 and powers["events"].get("m.room.name", powers["state_default"]) == 50
        for kind in ("m.room.power_levels", "m.room.join_rules", "m.room.history_visibility", "jp.heya.room"):
            assert powers["events"][kind] == 100, kind
        assert content("m.room.join_rules") == {"join_rule": "invite"}
        assert content("m.room.guest_access") == {"guest_access": "forbidden"}
        assert content("m.room.history_visibility") == {"history_visibility": "shared"}
        assert not of("m.room.encryption")
        note = dict(content("jp.heya.room"))
        reference = note.pop("subject")
        assert note == {"kind": "subject", "room_number": self.number, "status": "open"}
        assert not leaks(str(reference)), "the subject's reference tells who it is"

    # 6

    async def everybody_writes(self) -> None:
        said = await self.manager.say(self.room, f"{SURNAME}さんの担当の{MANAGER}です。よろしくお願いします。")
        await self.station.say(self.room, f"{STATION}です。{FINDING}は変わりありません。")
        await self.staff.say(self.room, "市の担当です。承知しました。")
        self.first_words = said
        for seat in (self.manager, self.station, self.staff):
            for text in (MANAGER, FINDING, "承知しました"):
                await seat.until(lambda seat=seat, text=text: any(text in body for body in seat.bodies()), f"「{text}」")
        # The file is named as people name photos.
        photo = PNG + secrets.token_bytes(2000)
        name = f"{SUBJECT}様.png"
        uploaded, _ = await self.station.client.upload(
            lambda *_: io.BytesIO(photo), content_type="image/png", filename=name, filesize=len(photo))
        assert isinstance(uploaded, nio.UploadResponse), uploaded
        self.photo = uploaded.content_uri
        sent = await self.station.send(self.room, "m.room.message", {
            "msgtype": "m.image", "body": name, "url": self.photo, "info": {"mimetype": "image/png", "size": len(photo)}})
        assert isinstance(sent, nio.RoomSendResponse), sent
        got = await self.manager.until(
            lambda: next((e for e in self.manager.seen if isinstance(e, nio.RoomMessageImage)), None), "the photo")
        here = await self.manager.client.download(got.url)
        assert isinstance(here, nio.MemoryDownloadResponse) and here.body == photo
        assert isinstance(await self.nurse.client.download(self.photo), nio.DownloadError), "not yet a member"
        history = await self.nurse.client.room_messages(self.room, "", limit=5)
        assert isinstance(history, nio.RoomMessagesError) and history.status_code == "M_FORBIDDEN"

        # Only who is addressed gets mail: one each, one after the other.
        mails = len(self.smtp.mails)
        await self.mention(self.station, self.manager, f"{MANAGER}さん、{SURNAME}さんの{FINDING}をご確認ください。")
        mail = self.smtp.expect(MANAGERS_MAIL, subject="着信", room=self.number, since=mails)
        assert (mail.count, mail.rooms) == (1, {self.number})
        # The station's own turn comes after it in every queue: what was sent to it by mistake would have come by now.
        later = len(self.smtp.mails)
        await self.mention(self.staff, self.station, "ひばり訪問看護さん、お願いします。")
        mail = self.smtp.expect(STATIONS_MAIL, subject="着信", since=mails)
        assert (mail.count, mail.rooms) == (1, {self.number}) and mail in self.smtp.mails[later:]
        assert not self.smtp.of(MANAGERS_MAIL, room=self.number, since=later)

    async def mention(self, by: Seat, of: Seat, text: str) -> None:
        sent = await by.send(self.room, "m.room.message", {"msgtype": "m.text", "body": text, "m.mentions": {"user_ids": [of.id]}})
        assert isinstance(sent, nio.RoomSendResponse), sent

    # 7

    async def one_more_member(self) -> None:
        # First somebody who has no account, and must not have one.
        asked, mark = self.staff.mark, self.manager.mark
        await self.manager.say(self.room, f"{RELATIVE}さんを追加してください")
        await self.manager.hears(self.room, "市への依頼として受け付けました", mark)
        number, event = await self.case("メンバーの追加", asked)
        assert f"「{RELATIVE}」という利用者が見つかりません" in event["content"]["body"]
        await self.command(f"差し戻し {number} ご家族は参加できません", f"案件 {number} を差し戻しました")
        await self.manager.hears(self.room, f"（案件 {number}）は差し戻しになりました", mark)

        asked, mark = self.staff.mark, self.manager.mark
        await self.manager.say(self.room, f"{STATION}の{NURSE}さんを追加してください")
        await self.manager.hears(self.room, "市への依頼として受け付けました", mark)
        number, event = await self.case("メンバーの追加", asked)
        assert self.nurse.person.login_id in event["content"]["body"]
        await self.nurse.sync()
        assert self.room not in self.nurse.client.rooms, "nobody is added before the approval"
        reacted = await self.staff.send(self.control, "m.reaction", {
            "m.relates_to": {"rel_type": "m.annotation", "event_id": event["event_id"], "key": "✅"}})
        assert isinstance(reacted, nio.RoomSendResponse), reacted
        await self.manager.hears(self.room, f"完了しました（案件 {number}）", mark)
        assert await self.nurse.room_of(room_number=self.number) == self.room
        await self.nurse.say(self.room, f"看護師の{NURSE}です。")
        assert isinstance(await self.nurse.client.download(self.photo), nio.MemoryDownloadResponse)

    # 8

    async def a_notice(self) -> None:
        mark = self.station.mark
        await self.command(f"お知らせ 全員\n{NOTICE}", "届いた事業所：")
        event = await self.station.hears(self.announcement, NOTICE, mark)
        assert event["sender"] == self.city.city_user
        answer = await self.station.send(self.announcement, "m.room.message", {"msgtype": "m.text", "body": "参加します"})
        assert isinstance(answer, nio.RoomSendError) and answer.status_code == "M_FORBIDDEN"
        like = await self.station.send(self.announcement, "m.reaction", {
            "m.relates_to": {"rel_type": "m.annotation", "event_id": event["event_id"], "key": "👍"}})
        assert isinstance(like, nio.RoomSendResponse), like

    # 9

    async def a_terminal_is_lost(self) -> None:
        person, token = self.nurse.person, self.nurse.client.access_token
        listed = await self.command(f"一覧 端末 {person.login_id}", "・端末 ")
        (number,) = re.findall(r"^・端末 (\d+) ", listed, re.M)
        await self.nurse.sync()
        # A conversation that waits on its connection, as the phone's new finder would have it.
        poll = asyncio.create_task(self.nurse.client.sync(timeout=60_000, since=self.nurse.client.next_batch))
        await asyncio.sleep(0.5)  # let it be held
        assert not poll.done()
        began, mark = time.monotonic(), self.staff.mark
        await self.staff.say(self.control, f"端末失効 {number} 紛失")
        ended = (await asyncio.gather(asyncio.wait_for(poll, REVOKED_WITHIN), return_exceptions=True))[0]
        took = time.monotonic() - began
        assert not isinstance(ended, (TimeoutError, nio.SyncResponse)) and took < REVOKED_WITHIN, (ended, took)
        self.took["from the command to the end of the long poll"] = round(took, 2)
        await self.staff.hears(self.control, "終了したログイン：1", mark)
        lost = self.city.public(person.terminal)
        refused = lost.get("/_matrix/client/v3/account/whoami", token=token)
        assert refused.status == 403 and refused.json["jp.heya.certificate"] == "revoked"
        assert self.city.log_in(lost, person.login_id, person.password).status == 403
        other = self.city.public(self.station.person.terminal)
        assert other.get("/_matrix/client/v3/account/whoami", token=token).told == (401, "M_UNKNOWN_TOKEN")
        # The phone that replaces it: a new code, the same password.
        (sheet,) = sheets_in(await self.command(f"端末コード {person.login_id}", "票："))
        code = self.city.sheet(sheet)[0]
        self.secrets.append(code)
        person.terminal = Enrolment(self.city).through(person.login_id, person.password, code, None, label="訪問用スマートフォン2号")
        await self.nurse.client.close()
        self.everybody.remove(self.nurse)
        self.nurse = await self.seated(person)

    # 10

    async def the_room_is_closed(self) -> None:
        last = await self.station.say(self.room, "これまでありがとうございました。")
        mark = self.staff.mark
        await self.manager.say(self.room, "この部屋を終了してください")
        number, _ = await self.case("部屋の終了", mark)
        await self.command(f"承認 {number}", f"案件 {number} を完了しました")
        await self.manager.reads("the end of the room", lambda room, event: (
            room == self.room and event["type"] == "jp.heya.room" and event["content"]["status"] == "closed"))
        for seat in (self.manager, self.station, self.staff, self.nurse):
            await self.no_way_to_write(seat, last)
            history: list[str] = []
            start = ""
            while start is not None:
                page = await seat.client.room_messages(self.room, start, limit=100)
                assert isinstance(page, nio.RoomMessagesResponse), page
                history += [event.event_id for event in page.chunk]
                start = page.end if page.end != start else None
            assert {last, self.first_words} <= set(history)
            assert isinstance(await seat.client.download(self.photo), nio.MemoryDownloadResponse)
        as_city = self.city.as_city()
        assert as_city.put(f"/_matrix/client/v3/rooms/{quote(self.room)}/send/m.room.message/late", {
            "msgtype": "m.text", "body": "x"}).status == 403, "nor does the bot write"

    async def no_way_to_write(self, seat: Seat, last: str) -> None:
        client, room = seat.client, self.room
        uploaded, _ = await client.upload(lambda *_: io.BytesIO(PNG), content_type="image/png", filesize=len(PNG))
        replaced = {"msgtype": "m.text", "body": "* x", "m.new_content": {"msgtype": "m.text", "body": "x"},
                    "m.relates_to": {"rel_type": "m.replace", "event_id": self.first_words}}
        tries = {
            "a message": await seat.send(room, "m.room.message", {"msgtype": "m.text", "body": "まだ書けますか"}),
            "a photo": await seat.send(room, "m.room.message", {"msgtype": "m.image", "body": "x", "url": uploaded.content_uri}),
            "an edit": await seat.send(room, "m.room.message", replaced),
            "a reaction": await seat.send(room, "m.reaction", {
                "m.relates_to": {"rel_type": "m.annotation", "event_id": last, "key": "👍"}}),
            "another event": await seat.send(room, "jp.example.anything", {"a": 1}),
            "a redaction": await client.room_redact(room, self.first_words),
            "a topic": await client.room_put_state(room, "m.room.topic", {"topic": "x"}),
            "a name": await client.room_put_state(room, "m.room.name", {"name": "x"}),
            "a pin": await client.room_put_state(room, "m.room.pinned_events", {"pinned": [last]}),
            "power": await client.room_put_state(room, "m.room.power_levels", {"users": {seat.id: 100}}),
            "a name of one's own": await client.room_put_state(
                room, "m.room.member", {"membership": "join", "displayname": "x"}, state_key=seat.id),
            "typing": await client.room_typing(room, True, 5_000),
            "an invitation": await client.room_invite(room, self.staff.id),
            "a removal": await client.room_kick(room, self.station.id if seat is not self.station else self.staff.id),
            "a ban": await client.room_ban(room, self.station.id if seat is not self.station else self.staff.id),
        }
        told = {what: (one.transport_response.status, getattr(one, "status_code", None)) for what, one in tries.items()}
        assert not {what: answer for what, answer in told.items() if answer != (403, "M_FORBIDDEN")}, seat.person.login_id

    # 11

    async def the_log_is_proved(self) -> None:
        done = self.city.heya("audit", "verify")
        assert done.returncode == 0, done
        assert re.fullmatch(r"操作履歴は正しくつながっています\(\d{2,}件\)。\n", done.stdout), done.stdout
        done = self.city.heya("audit", "list", "--room", str(self.number))
        assert done.returncode == 0, done
        self.listing = done.stdout
        assert self.city.heya("audit", "verify").returncode == 0, "the reading is in the log, and the log is whole"
        self.whole_log = self.city.heya("audit", "list", "--limit", "100000").stdout


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def tale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    made = Tale(request.param, tmp_path_factory.mktemp("story"))
    yield made
    made.end()


@pytest.mark.timeout(600)
def test_the_story(tale: Tale):
    """All eleven steps; each checks what it tells."""
    tale.play()
    print(f"the story on {tale.database}, in seconds: {tale.took}")
    assert all(process.poll() is None for process in tale.city.processes.values()), "a process ended on the way"
    assert dict(tale.city.starts) == {"server": 1, "city": 1, "mail": 1}


def test_mails_name_nobody(tale: Tale):
    """The room's number is in them; the subject, the people and what was written are in no header and no body."""
    mails = tale.play().smtp.mails
    assert tale.smtp.logins >= 1 and len(mails) >= 6, mails
    people = [MANAGER, NURSE, STATION, OFFICE]
    for mail in mails:
        text = mail.everything()
        assert not leaks(text), mail
        assert not [name for name in people if name in text], mail
        assert mail.sender == "heya@city.example" and len(mail.to) == 1, mail
        assert mail.to[0] in (MANAGERS_MAIL, STATIONS_MAIL), mail
        assert re.fullmatch(r"<[!-~]+@[!-~]+>", mail.id) and mail.parsed["Auto-Submitted"] == "auto-generated"
        assert mail.parsed["Date"] and str(mail.parsed["From"]).endswith("heya@city.example")
    assert len({mail.id for mail in mails}) == len(mails), "no mail came twice"
    about_rooms = [mail for mail in mails if "確認" not in mail.subject]
    assert about_rooms and all("部屋番号：" in mail.body for mail in about_rooms)
    opening = [mail for mail in mails if "部屋の開設" in mail.subject]
    assert sorted((mail.to[0], mail.rooms) for mail in opening) == [
        (MANAGERS_MAIL, {tale.number}), (STATIONS_MAIL, {tale.number})], "one opening mail for each who has mail"
    links = [link for mail in mails for link in re.findall(r"https?://[^\s/]+", mail.body)]
    assert set(links) <= {tale.city.base, tale.city.enrol_base}, "no link leads elsewhere"


def test_no_log_names_anybody(tale: Tale):
    """Neither the subject nor a secret is in what the three processes log, in detail."""
    tale.play()
    for part in ("server", "city", "mail"):
        log = tale.city.log_of(part)
        assert len(log.splitlines()) > 3, f"{part} logged next to nothing"
        assert "DEBUG" in log or part != "server", "not in detail"
        assert not leaks(log), part
        assert not [secret for secret in tale.secrets if secret in log], f"{part}: a password, code or token"
        assert not [secret for secret in tale.secrets if secret.replace("-", "") in log], f"{part}: a code"
        for name in (MANAGER, NURSE, MANAGERS_MAIL, STATIONS_MAIL):
            assert name not in log, f"{part}: {name}"
        assert "panicked" not in log, part


def test_no_url_names_anybody(tale: Tale):
    """What server, bot and bridge requested of each other, heard on the wire."""
    tale.play()
    for ear in tale.city.ears:
        assert ear.lines, f"nothing was heard {ear.name}"
        for line in ear.lines:
            assert not [word for word in leaks(line) if word not in spellings([RELATIVE])], f"{ear.name}: {line}"
            assert not [secret for secret in tale.secrets if secret in line], ear.name
    heard = {ear.name: "\n".join(ear.lines) for ear in tale.city.ears}
    assert "PUT /_matrix/app/v1/transactions/" in heard["to the bot"]
    assert "POST /_matrix/push/v1/notify" in heard["to the bridge"]
    assert "POST /_heya/v1/rooms" in heard["to the server"] and "POST /_heya/v1/mail/lease" in heard["to the server"]
    assert "access_token" not in str(heard), "a token in a URL"


def test_no_url_holds_what_a_member_wrote(tale: Tale):
    """Whoever a member takes for a member of the network: a relative, or the subject."""
    tale.play()
    assert not [line for ear in tale.city.ears for line in ear.lines if leaks(line)]


def test_no_file_is_named_after_anybody(tale: Tale):
    tale.play()
    names = [str(path.relative_to(tale.city.data)) for path in tale.city.data.rglob("*")]
    assert any(name.startswith("media/") for name in names) and any(name.startswith("sheets/") for name in names)
    assert not [name for name in names if leaks(name)]


def test_what_is_searched_for_is_found_where_it_may_be(tale: Tale):
    """The searches above can find something: the database has the subject's name, and every spelling is a spelling."""
    tale.play()
    wanted = f"{SURNAME}さんの担当の{MANAGER}です。"
    assert leaks(json.dumps({"a": wanted})) and leaks(quote(wanted)) and leaks(base64.b64encode(wanted.encode()).decode())
    mail = Mail("a@b.example", ["c@d.example"], (
        "Subject: x\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n"
        + base64.b64encode(wanted.encode()).decode()).encode())
    assert leaks(mail.everything())
    assert tale.city.count(f"SELECT COUNT(*) FROM events WHERE CAST(pdu AS TEXT) LIKE '%{SURNAME}%'") > 0


def test_the_listing_tells_who_looked(tale: Tale):
    """`heya audit list --room N` (H17): each member by name and id, from which terminal, when, and what they did."""
    listing = tale.play().listing
    looked: dict[str, set[str]] = {}
    for row in listing.splitlines():
        if not re.search(r" room\.(opened|delivered) ", row):
            continue
        found = re.match(r" *\d+ \d{4}年\d+月\d+日 \d\d:\d\d (.*) room\.", row)
        assert found and re.search(r" 端末\d+ 証明書[0-9a-f]+ 127\.0\.0\.1 ", row), row
        who = re.search(r"@[a-z]+\d+:localhost:\d+", found[1])
        assert who, row
        looked.setdefault(who[0], set()).add(found[1])
    assert set(looked) == {seat.id for seat in tale.everybody}, "who looked at the subject"
    names = {tale.manager.id: MANAGER, tale.nurse.id: NURSE, tale.station.id: STATION, tale.staff.id: "市担当者"}
    for user, shown in looked.items():
        assert all(names[user] in one for one in shown), shown
    assert " room.open " in listing and " room.close " in listing
    assert not leaks(listing) and not leaks(tale.whole_log), "the log has the room's number, not the subject's name"
    assert "audit.read" in tale.whole_log, "reading the log is logged"


def test_tampering_is_found(tale: Tale):
    """`heya audit verify` fails where an entry was changed behind the server's back."""
    city = tale.play().city
    changed = ("UPDATE audit SET entry = REPLACE(entry, '\"action\":\"login\"', '\"action\":\"loved\"') "
               "WHERE seq = (SELECT MIN(seq) FROM audit WHERE entry LIKE '%\"action\":\"login\"%')")
    if city.postgres_name:
        Postgres.shared().query(changed, city.postgres_name)
    else:
        with contextlib.closing(sqlite3.connect(city.data / "heya.sqlite", timeout=20)) as connection, connection:
            assert connection.execute(changed).rowcount == 1
    done = city.heya("audit", "verify")
    assert done.returncode == 1 and "書き換えられています" in done.stdout, done


def test_each_process_stops_when_asked(tale: Tale):
    assert tale.play().city.stop() == 0
