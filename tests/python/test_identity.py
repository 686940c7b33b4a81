"""Who gets in (REQUIREMENTS C1–C8, C10–C12, C17, C19, H25; DESIGN 1–4)."""

from __future__ import annotations

import http.client
import re
import secrets
import socket
import ssl
import threading
import time
import xml.dom.minidom

import pytest

import certificates
from harness import CONTACT, REVOKED_WITHIN, Answer, Client, Enrolment, Person, Server, Terminal, quote, unpack, wait_for

LOGIN = "/_matrix/client/v3/login"
WHOAMI = "/_matrix/client/v3/account/whoami"
CONTACT_LINES = CONTACT.splitlines()


@pytest.fixture(scope="module")
def ann(city: Server) -> Person:
    """Somebody whose terminal stays."""
    return city.person(city.facility("試験事業所 甲"), name="甲野花子")


@pytest.fixture(scope="module")
def ben(city: Server) -> Person:
    """Somebody of another facility."""
    return city.person(city.facility("試験事業所 乙"), name="乙山太郎")


@pytest.fixture(scope="module")
def revoked(city: Server) -> Terminal:
    """A terminal that the city has revoked."""
    person = city.person()
    city.revoke(city.terminal_number(person))
    return person.terminal


@pytest.fixture(scope="module")
def bad_certificates(city: Server, ann: Person, revoked: Terminal) -> dict[str, Terminal | None]:
    """One of each state."""
    return {
        "none": None,
        "unknown": certificates.foreign(city, ann.terminal),
        "expired": certificates.expired(city, ann.terminal),
        "revoked": revoked,
    }


STATES = ["none", "unknown", "expired", "revoked"]

# DESIGN 1: the certificate before everything ------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/_matrix/client/versions"),
    ("GET", LOGIN),
    ("POST", LOGIN),
    ("GET", WHOAMI),
    ("GET", "/_matrix/client/v3/sync"),
    ("POST", "/_matrix/client/v3/register"),
    ("POST", "/_matrix/media/v3/upload"),
    ("GET", "/_matrix/client/v1/media/download/localhost/abc"),
    ("GET", "/_matrix/media/v3/download/localhost/abc"),
    ("GET", "/_matrix/client/v3/no/such/path"),
    ("GET", "/_synapse/admin/v1/register"),
    ("GET", "/_heya/v1/control"),
    ("OPTIONS", "/_matrix/client/v3/sync"),
])
def test_api_tells_only_the_state_of_the_certificate(city, ann, bad_certificates, state, method, path):
    client = city.public(bad_certificates[state], ann.token)
    answer = client.request(method, path, body=b"{}" if method == "POST" else None)
    assert answer.told == (403, "M_FORBIDDEN"), answer
    assert answer.json["jp.heya.certificate"] == state
    assert set(answer.json) == {"errcode", "error", "jp.heya.certificate"}


@pytest.mark.parametrize("state", STATES)
def test_people_are_told_in_japanese_whom_to_ask(city, bad_certificates, state):
    """H25: the contact when the certificate is missing, expired or revoked."""
    for path in ("/", "/anything/index.html"):
        answer = city.public(bad_certificates[state]).get(path, headers={"Accept": "text/html"})
        assert answer.status == 403
        assert answer.headers["Content-Type"].startswith("text/html")
        assert answer.headers["Cache-Control"] == "no-store"
        for line in CONTACT_LINES:
            assert line in answer.text
        assert f"<code>{state}</code>" in answer.text
        assert city.enrol_base + "/enrol" in answer.text
    titles = {name: re.search(r"<h1>(.*?)</h1>", city.public(one).get("/").text)[1]
              for name, one in bad_certificates.items()}
    assert len(set(titles.values())) == 4, "each state is told in words of its own"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("path", ["/.well-known/matrix/client", "/_heya/health", "/_heya/style.css"])
def test_discovery_and_health_are_open(city, bad_certificates, state, path):
    assert city.public(bad_certificates[state]).get(path).status == 200


def test_discovery_keeps_key_screens_away(city):
    """STACK, "A city without encryption"."""
    answer = city.public().get("/.well-known/matrix/client")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.json["m.homeserver"] == {"base_url": city.base}
    assert answer.json["io.element.e2ee"] == {
        "default": False, "force_disable": True, "secure_backup_required": False}


def test_other_ways_to_forge_a_certificate(city, ann):
    """C3: unknown CA, wrong key usage; a name is no proof."""
    real_ca, _ = certificates.city_ca(city)
    forged = {
        "a CA of the same name": certificates.leaf(city, ann.terminal, ca=certificates.foreign_ca(real_ca)),
        "the serial of a real terminal, by another CA": certificates.leaf(
            city, ann.terminal, ca=certificates.foreign_ca(real_ca), serial=certificates.serial_of(ann.terminal)),
        "for servers": certificates.leaf(
            city, ann.terminal, usage=certificates.ExtendedKeyUsageOID.SERVER_AUTH),
        "by our CA, in no register": certificates.leaf(city, ann.terminal),
        "not valid yet": certificates.leaf(city, ann.terminal, begins=certificates.NOW + certificates.DAY,
                                           ends=certificates.NOW + 9 * certificates.DAY),
    }
    for what, terminal in forged.items():
        answer = city.public(terminal, ann.token).get(WHOAMI)
        assert answer.told == (403, "M_FORBIDDEN"), what
        assert answer.json["jp.heya.certificate"] == "unknown", what
    # The server's own certificate is by the same CA and opens nothing.
    keys = city.data / "keys"
    server_pair = Terminal(keys / "server.pem", keys / "server.key", keys, "")
    assert city.public(server_pair, ann.token).get(WHOAMI).json["jp.heya.certificate"] == "unknown"


def test_unknown_host_is_421(city, ann):
    client = city.public(ann.terminal, ann.token)
    for host in ("example.jp", f"127.0.0.1:{city.ports[0]}", "localhost"):
        assert client.get(WHOAMI, headers={"Host": host}).status == 421, host
    assert client.get(WHOAMI).status == 200


# C1: TLS ------------------------------------------------------------------------------------------------------------


def _handshake(server: Server, context: ssl.SSLContext, person: Person | None = None) -> str:
    if person:
        context.load_cert_chain(str(person.terminal.cert), str(person.terminal.key))
    with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            # In TLS 1.3 a refusal comes with the first read.
            tls.sendall(f"GET /_heya/health HTTP/1.1\r\nHost: {server.server_name}\r\nConnection: close\r\n\r\n".encode())
            assert b" 200 " in tls.makefile("rb").readline()
            return tls.version()


