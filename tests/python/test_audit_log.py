"""What an operator reads in the audit log (DESIGN 19; REQUIREMENTS C21–C23): settings that changed between two starts,
who looked at a room how often from which terminal, and the newest end of a long log."""

from __future__ import annotations

import dataclasses
import re
import secrets
import subprocess

import pytest

from harness import Client, Person, Server, quote, wait_for
from test_room_life import Desk

C = "/_matrix/client/v3"
R = f"{C}/rooms/"
ENTRY = re.compile(r" *(?P<seq>\d+) (?P<at>\d+年\d+月\d+日 \d\d:\d\d) (?P<who>.+?) (?P<action>[a-z_]+\.?[a-z_.]*) (?P<result>[a-z]+)"
                   r" 端末(?P<terminal>\d+|-) 証明書(?P<certificate>\S+) (?P<address>\S+) (?P<target>\S*) (?P<detail>.*)")
MARK = re.compile(r"\d+年\d+月\d+日 \d\d:\d\d (?P<name>.*) \((?P<user>@\S+)\) 端末(?P<terminal>\d+|-) (?P<what>配信|開封) (?P<looks>\d+)回")


@dataclasses.dataclass
class Listing:
    """What `heya audit list` printed."""

    text: str

    @property
    def entries(self) -> list[dict[str, str]]:
        rows = []
        for line in self.text.split("\n\n")[0].splitlines():
            found = ENTRY.fullmatch(line)
            assert found, f"no entry: {line!r}"
            rows.append(found.groupdict())
        return rows

    @property
    def marks(self) -> dict[tuple[str, str, str], int]:
        """How often, by (user, terminal, what)."""
        head = "閲覧のまとめ(端末ごと。配信 = 端末に届いた、開封 = 既読・履歴・検索・ファイル)"
        if head not in self.text:
            return {}
        found = [MARK.fullmatch(line) for line in self.text.split(head)[1].strip().splitlines()]
        assert all(found), self.text
        rows = {(one["user"], one["terminal"], one["what"]): int(one["looks"]) for one in found}
        assert len(rows) == len(found), "one line for each"
        return rows

    def of(self, action: str, person: Person | None = None) -> list[dict[str, str]]:
        return [row for row in self.entries
                if row["action"] == action and (person is None or f"({person.user_id})" in row["who"])]


def listed(server: Server, *words: str) -> Listing:
    done = subprocess.run(server.command("audit", "list", *words), capture_output=True, text=True, timeout=60, cwd=server.folder)
    assert done.returncode == 0, done.stderr
    return Listing(done.stdout)


def of_room(server: Server, room: str, limit: int | None = 1000) -> Listing:
    number = server.look(f"rooms/{quote(room)}")["room_number"]
    return listed(server, "--room", str(number), *(["--limit", str(limit)] if limit else []))


def read_receipt(client: Client, room: str, event: str) -> None:
    client.ok("POST", f"{R}{quote(room)}/receipt/m.read/{quote(event)}", {})


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def logged(request: pytest.FixtureRequest):
    """A city of its own, which these tests stop and start."""
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    server = Server(request.param)
    server.crew = [server.person(name=f"閲覧{n}{secrets.token_hex(2)}") for n in range(2)]
    yield server
    server.remove()


# Settings ------------------------------------------------------------------------------------------------------------


def test_the_start_after_a_change_of_settings_records_it(logged: Server):
    """C23: exactly what changed, old and new; a start that changes nothing records nothing."""

    def changes() -> list[tuple[str, str, str]]:
        return [(row["who"], row["target"], row["detail"]) for row in listed(logged, "--limit", "5000").of("settings.change")]

    def started_with(policy: dict, limits: dict) -> list[tuple[str, str, str]]:
        logged.stop()
        logged.overrides = {"policy": policy, "limits": limits}
        logged._write_config()
        logged.start()
        return changes()

    before = changes()
    assert before == [("server", "", "first start")], "what the first start has is no change"
    assert started_with({}, {}) == before
    after = started_with({"lockout_minutes": 20}, {"upload_bytes": 1_000_000})
    assert sorted(after[1:]) == [("server", "limits.upload_bytes", "52428800 → 1000000"),
                                 ("server", "policy.lockout_minutes", "15 → 20")]
    # What the file leaves out is its default again.
    last = started_with({"lockout_minutes": 20}, {})
    assert last[:3] == after and last[3:] == [("server", "limits.upload_bytes", "1000000 → 52428800")]


