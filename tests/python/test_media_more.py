"""Media (DESIGN 12, REQUIREMENTS C33): ids before their content, parts of files, quotas, pictures and names made to do
harm. Who may read what: test_rooms.py; deletion with the room: test_room_life.py."""

from __future__ import annotations

import hashlib
import io
import pathlib
import secrets
import socket
import struct
import threading
import time
import urllib.parse
import zipfile
import zlib

import pytest

from harness import LIBFAKETIME, Client, Person, Server, quote, wait_for
from test_rooms import PNG, media_path, upload

CREATE = "/_matrix/media/v1/create"


def later(client: Client) -> tuple[str, str]:
    """An id that waits for its content: the URI, and the path to upload to."""
    uri = client.ok("POST", CREATE, {})["content_uri"]
    return uri, "/_matrix/media/v3/upload/" + uri.removeprefix("mxc://")


def put(client: Client, path: str, content: bytes = PNG, name: str = "photo.png", kind: str = "image/png"):
    return client.request("PUT", f"{path}?filename={quote(name)}", body=content, headers={"Content-Type": kind})


def post(client: Client, content: bytes, name: str | None = None, kind: str = "application/octet-stream"):
    path = "/_matrix/media/v3/upload" + (f"?filename={quote(name)}" if name is not None else "")
    return client.post(path, body=content, headers={"Content-Type": kind})


def file_of(server: Server, content: bytes) -> pathlib.Path:
    digest = hashlib.sha256(content).hexdigest()
    return server.data / "media" / digest[:2] / digest


@pytest.fixture(scope="module")
def people(any_city: Server) -> list[Person]:
    return [any_city.person() for _ in range(3)]


# Ids before their content ---------------------------------------------------------------------------------------------


def test_content_comes_later(any_city: Server, people: list[Person]):
    nurse, doctor, stranger = (person.client for person in people)
    room = any_city.room(people[0], people[1])
    made = nurse.ok("POST", CREATE, {})
    assert set(made) == {"content_uri", "unused_expires_at"}
    assert 23 * 3600 < made["unused_expires_at"] / 1000 - time.time() < 25 * 3600
    uri = made["content_uri"]
    path = "/_matrix/media/v3/upload/" + uri.removeprefix("mxc://")
    quick = media_path(uri) + "?timeout_ms=0"
    # Its owner is told that it is not there yet, others that there is nothing.
    assert nurse.get(quick).told == (504, "M_NOT_YET_UPLOADED")
    assert nurse.get(quick.replace("/download/", "/thumbnail/") + "&width=32&height=32").told == (504, "M_NOT_YET_UPLOADED")
    missing = doctor.get(media_path(f"mxc://{any_city.server_name}/{'a' * 24}"))
    answer = doctor.get(quick)
    assert (answer.status, answer.content) == (missing.status, missing.content)
    assert put(doctor, path).told == (403, "M_FORBIDDEN")
    assert nurse.get(media_path(uri) + "?timeout_ms=x").told == (400, "M_INVALID_PARAM")
    # It may be shown before it is there: who sees the message waits for it.
    nurse.say(room, "写真", msgtype="m.image", url=uri)
    assert doctor.get(quick).told == (504, "M_NOT_YET_UPLOADED")
    assert stranger.get(quick).status == 404
    waiting = people[1].log_in()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(waiting.get(media_path(uri) + "?timeout_ms=20000")))
    thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert put(nurse, path).json == {}
    thread.join(10)
    assert answers and answers[0].status == 200 and answers[0].content == PNG and time.monotonic() - began < 5
    assert put(nurse, path).told == (409, "M_CANNOT_OVERWRITE_MEDIA")
    assert put(doctor, path).told == (404, "M_NOT_FOUND"), "nobody learns of others' media"
    assert stranger.get(media_path(uri)).status == 404
    for wrong in ("/_matrix/media/v3/upload/other.example/" + uri.rsplit("/", 1)[1],
                  f"/_matrix/media/v3/upload/{any_city.server_name}/{'b' * 24}",
                  f"/_matrix/media/v3/upload/{any_city.server_name}/..%2F..%2Fkeys"):
        assert put(nurse, wrong).told == (404, "M_NOT_FOUND"), wrong


