"""The OAuth 2.0 API (client-server API, "OAuth 2.0 API"; MSC2964 to MSC2967, MSC4191, MSC4312, MSC4341; RFC 6749, 7009,
7591, 7636, 8628, 9207), the `login` binding of DESIGN 2, refresh tokens, and what an attacker tries with them."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import secrets
import subprocess
import threading
import time
import urllib.parse

import pytest
import requests

from harness import LIBFAKETIME, REVOKED_WITHIN, Answer, Client, Person, Server, Terminal, free_ports, quote, wait_for

C = "/_matrix/client/v3"
WHOAMI = f"{C}/account/whoami"
API = "urn:matrix:client:api:*"
DEVICE = "urn:matrix:client:device:"
CODE = "authorization_code"
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
WEB = "https://app.example.com/callback"
WRONG = "Wrong-1-password"
CITY = {"policy": {"oauth": True, "rate_limits": False}}
LENIENT = {"policy": {"oauth": True, "session_binding": "login", "rate_limits": False}}


@pytest.fixture(scope="module")
def strict() -> Server:
    """A city that offers the API and binds every session to its terminal."""
    server = Server(config=CITY)
    yield server
    server.remove()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def site(request: pytest.FixtureRequest) -> Server:
    """A city that lets apps show their certificate at the log-in only, on each database."""
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    server = Server(request.param, config=LENIENT)
    yield server
    server.remove()


def device_id() -> str:
    return "D" + secrets.token_hex(6).upper()


def post_form(client: Client, path: str, **fields: str) -> Answer:
    return client.request("POST", path, body=urllib.parse.urlencode(fields).encode(),
                          headers={"Content-Type": "application/x-www-form-urlencoded"})


class Browser:
    """A browser of a person: its certificate, its cookies, no redirects followed out of the service."""

    def __init__(self, server: Server, terminal: Terminal | None) -> None:
        self.server = server
        self.session = requests.Session()
        self.session.verify, self.session.trust_env = str(server.ca), False
        if terminal:
            self.session.cert = (str(terminal.cert), str(terminal.key))
        self.page = ""

    def _take(self, answer: requests.Response) -> requests.Response:
        self.page = answer.content.decode(errors="replace")
        return answer

    def get(self, path: str) -> requests.Response:
        return self._take(self.session.get(self.server.base + path, timeout=30, allow_redirects=False))

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]*)"', self.page)
        return html.unescape(found[1]) if found else ""

    def post(self, path: str, headers: dict | None = None, **fields: str) -> requests.Response:
        form = {"csrf": self.csrf()} | fields
        return self._take(self.session.post(self.server.base + path, data=form, timeout=30, allow_redirects=False,
                                            headers=headers or {}))


class App:
    """A client that knows OAuth, on a connection with a terminal's certificate or without one."""

    def __init__(self, server: Server, terminal: Terminal | None = None, redirect: str = WEB, **more) -> None:
        self.server, self.redirect = server, redirect
        self.http = server.public(terminal)
        self.device = device_id()
        self.verifier = secrets.token_urlsafe(48)
        self.state = secrets.token_urlsafe(16)
        body = {"client_uri": "https://app.example.com/", "client_name": "試験アプリ", "redirect_uris": [redirect],
                "grant_types": [CODE, "refresh_token", DEVICE_CODE], "response_types": ["code"],
                "token_endpoint_auth_method": "none", "application_type": "web"} | more
        done = self.http.post("/oauth2/register", body)
        assert done.status == 201, done
        self.id = done.json["client_id"]

    @property
    def challenge(self) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()

    def asks(self, **more) -> str:
        fields = {"response_type": "code", "client_id": self.id, "redirect_uri": self.redirect, "state": self.state,
                  "scope": f"{API} {DEVICE}{self.device}", "code_challenge": self.challenge,
                  "code_challenge_method": "S256", "response_mode": "query"} | more
        return "/oauth2/authorize?" + urllib.parse.urlencode({k: v for k, v in fields.items() if v is not None})

    def code(self, person: Person, **more) -> str:
        """What comes back after the person has logged in."""
        url = self.asks(**more)
        browser = Browser(self.server, person.terminal)
        assert browser.get(url).status_code == 200, browser.page
        done = browser.post(url, action="allow", login_id=person.login_id, password=person.password)
        assert done.status_code == 303, browser.page
        return self.answer(done)["code"]

    def answer(self, done: requests.Response) -> dict[str, str]:
        place, _, answer = done.headers["Location"].partition("?")
        assert place == self.redirect
        fields = dict(urllib.parse.parse_qsl(answer))
        assert fields["state"] == self.state and fields["iss"] == self.server.base + "/"
        return fields

    def hand_in(self, code: str, **more: str) -> Answer:
        return post_form(self.http, "/oauth2/token", **({"grant_type": CODE, "client_id": self.id, "code": code,
                         "redirect_uri": self.redirect, "code_verifier": self.verifier} | more))

    def log_in(self, person: Person) -> dict:
        done = self.hand_in(self.code(person))
        assert done.status == 200, done
        return done.json

    def refresh(self, token: str, **more: str) -> Answer:
        return post_form(self.http, "/oauth2/token", **({"grant_type": "refresh_token", "client_id": self.id,
                                                         "refresh_token": token} | more))

    def revoke(self, token: str, **more: str) -> Answer:
        return post_form(self.http, "/oauth2/revoke", **({"client_id": self.id, "token": token} | more))

    def whoami(self, token: str) -> tuple[int, str | None]:
        return self.http.get(WHOAMI, token=token).told


INVALID = (400, "invalid_grant")