def _context(server: Server, lowest: ssl.TLSVersion, highest: ssl.TLSVersion, ciphers: str | None = None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(str(server.ca))
    context.minimum_version, context.maximum_version = lowest, highest
    if ciphers:
        context.set_ciphers(ciphers)
    return context


def test_tls_versions_and_suites(city):
    v = ssl.TLSVersion
    assert _handshake(city, _context(city, v.TLSv1_3, v.TLSv1_3)) == "TLSv1.3"
    assert _handshake(city, _context(city, v.TLSv1_2, v.TLSv1_2)) == "TLSv1.2"
    with pytest.raises((ssl.SSLError, OSError)):
        _handshake(city, _context(city, v.TLSv1, v.TLSv1_1, "ALL:@SECLEVEL=0"))
    for suites in ("ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA", "AES128-GCM-SHA256",
                   "DHE-RSA-AES128-GCM-SHA256"):
        with pytest.raises((ssl.SSLError, OSError)):
            _handshake(city, _context(city, v.TLSv1_2, v.TLSv1_2, f"{suites}:@SECLEVEL=0"))


def test_tls_1_2_can_be_off_and_the_handshake_strict(fresh):
    server = fresh(config={"tls": {"tls12": False, "strict_handshake": True}})
    person = server.person()
    v = ssl.TLSVersion
    assert _handshake(server, _context(server, v.TLSv1_3, v.TLSv1_3), person) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, OSError)):
        _handshake(server, _context(server, v.TLSv1_2, v.TLSv1_2), person)
    for bad in (None, certificates.foreign(server, person.terminal), certificates.expired(server, person.terminal)):
        with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
            server.public(bad).get("/_matrix/client/versions")
    # The rest goes on as without it.
    assert person.client.get(WHOAMI).status == 200


