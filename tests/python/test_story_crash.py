"""`kill -9` of server, city bot and e-mail bridge, each a process of its own, at random moments of the story and under
load (DESIGN 7, 15, 17, 18): what was acknowledged is there once for every reader; no case, room or notice twice or
never; no mail never, and none twice but as the same mail (its Message-ID).

Clients behave as clients do: they send again, with the same transaction id, until they are answered, and sync on from
their last token. 50 seeds are played on SQLite and 10 on PostgreSQL, in two cities at once: a killed process leaves a
processor idle. HEYA_SEEDS=200 plays as many on each; HEYA_SEED=17, or 3,17, plays those alone. A seed fixes who is
killed and after how long; what the machine does meanwhile it cannot fix.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import html
import http.client
import json
import os
import random
import re
import secrets
import shutil
import subprocess
import threading
import time
from typing import Any, Callable, Iterator

import pytest
import requests

from harness import Answer, Enrolment, Person, Server, quote
from parts import PARTS, City, Smtp, case_shown, login_id_in, sheets_in, today
from test_rooms import PNG

def seeds(usual: int) -> list[int]:
    if "HEYA_SEED" in os.environ:
        return [int(seed) for seed in os.environ["HEYA_SEED"].split(",")]
    return list(range(int(os.environ.get("HEYA_SEEDS", usual))))


STORIES = {"sqlite": seeds(50), "postgres": seeds(10)}
FIRST_STARTS = seeds(5)
CITIES = 2  # at once
WRITERS = 8
KILLS = 20  # of each seed at most: where the machine is busy, the story still comes to its end
PAUSE = 0.06  # of a writer between two messages, about as long as one takes: half of the writers wait for an answer at a kill
PATIENCE = 110.0  # longer than a lease that a killed bridge has left behind (60 s) and than every back-off
MENTION_EVERY = 10
FIRST_FILES = 22  # that a first start makes, folders counted
FILTER = json.dumps({"room": {"timeline": {"limit": 50}}})
V3 = "/_matrix/client/v3"


def named(seed: int) -> str:
    """Three characters for a seed, so that no name is a part of another."""
    return "".join("桜梅桃松竹菊蘭萩葛藤"[seed // power % 10] for power in (100, 10, 1))


@dataclasses.dataclass
class Trouble:
    """What went wrong beside the main thread, and what should not be answered."""

    errors: list[str] = dataclasses.field(default_factory=list)

    def check(self) -> None:
        assert not self.errors, self.errors[:5]


class Seat:
    """Somebody's client: it sends again until it is answered, and syncs on from where it was."""

    def __init__(self, person: Person, trouble: Trouble) -> None:
        self.person, self.trouble = person, trouble
        self.client = person.server.public(person.terminal, person.token)
        self.client.timeout = 15
        self.since: str | None = None
        self.seen: dict[str, list[dict]] = {}  # by room, in order
        self.known: set[str] = set()
        self.acknowledged: dict[str, dict[str, str]] = {}  # room → event id → body
        self.again = 0  # how often an answer did not come
        self._sent = 0

    @property
    def id(self) -> str:
        return self.person.user_id

    def call(self, method: str, path: str, body: Any = None, raw: bytes | None = None, **more: Any) -> Answer:
        """Calls until there is an answer."""
        end = time.monotonic() + PATIENCE
        while True:
            self.trouble.check()
            try:
                answer = self.client.request(method, path, json_body=body, body=raw, **more)
            except (OSError, http.client.HTTPException):
                self.again += 1
            else:
                if answer.status < 500:
                    return answer
                self.trouble.errors.append(f"{method} {path.split('?')[0]}: {answer}")
            assert time.monotonic() < end, f"{method} {path.split('?')[0]}: no answer"
            time.sleep(0.05)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = self.call(method, path, body, **more)
        assert answer.status == 200, f"{method} {path}: {answer}"
        return answer.json

    # Writing

    def send(self, room: str, kind: str, content: dict) -> Answer:
        self._sent += 1
        return self.call("PUT", f"{V3}/rooms/{quote(room)}/send/{kind}/{self.client.token[-6:]}-{self._sent}", content)

    def say(self, room: str, text: str, **content: Any) -> str:
        answer = self.send(room, "m.room.message", {"msgtype": "m.text", "body": text, **content})
        assert answer.status == 200, answer
        event = answer.json["event_id"]
        self.acknowledged.setdefault(room, {})[event] = text
        return event

    # Reading

    def pull(self, wait_ms: int = 0) -> None:
        query = {"timeout": wait_ms, "filter": FILTER} | ({"since": self.since} if self.since else {})
        body = self.ok("GET", f"{V3}/sync", query=query)
        for room, joined in body.get("rooms", {}).get("join", {}).items():
            timeline = joined["timeline"]
            events = timeline["events"]
            if timeline.get("limited") and self.since is not None:
                events = self._gap(room, timeline["prev_batch"]) + events
            seen = self.seen.setdefault(room, [])
            for event in [*joined.get("state", {}).get("events", []), *events]:
                if event["event_id"] not in self.known:
                    self.known.add(event["event_id"])
                    seen.append(event)
        self.since = body["next_batch"]

    def _gap(self, room: str, start: str | None) -> list[dict]:
        """What a sync left out: back to what is known."""
        events: list[dict] = []
        while start:
            page = self.ok("GET", f"{V3}/rooms/{quote(room)}/messages", query={"dir": "b", "limit": 100, "from": start})
            for event in page["chunk"]:
                if event["event_id"] in self.known and event.get("state_key") is None:
                    return events[::-1]
                events.append(event)
            start = page.get("end")
        return events[::-1]

    def until(self, what: str, fits: Callable[[str, dict], bool]) -> tuple[str, dict]:
        """Syncs until an event fits."""
        end = time.monotonic() + PATIENCE
        looked: collections.Counter[str] = collections.Counter()
        while True:
            for room, events in self.seen.items():
                for event in events[looked[room]:]:
                    if fits(room, event):
                        return room, event
                looked[room] = len(events)
            assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
            self.pull(1_000)

    def answered(self, room: str, about: str, text: str = "") -> dict:
        """Waits for the bot's reply to an event."""
        return self.until(f"an answer 「{text}」", lambda where, event: (
            where == room and event["sender"].startswith("@city:") and replies_to(event) == about
            and text in event["content"].get("body", "")))[1]

    def history(self, room: str) -> list[dict]:
        """All of a room, oldest first."""
        events: list[dict] = []
        start: str | None = ""
        while start is not None:
            page = self.ok("GET", f"{V3}/rooms/{quote(room)}/messages",
                           query={"dir": "f", "limit": 500} | ({"from": start} if start else {}))
            events += page["chunk"]
            start = page.get("end")
        return events

    def messages_seen(self, room: str) -> list[str]:
        return [event["event_id"] for event in self.seen.get(room, []) if event["type"] == "m.room.message"]