def told(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["error"]


def audit(server: Server) -> str:
    done = subprocess.run(server.command("audit", "list", "--limit", "300"), capture_output=True, text=True, timeout=60,
                          cwd=server.folder)
    return done.stdout


# Where it is offered -------------------------------------------------------------------------------------------------


def test_a_city_offers_it_only_where_it_says_so(city):
    person = city.person()
    for path in ("/_matrix/client/v1/auth_metadata", "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata"):
        assert person.client.get(path).told == (404, "M_UNRECOGNIZED")
    for path in ("/oauth2/register", "/oauth2/token", "/oauth2/revoke", "/oauth2/device"):
        assert person.client.post(path).told == (404, "M_UNRECOGNIZED"), path
    for path in ("/oauth2/authorize", "/oauth2/link", "/account"):
        assert Browser(city, person.terminal).get(path).status_code == 404, path
    assert "org.matrix.msc2965.authentication" not in city.public().get("/.well-known/matrix/client").json


def test_the_metadata(strict):
    person = strict.person()
    for path in ("/_matrix/client/v1/auth_metadata", "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata"):
        told = person.client.ok("GET", path, token="")
        assert told["issuer"] == strict.base + "/"
        for name in ("authorization", "token", "revocation", "registration", "device_authorization"):
            assert told[f"{name}_endpoint"].startswith(strict.base + "/oauth2/"), name
        assert told["response_types_supported"] == ["code"]
        assert set(told["response_modes_supported"]) == {"query", "fragment"}
        assert set(told["grant_types_supported"]) == {CODE, "refresh_token", DEVICE_CODE}
        assert told["code_challenge_methods_supported"] == ["S256"]
        assert told["account_management_uri"] == strict.base + "/account"
        assert {"org.matrix.profile", "org.matrix.devices_list", "org.matrix.device_view", "org.matrix.device_delete",
                "org.matrix.account_deactivate", "org.matrix.cross_signing_reset"} <= set(told["account_management_actions_supported"])
    # The password log-in stays.
    assert {"type": "m.login.password"} in person.client.ok("GET", f"{C}/login", token="")["flows"]


def test_the_open_profile_offers_it():
    server = Server(profile="open")
    try:
        assert server.public().get("/_matrix/client/v1/auth_metadata").status == 200
        person = server.register()
        app = App(server)
        done = app.hand_in(app.code(person))
        assert done.status == 200 and app.whoami(done.json["access_token"]) == (200, None)
    finally:
        server.remove()


# Registration --------------------------------------------------------------------------------------------------------


def test_the_same_client_has_the_same_id(strict):
    person = strict.person()
    app = App(strict, person.terminal)
    assert App(strict, person.terminal).id == app.id
    assert App(strict, person.terminal, client_name="別のアプリ").id != app.id
    done = app.http.post("/oauth2/register", {"client_uri": "https://app.example.com/", "redirect_uris": [WEB],
                                              "logo_uri": "https://evil.example/x.png", "unknown": {"a": 1}})
    assert done.status == 201 and "evil" not in done.text and done.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("wrong", [
    {"client_uri": "http://app.example.com/"}, {"client_uri": None}, {"client_uri": "https://u:p@app.example.com/"},
    {"redirect_uris": ["https://evil.example/"]}, {"redirect_uris": ["https://app.example.com.evil.example/"]},
    {"redirect_uris": ["https://app.example.com@evil.example/"]}, {"redirect_uris": ["http://app.example.com/"]},
    {"redirect_uris": ["https://app.example.com/#x"]}, {"redirect_uris": ["com.example.app:/"]}, {"redirect_uris": []},
    {"redirect_uris": ["http://localhost/"]}, {"redirect_uris": "https://app.example.com/"},
    {"application_type": "native", "redirect_uris": ["com.example.app://evil/"]},
    {"application_type": "native", "redirect_uris": ["org.evil:/"]},
    {"application_type": "native", "redirect_uris": ["javascript:alert(1)"]},
    {"application_type": "native", "redirect_uris": ["http://192.0.2.1/"]},
    {"token_endpoint_auth_method": "client_secret_post"}, {"client_name": "x" * 101}, {"client_name": "a\u202eb"},
    {"tos_uri": "https://evil.example/"}, {"grant_types": ["password"]}, {"response_types": ["token"]},
])
def test_clients_are_checked(strict, wrong):
    client = strict.public(strict.first_staff().terminal)
    body = {"client_uri": "https://app.example.com/", "redirect_uris": [WEB]} | wrong
    done = client.post("/oauth2/register", body)
    assert done.status == 400 and done.json["error"] in ("invalid_client_metadata", "invalid_redirect_uri"), done


def test_new_clients_are_bounded_by_address(fresh):
    server = fresh(config=CITY)
    client = server.public(server.first_staff().terminal)

    def register(n: int) -> int:
        return client.post("/oauth2/register", {"client_uri": "https://app.example.com/", "redirect_uris": [f"{WEB}?{n}"]}).status

    answers = [register(n) for n in range(40)]
    assert answers[:30] == [201] * 30 and set(answers[30:]) == {429}
    assert register(3) == 201, "one that is known costs nothing"
    assert server.count("SELECT COUNT(*) FROM oauth_clients") == 30


# The authorization code grant ----------------------------------------------------------------------------------------


def test_a_log_in_by_code(site):
    person = site.person()
    app = App(site, person.terminal)
    code = app.code(person)
    done = app.hand_in(code)
    assert done.status == 200 and done.headers["Cache-Control"] == "no-store"
    tokens = done.json
    assert tokens["token_type"] == "Bearer" and 0 < tokens["expires_in"] <= 600 and tokens["refresh_token"]
    assert tokens["scope"] == f"{API} {DEVICE}{app.device}"
    who = app.http.ok("GET", WHOAMI, token=tokens["access_token"])
    assert (who["user_id"], who["device_id"]) == (person.user_id, app.device)
    devices = person.client.ok("GET", f"{C}/devices")["devices"]
    assert next(d for d in devices if d["device_id"] == app.device)["display_name"] == "試験アプリ"
    # Nothing of it is in the database or a log as it was given.
    for secret in (code, tokens["access_token"], tokens["refresh_token"], app.verifier):
        assert secret not in site.log()
        if site.postgres_name is None:
            assert secret.encode() not in (site.data / "heya.sqlite").read_bytes()
    log = audit(site)
    assert re.search(rf"{re.escape(person.user_id)}\S* oauth\.authorize ok", log), log
    assert re.search(rf"{re.escape(person.user_id)}\S* login ok .*oauth app\.example\.com", log), log


def test_the_page(strict):
    person = strict.person()
    app = App(strict, person.terminal, tos_uri="https://app.example.com/terms", client_name="<b>アプリ</b>")
    browser = Browser(strict, person.terminal)
    page = browser.get(app.asks(login_hint=f"mxid:{person.user_id}"))
    assert page.status_code == 200 and 'lang="ja"' in browser.page
    assert "&#60;b&#62;アプリ" in browser.page or "&lt;b&gt;アプリ" in browser.page, "the name is text"
    assert "市は確認していません" in browser.page and "app.example.com" in browser.page
    assert "受付のパソコン" in browser.page, "it shows the certificate's terminal"
    assert html.escape(person.user_id) in browser.page
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "script-src" not in policy
    assert "form-action 'self' https://app.example.com;" in policy
    assert page.headers["X-Frame-Options"] == "DENY" and page.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in page.headers, "no other site reads the page, with its form"
    assert not re.search(r'(src|href)="https?://(?!app\.example\.com/terms)', browser.page), "nothing from outside"
    assert "<script" not in browser.page
    cookie = page.headers["Set-Cookie"]
    for part in ("__Host-oauth=", "Secure", "HttpOnly", "SameSite=Strict", "Path=/"):
        assert part in cookie


def test_both_response_modes_and_apps_of_their_own_scheme(strict):
    person = strict.person()
    for redirect, more, divider in ((WEB, {"response_mode": "fragment"}, "#"), (WEB + "?x=y", {}, "&"),
                                    ("com.example.app:/cb", {"application_type": "native"}, "?")):
        mode = more.pop("response_mode", None)
        app = App(strict, person.terminal, redirect=redirect, **more)
        url = app.asks(response_mode=mode)
        browser = Browser(strict, person.terminal)
        page = browser.get(url)
        target = "com.example.app:" if redirect.startswith("com") else "https://app.example.com"
        assert f"form-action 'self' {target};" in page.headers["Content-Security-Policy"]
        done = browser.post(url, action="allow", login_id=person.login_id, password=person.password)
        assert done.status_code == 303
        location = done.headers["Location"]
        assert location.startswith(redirect + divider), location
        fields = dict(urllib.parse.parse_qsl(location[len(redirect) + 1:]))
        assert fields["state"] == app.state and app.hand_in(fields["code"]).status == 200


def test_a_loopback_address_may_have_any_port(strict):
    person = strict.person()
    app = App(strict, person.terminal, redirect="http://127.0.0.1/cb", application_type="native")
    app.redirect = "http://127.0.0.1:43987/cb"
    assert app.hand_in(app.code(person)).status == 200


def test_unstable_scopes(strict):
    person = strict.person()
    app = App(strict, person.terminal)
    old = "urn:matrix:org.matrix.msc2967.client:"
    done = app.hand_in(app.code(person, scope=f"openid {old}api:* {old}device:{app.device}"))
    assert done.json["scope"] == f"{old}api:* {old}device:{app.device}"


def test_cancelling_goes_back(strict):
    person = strict.person()
    app = App(strict, person.terminal)
    browser = Browser(strict, person.terminal)
    browser.get(app.asks())
    done = browser.post(app.asks(), action="deny")
    assert done.status_code == 303 and app.answer(done)["error"] == "access_denied"


@pytest.mark.parametrize("wrong, error", [
    ({"response_type": "token"}, "unsupported_response_type"), ({"response_type": None}, "unsupported_response_type"),
    ({"code_challenge": None}, "invalid_request"), ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge_method": None}, "invalid_request"), ({"code_challenge": "short"}, "invalid_request"),
    ({"scope": API}, "invalid_scope"), ({"scope": f"{API} {DEVICE}a/b"}, "invalid_scope"), ({"scope": None}, "invalid_scope"),
    ({"scope": f"{API} {DEVICE}AAAAAAAAAA {DEVICE}BBBBBBBBBB"}, "invalid_scope"),
    ({"response_mode": "form_post"}, "invalid_request"), ({"prompt": "none"}, "login_required"), ({"state": ""}, "invalid_request"),
])
def test_a_wrong_request_sends_nobody_anywhere_by_itself(strict, wrong, error):
    """RFC 9700, 4.11.2: anybody may register a client, and so make the service an open redirector."""
    person = strict.first_staff()
    app = App(strict, person.terminal)
    browser = Browser(strict, person.terminal)
    page = browser.get(app.asks(**wrong))
    assert page.status_code == 400 and "Location" not in page.headers
    link = html.unescape(re.search(r'<a href="([^"]*callback[^"]*)"', browser.page)[1])
    assert link.startswith(WEB + "?") and f"error={error}" in link


@pytest.mark.parametrize("wrong", [
    {"redirect_uri": "https://evil.example/"}, {"redirect_uri": WEB + "/"}, {"redirect_uri": WEB + "?x"},
    {"redirect_uri": "https://app.example.com/callback#x"}, {"redirect_uri": "https://app.example.com:444/callback"},
    {"redirect_uri": None}, {"client_id": "nobody"}, {"client_id": None}, {"client_id": "x" * 300},
])
def test_nobody_is_sent_to_a_strangers_address(strict, wrong):
    person = strict.first_staff()
    app = App(strict, person.terminal)
    browser = Browser(strict, person.terminal)
    page = browser.get(app.asks(**wrong))
    assert page.status_code == 400 and "Location" not in page.headers and "evil" not in browser.page
    # Neither by a parameter that stands there twice.
    twice = app.asks() + "&" + urllib.parse.urlencode({"redirect_uri": "https://evil.example/"})
    assert browser.get(twice).status_code == 400 and "evil" not in browser.page


# Attacks on codes ----------------------------------------------------------------------------------------------------


def test_a_code_without_its_verifier_is_worth_nothing(strict):
    person = strict.person()
    app = App(strict, person.terminal)
    code = app.code(person)
    assert told(app.hand_in(code, code_verifier=secrets.token_urlsafe(48))) == INVALID
    assert told(app.hand_in(code)) == INVALID, "tried once, it is used up"
    code = app.code(person)
    assert told(app.hand_in(code, code_verifier=app.challenge)) == INVALID, "the challenge is no verifier"
    done = post_form(app.http, "/oauth2/token", grant_type=CODE, client_id=app.id, code=app.code(person), redirect_uri=WEB)
    assert told(done) == (400, "invalid_request")


def test_a_code_is_its_clients_and_its_addresss(strict):
    person = strict.person()
    app, other = App(strict, person.terminal), App(strict, person.terminal, client_name="別のアプリ")
    other.verifier = app.verifier
    assert told(other.hand_in(app.code(person))) == INVALID, "a mixed-up client"
    assert told(app.hand_in(app.code(person), redirect_uri=WEB + "/")) == INVALID
    assert told(app.hand_in(app.code(person), client_id="nobody")) == INVALID
    assert told(app.hand_in("x" * 43)) == INVALID


def test_a_code_is_good_once_and_its_second_use_ends_what_it_gave(site):
    person = site.person()
    app = App(site, person.terminal)
    code = app.code(person)
    tokens = app.hand_in(code).json
    assert app.whoami(tokens["access_token"]) == (200, None)
    assert told(app.hand_in(code)) == INVALID
    assert app.whoami(tokens["access_token"])[0] == 401
    assert told(app.refresh(tokens["refresh_token"])) == INVALID
    assert person.client.get(WHOAMI).status == 200, "other log-ins go on"
    assert "oauth.code_reused" in audit(site)


def test_one_code_handed_in_at_once_gives_one_session_at_most(strict):
    person = strict.person()
    app = App(strict, person.terminal)
    code, answers = app.code(person), []

    def hand_in() -> None:
        one = App.__new__(App)
        one.__dict__ |= app.__dict__ | {"http": strict.public(person.terminal)}
        answers.append(one.hand_in(code))

    threads = [threading.Thread(target=hand_in) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good = [answer for answer in answers if answer.status == 200]
    assert len(good) == 1 and len(answers) == 8
    assert app.whoami(good[0].json["access_token"])[0] == 401, "two knew the code"


def test_a_code_is_no_good_on_another_terminal(site):
    person = site.person()
    app = App(site, person.terminal)
    other = site.further_terminal(person)
    code = app.code(person)
    app.http = site.public(other)
    assert told(app.hand_in(code)) == INVALID


def test_a_code_is_no_good_after_the_terminals_end(site):
    person = site.person()
    app = App(site)
    code = app.code(person)
    site.revoke(site.terminal_number(person))
    assert told(app.hand_in(code)) == INVALID


# Attacks on the page -------------------------------------------------------------------------------------------------


def test_the_page_needs_the_certificate(site, strict):
    for server in (site, strict):
        person = server.person()
        app = App(server, person.terminal)
        browser = Browser(server, None)
        page = browser.get(app.asks())
        assert page.status_code == 403 and "電子証明書" in browser.page and "csrf" not in browser.page
        done = browser.post(app.asks(), action="allow", login_id=person.login_id, password=person.password)
        assert done.status_code == 403 and "Location" not in done.headers
        for path in ("/account", "/oauth2/link"):
            assert browser.get(path).status_code == 403, path


def test_a_form_is_of_its_browser_terminal_and_request(strict):
    person = strict.person()
    app, other = App(strict, person.terminal), App(strict, person.terminal, client_name="別のアプリ")
    browser = Browser(strict, person.terminal)
    give = {"action": "allow", "login_id": person.login_id, "password": person.password}

    def refused(done: requests.Response) -> bool:
        return done.status_code == 403 and "Location" not in done.headers

    # Cross-site: without a tag, with a made-up one, with the tag of another browser.
    assert refused(browser.post(app.asks(), csrf="", **give))
    assert refused(browser.post(app.asks(), csrf="00" * 32, **give))
    browser.get(app.asks())
    tag = browser.csrf()
    stranger = Browser(strict, person.terminal)
    stranger.get(app.asks())
    assert refused(stranger.post(app.asks(), csrf=tag, **give))
    # Of another request: another client, another device, another place.
    assert refused(browser.post(other.asks(), csrf=tag, **give))
    assert refused(browser.post(app.asks(scope=f"{API} {DEVICE}STOLENDEVICE"), csrf=tag, **give))
    # On another terminal, with the cookie.
    moved = Browser(strict, strict.further_terminal(person))
    moved.session.cookies = browser.session.cookies
    assert refused(moved.post(app.asks(), csrf=tag, **give))
    # Posted by another site.
    assert refused(browser.post(app.asks(), csrf=tag, headers={"Origin": "https://evil.example"}, **give))
    # And the right one is right.
    assert browser.post(app.asks(), csrf=tag, headers={"Origin": strict.base}, **give).status_code == 303


def test_a_failure_is_one_sentence_one_hash_run_and_counted(strict):
    person, stranger = strict.person(), strict.person()
    app = App(strict, person.terminal)
    browser = Browser(strict, person.terminal)
    pages = set()
    for login_id, password in ((person.login_id, WRONG), ("p999999", WRONG), (stranger.login_id, stranger.password),
                               ("佐藤", ""), (person.login_id, "x" * 600)):
        browser.get(app.asks())
        before = strict.look("stats")["password_hash_runs"]
        done = browser.post(app.asks(), action="allow", login_id=login_id, password=password)
        assert done.status_code == 403
        assert strict.look("stats")["password_hash_runs"] == before + 1
        pages.add(re.sub(r'value="[^"]*"', "", browser.page))
    assert len(pages) == 1, "failures are told apart"
    # Five failures on this terminal lock the ID, on the page as at the log-in.
    for _ in range(4):
        browser.get(app.asks())
        browser.post(app.asks(), action="allow", login_id=person.login_id, password=WRONG)
    browser.get(app.asks())
    assert browser.post(app.asks(), action="allow", login_id=person.login_id, password=person.password).status_code == 403
    assert strict.log_in(strict.public(person.terminal), person.login_id, person.password).status == 403
    assert re.search(rf"{re.escape(person.user_id)}\S* login locked", audit(strict))


def test_an_initial_password_opens_nothing(strict):
    person = strict.person()
    issued = strict.issue(person.facility)
    initial, _ = strict.secrets_of(issued)
    app = App(strict, person.terminal)
    browser = Browser(strict, person.terminal)
    browser.get(app.asks())
    done = browser.post(app.asks(), action="allow", login_id=issued.login_id, password=initial)
    assert done.status_code == 403


# Refresh and revocation ----------------------------------------------------------------------------------------------


def test_refresh_rotates_and_a_lost_answer_does_no_harm(site):
    person = site.person()
    app = App(site, person.terminal)
    first = app.log_in(person)
    lost = app.refresh(first["refresh_token"])
    assert lost.status == 200
    # The answer was lost: the token of before is good until a newer token is used, and so is its access token.
    assert app.whoami(first["access_token"]) == (200, None)
    again = app.refresh(first["refresh_token"])
    assert again.status == 200
    second = again.json
    assert len({first["refresh_token"], lost.json["refresh_token"], second["refresh_token"]}) == 3
    assert app.whoami(lost.json["access_token"])[0] == 401, "nobody has it"
    assert app.whoami(second["access_token"]) == (200, None)
    assert app.whoami(first["access_token"])[0] == 401, "replaced"
    third = app.refresh(second["refresh_token"]).json
    # Without the access token in between, too.
    fourth = app.refresh(third["refresh_token"]).json
    assert app.whoami(fourth["access_token"]) == (200, None)
    site_restart(site)
    app.http = site.public(person.terminal)
    assert app.whoami(fourth["access_token"]) == (200, None)
    assert app.refresh(fourth["refresh_token"]).status == 200


def site_restart(server: Server) -> None:
    server.kill()
    server.start()


def test_a_replayed_refresh_token_ends_the_session(site):
    person = site.person()
    app = App(site, person.terminal)
    first = app.log_in(person)
    second = app.refresh(first["refresh_token"]).json
    assert app.whoami(second["access_token"]) == (200, None)
    assert told(app.refresh(first["refresh_token"])) == INVALID, "used, and its successor is in use"
    assert app.whoami(second["access_token"])[0] == 401
    assert told(app.refresh(second["refresh_token"])) == INVALID
    assert "session.refresh_reused" in audit(site)
    assert person.client.get(WHOAMI).status == 200


def test_a_thief_with_the_token_and_its_owner_cannot_both_go_on(site):
    """Whoever refreshes second tells on the first."""
    person = site.person()
    app = App(site, person.terminal)
    first = app.log_in(person)
    owner = app.refresh(first["refresh_token"]).json
    thief = app.refresh(first["refresh_token"]).json
    assert app.whoami(thief["access_token"]) == (200, None)
    assert app.whoami(owner["access_token"])[0] == 401
    assert told(app.refresh(owner["refresh_token"])) == INVALID
    assert app.whoami(thief["access_token"])[0] == 401


def test_a_refresh_token_is_its_clients(strict):
    person = strict.person()
    app, other = App(strict, person.terminal), App(strict, person.terminal, client_name="別のアプリ")
    tokens = app.log_in(person)
    assert told(other.refresh(tokens["refresh_token"])) == INVALID
    assert app.http.post(f"{C}/refresh", {"refresh_token": tokens["refresh_token"]}).told == (401, "M_UNKNOWN_TOKEN")
    elsewhere = App(strict, strict.further_terminal(person))
    assert told(elsewhere.refresh(tokens["refresh_token"])) == INVALID, "bound to its terminal"
    assert app.whoami(tokens["access_token"]) == (200, None)
    assert told(app.refresh(tokens["access_token"])) == INVALID
    assert told(post_form(app.http, "/oauth2/token", grant_type="password", client_id=app.id)) == (400, "unsupported_grant_type")
    done = app.http.request("POST", "/oauth2/token", body=f"grant_type=refresh_token&client_id={app.id}&client_id=x&refresh_token=y".encode())
    assert told(done) == (400, "invalid_request")


def test_revocation_ends_session_and_device(site):
    person = site.person()
    for which in ("access_token", "refresh_token"):
        app = App(site, person.terminal)
        tokens = app.log_in(person)
        other = App(site, person.terminal, client_name="別のアプリ")
        assert told(app.revoke(tokens[which], client_id=other.id)) == (400, "invalid_client")
        assert app.whoami(tokens["access_token"]) == (200, None)
        assert app.revoke(tokens[which]).status == 200
        assert app.whoami(tokens["access_token"])[0] == 401
        assert told(app.refresh(tokens["refresh_token"])) == INVALID, "refreshed after its revocation"
        assert app.device not in [d["device_id"] for d in person.client.ok("GET", f"{C}/devices")["devices"]]
        assert app.revoke(tokens[which]).status == 200, "what is not known is fine"
    assert app.revoke(person.token).status == 200 and person.client.get(WHOAMI).status == 200, "only OAuth's tokens"


def test_an_access_token_runs_out(fresh):
    server = fresh(config={"policy": CITY["policy"], "limits": {"access_token_seconds": 5}})
    person = server.person()
    app = App(server, person.terminal)
    tokens = app.log_in(person)
    assert tokens["expires_in"] == 5
    gone = wait_for(lambda: (a := app.http.get(WHOAMI, token=tokens["access_token"])).status == 401 and a, 30, 0.2)
    assert gone.errcode == "M_UNKNOWN_TOKEN" and gone.json["soft_logout"] is True
    assert app.refresh(tokens["refresh_token"]).status == 200
    # The log-in by password, where the client can refresh; and as before, where it cannot.
    done = server.log_in(server.public(person.terminal), person.login_id, person.password, refresh_token=True).json
    assert done["expires_in_ms"] == 5000
    client = server.public(person.terminal)
    wait_for(lambda: client.get(WHOAMI, token=done["access_token"]).told == (401, "M_UNKNOWN_TOKEN"), 30, 0.2)
    new = client.ok("POST", f"{C}/refresh", {"refresh_token": done["refresh_token"]})
    assert new["expires_in_ms"] == 5000 and client.get(WHOAMI, token=new["access_token"]).status == 200
    assert person.client.get(WHOAMI).status == 200


@pytest.mark.skipif(LIBFAKETIME is None, reason="needs Debian's libfaketime: a minute is long, 90 days are longer")
def test_a_code_is_good_for_a_minute_and_an_idle_session_for_90_days(fresh):
    server = fresh(config=CITY)
    person = server.person()
    app = App(server, person.terminal)
    busy = app.log_in(person)
    idle, other = App(server, person.terminal), App(server, person.terminal)
    left = idle.log_in(person)
    in_time, late = other.code(person), app.code(person)

    def again(offset: str) -> None:
        server.later(offset)
        for one in (app, idle, other):
            one.http = server.public(person.terminal)

    again("+20s")
    assert other.hand_in(in_time).status == 200
    again("+61s")
    assert told(app.hand_in(late)) == INVALID
    again("+89d")
    busy = app.refresh(busy["refresh_token"]).json
    assert app.whoami(busy["access_token"]) == (200, None)
    again("+91d")
    assert told(idle.refresh(left["refresh_token"])) == INVALID
    again("+178d")
    assert app.refresh(busy["refresh_token"]).status == 200, "the days are counted from its last refresh"


@pytest.mark.skipif(LIBFAKETIME is None, reason="needs Debian's libfaketime: a month cannot be waited for")
def test_what_has_run_out_is_forgotten_in_time(database: str, fresh):
    """Every hour, and at the start: codes and checks of addresses an hour after their end, OpenID tokens at theirs, spent
    refresh tokens after a week, transaction ids after 30 days. Never what still protects somebody, or is good."""
    server = fresh(database, config={"policy": CITY["policy"] | {"openid_tokens": True, "password_reset_by_mail": True},
                                     "mail": {"enabled": True, "smtp_host": "localhost", "smtp_port": free_ports(1)[0],
                                              "smtp_security": "none"}})
    person = server.person()
    app = App(server, person.terminal)
    tokens, watched = app.log_in(person), App(server, person.terminal)
    stolen = first = watched.log_in(person)
    for _ in range(2):
        tokens, first = app.refresh(tokens["refresh_token"]).json, watched.refresh(first["refresh_token"]).json
        assert app.whoami(tokens["access_token"]) == (200, None) == watched.whoami(first["access_token"])
    app.code(person)
    ask = {"client_secret": secrets.token_urlsafe(18), "email": "a@example.jp", "send_attempt": 1}
    assert person.client.post(f"{C}/account/3pid/email/requestToken", ask).status == 200
    room = server.room(person, server.person())
    said = person.client.say(room, "一度だけ", txn="once")
    key, body = secrets.token_hex(8), {"name": "試験事業所 期限", "kind": "care", "pledge": True}
    done = server.act("facilities", body, key=key)

    def rows(table: str, where: str = "1 = 1") -> int:
        return server.count(f"SELECT COUNT(*) FROM {table} WHERE {where}")

    def hourly(offset: str) -> None:
        """Goes to a time, and waits until the hourly work has been done: it ends with tokens that last an hour."""
        person.client.ok("POST", f"{C}/user/{quote(person.user_id)}/openid/request_token", {})
        assert rows("openid_tokens") == 1
        server.later(offset)
        person.client.close()
        app.http = watched.http = server.public(person.terminal)
        wait_for(lambda: rows("openid_tokens") == 0, 30, 0.1, "the hourly work")

    spent = rows("refresh_tokens", "state = 'spent'")
    assert rows("oauth_codes") == 3 and rows("threepid_checks") == 1 and spent >= 2
    hourly("+2h")
    assert rows("oauth_codes") == 0, "an hour after the minute"
    assert rows("threepid_checks") == 1, "the link in the mail is good for a day"
    assert rows("refresh_tokens", "state = 'spent'") == spent
    hourly("+26h")
    assert rows("threepid_checks") == 0
    hourly("+6d")
    assert rows("refresh_tokens", "state = 'spent'") == spent
    assert told(watched.refresh(stolen["refresh_token"])) == INVALID
    assert told(watched.refresh(first["refresh_token"])) == INVALID, "who shows a spent one ends the session"
    hourly("+8d")
    assert rows("refresh_tokens", "state = 'spent'") == 0
    tokens = app.refresh(tokens["refresh_token"]).json
    assert app.whoami(tokens["access_token"]) == (200, None)
    hourly("+29d")
    assert person.client.say(room, "一度だけ", txn="once") == said
    assert rows("transactions", "txn_id = 'once'") == 1
    hourly("+31d")
    assert rows("transactions", "txn_id = 'once'") == 0
    assert server.act("facilities", body, key=key) == done, "keys of the city's own calls are for good"
    assert person.client.get(WHOAMI).status == 200


def test_refresh_of_a_password_session(city):
    """`POST /refresh` in a city as it comes: OAuth is off."""
    person = city.person()
    client = city.public(person.terminal)
    done = city.log_in(client, person.login_id, person.password, refresh_token=True).json
    assert done["expires_in_ms"] == 600_000
    assert "refresh_token" not in city.log_in(client, person.login_id, person.password).json

    def refresh(token: str, by: Client = client) -> Answer:
        return by.post(f"{C}/refresh", {"refresh_token": token}, token="")

    assert city.public().post(f"{C}/refresh", {"refresh_token": done["refresh_token"]}).told == (403, "M_FORBIDDEN")
    other = city.public(city.further_terminal(person))
    assert refresh(done["refresh_token"], other).told == (401, "M_UNKNOWN_TOKEN")
    first = refresh(done["refresh_token"]).json
    again = refresh(done["refresh_token"]).json
    assert client.get(WHOAMI, token=again["access_token"]).status == 200
    reused = refresh(done["refresh_token"])
    assert reused.told == (401, "M_UNKNOWN_TOKEN") and reused.json["soft_logout"] is True
    assert client.get(WHOAMI, token=again["access_token"]).status == 401
    assert refresh(first["refresh_token"]).status == 401 and refresh("nonsense").told == (401, "M_UNKNOWN_TOKEN")
    assert refresh("").status in (400, 401)


# Bindings ------------------------------------------------------------------------------------------------------------


def test_the_connection_binding_is_the_default(strict):
    person = strict.person()
    app = App(strict, person.terminal)
    tokens = app.log_in(person)
    other = strict.public(strict.further_terminal(person), tokens["access_token"])
    answer = other.get(WHOAMI)
    assert answer.told == (401, "M_UNKNOWN_TOKEN") and answer.json["soft_logout"] is True
    bare = strict.public(None, tokens["access_token"])
    assert bare.get(WHOAMI).json["jp.heya.certificate"] == "none"
    for path in ("/oauth2/token", "/oauth2/register", "/oauth2/revoke", "/oauth2/device"):
        assert bare.post(path).told == (403, "M_FORBIDDEN"), path
    # A code of this city is worth nothing without the certificate.
    code, app.http = app.code(person), strict.public()
    assert app.hand_in(code).told == (403, "M_FORBIDDEN")


def test_the_login_binding(site):
    """DESIGN 2: the certificate is shown on the page; the app comes without one."""
    person, mate = site.person(), site.person()
    room = site.room(person, mate)
    app = App(site)
    tokens = app.log_in(person)
    assert tokens["expires_in"] <= 600
    token = tokens["access_token"]
    assert app.whoami(token) == (200, None)
    bare = site.public(None, token)
    assert bare.say(room, "証明書なしの接続から") and room in bare.sync()["rooms"]["join"]
    assert bare.get("/_matrix/client/versions", token="").status == 200
    assert bare.ok("GET", f"{C}/login", token="")["flows"] == [], "without a certificate the password opens nothing"
    assert site.log_in(site.public(), person.login_id, person.password).json["jp.heya.certificate"] == "none"
    # Nothing else comes in without one: no page, no other session, no other listener.
    assert site.public(None, person.token).get(WHOAMI).json["jp.heya.certificate"] == "none"
    assert bare.get(WHOAMI, token="").json["jp.heya.certificate"] == "none"
    assert bare.get(WHOAMI, token="nonsense").told == (401, "M_UNKNOWN_TOKEN"), "a client whose session ended is told"
    for path in ("/", "/account", "/_heya/v1/control", "/_synapse/admin/v1/register", "/oauth2/authorize"):
        assert bare.get(path).status in (403, 404), path
    assert Client(site.internal_base, token=token).get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    assert Client(site.enrol_base, ca=site.ca, token=token).get(WHOAMI).status == 404
    # With a certificate it must be the log-in's own.
    assert site.public(person.terminal, token).get(WHOAMI).status == 200
    assert site.public(mate.terminal, token).get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    # Who looked is told with the terminal of the log-in.
    number = site.terminal_number(person)
    assert re.search(rf"{re.escape(person.user_id)}\S* login ok 端末{number} ", audit(site))
    second = app.refresh(tokens["refresh_token"]).json
    assert app.whoami(second["access_token"]) == (200, None) and app.whoami(token)[0] == 401


@pytest.mark.parametrize("shows", [True, False], ids=["connection", "login"])
def test_both_bindings_end_with_the_terminal(site, shows):
    """Within five seconds, long polls too."""
    person = site.person()
    app = App(site, person.terminal if shows else None)
    first = app.log_in(person)
    tokens = app.refresh(first["refresh_token"]).json
    # A poll under the token of before, and one under the newest.
    polls, ends = [], []

    def poll(token: str) -> None:
        client = site.public(person.terminal if shows else None, token)
        since = client.sync()["next_batch"]
        polls.append(token)
        begun = time.monotonic()
        try:
            answer = client.get(f"{C}/sync?timeout=30000&since={since}")
            ends.append((answer.status, time.monotonic() - begun))
        except OSError:
            ends.append((0, time.monotonic() - begun))
        except Exception as error:  # http.client says in several ways that a connection was closed
            ends.append((type(error).__name__, time.monotonic() - begun))

    one = threading.Thread(target=poll, args=(first["access_token"],))
    one.start()
    wait_for(lambda: polls, 20, 0.02, "the first poll")
    time.sleep(0.3)
    two = threading.Thread(target=poll, args=(tokens["access_token"],))
    two.start()
    wait_for(lambda: len(polls) == 2, 20, 0.02, "the second poll")
    time.sleep(0.3)
    assert not ends, "both wait, the first under the token of before"
    site.revoke(site.terminal_number(person))
    revoked = time.monotonic()
    one.join(40)
    two.join(40)
    assert len(ends) == 2 and time.monotonic() - revoked < REVOKED_WITHIN, ends
    assert not [end for end in ends if end[0] == 200], ends
    client = site.public(None, tokens["access_token"])
    assert client.get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    bare = App(site)
    bare.id = app.id
    assert told(bare.refresh(tokens["refresh_token"])) == INVALID


def test_an_ended_account_has_no_tokens(site):
    person = site.person()
    app = App(site)
    tokens, code = app.log_in(person), None
    app.device = device_id()
    code = app.code(person)
    site.act(f"accounts/{quote(person.user_id)}/end", {"reason": "退職"})
    assert app.whoami(tokens["access_token"]) == (401, "M_UNKNOWN_TOKEN")
    assert told(app.refresh(tokens["refresh_token"])) == INVALID
    assert told(app.hand_in(code)) == INVALID


def test_the_setting_needs_what_it_needs(tmp_path):
    from harness import binary

    for text in ('[policy]\nsession_binding = "login"\n',
                 '[policy]\noauth = true\nsession_binding = "login"\n[tls]\nstrict_handshake = true\n',
                 "[limits]\naccess_token_seconds = 601\n"):
        path = tmp_path / "config.toml"
        path.write_text(text)
        done = subprocess.run([binary(), "--config", str(path), "serve"], capture_output=True, text=True, timeout=30)
        assert done.returncode != 0


# The device grant ----------------------------------------------------------------------------------------------------


def begin_device(app: App) -> dict:
    done = post_form(app.http, "/oauth2/device", client_id=app.id, scope=f"{API} {DEVICE}{app.device}")
    assert done.status == 200, done
    return done.json


def poll_device(app: App, begun: dict, **more: str) -> Answer:
    return post_form(app.http, "/oauth2/token", **({"grant_type": DEVICE_CODE, "client_id": app.id, "device_code": begun["device_code"]} | more))


def test_the_device_grant(site):
    person = site.person()
    app = App(site)
    begun = begin_device(app)
    assert begun["verification_uri"] == site.base + "/oauth2/link" and begun["expires_in"] == 600 and begun["interval"] == 5
    assert begun["verification_uri_complete"].endswith(begun["user_code"])
    assert told(poll_device(app, begun)) == (400, "authorization_pending")
    assert told(poll_device(app, begun)) == (400, "slow_down")
    other = App(site, client_name="別のアプリ")
    assert told(poll_device(other, begun)) == INVALID
    browser = Browser(site, person.terminal)
    browser.get("/oauth2/link?code=" + begun["user_code"].lower())
    assert begun["user_code"] in browser.page, "shown, and nothing is done yet"
    assert browser.post("/oauth2/link", code="AAAAAAAA").status_code == 403
    typed = f" {begun['user_code'][:4]}-{begun['user_code'][4:].lower()} "
    page = browser.post("/oauth2/link", code=typed)
    assert page.status_code == 200 and "試験アプリ" in browser.page and "市は確認していません" in browser.page
    give = {"code": begun["user_code"], "action": "approve", "login_id": person.login_id}
    assert browser.post("/oauth2/link", csrf="00" * 32, password=person.password, **give).status_code == 403
    browser.get("/oauth2/link")
    assert browser.post("/oauth2/link", password=WRONG, **give).status_code == 403
    assert browser.post("/oauth2/link", password=person.password, **give).status_code == 200
    done = poll_device(app, begun)
    assert done.status == 200 and app.whoami(done.json["access_token"]) == (200, None)
    assert told(poll_device(app, begun)) == INVALID, "once"
    # Bound to the terminal of whoever typed the code.
    site.revoke(site.terminal_number(person))
    assert app.whoami(done.json["access_token"])[0] == 401


def test_a_device_grant_can_be_refused(strict):
    person, mate = strict.person(), strict.person()
    app = App(strict, person.terminal)
    begun = begin_device(app)
    browser = Browser(strict, person.terminal)
    browser.get("/oauth2/link")
    browser.post("/oauth2/link", code=begun["user_code"], action="deny")
    assert told(poll_device(app, begun)) == (400, "access_denied")
    # A device that shows a certificate is bound to its own terminal, which must be one of the account's facilities.
    begun = begin_device(app)
    browser = Browser(strict, mate.terminal)
    browser.get("/oauth2/link")
    assert browser.post("/oauth2/link", code=begun["user_code"], action="approve", login_id=mate.login_id,
                        password=mate.password).status_code == 200
    assert told(poll_device(app, begun)) == (400, "access_denied")


# A client library of others ------------------------------------------------------------------------------------------


def test_a_foreign_client_library(strict):
    """Authlib plays every part of a client, with the terminal's certificate, by nothing but what the metadata say."""
    from authlib.common.security import generate_token
    from authlib.integrations.base_client import OAuthError
    from authlib.integrations.requests_client import OAuth2Session
    from authlib.oauth2.rfc8414 import AuthorizationServerMetadata

    person = strict.person()
    scope = f"{API} {DEVICE}{device_id()}"

    def session(**more) -> OAuth2Session:
        made = OAuth2Session(scope=scope, redirect_uri=WEB, code_challenge_method="S256", default_timeout=30, **more)
        made.verify, made.cert, made.trust_env = str(strict.ca), tuple(map(str, person.terminal.pair)), False
        return made

    def whoami(session: OAuth2Session) -> requests.Response:
        return session.get(strict.base + WHOAMI)

    # Discovery, judged by the library's own reading of RFC 8414.
    found = session().get(f"{strict.base}/_matrix/client/v1/auth_metadata", withhold_token=True)
    told = AuthorizationServerMetadata(found.json())
    told.validate()

    # Registration (RFC 7591).
    wish = {"client_uri": "https://app.example.com/", "client_name": "よその道具", "redirect_uris": [WEB],
            "grant_types": [CODE, "refresh_token", DEVICE_CODE], "response_types": ["code"],
            "token_endpoint_auth_method": "none", "application_type": "web"}
    registered = session().post(told["registration_endpoint"], json=wish, withhold_token=True)
    assert registered.status_code == 201 and wish.items() <= registered.json().items()
    client_id = registered.json()["client_id"]

    # The code with PKCE: the library makes the address, a browser with the certificate goes there.
    given: list[dict] = []
    app = session(client_id=client_id, token_endpoint=told["token_endpoint"], leeway=0,
                  update_token=lambda token, **_: given.append(token))
    verifier = generate_token(48)
    url, state = app.create_authorization_url(told["authorization_endpoint"], code_verifier=verifier)
    browser = Browser(strict, person.terminal)
    assert browser.get(url.removeprefix(strict.base)).status_code == 200 and "よその道具" in browser.page
    back = browser.post(url.removeprefix(strict.base), action="allow", login_id=person.login_id,
                        password=person.password).headers["Location"]
    token = app.fetch_token(authorization_response=back, state=state, code_verifier=verifier)
    assert token["token_type"] == "Bearer" and token["scope"] == scope and not token.is_expired(leeway=0)
    assert whoami(app).json()["user_id"] == person.user_id
    with pytest.raises(OAuthError, match="invalid_grant"):
        session(client_id=client_id).fetch_token(told["token_endpoint"], authorization_response=back, state=state,
                                                 code_verifier=verifier)
    assert whoami(app).status_code == 401, "a code that came twice ends what it gave"

    # Again, to go on with; refreshed by the library itself, once the token has run out by its clock.
    verifier = generate_token(48)
    url, state = app.create_authorization_url(told["authorization_endpoint"], code_verifier=verifier)
    assert browser.get(url.removeprefix(strict.base)).status_code == 200
    back = browser.post(url.removeprefix(strict.base), action="allow", login_id=person.login_id,
                        password=person.password).headers["Location"]
    first = dict(app.fetch_token(authorization_response=back, state=state, code_verifier=verifier))
    app.token = first | {"expires_at": 1}
    assert whoami(app).json()["user_id"] == person.user_id
    assert len(given) == 1, "refreshed, once"
    second = dict(app.token)
    assert {first["access_token"], first["refresh_token"]}.isdisjoint({second["access_token"], second["refresh_token"]})
    assert second["scope"] == scope and whoami(app).status_code == 200 and len(given) == 1
    with pytest.raises(OAuthError, match="invalid_grant"):
        app.refresh_token(told["token_endpoint"], refresh_token=first["refresh_token"])
    assert whoami(app).status_code == 401, "a replayed refresh token ends the session"

    # The device grant (RFC 8628), of which the library knows the token request.
    begun = app.post(told["device_authorization_endpoint"], data={"client_id": client_id, "scope": scope},
                     withhold_token=True).json()
    phone = session(client_id=client_id, token_endpoint=told["token_endpoint"])
    with pytest.raises(OAuthError, match="authorization_pending"):
        phone.fetch_token(grant_type=DEVICE_CODE, device_code=begun["device_code"])
    place = begun["verification_uri"].removeprefix(strict.base)
    browser.get(place)
    assert browser.post(place, code=begun["user_code"], action="approve", login_id=person.login_id,
                        password=person.password).status_code == 200
    token = phone.fetch_token(grant_type=DEVICE_CODE, device_code=begun["device_code"])
    assert whoami(phone).json()["user_id"] == person.user_id

    # Revocation (RFC 7009).
    assert phone.revoke_token(told["revocation_endpoint"], token["refresh_token"], "refresh_token").status_code == 200
    assert whoami(phone).status_code == 401
    with pytest.raises(OAuthError, match="invalid_grant"):
        phone.refresh_token(refresh_token=token["refresh_token"])


# The account page ----------------------------------------------------------------------------------------------------


def enter(server: Server, person: Person, query: str = "") -> Browser:
    browser = Browser(server, person.terminal)
    browser.get("/account" + query)
    done = browser.post("/account" + query, action="sign_in", login_id=person.login_id, password=person.password)
    assert done.status_code == 303 and done.headers["Location"] == server.base + "/account" + query, browser.page
    assert browser.get("/account" + query).status_code == 200
    return browser


def test_the_account_page_lists_and_ends_log_ins(strict):
    person, mate = strict.person(), strict.person()
    app = App(strict, person.terminal)
    tokens = app.log_in(person)
    browser = enter(strict, person, f"?action=org.matrix.device_delete&device_id={app.device}")
    assert app.device in browser.page and person.device_id not in browser.page
    assert browser.get("/account").headers["X-Frame-Options"] == "DENY"
    assert app.device in browser.page and person.device_id in browser.page and mate.device_id not in browser.page
    assert browser.post("/account", csrf="00" * 32, action="end", device_id=app.device).status_code == 200
    assert app.whoami(tokens["access_token"]) == (200, None), "without the form's tag nothing happens"
    browser.get("/account")
    browser.post("/account", action="end", device_id=mate.device_id)
    assert mate.client.get(WHOAMI).status == 200, "nobody ends another's"
    browser.get("/account")
    browser.post("/account", action="end", device_id=app.device)
    assert app.whoami(tokens["access_token"])[0] == 401 and person.client.get(WHOAMI).status == 200
    browser.get("/account?action=org.matrix.account_deactivate")
    assert "市に届け出てください" in browser.page
    # Its session is of this terminal, and reaches nothing else.
    moved = Browser(strict, strict.further_terminal(person))
    moved.session.cookies = browser.session.cookies
    moved.get("/account")
    assert person.device_id not in moved.page
    cookie = next(c.value for c in browser.session.cookies if c.name == "__Host-account")
    assert strict.public(person.terminal, cookie).get(WHOAMI).told == (401, "M_UNKNOWN_TOKEN")
    browser.get("/account")
    assert browser.post("/account", action="sign_out").status_code == 303
    browser.get("/account")
    assert person.device_id not in browser.page


def test_the_account_page_forgets_who_changed_the_password(strict):
    person = strict.person()
    browser = enter(strict, person)
    asked = person.client.post(f"{C}/account/password", {"new_password": "Momiji-78-aki"})
    auth = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.login_id},
            "password": person.password, "session": asked.json["session"]}
    # What was begun for one password is worth nothing for another.
    assert person.client.post(f"{C}/account/password", {"new_password": "Momiji-79-aki", "auth": auth}).status == 401
    assert person.client.post(f"{C}/account/password", {"new_password": "Momiji-78-aki", "auth": auth}).status == 200
    browser.get("/account")
    assert person.device_id not in browser.page