def test_enrolment_asks_for_no_certificate(city, ann):
    """Browsers remember a certificate choice per origin: the enrolment listener must not ask."""
    context = ssl.create_default_context(cafile=str(city.ca))
    asked = []
    context._msg_callback = lambda _c, _d, _v, _ct, kind, _data: asked.append(getattr(kind, "name", ""))
    with socket.create_connection(("127.0.0.1", city.ports[1]), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost"):
            pass
    assert "SERVER_HELLO" in asked and "CERTIFICATE_REQUEST" not in asked, asked


# DESIGN 2: terminal, session, token ---------------------------------------------------------------------------------


def test_two_factors_open_the_door(city, ann):
    """C6. The certificate alone and the token alone are nothing."""
    who = ann.client.get(WHOAMI).json
    assert (who["user_id"], who["device_id"]) == (ann.user_id, ann.device_id) and not who.get("is_guest")
    assert city.public(ann.terminal).get(WHOAMI).told == (401, "M_MISSING_TOKEN")
    wrong = city.public(ann.terminal, "nonsense").get(WHOAMI)
    assert wrong.told == (401, "M_UNKNOWN_TOKEN") and wrong.json["soft_logout"] is False
    assert city.public(None, ann.token).get(WHOAMI).told == (403, "M_FORBIDDEN")


def test_a_token_in_the_url_is_no_token(city, ann):
    """Secrets are never in URLs: logs and histories keep those."""
    answer = city.public(ann.terminal).get(WHOAMI, query={"access_token": ann.token})
    assert answer.told == (401, "M_MISSING_TOKEN")


def test_a_token_is_worth_nothing_on_another_terminal(city, ann, ben):
    """C4, also between two terminals of one facility and one person."""
    second = city.further_terminal(ann)
    for terminal in (ben.terminal, second):
        answer = city.public(terminal, ann.token).get(WHOAMI)
        assert answer.told == (401, "M_UNKNOWN_TOKEN")
        assert answer.json["soft_logout"] is True
    assert ann.client.get(WHOAMI).status == 200, "the session itself goes on"


def test_revocation_ends_everything_within_five_seconds(city, ann):
    """C3, C19: live connections, long polls, tokens, TLS resumption."""
    person = city.person()
    number = city.terminal_number(person)
    # Another person of the same facility works on the same terminal.
    mate = city.person(person.facility)
    mate_there = mate.log_in(person.terminal)
    since = person.client.sync()["next_batch"]
    idle = person.client.connect()
    idle.request("GET", WHOAMI, headers={"Authorization": f"Bearer {person.token}"})
    assert idle.getresponse().read()
    session = _tls_session(city, person)
    ended: dict[str, float] = {}

    def poll() -> None:
        client = city.public(person.terminal, person.token)
        try:
            answer = client.get("/_matrix/client/v3/sync", query={"since": since, "timeout": 30_000})
            assert answer.status in (401, 403), answer
        except (OSError, http.client.HTTPException):
            pass
        ended["at"] = time.monotonic()

    thread = threading.Thread(target=poll)
    thread.start()
    time.sleep(0.3)  # let the long poll begin: nothing tells when it waits
    assert thread.is_alive()
    began = time.monotonic()
    assert city.revoke(number)["sessions"] == 2
    thread.join(40)
    assert "at" in ended and ended["at"] - began < REVOKED_WITHIN, "the long poll went on"
    idle.sock.settimeout(5)
    with pytest.raises((OSError, http.client.HTTPException)):
        idle.request("GET", WHOAMI, headers={"Authorization": f"Bearer {person.token}"})
        answer = idle.getresponse()
        assert answer.status == 403, "the live connection still works"
        raise http.client.HTTPException("it is told that it is revoked: as good as closed")
    answer = city.public(person.terminal, person.token).get(WHOAMI)
    assert answer.told == (403, "M_FORBIDDEN") and answer.json["jp.heya.certificate"] == "revoked"
    assert city.public(person.terminal, mate_there.token).get(WHOAMI).status == 403
    assert b"revoked" in _resumed(city, person, session), "TLS resumption brings a revoked certificate back"
    # The token died with the terminal: it is unknown on any other.
    answer = city.public(ann.terminal, person.token).get(WHOAMI)
    assert answer.told == (401, "M_UNKNOWN_TOKEN")
    # The mate's other terminal is untouched, and revoking again changes nothing.
    assert mate.client.get(WHOAMI).status == 200
    assert city.revoke(number)["sessions"] == 0
    assert city.log_in(city.public(person.terminal), person.login_id, person.password).status == 403


def _tls_session(server: Server, person: Person) -> ssl.SSLSession:
    context = person.client.context()
    with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            tls.sendall(f"GET /_heya/health HTTP/1.1\r\nHost: {server.server_name}\r\n\r\n".encode())
            assert tls.recv(4096)  # session tickets come with the first answer
            return tls.session


def _resumed(server: Server, person: Person, session: ssl.SSLSession) -> bytes:
    context = person.client.context()
    with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost", session=session) as tls:
                tls.sendall(f"GET {WHOAMI} HTTP/1.1\r\nHost: {server.server_name}\r\n"
                            f"Authorization: Bearer {person.token}\r\nConnection: close\r\n\r\n".encode())
                return b"".join(iter(lambda: tls.recv(4096), b""))
        except OSError:
            return b"revoked: refused in the handshake"


def test_sessions_and_revocations_survive_a_restart(fresh):
    server = fresh()
    person, other = server.person(), server.person()
    server.revoke(server.terminal_number(other))
    server.restart()
    assert person.client.get(WHOAMI).status == 200
    answer = server.public(other.terminal, other.token).get(WHOAMI)
    assert answer.json["jp.heya.certificate"] == "revoked"


def test_a_renewed_certificate_is_the_same_terminal(city):
    """The old one goes on until it expires; revoking the terminal ends both."""
    person = city.person()
    number = city.terminal_number(person)
    files = city.act(f"terminals/{number}/renew")["files"]
    p12 = next(name for name in files if name.endswith(".p12"))
    password = next(name for name in files if name.endswith(".password"))
    for name in files:
        assert (city.data / name).stat().st_mode & 0o077 == 0, "readable by others"
    renewed = unpack((city.data / p12).read_bytes(), (city.data / password).read_text().strip(), city.folder / "made")
    assert city.public(renewed, person.token).get(WHOAMI).status == 200, "the session is the terminal's"
    assert person.client.get(WHOAMI).status == 200
    city.revoke(number)
    for terminal in (renewed, person.terminal):
        assert city.public(terminal, person.token).get(WHOAMI).json["jp.heya.certificate"] == "revoked"


def test_logout_ends_the_session(city, ann):
    one, two = ann.log_in(), ann.log_in()
    assert one.post("/_matrix/client/v3/logout").status == 200
    answer = one.get(WHOAMI)
    assert answer.told == (401, "M_UNKNOWN_TOKEN") and answer.json["soft_logout"] is False
    assert two.get(WHOAMI).status == 200


def test_login_offers_password_only(city, ann):
    client = city.public(ann.terminal)
    assert client.ok("GET", LOGIN) == {"flows": [{"type": "m.login.password"}]}
    for body in ({"type": "m.login.token", "token": "x"}, {"type": "m.login.sso"},
                 {"type": "m.login.application_service", "identifier": {"type": "m.id.user", "user": ann.login_id}}):
        appservice = body["type"] == "m.login.application_service"
        code = "M_APPSERVICE_LOGIN_UNSUPPORTED" if appservice else "M_UNKNOWN"
        assert client.post(LOGIN, body).told == (400, code), body
    assert ann.client.post("/_matrix/client/v1/login/get_token").told == (403, "M_FORBIDDEN")


def test_the_id_may_be_typed_in_any_usual_form(city, ann):
    for typed in (ann.login_id, ann.user_id, ann.login_id.upper(), "ｐ" + ann.login_id[1:], f" {ann.login_id} "):
        done = city.log_in(city.public(ann.terminal), typed, ann.password)
        assert done.status == 200 and done.json["user_id"] == ann.user_id, typed


# C11: one refusal, one hash run -------------------------------------------------------------------------------------


def _refusals(city: Server, ann: Person, ben: Person) -> dict[str, tuple[Terminal, str, str]]:
    locked = city.person()
    for _ in range(6):
        city.log_in(city.public(locked.terminal), locked.login_id, "Wrong-1-password")
    ended = city.person(ann.facility)
    city.act(f"accounts/{quote(ended.user_id)}/end", {"reason": "試験"})
    issued = city.issue(ann.facility)
    initial, _ = city.secrets_of(issued)
    here = ann.terminal
    other_server = f"@{ann.login_id}:other.example.jp"
    return {
        "wrong password": (here, ann.login_id, "Wrong-1-password"),
        "empty password": (here, ann.login_id, ""),
        "overlong password": (here, ann.login_id, "x" * 20_000),
        "unknown ID": (here, "p999999", ann.password),
        "no ID at all": (here, "いいえ !", ann.password),
        "empty ID": (here, "", ann.password),
        "ID of another server": (here, other_server, ann.password),
        "the bot's ID": (here, "city", ann.password),
        "foreign facility": (here, ben.login_id, ben.password),
        "locked": (locked.terminal, locked.login_id, locked.password),
        "ended": (here, ended.login_id, ended.password),
        "not enrolled, initial password": (here, issued.login_id, initial),
    }


def test_every_login_failure_is_one_identical_403(city, ann, ben):
    seen = {}
    for what, (terminal, login_id, password) in _refusals(city, ann, ben).items():
        answer = city.log_in(city.public(terminal), login_id, password)
        headers = sorted((name, value) for name, value in answer.headers.items() if name.lower() != "date")
        seen[what] = (answer.status, answer.content, headers)
    assert seen["wrong password"][0] == 403
    for what, answer in seen.items():
        assert answer == seen["wrong password"], what


def _page_faults(server: Server) -> int:
    with open(f"/proc/{server.process.pid}/stat", encoding="ascii") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[7])


def test_every_login_costs_exactly_one_hash_run(city, ann, ben):
    """Counted without a clock: argon2 fills 19 MiB, and with MALLOC_MMAP_THRESHOLD_ set (conftest.py) every run maps
    them anew: 4,864 page faults of the process, give or take a few hundred of everything else."""
    run = 19 * 1024 * 1024 // 4096

    def runs(terminal: Terminal, login_id: str, password: str) -> float:
        client = city.public(terminal)
        client.get(LOGIN)
        before = _page_faults(city)
        city.log_in(client, login_id, password)
        return (_page_faults(city) - before) / run

    cases = _refusals(city, ann, ben)
    if not 0.8 < runs(ann.terminal, ann.login_id, ann.password) < 1.2:
        pytest.skip("page faults do not count hashes here (another allocator, or huge pages)")
    for what, case in cases.items():
        assert 0.8 < runs(*case) < 1.2, what


def test_without_a_certificate_the_password_is_never_looked_at(city, ann, bad_certificates):
    """H5. No hash run and the same answer for a right password and a wrong one."""
    for state, terminal in bad_certificates.items():
        client = city.public(terminal)
        client.get("/_heya/health")
        before = _page_faults(city)
        answers = {city.log_in(client, ann.login_id, password).content for password in (ann.password, "Wrong-1-pass")}
        assert len(answers) == 1, state
        assert _page_faults(city) - before < 2_000, state


