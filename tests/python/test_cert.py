"""`heya cert` as a person types it: help, what it does, and what it says when it cannot (DESIGN 4)."""

from __future__ import annotations

import pathlib
import subprocess

import pytest
import requests
from cryptography import x509

import certificates
from harness import Server, quote, unpack, wait_for

WHOAMI = "/_matrix/client/v3/account/whoami"
COMMANDS = ["list", "issue", "renew", "register", "crl", "revoke"]


@pytest.fixture(scope="module")
def person(city: Server):
    return city.person(city.facility())


def cert(city: Server, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(city.command("cert", *arguments), capture_output=True, text=True, timeout=60, check=False)


def test_help(city):
    done = cert(city, "--help")
    assert done.returncode == 0 and not done.stderr
    for command in COMMANDS:
        assert f"\n  {command}" in done.stdout, done.stdout
        own = cert(city, command, "--help")
        assert own.returncode == 0 and "Usage:" in own.stdout and len(own.stdout.splitlines()) > 5, own


@pytest.mark.parametrize(("arguments", "told"), [
    ([], "Usage:"), (["lsit"], "unrecognized subcommand"), (["list", "x"], "unexpected argument"),
    (["issue"], "<LOGIN_ID>"), (["renew"], "<TERMINAL>"), (["renew", "five"], "invalid value 'five'"),
    (["revoke"], "<TERMINAL>"), (["revoke", "5", "--reson", "x"], "unexpected argument '--reson'"),
    (["register"], "<FILE>"), (["register", "x.pem"], "--facility"), (["register", "x.pem", "--facility", "1"], "--label"),
    (["register", "x.pem", "--terminal", "1", "--facility", "1"], "cannot be used with"),
    (["register", "/nonexistent/x.pem", "--facility", "1", "--label", "x"], "/nonexistent/x.pem: No such file"),
    (["issue", "p999999"], "no such account"), (["renew", "999999"], "No such terminal"), (["revoke", "999999"], "No such terminal"),
    (["crl", "/nonexistent/list.pem"], "/nonexistent/list.pem"),
])
def test_what_is_wrong_is_said_in_a_sentence(city, arguments, told):
    done = cert(city, *arguments)
    assert done.returncode == 1 and not done.stdout, done
    assert told in done.stderr and "panicked" not in done.stderr, done.stderr


def test_list(city, person):
    number = city.terminal_number(person)
    done = cert(city, "list")
    assert done.returncode == 0 and not done.stderr
    head, *rows = done.stdout.splitlines()
    assert all(word in head for word in ("端末", "事業所", "状態", "期限", "証明書番号"))
    (row,) = [row for row in rows if row.split()[0] == str(number)]
    serial = f"{certificates.serial_of(person.terminal):x}"
    assert row.split()[1:3] == [str(person.facility), "valid"] and serial in row and row.endswith("受付のパソコン")


def test_issue(city, person):
    """A code for a further terminal, on a sheet; the terminal is let in beside the first."""
    done = cert(city, "issue", person.login_id)
    assert done.returncode == 0 and not done.stderr
    (line,) = done.stdout.splitlines()
    sheet = pathlib.Path(line)
    assert sheet.is_file() and sheet.stat().st_mode & 0o077 == 0
    from harness import Enrolment

    code = city.sheet(str(sheet.relative_to(city.data)))[0]
    assert code not in done.stdout, "what is on the sheet is on the sheet only"
    terminal = Enrolment(city).through(person.login_id, person.password, code, None, label="二台目")
    assert person.log_in(terminal).get(WHOAMI).status == 200 and person.client.get(WHOAMI).status == 200


def test_renew(city, person):
    number = city.terminal_number(person)
    done = cert(city, "renew", str(number))
    assert done.returncode == 0 and not done.stderr
    p12, password = (pathlib.Path(line) for line in done.stdout.splitlines())
    assert all(path.stat().st_mode & 0o077 == 0 for path in (p12, password))
    renewed = unpack(p12.read_bytes(), password.read_text(), city.folder / "renewed")
    assert certificates.serial_of(renewed) != certificates.serial_of(person.terminal)
    assert city.log_in(city.public(renewed), person.login_id, person.password).status == 200


def crl(city: Server) -> x509.CertificateRevocationList:
    session = requests.Session()
    session.trust_env = False
    answer = session.get(f"{city.enrol_base}/crl", verify=str(city.ca), timeout=30)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "application/pkix-crl"
    return x509.load_der_x509_crl(answer.content)


def test_revoke_and_the_list_that_tells_others(city):
    """C3: sessions end at once, and the open list names the certificate from then on."""
    person = city.person()
    serial, number = certificates.serial_of(person.terminal), city.terminal_number(person)
    assert crl(city).get_revoked_certificate_by_serial_number(serial) is None
    done = cert(city, "revoke", str(number), "--reason", "紛失")
    assert done.returncode == 0 and done.stdout == "失効しました。終了したセッション: 1\n" and not done.stderr
    assert city.public(person.terminal).get(WHOAMI).status == 403
    assert "revoked" in next(row for row in cert(city, "list").stdout.splitlines() if row.split()[0] == str(number))
    listed = wait_for(lambda: (found := crl(city)).get_revoked_certificate_by_serial_number(serial) and found, 20, what="the list")
    authority, _ = certificates.city_ca(city)
    assert listed.is_signature_valid(authority.public_key()) and listed.issuer == authority.subject
    assert listed.next_update_utc - listed.last_update_utc == 7 * certificates.DAY
    # Once more changes nothing.
    assert cert(city, "revoke", str(number)).stdout == "失効しました。終了したセッション: 0\n"


def test_crl(city, tmp_path):
    """For a proxy before Heya: openssl reads it, verifies it, and sees what is revoked."""
    person = city.person()
    city.revoke(city.terminal_number(person))
    path = tmp_path / "heya.crl"
    for _ in range(2):
        done = cert(city, "crl", str(path))
        assert done.returncode == 0 and str(path) in done.stdout and not done.stderr, done
    assert [file.name for file in tmp_path.iterdir()] == ["heya.crl"]
    shown = subprocess.run(["openssl", "crl", "-in", str(path), "-CAfile", str(city.ca), "-noout", "-text"],
                           capture_output=True, text=True, check=True, timeout=30)
    assert "verify OK" in shown.stderr + shown.stdout
    assert f"{certificates.serial_of(person.terminal):X}" in shown.stdout
    assert cert(city, "crl").stdout == path.read_text(), "the same list on standard output"
    # openssl verifies a terminal as such a proxy would.
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(city.ca.read_text() + path.read_text())
    good = city.person()
    for one, ok in ((person, False), (good, True)):
        checked = subprocess.run(["openssl", "verify", "-crl_check", "-CAfile", str(bundle), "-purpose", "sslclient",
                                  str(one.terminal.cert)], capture_output=True, text=True, check=False, timeout=30)
        assert (checked.returncode == 0) is ok, checked


def test_register_is_for_another_ca(city, person):
    done = cert(city, "register", str(person.terminal.cert), "--facility", "1", "--label", "x")
    assert done.returncode == 1 and "Heya issues the certificates of this city itself" in done.stderr, done
    key = cert(city, "register", str(person.terminal.key), "--facility", "1", "--label", "x")
    assert key.returncode == 1 and "private key" in key.stderr and "BEGIN" not in key.stderr, key


def test_without_a_server_it_says_so(fresh):
    server = fresh()
    server.stop()
    done = subprocess.run(server.command("cert", "list"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "the server does not run" in done.stderr, done
    other = server.folder / "other.toml"
    other.write_text(f'[server]\ndata_dir = "{server.folder / "nowhere"}"\n')
    unknown = subprocess.run([*server.command("cert", "list")[:1], "--config", str(other), "cert", "list"],
                             capture_output=True, text=True, timeout=60, check=False)
    assert unknown.returncode == 1 and "command.token" in unknown.stderr, unknown


def test_codes_are_of_the_account_that_was_named(city, person):
    """What the command asks is an account of this server: nothing else becomes a path."""
    for login_id in ("../terminals", "p1/../../x", quote("p100001") + ":else"):
        done = cert(city, "issue", login_id)
        assert done.returncode == 1 and not done.stdout, done
