"""E-applications (電子申請): REQUIREMENTS H9, H16, H18, H19, H24 through the real server, bot and bridge."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import secrets
import sqlite3
import subprocess

import pytest

from harness import Server, quote, wait_for
from test_room_life import NO_RETENTION, Desk, desk_with_mail, dump, status
from test_rooms import R, media_path

# What a city's own form calls the columns; the others are the bot's own words.
COLUMNS = {"お問い合わせ番号": "整理番号", "ご用件": "手続き", "ご担当の利用者ID": "申請者"}
PROCEDURES = {"連携システム　部屋の開設依頼（第5号様式）": "開設"}
OPEN = "連携システム 部屋の開設依頼(第5号様式)"
HEADINGS = ["お問い合わせ番号", "ご用件", "ご担当の利用者ID", "受付日時", "対象者氏名", "生年月日", "住所", "要件", "説明者", "職種", "説明日",
            "同意項目", "メンバー", "部屋番号", "事業所", "事業所の種類", "IDの種類", "誓約"]


def file_of(*rows: dict[str, str], encoding: str = "cp932") -> bytes:
    """A file as such a service gives it: every cell quoted, CRLF."""
    out = io.StringIO()
    writer = csv.DictWriter(out, HEADINGS, restval="", quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({"受付日時": "2026/11/26 10:00"} | row)
    return out.getvalue().encode(encoding)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def desk(request: pytest.FixtureRequest):
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    own = {"city": {"application_columns": COLUMNS, "application_procedures": PROCEDURES}}
    with desk_with_mail(request.param, bot=True, **NO_RETENTION, **own) as desk:
        yield desk


def posted(desk: Desk, content: bytes, name: str = "電子申請.csv", expect: str = "試し読み") -> tuple[str, str, str]:
    """Posts a file in the control room; its event, its address, and the bot's answer."""
    sent = desk.staff.client.post(f"/_matrix/media/v3/upload?filename={quote(name)}", body=content, headers={"Content-Type": "text/csv"})
    before = {event["event_id"] for event in desk.staff.client.messages(desk.control)}
    mxc = sent.json["content_uri"]
    event = desk.staff.client.say(desk.control, name, msgtype="m.file", url=mxc, filename=name, info={"size": len(content)})
    return event, mxc, desk.answer(expect, before, desk.staff, desk.control, name)


def take(desk: Desk, event: str, expect: str = "取り込みました") -> str:
    """Has a posted file taken, by a reply."""
    before = {one["event_id"] for one in desk.staff.client.messages(desk.control)}
    desk.staff.client.say(desk.control, "取り込み", **{"m.relates_to": {"m.in_reply_to": {"event_id": event}}})
    return desk.answer(expect, before, desk.staff, desk.control, "取り込み")


def case_of(told: str, receipt: str) -> str:
    return re.search(rf"整理番号 {receipt} .*案件 (?:\d+、)*(\d+)", told)[1]


def subject(name: str) -> dict[str, str]:
    return {"対象者氏名": name, "生年月日": "昭和5年4月3日", "住所": "〇〇市1-2-3"}


def consent_and_opening(number: str, name: str, by: str, member: str) -> list[dict[str, str]]:
    return [
        {"お問い合わせ番号": f"{number}-1", "ご用件": "同意の報告", "ご担当の利用者ID": by, "説明者": "窓口の看護師", "職種": "看護師",
         "説明日": "2026/11/20", "同意項目": "①②"} | subject(name),
        {"お問い合わせ番号": f"{number}-2", "ご用件": OPEN, "ご担当の利用者ID": by, "要件": "①在宅", "メンバー": member} | subject(name),
    ]