def test_lockout_is_told_to_the_city_and_only_there(city, ann):
    """C10: locked after five failures on this terminal; the control room hears it; other terminals go on."""
    staff = city.first_staff()
    person = city.person()
    second = city.further_terminal(person)
    client = city.public(person.terminal)
    for _ in range(4):
        assert city.log_in(client, person.login_id, "Wrong-1-password").status == 403
    assert city.log_in(client, person.login_id, person.password).status == 200, "four failures lock nothing"
    control = city.look("control")["control_room"]

    def told() -> int:
        return sum(person.login_id in event["content"].get("body", "") for event in staff.client.messages(control))

    assert told() == 0
    for _ in range(5):
        city.log_in(client, person.login_id, "Wrong-1-password")
    assert told() == 1
    assert city.log_in(client, person.login_id, person.password).status == 403
    assert city.log_in(client, person.user_id, person.password).status == 403, "another spelling is the same ID"
    assert city.log_in(city.public(second), person.login_id, person.password).status == 200
    # A session that was open before goes on; what was typed is in no message.
    assert person.client.get(WHOAMI).status == 200
    assert not any("Wrong-1" in str(event) for event in staff.client.messages(control))


def test_strangers_cannot_fill_the_control_room(fresh):
    """C10 tells the city of locked accounts. Made-up ids, which need no certificate to try, are not its work."""
    city = fresh()  # enrolment counts tries by address, whatever policy.rate_limits says
    staff, control = city.first_staff(), city.look("control")["control_room"]
    before = len(staff.client.messages(control))
    for made_up in ("nobody1", "nobody2", "nobody3"):
        for _ in range(5):
            Enrolment(city).begin(made_up, "x", "y")
    assert len(staff.client.messages(control)) - before <= 1, "a message for every id that somebody makes up"


def test_guessing_from_many_terminals_locks_the_id_everywhere(fresh):
    """DESIGN 2: a higher ceiling per ID."""
    server = fresh(config={"policy": {"login_failures_max": 2}})
    person = server.person()
    mates = [server.person(person.facility) for _ in range(8)]
    tries = 0
    for mate in mates:
        for _ in range(2):
            server.log_in(server.public(mate.terminal), person.login_id, "Wrong-1-password")
            tries += 1
    assert tries > 12
    assert server.log_in(server.public(person.terminal), person.login_id, person.password).status == 403


# DESIGN 3: enrolment ------------------------------------------------------------------------------------------------


def test_sheets_keep_the_factors_apart(city):
    person = city.issue(city.facility("分離の事業所"), name="分離花子")
    assert len(person.sheets) == 2
    initial, code = city.secrets_of(person)
    password_sheet, code_sheet = (next(s for s in person.sheets if word in s) for word in ("password", "code"))
    texts = {sheet: (city.data / sheet).read_text() for sheet in person.sheets}
    assert code not in texts[password_sheet]
    assert initial not in texts[code_sheet] and person.login_id not in texts[code_sheet]
    for sheet, text in texts.items():
        assert (city.data / sheet).stat().st_mode & 0o777 == 0o600
        assert all(line in text for line in CONTACT_LINES)
        assert "分離" not in sheet, "no file name is made from a person's name"
    assert (city.data / "sheets").stat().st_mode & 0o077 == 0
    assert (city.data / "keys").stat().st_mode & 0o077 == 0
    log = city.log()
    assert initial not in log and code not in log


def test_a_code_works_once(city):
    person = city.issue()
    initial, code = city.secrets_of(person)
    city.enrol(person)
    for password in (initial, person.password):
        again = Enrolment(city)
        answer = again.begin(person.login_id, password, code)
        assert answer.status_code == 403 and "/enrol/password" not in answer.url
        assert "csrf" not in answer.cookies
        assert again.get("/enrol/terminal.p12").url.endswith("/enrol"), "nothing to fetch"
    assert city.look(f"accounts/{quote(person.user_id)}/terminals")["terminals"].__len__() == 1


def test_one_code_from_two_browsers_at_once_gives_one_terminal(city):
    person = city.issue()
    initial, code = city.secrets_of(person)
    both = [Enrolment(city), Enrolment(city)]
    for one in both:
        assert one.begin(person.login_id, initial, code).status_code == 200
    barrier = threading.Barrier(2)

    def finish(one: Enrolment) -> None:
        barrier.wait()
        one.choose("Ume-hana-3711")

    threads = [threading.Thread(target=finish, args=(one,)) for one in both]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(one.answer.url.endswith("/enrol/done") for one in both) == [False, True]
    assert len(city.look(f"accounts/{quote(person.user_id)}/terminals")["terminals"]) == 1


def test_enrolment_tells_nobody_what_was_wrong(city, ann):
    person, other = city.issue(), city.issue()
    initial, code = city.secrets_of(person)
    other_initial, other_code = city.secrets_of(other)
    pages = {}
    for what, (login_id, password, given) in {
        "password": (person.login_id, "Wrong-1-password", code),
        "code": (person.login_id, initial, "AAAA-BBBB-CCCC"),
        "another's code": (person.login_id, initial, other_code),
        "another's password": (person.login_id, other_initial, code),
        "unknown": ("p999998", initial, code),
        "spent": (ann.login_id, ann.password, code),
    }.items():
        one = Enrolment(city)
        answer = one.begin(login_id, password, given)
        assert answer.status_code == 403, what
        assert "Set-Cookie" not in answer.headers, what
        assert all(line in one.page for line in CONTACT_LINES), what
        pages[what] = re.sub(r'name="login_id" value="[^"]*"', "", one.page)
    assert len(set(pages.values())) == 1
    # Those failures have locked nothing yet, and the right three words open.
    assert Enrolment(city).begin(person.login_id, initial, code).status_code == 200


def test_enrolment_locks_as_login_does(city):
    person = city.issue()
    initial, code = city.secrets_of(person)
    for _ in range(5):
        Enrolment(city).begin(person.login_id, "Wrong-1-password", code)
    assert Enrolment(city).begin(person.login_id, initial, code).status_code == 403


def test_the_code_may_be_typed_as_people_type(city):
    person = city.issue()
    initial, code = city.secrets_of(person)
    wide = code.replace("-", " ").lower().translate({i: i + 0xFEE0 for i in range(0x21, 0x7F)})
    assert Enrolment(city).begin(person.login_id.upper(), initial, wide).status_code == 200