def replies_to(event: dict) -> str | None:
    return event["content"].get("m.relates_to", {}).get("m.in_reply_to", {}).get("event_id")


def body_of(event: dict) -> str:
    return event["content"].get("body", "") if event["type"] == "m.room.message" else ""


class Killer(threading.Thread):
    """Kills one process, or sometimes all of them, again and again, and starts it anew each time."""

    def __init__(self, city: City, chance: random.Random, trouble: Trouble) -> None:
        super().__init__(daemon=True)
        self.city, self.chance, self.trouble = city, chance, trouble
        self.kills: collections.Counter[str] = collections.Counter()
        self.stopping = threading.Event()

    def run(self) -> None:
        try:
            for _ in range(KILLS):
                if self.stopping.wait(self.chance.uniform(0.02, 0.6)):
                    break
                parts = self.chance.choice((*(["server"], ["city"], ["mail"]) * 3, list(PARTS)))
                for part in parts:
                    self.city.kill_part(part)
                    self.kills[part] += 1
                time.sleep(self.chance.choice((0.0, self.chance.uniform(0.0, 0.5))))
                for part in parts:
                    self.city.start_part(part)
        except BaseException as error:  # noqa: BLE001 (the main thread tells it)
            self.trouble.errors.append(f"after a kill: {error}")

    def stop(self) -> None:
        self.stopping.set()
        self.join(90)
        assert not self.is_alive()
        self.trouble.check()