def test_operations_of_an_oauth_session_are_approved_on_the_account_page(strict):
    """MSC4312: no client but the pages sees the password."""
    person = strict.person()
    app = App(strict, person.terminal)
    token = app.log_in(person)["access_token"]
    victim = person.log_in()
    device = victim.ok("GET", WHOAMI)["device_id"]
    path = f"{C}/devices/{device}"
    asked = app.http.delete(path, {}, token=token)
    assert asked.status == 401 and ["m.oauth"] in [flow["stages"] for flow in asked.json["flows"]]
    assert asked.json["params"]["m.oauth"]["url"].startswith(strict.base + "/account?action=")
    session = asked.json["session"]
    for auth in ({"session": session}, {"type": "m.oauth", "session": session},
                 {"type": "m.login.password", "session": session, "password": person.password,
                  "identifier": {"type": "m.id.user", "user": person.login_id}}):
        assert app.http.delete(path, {"auth": auth}, token=token).status == 401, "nobody approved it"
    stranger = enter(strict, strict.person())
    assert session not in stranger.page
    stranger.post("/account", action="approve", session=session)
    assert app.http.delete(path, {"auth": {"session": session}}, token=token).status == 401, "another's approval"
    browser = enter(strict, person)
    assert session in browser.page and "ログインの終了" in browser.page
    browser.post("/account", action="approve", session=session)
    other = f"{C}/devices/{person.device_id}"
    assert app.http.delete(other, {"auth": {"session": session}}, token=token).status == 401, "for another operation"
    assert app.http.delete(path, {"auth": {"type": "m.oauth", "session": session}}, token=token).status == 200
    assert victim.get(WHOAMI).status == 401
    assert app.http.delete(other, {"auth": {"session": session}}, token=token).status == 401, "used twice"