def test_the_initial_password_must_be_replaced_there(city, ann):
    """C8."""
    person = city.issue(ann.facility)
    initial, code = city.secrets_of(person)
    assert city.log_in(city.public(ann.terminal), person.login_id, initial).status == 403
    one = Enrolment(city)
    one.begin(person.login_id, initial, code)
    refused = one.choose(initial)
    assert refused.status_code == 400, "the initial password was taken as one's own"
    assert one.choose("").status_code == 400
    assert one.choose("Ume-hana-3711", again="Ume-hana-3712").status_code == 400
    assert one.get("/enrol/done").url.endswith("/enrol/password")
    assert city.log_in(city.public(ann.terminal), person.login_id, initial).status == 403
    assert one.choose("Ume-hana-3711").url.endswith("/enrol/done")
    terminal = one.fetch()
    assert city.log_in(city.public(terminal), person.login_id, initial).status == 403
    assert city.log_in(city.public(terminal), person.login_id, "Ume-hana-3711").status == 200


BAD_PASSWORDS = [
    "Ab1-xyz", "alllowercase", "ALLUPPER12", "12345678", "19400101", "Password1!", "P@ssw0rd", "Qwerty123!",
    "1qaz2WSX", "aaaaAAAA1111", "Aa1!Aa1!", "xx-{login_id}-Xx1", "Xx1-{name}-xx", "Xx1-{facility}-xx",
    "Ume-19400501", "Ume-1940/05/01", "ume-S150501!", "Ume-昭和15年5月1日",
]


@pytest.mark.parametrize("bad", BAD_PASSWORDS)
def test_weak_passwords_are_refused_at_enrolment(city, weak_session, bad):
    """C7."""
    one, person, name, facility = weak_session()
    password = bad.format(login_id=person.login_id, name=name, facility=facility)
    answer = one.choose(password)
    assert answer.status_code == 400, f"{password!r} was taken"
    assert 'id="error"' in one.page and password not in one.page
    assert all(line in one.page for line in CONTACT_LINES)
    if bad.startswith(("Ume-", "ume-")):
        assert "日付のほかに8文字以上" in one.page, "what is wrong with a date of birth"


@pytest.fixture(scope="module")
def weak_session(city: Server):
    """An enrolment at its second step: a new one where a password was taken."""
    name, facility = "春野花子", "春日事業所"
    made = []

    def at_step_two():
        if not made or made[-1][0].answer.status_code == 200:
            person = city.issue(city.facility(facility), name=name)
            one = Enrolment(city)
            assert one.begin(person.login_id, *city.secrets_of(person)).status_code == 200
            made.append((one, person, name, facility))
        return made[-1]

    return at_step_two


def _change(client: Client, person: Person, new: str, **more) -> "tuple[int, str | None]":
    """Changes the password with its confirmation."""
    path = "/_matrix/client/v3/account/password"
    asked = client.post(path, {"new_password": new, **more})
    assert asked.status == 401 and asked.json["flows"] == [{"stages": ["m.login.password"]}], asked
    auth = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.login_id},
            "password": person.password, "session": asked.json["session"]}
    answer = client.post(path, {"new_password": new, "auth": auth, **more})
    return answer.told


def test_password_change_has_the_same_rules(city):
    """C7: weak ones, one's name, ID and facility, and the last five."""
    facility = "夏目事業所"
    person = city.person(city.facility(facility), name="夏野花子")
    taken = []
    for bad in BAD_PASSWORDS:
        new = bad.format(login_id=person.login_id, name="夏野花子", facility=facility)
        told = _change(person.client, person, new)
        if told == (200, None):
            taken.append(new)
            person.password = new
        else:
            assert told == (400, "M_WEAK_PASSWORD"), new
    assert not taken
    first = person.password
    used = [first]
    for n in range(3):
        new = f"Kaede-{n}-{secrets.token_hex(3)}"
        assert _change(person.client, person, new, logout_devices=False) == (200, None)
        person.password = new
        used.append(new)
    for old in used:
        status, code = _change(person.client, person, old)
        assert status == 400, f"a former password came back: {code}"
    assert city.log_in(city.public(person.terminal), person.login_id, first).status == 403


def test_password_change_ends_other_sessions(city):
    person = city.person()
    other = person.log_in()
    assert _change(person.client, person, "Momiji-77-aki") == (200, None)
    person.password = "Momiji-77-aki"
    assert other.get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    assert person.client.get(WHOAMI).status == 200


def test_password_confirmation_cannot_be_guessed_or_borrowed(city, ann):
    person = city.person(ann.facility)
    path = "/_matrix/client/v3/account/password"
    session = person.client.post(path, {"new_password": "Momiji-78-aki"}).json["session"]

    def auth(**more):
        return {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.login_id},
                "password": person.password, "session": session} | more

    for bad in (auth(password="Wrong-1-password"), auth(session="nonsense"),
                auth(identifier={"type": "m.id.user", "user": ann.login_id}, password=ann.password),
                {"type": "m.login.dummy", "session": session}):
        answer = person.client.post(path, {"new_password": "Momiji-78-aki", "auth": bad})
        assert answer.status == 401 and "flows" in answer.json, bad
    # A session begun for one operation is not good for another.
    device = person.log_in()
    device_id = device.get(WHOAMI).json["device_id"]
    answer = person.client.delete(f"/_matrix/client/v3/devices/{device_id}", {"auth": auth()})
    assert answer.status == 401 and device.get(WHOAMI).status == 200
    # Guessing here counts as guessing at the login does.
    for _ in range(6):
        person.client.post(path, {"new_password": "Momiji-78-aki", "auth": auth(password="Wrong-1-password")})
    answer = person.client.post(path, {"new_password": "Momiji-78-aki", "auth": auth()})
    assert answer.status == 401, "no lockout for the confirmation of a password"


def test_a_further_terminal_takes_the_current_password_and_sets_none(city):
    person = city.person()
    initial, _ = city.secrets_of(person)
    sheet = city.act(f"accounts/{quote(person.user_id)}/codes")["sheets"]
    (code, _) = city.sheet(sheet[0])
    assert Enrolment(city).begin(person.login_id, initial, code).status_code == 403
    one = Enrolment(city)
    assert one.begin(person.login_id, person.password, code).status_code == 200
    assert "new_password" not in one.page
    # A forged field for a new password is refused or ignored.
    if one.choose("Tsubaki-99-haru", label="訪問用").status_code == 400:
        one.choose(None, label="訪問用")
    assert one.answer.url.endswith("/enrol/done")
    terminal = one.fetch()
    assert city.log_in(city.public(terminal), person.login_id, "Tsubaki-99-haru").status == 403
    assert city.log_in(city.public(terminal), person.login_id, person.password).status == 200
    assert person.client.get(WHOAMI).status == 200
    rows = city.look(f"accounts/{quote(person.user_id)}/terminals")["terminals"]
    assert sorted(row["label"] for row in rows) == ["受付のパソコン", "訪問用"]
    assert all(row["status"] == "valid" for row in rows)