def test_a_file_from_reading_to_rooms(desk: Desk):
    """Read, taken on a word, decided one by one: the room has exactly the members of the form, and its applicant a mail."""
    server, (a, b) = desk.server, desk.people
    name, number = f"申請{secrets.token_hex(4)}", f"E{secrets.token_hex(3)}"
    address = desk.mailbox(a)
    room = server.room(a)
    n = desk.number(room)
    content = file_of(
        *consent_and_opening(number, name, a.login_id, b.login_id),
        {"お問い合わせ番号": f"{number}-3", "ご用件": "追加", "ご担当の利用者ID": a.login_id, "メンバー": b.login_id, "部屋番号": str(n)},
        {"お問い合わせ番号": f"{number}-4", "ご用件": "終了", "ご担当の利用者ID": b.login_id, "部屋番号": str(n)},
        {"お問い合わせ番号": f"{number}-5", "ご用件": "終了", "部屋番号": str(n)})
    rooms = server.look("rooms")["rooms"]
    event, _, read = posted(desk, content)
    assert "新しい申請：3件" in read and re.search(rf"6行目 整理番号 {number}-5：申請者", read), read
    assert f"5行目 整理番号 {number}-4：申請者がその部屋のメンバーではありません" in read, read
    assert name not in read
    assert server.look("rooms")["rooms"] == rooms and f"{number}" not in desk.say("案件", "."), "only read"

    # By a reaction to the bot's answer.
    before = {one["event_id"] for one in desk.staff.client.messages(desk.control)}
    answer = next(one["event_id"] for one in desk.staff.client.messages(desk.control) if one["content"].get("body") == read)
    desk.staff.client.ok("PUT", f"{R}{quote(desk.control)}/send/m.reaction/{secrets.token_hex(4)}", {
        "m.relates_to": {"rel_type": "m.annotation", "event_id": answer, "key": "✅"}})
    told = desk.answer("取り込みました", before, desk.staff, desk.control, "✅")
    assert "受け付けた申請：3件" in told, told
    opening, adding = case_of(told, f"{number}-2"), case_of(told, f"{number}-3")
    shown = desk.answer(rf"案件 {opening}（依頼：電子申請 整理番号 {number}-2、.*{a.login_id}", before, desk.staff, desk.control, "the case")
    assert "同意の報告：\n・" in shown and b.login_id in shown, shown
    desk.answer(rf"案件 {adding}（", before, desk.staff, desk.control, "the case")
    assert server.look("rooms")["rooms"] == rooms, "nothing before approval"

    done = desk.say(f"承認 {opening}", f"案件 {opening} を完了しました")
    opened = int(re.search(r"部屋番号：(\d+)", done)[1])
    room_id = next(row["room_id"] for row in server.look("rooms")["rooms"] if row["room_number"] == opened)
    members = {row["user_id"] for row in server.look(f"rooms/{quote(room_id)}")["members"]}
    assert members == {a.user_id, b.user_id}
    mails = wait_for(lambda: [mail for mail in server.post.to(address) if f"{opened}" in mail], 20, 0.2, "the mail")
    assert mails and name not in "".join(mail.as_string() + mail.get_content() for mail in server.post.mails)
    desk.say(f"承認 {adding}", f"案件 {adding} を完了しました")
    assert b.user_id in {row["user_id"] for row in server.look(f"rooms/{quote(room)}")["members"]}
    assert status(server, room) == "open", "nobody but a member has it closed"

    # Once more, from another file, in UTF-8: only what could not be taken before is new.
    again = take(desk, posted(desk, content.decode("cp932").encode("utf-8-sig"), "again.CSV")[0])
    assert f"受け付けた申請：1件\n・整理番号 {number}-4 部屋の終了" in again and "すでに受け付けている申請：3件" in again, again
    assert len(server.look("rooms")["rooms"]) == len(rooms) + 1 and status(server, room) == "open"
    assert re.search(rf"受け付けられていない電子申請\n(.*\n)*・整理番号 {number}-5：申請者", desk.say("案件", "受け付けられていない電子申請"))
    last = take(desk, posted(desk, content)[0])
    assert "新しい申請はありませんでした" in last and "すでに受け付けている申請：4件" in last, last