# What is served or refused beside it ---------------------------------------------------------------------------------


def test_addresses_and_sign_on_that_are_not_offered(city):
    person = city.person()
    body = {"client_secret": "x", "country": "JP", "phone_number": "0000", "send_attempt": 1, "email": "a@example.jp"}
    for path in ("register/email", "register/msisdn", "account/3pid/msisdn", "account/password/msisdn", "account/password/email"):
        assert person.client.post(f"{C}/{path}/requestToken", body, token="").told == (403, "M_THREEPID_DENIED"), path
        assert city.public().post(f"{C}/{path}/requestToken", body).told == (403, "M_FORBIDDEN"), path
    creds = {"client_secret": "x", "id_server": "id.example", "id_access_token": "x", "sid": "x"}
    assert person.client.post(f"{C}/account/3pid", {"three_pid_creds": creds}).told == (403, "M_THREEPID_AUTH_FAILED")
    assert person.client.post(f"{C}/account/3pid/bind", creds).told == (403, "M_SERVER_NOT_TRUSTED")
    assert person.client.ok("POST", f"{C}/account/3pid/unbind", {"medium": "email", "address": "a@example.jp"}) == {
        "id_server_unbind_result": "no-support"}
    assert person.client.get("/_matrix/client/v1/register/m.login.registration_token/validity?token=x").told == (403, "M_FORBIDDEN")
    for path in ("", "/x"):
        assert person.client.get(f"{C}/login/sso/redirect{path}?redirectUrl=https://evil.example/").told == (404, "M_UNRECOGNIZED")
    assert person.client.post("/_matrix/client/v1/login/get_token").told == (403, "M_FORBIDDEN")
    assert person.client.post(f"{C}/account/password", {"new_password": "x"}, token="").told == (401, "M_MISSING_TOKEN")