@pytest.mark.parametrize("what", ["a setting", "a reason"])
def test_what_has_several_lines_is_one_line_of_the_listing(what: str, fresh):
    """A line of the listing is an entry: nobody writes one by what they give as a reason."""
    server = fresh()
    if what == "a setting":
        server.stop()
        server.overrides = {"city": {"contact": "〇〇市 別の課\n電話 0000-00-9999"}}
        server._write_config()
        server.start()
        action, word = "settings.change", "0000-00-9999"
    else:
        forged = f"訴訟\n     1 2026年1月1日 00:00 somebody ({server.city_user}) room.purge ok 端末9 証明書- - - 偽の行"
        room = server.room(server.person())
        server.act(f"rooms/{quote(room)}/hold", {"case": "audit-2", "reason": forged})
        action, word = "room.hold", "偽の行"
    told = listed(server, "--limit", "5000")
    lines = [line for line in told.text.splitlines() if word in line]
    assert len(lines) == 1 and f" {action} ok " in lines[0], lines


def test_a_new_password_of_the_database_is_no_entry(fresh, postgres):
    """The usual form, `user:password@host`; what stands behind `?` is in test_review2.py."""
    name = postgres.create()
    url, old, new = postgres.database_url(name), f"geheim{secrets.token_hex(4)}", f"geheim{secrets.token_hex(4)}"
    scheme, rest = url.split("://")
    user, host = rest.split("@")
    assert ":" not in user, "the test database is reached without a password"
    server = fresh(config={"server": {"database_url": f"{scheme}://{user}:{old}@{host}"}})
    try:
        server.stop()
        server.overrides["server"]["database_url"] = f"{scheme}://{user}:{new}@{host}"
        server.overrides["policy"] = {"lockout_minutes": 20}
        server._write_config()
        server.start()
        told = listed(server, "--limit", "5000")
        assert [row["target"] for row in told.of("settings.change")] == ["", "policy.lockout_minutes"]
        kept = postgres.query("SELECT entry FROM audit", name) + postgres.query("SELECT value FROM meta", name) + server.log()
        assert "policy.lockout_minutes" in kept
        assert not [secret for secret in (old, new) if secret in kept or secret in told.text]
    finally:
        server.remove()
        postgres.drop(name)


# Who looked ----------------------------------------------------------------------------------------------------------


def test_further_looks_are_counted_beside_the_log(logged: Server):
    """C21: of an hour's looks the first is an entry, before the answer goes out; the others advance a mark."""
    writer, reader = logged.crew
    room = logged.room(writer, reader)
    number = str(logged.terminal_number(reader))
    since = reader.client.sync()["next_batch"]

    def looks(deliveries: int, openings: int) -> None:
        nonlocal since
        for n in range(deliveries):
            writer.client.say(room, f"記録 {n}")
            synced = reader.client.sync(since)
            assert room in synced["rooms"]["join"], synced
            since = synced["next_batch"]
        for _ in range(openings):
            reader.client.ok("GET", f"{R}{quote(room)}/messages", query={"dir": "b", "limit": 1})

    def entries(action: str) -> int:
        return len(of_room(logged, room).of(action, reader))

    assert entries("room.delivered") == 1 and entries("room.opened") == 0
    looks(0, 1)
    assert entries("room.opened") == 1, "the first look of the hour"
    looks(3, 2)
    assert (entries("room.delivered"), entries("room.opened")) == (1, 1), "further looks of the hour are no entries"

    logged.restart()
    key_delivered, key_opened = (reader.user_id, number, "配信"), (reader.user_id, number, "開封")
    told = of_room(logged, room)
    assert (told.marks[key_delivered], told.marks[key_opened]) == (4, 3)
    line = next(line for line in told.text.splitlines() if f"({reader.user_id}) 端末{number} 開封" in line)
    assert reader_name(logged, reader) in line, "a person is shown by name"

    # Another terminal of the same person has a line of its own; opening by a receipt counts as well.
    second = reader.log_in(logged.further_terminal(reader))
    other = max(row["terminal"] for row in logged.look(f"accounts/{quote(reader.user_id)}/terminals")["terminals"])
    assert str(other) != number
    event = writer.client.say(room, "もう一台でも読みます")
    second.sync()
    read_receipt(second, room, event)
    second.close()
    looks(2, 1)
    logged.restart()
    marks = of_room(logged, room).marks
    assert (marks[key_delivered], marks[key_opened]) == (6, 4), "marks go on where they stood"
    assert (marks[reader.user_id, str(other), "配信"], marks[reader.user_id, str(other), "開封"]) == (1, 1)
    # What somebody wrote is not what they read.
    assert not [key for key in marks if key[0] == writer.user_id and key[2] == "開封"], marks


