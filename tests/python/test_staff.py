"""The city can always act: the control room is the staff's alone, and the last of them stays."""

from __future__ import annotations

import re
import secrets

from harness import Person, Server, quote, wait_for
from test_room_life import Desk

STAFF = (409, "JP_HEYA_STAFF")
# Their sessions are gone, and so are terminals that were theirs alone.
GONE = (401, 403)


def call(server: Server, path: str, **body) -> tuple[int, str | None]:
    """A call that changes something, by the command line."""
    done = server.act(path, body, expect=None)
    return done.status, done.json.get("errcode")


def city_facility(server: Server) -> int:
    return next(one["facility"] for one in server.look("facilities")["facilities"] if one["kind"] == "city")


def members(server: Server, room: str, add: list[Person] = (), remove: list[Person] = ()) -> tuple[int, str | None]:
    return call(server, f"rooms/{quote(room)}/members", case=secrets.token_hex(4), add=[p.user_id for p in add],
                remove=[p.user_id for p in remove])


def test_only_staff_enter_the_control_room(database: str, fresh):
    """It names every subject: a mistyped room number lets nobody in, nor does an invitation by one of the staff."""
    city = fresh(database)
    nurse, first, control = city.person(), city.first_staff(), city.look("control")["control_room"]
    at = f"/_matrix/client/v3/rooms/{quote(control)}"
    read = lambda person: person.client.get(f"{at}/messages?dir=b").status  # noqa: E731
    assert members(city, control, add=[nurse]) == STAFF
    refused = (403, "M_FORBIDDEN")
    assert first.client.post(f"{at}/invite", {"user_id": nurse.user_id}).told == refused
    assert first.client.put(f"{at}/state/m.room.member/{quote(nurse.user_id)}", {"membership": "invite"}).told == refused
    for content in ({}, {"membership": None}, {"membership": "x"}):
        answer = first.client.put(f"{at}/state/m.room.member/{quote(nurse.user_id)}", content)
        assert 400 <= answer.status < 500, (content, answer)
    assert read(nurse) == 403
    assert members(city, control, remove=[first]) == STAFF
    assert first.client.post(f"{at}/leave", {}).told == refused and read(first) == 200
    second = city.person(city_facility(city))
    assert first.client.post(f"{at}/invite", {"user_id": second.user_id}).status == 200
    second.client.ok("POST", f"{at}/join", {})
    # Two are in it: one may go.
    assert members(city, control, remove=[second]) == (200, None) and read(second) == 403
    assert members(city, control, add=[second]) == (200, None)
    assert first.client.post(f"{at}/leave", {}).status == 200 and second.client.post(f"{at}/leave", {}).told == refused


def test_the_last_of_the_staff_stays(database: str, fresh):
    """One who can act, that is: an ID that was only issued, or that is not in the control room, gives nobody another."""
    city = fresh(database)
    first, control = city.first_staff(), city.look("control")["control_room"]
    end = lambda person: call(city, f"accounts/{quote(person.user_id)}/end", reason="退職")  # noqa: E731
    assert end(first) == STAFF
    second = city.issue(city_facility(city))
    assert end(first) == STAFF and first.client.get("/_matrix/client/v3/account/whoami").status == 200
    city._ready(second)
    assert end(first) == STAFF, "nobody would be left in the control room"
    assert members(city, control, add=[second]) == (200, None)
    assert end(first) == (200, None) and end(second) == STAFF
    assert first.client.get("/_matrix/client/v3/account/whoami").status in GONE


def test_an_end_is_shown_before_it_comes(fresh):
    """利用終了 cannot be taken back: one digit too many ends somebody else."""
    city = fresh(bot=True)
    desk = Desk(city)
    person = city.person(name=f"退職{secrets.token_hex(3)}")
    whoami = lambda: person.client.get("/_matrix/client/v3/account/whoami").status  # noqa: E731
    asked = desk.say(f"利用終了 {person.login_id} 退職のため", "この内容で行うときは")
    assert "元に戻せません" in asked and "退職" in asked and whoami() == 200
    case = re.search(r"案件 (\d+)", asked)[1]
    desk.say(f"承認 {case}", f"案件 {case} を完了しました")
    wait_for(lambda: whoami() in GONE, 20, 0.1, "the end")
    # The staff's own: refused, with what to do.
    case = re.search(r"案件 (\d+)", desk.say(f"利用終了 {desk.staff.login_id}", "この内容で行うときは"))[1]
    told = desk.say(f"承認 {case}", f"案件 {case} を行えませんでした")
    assert "最後の一人の職員" in told and "先に別の職員の登録" in told, told
    told = desk.say(f"追加 1 {desk.people[0].login_id}", "行えませんでした")
    assert "管理室に入れるのは市の職員だけです" in told, told


def test_whom_an_announcement_is_for(fresh):
    """To everybody is said in the first line; a facility's name in the second is asked about, not sent to all."""
    city = fresh(bot=True)
    desk = Desk(city)
    name = f"あおば{secrets.token_hex(3)}"
    city.person(city.facility(name), kind="facility")
    asked = desk.say(f"お知らせ\n{name}\n本日の会議は中止です", "本文の1行目が事業所の名前")
    case = re.search(r"案件 (\d+)", asked)[1]
    desk.say(f"承認 {case}", "確認の途中")
    # Two of the staff's are in the room, too, and are no facility.
    assert "届いた事業所：1" in desk.say(f"お知らせ 全員\n{name}様ほか、皆様\n年末のお休み", "届いた事業所")
    assert "届いた事業所：1" in desk.say(f"お知らせ {name}\n本日の会議は中止です", "届いた事業所")