def test_a_registration_token_can_be_asked_after(fresh):
    server = fresh(config={"policy": {"registration": "token", "rate_limits": False}})
    client = server.public(server.first_staff().terminal)
    path = "/_matrix/client/v1/register/m.login.registration_token/validity"
    client.post(f"{C}/register", {"auth": {"type": "m.login.registration_token", "token": "x"}})
    assert client.ok("GET", f"{path}?token=nonsense") == {"valid": False}
    assert client.ok("GET", f"{path}?token={server.secret('registration.token')}") == {"valid": True}
    assert client.get(path).status == 400


def test_openid_tokens(city, fresh):
    person = city.person()
    mine = f"{C}/user/{quote(person.user_id)}/openid/request_token"
    userinfo = "/_matrix/federation/v1/openid/userinfo"
    assert person.client.post(mine).told == (403, "M_FORBIDDEN")
    assert person.client.get(userinfo + "?access_token=x").told == (404, "M_UNRECOGNIZED")
    assert city.public().get(userinfo + "?access_token=x").told == (403, "M_FORBIDDEN")
    server = fresh(config={"policy": {"openid_tokens": True, "rate_limits": False}})
    person, mate = server.person(), server.person()
    mine = f"{C}/user/{quote(person.user_id)}/openid/request_token"
    given = person.client.ok("POST", mine, {})
    assert given["token_type"] == "Bearer" and given["expires_in"] <= 3600 and given["matrix_server_name"] == server.server_name
    assert mate.client.post(mine).told == (403, "M_FORBIDDEN")
    service = server.public()
    assert service.ok("GET", f"{userinfo}?access_token={given['access_token']}") == {"sub": person.user_id}
    assert service.get(f"{userinfo}?access_token=x").told == (401, "M_UNKNOWN_TOKEN")
    assert service.get(userinfo).told == (401, "M_MISSING_TOKEN")
    assert person.client.get(WHOAMI, token=given["access_token"]).told == (401, "M_UNKNOWN_TOKEN")
    for _ in range(30):
        person.client.ok("POST", mine, {})
    assert server.count("SELECT COUNT(*) FROM openid_tokens") <= 20
    server.act(f"accounts/{quote(mate.user_id)}/end", {"reason": "退職"})
    last = person.client.ok("POST", mine, {})["access_token"]
    server.act(f"accounts/{quote(person.user_id)}/end", {"reason": "退職"})
    assert service.get(f"{userinfo}?access_token={last}").told == (401, "M_UNKNOWN_TOKEN")


