"""Every route, asked by those who must not be answered (REQUIREMENTS C2, C15; DESIGN 1, 4).

`routes.tsv` says what each gets: without a token, without a certificate, with a certificate of another CA, and from
somebody who is not in the room that the path names. `heya routes` prints the routes; one without a row fails, so that
nobody adds a route without saying who may not call it.
"""

from __future__ import annotations

import csv
import pathlib
import re
import secrets
import subprocess

import pytest

import certificates
from harness import Client, Person, Server, binary, quote
from test_rooms import upload

TABLE = pathlib.Path(__file__).with_name("routes.tsv")
COLUMNS = ["no_token", "no_cert", "foreign_cert", "not_member"]


def rows() -> list[dict[str, str]]:
    with open(TABLE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def named(row: dict[str, str]) -> tuple[str, str, str]:
    return row["listener"], row["method"], row["path"]


def test_every_route_has_a_row():
    done = subprocess.run([binary(), "routes"], capture_output=True, text=True,
                          check=True, timeout=60)
    routes = [tuple(line.split("\t")) for line in done.stdout.splitlines()]
    assert len(routes) > 100 and len(set(routes)) == len(routes)
    listed = [named(row) for row in rows()]
    assert len(set(listed)) == len(listed), "a row twice"
    assert not set(routes) - set(listed), "routes without a row in routes.tsv"
    assert not set(listed) - set(routes), "rows of routes that are no more"


def test_rows_say_why_not():
    """n/a needs its reason."""
    for row in rows():
        assert all(row[column] for column in COLUMNS), row
        assert row["reason"] or not any(row[column] == "n/a" for column in COLUMNS), row
        for column in COLUMNS:
            assert re.fullmatch(r"n/a|\d{3}( M_[A-Z_]+| html)?", row[column]), row


class Asker:
    """Fills the paths in and asks."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.member, self.other = server.person(), server.person()
        self.outsider = server.person()
        self.room = server.room(self.member, self.other)
        self.mxc = upload(self.member)
        self.member.client.say(self.room, "写真", msgtype="m.image", url=self.mxc)
        self.event = self.member.client.say(self.room, "x")
        # A room that the city itself is not in.
        self.direct = self.member.client.ok("POST", "/_matrix/client/v3/createRoom", {
            "invite": [self.other.user_id], "is_direct": True})["room_id"]
        self.direct_event = self.member.client.say(self.direct, "二人の話")
        self.direct_mxc = upload(self.member)
        self.member.client.say(self.direct, "写真", msgtype="m.image", url=self.direct_mxc)
        self.foreign = certificates.foreign(server, self.member.terminal)

    def path(self, template: str, me: str, listener: str) -> str:
        inside = listener == "internal"
        server_name, media_id = (self.direct_mxc if inside else self.mxc).removeprefix("mxc://").split("/")
        room = self.direct if inside else self.room
        user = me
        if "/profile/" in template or "/presence/" in template or template.startswith("/_heya/"):
            user = self.member.user_id
        values = {
            "room_id": room, "roomId": room, "room_id_or_alias": room, "roomAlias": f"#x:{self.server.server_name}",
            "event_id": self.direct_event if inside else self.event, "txn_id": secrets.token_hex(4), "txnId": secrets.token_hex(4),
            "user_id": user, "userId": user, "event_type": "m.room.message", "eventType": "m.room.topic", "stateKey": "x",
            "device_id": "NONE", "receipt_type": "m.read", "rel_type": "m.thread", "type": "jp.example.x", "tag": "m.favourite",
            "filterId": "0", "serverName": server_name, "mediaId": media_id, "fileName": "photo.png", "kind": "override",
             "rule_id": "x", "keyName": "displayname", "protocol": "x", "appserviceId": "city", "terminal": "1", "idpId": "x",
             "deviceId": "NONE", "deleteId": "NONE", "version": "1", "sessionId": "x",
             "networkId": "irc", "eventId": self.direct_event if inside else self.event,
        }
        return re.sub(r"\{(\w+)\}", lambda found: quote(values[found[1]]), template)

    def body(self, method: str, template: str) -> dict | None:
        if method in ("GET", "DELETE"):
            return None
        tail = template.rsplit("/v3/", 1)[-1].rsplit("/r0/", 1)[-1]
        for end, body in {
            "/admin/lock/{user_id}": {"locked": True}, "/admin/suspend/{user_id}": {"suspended": True},
            "/invite": {"user_id": self.outsider.user_id}, "/kick": {"user_id": self.member.user_id},
            "/ban": {"user_id": self.member.user_id}, "/unban": {"user_id": self.member.user_id},
            "/read_markers": {"m.fully_read": self.event}, "{eventType}": {"topic": "x"}, "{eventType}/": {"topic": "x"},
            "{stateKey}": {"topic": "x"}, "/typing/{user_id}": {"typing": True, "timeout": 1000}, "/status": {"presence": "online"},
             "refresh": {"refresh_token": "x"}, "displayname": {"displayname": "x"}, "{keyName}": {"displayname": "x"}, "/{tag}": {"order": 0.5},
             "/upgrade": {"new_version": "12"}, "/report": {"reason": "x"},
            "/email/requestToken": {"client_secret": "x", "email": "a@example.jp", "send_attempt": 1},
            "login": {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "p999999"}, "password": "x"},
        }.items():
            if tail.endswith(end):
                return body
        return {}

    QUERIES = {"/messages": "dir=b", "/timestamp_to_event": "ts=0&dir=f", "/register/available": "username=x", "/keys/changes": "from=x&to=x",
               "/validity": "token=x", "/preview_url": "url=https://example.jp", "/thumbnail/{serverName}/{mediaId}": "width=32&height=32"}

    def ask(self, client: Client, row: dict[str, str], me: str, token: str) -> str:
        """What the table would call the answer."""
        listener, method, template = named(row)
        path = self.path(template, me, listener)
        query = next((query for end, query in self.QUERIES.items() if template.endswith(end)), "")
        headers = {"Idempotency-Key": secrets.token_hex(8)} if template.startswith("/_heya/") else {}
        answer = client.request(method, f"{path}?{query}" if query else path, json_body=self.body(method, template),
                                token=token, headers=headers)
        if answer.headers["Content-Type"] and answer.headers["Content-Type"].startswith("text/html"):
            return f"{answer.status} html"
        return f"{answer.status} {answer.errcode}" if answer.errcode else str(answer.status)

    def client(self, listener: str, column: str, person: Person) -> Client:
        if listener == "internal":
            return Client(self.server.internal_base)
        terminal = {"no_cert": None, "foreign_cert": self.foreign}.get(column, person.terminal)
        base = self.server.base if listener == "public" else self.server.enrol_base
        return Client(base, ca=self.server.ca, cert=terminal.pair if terminal else None)

    def column(self, row: dict[str, str], column: str) -> str:
        """What somebody gets."""
        listener = row["listener"]
        person = self.outsider if column == "not_member" else self.member
        token = "" if column == "no_token" else person.token
        me = person.user_id
        if listener == "internal":
            # Those who call here are the city's bot: it is in every room but those of two people.
            me = self.server.city_user
            token = "" if column == "no_token" else self.server.as_city().token
        client = self.client(listener, column, person)
        try:
            return self.ask(client, row, me, token)
        finally:
            client.close()


@pytest.fixture(scope="module")
def asker() -> Asker:
    server = Server()
    yield Asker(server)
    server.remove()


@pytest.mark.parametrize("row", rows(), ids=lambda row: " ".join(named(row)))
def test_route(asker: Asker, row: dict[str, str]):
    got = {column: asker.column(row, column) for column in COLUMNS if row[column] != "n/a"}
    assert got == {column: row[column] for column in got}
    # Tokens are worth nothing on the other listener.
    if row["no_token"] == "401 M_MISSING_TOKEN":
        listener = row["listener"]
        wrong = asker.member.token if listener == "internal" else asker.server.as_city().token
        client = asker.client(listener, "", asker.member)
        told = asker.ask(client, row, asker.member.user_id, wrong)
        client.close()
        assert told == "401 M_UNKNOWN_TOKEN", "a token of the other listener"


def test_nothing_was_changed_by_asking(asker: Asker):
    """After all of it the room is as it was."""
    state = asker.member.client.ok("GET", f"/_matrix/client/v3/rooms/{quote(asker.room)}/state")
    joined = {event["state_key"] for event in state
              if event["type"] == "m.room.member" and event["content"]["membership"] == "join"}
    assert joined == {asker.server.city_user, asker.member.user_id, asker.other.user_id}
    assert not any(event["type"] == "m.room.topic" for event in state)
    kinds = [event["type"] for event in asker.member.client.messages(asker.room)]
    assert kinds.count("m.room.message") == 3 and "m.room.redaction" not in kinds
    assert asker.member.client.get("/_matrix/client/v3/account/whoami").status == 200