def reader_name(server: Server, person: Person) -> str:
    return person.client.ok("GET", f"{C}/profile/{quote(person.user_id)}")["displayname"]


def test_the_newest_entries_of_a_room_with_names_and_certificates(logged: Server):
    """`--limit` (200 where it is left out) cuts off the oldest; people stand by name and id, with terminal and certificate."""
    staff, (a, b) = logged.first_staff(), logged.crew
    room = logged.room(a, b)
    row = next(row for row in logged.look(f"accounts/{quote(a.user_id)}/terminals")["terminals"]
               if row["terminal"] == logged.terminal_number(a))
    a.client.messages(room)
    b.client.messages(room)
    logged.act(f"rooms/{quote(room)}/members", {"case": "audit-1", "add": [staff.user_id]}, acting=staff.user_id)
    whole = of_room(logged, room).entries
    assert [int(entry["seq"]) for entry in whole] == sorted(int(entry["seq"]) for entry in whole), "oldest first"
    assert whole[0]["action"] == "room.open" and whole[-1]["action"] == "room.members" and len(whole) > 3

    (opened,) = [entry for entry in whole if entry["action"] == "room.opened" and a.user_id in entry["who"]]
    assert opened["who"] == f"{reader_name(logged, a)} ({a.user_id})", "name and id"
    assert (opened["terminal"], opened["certificate"], opened["address"]) == (str(row["terminal"]), row["serial"], "127.0.0.1")
    by_staff = [entry for entry in whole if staff.user_id in entry["who"]]
    assert by_staff and all(entry["who"] == f"{reader_name(logged, staff)} ({staff.user_id})" for entry in by_staff), whole

    assert of_room(logged, room, limit=3).entries == whole[-3:], "the newest, and still oldest first"
    assert of_room(logged, room, limit=1).entries == whole[-1:]
    # 200 where no limit is named. The quickest entries about one room: a hold and its end.
    for n in range(103):
        logged.act(f"rooms/{quote(room)}/hold", {"case": "audit-3", "reason": f"理由 {n}"})
        logged.act(f"rooms/{quote(room)}/release", {"case": "audit-3", "reason": f"終結 {n}"})
    long, usual = of_room(logged, room).entries, of_room(logged, room, limit=None).entries
    assert len(long) == len(whole) + 206 and len(usual) == 200
    assert usual == long[-200:] and usual[-1]["action"] == "room.hold.end" and "終結 102" in usual[-1]["detail"]
    # All of the log: the newest is this reading, and the one before it was of the room (C24).
    (newest,) = listed(logged, "--limit", "1").entries
    assert newest["action"] == "audit.read"
    of_room(logged, room, limit=1)
    number = logged.look(f"rooms/{quote(room)}")["room_number"]
    before, _ = listed(logged, "--limit", "2").entries
    assert (before["action"], f"{before['target']} {before['detail']}".strip()) == ("audit.read", f"room {number}")


# What staff do by a word to the bot ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def desk(request: pytest.FixtureRequest):
    """A city with its bot, and somebody at the control room with two terminals."""
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    server = Server(request.param, bot=True)
    desk = Desk(server)
    terminal = server.further_terminal(desk.staff)
    server.second = Person(server, desk.staff.user_id, desk.staff.login_id, 0, desk.staff.password, terminal)
    server.second._client = desk.staff.log_in(terminal)
    yield desk
    server.remove()


def stood(server: Server, person: Person) -> tuple[str, str, str]:
    """Terminal, certificate and address of a person's client, as the listing has them."""
    serial = person.terminal.cert.stem
    row = next(row for row in server.look("terminals")["terminals"] if int(row["serial"], 16) == int(serial, 16))
    return str(row["terminal"]), row["serial"], "127.0.0.1"


def place(row: dict[str, str]) -> tuple[str, str, str]:
    return row["terminal"], row["certificate"], row["address"]


