"""A city with a CA of its own (`tls.client_ca`): Heya issues no certificates, registered ones are let in, and the CA's
revocation list is obeyed while the server runs (DESIGN 3; REQUIREMENTS C2, C3)."""

from __future__ import annotations

import datetime
import http.client
import pathlib
import secrets
import ssl
import subprocess
import tempfile
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from harness import REVOKED_WITHIN, Enrolment, Person, Server, Terminal, quote, wait_for

C = "/_matrix/client/v3"
WHOAMI = f"{C}/account/whoami"
HOUR = datetime.timedelta(hours=1)
DAY = 24 * HOUR


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


class Authority:
    """A CA that is not Heya's."""

    def __init__(self, folder: pathlib.Path, name: str = "〇〇市 認証局") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            x509.CertificateBuilder().subject_name(self.name).issuer_name(self.name).public_key(self.key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now() - DAY).not_valid_after(now() + 365 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256()))
        self.path = folder / "ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.revoked: list[int] = []
        self.number = 0

    def issue(self, *, begins: datetime.datetime | None = None, ends: datetime.datetime | None = None,
              usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH, serial: int | None = None,
              names: list[x509.GeneralName] | None = None) -> Terminal:
        """A certificate with its key, as an MDM would put on a terminal: nothing of Heya in it."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"PC-{secrets.token_hex(3)}")])
        builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
                   .serial_number(serial or x509.random_serial_number())
                   .not_valid_before(begins or now() - DAY).not_valid_after(ends or now() + 30 * DAY)
                   .add_extension(x509.ExtendedKeyUsage([usage]), critical=False))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        stem = self.folder / secrets.token_hex(6)
        terminal = Terminal(stem.with_suffix(".pem"), stem.with_suffix(".key"), pathlib.Path(), "")
        terminal.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        terminal.key.write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        terminal.key.chmod(0o600)
        return terminal

    def crl(self, *, at: datetime.datetime | None = None, until: datetime.datetime | None = None) -> bytes:
        """The revocation list as of now, in PEM."""
        at = at or now()
        self.number += 1
        builder = (x509.CertificateRevocationListBuilder().issuer_name(self.name).last_update(at)
                   .next_update(until or at + 7 * DAY).add_extension(x509.CRLNumber(self.number), critical=False))
        for serial in self.revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def serial_of(terminal: Terminal) -> int:
    return x509.load_pem_x509_certificate(terminal.cert.read_bytes()).serial_number


def put(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file as one, as tools that fetch lists do."""
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