class Writer(threading.Thread):
    """One message after the other, each until it is acknowledged; every tenth addresses somebody who has mail."""

    def __init__(self, seat: Seat, room: str, label: str, to: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.seat, self.room, self.label, self.to, self.stop = seat, room, label, to, stop

    def run(self) -> None:
        n = 0
        try:
            while not self.stop.wait(PAUSE):
                content = {"m.mentions": {"user_ids": [self.to]}} if n % MENTION_EVERY == 0 else {}
                self.seat.say(self.room, f"{self.label}-{n}", **content)
                n += 1
        except AssertionError as error:
            self.seat.trouble.errors.append(f"writer {self.label}: {error}")


class Reader(threading.Thread):
    """Somebody whose client is open all the time."""

    def __init__(self, seat: Seat, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.seat, self.stop = seat, stop

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.seat.pull(1_000)
        except AssertionError as error:
            self.seat.trouble.errors.append(f"reader: {error}")


class World:
    """The city, with the people who are there for all seeds. What is to be in rooms and mailboxes is written down while
    it is done, and counted at the end of each seed."""

    def __init__(self, database: str, folder) -> None:
        self.smtp = Smtp(folder / "smtp", slow=0.4)
        self.city = City(database, smtp=self.smtp, folder=folder / "city", env={"RUST_BACKTRACE": "1"})
        self.trouble = Trouble()
        city = self.city
        self.staff = Seat(city.first_staff(), self.trouble)
        office = city.facility("あおば居宅介護支援")
        self.manager = Seat(city.person(office, name="佐藤花子"), self.trouble)
        workers = [city.person(office, name=name) for name in ("鈴木一", "高橋二", "田中三", "伊藤四")]
        self.writers: list[Seat] = []
        for worker in workers * (WRITERS // len(workers)):
            seat = Seat(worker, self.trouble)
            # A session of its own: transaction ids are a session's.
            seat.client.token = city.log_in(seat.client, worker.login_id, worker.password).json["access_token"]
            self.writers.append(seat)
        self.reader = Seat(city.person(office, name="渡辺五"), self.trouble)
        self.readers_mail = "reader@office.example"
        self.mail_by_link(self.reader, self.readers_mail)
        self.staff.pull()
        self.control = city.look("control")["control_room"]
        self.announcement = city.look("control")["announcement_room"]
        self.direct = self.manager.ok("POST", f"{V3}/createRoom", {
            "invite": [city.city_user], "is_direct": True, "preset": "trusted_private_chat"})["room_id"]
        self.manager.until("the bot", lambda room, event: room == self.direct and "窓口です" in body_of(event))
        self.owed: collections.Counter[str] = collections.Counter()  # address → notices
        self.expected: dict[str, list[tuple[str, Callable[[dict], bool]]]] = {}  # room → what the bot is to write, once
        self.cases: set[int] = set()
        self.before: dict[str, set[str]] = {}

    # What is written down

    def once(self, room: str, what: str, fits: Callable[[dict], bool]) -> None:
        self.expected.setdefault(room, []).append((what, fits))

    def reply(self, room: str, about: str, text: str) -> None:
        self.once(room, f"「{text}」 to {about}", lambda event: replies_to(event) == about and text in body_of(event))

    def done(self, number: int) -> None:
        self.cases.add(number)
        self.once(self.control, f"case {number} done", lambda event: body_of(event).startswith(f"案件 {number} を完了しました"))

    # What people do

    def command(self, text: str, answer: str) -> str:
        """An order of the staff, which is a case at once; the bot's answer."""
        about = self.staff.say(self.control, text)
        told = body_of(self.staff.answered(self.control, about, answer))
        number = re.match(r"案件 (\d+) を完了しました", told)
        if number:
            self.done(int(number[1]))
        else:
            self.reply(self.control, about, answer)
        return told

    def case_of(self, room: str, about: str) -> tuple[int, dict]:
        """The case of a request: told to whoever asked, shown to the city, each once."""
        text = "市への依頼として受け付けました"
        receipt = self.manager.answered(room, about, text)
        self.reply(room, about, text)
        number = int(re.search(r"（案件 (\d+)）", body_of(receipt))[1])
        _, shown = self.staff.until(f"case {number}", lambda where, event: where == self.control and case_shown(event) == number)
        self.once(self.control, f"case {number} shown", lambda event: case_shown(event) == number)
        return number, shown

    def approve(self, number: int) -> None:
        self.staff.say(self.control, f"承認 {number}")
        self.finished(number)

    def finished(self, number: int) -> None:
        self.staff.until(f"the end of case {number}", lambda room, event: (
            room == self.control and body_of(event).startswith(f"案件 {number} を完了しました")))
        self.done(number)

    def enrol(self, person: Person, label: str) -> None:
        """Through the pages, however often they break off. Who cannot go on gets a new code from the city."""
        initial, code = self.city.secrets_of(person)
        own, words = f"Ume-{secrets.token_hex(4)}-37", [initial]
        end = time.monotonic() + PATIENCE
        while True:
            self.trouble.check()
            assert time.monotonic() < end, "an enrolment does not come to its end"
            pages = Enrolment(self.city)
            try:
                first = pages.begin(person.login_id, words[0], code)
                if first.status_code >= 500:
                    self.trouble.errors.append(f"enrolment, first page: {first.status_code}")
                if first.status_code == 200 and "/enrol/password" in first.url:
                    chosen = pages.choose(own if words[0] == initial else None, label=label)
                    if chosen.status_code == 200 and chosen.url.endswith("/enrol/done"):
                        person.terminal = pages.fetch()
                        person.password = own
                        return
                    continue
            except (requests.RequestException, AssertionError):
                time.sleep(0.05)
                continue
            # Refused: an earlier try has come through without its answer, and its code is used up. Another code from the
            # city; which password holds by now is not known either.
            if len(words) < 2:
                words = [own, initial]
                told = self.command(f"端末コード {person.login_id}", "票：")
                code = self.city.sheet(sheets_in(told)[0])[0]
            else:
                words = words[1:]

    def seated(self, person: Person) -> Seat:
        seat = Seat(person, self.trouble)
        body = {"type": "m.login.password", "password": person.password,
                "identifier": {"type": "m.id.user", "user": person.login_id}}
        person.token = seat.ok("POST", f"{V3}/login", body, token="")["access_token"]
        seat.client.token = person.token
        return seat

    def mail_by_link(self, seat: Seat, address: str) -> None:
        """An address and its pusher, as a client's settings add them."""
        secret, begun = secrets.token_urlsafe(18), len(self.smtp.mails)
        asked = seat.ok("POST", f"{V3}/account/3pid/email/requestToken",
                        {"client_secret": secret, "email": address, "send_attempt": 1})
        link = re.search(r"https://\S+token=\S+", self.smtp.expect(
            address, subject="メールアドレスの確認", since=begun, seconds=2 * PATIENCE).body)[0]
        browser = requests.Session()
        browser.verify, browser.trust_env = str(self.city.ca), False
        body = {"client_secret": secret, "sid": asked["sid"]}
        end = time.monotonic() + PATIENCE
        while not any(one["address"] == address for one in seat.ok("GET", f"{V3}/account/3pid")["threepids"]):
            assert time.monotonic() < end, f"{address} is not added"
            try:
                page = browser.get(link, timeout=10)
                fields = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', page.text))
                browser.post(link, data={name: html.unescape(value) for name, value in fields.items()}, timeout=10)
            except requests.RequestException:
                continue
            first = seat.call("POST", f"{V3}/account/3pid/add", body)
            if first.status == 401:
                auth = {"type": "m.login.password", "session": first.json["session"], "password": seat.person.password,
                        "identifier": {"type": "m.id.user", "user": seat.person.login_id}}
                seat.call("POST", f"{V3}/account/3pid/add", body | {"auth": auth})
        seat.ok("POST", f"{V3}/pushers/set", {
            "kind": "email", "app_id": "m.email", "pushkey": address, "app_display_name": "Email Notifications",
            "device_display_name": address, "lang": "ja", "data": {}, "append": True})

    # A seed

    def play(self, seed: int) -> dict:
        begun = time.monotonic()
        chance = random.Random(f"heya-{seed}")
        self.expected.clear()
        self.cases.clear()
        self.before = {room: {event["event_id"] for event in seat.history(room)} for room, seat in (
            (self.control, self.staff), (self.announcement, self.staff), (self.direct, self.manager))}
        readers = [*(seat.person for seat in self.writers[:4]), self.manager.person, self.reader.person]
        load = self.city.room(*readers, name=f"{named(seed)}の負荷の部屋")
        self.owed[self.readers_mail] += 1  # it was opened
        stop = threading.Event()
        threads: list[threading.Thread] = [
            Writer(seat, load, f"{named(seed)}{n}", self.reader.id, stop) for n, seat in enumerate(self.writers)]
        threads.append(Reader(self.reader, stop))
        killer = Killer(self.city, chance, self.trouble)
        for thread in threads:
            thread.start()
        killer.start()
        try:
            told = self._story(seed)
        finally:
            try:
                killer.stop()
            finally:
                stop.set()
                for thread in threads:
                    thread.join(PATIENCE)
        self.trouble.check()
        assert not any(thread.is_alive() for thread in threads)
        played = time.monotonic() - begun
        load_events = self._check_load(load)
        self._check_story(seed, *told)
        self._check_mail()
        verified = self.city.heya("audit", "verify")
        assert verified.returncode == 0, verified
        for part in ("server", "city", "mail"):
            assert "panicked" not in self.city.log_of(part), part
        return {"seed": seed, "story": round(played, 1), "checks": round(time.monotonic() - begun - played, 1),
                "kills": dict(killer.kills), "load": load_events}

    def _story(self, seed: int) -> tuple:
        """Steps 2 to 10."""
        k, city, staff, manager = named(seed), self.city, self.staff, self.manager
        facility, nurses_name, subject = f"{k}訪問看護", f"山川{k}子", f"見本{k}太郎"

        # 2, 3: a facility, its ID, a nurse; they enrol
        self.command(f"事業所登録 {facility} 訪問看護 誓約済", "事業所番号：")
        people = []
        for what in ("施設ID", f"{nurses_name} 看護師"):
            told = self.command(f"発行 {facility} {what} 誓約済", "票：")
            login_id = login_id_in(told)
            people.append(Person(city, f"@{login_id}:{city.server_name}", login_id, 0, sheets=sheets_in(told)))
        for person, label in zip(people, ("事務所のパソコン", "訪問用スマートフォン")):
            self.enrol(person, label)
        station, nurse = map(self.seated, people)
        address = f"station-{seed}@example.org"
        self.mail_by_link(station, address)

        # 5: consent, request, approval, room
        about = manager.say(self.direct, f"同意の報告\n対象者氏名：{subject}\n生年月日：昭和15年5月1日\n住所：〇〇市見本町1-2-3\n"
                            f"説明者：佐藤花子\n説明者の職種：ケアマネジャー\n説明日：{today()}\n①情報共有への同意：はい\n"
                            "②市が情報を取得することへの同意：はい")
        manager.answered(self.direct, about, "同意の報告を受け付けました")
        self.reply(self.direct, about, "同意の報告を受け付けました")
        self.once(self.control, "consent told", lambda event: "同意の報告がありました" in body_of(event) and subject in body_of(event))
        about = manager.say(self.direct, f"開設依頼\n対象者氏名：{subject}\n生年月日：昭和15年5月1日\n住所：〇〇市見本町1-2-3\n"
                            f"要件：①\nメンバー：{facility}、{staff.person.login_id}")
        number, shown = self.case_of(self.direct, about)
        assert "承認の前に確認が必要" not in body_of(shown), body_of(shown)
        self.approve(number)
        answer = body_of(manager.answered(self.direct, about, "部屋番号は "))
        self.reply(self.direct, about, "部屋番号は ")
        room_number = int(re.search(r"部屋番号は (\d+) です", answer)[1])
        room, _ = manager.until("the room", lambda _, event: (
            event["type"] == "jp.heya.room" and event["content"].get("room_number") == room_number))
        self.once(room, "opening notice", lambda event: "この部屋を開設しました" in body_of(event))
        self.owed[address] += 1

        # 6: everybody writes, with a photo; the station is addressed
        for n in range(3):
            manager.say(room, f"{k} 担当です {n}")
            staff.say(room, f"{k} 市です {n}")
        photo = PNG + secrets.token_bytes(500)
        stored = manager.call("POST", "/_matrix/media/v3/upload?filename=photo.png", headers={"Content-Type": "image/png"},
                              raw=photo)
        assert stored.status == 200, stored
        uploaded = stored.json["content_uri"]
        sent = manager.send(room, "m.room.message", {"msgtype": "m.image", "body": "photo.png", "url": uploaded})
        assert sent.status == 200, sent
        manager.say(room, f"{k} ひばりさん、ご確認ください", **{"m.mentions": {"user_ids": [station.id]}})
        self.owed[address] += 1

        # 7: one more member, approved by a reaction
        about = manager.say(room, f"{facility}の{nurses_name}さんを追加してください")
        number, shown = self.case_of(room, about)
        reacted = staff.send(self.control, "m.reaction", {
            "m.relates_to": {"rel_type": "m.annotation", "event_id": shown["event_id"], "key": "✅"}})
        assert reacted.status == 200, reacted
        self.finished(number)
        manager.answered(room, about, "完了しました")
        self.reply(room, about, "完了しました")
        nurse.until("the room", lambda where, event: where == room)
        nurse.say(room, f"{k} 看護師です")

        # 8: a notice to all
        notice = f"{k} 研修会のお知らせです。"
        self.command(f"お知らせ 全員\n{notice}", "届いた事業所：")
        self.once(self.announcement, "the notice", lambda event: body_of(event) == notice)
        station.until("the notice", lambda where, event: where == self.announcement and body_of(event) == notice)

        # 9: the nurse's terminal is lost (every one of them, where an enrolment had to be done again)
        poll = threading.Thread(target=self._poll_until_refused, args=(nurse,), daemon=True)
        poll.start()
        listed = self.command(f"一覧 端末 {nurse.person.login_id}", "・端末 ")
        for terminal in re.findall(r"^・端末 (\d+) [^\n]*有効", listed, re.M):
            self.command(f"端末失効 {terminal} 紛失", "終了したログイン：")
        poll.join(60)  # the server may have been away meanwhile
        assert not poll.is_alive(), "the long poll of a lost terminal goes on"

        # 10: the end
        about = manager.say(room, "この部屋を終了してください")
        number, _ = self.case_of(room, about)
        self.approve(number)
        self.once(room, "closing notice", lambda event: "この部屋を終了しました" in body_of(event))
        manager.until("the end", lambda where, event: (
            where == room and event["type"] == "jp.heya.room" and event["content"]["status"] == "closed"))
        for seat in (manager, staff, station):
            late = seat.send(room, "m.room.message", {"msgtype": "m.text", "body": "late"})
            assert late.told == (403, "M_FORBIDDEN"), late
        return room, room_number, subject, station, nurse, (uploaded, photo), address

    def _poll_until_refused(self, seat: Seat) -> None:
        client = self.city.public(seat.person.terminal, seat.client.token)
        while True:
            try:
                answer = client.get(f"{V3}/sync", query={"timeout": 30_000, "since": seat.since, "filter": FILTER})
                if answer.status != 200:
                    if answer.status not in (401, 403):
                        self.trouble.errors.append(f"a lost terminal's long poll: {answer}")
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)

    # What must hold at the end of each seed

    def _check_load(self, load: str) -> int:
        """Every acknowledged event once, with one order, for each reader; also for the one who synced all the time."""
        truth = self.reader.history(load)
        ids = [event["event_id"] for event in truth]
        assert len(set(ids)) == len(ids), "an event twice"
        for seat in [*self.writers[:4], self.manager]:
            assert [event["event_id"] for event in seat.history(load)] == ids, f"{seat.person.login_id} reads something else"
        there = {event["event_id"]: body_of(event) for event in truth if event["type"] == "m.room.message"}
        bodies = collections.Counter(there.values())
        assert not [body for body, count in bodies.items() if count > 1], "sent again and written twice"
        acknowledged: dict[str, str] = {}
        for seat in self.writers:
            acknowledged |= seat.acknowledged.pop(load, {})
        lost = {event: body for event, body in acknowledged.items() if there.get(event) != body}
        assert not lost, f"acknowledged and lost: {lost}"
        assert len(acknowledged) > 20, f"too little load: {len(acknowledged)}"
        self.reader.pull()
        assert self.reader.messages_seen(load) == list(there), "what the open client was shown"
        self.owed[self.readers_mail] += sum(
            self.reader.id in event["content"].get("m.mentions", {}).get("user_ids", []) for event in truth)
        return len(acknowledged)

    def _check_story(self, seed: int, room: str, number: int, subject: str, station: Seat, nurse: Seat,
                     photo: tuple[str, bytes], address: str) -> None:
        people = [self.staff, self.manager, station]
        truth = self.manager.history(room)
        ids = [event["event_id"] for event in truth]
        assert len(set(ids)) == len(ids)
        for seat in people:
            assert [event["event_id"] for event in seat.history(room)] == ids
            seat.pull()
            assert seat.messages_seen(room) == [event["event_id"] for event in truth if event["type"] == "m.room.message"]
            got = seat.call("GET", f"/_matrix/client/v1/media/download/{photo[0].removeprefix('mxc://')}")
            assert got.status == 200 and got.content == photo[1], "the photo"
        for seat in [*people, nurse]:
            for where, sent in seat.acknowledged.items():
                reader = self.manager if where in (room, self.direct) else self.staff
                there = {event["event_id"]: body_of(event) for event in reader.history(where)}
                lost = {event: body for event, body in sent.items() if there.get(event) != body}
                assert not lost, f"acknowledged and lost: {lost}"
            seat.acknowledged.clear()
        bodies = collections.Counter(body for event in truth if event["sender"] != self.city.city_user and (body := body_of(event)))
        assert set(bodies.values()) == {1}, f"written twice: {bodies}"

        # The bot: all of it once, and nothing else.
        for where, wanted in self.expected.items():
            seat = self.manager if where in (room, self.direct) else self.staff
            said = [event for event in seat.history(where) if event["sender"] == self.city.city_user
                    and event["type"] == "m.room.message" and event["event_id"] not in self.before.get(where, ())]
            left = list(said)
            for what, fits in wanted:
                found = [event for event in said if fits(event)]
                assert len(found) == 1, f"{what}: {len(found)} times, in {where} of seed {seed}"
                if found[0] in left:
                    left.remove(found[0])
            assert not left, f"the bot said more than it was to say: {[body_of(event) for event in left]}"
        numbers = sorted(self.cases)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), f"a case twice or lost: {numbers}"
        open_cases = self.staff.say(self.control, "案件")
        assert "未完了の案件はありません" in body_of(self.staff.answered(self.control, open_cases))

        # The room: one, with one coming in of each, one status after the other.
        rooms = self.city.look("rooms")["rooms"]
        assert [row["room_number"] for row in rooms if subject in row["name"]] == [number]
        every = [row["room_number"] for row in rooms]
        assert len(set(every)) == len(every)
        joins = collections.Counter(event["state_key"] for event in truth if event["type"] == "m.room.member"
                                    and event["content"]["membership"] == "join")
        assert joins == {seat: 1 for seat in (self.city.city_user, self.staff.id, self.manager.id, station.id, nurse.id)}
        notes = [event["content"]["status"] for event in truth if event["type"] == "jp.heya.room"]
        assert notes == ["open", "closed"], notes
        closed_at = max(n for n, event in enumerate(truth) if event["type"] == "jp.heya.room")
        assert not [event for event in truth[closed_at + 1:] if event["type"] == "m.room.message"
                    and event["sender"] != self.city.city_user], "written after the end"

        # The lost terminal stays lost.
        assert nurse.call("GET", f"{V3}/account/whoami").told[0] == 403
        assert len({mail.id for mail in self.smtp.of(address, subject="確認")}) == 1, "one mail with one link"

    def _check_mail(self) -> None:
        """Every notice in one mail; a mail that came again is the same mail."""
        def counted() -> collections.Counter[str]:
            mails = {mail.id: mail for mail in list(self.smtp.mails) if "確認" not in mail.subject}
            told: collections.Counter[str] = collections.Counter()
            for mail in mails.values():
                told[mail.to[0]] += len(mail.rooms) if "部屋の開設" in mail.subject else mail.count
            return told

        end = time.monotonic() + PATIENCE
        while counted() != self.owed and time.monotonic() < end:
            assert not counted() - self.owed, f"told too often: {counted() - self.owed}"
            time.sleep(0.1)
        assert counted() == self.owed, f"missing: {self.owed - counted()}, too many: {counted() - self.owed}"
        copies: dict[str, set[bytes]] = {}
        for mail in list(self.smtp.mails):
            copies.setdefault(mail.id, set()).add(mail.raw)
        differing = [id_ for id_, raws in copies.items() if len(raws) > 1]
        assert not differing, "one Message-ID on two different mails"


def play_all(world: World, waiting: Iterator[int], broken: threading.Event) -> tuple[int, collections.Counter[str]]:
    """Plays seeds in a city until there are no more, and looks at it once more at rest; how many, and who was killed."""
    kills: collections.Counter[str] = collections.Counter()
    played = 0
    try:
        for seed in waiting:
            if broken.is_set():
                return played, kills
            try:
                done = world.play(seed)
            except BaseException:
                print(f"seed {seed} on {world.city.database} failed: HEYA_SEED={seed} plays it alone")
                raise
            played += 1
            kills.update(done["kills"])
            print(f"{world.city.database}: {done}", flush=True)
        # Once more all of them, at rest; nothing happens that was not to happen.
        world.city.kill()
        world.city.start()
        assert world.city.heya("audit", "verify").returncode == 0
        time.sleep(1.5)  # longer than the digest: what would come again has come
        world._check_mail()
        assert world.city.stop() == 0
        return played, kills
    except BaseException:
        broken.set()
        raise


class Waiting:
    """Seeds that several cities take one by one."""

    def __init__(self, some: list[int]) -> None:
        self._left, self._lock = iter(some), threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._left)