def test_a_code_before_the_first_enrolment_is_a_first_code(city):
    """The sheet got lost: a new code works with the initial password."""
    person = city.issue()
    initial, lost = city.secrets_of(person)
    person.sheets.append(city.act(f"accounts/{quote(person.user_id)}/codes")["sheets"][0])
    person.sheets.remove(next(sheet for sheet in person.sheets if "code" in sheet))
    city.enrol(person)
    assert city.log_in(city.public(person.terminal), person.login_id, person.password).status == 200
    # The lost first code must not open a second terminal with the initial password.
    assert Enrolment(city).begin(person.login_id, initial, lost).status_code == 403
    assert Enrolment(city).begin(person.login_id, person.password, lost).status_code == 403


def test_private_terminals_need_approval(city):
    """H20."""
    person = city.issue()
    one = Enrolment(city)
    one.begin(person.login_id, *city.secrets_of(person))
    assert one.choose("Ume-hana-3711", ownership="private").status_code in (400, 403)
    assert "承認" in one.page
    assert city.look(f"accounts/{quote(person.user_id)}/terminals")["terminals"] == []
    assert one.choose("Ume-hana-3711").url.endswith("/enrol/done"), "the code is not spent by the refusal"


def test_the_bundle_can_be_fetched_again_in_all_forms(city):
    person = city.issue()
    one = Enrolment(city)
    begun = one.begin(person.login_id, *city.secrets_of(person))
    cookie = next(answer.headers["Set-Cookie"] for answer in [*begun.history, begun] if "Set-Cookie" in answer.headers)
    for wanted in ("__Host-", "Secure", "HttpOnly", "SameSite=Strict", "Path=/"):
        assert wanted in cookie
    one.choose("Ume-hana-3711")
    first, second, legacy = one.fetch(), one.fetch(), one.fetch("/enrol/terminal-legacy.p12")
    assert len({certificates.serial_of(terminal) for terminal in (first, second, legacy)}) == 1
    for terminal in (first, legacy):
        assert city.log_in(city.public(terminal), person.login_id, "Ume-hana-3711").status == 200
    profile = one.session.get(one.url("/enrol/terminal.mobileconfig"), timeout=30)
    assert profile.headers["Content-Type"] == "application/x-apple-aspen-config"
    assert profile.headers["Cache-Control"] == "no-store"
    xml.dom.minidom.parseString(profile.content)
    # Pressing the button again changes nothing.
    one.get("/enrol/password")
    assert one.page.count("terminal.p12") >= 1
    assert len(city.look(f"accounts/{quote(person.user_id)}/terminals")["terminals"]) == 1
    # Somebody without the cookie gets nothing.
    assert Enrolment(city).get("/enrol/terminal.p12").url.endswith("/enrol")


def test_forms_of_other_sites_are_refused(city):
    person = city.issue()
    initial, code = city.secrets_of(person)
    one = Enrolment(city)
    form = {"login_id": person.login_id, "password": initial, "code": code}
    answer = one.session.post(one.url("/enrol"), data=form, headers={"Origin": "https://evil.example.jp"}, timeout=30)
    assert answer.status_code == 403
    one.begin(person.login_id, initial, code)
    assert one.choose("Ume-hana-3711", csrf="wrong").status_code in (400, 403)
    assert city.look(f"accounts/{quote(person.user_id)}/terminals")["terminals"] == []


def test_every_page_has_the_contact(city):
    """H25: on every error and enrolment page."""
    one = Enrolment(city)
    for path in ("/", "/enrol", "/help", "/enrol/password", "/enrol/done", "/mail/verify", "/mail/verify?token=x",
                 "/no/such/page"):
        answer = one.session.get(one.url(path), headers={"Accept": "text/html"}, timeout=30)
        assert answer.headers["Content-Type"].startswith("text/html"), path
        text = answer.content.decode()
        assert all(line in text for line in CONTACT_LINES), path
        assert "<script" not in text
        assert "script-src" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_index_page_of_a_terminal(city, ann):
    answer = ann.client.get("/", headers={"Accept": "text/html"})
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/html")
    assert all(line in answer.text for line in CONTACT_LINES)


# DESIGN 4: listeners and secrets ------------------------------------------------------------------------------------


def test_the_public_listener_takes_no_tokens_of_the_city(city, ann):
    for token in (city.secret("command.token"), city.secret("mail.token"), city.as_city().token):
        client = city.public(ann.terminal, token)
        assert client.get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
        assert client.get("/_heya/v1/control").told == (404, "M_UNRECOGNIZED")
    answer = city.public(ann.terminal, city.as_city().token).get(WHOAMI, query={"user_id": ann.user_id})
    assert answer.status == 401


def test_the_internal_listener_takes_no_users(city, ann):
    inside = Client(city.internal_base, token=ann.token)
    assert inside.get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    assert inside.get("/_heya/v1/control").told == (401, "M_UNKNOWN_TOKEN")
    assert inside.get("/_heya/v1/control", token="").told == (401, "M_MISSING_TOKEN")
    # No session begins there: it would have been without a certificate (C2), and a local process is no factor.
    done = city.log_in(inside, ann.login_id, ann.password)
    assert 400 <= done.status < 500, "a password alone opened a session on the internal listener"
    made = inside.post("/_matrix/client/v3/register", {"auth": {"type": "m.login.dummy"}}, token="")
    assert 400 <= made.status < 500
    # The mail bridge's token is for mail only, the city's is not for mail.
    mail = Client(city.internal_base, token=city.secret("mail.token"))
    assert mail.get("/_heya/v1/control").status == 401
    assert city.internal.post("/_heya/v1/mail/lease", {"max": 1}).status == 401
    assert mail.post("/_heya/v1/mail/lease", {"max": 1, "wait_ms": 0}).status == 200


def test_the_appservice_acts_only_as_the_city(city, ann):
    bot = city.as_city()
    assert bot.ok("GET", WHOAMI)["user_id"] == city.city_user
    answer = bot.get(WHOAMI, query={"user_id": ann.user_id})
    assert answer.told == (403, "M_FORBIDDEN")


def test_acting_must_be_city_staff(city, ann):
    staff = city.first_staff()
    body = {"name": f"代行{secrets.token_hex(3)}", "kind": "care", "pledge": True}
    assert city.act("facilities", body, acting=staff.user_id)["facility"]
    for acting in (ann.user_id, "@p999999:" + city.server_name, city.city_user, "", "nobody"):
        answer = city.act("facilities", {**body, "name": secrets.token_hex(4)}, acting=acting, expect=None)
        assert answer.told == (403, "M_FORBIDDEN"), acting