# Forgotten passwords -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk():
    """A city that sends mail and lets people replace a forgotten password by it."""
    from test_room_life import desk_with_mail

    with desk_with_mail(policy={"password_reset_by_mail": True, "oauth": True, "rate_limits": False}) as desk:
        yield desk


class Reset:
    """Somebody who has forgotten their password."""

    def __init__(self, desk, terminal: Terminal | None, address: str) -> None:
        self.desk, self.server, self.address = desk, desk.server, address
        self.client = desk.server.public(terminal)
        self.secret = secrets.token_urlsafe(18)
        self.before = len(self.mails())
        self.asked = self.ask()

    def ask(self, attempt: int = 1) -> Answer:
        return self.client.post(f"{C}/account/password/email/requestToken",
                                {"client_secret": self.secret, "email": self.address, "send_attempt": attempt})

    def mails(self) -> list:
        return [mail for mail in list(self.server.post.mails)
                if "パスワードの再設定" in str(mail["Subject"]) and self.address in mail.to]

    def link(self) -> str:
        mail = wait_for(lambda: self.mails()[self.before:], 20, 0.1, "the mail")[0]
        return next(url for url in re.findall(r"https://\S+", mail.get_content()) if "/mail/reset" in url)

    def press(self, link: str) -> int:
        browser = requests.Session()
        browser.verify, browser.trust_env = str(self.server.ca), False
        page = browser.get(link, timeout=20)
        assert page.status_code == 200 and "自分で始めました" in page.text
        token = urllib.parse.parse_qs(urllib.parse.urlsplit(link).query)["token"][0]
        return browser.post(link, data={"token": token}, timeout=20).status_code

    def set(self, new: str, client: Client | None = None, **more) -> Answer:
        body = {"new_password": new, "auth": {"type": "m.login.email.identity", "threepid_creds": {
            "sid": self.asked.json["sid"], "client_secret": self.secret}}}
        return (client or self.client).post(f"{C}/account/password", body | more, token="")


