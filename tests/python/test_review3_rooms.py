"""What a review of the whole server found in rooms and media: what was taken back and could still be read, photographs that
came back by a side door, and backups of a city that goes on working."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import secrets
import shutil
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

from harness import Answer, Person, Server, quote, wait_for
from test_room_life import NO_RETENTION, life, lived, picture, search, subject_room
from test_rooms import PNG, R, media_path, upload

C = "/_matrix/client/v3"


@pytest.fixture(scope="module")
def forgetful() -> Server:
    """A city that keeps nothing: what is archived may be purged."""
    server = Server(config=NO_RETENTION)
    yield server
    server.remove()


@pytest.fixture(scope="module")
def site() -> Server:
    """The open profile."""
    server = Server(profile="open")
    yield server
    server.remove()


def made(person: Person, **more) -> str:
    return person.client.ok("POST", f"{C}/createRoom", {"preset": "public_chat"} | more)["room_id"]


def join(person: Person, room: str) -> None:
    person.client.ok("POST", f"{C}/join/{quote(room)}", {})


def leave(person: Person, room: str) -> None:
    person.client.ok("POST", f"{R}{quote(room)}/leave", {})


def event(person: Person, room: str, event_id: str) -> Answer:
    return person.client.get(f"{R}{quote(room)}/event/{quote(event_id)}")


def editing(event_id: str, text: str) -> dict:
    return {"msgtype": "m.text", "body": f"* {text}", "m.new_content": {"msgtype": "m.text", "body": text},
            "m.relates_to": {"rel_type": "m.replace", "event_id": event_id}}


def edit(person: Person, room: str, event_id: str, text: str) -> str:
    return person.client.say(room, **editing(event_id, text))


def reply(person: Person, room: str, root: str, text: str) -> str:
    return person.client.say(room, text, **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})


# What was hidden or taken back ---------------------------------------------------------------------------------------


def test_what_was_said_while_one_was_away_is_in_no_summary(site: Server):
    """Somebody who left and came back does not see the time between: not as the newest of a thread, nor as an edit."""
    a, b = site.register(), site.register()
    room = made(a, initial_state=[{"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}])
    join(b, room)
    root, first = a.client.say(room, "root"), a.client.say(room, "first")
    seen = reply(a, room, root, "seen")
    leave(b, room)
    hidden = reply(a, room, root, "SECRET-THREAD")
    edit(a, room, first, "SECRET-EDIT")
    join(b, room)

    def look(newest: str, count: int) -> None:
        of_root, of_first = event(b, room, root), event(b, room, first)
        assert "SECRET" not in of_root.text and "SECRET" not in of_first.text
        assert event(b, room, hidden).status == 404
        thread = of_root.json["unsigned"]["m.relations"]["m.thread"]
        assert (thread["latest_event"]["event_id"], thread["count"]) == (newest, count)

    look(seen, 1)
    # So many that the beginning is read from the database.
    for n in range(140):
        a.client.say(room, f"{n}")
    look(seen, 1)
    after = reply(a, room, root, "after")
    look(after, 2)
    site.restart()
    a.client.close(), b.client.close()
    look(after, 2)


def everywhere(reader: Person, room: str, event_id: str, word: str) -> list[str]:
    """Where a member still finds a word."""
    path = f"{R}{quote(room)}"
    places = {"event": f"{path}/event/{quote(event_id)}", "messages": f"{path}/messages?dir=b&limit=100",
              "context": f"{path}/context/{quote(event_id)}", "sync": f"{C}/sync", "relations":
              f"/_matrix/client/v1/rooms/{quote(room)}/relations/{quote(event_id)}"}
    found = [name for name, where in places.items() if word in reader.client.get(where).text]
    return found + (["search"] if search(reader, word) else [])


@pytest.mark.parametrize("by", ["author", "city"])
def test_who_takes_back_a_post_takes_back_its_edits(forgetful: Server, by: str):
    """An edit holds the whole new text."""
    server = forgetful
    a, d = server.person(), server.person()
    room = server.room(a, d)
    word = f"訂正後秘匿{secrets.token_hex(4)}"
    post = a.client.say(room, "原文の記録")
    edits = [edit(a, room, post, f"{word}その{n}") for n in range(3)]
    kept = a.client.say(room, "残る記録")
    other = edit(a, room, kept, "残る訂正")
    wait_for(lambda: search(d, word), 20, 0.2, "the edits to be found")
    if by == "author":
        a.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(post)}/{secrets.token_hex(4)}", {})
    else:
        lived(server, room, "redact", event_id=post, reason="誤記")
    for one in [post, *edits]:
        assert everywhere(d, room, one, word) == []
        told = event(d, room, one).json
        assert "body" not in told["content"] and told["unsigned"]["redacted_because"], told
    assert "残る訂正" in event(d, room, other).text, "edits of other posts stay"
    server.close_room(room)
    lived(server, room, "archive")
    page = (server.data / lived(server, room, "export")["folder"] / "index.html").read_text(encoding="utf-8")
    assert word not in page and "残る訂正" in page


def test_an_edit_of_the_same_moment_does_not_survive_the_redaction(forgetful: Server):
    """Two terminals of one person: what the server took before the redaction goes with it, though it is in no table yet."""
    server = forgetful
    a, d = server.person(), server.person()
    room = server.room(a, d)
    second = a.log_in()
    before = 0
    for n in range(40):
        word = f"同時秘匿{secrets.token_hex(4)}"
        post = a.client.say(room, "原文")
        start, told = threading.Barrier(2), {}

        def redact() -> None:
            start.wait()
            time.sleep(n % 4 * 0.001)
            told["redaction"] = a.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(post)}/{secrets.token_hex(4)}", {})["event_id"]

        def change() -> None:
            start.wait()
            told["edit"] = second.put(f"{R}{quote(room)}/send/m.room.message/{secrets.token_hex(4)}", editing(post, word))

        threads = [threading.Thread(target=redact), threading.Thread(target=change)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if told["edit"].status != 200:
            continue
        changed = told["edit"].json["event_id"]
        order = [one["event_id"] for one in d.client.ok("GET", f"{R}{quote(room)}/messages?dir=b&limit=10")["chunk"]]
        if order.index(changed) > order.index(told["redaction"]):
            before += 1
            assert everywhere(d, room, changed, word) == []
        if before == 8:
            return
    assert before, "no edit came before its redaction"


def test_what_was_taken_back_is_not_edited_back(forgetful: Server):
    """The other terminal has not heard of the redaction yet, or sends what it had queued."""
    server = forgetful
    a, d = server.person(), server.person()
    room, word = server.room(a, d), f"後秘匿{secrets.token_hex(4)}"
    post = a.client.say(room, "原文")
    a.client.ok("PUT", f"{R}{quote(room)}/redact/{quote(post)}/{secrets.token_hex(4)}", {})
    answer = a.client.put(f"{R}{quote(room)}/send/m.room.message/{secrets.token_hex(4)}", editing(post, word))
    changed = answer.json["event_id"] if answer.status == 200 else post
    assert everywhere(d, room, changed, word) == [], answer


def test_a_purge_takes_the_edits_and_originals_of_reports(forgetful: Server):
    """The control room's posts of a subject go with the subject's record: also what was edited or taken back since."""
    server = forgetful
    a, staff = server.person(), server.first_staff()
    room, name = subject_room(server, a)
    control = server.look("control")["control_room"]
    report = staff.client.say(control, f"{name}さんの部屋をお願いします")
    edit(staff, control, report, f"{name}様の部屋をお願いします")
    taken_back = staff.client.say(control, f"{name}さんの同意です")
    staff.client.ok("PUT", f"{R}{quote(control)}/redact/{quote(taken_back)}/{secrets.token_hex(4)}", {})
    unnamed = staff.client.say(control, "ほかの件です")
    edit(staff, control, unnamed, "ほかの件の訂正です")
    server.close_room(room)
    lived(server, room, "archive")
    lived(server, room, "purge", forget={"events": [report, taken_back], "lines": []})
    # The room's own certificate of the purge is the city's paper; the tables must not know the name.
    for table in ("events", "event_originals"):
        assert server.count(f"SELECT count(*) FROM {table} WHERE pdu LIKE '%{name}%'") == 0, table
    assert search(staff, name) == []
    assert "ほかの件の訂正です" in json.dumps(staff.client.messages(control), ensure_ascii=False)


def test_a_purge_asked_for_again_with_more_to_forget(forgetful: Server):
    """Its answer was lost, and meanwhile somebody wrote of the subject: the same call goes on and takes that, too. Anything
    else under its key is another call."""
    server = forgetful
    a, staff = server.person(), server.first_staff()
    room, name = subject_room(server, a)
    control = server.look("control")["control_room"]
    first, second = (staff.client.say(control, f"{name}さんの同意です（{n}）") for n in "一二")
    server.close_room(room)
    lived(server, room, "archive")
    again = {"key": secrets.token_hex(8), "case": "the same"}
    lived(server, room, "purge", forget={"events": [first], "lines": []}, **again)
    wait_for(lambda: search(staff, name) == [second], 60, 0.1, "the index, which follows")
    lived(server, room, "purge", forget={"events": [first, second], "lines": []}, **again)
    assert search(staff, name) == []
    assert life(server, room, "purge", **again | {"case": "another"}).told == (409, "JP_HEYA_EXISTS")


# Media ---------------------------------------------------------------------------------------------------------------


def set_avatar(person: Person, mxc: str) -> Answer:
    return person.client.put(f"{C}/profile/{quote(person.user_id)}/avatar_url", {"avatar_url": mxc})


@pytest.mark.parametrize("way", ["post", "avatar"])
def test_who_was_removed_does_not_get_the_photograph_back(forgetful: Server, way: str):
    """It belongs to the room that showed it, also where the same person had uploaded it."""
    server = forgetful
    a, b, c = (server.person() for _ in range(3))
    room, other = server.room(a, b, c), server.room(b, c)
    mxc, _ = picture(b, room)
    path = media_path(mxc)
    assert b.client.get(path).status == 200
    server.change_members(room, remove=[b])
    assert b.client.get(path).status in (403, 404)
    if way == "post":
        b.client.put(f"{R}{quote(other)}/send/m.room.message/{secrets.token_hex(4)}",
                     {"msgtype": "m.image", "body": "もう一度", "url": mxc})
    else:
        set_avatar(b, mxc)
    assert b.client.get(path).status in (403, 404)
    assert a.client.get(path).status == c.client.get(path).status == 200, "who is in the room sees it"


def test_ones_picture_is_seen_in_every_room(forgetful: Server):
    """Being removed from one room takes nobody's face away in the others, nor in rooms that come later."""
    server = forgetful
    a, b, c = (server.person() for _ in range(3))
    first, second = server.room(a, b), server.room(b, c)
    mxc = upload(b, PNG + secrets.token_bytes(16))
    assert set_avatar(b, mxc).status == 200
    path = media_path(mxc)
    assert [person.client.get(path).status for person in (a, b, c)] == [200, 200, 200]
    server.change_members(first, remove=[b])
    assert [person.client.get(path).status for person in (b, c)] == [200, 200]
    d = server.person()
    third = server.room(b, d)
    assert d.client.get(path).status == 200
    assert d.client.state(third, "m.room.member", b.user_id)["avatar_url"] == mxc
    # Shown in a message as well, it is still the picture.
    b.client.say(third, "顔写真", msgtype="m.image", url=mxc)
    server.change_members(third, remove=[b])
    assert [person.client.get(path).status for person in (b, c)] == [200, 200]
    assert second


