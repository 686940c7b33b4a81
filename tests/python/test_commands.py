"""The command line as its users type it: what the helps say, `heya cert` and `heya audit` against a running city, and what
is said when a command cannot do its work (README, "Commands")."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from harness import Enrolment, Server, Terminal, binary, unpack

WHOAMI = "/_matrix/client/v3/account/whoami"

# What must stand in each help for somebody who has nothing else at hand.
HELPS: dict[str, list[str]] = {
    "": ["serve", "demo", "city", "mail", "cert", "routes", "audit", "backup", "restore", "--config", "config.toml"],
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
    "routes": ["method", "path"],
    "audit": ["verify", "list", "操作履歴"],
    "audit verify": ["changed", "removed", "cut off", "xit status 1"],
    "audit list": ["--room", "部屋番号", "--limit", "newest", "200", "who", "when", "terminal"],
    "backup": ["<FOLDER>", "must not exist", "Keys are not in it", "server runs"],
    "restore": ["<FOLDER>", "heya backup", "empty data folder", "must not run"],
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
    for words in (["cert", "list"], ["audit", "list"]):
        assert "the server does not run: start it with `heya serve`" in of_city(city, *words, rc=1).stderr
    assert "正しくつながっています" in of_city(city, "audit", "verify").stdout, "the proof needs no server"


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


def test_backup_and_restore_as_typed(fresh):
    """The restored city is the same city: its people log in with what they have, its rooms are there, its log is whole."""
    city = fresh()
    person, other = city.person(), city.person()
    room = city.room(person, other)
    event = person.client.say(room, "復元を確かめる")
    saved = city.folder / "saved"
    assert "バックアップを書きました" in of_city(city, "backup", str(saved)).stdout
    assert not (saved / "keys").exists() and saved.stat().st_mode & 0o077 == 0
    of_city(city, "backup", str(saved), rc=1)  # the folder exists
    person.client.say(room, "あとから")
    city.stop()
    keys = city.folder / "keys"
    shutil.copytree(city.data / "keys", keys)
    shutil.rmtree(city.data)
    city.data.mkdir(mode=0o700)
    shutil.copytree(keys, city.data / "keys")
    assert "復元しました" in of_city(city, "restore", str(saved)).stdout
    city.start()
    assert city.log_in(city.public(person.terminal), person.login_id, person.password).status == 200
    bodies = [e["content"].get("body") for e in person.client.messages(room) if e["type"] == "m.room.message"]
    assert "復元を確かめる" in bodies and "あとから" not in bodies
    assert event in [e["event_id"] for e in other.client.messages(room)]
    assert "正しくつながっています" in of_city(city, "audit", "verify").stdout
    of_city(city, "restore", str(saved), rc=1)  # not over a city