def test_a_refused_upload_leaves_its_id(any_city: Server, people: list[Person]):
    nurse = people[0].client
    uri, path = later(nurse)
    assert put(nurse, path, b"MZ" + bytes(64)).told == (403, "M_FORBIDDEN")
    assert put(nurse, path, name="a.exe").told == (403, "M_FORBIDDEN")
    assert put(nurse, path, name="a/b.png").told == (400, "M_INVALID_PARAM")
    assert put(nurse, path).status == 200 and nurse.get(media_path(uri)).content == PNG


def test_two_uploads_to_one_id(any_city: Server, people: list[Person]):
    """Whatever the order, one wins, and its content stays."""
    person = people[0]
    for _ in range(3):
        uri, path = later(person.client)
        clients = [person.log_in() for _ in range(4)]
        contents = [f"本文{i} {uri}".encode() for i in range(4)]
        told: list[int] = []
        threads = [threading.Thread(target=lambda c=c, b=b: told.append((put(c, path, b, "a.txt", "text/plain").status, b)))
                   for c, b in zip(clients, contents)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sorted(status for status, _ in told) == [200, 409, 409, 409]
        (kept,) = [body for status, body in told if status == 200]
        assert person.client.get(media_path(uri)).content == kept
        for body in contents:
            assert file_of(any_city, body).exists() == (body == kept), "what lost the race leaves no file"


def test_open_uploads_are_few_and_end(fresh):
    server = fresh(config={"limits": {"pending_uploads": 3, "pending_upload_seconds": 25}})
    nurse = server.person()
    uri, path = later(nurse.client)
    late, late_path = later(nurse.client)
    server.restart()
    nurse.client.close()
    client = nurse.log_in()
    assert put(client, path).status == 200, "an id outlives a restart"
    for _ in range(2):
        later(client)
    assert client.post(CREATE, {}).told == (429, "M_LIMIT_EXCEEDED")
    assert server.person().client.post(CREATE, {}).status == 200, "each has their own"
    wait_for(lambda: client.get(media_path(late) + "?timeout_ms=0").status == 404, 60, 0.2)
    assert put(client, late_path).told == (404, "M_NOT_FOUND")
    wait_for(lambda: client.post(CREATE, {}).status == 200, 60, 0.2)
    assert client.get(media_path(uri)).content == PNG


# Parts of files -------------------------------------------------------------------------------------------------------


def test_parts_of_a_file(any_city: Server, people: list[Person]):
    client = people[0].client
    content = bytes(range(256)) * 1000
    uri = post(client, content, "音声.bin").json["content_uri"]
    whole = client.get(media_path(uri))
    assert whole.status == 200 and whole.content == content and whole.headers["Accept-Ranges"] == "bytes"
    etag = whole.headers["ETag"]
    for asked, first, last in [("0-0", 0, 0), ("100-299", 100, 299), ("255990-", 255990, 255999), ("-5", 255995, 255999),
                               ("0-999999", 0, 255999)]:
        part = client.get(media_path(uri), headers={"Range": f"bytes={asked}"})
        assert part.status == 206 and part.content == content[first:last + 1], asked
        assert part.headers["Content-Range"] == f"bytes {first}-{last}/256000"
        assert part.headers["Content-Length"] == str(last - first + 1)
    for asked in ("256000-", "999999-1000000", "-0"):
        part = client.get(media_path(uri), headers={"Range": f"bytes={asked}"})
        assert part.status == 416 and part.headers["Content-Range"] == "bytes */256000", asked
    for asked in ("0-1,5-6", "5-2", "x-y", ""):
        assert client.get(media_path(uri), headers={"Range": f"bytes={asked}"}).status == 200, asked
    same = client.get(media_path(uri), headers={"Range": "bytes=0-9", "If-Range": etag})
    other = client.get(media_path(uri), headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (same.status, other.status) == (206, 200) and other.content == content
    known = client.get(media_path(uri), headers={"If-None-Match": f'"other", {etag}'})
    assert known.status == 304 and not known.content and known.headers["ETag"] == etag
    assert client.get(media_path(uri), headers={"If-None-Match": '"other"'}).status == 200


# Names, types, headers ------------------------------------------------------------------------------------------------


def zipped(*names: str, comment: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"<xml/>" * 100)
        archive.comment = comment
    return out.getvalue()


def encrypted(data: bytes) -> bytes:
    """The same zip with the mark of encryption in every header; names stay readable (APPNOTE 4.4.4)."""
    out = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = out.find(mark)
        while place >= 0:
            out[place + at] |= 1
            place = out.find(mark, place + 4)
    return bytes(out)


def iso(mark: bytes) -> bytes:
    return bytes(0x8001) + mark + bytes(100)


PROGRAMS = {
    "exe": (b"MZ\x90\0" + bytes(100), "写真.jpg"),
    "elf": (b"\x7fELF\x02\x01" + bytes(50), None),
    "msi": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + b"\x84\x10\x0c\0\0\0\0\0\xc0\0\0\0\0\0\0\x46" + bytes(600), "a.doc"),
    "shell script": (b"#!/bin/sh\nrm -rf /\n", "memo.txt"),
    "batch": (b"@echo off\r\n", "memo.txt"),
    "lnk": (b"\x4c\0\0\0\x01\x14\x02\0" + bytes(100), "計画書.pdf"),
    "iso": (iso(b"CD001"), "記録.bin"),
    "udf": (iso(b"BEA01"), "記録.bin"),
    "vhdx": (b"vhdxfile" + bytes(100), "記録.bin"),
    "cab": (b"MSCF\0\0\0\0" + bytes(100), "記録.bin"),
    "macros hidden in a docx": (zipped("[Content_Types].xml", "word/document.xml", "word/vbaProject.bin"), "計画書.docx"),
    "macro sheet in a xlsx": (zipped("xl/workbook.xml", "xl/macrosheets/sheet1.xml"), "表.xlsx"),
    "program in a zip": (zipped("写真/a.jpg", "写真/setup.exe"), "写真.zip"),
    "program in an encrypted zip": (encrypted(zipped("見積.js")), "見積.zip"),
    "zip behind something else": (zipped("run.ps1", comment=b"x" * 200), "a.zip"),
    "jar": (zipped("META-INF/MANIFEST.MF", "A.class"), "a.zip"),
    "old office with macros": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "_VBA_PROJECT".encode("utf-16-le"), "a.xls"),
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_programs_are_refused(any_city: Server, people: list[Person], what: str):
    content, name = PROGRAMS[what]
    answer = post(people[0].client, content, name)
    assert answer.told == (403, "M_FORBIDDEN") and "添付できません" in answer.json["error"]
    assert not file_of(any_city, content).exists()


@pytest.mark.parametrize("name", [
    "a.exe", "A.EXE", "a.exe. ", "報告.docm", "表.xlsm", "a.msi", "a.js", "a.vbs", "a.ps1", "a.lnk", "a.iso", "a.img", "a.hta",
    "a.scr", "写真.jpg.bat", "a.jar", "a.apk", "a.py", "a.xll", "a.appref-ms", "a.settingcontent-ms", "a.cab", "a.url"])
def test_names_of_programs_are_refused(any_city: Server, people: list[Person], name: str):
    assert post(people[0].client, b"harmless", name).told == (403, "M_FORBIDDEN")


def test_documents_are_taken(any_city: Server, people: list[Person]):
    """What people do send: none of it is refused."""
    for content, name, kind in [
        (zipped("[Content_Types].xml", "word/document.xml"), "計画書.docx",
         "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "表.xlsx",
         "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        (zipped("写真/a.jpg", "写真/b.jpg"), "写真.zip", "application/zip"),
        (b"%PDF-1.7 ...", "報告書.pdf", "application/pdf"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "旧様式.doc", "application/msword"),
        ("発熱あり".encode(), "メモ.txt", "text/plain; charset=utf-8"),
    ]:
        answer = post(people[0].client, content, name, kind)
        assert answer.status == 200, (name, answer)
        got = people[0].client.get(media_path(answer.json["content_uri"]))
        assert got.content == content and got.headers["Content-Type"].split(";")[0] == kind.split(";")[0]
        assert urllib.parse.quote(name) in got.headers["Content-Disposition"]


@pytest.mark.parametrize("content,kind,name", [
    (b"<html><script>alert(1)</script>", "text/html", "a.html"),
    (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "image/svg+xml", "a.svg"),
    (b"<?xml version='1.0'?><x/>", "application/xhtml+xml", "a.xhtml"),
    (b"alert(1)", "text/javascript", "a.txt"),
    (b"<html><script>alert(1)</script>", "image/png", "a.png"),
    (b"<html>", "nonsense\t; x", "a"),
])
def test_markup_is_inert(any_city: Server, people: list[Person], content: bytes, kind: str, name: str):
    uri = post(people[0].client, content, name, kind).json["content_uri"]
    for path in (media_path(uri), media_path(uri) + "/x.html"):
        got = people[0].client.get(path)
        assert got.headers["Content-Type"] == "application/octet-stream"
        assert got.headers["Content-Disposition"].startswith("attachment")
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in got.headers["Content-Security-Policy"] and "default-src 'none'" in got.headers["Content-Security-Policy"]
        assert got.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert "private" in got.headers["Cache-Control"]


def test_names_lead_nowhere(any_city: Server, people: list[Person]):
    client = people[0].client
    for bad in ("../../keys/ca.key", "/etc/passwd", "..\\x", "a\nb", "a\0b", "x" * 256, "cod\u202efdp.exe", "a/b"):
        assert post(client, b"x", bad).told == (400, "M_INVALID_PARAM"), bad
    uri = upload(people[0])
    for wished, shown in {"%2e%2e%2f%2e%2e%2fkeys": None, "..%2F..%2Fetc%2Fpasswd": None, "a%0d%0aX-Bad: 1".replace(" ", "%20"): None,
                          "setup.exe": None, "%E5%86%99%E7%9C%9F.png": "写真.png", "a%22b.png": "a%22b.png"}.items():
        got = client.get(f"{media_path(uri)}/{wished}")
        assert got.status == 200 and got.content == PNG and "X-Bad" not in got.headers, wished
        disposition = got.headers["Content-Disposition"]
        assert "/" not in disposition and "exe" not in disposition and "\\" not in disposition, wished
        if shown:
            assert urllib.parse.unquote(disposition.split("filename*=UTF-8''")[1]) == urllib.parse.unquote(shown)
    for path in ("/_matrix/client/v1/media/download/{}/..%2F..%2Fkeys%2Fca.key", "/_matrix/client/v1/media/thumbnail/{}/.."
                 "%2f?width=1&height=1", "/_matrix/client/v1/media/download/..%2F../{}"):
        assert client.get(path.format(any_city.server_name)).status in (400, 404), path


def test_the_same_bytes_are_stored_once(any_city: Server, people: list[Person]):
    content = b"%PDF-1.7 one and the same " + any_city.base.encode()
    first = post(people[0].client, content, "a.pdf").json["content_uri"]
    second = post(people[1].client, content, "b.pdf").json["content_uri"]
    assert first != second and file_of(any_city, content).exists()
    digest = hashlib.sha256(content).hexdigest()
    assert any_city.count(f"SELECT COUNT(*) FROM blobs WHERE sha256 = '{digest}'") == 1
    assert people[1].client.get(media_path(first)).status == 404, "having the same file opens nobody else's"


# What nobody shows ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(LIBFAKETIME is None, reason="needs Debian's libfaketime: a day cannot be waited for")
@pytest.mark.parametrize("encryption", ["forbidden", "allowed"])
def test_what_no_event_shows_goes_after_a_day(database: str, fresh, encryption: str):
    """Every hour, and at the start. Not what a room or a profile shows, nor bytes that another medium has too; and nothing
    where encrypted events may show it."""
    server = fresh(database, config={"policy": {"encryption": encryption, "openid_tokens": True}})
    a, b = server.person(), server.person()
    room = server.room(a, b)
    contents = {name: b"%PDF-1.7 " + name.encode() + secrets.token_bytes(16) for name in ("alone", "shown", "twin", "late")}
    uri = {name: post(a.client, content, f"{name}.pdf").json["content_uri"] for name, content in contents.items()}
    a.client.say(room, "ここに", msgtype="m.file", url=uri["shown"])
    twin = post(b.client, contents["twin"], "twin.pdf").json["content_uri"]
    b.client.say(room, "ここにも", msgtype="m.file", url=twin)
    picture = upload(a, PNG + secrets.token_bytes(16))
    a.client.ok("PUT", f"/_matrix/client/v3/profile/{quote(a.user_id)}/avatar_url", {"avatar_url": picture})

    def hourly(offset: str) -> None:
        """Goes to a time, and waits until the hourly work has been done: it ends with tokens that last an hour."""
        a.client.ok("POST", f"/_matrix/client/v3/user/{quote(a.user_id)}/openid/request_token", {})
        server.later(offset)
        for person in (a, b):
            person.client.close()
        wait_for(lambda: server.count("SELECT COUNT(*) FROM openid_tokens") == 0, 30, 0.1, "the hourly work")

    def there() -> dict[str, bool]:
        found = {name: a.client.get(media_path(one)).status == 200 for name, one in uri.items()}
        return found | {"other twin": b.client.get(media_path(twin)).status == 200, "picture": a.client.get(media_path(picture)).status == 200}

    everything = dict.fromkeys([*uri, "other twin", "picture"], True)
    hourly("+23h")
    assert there() == everything, "a day is not over"
    a.client.say(room, "そして", msgtype="m.file", url=uri["late"])
    hourly("+25h")
    if encryption == "allowed":
        assert there() == everything
        assert file_of(server, contents["alone"]).exists()
        return
    assert there() == everything | {"alone": False, "twin": False}
    assert not file_of(server, contents["alone"]).exists()
    assert all(file_of(server, contents[name]).exists() for name in ("shown", "twin", "late"))
    assert server.count("SELECT COUNT(*) FROM media") == 4 == server.count("SELECT COUNT(*) FROM blobs")
    hourly("+300d")
    assert there() == everything | {"alone": False, "twin": False}


# Quotas ---------------------------------------------------------------------------------------------------------------


def test_quotas(database: str, fresh):
    server = fresh(database, config={"limits": {"media_bytes_per_account": 100_000, "media_bytes_in_all": 150_000,
                                                "upload_bytes": 80_000}})
    nurse, doctor = server.person(), server.person()
    assert post(nurse.client, b"a" * 80_001).told == (413, "M_TOO_LARGE")
    one = b"a" * 60_000
    assert post(nurse.client, one).status == 200
    answer = post(nurse.client, b"b" * 60_000)
    assert answer.told == (403, "M_FORBIDDEN") and "合計" in answer.json["error"]
    assert not file_of(server, b"b" * 60_000).exists(), "a refused file does not stay"
    assert file_of(server, one).exists()
    assert post(nurse.client, b"c" * 40_000).status == 200, "up to the last byte"
    assert post(nurse.client, b"d").told == (403, "M_FORBIDDEN")
    # All together: 100,000 are there; the same bytes again take no room.
    assert post(doctor.client, b"e" * 60_000).told == (403, "M_FORBIDDEN")
    assert post(doctor.client, one).status == 200
    uri, path = later(doctor.client)
    assert put(doctor.client, path, b"f" * 60_000, "a.txt", "text/plain").told == (403, "M_FORBIDDEN")
    assert put(doctor.client, path, b"f" * 30_000, "a.txt", "text/plain").status == 200


def test_of_what_is_a_little_too_large_the_refusal_arrives(fresh):
    """Refused by its length, before a byte is read; the rest is still on its way when the answer goes out."""
    server = fresh(profile="open", config={"limits": {"upload_bytes": 80_000}})
    person = server.register()
    with socket.create_connection(("127.0.0.1", int(server.base.rsplit(":", 1)[1])), timeout=10) as line:
        line.sendall(f"POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: {server.base.split('/')[2]}\r\n"
                     f"Authorization: Bearer {person.client.token}\r\nContent-Type: text/plain\r\n"
                     "Content-Length: 90000\r\n\r\n".encode() + b"x" * 10_000)
        assert line.recv(65_536).startswith(b"HTTP/1.1 413 ")
        line.sendall(b"x" * 80_000)
        # The connection goes on.
        line.sendall(f"GET /_matrix/client/versions HTTP/1.1\r\nHost: {server.base.split('/')[2]}\r\n\r\n".encode())
        assert line.recv(65_536).startswith(b"HTTP/1.1 200 ")


# Pictures made to do harm ---------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, raw: bytes | None = None, before: bytes = b"") -> bytes:
    channels = {0: 1, 2: 3, 6: 4}[colour]
    if raw is None:
        raw = (b"\0" + bytes((width * channels * depth + 7) // 8)) * height
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)) + before
            + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


def zeros(count: int) -> bytes:
    """So many zero bytes, compressed."""
    packer, out = zlib.compressobj(9), []
    block = bytes(1 << 20)
    for _ in range(count >> 20):
        out.append(packer.compress(block))
    return b"".join(out) + packer.flush()


def bombs() -> dict[str, tuple[bytes, str, set[int]]]:
    jpeg = bytes.fromhex("ffd8ffe000104a46494600010100000100010000") + b"\xff\xc0\x00\x11\x08" + struct.pack(
        ">HH", 65_500, 65_500) + bytes.fromhex("03012200021101031101ffda000c03010002110311003f00") + bytes(1000) + b"\xff\xd9"
    gif = b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes.fromhex("800000000000ffffff2c00000000") + struct.pack(
        "<HH", 65_535, 65_535) + bytes.fromhex("0002024401003b")
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([0, 0, 0, 0]) + b"\xff\x3f\x00" + b"\xff\x3f\x00"
    webp = b"RIFF" + struct.pack("<I", len(webp)) + webp
    hundreds = zeros(600 << 20)
    return {
        "a PNG of 2.5 thousand million pixels": (png(50_000, 50_000, depth=1, colour=0, raw=b"\0" * 100), "image/png", {413}),
        "a PNG of 16 bits per channel": (png(6_300, 6_300, depth=16, colour=6, raw=b"\0" * 100), "image/png", {413}),
        "a PNG with more data than pixels": (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 500, 500, 8, 2, 0, 0, 0)) + chunk(b"IDAT", hundreds)
            + chunk(b"IEND", b""), "image/png", {200, 400, 413}),
        "a PNG with a profile that grows": (
            png(500, 500, before=chunk(b"iCCP", b"x\0\0" + hundreds)), "image/png", {200, 400, 413}),
        "a PNG with a text that grows": (
            png(500, 500, before=chunk(b"zTXt", b"x\0\0" + hundreds)), "image/png", {200, 400, 413}),
        "a JPEG of four thousand million pixels": (jpeg, "image/jpeg", {400, 413}),
        "a GIF of four thousand million pixels": (gif, "image/gif", {400, 413}),
        "a WebP of 268 million pixels": (webp, "image/webp", {400, 413}),
        "a broken PNG": (png(500, 500)[:60], "image/png", {400}),
        "no picture at all": (b"\x89PNG\r\n\x1a\n" + b"x" * 500, "image/png", {400}),
    }