def test_a_forgotten_password(desk):
    server, person = desk.server, desk.people[0]
    address = desk.mailbox(person)
    app = App(server, person.terminal)
    tokens = app.log_in(person)
    reset = Reset(desk, person.terminal, address)
    assert reset.asked.status == 200 and set(reset.asked.json) == {"sid"}
    flows = reset.client.post(f"{C}/account/password", {"new_password": "Momiji-78-aki"}, token="")
    assert flows.status == 401 and flows.json["flows"] == [{"stages": ["m.login.email.identity"]}]
    link = reset.link()
    assert link.startswith(server.enrol_base + "/mail/reset?token=")
    unopened = reset.set("Momiji-78-aki")
    assert unopened.status == 401 and unopened.errcode == "M_THREEPID_AUTH_FAILED"
    # A mail scanner opens it, and nothing happens.
    requests.get(link, verify=str(server.ca), timeout=20)
    assert reset.set("Momiji-78-aki").status == 401
    assert reset.press(link) == 200 and reset.press(link) == 403, "once"
    # Never without the certificate, nor on a terminal of another facility.
    assert reset.set("Momiji-78-aki", server.public()).told == (403, "M_FORBIDDEN")
    assert reset.set("Momiji-78-aki", server.public(server.person().terminal)).status == 401
    assert reset.set("short").told == (400, "M_WEAK_PASSWORD")
    assert reset.set("Momiji-78-aki").status == 200
    assert person.client.get(WHOAMI).status == 401, "the other log-ins have ended"
    assert app.whoami(tokens["access_token"])[0] == 401 and told(app.refresh(tokens["refresh_token"])) == INVALID
    assert server.log_in(server.public(person.terminal), person.login_id, person.password).status == 403
    assert server.log_in(server.public(person.terminal), person.login_id, "Momiji-78-aki").status == 200
    assert reset.set("Momiji-79-aki").status == 401, "used twice"
    assert re.search(rf"{re.escape(person.user_id)}\S* password\.reset ok", audit(server)), audit(server)


