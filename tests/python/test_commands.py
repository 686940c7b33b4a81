"""The command line as its users type it: what the helps say, `heya cert` and `heya audit` against a running city, and what
is said when a command cannot do its work (README, "Commands")."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import sqlite3
import subprocess
import time

import pytest

from harness import Enrolment, Postgres, Server, Terminal, binary, quote, unpack, wait_for
from test_room_life import Desk
from test_rooms import PNG, upload

WHOAMI = "/_matrix/client/v3/account/whoami"

# What must stand in each help for somebody who has nothing else at hand.
HELPS: dict[str, list[str]] = {
    "": ["serve", "demo", "city", "mail", "cert", "routes", "audit", "register", "backup", "restore", "--config", "config.toml"],
    "serve": ["city bot", "e-mail bridge", "first start", "handover sheets", "SIGTERM", "--profile", "city", "open",
              "loopback", "--server-only", "heya city", "heya mail"],
    "demo": ["story", "--data", "removed", "--database-url", "postgres://", "sqlite:", "--once", "exit status", "--port",
             "loopback", "stays up"],
    "city": ["bot", "serve --server-only"],
    "mail": ["bridge", "serve --server-only"],
    "cert": ["list", "issue", "renew", "revoke", "server runs"],
    "cert list": ["terminals", "certificate"],
    "cert issue": ["code", "sheet", "<LOGIN_ID>", "p100001", "current password"],
    "cert renew": ["<TERMINAL>", "heya cert list", ".p12", "expires"],
    "cert register": ["<FILE>", "--facility", "--label", "--terminal", "client_ca"],
    "cert crl": ["revo"],
    "cert revoke": ["<TERMINAL>", "heya cert list", "sessions", "at once", "--reason", "audit"],
    "register": ["台帳", "CSV", "facilities", "accounts", "terminals", "rooms", "members", "cases", "[FILE]", "logged", "byte order mark",
                 "formula", "owner only", "standard output", "server must run"],
    "routes": ["method", "path"],
    "audit": ["verify", "list", "originals", "操作履歴"],
    "audit verify": ["changed", "removed", "cut off", "xit status 1"],
    "audit originals": ["--room", "部屋番号", "--reason", "auditor", "edited", "redacted", "logged", "purged"],
    "audit list": ["--room", "部屋番号", "--limit", "newest", "200", "who", "when", "terminal"],
    "backup": ["[FOLDER]", "must not exist", "Keys are not in it", "server runs", "generation", "backup.keep", "complete", "removed",
               "pg_dump"],
    "restore": ["<FOLDER>", "heya backup", "empty data folder", "must not run", "pg_restore", "compared"],
}


def heya(*words: str, cwd: pathlib.Path, rc: int | None = 0, **env: str) -> subprocess.CompletedProcess:
    """A command in a folder; its exit status."""
    done = subprocess.run([binary(), *words], capture_output=True, text=True, timeout=60, cwd=cwd,
                          env=os.environ | env, check=False)
    assert rc is None or done.returncode == rc, done
    return done


def described(help_text: str) -> dict[str, str]:
    """Every option, argument and subcommand of a help with what is said of it."""
    found: dict[str, str] = {}
    name = None
    section = ""
    for line in help_text.splitlines():
        if re.fullmatch(r"(Options|Arguments|Commands):", line):
            section, name = line, None
        elif section and (entry := re.match(r" {2,6}((?:-\w, )?--[\w-]+(?: <\w+>)?|-\w, --[\w-]+|<\w+>|\[\w+\]|[a-z]+)(?: {2,}(.*))?$", line)):
            name = entry[1]
            found[name] = entry[2] or ""
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


@pytest.mark.parametrize("command", HELPS)
def test_help_is_enough_to_work_from(command, tmp_path):
    words = command.split()
    text = heya(*words, "--help", cwd=tmp_path).stdout
    missing = [need for need in HELPS[command] if need not in " ".join(text.split())]
    assert not missing, f"heya {command} --help does not say: {missing}"
    assert text.splitlines()[0] and re.search(rf"^Usage: heya {command}".rstrip(), text, re.M)
    for name, said in described(text).items():
        said = re.sub(r"\[default: [^\]]*\]", "", said)
        assert len(said.split()) >= 2 or len(said) >= 10, f"heya {command} --help says next to nothing of {name}: {said!r}"
    assert heya(*words, "-h", cwd=tmp_path).stdout.splitlines()[0].rstrip(".") == text.splitlines()[0].rstrip(".")
    assert not list(tmp_path.iterdir()), "a help leaves nothing behind"


def test_the_helps_are_all_tested(tmp_path):
    """Each subcommand, and theirs."""
    found = {""}
    for command in list(HELPS):
        listed = re.search(r"^Commands:\n(.*?)\n\n", heya(*command.split(), "--help", cwd=tmp_path).stdout, re.M | re.S)
        if listed:
            found |= {f"{command} {name}".strip() for name in re.findall(r"^  (\w+)", listed[1], re.M) if name != "help"}
    assert found == set(HELPS)


@pytest.mark.parametrize(("command", "said"), [
    ("city", r"first"), ("city", r"same (config|data)|one config|data folder"), ("city", r"city\.bot"),
    ("mail", r"first"), ("mail", r"same (config|data)|one config|data folder"), ("mail", r"mail\.enabled"),
    ("backup", r"pg_dump|PostgreSQL"), ("restore", r"keys"), ("audit list", r"server (must run|runs)")])
def test_help_says_what_the_readme_says(command, said, tmp_path):
    """Bot and bridge need the server's first start, its data folder and its config; PostgreSQL is dumped by its own tool."""
    text = " ".join(heya(*command.split(), "--help", cwd=tmp_path).stdout.split())
    text = text.replace("The configuration file.", "")
    assert re.search(said, text), text