class OutsideCity(Server):
    """A city whose terminals' certificates are another CA's, and whose own certificate comes from a file."""

    def __init__(self, **tls) -> None:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="heya-test-"))
        self.public_ca = Authority(folder / "public", "A public CA")
        self.authority = Authority(folder / "authority")
        self.list = folder / "authority.crl"
        put(self.list, self.authority.crl())
        self.certificate = self.server_certificate()
        super().__init__(folder=folder, config={"tls": {
            "certificate": str(self.certificate.cert), "key": str(self.certificate.key),
            "client_ca": str(self.authority.path), "client_crl": str(self.list)} | tls})

    @property
    def ca(self) -> pathlib.Path:
        return self.public_ca.path

    def server_certificate(self) -> Terminal:
        return self.public_ca.issue(usage=ExtendedKeyUsageOID.SERVER_AUTH, names=[x509.DNSName("localhost")])

    def cert(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(self.command("cert", *arguments), capture_output=True, text=True, timeout=60, check=False)

    def register_terminal(self, terminal: Terminal, facility: int, label: str = "受付のパソコン", acting: str = "command",
                          changed: dict | None = None, **more):
        body = {"certificate": terminal.cert.read_text(), "facility": facility, "label": label} | more | (changed or {})
        return self.act("terminals/register", body, expect=None, acting=acting)

    def enrol_outside(self, person: Person) -> Enrolment:
        """Enrolment in such a city: it ends with the person's own password."""
        initial, code = self.secrets_of(person)
        person.password = f"Ume-{secrets.token_hex(4)}-37"
        enrolment = Enrolment(self)
        assert enrolment.begin(person.login_id, initial, code).status_code == 200, enrolment.page
        enrolment.begun_page = enrolment.page
        answer = enrolment.choose(person.password)
        assert answer.status_code == 200 and answer.url.endswith("/enrol/done"), enrolment.page
        return enrolment

    def ready(self, facility: int | None = None, **more) -> Person:
        """Somebody enrolled and logged in on a registered terminal of the own facility."""
        person = self.issue(facility)
        self.enrol_outside(person)
        person.terminal = self.authority.issue(**more)
        done = self.register_terminal(person.terminal, person.facility)
        assert done.status == 200, done
        person.terminal.number = done.json["terminal"]
        answer = self.log_in(self.public(person.terminal), person.login_id, person.password)
        assert answer.status == 200, answer
        person.token, person.device_id = answer.json["access_token"], answer.json["device_id"]
        return person

    def publish(self, *revoked: Terminal) -> None:
        """The CA revokes certificates and puts its new list in place."""
        self.authority.revoked += [serial_of(terminal) for terminal in revoked]
        put(self.list, self.authority.crl())


@pytest.fixture(scope="module")
def outside() -> OutsideCity:
    server = OutsideCity()
    yield server
    server.remove()


def refusal(server: Server, terminal: Terminal | None) -> str:
    """What a login attempt is told of the certificate."""
    for last in (False, True):
        client = server.public(terminal)
        try:
            answer = server.log_in(client, "p100001", "x")
            break
        except (OSError, http.client.HTTPException):
            # A connection that is there when its certificate is revoked is closed; the next one is told.
            assert not last
        finally:
            client.close()
    assert answer.told == (403, "M_FORBIDDEN"), answer
    return answer.json.get("jp.heya.certificate", "let in")


def test_enrolment_ends_with_ones_own_password(outside):
    person = outside.issue()
    initial, code = outside.secrets_of(person)
    enrolment = outside.enrol_outside(person)
    assert "電子証明書は、市が端末に入れて登録します" in enrolment.begun_page and "terminal_label" not in enrolment.begun_page
    assert "電子証明書は、市が発行し" in enrolment.page and "まだ登録された端末がありません" in enrolment.page
    assert "0000-00-1234" in enrolment.page, "whom to ask"
    for path in ("/enrol/terminal.p12", "/enrol/terminal-legacy.p12", "/enrol/terminal.mobileconfig"):
        assert enrolment.get(path).url.endswith("/enrol"), "there is nothing to download"
    # The terminals of the facility are named, so that people know on which to log in; those of single people are not.
    label, own = f"受付{secrets.token_hex(3)}", f"私物{secrets.token_hex(3)}"
    assert outside.register_terminal(terminal := outside.authority.issue(), person.facility, label).status == 200
    assert outside.register_terminal(outside.authority.issue(), person.facility, own, private=True).status == 200
    assert outside.register_terminal(outside.authority.issue(), outside.facility(), other := f"他{secrets.token_hex(3)}").status == 200
    page = enrolment.get("/enrol/done").content.decode()
    assert label in page and f"{serial_of(terminal):x}" in page and own not in page and other not in page
    # The code is spent, the initial password is worth nothing, and a code for a further terminal is not given.
    assert Enrolment(outside).begin(person.login_id, initial, code).status_code == 403
    client = outside.public(terminal)
    assert outside.log_in(client, person.login_id, initial).status == 403
    assert outside.log_in(client, person.login_id, person.password).status == 200
    answer = outside.act(f"accounts/{quote(person.user_id)}/codes", expect=None)
    assert answer.told == (403, "M_FORBIDDEN") and "heya cert register" in answer.json["error"]
    client.close()


def test_the_first_member_of_staff_comes_in(outside):
    """From the sheets of the first start and a certificate registered by command to a session."""
    sheets = sorted(f"sheets/{path.name}" for path in (outside.data / "sheets").glob("000[12]-*.html"))
    login_id = outside.sheet(next(sheet for sheet in sheets if "password" in sheet))[0]
    staff = Person(outside, f"@{login_id}:{outside.server_name}", login_id, 1, sheets=sheets)
    outside.enrol_outside(staff)
    terminal = outside.authority.issue()
    done = outside.cert("register", str(terminal.cert), "--facility", "1", "--label", "市の窓口のパソコン")
    assert done.returncode == 0 and f"{serial_of(terminal):x}" in done.stdout and "登録しました" in done.stdout, done
    assert outside.log_in(outside.public(terminal), login_id, staff.password).status == 200
    listed = outside.cert("list").stdout
    assert "市の窓口のパソコン" in listed and "valid" in listed


def test_only_registered_certificates_are_let_in(outside):
    authority = outside.authority
    facility = outside.facility()
    assert refusal(outside, None) == "none"
    assert refusal(outside, authority.issue()) == "unknown", "signed by the CA, and registered by nobody"
    assert refusal(outside, Authority(outside.folder / "else").issue()) == "unknown"
    for terminal, told in (
        (authority.issue(begins=now() - 9 * DAY, ends=now() - DAY), "expired"),
        (authority.issue(begins=now() + DAY), "not valid yet"),
        (authority.issue(usage=ExtendedKeyUsageOID.SERVER_AUTH), "not for client authentication"),
        (Authority(outside.folder / "else").issue(), "not issued by the CA"),
        (Authority(outside.folder / "same").issue(), "not issued by the CA"),
    ):
        answer = outside.register_terminal(terminal, facility)
        assert answer.told == (400, "M_INVALID_PARAM") and told in answer.json["error"], answer
    good = authority.issue()
    for body, told in (
        ({"certificate": good.key.read_text() + good.cert.read_text()}, "private key"),
        ({"certificate": good.cert.read_text() * 2}, "more than one"),
        ({"certificate": "x"}, "not a certificate"),
        ({"certificate": ""}, "not a certificate"),
        ({"label": ""}, "端末の名前"), ({"label": "あ" * 41}, "端末の名前"), ({"label": "a\nb"}, "端末の名前"),
        ({"terminal": 1}, "Either terminal or facility"), ({"facility": None}, "Either terminal or facility"),
    ):
        answer = outside.register_terminal(good, facility, changed=body)
        assert answer.told == (400, "M_INVALID_PARAM") and told in answer.json["error"], (body, answer)
    assert outside.register_terminal(good, 999_999).told == (404, "M_NOT_FOUND")
    assert outside.register_terminal(good, facility, acting="@nobody:x").told == (403, "M_FORBIDDEN")
    assert refusal(outside, good) == "unknown", "a refused registration leaves nothing behind"
    assert outside.register_terminal(good, facility).status == 200
    assert refusal(outside, good) == "let in"
    again = outside.register_terminal(good, facility)
    assert again.told == (409, "JP_HEYA_EXISTS") and "already" in again.json["error"]
    # Another certificate with the same number, as another CA before this one may have issued it.
    assert refusal(outside, authority.issue(serial=serial_of(good))) == "unknown"


def test_the_same_key_registers_once(outside):
    terminal, key = outside.authority.issue(), secrets.token_hex(8)
    body = {"certificate": terminal.cert.read_text(), "facility": outside.facility(), "label": "x"}
    first, again = (outside.act("terminals/register", body, key=key) for _ in range(2))
    assert first == again
    assert outside.count(f"SELECT COUNT(*) FROM terminals WHERE id = {first['terminal']}") == 1
    entries = outside.count("SELECT COUNT(*) FROM audit WHERE action = 'terminal.register' AND entry LIKE "
                            f"'%terminal {first['terminal']}\"%'")
    assert entries == 1


def test_a_terminal_is_its_facilitys(outside):
    person = outside.ready()
    stranger = outside.authority.issue()
    assert outside.register_terminal(stranger, outside.facility()).status == 200
    answer = outside.log_in(outside.public(stranger), person.login_id, person.password)
    assert answer.told == (403, "M_FORBIDDEN") and "jp.heya.certificate" not in answer.json
    assert outside.public(stranger, person.token).get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    assert person.client.get(WHOAMI).status == 200
    # The terminal stays when whoever used it leaves.
    assert outside.act(f"accounts/{quote(person.user_id)}/end", {"reason": "退職"})["terminals"] == 0
    assert refusal(outside, person.terminal) == "let in"


def poll(server: Server, person: Person, ended: dict[str, tuple[float, str]], name: str) -> threading.Thread:
    """A long poll; when it ended, and how."""
    since = person.client.sync()["next_batch"]

    def run() -> None:
        client = server.public(person.terminal, person.token)
        try:
            answer = client.get(f"{C}/sync", query={"since": since, "timeout": 30_000})
            how = f"{answer.status} {answer.errcode}"
        except (OSError, http.client.HTTPException):
            how = "closed"
        ended[name] = (time.monotonic(), how)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_new_list_ends_everything_within_five_seconds(outside):
    lost, kept = outside.ready(), outside.ready()
    ended: dict[str, tuple[float, str]] = {}
    threads = [poll(outside, person, ended, name) for name, person in (("lost", lost), ("kept", kept))]
    idle = lost.client.connect()
    idle.request("GET", WHOAMI, headers={"Authorization": f"Bearer {lost.token}"})
    assert idle.getresponse().read()
    time.sleep(0.3)  # let the long polls begin: nothing tells when they wait
    assert not ended
    began = time.monotonic()
    outside.publish(lost.terminal)
    threads[0].join(40)
    assert "lost" in ended and ended["lost"][0] - began < REVOKED_WITHIN, "the long poll went on"
    assert ended["lost"][1] in ("closed", "401 M_UNKNOWN_TOKEN", "403 M_FORBIDDEN"), ended
    idle.sock.settimeout(5)
    with pytest.raises((OSError, http.client.HTTPException)):
        idle.request("GET", WHOAMI, headers={"Authorization": f"Bearer {lost.token}"})
        assert idle.getresponse().status == 403
        raise http.client.HTTPException("it is told that it is revoked: as good as closed")
    assert refusal(outside, lost.terminal) == "revoked"
    row = next(row for row in outside.cert("list").stdout.splitlines() if row.split()[0] == str(lost.terminal.number))
    assert row.split()[2] == "revoked"
    assert "失効" in outside.public(lost.terminal).get("/", headers={"Accept": "text/html"}).text
    wait_for(lambda: outside.count(f"SELECT COUNT(*) FROM sessions WHERE user_id = '{lost.user_id}'") == 0, 20, what="the session's end")
    assert "kept" not in ended and kept.client.get(WHOAMI).status == 200
    kept.client.say(outside.room(kept), "weiter")
    threads[1].join(40)
    assert ended["kept"][1] == "200 None"
    # What is on the list is registered no more, and the terminal's next certificate begins without the old session.
    again = outside.register_terminal(lost.terminal, lost.facility)
    assert again.told == (403, "M_FORBIDDEN") and "revocation list" in again.json["error"]
    renewed = outside.authority.issue()
    done = outside.cert("register", str(renewed.cert), "--terminal", str(lost.terminal.number))
    assert done.returncode == 0, done
    assert outside.public(renewed, lost.token).get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    assert outside.log_in(outside.public(renewed), lost.login_id, lost.password).status == 200
    assert refusal(outside, lost.terminal) == "revoked"


def test_a_renewed_terminal_goes_on(outside):
    """Where the next certificate is registered before the old one is revoked, nobody has to log in again."""
    person = outside.ready()
    renewed = outside.authority.issue()
    body = {"certificate": renewed.cert.read_text(), "terminal": person.terminal.number}
    assert outside.act("terminals/register", body)["terminal"] == person.terminal.number
    assert outside.public(renewed, person.token).get(WHOAMI).status == 200
    outside.publish(person.terminal)
    wait_for(lambda: refusal(outside, person.terminal) == "revoked", 20, what="the list")
    assert outside.public(renewed, person.token).get(WHOAMI).status == 200


def test_heya_revokes_them_too(outside):
    person = outside.ready()
    ended: dict[str, tuple[float, str]] = {}
    thread = poll(outside, person, ended, "poll")
    time.sleep(0.3)  # as above
    began = time.monotonic()
    done = outside.cert("revoke", str(person.terminal.number), "--reason", "紛失")
    assert done.returncode == 0 and "失効しました。終了したセッション: 1" in done.stdout, done
    thread.join(40)
    assert ended["poll"][0] - began < REVOKED_WITHIN
    assert refusal(outside, person.terminal) == "revoked"
    assert outside.register_terminal(person.terminal, person.facility).told == (409, "JP_HEYA_EXISTS")
    outside.restart()
    assert refusal(outside, person.terminal) == "revoked"


def test_an_expired_certificate_is_told(outside):
    person = outside.ready(ends=now() + datetime.timedelta(seconds=20))
    assert person.client.get(WHOAMI).status == 200
    wait_for(lambda: person.client.get(WHOAMI).status == 403, 60, 0.2, what="the end of its validity")
    assert refusal(outside, person.terminal) == "expired"


def test_a_bad_list_is_refused_and_the_old_one_stays(outside):
    lost, kept = outside.ready(), outside.ready()
    outside.publish(lost.terminal)
    wait_for(lambda: refusal(outside, lost.terminal) == "revoked", 20, what="the list")
    before = outside.look("stats")["client_crl"]
    good = outside.list.read_bytes()
    impostor = Authority(outside.folder / "impostor")
    impostor.number = 1_000
    freed = [serial for serial in outside.authority.revoked if serial != serial_of(lost.terminal)]
    all_revoked, outside.authority.revoked = outside.authority.revoked, freed
    expired = outside.authority.crl(at=now(), until=now() + datetime.timedelta(seconds=1))
    outside.authority.revoked = all_revoked
    time.sleep(1.5)  # until that list has expired
    for bad, told in (
        (impostor.crl(), "its signature is not by the key"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "not a complete list"),
        (good[: len(good) // 2], "neither a PEM nor a DER"),
        (b"", "neither a PEM nor a DER"),
        (expired, "it has expired"),
    ):
        said = outside.log().count("the new revocation list is not used")
        put(outside.list, bad)
        wait_for(lambda: outside.log().count("the new revocation list is not used") > said, 20, what=f"the refusal: {told}")
        assert told in outside.log().rsplit("the new revocation list is not used", 1)[1].splitlines()[0], told
        assert refusal(outside, lost.terminal) == "revoked" and kept.client.get(WHOAMI).status == 200
        assert outside.look("stats")["client_crl"] == before
    # A missing file changes nothing either, and a good one is taken again.
    outside.list.unlink()
    wait_for(lambda: "No such file" in outside.log(), 20, what="the missing file in the log")
    assert refusal(outside, lost.terminal) == "revoked"
    outside.publish(kept.terminal)
    wait_for(lambda: refusal(outside, kept.terminal) == "revoked", 20, what="the good list")
    assert outside.look("stats")["client_crl"]["entries"] == before["entries"] + 1


def test_the_servers_certificate_is_replaced_without_a_restart(outside):
    person = outside.ready()
    assert person.client.get(WHOAMI).status == 200

    def presented() -> int:
        pem = ssl.get_server_certificate(("localhost", outside.ports[1]), ca_certs=str(outside.ca))
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    assert presented() == serial_of(outside.certificate)
    new = outside.server_certificate()
    # A key that does not fit is reported and not used.
    put(outside.certificate.key, outside.server_certificate().key.read_bytes())
    wait_for(lambda: "the server certificate's new files are not used" in outside.log(), 20, what="the refusal")
    old = presented()
    put(outside.certificate.cert, new.cert.read_bytes())
    put(outside.certificate.key, new.key.read_bytes())
    wait_for(lambda: presented() == serial_of(new), 20, what="the new certificate")
    assert old != serial_of(new)
    assert person.client.get(WHOAMI).status == 200, "open connections go on"
    assert outside.public(person.terminal, person.token).get(WHOAMI).status == 200


def test_pages_send_nobody_to_fetch_a_certificate(outside):
    for terminal in (None, outside.authority.issue()):
        answer = outside.public(terminal).get("/", headers={"Accept": "text/html"})
        assert answer.status == 403 and "市が配布した電子証明書" in answer.text
        assert "先に「端末の登録」をしてください" not in answer.text and "票が必要です" not in answer.text


def test_pages_speak_of_no_code_for_a_further_terminal(outside, city):
    """Here a code is for one's first password only; where Heya issues certificates the same pages do speak of it."""
    further = ("2台目", "現在お使いのパスワード", "現在のパスワード", "新しい登録コードで登録", "登録コード票をお持ちの方")

    def pages(server: Server) -> dict[str, str]:
        found = {path: Enrolment(server).get(path).content.decode() for path in ("/enrol", "/help")}
        return found | {"refused": server.public().get("/", headers={"Accept": "text/html"}).text}

    for path, page in pages(outside).items():
        assert not [words for words in further if words in page], path
        assert "窓口" in page and "電子証明書" in page, path
    told = pages(outside)
    assert "端末を増やすときは、この画面ではなく、下の窓口に連絡してください" in told["/enrol"]
    assert "市の窓口に依頼してください。電子証明書は、市が端末に入れて登録します" in told["/help"]
    for path, page in pages(city).items():
        assert [words for words in further if words in page], path


def test_what_needs_a_ca_of_heyas_own_is_refused(outside):
    for command in (["renew", "1"], ["crl"]):
        done = outside.cert(*command)
        assert done.returncode == 1 and done.stderr.startswith("heya: ") and "CA" in done.stderr, done
    assert requests_crl(outside).status_code == 404


def requests_crl(server: Server):
    import requests

    session = requests.Session()
    session.trust_env = False
    return session.get(f"{server.enrol_base}/crl", verify=str(server.ca), timeout=30)


@pytest.mark.parametrize(("change", "told"), [
    ({"certificate": "", "key": ""}, "with tls.client_ca Heya has no CA of its own: set tls.certificate"),
    ({"client_crl": "/nonexistent/list.crl"}, "/nonexistent/list.crl"),
    ({"client_ca": "/nonexistent/ca.pem"}, "/nonexistent/ca.pem"),
])
def test_a_start_without_what_it_needs_says_so(outside, change, told):
    city = OutsideCity()
    try:
        city.stop()
        city.overrides["tls"] |= change
        city._write_config()
        done = subprocess.run(city.command("serve"), capture_output=True, text=True, timeout=60, check=False, cwd=city.folder)
        assert done.returncode == 1 and told in done.stderr, done
    finally:
        city.remove()