@pytest.mark.timeout(max(600, 180 + 60 * max(map(len, STORIES.values()))))
def test_kill_every_part_during_the_story(database: str, tmp_path):
    mine = STORIES[database]
    begun = time.monotonic()
    worlds: list[World] = []
    try:
        # One after the other: the next one's ports are not those of a process that is just dead.
        for n in range(min(CITIES, len(mine))):
            worlds.append(World(database, tmp_path / str(n)))
        waiting, broken = Waiting(mine), threading.Event()
        with concurrent.futures.ThreadPoolExecutor(len(worlds)) as pool:
            playing = [pool.submit(play_all, world, waiting, broken) for world in worlds]
        played = [one.result() for one in playing]
        kills = sum((kills for _, kills in played), collections.Counter())
        resent = sum(seat.again for world in worlds for seat in [*world.writers, world.staff, world.manager])
        mails = sum(len(world.smtp.mails) for world in worlds)
        twice = mails - sum(len({mail.id for mail in world.smtp.mails}) for world in worlds)
        print(f"{database}: {len(mine)} seeds in {time.monotonic() - begun:.0f} s, kills {dict(kills)}, {resent} calls sent "
              f"again, {mails} mails, {twice} of them a second time")
        assert sum(count for count, _ in played) == len(mine)
        assert resent > 0 and set(kills) == {"server", "city", "mail"}, "too little was killed"
    finally:
        for world in worlds:
            world.city.remove()
            world.smtp.stop()