def test_an_id_by_application(desk: Desk):
    """H9: an application for use is registered, issued and enrolled, each step approved."""
    server = desk.server
    facility, number = f"申請看護{secrets.token_hex(3)}", f"U{secrets.token_hex(3)}"
    person = {"ご用件": "利用申請", "事業所": facility, "事業所の種類": "訪問看護", "誓約": "はい"}
    rows = [person | {"お問い合わせ番号": f"{number}-1", "IDの種類": "個人ID", "対象者氏名": "高橋 次郎", "職種": "看護師"},
            person | {"お問い合わせ番号": f"{number}-2", "IDの種類": "施設ID"},
            person | {"お問い合わせ番号": f"{number}-3", "IDの種類": "施設ID", "誓約": ""}]
    told = take(desk, posted(desk, file_of(*rows))[0])
    register, issue = re.search(rf"{number}-1 利用申請（案件 (\d+)、(\d+)）", told).groups()
    assert re.search(rf"4行目 整理番号 {number}-3：誓約がありません", told), told
    early = desk.say(f"承認 {issue}", f"案件 {issue} は確認の途中です")
    assert early and facility not in str(server.look("facilities"))
    desk.say(f"承認 {register}", f"案件 {register} を完了しました")
    wait_for(lambda: re.search(rf"案件 {issue}（(.|\n)*この内容で行うとき", "\n".join(
        one["content"].get("body", "") for one in desk.staff.client.messages(desk.control))), 20, 0.1, "it goes on by itself")
    done = desk.say(f"承認 {issue}", f"案件 {issue} を完了しました")
    assert len(re.findall(r"sheets/\S+?\.html", done)) == 2, done
    login_id = re.search(r"利用者ID：(\w+)", done)[1]
    account = next(row for row in server.search(login_id)["accounts"] if row["login_id"] == login_id)
    assert (account["display_name"], account["profession"], account["status"]) == (f"{facility} 高橋次郎", "看護師", "issued")


def purged(desk: Desk, n: str, gone: str) -> None:
    """Closes, archives and purges a room; nothing of the database names its subject then."""
    desk.say(f"終了 {n}", "完了")
    desk.approved(f"保管 {n}", "完了")
    assert gone in dump(desk.server)
    desk.approved(f"消去 {n}", "完了")
    left = [line[:300] for line in dump(desk.server).splitlines() if gone in line]
    assert not left, left


def test_what_a_purge_forgets_of_files(desk: Desk):
    """Every file that names the subject goes with its record, whatever became of its rows, and what follows from a row with
    its own subject; what is said of others stays."""
    server, (a, b) = desk.server, desk.people
    gone, stays = f"消える{secrets.token_hex(4)}", f"残る{secrets.token_hex(4)}"
    rows = consent_and_opening("G1", gone, a.login_id, b.login_id) + consent_and_opening("S1", stays, a.login_id, b.login_id)
    bad = [row | {"お問い合わせ番号": "無効"} for row in rows[:2]]
    files = [posted(desk, file_of(*bad))]
    take(desk, files[0][0])
    files.append(posted(desk, file_of(*rows)))
    told = take(desk, files[-1][0])
    # Taken before; asked for once more by another; without a birth date; and one that was taken back.
    files.append(posted(desk, file_of(*rows)))
    files.append(posted(desk, file_of(rows[1] | {"お問い合わせ番号": "G1-3"}), expect="同じ依頼が案件"))
    files.append(posted(desk, file_of(rows[1] | {"お問い合わせ番号": "G1-4", "生年月日": ""})))
    files.append(posted(desk, file_of(rows[1] | {"お問い合わせ番号": "G1-5"}), expect="同じ依頼が案件"))
    desk.staff.client.ok("PUT", f"{R}{quote(desk.control)}/redact/{quote(files[-1][0])}/taken", {})
    of_others = posted(desk, file_of(*[row | {"お問い合わせ番号": f"T{n}"} for n, row in enumerate(rows[2:])]), expect="新しい申請|受け付けられない")
    case = case_of(told, "G1-2")
    n = re.search(r"部屋番号：(\d+)", desk.say(f"承認 {case}", f"案件 {case} を完了"))[1]
    other = case_of(told, "S1-2")
    desk.say(f"承認 {other}", f"案件 {other} を完了")
    purged(desk, n, gone)
    for _, mxc, _ in files:
        assert desk.staff.client.get(media_path(mxc)).status == 404, mxc
    assert desk.staff.client.get(media_path(of_others[1])).status == 200, "another subject's"
    hidden = [path for path in (server.data / "media").rglob("*") if path.is_file() and gone.encode("cp932") in path.read_bytes()]
    assert not hidden, hidden
    with contextlib.closing(sqlite3.connect(f"file:{server.data / 'city.sqlite'}?mode=ro", uri=True, timeout=10)) as connection:
        kept = "\n".join(connection.iterdump())
    assert gone not in kept and stays in kept
    bodies = "\n".join(one["content"].get("body", "") for one in desk.staff.client.messages(desk.control))
    assert len(re.findall(stays, bodies)) >= 3, "the report, the case and its end"