def test_a_command_that_does_not_exist(tmp_path):
    assert "unrecognized subcommand 'frob'" in heya("frob", cwd=tmp_path, rc=1).stderr
    assert "--frob" in heya("serve", "--frob", cwd=tmp_path, rc=1).stderr
    assert "Usage: heya" in heya(cwd=tmp_path, rc=1).stderr, "without a command the help is shown"
    assert '"city" or "open"' in heya("serve", "--profile", "frob", cwd=tmp_path, rc=1).stderr
    assert not list(tmp_path.iterdir())


def test_without_a_server_each_says_what_is_missing(tmp_path):
    """No city has begun here: one sentence each, nothing left behind, exit status 1."""
    for words, said in {
        ("city",): "the server's first start makes it",
        ("mail",): "mail.token",
        ("cert", "list"): "command.token",
        ("restore", "nowhere"): "nowhere is no backup",
    }.items():
        done = heya(*words, cwd=tmp_path, rc=1)
        assert said in done.stderr and len(done.stderr.splitlines()) == 1 and not done.stdout, done
    assert not list(tmp_path.iterdir())


# Against a city ------------------------------------------------------------------------------------------------------


def of_city(city: Server, *words: str, rc: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(city.command(*words), capture_output=True, text=True, timeout=60, cwd=city.folder, check=False)
    assert done.returncode == rc, done
    return done


def row_of(city: Server, serial: str) -> list[str]:
    """The row of a certificate."""
    head, *rows = [line.split() for line in of_city(city, "cert", "list").stdout.splitlines()]
    assert head == ["端末", "事業所", "状態", "期限", "証明書番号", "端末の名前"]
    (row,) = [row for row in rows if row[-2].lower().lstrip("0") == serial.lstrip("0")]
    return row


def serial_of(terminal: Terminal) -> str:
    return terminal.cert.stem


def test_cert_as_typed(any_city):
    """`heya cert issue`, `list`, `renew`, `revoke`: what each prints is enough for the next step."""
    city, person = any_city, any_city.person()
    first = city.terminal_number(person)
    row = row_of(city, serial_of(person.terminal))
    assert row[-4].endswith("valid") and re.fullmatch(r"\d{4}-\d\d-\d\d", row[-3]) and row[-1] == "受付のパソコン"

    # A code for a further terminal: its sheet, and nothing of what is on it.
    printed = of_city(city, "cert", "issue", person.login_id).stdout.strip().splitlines()
    assert len(printed) == 1 and pathlib.Path(printed[0]).is_file(), printed
    assert pathlib.Path(printed[0]).stat().st_mode & 0o077 == 0
    code = city.sheet(str(pathlib.Path(printed[0]).relative_to(city.data)))[0]
    assert code not in printed[0]
    second = Enrolment(city).through(person.login_id, person.password, code, None, label="二台目")
    client = city.public(second)
    login = city.log_in(client, person.login_id, person.password)
    assert login.status == 200
    number = city.terminal_number(person)
    assert number != first and row_of(city, serial_of(second))[-1] == "二台目"

    # A new certificate for the same terminal, beside the old one.
    files = of_city(city, "cert", "renew", str(number)).stdout.split()
    p12 = next(pathlib.Path(name) for name in files if name.endswith(".p12"))
    password = next(pathlib.Path(name) for name in files if name.endswith(".password")).read_text().strip()
    renewed = unpack(p12.read_bytes(), password, city.folder / "typed")
    for terminal in (second, renewed):
        assert city.public(terminal, login.json["access_token"]).get(WHOAMI).status == 200

    # Lost: at once, with every certificate; the other terminal goes on.
    done = of_city(city, "cert", "revoke", str(number), "--reason", "紛失の届け")
    assert done.stdout == "失効しました。終了したセッション: 1\n"
    for terminal in (second, renewed):
        refused = city.public(terminal, login.json["access_token"]).get(WHOAMI)
        assert refused.status == 403 and refused.json["jp.heya.certificate"] == "revoked"
    assert row_of(city, serial_of(renewed))[-4].endswith("revoked")
    assert row_of(city, serial_of(person.terminal))[-4].endswith("valid")
    assert person.client.get(WHOAMI).status == 200
    # What was lost does not come back by a renewal.
    assert "この端末は失効しています" in of_city(city, "cert", "renew", str(number), rc=1).stderr
    assert row_of(city, serial_of(renewed))[-4].endswith("revoked")
    log = of_city(city, "audit", "list", "--limit", "20").stdout
    assert "紛失の届け" in log and "terminal.revoke" in log, log


def test_cert_list_has_columns(city):
    """`renew` and `revoke` take the number from here: it must be possible to tell it from the facility's."""
    person = city.person()
    row = row_of(city, serial_of(person.terminal))
    assert row[:3] == [str(city.terminal_number(person)), str(person.facility), "valid"], row


def test_cert_refuses_in_a_sentence(city):
    for words in (["issue", "p999999"], ["issue", "no/such"], ["renew", "999999"], ["revoke", "999999"]):
        done = of_city(city, "cert", *words, rc=1)
        assert re.fullmatch(r"heya: \S.{8,}\n", done.stderr) and not done.stdout, done
        assert "internal" not in done.stderr.lower(), done
    assert "invalid value 'x'" in of_city(city, "cert", "renew", "x", rc=1).stderr


def test_commands_say_when_the_server_does_not_run(fresh):
    city = fresh()
    city.stop()
    for words in (["cert", "list"], ["audit", "list"], ["register", "rooms"]):
        assert "the server does not run: start it with `heya serve`" in of_city(city, *words, rc=1).stderr
    assert "正しくつながっています" in of_city(city, "audit", "verify").stdout, "the proof needs no server"


def registered(city: Server, which: str) -> list[dict[str, str]]:
    """A register as a spreadsheet reads it."""
    printed = subprocess.run(city.command("register", which), capture_output=True, timeout=60, cwd=city.folder, check=True).stdout
    text = printed.decode("utf-8-sig")
    assert printed.startswith(b"\xef\xbb\xbf") and text.count("\r\n") >= 1
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_registers_as_a_spreadsheet_reads_them(any_city):
    """`heya register`: facilities, IDs with their last use, terminals, rooms, who is in them (C18, C20, C27)."""
    city = any_city
    facility = city.facility(f"=HYPERLINK(\"x\"),薬局{secrets.token_hex(3)}", "pharmacy")
    person, absent = city.person(facility), city.issue(facility)
    room = city.room(person, absent, name="医師会, \"試験\"の部屋")
    number = next(one["room_number"] for one in city.look("rooms")["rooms"] if one["room_id"] == room)

    def of(which: str, column: str, value: str) -> dict[str, str]:
        (row,) = [row for row in registered(city, which) if row[column] == value]
        return row

    place = of("facilities", "事業所番号", str(facility))
    # No formula runs in the city's office: an apostrophe stands before it.
    assert place["事業所"].startswith("'=HYPERLINK") and place["種別"] == "薬局" and place["利用中のID"] == "2"
    used, unused = of("accounts", "ID", person.login_id), of("accounts", "ID", absent.login_id)
    assert (used["区分"], used["状態"], unused["状態"]) == ("個人ID", "利用中", "発行済(未登録)")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", used["最終利用日時"]) and unused["最終利用日時"] == ""
    assert used["事業所番号"] == str(facility) and used["職種"] == "看護師" and used["氏名"].startswith("試験太郎")
    terminal = of("terminals", "端末番号", str(city.terminal_number(person)))
    assert terminal["登録したID"] == person.login_id and terminal["証明書の状態"] == "有効"
    assert terminal["証明書番号"].lower().lstrip("0") == serial_of(person.terminal).lstrip("0")
    here = of("rooms", "部屋番号", str(number))
    assert here["部屋の名前"] == "医師会, \"試験\"の部屋" and (here["種別"], here["状態"]) == ("職能団体の部屋", "利用中")
    city.change_members(room, remove=[absent])
    inside = {row["ID"]: row["状態"] for row in registered(city, "members") if row["部屋番号"] == str(number)}
    assert inside == {person.login_id: "参加中", absent.login_id: "退出"} and here["参加者数"] == "2"

    # The last use outlives the session.
    seen = registered(city, "accounts")
    person.client.ok("POST", "/_matrix/client/v3/logout", {})
    last = {row["ID"]: row["最終利用日時"] for row in registered(city, "accounts")}
    assert last[person.login_id] >= next(row["最終利用日時"] for row in seen if row["ID"] == person.login_id) != ""

    # Revoked, closed: the registers say so; and the log says that each was written out.
    city.revoke(city.terminal_number(person))
    city.close_room(room)
    assert of("terminals", "端末番号", terminal["端末番号"])["証明書の状態"] == "失効"
    assert of("rooms", "部屋番号", str(number))["状態"] == "終了"
    log = of_city(city, "audit", "list", "--limit", "40").stdout
    assert {which for which in ("facilities", "accounts", "terminals", "rooms", "members") if f"register.export ok 端末- 証明書- - {which}" in log} == {
        "facilities", "accounts", "terminals", "rooms", "members"}, log


def test_a_register_in_a_file_is_its_owners(city, tmp_path):
    """The second time, too, and where it was others' before."""
    file = tmp_path / "台帳.csv"
    file.write_text("old")
    file.chmod(0o644)
    # What a crash, or somebody else, left beside it gives nobody the new one to read.
    stale = tmp_path / "台帳.csv.part"
    stale.write_text("old")
    stale.chmod(0o644)
    for _ in range(2):
        done = of_city(city, "register", "accounts", str(file))
        assert re.fullmatch(rf"台帳を書きました: {re.escape(str(file))} \(\d+件\)\n", done.stdout)
        assert file.stat().st_mode & 0o777 == 0o600 and file.read_bytes().startswith(b"\xef\xbb\xbfID,")
    assert [path.name for path in tmp_path.iterdir()] == ["台帳.csv"]
    refused = of_city(city, "register", "accounts", str(tmp_path / "none" / "x.csv"), rc=1)
    assert "x.csv: " in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert "invalid value 'people'" in of_city(city, "register", "people", rc=1).stderr


def test_the_register_of_cases(fresh):
    """What the city was asked for, who decided, and how it ended; without a bot's file it says so."""
    city = fresh(bot=True)
    desk = Desk(city)
    name = f"あおば{secrets.token_hex(3)}"
    desk.say(f"事業所登録 {name} 訪問看護 誓約済", f"{name}")
    wait_for(lambda: [row for row in registered(city, "cases") if row["状態"] == "完了"], 60, 0.2, "the case is done")
    (row,) = [row for row in registered(city, "cases") if name in row["内容"]]
    staff = next(one for one in registered(city, "accounts") if one["ID"] == desk.staff.login_id)
    assert row["依頼した人"] == f"{staff['氏名']} ({staff['ID']})" and row["案件番号"] == "1"
    assert row["受付日時"] and row["決定日時"] and row["決めた人"] == row["依頼した人"] and row["理由"] == ""
    (city.data / "city.sqlite").rename(city.folder / "away.sqlite")
    try:
        assert "案件の台帳を読めません" in of_city(city, "register", "cases", rc=1).stderr
    finally:
        (city.folder / "away.sqlite").rename(city.data / "city.sqlite")


def test_audit_list_of_a_room_that_is_none(city):
    assert "部屋番号99999の部屋はありません" in of_city(city, "audit", "list", "--room", "99999", rc=1).stderr


def test_audit_list_keeps_its_limit(any_city):
    assert len(of_city(any_city, "audit", "list", "--limit", "3").stdout.splitlines()) == 3
    newest = of_city(any_city, "audit", "list", "--limit", "1").stdout
    assert "audit.read" in newest, "the newest entry is this reading"


def test_a_log_that_is_gone_is_not_whole(fresh):
    """Truncation to nothing is truncation: the heads beside the database tell of entries that are not there."""
    city = fresh()
    city.stop()
    assert (city.data / "audit" / "heads").stat().st_size > 0
    for path in city.data.glob("heya.sqlite*"):
        path.unlink()
    done = of_city(city, "audit", "verify", rc=1)
    assert "正しくつながっています" not in done.stdout


@pytest.mark.parametrize("heads", [None, "garbage\n", ""])
def test_heads_that_are_gone_are_told(fresh, heads):
    """`audit/heads` is what finds a cut end (README, "Security notes"): where it is missing, that is no whole log."""
    city = fresh()
    city.stop()
    path = city.data / "audit" / "heads"
    path.unlink()
    if heads is not None:
        path.write_text(heads)
    done = subprocess.run(city.command("audit", "verify"), capture_output=True, text=True, timeout=60, cwd=city.folder, check=False)
    assert done.returncode != 0 or "heads" in done.stdout + done.stderr, done


def test_a_mistyped_config_is_not_another_city(tmp_path):
    """A daily `heya --config … audit verify` with a wrong path must fail, and make no database."""
    (tmp_path / "data").mkdir()
    done = heya("--config", "/nowhere/heya.toml", "audit", "verify", cwd=tmp_path, rc=None)
    assert done.returncode == 1 and "/nowhere/heya.toml" in done.stderr and not list((tmp_path / "data").iterdir()), done


def test_a_backup_that_fails_leaves_nothing(tmp_path):
    heya("backup", "saved", cwd=tmp_path, rc=1)
    assert not list(tmp_path.iterdir())


def all_tables(city: Server) -> dict[str, tuple[int, str]]:
    """How many rows each table has, and their hash, whatever order they come in."""
    if city.postgres_name:
        db = Postgres.shared()
        names = db.query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'", city.postgres_name).split()
        rows = {name: db.query(f'SELECT t::text FROM "{name}" AS t', city.postgres_name).splitlines() for name in names}
    else:
        with contextlib.closing(sqlite3.connect(city.data / "heya.sqlite", timeout=10)) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            rows = {name: [repr(row) for row in connection.execute(f'SELECT * FROM "{name}"')] for name in names}
    return {name: (len(some), hashlib.sha256("\n".join(sorted(some)).encode()).hexdigest()) for name, some in rows.items()}


def hashes(folder: pathlib.Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_backup_and_restore_as_typed(kind: str, fresh, request):
    """The restored city is the same city: its people log in with what they have, its rooms, files and log are there; clients
    begin afresh, and no key is handed out twice."""
    if kind == "postgres":
        request.getfixturevalue("postgres")
    city = fresh(kind, config={"policy": {"encryption": "allowed"}})
    person, other = city.person(), city.person()
    room = city.room(person, other)
    event = person.client.say(room, "復元を確かめる")
    photo = PNG + secrets.token_bytes(16)
    mxc = upload(person, photo)
    person.client.say(room, "写真", msgtype="m.image", url=mxc)
    one_time = {"signed_curve25519:AAAAAQ": {"key": "a" * 43, "signatures": {person.user_id: {f"ed25519:{person.device_id}": "b" * 86}}}}
    person.client.ok("POST", "/_matrix/client/v3/keys/upload", {"one_time_keys": one_time})
    exported = city.act(f"rooms/{quote(room)}/export", {"case": "backup"})["folder"]
    (city.data / "exports" / "0099-half.part").mkdir()
    since = person.client.sync()["next_batch"]

    def at_rest() -> dict | None:
        """The tables, once what follows a message by itself is written."""
        if not city.count("SELECT COUNT(*) FROM followers WHERE name = 'search' AND position >= (SELECT MAX(position) FROM events)"):
            return None
        tables = all_tables(city)
        time.sleep(0.3)
        return tables if all_tables(city) == tables else None

    saved = city.folder / "saved"
    before = wait_for(at_rest, 20, what="the index to follow")
    assert "バックアップを書きました" in of_city(city, "backup", str(saved)).stdout
    assert not (saved / "keys").exists() and not (saved / "sheets").exists() and saved.stat().st_mode & 0o077 == 0
    assert (saved / ("heya.pgdump" if kind == "postgres" else "heya.sqlite")).is_file()
    of_city(city, "backup", str(saved), rc=1)  # the folder exists
    person.client.say(room, "あとから")
    city.stop()
    kept = {name: hashes(city.data / name) for name in ("media", "exports", "certificates")}
    keys = city.folder / "keys"
    shutil.copytree(city.data / "keys", keys)
    shutil.rmtree(city.data)
    city.data.mkdir(mode=0o700)
    shutil.copytree(keys, city.data / "keys")
    if kind == "postgres":
        refused = of_city(city, "restore", str(saved), rc=1)
        assert "empty" in refused.stderr and [path.name for path in city.data.iterdir() if path.name != "lock"] == ["keys"]
        Postgres.shared().drop(city.postgres_name)
        city.postgres_name = Postgres.shared().create()
        city._write_config()
    told = of_city(city, "restore", str(saved)).stdout
    assert "復元しました" in told and "操作履歴は正しくつながっています" in told, told
    after = all_tables(city)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    # The epoch is new, the keys are gone.
    # A unit that leaves no row may have taken a position since the backup; when devices and terminals were last seen, and how
    # far an account has come in reading, is stored with the end of the server.
    assert changed - {"positions", "devices", "terminals", "reading_marks"} == {"meta", "one_time_keys"} and after["one_time_keys"][0] == 0, changed
    assert {name: hashes(city.data / name) for name in kept} == kept and f"{exported.split('/')[1]}/index.html" in kept["exports"]
    city.start()
    assert city.log_in(city.public(person.terminal), person.login_id, person.password).status == 200
    bodies = [e["content"].get("body") for e in person.client.messages(room) if e["type"] == "m.room.message"]
    assert "復元を確かめる" in bodies and "あとから" not in bodies
    assert event in [e["event_id"] for e in other.client.messages(room)]
    assert other.client.get(f"/_matrix/client/v1/media/download/{mxc.removeprefix('mxc://')}").content == photo
    afresh = person.client.sync(since)
    assert "復元を確かめる" in json.dumps(afresh, ensure_ascii=False), "a token of before the restore is foreign"
    claimed = other.client.ok("POST", "/_matrix/client/v3/keys/claim",
                              {"one_time_keys": {person.user_id: {person.device_id: "signed_curve25519"}}})
    assert not claimed["one_time_keys"].get(person.user_id), claimed
    assert "正しくつながっています" in of_city(city, "audit", "verify").stdout
    of_city(city, "restore", str(saved), rc=1)  # not over a city


def generations(city: Server) -> list[str]:
    return sorted(path.name for path in (city.data / "backups").iterdir() if path.is_dir())


def test_generations_of_backups(fresh):
    """The newest are kept, the others go when the new one is complete; what is not such a backup is not touched."""
    city = fresh(config={"backup": {"keep": 2}})
    person = city.person()
    room = city.room(person)
    mxc = upload(person, PNG + secrets.token_bytes(16))
    person.client.say(room, "写真", msgtype="m.image", url=mxc)
    of_city(city, "backup")
    (first,) = generations(city)
    assert re.fullmatch(r"heya-\d{4}-\d\d-\d\dT\d{6}", first)
    folder = city.data / "backups"
    # Another city's, an operator's own, half of one.
    (folder / "heya-anothers").mkdir()
    manifest = json.loads((folder / first / "manifest.json").read_text())
    (folder / "heya-anothers" / "manifest.json").write_text(json.dumps(manifest | {"server_name": "b.example", "written_at": 1}))
    (folder / "heya-notes").mkdir()
    (folder / "before-update").mkdir()
    (folder / "heya-2026-01-01T000000.part").mkdir()
    theirs = {"heya-anothers", "heya-notes", "before-update"}
    of_city(city, "backup")
    second = next(name for name in generations(city) if name not in theirs | {first})
    assert set(generations(city)) == theirs | {first, second}
    # Generations share what never changes, and each is whole.
    media = [next(path for path in (folder / name / "media").rglob("*") if path.is_file()) for name in (first, second)]
    assert media[0].stat().st_ino == media[1].stat().st_ino
    # One that fails removes none.
    path = next(path for path in (city.data / "media").rglob("*") if path.is_file())
    content = path.read_bytes()
    media[1].unlink()
    path.write_bytes(content + b"x")
    assert "damaged" in of_city(city, "backup", rc=1).stderr
    assert set(generations(city)) == theirs | {first, second}
    path.write_bytes(content)
    told = of_city(city, "backup").stdout
    assert "古いバックアップを1件消しました(新しい2件を残します)" in told, told
    third = next(name for name in generations(city) if name not in theirs | {first, second})
    assert set(generations(city)) == theirs | {second, third}
    # In a folder of its own a backup is nobody's generation.
    of_city(city, "backup", str(folder / "by-hand"))
    assert set(generations(city)) == theirs | {second, third, "by-hand"}
    city.stop()
    for name in ("heya.sqlite", "heya.sqlite-wal", "heya.sqlite-shm", "city.sqlite", "mail.sqlite"):
        (city.data / name).unlink(missing_ok=True)
    shutil.rmtree(city.data / "media")
    of_city(city, "restore", str(folder / third))
    assert path.read_bytes() == content
    city.start()
    assert person.client.get(f"/_matrix/client/v1/media/download/{mxc.removeprefix('mxc://')}").content == content


def test_a_backup_of_postgres_without_its_tool_says_so(fresh, postgres, tmp_path):
    """In Japanese and English, and nothing that looks like a backup stays."""
    city = fresh("postgres")
    done = subprocess.run(city.command("backup", str(tmp_path / "saved")), capture_output=True, text=True, timeout=60,
                          cwd=city.folder, env=os.environ | {"PATH": str(tmp_path)}, check=False)
    assert done.returncode == 1 and "pg_dump がありません" in done.stderr and "install the PostgreSQL client" in done.stderr, done
    assert not list(tmp_path.iterdir())


def test_a_damaged_medium_is_not_restored(fresh):
    city = fresh()
    person = city.person()
    person.client.say(city.room(person), "写真", msgtype="m.image", url=upload(person, PNG + secrets.token_bytes(16)))
    saved = city.folder / "saved"
    of_city(city, "backup", str(saved))
    city.stop()
    shutil.rmtree(city.data)
    next(path for path in (saved / "media").rglob("*") if path.is_file()).write_bytes(b"damaged")
    assert "damaged" in of_city(city, "restore", str(saved), rc=1).stderr
    assert not city.data.exists()