def test_idempotency_key(city):
    """docs/internal-api.md: the same key again answers the same and changes nothing."""
    name = f"一度だけ{secrets.token_hex(3)}"
    first = city.act("facilities", {"name": name, "kind": "care", "pledge": True}, key=name.encode().hex())
    again = city.act("facilities", {"name": name, "kind": "care", "pledge": True}, key=name.encode().hex())
    assert first == again
    other = city.act("facilities", {"name": name, "kind": "care", "pledge": True}, expect=None)
    assert other.told == (409, "JP_HEYA_EXISTS")
    missing = city.internal.post("/_heya/v1/facilities", {"name": "x", "kind": "care", "pledge": True, "acting": "command"})
    assert missing.told == (400, "M_MISSING_PARAM")
    without = city.act("facilities", {"name": "誓約なし", "kind": "care", "pledge": False}, expect=None)
    assert without.told == (400, "M_INVALID_PARAM"), "H8: no account and no facility without a pledge"


# C5, C17, C12 -------------------------------------------------------------------------------------------------------


def test_what_is_off_refuses(city, ann):
    """C5: federation, open registration, guests, public directory."""
    client = city.public(ann.terminal)
    register = "/_matrix/client/v3/register"
    assert client.post(register, {"username": "x", "password": "Ume-hana-37", "auth": {"type": "m.login.dummy"}}).told == (
        403, "M_FORBIDDEN")
    assert client.post(f"{register}?kind=guest").told == (403, "M_GUEST_ACCESS_FORBIDDEN")
    assert client.get("/_synapse/admin/v1/register").told == (404, "M_UNRECOGNIZED")
    for path in ("/_matrix/federation/v1/version", "/_matrix/key/v2/server", "/_matrix/federation/v2/query/profile"):
        assert client.get(path).told == (404, "M_UNRECOGNIZED"), path
    assert ann.client.get("/_matrix/client/v3/publicRooms").json.get("chunk", []) == []
    answer = ann.client.post("/_matrix/client/v3/createRoom", {"visibility": "public", "invite": []})
    assert answer.told == (403, "M_FORBIDDEN")


def test_a_leaver_is_out_at_once(city, ann):
    """C17, H23 form 3: sessions, certificates, memberships."""
    person = city.person()
    room = city.room(ann, person)
    done = city.act(f"accounts/{quote(person.user_id)}/end", {"reason": "退職"})
    assert (done["sessions"], done["terminals"], done["rooms"]) == (1, 1, 1)
    assert city.public(person.terminal, person.token).get(WHOAMI).json["jp.heya.certificate"] == "revoked"
    assert city.public(ann.terminal, person.token).get(WHOAMI).status == 401
    members = ann.client.ok("GET", f"/_matrix/client/v3/rooms/{quote(room)}/joined_members")["joined"]
    assert person.user_id not in members and ann.user_id in members
    for path in (f"accounts/{quote(person.user_id)}/codes",):
        assert city.act(path, expect=None).told == (404, "M_NOT_FOUND")
    answer = city.act(f"rooms/{quote(room)}/members", {"case": "x", "add": [person.user_id]}, expect=None)
    assert answer.status == 404, "somebody who has left was added to a room"
    rows = city.search(person.login_id)["accounts"]
    assert [row["status"] for row in rows] == ["ended"]


def test_a_shared_terminal_survives_a_leaver(city, ann):
    """`end` revokes the certificates of terminals that only this account uses; its session there ends."""
    leaver = city.person(ann.facility)
    there = leaver.log_in(ann.terminal)
    city.act(f"accounts/{quote(leaver.user_id)}/end", {"reason": "退職"})
    assert there.get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    assert ann.client.get(WHOAMI).status == 200


def test_forced_reset(city, ann):
    """C12, H14: sessions and own terminals end, a new password is forced; the old one is worth nothing."""
    person = city.person(ann.facility)
    room = city.room(person)
    second = person.log_in(ann.terminal)
    done = city.act(f"accounts/{quote(person.user_id)}/reset")
    assert (done["sessions"], done["terminals"]) == (2, 1)
    assert city.public(person.terminal, person.token).get(WHOAMI).json["jp.heya.certificate"] == "revoked"
    assert second.get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    assert ann.client.get(WHOAMI).status == 200, "a terminal that others use goes on"
    assert city.log_in(city.public(ann.terminal), person.login_id, person.password).status == 403
    old, person.sheets = person.password, done["sheets"]
    initial, code = city.secrets_of(person)
    assert city.log_in(city.public(ann.terminal), person.login_id, initial).status == 403, "C8"
    assert Enrolment(city).begin(person.login_id, old, code).status_code == 403
    one = Enrolment(city)
    assert one.begin(person.login_id, initial, code).status_code == 200
    assert one.choose(old).status_code == 400, "the old password came back"
    one.choose("Sumire-55-natsu")
    terminal = one.fetch()
    client = city.public(terminal)
    client.token = city.log_in(client, person.login_id, "Sumire-55-natsu").json["access_token"]
    assert client.get("/_matrix/client/v3/joined_rooms").json["joined_rooms"] == [room], "memberships stay"
    for gone in ("@p999999:" + city.server_name, city.city_user):
        assert city.act(f"accounts/{quote(gone)}/reset", expect=None).told == (404, "M_NOT_FOUND")


def test_logins_are_slowed_down(fresh):
    """GL: guessing is slow. One address, many tries."""
    server = fresh(config={"policy": {"rate_limits": True, "login_failures_max": 1000}})
    person = server.person()
    client = server.public(person.terminal)

    def limited() -> Answer | None:
        # Refreshing counts to the same allowance, without the hash of a password: where that takes a second, another try
        # has been granted meanwhile.
        wait_for(lambda: client.post("/_matrix/client/v3/refresh", {"refresh_token": "x"}).status == 429, 60, 0, "the limit")
        answer = server.log_in(client, person.login_id, "Wrong-1-password")
        return answer if answer.status == 429 else None

    answer = wait_for(limited, 60, 0, "the limit of log-ins")
    assert answer.errcode == "M_LIMIT_EXCEEDED" and answer.json["retry_after_ms"] > 0
    assert int(answer.headers["Retry-After"]) > 0