class Early(Server):
    """A server that is killed during its first start: when so many files have been made, and some milliseconds later."""

    def __init__(self, database: str, files: int, after: float, folder) -> None:
        self.files, self.after = files, after
        super().__init__(database, folder=folder)

    def start(self) -> None:
        if self.files:
            with open(self.folder / "log", "ab") as log:
                first = subprocess.Popen(self.command("serve", "--server-only"), stdout=log, stderr=log, cwd=self.folder)
            end = time.monotonic() + 5
            while sum(1 for _ in self.data.rglob("*")) < self.files and time.monotonic() < end:
                assert first.poll() is None, self.log()
            time.sleep(self.after)
            first.kill()
            first.wait()
            self.files = 0
        super().start()


@pytest.mark.parametrize("pair", ["ca", "server"])
def test_killed_between_two_files(pair, fresh):
    """The folder as such a kill leaves it: the CA's certificate without its key, which is written last; or a server's key
    without its certificate."""
    city = fresh()
    city.stop()
    if pair == "server":
        # The very last of a first start.
        (city.data / "keys" / "server.pem").unlink()
    else:
        # Among the very first.
        certificate = (city.data / "keys" / "ca.pem").read_bytes()
        shutil.rmtree(city.data)
        (city.data / "keys").mkdir(parents=True, mode=0o700)
        city.data.chmod(0o700)
        (city.data / "keys" / "ca.pem").write_bytes(certificate)
    city.start()
    city.first_staff().client.sync()