def test_nobody_learns_who_has_an_address(desk):
    server, person = desk.server, desk.people[1]
    address = desk.mailbox(person)
    known, unknown = Reset(desk, person.terminal, address), Reset(desk, person.terminal, f"{secrets.token_hex(4)}@example.jp")
    assert known.asked.status == unknown.asked.status == 200 and set(known.asked.json) == set(unknown.asked.json)
    assert len(known.asked.json["sid"]) == len(unknown.asked.json["sid"])
    known.link()
    time.sleep(1)
    assert not unknown.mails()
    assert known.set("Momiji-80-aki").json["errcode"] == unknown.set("Momiji-80-aki").json["errcode"]
    # The same attempt sends nothing more, and there are only so many links at once.
    assert known.ask().json["sid"] == known.asked.json["sid"]
    for _ in range(6):
        Reset(desk, person.terminal, address)
    time.sleep(2)
    assert len(known.mails()) - known.before <= 3


def test_a_link_does_what_it_was_sent_for_only(desk):
    """The owner of a mailbox who confirms an address must not hand out the password with it."""
    server = desk.server
    person = server.person()
    address = desk.mailbox(person)
    secret, mails = secrets.token_urlsafe(18), len(server.post.mails)
    asked = person.client.ok("POST", f"{C}/account/3pid/email/requestToken",
                             {"client_secret": secret, "email": address, "send_attempt": 1})
    mail = wait_for(lambda: [m for m in list(server.post.mails)[mails:] if address in m.to], 20, 0.1, "the mail")[0]
    link = next(url for url in re.findall(r"https://\S+", mail.get_content()) if "/mail/verify" in url)
    token = urllib.parse.parse_qs(urllib.parse.urlsplit(link).query)["token"][0]
    page = server.enrol_base + "/mail/reset"
    assert requests.post(page, data={"token": token}, verify=str(server.ca), timeout=20).status_code == 403
    assert requests.post(link, data={"token": token}, verify=str(server.ca), timeout=20).status_code == 200
    body = {"new_password": "Momiji-81-aki", "auth": {"type": "m.login.email.identity", "threepid_creds": {
        "sid": asked["sid"], "client_secret": secret}}}
    assert server.public(person.terminal).post(f"{C}/account/password", body).status == 401