def test_a_picture_that_was_taken_away_is_gone(site: Server):
    """Whoever comes later sees it neither as a picture nor in a past that they do not see."""
    a, b, c = (site.register() for _ in range(3))
    room = made(a, initial_state=[{"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}])
    path = media_path(mxc := upload(a, PNG + secrets.token_bytes(16)))
    assert set_avatar(a, mxc).status == 200
    assert b.client.get(path).status == 404, "no room in common"
    join(b, room)
    assert b.client.get(path).status == 200
    assert set_avatar(a, "").status == 200
    join(c, room)
    assert c.client.get(path).status == 404


def test_a_browser_asks_each_time_and_fetches_once(site: Server):
    """Several people use one terminal: what one may see is not served to the next from the browser's memory."""
    a = site.register()
    path = media_path(upload(a, PNG + secrets.token_bytes(16)))
    for where in (path, path.replace("/download/", "/thumbnail/") + "?width=32&height=32"):
        answer = a.client.get(where)
        assert answer.status == 200 and answer.headers["Cache-Control"] == "private, no-cache", where
        tag = answer.headers["ETag"]
        again = a.client.get(where, headers={"If-None-Match": tag})
        assert again.status == 304 and again.content == b"", where
        assert site.register().client.get(where, headers={"If-None-Match": tag}).status == 404, "nor by the tag"


# Backups -------------------------------------------------------------------------------------------------------------


def heya(server: Server, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(server.command(*words), capture_output=True, text=True, timeout=120, cwd=server.folder, check=False)


@pytest.mark.parametrize("words", [("backup", "copy"), ("audit", "list")])
def test_a_command_does_not_change_the_tables_of_another_version(fresh, words: tuple[str, ...]):
    """A newer `heya` beside the older server: its commands would migrate the tables under the server."""
    server = fresh(profile="open")
    server.register()
    server.stop()
    with contextlib.closing(sqlite3.connect(server.data / "heya.sqlite")) as db:
        db.execute("DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)")
        db.commit()
        before = list(db.iterdump())
    done = heya(server, *words)
    assert done.returncode != 0 and "heya serve" in done.stderr, done
    with contextlib.closing(sqlite3.connect(server.data / "heya.sqlite")) as db:
        assert list(db.iterdump()) == before
    assert not (server.folder / "copy").exists()


def blob_files(server: Server) -> list[pathlib.Path]:
    return sorted(path for path in (server.data / "media").glob("??/*") if path.is_file())


def stopped_while_copying(server: Server, folder: pathlib.Path, last: pathlib.Path) -> subprocess.Popen | None:
    """A backup that stands still: the tables are copied, the media not all; none where it was too quick."""
    backup = subprocess.Popen(server.command("backup", str(folder)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    media = folder.with_name(folder.name + ".part") / "media"
    while not media.exists() and backup.poll() is None:
        time.sleep(0.0005)
    if backup.poll() is None:
        backup.send_signal(signal.SIGSTOP)
        if not (media / last.parent.name / last.name).exists():
            return backup
        backup.send_signal(signal.SIGCONT)
    backup.communicate(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)
    return None


@pytest.mark.parametrize("how", ["forgotten", "lost"])
def test_a_backup_goes_on_while_a_photograph_is_deleted(fresh, how: str):
    """A purge at night must not end the night's backup. A file that is missing though the tables name it still does."""
    server = fresh(profile="open")
    a = server.register()
    for _ in range(40):
        a.client.ok("POST", "/_matrix/media/v3/upload", body=os.urandom(500_000), headers={"Content-Type": "application/octet-stream"})
    last, folder = blob_files(server)[-1], server.folder / "copy"
    backup = next(filter(None, (stopped_while_copying(server, folder, last) for _ in range(10))), None)
    assert backup is not None, "the backup was always too quick"
    try:
        if how == "forgotten":
            with contextlib.closing(sqlite3.connect(server.data / "heya.sqlite", timeout=20)) as db:
                db.execute("DELETE FROM media_links WHERE media_id IN (SELECT media_id FROM media WHERE sha256 = ?)", (last.name,))
                db.execute("DELETE FROM media WHERE sha256 = ?", (last.name,))
                db.execute("DELETE FROM blobs WHERE sha256 = ?", (last.name,))
                db.commit()
        last.unlink()
    finally:
        backup.send_signal(signal.SIGCONT)
    _, errors = backup.communicate(timeout=60)
    if how == "lost":
        assert backup.returncode != 0 and last.name in errors, errors
        assert not folder.exists()
        return
    assert backup.returncode == 0, errors
    server.stop()
    shutil.rmtree(server.data)
    done = heya(server, "restore", str(folder))
    assert done.returncode == 0, done
    assert len(blob_files(server)) == 39
    for table in ("media", "blobs"):
        assert server.count(f"SELECT count(*) FROM {table} WHERE sha256 = '{last.name}'") == 0
        assert server.count(f"SELECT count(*) FROM {table}") == 39
    server.start()
    assert heya(server, "backup", str(server.folder / "next")).returncode == 0, "and the next one is whole"


def test_a_backup_into_a_folder_with_a_slash(site: Server):
    """As the shell completes it."""
    folder = site.folder / "slash"
    done = heya(site, "backup", f"{folder}/")
    assert done.returncode == 0, done
    assert (folder / "manifest.json").is_file() and not list(site.folder.glob("*.part")) and not list(folder.glob("*.part"))


# Calls ---------------------------------------------------------------------------------------------------------------


def test_without_a_relay_no_calls_are_offered(site: Server):
    assert site.register().client.ok("GET", f"{C}/voip/turnServer") == {}


def test_a_relay_gets_credentials_that_it_can_check(fresh, tmp_path):
    """The relay knows the secret, and from the name alone until when and for whom it is."""
    (tmp_path / "index.html").write_text("<html><head></head></html>")
    uris = ["turn:turn.example.jp:3478?transport=udp", "turns:turn.example.jp:5349"]
    server = fresh(config={"voip": {"turn_uris": uris, "turn_seconds": 600}, "web": {"client_dir": str(tmp_path)}})
    person = server.person()
    assert server.public(person.terminal).get(f"{C}/voip/turnServer").told == (401, "M_MISSING_TOKEN")
    given = person.client.ok("GET", f"{C}/voip/turnServer")
    assert set(given) == {"uris", "username", "password", "ttl"} and given["uris"] == uris and given["ttl"] == 600
    until, _, whom = given["username"].partition(":")
    assert whom == person.user_id and 0 < int(until) - time.time() <= 601
    secret = (server.data / "keys" / "turn.secret").read_text().strip()
    expected = base64.b64encode(hmac.new(secret.encode(), given["username"].encode(), hashlib.sha1).digest()).decode()
    assert given["password"] == expected and secret not in json.dumps(given)
    assert (server.data / "keys" / "turn.secret").stat().st_mode & 0o077 == 0
    assert server.person().client.ok("GET", f"{C}/voip/turnServer")["password"] != given["password"]
    defaults = person.client.ok("GET", "/config.json", token="")["setting_defaults"]
    assert defaults["UIFeature.voip"] is True
    server.restart()
    assert (server.data / "keys" / "turn.secret").read_text().strip() == secret, "the relay keeps it"


def test_a_city_without_a_relay_has_no_button_for_calls(fresh, tmp_path):
    (tmp_path / "index.html").write_text("<html><head></head></html>")
    server = fresh(config={"web": {"client_dir": str(tmp_path)}})
    person = server.person()
    assert person.client.ok("GET", "/config.json", token="")["setting_defaults"]["UIFeature.voip"] is False
    assert person.client.ok("GET", f"{C}/voip/turnServer") == {} and not (server.data / "keys" / "turn.secret").exists()