class From(Client):
    """A client with an address of its own, by IPv4 (any of 127.0.0.0/8) or IPv6 (::1)."""

    def __init__(self, server: Server, terminal: Terminal, address: str) -> None:
        super().__init__(server.base, ca=server.ca, cert=terminal.pair)
        self.address, self.to = address, "::1" if ":" in address else "127.0.0.1"

    def connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(self.to, self.port, timeout=self.timeout, context=self.context(),
                                                 source_address=(self.address, 0))
        connection.connect()
        return connection

    def guess(self) -> int:
        """One of the calls that are counted by address."""
        return self.post("/_matrix/client/v3/refresh", {"refresh_token": "x"},
                         headers={"Host": f"{self.host}:{self.port}"}).status


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_a_listener_for_both_families_counts_each_address_by_itself(fresh):
    """`[::]` takes IPv4 too, whose addresses come as ::ffff:192.0.2.1: they are no network of 64 bits together."""
    server = fresh(config={"policy": {"rate_limits": True}})
    person = server.person()
    server.stop()
    config = server.folder / "config.toml"
    public = f"127.0.0.1:{server.ports[0]}"
    config.write_text(config.read_text().replace(f'listen = "{public}"', f'listen = "[::]:{server.ports[0]}"', 1))
    server.start()
    one, other, six = (From(server, person.terminal, address) for address in ("127.0.0.1", "127.0.0.2", "::1"))
    wait_for(lambda: one.guess() == 429, 60, 0, "the limit of one address")
    assert other.guess() == 401, "another address of IPv4"
    assert one.guess() == 429
    wait_for(lambda: other.guess() == 429, 60, 0, "its own limit")
    assert six.guess() == 401, "an address of IPv6"
    wait_for(lambda: six.guess() == 429, 60, 0, "the limit of a network of IPv6")
    # What the log shows is the address as everybody writes it.
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.login_id}, "password": person.password}
    third = From(server, person.terminal, "127.0.0.3")
    assert third.post("/_matrix/client/v3/login", body, headers={"Host": f"{third.host}:{third.port}"}).status == 200
    assert server.count("SELECT count(*) FROM audit WHERE action = 'login' AND entry LIKE '%\"127.0.0.3\"%'") == 1


def test_wrong_settings_are_refused_at_the_start(city, tmp_path):
    """A changed server name refuses to start (DESIGN 0); so do unknown settings."""
    import subprocess

    text = (city.folder / "config.toml").read_text()
    for change in ("\n[nonsense]\nx = 1\n", "\n[limits]\njson_bytes = 10\n"):
        path = tmp_path / "config.toml"
        path.write_text(text + change)
        done = subprocess.run([city.command()[0], "--config", str(path), "serve"], capture_output=True, timeout=30)
        assert done.returncode != 0 and done.stderr


def test_a_changed_server_name_refuses_to_start(fresh):
    server = fresh()
    server.stop()
    config = server.folder / "config.toml"
    config.write_text(config.read_text().replace("[server]\n", '[server]\nserver_name = "other.example.jp"\n'))
    with pytest.raises(AssertionError, match="server name|server_name|サーバー名"):
        server.start()


# Logs and files ------------------------------------------------------------------------------------------------------


def test_the_log_holds_no_secret_at_any_level(fresh):
    """DESIGN 21: the route template, never path, query or file name; no secret, content or person's name."""
    server = fresh(config={"server": {"log": "debug"}})
    person = server.person(server.facility("記録に出ない事業所"), name="記録出内子")
    initial, code = server.secrets_of(person)
    server.log_in(server.public(person.terminal), person.login_id, "Typed-in-wrong-9")
    server.log_in(server.public(person.terminal), "Password-as-id-9", "x")
    room = server.room(person, name="記録に出ない部屋")
    event = person.client.say(room, "記録に出ない内容")
    person.client.get(f"/_matrix/client/v3/rooms/{quote(room)}/event/{quote(event)}?secretquery=1")
    person.client.get("/_matrix/client/v3/secretpath/x")
    person.client.post("/_matrix/media/v3/upload?filename=secretname.txt", body=b"secretcontent", headers={"Content-Type": "text/plain"})
    person.client.put(f"/_matrix/client/v3/rooms/{quote(room)}/send/m.room.message/t", body=b'{"secretbody": ')
    person.client.post("/_matrix/client/v3/search", {"search_categories": {"room_events": {"search_term": "secretsearch"}}})
    server.public(person.terminal, "secrettoken").get(WHOAMI)
    Enrolment(server).begin(person.login_id, initial, code)
    server.revoke(server.terminal_number(person))
    server.stop()
    log = server.log()
    assert "request" in log, "debug shows requests"
    for secret in (initial, code, code.replace("-", ""), person.password, person.token, "Typed-in-wrong-9", "Password-as-id-9",
                   "記録に出ない", "記録出内子", room, event, "secret", server.secret("command.token"), server.secret("mail.token"),
                   person.terminal.p12_password):
        assert secret.lower() not in log.lower().replace("heya_secret", ""), secret


def test_nobody_else_on_the_machine_reads_the_data(fresh):
    """DESIGN 20: one data folder, its owner's only; patients' data are in the database and the media."""
    server = fresh()
    person = server.person()
    room = server.room(person)
    person.client.say(room, "内容")
    person.client.post("/_matrix/media/v3/upload", body=b"hello", headers={"Content-Type": "text/plain"})
    open_to_others = server.data.stat().st_mode & 0o077
    readable = [str(path.relative_to(server.data)) for path in server.data.rglob("*") if path.stat().st_mode & 0o077]
    # Either the folder is closed, or every file in it is.
    assert not open_to_others or not readable, readable
    for path in (server.data / "keys").iterdir():
        assert path.suffix == ".pem" or path.stat().st_mode & 0o077 == 0, path


def test_names_are_text_on_pages(city):
    """No name becomes markup on the sheets and pages."""
    name = '<img src=x onerror=alert(1)>"&'
    person = city.issue(name=name)
    for sheet in person.sheets:
        assert "<img" not in (city.data / sheet).read_text()
    one = Enrolment(city)
    one.begin(person.login_id, *city.secrets_of(person))
    assert "<img" not in one.page
    one.choose("Ume-hana-3711", label='"><script>alert(1)</script>')
    assert "<img" not in one.page and "<script" not in one.page


def test_the_city_needs_no_outside(fresh):
    """C31: with everything on, the process holds connections to nothing but itself."""
    import pathlib
    import re as regex

    server = fresh(bot=True)
    person = server.person()
    person.client.say(server.room(person), "https://example.jp/ を見てください")
    inodes = set()
    for entry in pathlib.Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            found = regex.match(r"socket:\[(\d+)\]", str(entry.readlink()))
        except OSError:
            continue
        if found:
            inodes.add(found[1])
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in pathlib.Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[9] in inodes:
                remote = columns[2].split(":")[0]
                assert remote in ("0100007F", "00000000", "0" * 32, "0" * 24 + "01000000"), line