def test_a_word_to_the_bot_is_logged_with_its_terminal(desk: Desk):
    """C22: the terminal, certificate and address that a command came from, as those of any other action."""
    server, staff = desk.server, desk.staff
    room = server.room(*desk.people)
    n = desk.number(room)
    first, second = stood(server, staff), stood(server, server.second)
    assert first[:2] != second[:2]
    desk.say(f"法的保全 {n} 訴訟のため", "完了")
    desk.say(f"保全解除 {n} 終結したため", "完了", person=server.second)
    told = of_room(server, room)
    (hold,), (end,) = told.of("room.hold", staff), told.of("room.hold.end", staff)
    assert place(hold) == first and place(end) == second
    # Somebody else's terminal is the one that an action is about, not the one it came from.
    gone = server.person()
    number = server.terminal_number(gone)
    desk.say(f"端末失効 {number} 紛失", "完了", person=server.second)
    (revoked,) = [row for row in listed(server, "--limit", "20").of("terminal.revoke", staff) if row["target"] == "terminal"
                  and row["detail"].startswith(f"{number} ")] or [None]
    assert revoked and place(revoked) == second, listed(server, "--limit", "20").text


def test_an_approval_is_logged_with_the_terminal_of_who_approved(desk: Desk):
    """By a reaction, from another terminal than the command: whoever approves acts."""
    server, staff = desk.server, desk.staff
    room = server.room(*desk.people)
    n = desk.number(room)
    desk.say(f"終了 {n}", "完了")
    shown = desk.say(f"保管 {n}", "承認")
    notice = next(event for event in staff.client.messages(desk.control) if event["content"].get("body") == shown)
    server.second.client.ok("PUT", f"{R}{quote(desk.control)}/send/m.reaction/approve-{n}", {
        "m.relates_to": {"rel_type": "m.annotation", "event_id": notice["event_id"], "key": "✅"}})
    wait_for(lambda: server.look(f"rooms/{quote(room)}")["status"] == "archived", 20, 0.1, "the approval")
    told = of_room(server, room)
    (closed,), (archived,) = told.of("room.close", staff), told.of("room.archive", staff)
    assert place(closed) == stood(server, staff) and place(archived) == stood(server, server.second)


def test_a_terminal_that_is_gone_is_still_known(desk: Desk):
    """The session had ended and the certificate was revoked before the order was carried out."""
    server, staff = desk.server, desk.staff
    room = server.room(*desk.people)
    terminal = server.further_terminal(staff)
    lost = Person(server, staff.user_id, staff.login_id, 0, staff.password, terminal)
    lost._client = staff.log_in(terminal)
    before = stood(server, lost)
    word = lost.client.say(desk.control, "この行は何でもない")
    lost.client.ok("POST", f"{C}/logout", {})
    server.revoke(int(before[0]))
    because = {"Because": word}
    body = {"case": "audit-9", "reason": "訴訟", "acting": staff.user_id}
    path = f"/_heya/v1/rooms/{quote(room)}/hold"
    done = server.internal.post(path, body, headers={"Idempotency-Key": secrets.token_hex(8)} | because)
    assert done.status == 200, done
    assert place(of_room(server, room).of("room.hold", staff)[0]) == before
    # Nobody acts by another's word, by none, or by what is no event.
    other = desk.people[0].client.say(room, "これは別の人の投稿")
    for event, status in ((other, 403), ("$none", 403), ("none", 400), ("$" + "x" * 300, 400)):
        refused = server.internal.post(path, body, headers={"Idempotency-Key": secrets.token_hex(8), "Because": event})
        assert refused.status == status, (event, refused)


def test_in_another_room_the_terminal_is_known_while_it_is_logged_in(desk: Desk):
    """What everybody may tell the bot about themselves, wherever it is: no place is kept with those posts."""
    server = desk.server
    member = server.person()
    direct = member.client.ok("POST", f"{C}/createRoom", {"is_direct": True, "invite": [server.city_user]})["room_id"]
    members = f"{R}{quote(direct)}/joined_members"
    wait_for(lambda: server.city_user in member.client.ok("GET", members)["joined"], 20, 0.2, "the city")
    desk.say("メール通知 すべて", "メール通知", person=member, room=direct)
    (chosen,) = [row for row in listed(server, "--limit", "20").entries if row["action"] == "mail.scope"]
    assert place(chosen) == (stood(server, member)[0], "-", "-")


# What was edited or redacted, for an auditor (C26) --------------------------------------------------------------------