@pytest.mark.timeout(max(600, 60 + 20 * len(FIRST_STARTS)))
def test_killed_in_its_first_start(database: str, tmp_path):
    """A city begins whole or anew: its first member of staff can enrol from the sheets that are there."""
    for seed in FIRST_STARTS:
        chance = random.Random(f"first-{seed}")
        files, after = chance.randint(1, FIRST_FILES), chance.choice((0.0, chance.uniform(0.0, 0.05)))
        server = Early(database, files, after, tmp_path / str(seed))
        try:
            sheets = sorted(path.name for path in (server.data / "sheets").iterdir())
            left_over = [name for name in sheets if not name.endswith(".html")]
            assert not left_over, left_over
            passwords = [name for name in sheets if name.endswith("-password.html")]
            codes = [name for name in sheets if name.endswith("-code.html")]
            assert len(passwords) == len(codes) == 1, f"killed at file {files} and {after:.3f} s: which sheets are to be used? {sheets}"
            staff = server.first_staff()
            control = server.look("control")
            assert control["staff"] == [staff.user_id]
            state = staff.client.ok("GET", f"{V3}/rooms/{quote(control['control_room'])}/state")
            assert any(event["type"] == "m.room.power_levels" for event in state)
            staff.client.say(control["control_room"], "はじめまして")
            verified = subprocess.run(server.command("audit", "verify"), capture_output=True, text=True, cwd=server.folder, check=False)
            assert verified.returncode == 0, verified
        finally:
            server.remove()


def test_a_lost_ca_key_is_no_first_start(fresh):
    """Where terminals have certificates, a new CA would lock all of them out: the start says what is missing."""
    city = fresh()
    city.person()
    city.stop()
    key = (city.data / "keys" / "ca.key").read_bytes()
    (city.data / "keys" / "ca.key").unlink()
    done = subprocess.run(city.command("serve"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "ca.key is missing" in done.stderr, done
    (city.data / "keys" / "ca.key").write_bytes(key)
    (city.data / "keys" / "ca.key").chmod(0o600)
    city.start()
    city.first_staff().client.sync()