def peak_kib(server: Server) -> int:
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


def test_bombs_do_not_go_off(fresh):
    server = fresh()
    nurse = server.person()
    whole = png(3_000, 2_000)
    uri = post(nurse.client, whole, "a.png", "image/png").json["content_uri"]
    thumbnail = media_path(uri).replace("/download/", "/thumbnail/")
    assert nurse.client.get(thumbnail + "?width=320&height=240").status == 200
    before = peak_kib(server)
    for what, (content, kind, allowed) in bombs().items():
        uri = post(nurse.client, content, "a", kind).json["content_uri"]
        began = time.monotonic()
        answer = nurse.client.get(media_path(uri).replace("/download/", "/thumbnail/") + "?width=320&height=240&method=scale")
        assert answer.status in allowed, (what, answer)
        assert time.monotonic() - began < 20, what
    # 40 million pixels of four bytes are the limit of one decoder.
    assert peak_kib(server) - before < 250_000, "memory"
    assert nurse.client.get(thumbnail + "?width=96&height=96&method=crop").status == 200, "it goes on"


def test_wished_sizes(any_city: Server, people: list[Person]):
    client = people[0].client
    uri = post(client, png(1_000, 500), "a.png", "image/png").json["content_uri"]
    path = media_path(uri).replace("/download/", "/thumbnail/")
    for query in ("", "?width=32", "?width=0&height=32", "?width=-1&height=5", "?width=x&height=5", "?width=32&height=32&method=x",
                  "?width=99999999999&height=1"):
        assert client.get(path + query).status == 400, query
    for query in ("?width=32&height=32&method=crop", "?width=1&height=1", "?width=4294967295&height=4294967295",
                  "?width=320&height=240&animated=true"):
        got = client.get(path + query)
        assert got.status == 200 and got.headers["Content-Type"] in ("image/jpeg", "image/png"), query
        assert got.headers["Content-Disposition"].startswith("inline")


def test_previews_stay_off(any_city: Server, people: list[Person]):
    """C31: nothing outside is fetched."""
    for path in ("/_matrix/client/v1/media/preview_url", "/_matrix/media/v3/preview_url"):
        assert people[0].client.get(path + "?url=https%3A%2F%2Fexample.jp").told == (404, "M_NOT_FOUND")