def originals(server: Server, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(server.command("audit", "originals", *words), capture_output=True, text=True, timeout=60,
                          cwd=server.folder)


def test_an_auditor_reads_every_version(logged: Server):
    """Who wrote, edited and redacted what and when, in a closed room too; the reading is in the log with its reason."""
    a, b = logged.crew
    room = logged.room(a, b)
    number = str(logged.look(f"rooms/{quote(room)}")["room_number"])
    none = originals(logged, "--room", number, "--reason", "年次監査")
    assert none.returncode == 0 and "訂正または取り消された投稿はありません" in none.stdout, none

    untouched, first, second, third = (f"記載{n}{secrets.token_hex(4)}" for n in range(4))
    kept = a.client.say(room, untouched)
    edited = a.client.say(room, first)
    new = {"msgtype": "m.text", "body": f"{second}\n        9. $forged の行", "format": "org.matrix.custom.html",
           "formatted_body": "<b>50mg</b>\u202e"}
    edit = a.client.say(room, f"* {second}", **{"m.new_content": new,
                                              "m.relates_to": {"rel_type": "m.replace", "event_id": edited}})
    b.client.say(room, "別人の訂正", **{"m.new_content": {"msgtype": "m.text", "body": "別人の訂正"},
                                   "m.relates_to": {"rel_type": "m.replace", "event_id": kept}})
    taken = b.client.say(room, third)
    b.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(taken)}/t1", {"reason": "宛先違い\nでした"})
    a.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(edit)}/t2", {})
    logged.close_room(room)

    done = originals(logged, "--room", number, "--reason", "年次監査 2回目")
    assert done.returncode == 0, done.stderr
    head, *posts = re.split(r"\n\n\d+\. (?=\$)", done.stdout)
    assert head == f"部屋番号{number}で訂正または取り消された投稿: 2件", done.stdout
    when = r"\d+年\d+月\d+日 \d\d:\d\d"
    by_a, by_b = (re.escape(f"{reader_name(logged, person)} ({person.user_id})") for person in (a, b))
    assert re.fullmatch(rf"""{re.escape(edited)}
   {when} 投稿 {by_a}
   │ {first}
   {when} 訂正 {by_a}
   │ {second}
   │ {" " * 8}9. \$forged の行
   │ （書式つき）<b>50mg</b>␣
   {when} 取消 {by_a}""", posts[0]), posts[0]
    assert re.fullmatch(rf"""{re.escape(taken)}
   {when} 投稿 {by_b}
   │ {third}
   {when} 取消 {by_b} 理由: 宛先違い␤でした\n""", posts[1]), posts[1]
    assert untouched not in done.stdout, "what everybody reads is not repeated"

    readings = of_room(logged, room).of("originals.read")
    assert [entry["detail"] for entry in readings] == ["年次監査", "年次監査 2回目"]
    assert all(entry["who"] == "command" for entry in readings)


def test_originals_are_read_for_a_reason(logged: Server):
    """No reason, too long a one, or no such room: refused, nothing shown, nothing logged."""
    a, b = logged.crew
    room = logged.room(a, b)
    number = str(logged.look(f"rooms/{quote(room)}")["room_number"])
    for words in (("--room", number), ("--room", number, "--reason", " "), ("--room", number, "--reason", "あ" * 501),
                  ("--room", "99999", "--reason", "監査"), ("--reason", "監査")):
        done = originals(logged, *words)
        assert done.returncode != 0 and done.stderr and not done.stdout, (words, done)
    assert not of_room(logged, room).of("originals.read")
    assert logged.act("audit/originals", {"room": 99999, "reason": "x"}, expect=None).told == (404, "M_NOT_FOUND")
    assert logged.act("audit/originals", {"room": int(number)}, expect=None).told == (400, "M_MISSING_PARAM")
    assert logged.act("audit/originals", {"room": int(number), "reason": "あ" * 501}, expect=None).told == (400, "M_INVALID_PARAM")


def test_who_may_do_what_is_changed(fresh):
    """C23: a change of a room's permissions is in the log with who, terminal and what; what changes nothing is not."""
    server = fresh(config={"policy": {"create_rooms": "everybody"}})
    a = server.person()
    room = a.client.ok("POST", f"{C}/createRoom", {"name": "院内の部屋"})["room_id"]
    state = f"{R}{quote(room)}/state/"
    levels = a.client.state(room, "m.room.power_levels")
    for _ in range(2):
        a.client.ok("PUT", f"{state}m.room.power_levels", levels | {"events_default": 10})
    a.client.ok("PUT", f"{state}m.room.history_visibility", {"history_visibility": "joined"})
    a.client.ok("PUT", f"{state}m.room.topic", {"topic": "連絡"})
    assert a.client.put(f"{state}m.room.join_rules", {"join_rule": "knock"}).status == 403
    changes = listed(server).of("room.permissions")
    assert [entry["target"] for entry in changes] == ["m.room.power_levels", "m.room.history_visibility"]
    number = str(server.terminal_number(a))
    assert all(f"({a.user_id})" in entry["who"] and entry["terminal"] == number and entry["address"] == "127.0.0.1"
               and entry["certificate"] != "-" for entry in changes), changes