def test_what_a_purge_forgets_of_the_control_room(desk: Desk):
    """Forms with gaps, withdrawals and lists of cases name a subject and are no case: they go with the record, too; those about
    others stay."""
    server, (a, b) = desk.server, desk.people
    gone, stays = f"消える{secrets.token_hex(4)}", f"残る{secrets.token_hex(4)}"
    take(desk, posted(desk, file_of(*consent_and_opening("C1", gone, a.login_id, b.login_id)))[0])
    for name in (gone, stays):
        form = f"同意の報告\n対象者氏名：{name}\n生年月日：昭和5年4月3日\n住所："
        desk.say(form, "説明")
        # Without a birth date, too.
        desk.say(form.replace("\n生年月日：昭和5年4月3日", ""), "説明")
    case = re.search(r"案件 (\d+)（依頼：電子申請 整理番号 C1-2", "\n".join(
        one["content"].get("body", "") for one in desk.staff.client.messages(desk.control)))[1]
    n = re.search(r"部屋番号：(\d+)", desk.say(f"承認 {case}", f"案件 {case} を完了"))[1]
    # Asked for twice: the second post is no case.
    for _ in range(2):
        desk.staff.client.say(desk.control, f"開設\n対象者氏名：{gone}\n生年月日：昭和5年4月3日\n住所：〇〇市1-2-3\n要件：①\nメンバー：{b.login_id}")
    # A list of cases that names the room, while one about it waits.
    waits = re.search(r"案件 (\d+)", desk.say(f"追加 {n} だれでもない", "見つかりません"))[1]
    assert gone in desk.say("案件", rf"・{waits} ")
    desk.say(f"差し戻し {waits} まちがい", "差し戻し")
    for name in (gone, stays):
        desk.say(f"同意の撤回\n対象者氏名：{name}\n生年月日：昭和5年4月3日", "撤回|ありません")
    purged(desk, n, gone)
    with contextlib.closing(sqlite3.connect(f"file:{server.data / 'city.sqlite'}?mode=ro", uri=True, timeout=10)) as connection:
        assert gone not in "\n".join(connection.iterdump())
    bodies = "\n".join(one["content"].get("body", "") for one in desk.staff.client.messages(desk.control))
    assert len(re.findall(stays, bodies)) >= 3, "what was said of another"


def test_a_file_that_is_not_there_holds_up_nobody(desk: Desk):
    """Reserved and never uploaded, or gone from the disk: it is said, and the bot goes on."""
    server, (a, _) = desk.server, desk.people
    before = {event["event_id"] for event in desk.staff.client.messages(desk.control)}
    reserved = desk.staff.client.ok("POST", "/_matrix/media/v1/create")["content_uri"]
    desk.staff.client.say(desk.control, "later.csv", msgtype="m.file", url=reserved, filename="later.csv")
    desk.answer("M_NOT_YET_UPLOADED", before, desk.staff, desk.control, "later.csv")
    content = file_of({"お問い合わせ番号": "N1", "ご用件": "終了", "部屋番号": "1"})
    sent = desk.staff.client.post("/_matrix/media/v3/upload?filename=a.csv", body=content, headers={"Content-Type": "text/csv"})
    for path in (server.data / "media").rglob("*"):
        if path.is_file() and path.read_bytes() == content:
            path.unlink()
    desk.staff.client.say(desk.control, "gone.csv", msgtype="m.file", url=sent.json["content_uri"], filename="gone.csv")
    direct = a.client.ok("POST", "/_matrix/client/v3/createRoom", {"is_direct": True, "invite": [server.city_user]})["room_id"]
    wait_for(lambda: "窓口" in str(a.client.messages(direct)), 20, 0.1, "others are answered meanwhile")
    wait_for(lambda: "ファイルの中身がサーバーにありません" in str(desk.staff.client.messages(desk.control)), 60, 0.2, "the answer")
    desk.say("ヘルプ", "使えることば")


def test_members_are_answered_while_a_file_is_taken(desk: Desk):
    """Rooms take turns: a long list of the city's does not stand before a member's question."""
    server, (a, b) = desk.server, desk.people
    direct = b.client.ok("POST", "/_matrix/client/v3/createRoom", {"is_direct": True, "invite": [server.city_user]})["room_id"]
    wait_for(lambda: "窓口" in str(b.client.messages(direct)), 60, 0.1, "the city is in")

    def waiting(task: str) -> int:
        with contextlib.closing(sqlite3.connect(f"file:{server.data / 'city.sqlite'}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute("SELECT count(*) FROM outbox WHERE task LIKE ?", (f'%"task":"{task}"%',)).fetchone()[0]

    def asked_meanwhile() -> tuple[int, int]:
        """Has a long file taken and asks at once; how many examinations were owed then, and how many at the answer."""
        number = f"L{secrets.token_hex(2)}1"
        rows = [{"お問い合わせ番号": f"{number}-{i}", "ご用件": OPEN, "種類": "職能団体", "部屋の名称": f"団体{number}-{i}",
                 "ご担当の利用者ID": a.login_id, "メンバー": b.login_id} for i in range(300)]
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        event, _, _ = posted(desk, out.getvalue().encode())
        before = {one["event_id"] for one in b.client.messages(direct)}
        assert "受け付けた申請：300件" in take(desk, event)
        b.client.say(direct, "ヘルプ")
        owed = waiting("examine")
        desk.answer("窓口", before, b, direct, "ヘルプ")
        left = waiting("examine")
        wait_for(lambda: waiting("examine") + waiting("say") == 0, 300, 0.2, "all of them")
        bodies = "\n".join(one["content"].get("body", "") for one in desk.staff.client.messages(desk.control))
        assert len(set(re.findall(rf"電子申請 整理番号 {number}-(\d+)、", bodies))) == 300
        return owed, left

    owed, left = asked_meanwhile()
    if owed < 100:
        # It was asked too late to say much.
        owed, left = asked_meanwhile()
    print(f"{owed} examinations were owed when it was asked, {left} when it was answered")
    assert left > 0 or owed < 100, "whoever asks last is answered last"


def test_what_is_no_file_of_applications(desk: Desk):
    server, (a, _) = desk.server, desk.people
    for content, name, told in (
            (b"", "empty.csv", "申請がありません"),
            ("日付,人数\n1,2\n".encode(), "counts.csv", "「整理番号」の列がありません"),
            (b"\x89PNG\r\n\x1a\n\x00\xff\xfd", "picture.csv", "文字コードが分かりません"),
            (b"x" * (1 << 20) + b"x", "long.csv", "1 MB を超えています"),
            (file_of(*[{"お問い合わせ番号": str(i), "ご用件": "終了"} for i in range(301)]), "many.csv", "300件を超えています")):
        posted(desk, content, name, told)
    # Without a column for it the name says the procedure.
    text = "整理番号,申請者,部屋番号\nX0," + a.login_id + ",99999\n"
    posted(desk, text.encode(), "download.csv", "「手続き」の列がなく")
    posted(desk, text.encode(), "部屋の終了_20261126.csv", "整理番号 X0：その番号の部屋がありません")
    # Members' files, and other files of the staff, are nobody's applications.
    room = server.room(a, desk.staff)
    content = file_of({"お問い合わせ番号": "X1", "ご用件": "終了", "ご担当の利用者ID": a.login_id, "部屋番号": str(desk.number(room))})
    sent = a.client.post("/_matrix/media/v3/upload?filename=a.csv", body=content, headers={"Content-Type": "text/csv"})
    for person in (a, desk.staff):
        person.client.say(room, "a.csv", msgtype="m.file", url=sent.json["content_uri"], filename="a.csv")
    desk.say("取り込み", "どのファイルを")
    # Deleted before it was taken.
    event, _, _ = posted(desk, content)
    desk.staff.client.ok("PUT", f"{R}{quote(desk.control)}/redact/{quote(event)}/gone", {})
    take(desk, event, "どのファイルを")
    bodies = "\n".join(one["content"].get("body", "") for one in a.client.messages(room))
    assert "電子申請" not in bodies and status(server, room) == "open"


def test_a_word_that_is_no_column_is_told_at_the_start():
    server = Server(bot=False)
    try:
        server.stop()
        config = (server.folder / "config.toml").read_text(encoding="utf-8")
        config = config.replace("[city]", '[city]\napplication_columns = { "番号" = "部屋の色" }', 1)
        (server.folder / "config.toml").write_text(config.replace("bot = false", "bot = true"), encoding="utf-8")
        ended = subprocess.run(server.command("serve"), capture_output=True, text=True, timeout=60, cwd=server.folder, check=False)
        assert ended.returncode != 0 and "部屋の色" in ended.stdout + ended.stderr, ended
    finally:
        server.remove()
