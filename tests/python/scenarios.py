"""A valid request for every operation of the client-server API, in a world with something to ask for.

A scenario is a generator: it yields calls and gets their answers. Its first call is the operation as a client would make
it; what the operation needs (a session, a backup, an alias) is made before it. The contract tests send the calls and look
at the answers; the coverage test sends the first one where a policy refuses the operation.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import pathlib
import re
import secrets
import tempfile
from typing import Any, Callable, Iterator

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fake_appservice import Appservice
from harness import Answer, Client, Person, Server, quote

C = "/_matrix/client/v3"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360f8ffbf1e0006820282bf4b"
    "6ff40000000049454e44ae426082")
BACKUP = "m.megolm_backup.v1.curve25519-aes-sha2"
NO_BODY = object()


@dataclasses.dataclass
class Call:
    """One request. `path` has the values of the template's parameters."""

    path: dict[str, str] = dataclasses.field(default_factory=dict)
    body: Any = NO_BODY
    query: dict[str, Any] = dataclasses.field(default_factory=dict)
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    raw: bytes | None = None  # a body that is no JSON
    client: Client | None = None  # the world's first person, where none is named
    anonymous: bool = False  # without a token
    status: int = 200
    errcode: str | None = None  # which error, where the status is one


Scenario = Callable[["World"], Iterator[Call]]


@dataclasses.dataclass
class Entry:
    """A scenario, and where it cannot run."""

    run: Scenario
    not_in: dict[str, str]  # profile → why


SCENARIOS: dict[str, Entry] = {}
# Operations that no scenario makes, and why.
UNTRIED: dict[str, str] = {}


def scenario(operation: str, **not_in: str):
    """Registers a scenario; `city="why"` or `open="why"` where it cannot run."""

    def register(run: Scenario) -> Scenario:
        assert operation not in SCENARIOS, operation
        SCENARIOS[operation] = Entry(run, not_in)
        return run

    return register


class World:
    """A server with people, rooms and an appservice. In a city the rooms are the city's, and who may do much in them is
    the city's own user; in the open profile it is whoever made them."""

    def __init__(self, profile: str, database: str = "sqlite") -> None:
        self.profile = profile
        self.appservice = Appservice("bridge", users="@bridge_.*", aliases="#bridge_.*", protocols=["testnet"])
        self.folder = tempfile.TemporaryDirectory(prefix="heya-contract-")
        registration = self.appservice.registration(pathlib.Path(self.folder.name))
        self.server = Server(database, profile, config={
            "appservices": {"bridge": registration}, "voip": {"turn_uris": ["turn:turn.example.jp:3478?transport=udp"]}})
        self._appservice_answers()
        self.me, self.other, self.third = (self.new_person() for _ in range(3))
        # Rooms of a city have no upgrades, aliases or bans by their members.
        self.chief = self.server.as_city() if self.city else self.me.client
        self.chief_id = self.server.city_user if self.city else self.me.user_id
        self.room = self.new_room(self.me, self.other, self.third)
        self.event = self.me.client.say(self.room, "発熱が続いています")
        self.reply = self.other.client.say(self.room, "返信", **{"m.relates_to": {
            "rel_type": "m.thread", "event_id": self.event, "is_falling_back": True, "m.in_reply_to": {"event_id": self.event}}})
        self.mxc = self.upload()
        self.me.client.say(self.room, "写真", msgtype="m.image", url=self.mxc, info={"mimetype": "image/png", "w": 1, "h": 1})

    @property
    def city(self) -> bool:
        return self.profile == "city"

    def close(self) -> None:
        self.server.remove()
        self.appservice.close()
        self.folder.cleanup()

    # What scenarios ask for

    def new_person(self) -> Person:
        return self.server.person() if self.city else self.server.register()

    def session(self, person: Person | None = None, **more: Any) -> tuple[Client, dict]:
        """A further session, as a client and as the log-in's answer."""
        person = person or self.me
        client = self.server.public(person.terminal)
        done = self.server.log_in(client, person.login_id, person.password, **more)
        assert done.status == 200, done
        client.token = done.json["access_token"]
        return client, done.json

    @property
    def admin(self) -> Client:
        """City staff."""
        return self.server.first_staff().client

    def new_room(self, *members: Person, **more: Any) -> str:
        if self.city:
            return self.server.room(*members)
        first, *others = members
        room = first.client.ok("POST", f"{C}/createRoom", {"preset": "private_chat", "name": "試験の部屋",
                                                           "invite": [one.user_id for one in others], **more})["room_id"]
        for one in others:
            one.client.ok("POST", f"{C}/rooms/{quote(room)}/join", {})
        return room

    def invitation(self) -> str:
        """A room that `other` is invited to, by `me`."""
        # In a city two people have five direct rooms at most.
        for room in self.other.client.sync()["rooms"].get("invite", {}):
            self.other.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
        return self.me.client.ok("POST", f"{C}/createRoom", {"is_direct": True, "invite": [self.other.user_id]})["room_id"]

    def public_room(self, **more: Any) -> str:
        return self.me.client.ok("POST", f"{C}/createRoom", {"preset": "public_chat", "name": "公開", **more})["room_id"]

    def upload(self, content: bytes = PNG, kind: str = "image/png") -> str:
        answer = self.me.client.post("/_matrix/media/v3/upload?filename=photo.png", body=content, headers={"Content-Type": kind})
        assert answer.status == 200, answer
        return answer.json["content_uri"]

    @property
    def media(self) -> dict[str, str]:
        server_name, media_id = self.mxc.removeprefix("mxc://").split("/")
        return {"serverName": server_name, "mediaId": media_id}

    def alias(self) -> str:
        return f"#x{secrets.token_hex(4)}:{self.server.server_name}"

    def made_alias(self, room: str | None = None) -> str:
        """An alias that exists: in a city those of appservices alone."""
        if not self.city:
            alias = self.alias()
            self.me.client.ok("PUT", f"{C}/directory/room/{quote(alias)}", {"room_id": room or self.room})
            return alias
        bridge, user = self.bridge_user()
        room, alias = self.bridged_room(user), f"#bridge_{secrets.token_hex(4)}:{self.server.server_name}"
        bridge.ok("PUT", f"{C}/directory/room/{quote(alias)}?user_id={quote(user)}", {"room_id": room})
        return alias

    def bridged_room(self, user: str) -> str:
        """A room with `me` and a user of the appservice in it."""
        room = self.new_room(self.me)
        self.chief.ok("POST", f"{C}/rooms/{quote(room)}/invite", {"user_id": user})
        bridge = self.appservice.client(self.server)
        bridge.ok("POST", f"{C}/rooms/{quote(room)}/join?user_id={quote(user)}", {})
        bridge.close()
        return room

    def bridge_user(self) -> tuple[Client, str]:
        """The appservice's client and a user of it."""
        name = f"bridge_{secrets.token_hex(4)}"
        done = self.appservice.register(self.server, name)
        assert done.status == 200, done
        return self.appservice.client(self.server), done.json["user_id"]

    def passwords(self, person: Person, session: str, password: str | None = None) -> dict:
        """User-interactive authentication by password."""
        return {"type": "m.login.password", "session": session, "password": password or person.password,
                "identifier": {"type": "m.id.user", "user": person.login_id}}

    def backup_version(self) -> str:
        """The version of a new key backup; a made-up one where encryption is forbidden."""
        if self.city:
            return "1"
        return self.me.client.ok("POST", f"{C}/room_keys/version", backup())["version"]

    def backed_up(self) -> dict[str, str]:
        """A session in a key backup: version, roomId, sessionId."""
        version, session_id = self.backup_version(), "session1"
        if not self.city:
            self.me.client.ok("PUT", f"{C}/room_keys/keys/{quote(self.room)}/{session_id}?version={version}", room_key())
        return {"version": version, "roomId": self.room, "sessionId": session_id}

    def _appservice_answers(self) -> None:
        protocol = {"user_fields": ["nick"], "location_fields": ["channel"], "icon": "mxc://example.org/aBcDeFgH",
                    "field_types": {"nick": {"regexp": "[^ ]+", "placeholder": "nick"},
                                    "channel": {"regexp": "#[^ ]+", "placeholder": "#channel"}},
                    "instances": [{"desc": "Testnet", "network_id": "testnet", "fields": {"network": "testnet"}}]}
        location = [{"alias": f"#bridge_x:{self.server.server_name}", "protocol": "testnet", "fields": {"channel": "#x"}}]
        user = [{"userid": f"@bridge_x:{self.server.server_name}", "protocol": "testnet", "fields": {"nick": "x"}}]
        for path, answer in {"/thirdparty/protocol/testnet": protocol, "/thirdparty/location/testnet": location,
                             "/thirdparty/user/testnet": user, "/thirdparty/location": location, "/thirdparty/user": user}.items():
            self.appservice.answers[path] = lambda _, answer=answer: (200, answer)


# Keys and signatures -------------------------------------------------------------------------------------------------


def unpadded(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


class Key:
    """An ed25519 key that signs JSON (appendices, "Signing JSON")."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.public = unpadded(self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, value: dict, user_id: str, key_id: str) -> dict:
        """The value with this key's signature beside those that it has."""
        bare = {key: one for key, one in value.items() if key not in ("signatures", "unsigned")}
        text = json.dumps(bare, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
        signed = json.loads(json.dumps(value))
        signed.setdefault("signatures", {}).setdefault(user_id, {})[f"ed25519:{key_id}"] = unpadded(self._private.sign(text))
        return signed


def device_keys(user_id: str, device_id: str, key: Key) -> dict:
    return key.sign({"user_id": user_id, "device_id": device_id,
                     "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
                     "keys": {f"curve25519:{device_id}": unpadded(secrets.token_bytes(32)), f"ed25519:{device_id}": key.public}},
                    user_id, device_id)


def one_time_key(user_id: str, device_id: str, key: Key, **more: Any) -> dict:
    return key.sign({"key": unpadded(secrets.token_bytes(32)), **more}, user_id, device_id)


def cross_signing(user_id: str) -> tuple[dict, dict[str, Key]]:
    """The three public keys, and their secrets."""
    secret = {usage: Key() for usage in ("master", "self_signing", "user_signing")}
    master = secret["master"]
    keys = {}
    for usage, key in secret.items():
        value = {"user_id": user_id, "usage": [usage], "keys": {f"ed25519:{key.public}": key.public}}
        keys[f"{usage}_key"] = value if usage == "master" else master.sign(value, user_id, master.public)
    return keys, secret


def backup() -> dict:
    return {"algorithm": BACKUP, "auth_data": {"public_key": unpadded(secrets.token_bytes(32)), "signatures": {}}}


def room_key(index: int = 0) -> dict:
    return {"first_message_index": index, "forwarded_count": 0, "is_verified": True, "session_data": {
        "ephemeral": unpadded(secrets.token_bytes(32)), "ciphertext": unpadded(secrets.token_bytes(64)),
        "mac": unpadded(secrets.token_bytes(8))}}


def mail_check(**more: Any) -> dict:
    return {"client_secret": secrets.token_hex(8), "email": f"{secrets.token_hex(4)}@example.jp", "send_attempt": 1, **more}


def text_check() -> dict:
    return {"client_secret": secrets.token_hex(8), "country": "JP", "phone_number": "00000000000", "send_attempt": 1}


def unique() -> str:
    return secrets.token_hex(6)


# Accounts and sessions -----------------------------------------------------------------------------------------------


@scenario("getVersions")
def _(w: World):
    yield Call(anonymous=True)
    yield Call()


@scenario("getWellknown")
def _(w: World):
    yield Call(anonymous=True)


@scenario("getWellknownSupport")
def _(w: World):
    yield Call(anonymous=True)


@scenario("getWellknownPolicy")
def _(w: World):
    yield Call(anonymous=True, status=404, errcode="M_NOT_FOUND")


@scenario("getCapabilities")
def _(w: World):
    yield Call()


@scenario("getTurnServer")
def _(w: World):
    yield Call()


@scenario("getAuthMetadata")
def _(w: World):
    yield Call(anonymous=True)


@scenario("getTokenOwner")
def _(w: World):
    yield Call()


@scenario("getLoginFlows")
def _(w: World):
    yield Call(anonymous=True)


@scenario("login")
def _(w: World):
    person = w.new_person()
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": person.login_id},
            "password": person.password, "initial_device_display_name": "病棟のパソコン"}
    client = w.server.public(person.terminal)
    yield Call(body=body, client=client, anonymous=True)
    yield Call(body=body | {"refresh_token": True, "device_id": "TERMINAL1"}, client=client, anonymous=True)
    yield Call(body=body | {"identifier": {"type": "m.id.user", "user": person.user_id}}, client=client, anonymous=True)
    yield Call(body=body | {"password": "wrong"}, client=client, anonymous=True, status=403, errcode="M_FORBIDDEN")
    yield Call(body={"type": "jp.example.none"}, client=client, anonymous=True, status=400, errcode="M_UNKNOWN")


@scenario("refresh")
def _(w: World):
    client, told = w.session(refresh_token=True)
    yield Call(body={"refresh_token": told.get("refresh_token", "none was given")}, client=client, anonymous=True)
    yield Call(body={"refresh_token": "unknown"}, client=client, anonymous=True, status=401, errcode="M_UNKNOWN_TOKEN")


@scenario("generateLoginToken")
def _(w: World):
    answer = yield Call(body={}, status=401)
    yield Call(body={"auth": w.passwords(w.me, answer.json["session"])})


@scenario("redirectToSSO")
def _(w: World):
    yield Call(query={"redirectUrl": "https://example.jp/"}, anonymous=True, status=302)


@scenario("redirectToIdP")
def _(w: World):
    yield Call({"idpId": "oidc"}, query={"redirectUrl": "https://example.jp/"}, anonymous=True, status=302)


@scenario("logout")
def _(w: World):
    client, _ = w.session()
    yield Call(client=client)
    yield Call(client=client, status=401, errcode="M_UNKNOWN_TOKEN")


@scenario("logout_all")
def _(w: World):
    person = w.new_person()
    yield Call(client=person.client)


@scenario("register")
def _(w: World):
    body = {"username": f"u{unique()}", "password": "Ume-hana-37"}
    answer = yield Call(body=body, anonymous=True, status=401)
    yield Call(body=body | {"auth": {"type": "m.login.dummy", "session": answer.json["session"]}}, anonymous=True)
    yield Call(body=body | {"auth": {"type": "m.login.dummy"}}, anonymous=True, status=400, errcode="M_USER_IN_USE")
    yield Call(body={"username": f"u{unique()}", "password": "Ume-hana-37", "inhibit_login": True,
                     "auth": {"type": "m.login.dummy"}}, anonymous=True)
    yield Call(body={}, query={"kind": "guest"}, anonymous=True)
    dummy = {"password": "Ume-hana-37", "auth": {"type": "m.login.dummy"}}
    yield Call(body=dummy | {"username": "no name!"}, anonymous=True, status=400, errcode="M_INVALID_USERNAME")
    yield Call(body=dummy | {"username": "bridge_x"}, anonymous=True, status=400, errcode="M_EXCLUSIVE")


@scenario("requestTokenToRegisterEmail")
def _(w: World):
    yield Call(body=mail_check(), anonymous=True)


@scenario("requestTokenToRegisterMSISDN")
def _(w: World):
    yield Call(body=text_check(), anonymous=True)


@scenario("checkUsernameAvailability")
def _(w: World):
    yield Call(query={"username": f"u{unique()}"}, anonymous=True)
    yield Call(query={"username": w.me.login_id}, anonymous=True, status=400, errcode="M_USER_IN_USE")
    yield Call(query={"username": "no name!"}, anonymous=True, status=400, errcode="M_INVALID_USERNAME")
    yield Call(query={"username": "bridge_x"}, anonymous=True, status=400, errcode="M_EXCLUSIVE")


@scenario("registrationTokenValidity", open="who registers there needs no token: test_oauth.py asks where one does")
def _(w: World):
    answer = yield Call(query={"token": "unknown"}, anonymous=True)
    assert answer.json == {"valid": False}


@scenario("changePassword")
def _(w: World):
    person = w.new_person()
    password = f"Sakura-{unique()}-81"
    answer = yield Call(body={"new_password": password, "logout_devices": False}, client=person.client, status=401)
    yield Call(body={"new_password": password, "logout_devices": False,
                     "auth": w.passwords(person, answer.json["session"])}, client=person.client)


@scenario("requestTokenToResetPasswordEmail")
def _(w: World):
    yield Call(body=mail_check(), anonymous=True)


@scenario("requestTokenToResetPasswordMSISDN")
def _(w: World):
    yield Call(body=text_check(), anonymous=True)


@scenario("deactivateAccount")
def _(w: World):
    person = w.new_person()
    answer = yield Call(body={"erase": False}, client=person.client, status=401)
    yield Call(body={"erase": False, "auth": w.passwords(person, answer.json["session"])}, client=person.client)


@scenario("getAccount3PIDs")
def _(w: World):
    yield Call()


@scenario("post3PIDs")
def _(w: World):
    yield Call(body={"three_pid_creds": {"client_secret": unique(), "sid": "1", "id_server": "example.jp", "id_access_token": "x"}},
               status=403)


@scenario("add3PID")
def _(w: World):
    check = mail_check()
    sid = w.me.client.ok("POST", f"{C}/account/3pid/email/requestToken", check)["sid"]
    body = {"client_secret": check["client_secret"], "sid": sid}
    answer = yield Call(body=body, status=401)
    # The link in the mail has not been followed.
    yield Call(body=body | {"auth": w.passwords(w.me, answer.json["session"])}, status=400, errcode="M_THREEPID_AUTH_FAILED")


@scenario("bind3PID")
def _(w: World):
    yield Call(body={"client_secret": unique(), "sid": "1", "id_server": "example.jp", "id_access_token": "x"})


@scenario("delete3pidFromAccount")
def _(w: World):
    yield Call(body={"medium": "email", "address": "nobody@example.jp"})


@scenario("unbind3pidFromAccount")
def _(w: World):
    yield Call(body={"medium": "email", "address": "nobody@example.jp"})


@scenario("requestTokenTo3PIDEmail")
def _(w: World):
    yield Call(body=mail_check(), anonymous=True)


@scenario("requestTokenTo3PIDMSISDN")
def _(w: World):
    yield Call(body=text_check(), anonymous=True)


@scenario("getWhoIs", open="the open profile has no city staff")
def _(w: World):
    yield Call({"userId": w.other.user_id}, client=w.admin)
    yield Call({"userId": w.me.user_id})
    yield Call({"userId": w.other.user_id}, status=403, errcode="M_FORBIDDEN")


def _switch(get: str, put: str, field: str) -> None:
    """Suspending and locking are the same API."""

    @scenario(get, open="the open profile has no city staff")
    def _(w: World):
        person = w.new_person()
        answer = yield Call({"userId": person.user_id}, client=w.admin)
        assert answer.json == {field: False}
        yield Call({"userId": person.user_id}, status=403, errcode="M_FORBIDDEN")
        yield Call({"userId": f"@nobody:{w.server.server_name}"}, client=w.admin, status=404, errcode="M_NOT_FOUND")

    @scenario(put, open="the open profile has no city staff")
    def _(w: World):
        person = w.new_person()
        for value in (True, False):
            answer = yield Call({"userId": person.user_id}, {field: value}, client=w.admin)
            assert answer.json == {field: value}
        yield Call({"userId": person.user_id}, {field: True}, status=403, errcode="M_FORBIDDEN")
        yield Call({"userId": "@x:example.jp"}, {field: True}, client=w.admin, status=400, errcode="M_INVALID_PARAM")
        # An administrator cannot do it to themselves.
        yield Call({"userId": w.server.first_staff().user_id}, {field: True}, client=w.admin, status=403, errcode="M_FORBIDDEN")


_switch("getAdminSuspendUser", "setAdminSuspendUser", "suspended")
_switch("getAdminLockUser", "setAdminLockUser", "locked")


@scenario("requestOpenIdToken")
def _(w: World):
    yield Call({"userId": w.me.user_id}, {})
    yield Call({"userId": w.other.user_id}, {}, status=403, errcode="M_FORBIDDEN")


# Devices and keys ----------------------------------------------------------------------------------------------------


@scenario("getDevices")
def _(w: World):
    yield Call()


@scenario("getDevice")
def _(w: World):
    yield Call({"deviceId": w.me.device_id})
    yield Call({"deviceId": "NONE"}, status=404, errcode="M_NOT_FOUND")


@scenario("updateDevice")
def _(w: World):
    yield Call({"deviceId": w.me.device_id}, {"display_name": "受付"})
    yield Call({"deviceId": "NONE"}, {"display_name": "受付"}, status=404, errcode="M_NOT_FOUND")
    yield Call({"deviceId": w.me.device_id}, {})


@scenario("deleteDevice")
def _(w: World):
    _, told = w.session()
    answer = yield Call({"deviceId": told["device_id"]}, {}, status=401)
    yield Call({"deviceId": told["device_id"]}, {"auth": w.passwords(w.me, answer.json["session"])})


@scenario("deleteDevices")
def _(w: World):
    _, told = w.session()
    body = {"devices": [told["device_id"]]}
    answer = yield Call(body=body, status=401)
    yield Call(body=body | {"auth": w.passwords(w.me, answer.json["session"])})


@scenario("uploadKeys")
def _(w: World):
    client, told = w.session()
    user_id, device_id, key = w.me.user_id, told["device_id"], Key()
    yield Call(body={"device_keys": device_keys(user_id, device_id, key),
                     "one_time_keys": {f"signed_curve25519:AAAA{n}": one_time_key(user_id, device_id, key) for n in range(3)},
                     "fallback_keys": {"signed_curve25519:AAAF": one_time_key(user_id, device_id, key, fallback=True)}},
               client=client)
    yield Call(body={}, client=client)


@scenario("queryKeys")
def _(w: World):
    client, told = w.session(w.other)
    client.ok("POST", f"{C}/keys/upload", {"device_keys": device_keys(w.other.user_id, told["device_id"], Key())})
    yield Call(body={"device_keys": {w.other.user_id: []}, "timeout": 1000})
    yield Call(body={"device_keys": {w.other.user_id: [told["device_id"]], f"@nobody:{w.server.server_name}": []}})


@scenario("claimKeys")
def _(w: World):
    client, told = w.session(w.other)
    key, device_id = Key(), told["device_id"]
    client.ok("POST", f"{C}/keys/upload", {
        "device_keys": device_keys(w.other.user_id, device_id, key),
        "one_time_keys": {"signed_curve25519:AAAA": one_time_key(w.other.user_id, device_id, key)}})
    wanted = {w.other.user_id: {device_id: "signed_curve25519"}}
    yield Call(body={"one_time_keys": wanted, "timeout": 1000})
    yield Call(body={"one_time_keys": wanted})


@scenario("getKeysChanges")
def _(w: World):
    before = w.me.client.sync()["next_batch"]
    client, told = w.session(w.other)
    client.ok("POST", f"{C}/keys/upload", {"device_keys": device_keys(w.other.user_id, told["device_id"], Key())})
    after = w.me.client.sync(before)["next_batch"]
    yield Call(query={"from": before, "to": after})


@scenario("sendToDevice")
def _(w: World):
    yield Call({"eventType": "m.room_key_request", "txnId": unique()}, {"messages": {w.other.user_id: {"*": {
        "action": "request_cancellation", "request_id": unique(), "requesting_device_id": w.me.device_id}}}})


@scenario("uploadCrossSigningKeys")
def _(w: World):
    person = w.new_person()
    keys, _ = cross_signing(person.user_id)
    # The first upload asks for no password.
    yield Call(body=keys, client=person.client)
    other, _ = cross_signing(person.user_id)
    answer = yield Call(body=other, client=person.client, status=401)
    yield Call(body=other | {"auth": w.passwords(person, answer.json["session"])}, client=person.client)
    fresh = w.new_person()
    keys, _ = cross_signing(fresh.user_id)
    yield Call(body={"self_signing_key": keys["self_signing_key"]}, client=fresh.client, status=400, errcode="M_MISSING_PARAM")
    forged = keys["user_signing_key"] | {"signatures": cross_signing(fresh.user_id)[0]["user_signing_key"]["signatures"]}
    yield Call(body=keys | {"user_signing_key": forged}, client=fresh.client, status=400, errcode="M_INVALID_SIGNATURE")


@scenario("uploadCrossSigningSignatures")
def _(w: World):
    person = w.new_person()
    device = device_keys(person.user_id, person.device_id, Key())
    keys, secret = cross_signing(person.user_id)
    if not w.city:
        person.client.ok("POST", f"{C}/keys/upload", {"device_keys": device})
        person.client.ok("POST", f"{C}/keys/device_signing/upload", keys)
    own = secret["self_signing"]
    signed = own.sign(device, person.user_id, own.public)
    yield Call(body={person.user_id: {person.device_id: signed}}, client=person.client)


@scenario("postRoomKeysVersion")
def _(w: World):
    yield Call(body=backup())


@scenario("getRoomKeysVersionCurrent")
def _(w: World):
    yield Call(client=w.third.client, status=404, errcode="M_NOT_FOUND")
    if not w.city:
        w.backup_version()
        yield Call()


@scenario("getRoomKeysVersion")
def _(w: World):
    yield Call({"version": w.backup_version()})
    yield Call({"version": "999999"}, status=404, errcode="M_NOT_FOUND")


@scenario("putRoomKeysVersion")
def _(w: World):
    version = w.backup_version()
    yield Call({"version": version}, backup())
    yield Call({"version": version}, backup() | {"version": version})
    yield Call({"version": version}, backup() | {"version": "999999"}, status=400, errcode="M_INVALID_PARAM")
    yield Call({"version": version}, backup() | {"algorithm": "jp.example.other"}, status=400, errcode="M_INVALID_PARAM")
    yield Call({"version": "999999"}, backup(), status=404, errcode="M_NOT_FOUND")


@scenario("deleteRoomKeysVersion")
def _(w: World):
    version = w.backup_version()
    yield Call({"version": version})
    yield Call({"version": "999999"}, status=404, errcode="M_NOT_FOUND")


def _backup_scenarios() -> None:
    for part, path, body in (
        ("RoomKeys", (), lambda at: {"rooms": {at["roomId"]: {"sessions": {"session2": room_key()}}}}),
        ("RoomKeysByRoomId", ("roomId",), lambda at: {"sessions": {"session2": room_key()}}),
        ("RoomKeyBySessionId", ("roomId", "sessionId"), lambda at: room_key()),
    ):
        @scenario(f"put{part}")
        def _(w: World, path=path, body=body):
            at = w.backed_up()
            yield Call({name: at[name] for name in path}, body(at), {"version": at["version"]})
            yield Call({name: at[name] for name in path}, body(at), {"version": "1000000"}, status=404, errcode="M_NOT_FOUND")

        @scenario(f"get{part}")
        def _(w: World, path=path):
            at = w.backed_up()
            yield Call({name: at[name] for name in path}, query={"version": at["version"]})
            yield Call({name: at[name] for name in path}, query={"version": "1000000"}, status=404, errcode="M_NOT_FOUND")

        @scenario(f"delete{part}")
        def _(w: World, path=path):
            at = w.backed_up()
            yield Call({name: at[name] for name in path}, query={"version": at["version"]})


_backup_scenarios()


# What belongs to a user ----------------------------------------------------------------------------------------------


@scenario("setAccountData")
def _(w: World):
    yield Call({"userId": w.me.user_id, "type": "jp.example.setting"}, {"on": True})
    yield Call({"userId": w.other.user_id, "type": "jp.example.setting"}, {}, status=403, errcode="M_FORBIDDEN")
    for kind in ("m.fully_read", "m.push_rules"):
        yield Call({"userId": w.me.user_id, "type": kind}, {}, status=405, errcode="M_BAD_JSON")
    yield Call({"userId": w.me.user_id, "type": "jp.example.setting"}, [], status=400, errcode="M_BAD_JSON")


@scenario("getAccountData")
def _(w: World):
    w.me.client.ok("PUT", f"{C}/user/{quote(w.me.user_id)}/account_data/jp.example.read", {"on": True})
    yield Call({"userId": w.me.user_id, "type": "jp.example.read"})
    yield Call({"userId": w.me.user_id, "type": "jp.example.none"}, status=404, errcode="M_NOT_FOUND")
    yield Call({"userId": w.other.user_id, "type": "jp.example.none"}, status=403, errcode="M_FORBIDDEN")


@scenario("setAccountDataPerRoom")
def _(w: World):
    yield Call({"userId": w.me.user_id, "roomId": w.room, "type": "jp.example.setting"}, {"on": True})
    yield Call({"userId": w.me.user_id, "roomId": "no room id", "type": "jp.example.x"}, {}, status=400, errcode="M_INVALID_PARAM")
    yield Call({"userId": w.me.user_id, "roomId": w.room, "type": "m.fully_read"}, {}, status=405, errcode="M_BAD_JSON")


@scenario("getAccountDataPerRoom")
def _(w: World):
    w.me.client.ok("PUT", f"{C}/user/{quote(w.me.user_id)}/rooms/{quote(w.room)}/account_data/jp.example.read", {"on": True})
    yield Call({"userId": w.me.user_id, "roomId": w.room, "type": "jp.example.read"})
    yield Call({"userId": w.me.user_id, "roomId": w.room, "type": "jp.example.none"}, status=404, errcode="M_NOT_FOUND")
    yield Call({"userId": w.me.user_id, "roomId": "no room id", "type": "jp.example.x"}, status=400, errcode="M_INVALID_PARAM")


@scenario("setRoomTag")
def _(w: World):
    yield Call({"userId": w.me.user_id, "roomId": w.room, "tag": "m.favourite"}, {"order": 0.25})
    yield Call({"userId": w.me.user_id, "roomId": w.room, "tag": "u.仕事"}, {})


@scenario("getRoomTags")
def _(w: World):
    yield Call({"userId": w.me.user_id, "roomId": w.room})


@scenario("deleteRoomTag")
def _(w: World):
    yield Call({"userId": w.me.user_id, "roomId": w.room, "tag": "m.favourite"})


@scenario("defineFilter")
def _(w: World):
    yield Call({"userId": w.me.user_id}, {
        "event_format": "client", "event_fields": ["type", "content", "sender"], "presence": {"not_types": ["*"]},
        "room": {"timeline": {"limit": 10, "types": ["m.room.message"], "lazy_load_members": True, "unread_thread_notifications": True},
                 "state": {"types": ["m.room.*"], "not_rooms": ["!x:example.jp"]}, "include_leave": True}})


@scenario("getFilter")
def _(w: World):
    made = w.me.client.ok("POST", f"{C}/user/{quote(w.me.user_id)}/filter", {"room": {"timeline": {"limit": 5}}})["filter_id"]
    answer = yield Call({"userId": w.me.user_id, "filterId": made})
    assert answer.json["room"]["timeline"]["limit"] == 5
    yield Call({"userId": w.me.user_id, "filterId": "99999"}, status=404, errcode="M_NOT_FOUND")


@scenario("setPresence")
def _(w: World):
    yield Call({"userId": w.me.user_id}, {"presence": "online", "status_msg": "訪問中"})


@scenario("getPresence")
def _(w: World):
    yield Call({"userId": w.me.user_id})


@scenario("setProfileField")
def _(w: World):
    yield Call({"userId": w.me.user_id, "keyName": "avatar_url"}, {"avatar_url": w.mxc})
    if not w.city:
        yield Call({"userId": w.me.user_id, "keyName": "displayname"}, {"displayname": "試験花子"})
        yield Call({"userId": w.me.user_id, "keyName": "jp.example.shift"}, {"jp.example.shift": {"from": 9}})
        yield Call({"userId": w.me.user_id, "keyName": "m.tz"}, {"m.tz": "Asia/Tokyo"})
    yield Call({"userId": w.me.user_id, "keyName": "avatar_url"}, {}, status=400, errcode="M_MISSING_PARAM")
    yield Call({"userId": w.other.user_id, "keyName": "avatar_url"}, {"avatar_url": w.mxc}, status=403, errcode="M_FORBIDDEN")
    if not w.city:
        long = "jp.example." + "x" * 300
        yield Call({"userId": w.me.user_id, "keyName": long}, {long: 1}, status=400, errcode="M_KEY_TOO_LARGE")
        yield Call({"userId": w.me.user_id, "keyName": "jp.example.large"}, {"jp.example.large": "x" * 70_000}, status=400,
                   errcode="M_PROFILE_TOO_LARGE")


@scenario("getProfileField")
def _(w: World):
    w.me.client.ok("PUT", f"{C}/profile/{quote(w.me.user_id)}/avatar_url", {"avatar_url": w.mxc})
    yield Call({"userId": w.me.user_id, "keyName": "avatar_url"}, client=w.other.client)
    yield Call({"userId": w.me.user_id, "keyName": "jp.example.none"}, client=w.other.client, status=404, errcode="M_NOT_FOUND")


@scenario("deleteProfileField")
def _(w: World):
    yield Call({"userId": w.me.user_id, "keyName": "avatar_url"})


@scenario("getUserProfile")
def _(w: World):
    yield Call({"userId": w.other.user_id})
    yield Call({"userId": f"@nobody:{w.server.server_name}"}, status=404, errcode="M_NOT_FOUND")


@scenario("searchUserDirectory")
def _(w: World):
    yield Call(body={"search_term": "試験" if w.city else w.other.login_id, "limit": 5})
    yield Call(body={"search_term": "nobody at all"})


@scenario("reportUser")
def _(w: World):
    yield Call({"userId": w.other.user_id}, {"reason": "迷惑行為"})


@scenario("getMutualRooms")
def _(w: World):
    yield Call(query={"user_id": w.other.user_id})
    yield Call(query={"user_id": w.me.user_id}, status=400, errcode="M_INVALID_PARAM")
    yield Call(query={"user_id": w.other.user_id, "from": "no token"}, status=400, errcode="M_INVALID_PARAM")


# Push ----------------------------------------------------------------------------------------------------------------


@scenario("getPushers")
def _(w: World):
    yield Call()


@scenario("postPusher")
def _(w: World):
    # What is not there may be deleted.
    yield Call(body={"kind": None, "app_id": "jp.example.app", "pushkey": "none"})
    yield Call(body={"kind": "http", "app_id": "jp.example.app", "pushkey": "x"}, status=400, errcode="M_MISSING_PARAM")


@scenario("getPushRules")
def _(w: World):
    yield Call()


@scenario("getPushRulesGlobal")
def _(w: World):
    yield Call()


def _rule(w: World) -> dict[str, str]:
    rule = f"jp.example.{unique()}"
    w.me.client.ok("PUT", f"{C}/pushrules/global/content/{rule}", {"actions": ["notify"], "pattern": "転倒"})
    return {"kind": "content", "ruleId": rule}


@scenario("setPushRule")
def _(w: World):
    first = f"jp.example.{unique()}"
    yield Call({"kind": "content", "ruleId": first}, {"actions": ["notify", {"set_tweak": "sound", "value": "default"}], "pattern": "発熱"})
    yield Call({"kind": "override", "ruleId": f"jp.example.{unique()}"}, {
        "actions": [], "conditions": [{"kind": "event_match", "key": "content.body", "pattern": "x*"}]})
    yield Call({"kind": "content", "ruleId": f"jp.example.{unique()}"}, {"actions": ["notify"], "pattern": "x"}, {"before": first})
    yield Call({"kind": "room", "ruleId": w.room}, {"actions": []})
    yield Call({"kind": "content", "ruleId": f"jp.example.{unique()}"}, {"actions": ["notify"], "pattern": "x"}, {"before": "none"},
               status=404, errcode="M_NOT_FOUND")
    yield Call({"kind": "override", "ruleId": ".jp.example"}, {"actions": []}, status=400)
    yield Call({"kind": "content", "ruleId": "jp.example.x"}, {"actions": ["notify"]}, status=400)


@scenario("getPushRule")
def _(w: World):
    yield Call({"kind": "override", "ruleId": ".m.rule.master"})
    yield Call(_rule(w))
    yield Call({"kind": "content", "ruleId": "jp.example.none"}, status=404, errcode="M_NOT_FOUND")


@scenario("deletePushRule")
def _(w: World):
    rule = _rule(w)
    yield Call(rule)
    yield Call(rule, status=404, errcode="M_NOT_FOUND")
    yield Call({"kind": "override", "ruleId": ".m.rule.master"}, status=400)


@scenario("isPushRuleEnabled")
def _(w: World):
    yield Call({"kind": "override", "ruleId": ".m.rule.master"})
    yield Call({"kind": "override", "ruleId": "jp.example.none"}, status=404, errcode="M_NOT_FOUND")


@scenario("setPushRuleEnabled")
def _(w: World):
    rule = _rule(w)
    yield Call(rule, {"enabled": False})
    answer = w.me.client.get(f"{C}/pushrules/global/content/{rule['ruleId']}/enabled")
    assert answer.json == {"enabled": False}, answer
    yield Call({"kind": "content", "ruleId": "jp.example.none"}, {"enabled": True}, status=404, errcode="M_NOT_FOUND")


@scenario("getPushRuleActions")
def _(w: World):
    yield Call({"kind": "underride", "ruleId": ".m.rule.message"})
    yield Call({"kind": "underride", "ruleId": "jp.example.none"}, status=404, errcode="M_NOT_FOUND")


@scenario("setPushRuleActions")
def _(w: World):
    rule = _rule(w)
    yield Call(rule, {"actions": ["notify", {"set_tweak": "highlight"}]})
    yield Call({"kind": "content", "ruleId": "jp.example.none"}, {"actions": []}, status=404, errcode="M_NOT_FOUND")


@scenario("getNotifications")
def _(w: World):
    w.other.client.say(w.room, "お知らせ", **{"m.mentions": {"user_ids": [w.me.user_id]}})
    yield Call()
    yield Call(query={"limit": 1, "only": "highlight"})


# Rooms: life and members ---------------------------------------------------------------------------------------------


@scenario("createRoom")
def _(w: World):
    direct = {"is_direct": True, "invite": [w.other.user_id], "preset": "trusted_private_chat"}
    yield Call(body=direct)
    if w.city:
        yield Call(body={"name": "部屋"}, status=403, errcode="M_FORBIDDEN")
        return
    for version in ("10", "11", "12"):
        yield Call(body={"name": "部屋", "topic": "試験", "room_version": version, "room_alias_name": f"x{unique()}",
                         "visibility": "public", "creation_content": {"m.federate": False}, "invite": [w.other.user_id],
                         "initial_state": [{"type": "m.room.guest_access", "content": {"guest_access": "forbidden"}}],
                         "power_level_content_override": {"events_default": 0}})
    yield Call(body={"room_version": "no-such-version"}, status=400, errcode="M_UNSUPPORTED_ROOM_VERSION")
    name = f"x{unique()}"
    yield Call(body={"room_alias_name": name})
    yield Call(body={"room_alias_name": name}, status=400, errcode="M_ROOM_IN_USE")


@scenario("getJoinedRooms")
def _(w: World):
    yield Call()


@scenario("inviteUser")
def _(w: World):
    person = w.new_person()
    room = w.new_room(w.me, w.other)
    yield Call({"roomId": room}, {"user_id": person.user_id, "reason": "新しい担当です"}, client=w.chief)
    yield Call({"roomId": w.room}, {"user_id": w.other.user_id}, client=w.chief, status=403, errcode="M_FORBIDDEN")
    yield Call({"roomId": w.room}, {"user_id": person.user_id}, client=person.client, status=403, errcode="M_FORBIDDEN")
    yield Call({"roomId": w.room}, {"user_id": "no user id"}, client=w.chief, status=400)


@scenario("inviteBy3PID")
def _(w: World):
    yield Call({"roomId": w.room}, {"id_server": "example.jp", "id_access_token": "x", "medium": "email",
                                    "address": "a@example.jp"}, client=w.chief)


@scenario("joinRoomById")
def _(w: World):
    yield Call({"roomId": w.invitation()}, {"reason": "参加します"}, client=w.other.client)
    yield Call({"roomId": w.new_room(w.me, w.other)}, {}, client=w.third.client, status=403, errcode="M_FORBIDDEN")


@scenario("joinRoom")
def _(w: World):
    yield Call({"roomIdOrAlias": w.invitation()}, {}, client=w.other.client)
    if not w.city:
        yield Call({"roomIdOrAlias": w.made_alias(w.public_room())}, {}, {"via": w.server.server_name}, client=w.other.client)


@scenario("knockRoom")
def _(w: World):
    room = w.room
    if not w.city:
        room = w.new_room(w.me, initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}])
    yield Call({"roomIdOrAlias": room}, {"reason": "担当です"}, client=w.other.client)


@scenario("leaveRoom")
def _(w: World):
    yield Call({"roomId": w.new_room(w.me, w.other)}, {"reason": "担当が替わりました"}, client=w.other.client)


@scenario("forgetRoom")
def _(w: World):
    room = w.new_room(w.me, w.other)
    w.other.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
    yield Call({"roomId": room}, client=w.other.client)
    yield Call({"roomId": room}, client=w.me.client, status=400, errcode="M_UNKNOWN")


@scenario("kick")
def _(w: World):
    yield Call({"roomId": w.new_room(w.me, w.other)}, {"user_id": w.other.user_id, "reason": "異動"}, client=w.chief)
    yield Call({"roomId": w.room}, {"user_id": w.chief_id}, client=w.other.client, status=403, errcode="M_FORBIDDEN")


@scenario("ban")
def _(w: World):
    yield Call({"roomId": w.new_room(w.me, w.other)}, {"user_id": w.other.user_id, "reason": "迷惑行為"}, client=w.chief)
    yield Call({"roomId": w.room}, {"user_id": w.chief_id}, client=w.other.client, status=403, errcode="M_FORBIDDEN")
    yield Call({"roomId": w.new_room(w.me, w.other)}, {"user_id": w.other.user_id}, client=w.third.client, status=403, errcode="M_FORBIDDEN")


@scenario("unban")
def _(w: World):
    room = w.new_room(w.me, w.other)
    w.chief.ok("POST", f"{C}/rooms/{quote(room)}/ban", {"user_id": w.other.user_id})
    yield Call({"roomId": room}, {"user_id": w.other.user_id}, client=w.chief)


@scenario("upgradeRoom")
def _(w: World):
    yield Call({"roomId": w.new_room(w.me, w.other)}, {"new_version": "12"})
    if not w.city:
        yield Call({"roomId": w.room}, {"new_version": "no-such-version"}, status=400, errcode="M_UNSUPPORTED_ROOM_VERSION")
        yield Call({"roomId": w.room}, {"new_version": "12"}, client=w.other.client, status=403, errcode="M_FORBIDDEN")


@scenario("getMembersByRoom")
def _(w: World):
    yield Call({"roomId": w.room})
    yield Call({"roomId": w.room}, query={"membership": "join"})
    yield Call({"roomId": w.room}, query={"not_membership": "join", "at": w.me.client.sync()["next_batch"]})
    yield Call({"roomId": w.new_room(w.me, w.other)}, client=w.third.client, status=403, errcode="M_FORBIDDEN")


@scenario("getJoinedMembersByRoom")
def _(w: World):
    yield Call({"roomId": w.room})
    yield Call({"roomId": w.new_room(w.me, w.other)}, client=w.third.client, status=403, errcode="M_FORBIDDEN")


# Rooms: directory ----------------------------------------------------------------------------------------------------


@scenario("setRoomAlias")
def _(w: World):
    alias = w.alias()
    yield Call({"roomAlias": alias}, {"room_id": w.room})
    yield Call({"roomAlias": alias}, {"room_id": w.room}, status=409, errcode="M_UNKNOWN")
    yield Call({"roomAlias": "no alias"}, {"room_id": w.room}, status=400, errcode="M_INVALID_PARAM")


@scenario("getRoomIdByAlias")
def _(w: World):
    yield Call({"roomAlias": w.made_alias()})
    yield Call({"roomAlias": w.alias()}, status=404, errcode="M_NOT_FOUND")
    yield Call({"roomAlias": "no alias"}, status=400, errcode="M_INVALID_PARAM")


@scenario("deleteRoomAlias")
def _(w: World):
    if w.city:
        bridge, user = w.bridge_user()
        yield Call({"roomAlias": w.made_alias()}, client=bridge, query={"user_id": user})
    else:
        yield Call({"roomAlias": w.made_alias()})
    yield Call({"roomAlias": w.alias()}, status=404, errcode="M_NOT_FOUND")


@scenario("getLocalAliases")
def _(w: World):
    yield Call({"roomId": w.room})
    yield Call({"roomId": w.new_room(w.me, w.other)}, client=w.third.client, status=403, errcode="M_FORBIDDEN")


@scenario("getRoomVisibilityOnDirectory")
def _(w: World):
    yield Call({"roomId": w.room})
    yield Call({"roomId": "!none:example.jp"}, status=404, errcode="M_NOT_FOUND")


@scenario("setRoomVisibilityOnDirectory")
def _(w: World):
    yield Call({"roomId": w.room}, {"visibility": "private"})
    yield Call({"roomId": "!none:example.jp"}, {"visibility": "public"}, status=404, errcode="M_NOT_FOUND")


@scenario("getPublicRooms")
def _(w: World):
    if not w.city:
        w.public_room(visibility="public")
    yield Call()
    answer = yield Call(query={"limit": 1})
    if "next_batch" in answer.json:
        yield Call(query={"since": answer.json["next_batch"]})


@scenario("queryPublicRooms")
def _(w: World):
    yield Call(body={"limit": 10, "filter": {"generic_search_term": "公開", "room_types": [None]}})


@scenario("updateAppserviceRoomDirectoryVisibility")
def _(w: World):
    bridge, user = w.bridge_user()
    yield Call({"networkId": "testnet", "roomId": w.bridged_room(user)}, {"visibility": "public"}, client=bridge)


@scenario("getRoomSummary")
def _(w: World):
    yield Call({"roomIdOrAlias": w.room})
    yield Call({"roomIdOrAlias": "!none:example.jp"}, status=404, errcode="M_NOT_FOUND")


@scenario("getSpaceHierarchy")
def _(w: World):
    room = w.room
    if not w.city:
        room = w.new_room(w.me, creation_content={"type": "m.space"}, initial_state=[
            {"type": "m.space.child", "state_key": w.room, "content": {"via": [w.server.server_name]}}])
    yield Call({"roomId": room})
    yield Call({"roomId": room}, query={"suggested_only": "true", "limit": 1, "max_depth": 1})
    yield Call({"roomId": room}, query={"from": "no token"}, status=400, errcode="M_INVALID_PARAM")
    yield Call({"roomId": "!none:example.jp"}, status=403, errcode="M_FORBIDDEN")


# Rooms: events -------------------------------------------------------------------------------------------------------


@scenario("sendMessage")
def _(w: World):
    txn = unique()
    body = {"msgtype": "m.text", "body": "こんにちは"}
    first = yield Call({"roomId": w.room, "eventType": "m.room.message", "txnId": txn}, body)
    again = yield Call({"roomId": w.room, "eventType": "m.room.message", "txnId": txn}, body)
    assert first.json == again.json
    yield Call({"roomId": w.room, "eventType": "m.reaction", "txnId": unique()},
               {"m.relates_to": {"rel_type": "m.annotation", "event_id": w.event, "key": "👍"}})
    yield Call({"roomId": w.room, "eventType": "m.reaction", "txnId": unique()},
               {"m.relates_to": {"rel_type": "m.annotation", "event_id": w.event, "key": "👍"}}, status=400, errcode="M_DUPLICATE_ANNOTATION")


@scenario("setRoomStateWithKey")
def _(w: World):
    yield Call({"roomId": w.room, "eventType": "m.room.topic", "stateKey": ""}, {"topic": "申し送り"}, client=w.chief)
    yield Call({"roomId": w.room, "eventType": "jp.example.state", "stateKey": "鍵 /?#"}, {"a": [1, None, True]}, client=w.chief)
    alias = {"roomId": w.new_room(w.third), "eventType": "m.room.canonical_alias", "stateKey": ""}
    chief = w.chief if w.city else w.third.client
    yield Call(alias, {"alias": "no alias"}, client=chief, status=400, errcode="M_INVALID_PARAM")
    yield Call(alias, {"alias": w.alias()}, client=chief, status=400, errcode="M_BAD_ALIAS")
    yield Call({"roomId": w.room, "eventType": "m.room.topic", "stateKey": ""}, {"topic": "x"}, client=w.other.client, status=403,
               errcode="M_FORBIDDEN")


@scenario("redactEvent")
def _(w: World):
    event = w.me.client.say(w.room, "誤送信")
    yield Call({"roomId": w.room, "eventId": event, "txnId": unique()}, {"reason": "誤送信"})


@scenario("setTyping")
def _(w: World):
    yield Call({"roomId": w.room, "userId": w.me.user_id}, {"typing": True, "timeout": 1000})
    yield Call({"roomId": w.room, "userId": w.me.user_id}, {"typing": False})


@scenario("postReceipt")
def _(w: World):
    for kind in ("m.read", "m.read.private", "m.fully_read"):
        yield Call({"roomId": w.room, "receiptType": kind, "eventId": w.event}, {})
    yield Call({"roomId": w.room, "receiptType": "m.read", "eventId": w.reply}, {"thread_id": w.event})
    yield Call({"roomId": w.room, "receiptType": "m.read", "eventId": w.event}, {"thread_id": ""}, status=400, errcode="M_INVALID_PARAM")
    yield Call({"roomId": w.room, "receiptType": "m.fully_read", "eventId": w.event}, {"thread_id": "main"}, status=400, errcode="M_INVALID_PARAM")
    yield Call({"roomId": w.room, "receiptType": "m.read", "eventId": w.event}, {"thread_id": "$none"}, status=400, errcode="M_INVALID_PARAM")


@scenario("setReadMarker")
def _(w: World):
    yield Call({"roomId": w.room}, {"m.fully_read": w.event, "m.read": w.event, "m.read.private": w.event})


@scenario("getOneRoomEvent")
def _(w: World):
    yield Call({"roomId": w.room, "eventId": w.event})
    yield Call({"roomId": w.room, "eventId": "$none"}, status=404, errcode="M_NOT_FOUND")
    room = w.new_room(w.me, w.other)
    yield Call({"roomId": room, "eventId": w.me.client.say(room)}, client=w.third.client, status=404, errcode="M_NOT_FOUND")


@scenario("getRoomStateWithKey")
def _(w: World):
    yield Call({"roomId": w.room, "eventType": "m.room.name", "stateKey": ""})
    yield Call({"roomId": w.room, "eventType": "m.room.member", "stateKey": w.me.user_id}, query={"format": "content"})
    yield Call({"roomId": w.room, "eventType": "m.room.create", "stateKey": ""}, query={"format": "event"})
    yield Call({"roomId": w.room, "eventType": "jp.example.none", "stateKey": ""}, status=404, errcode="M_NOT_FOUND")


@scenario("getRoomState")
def _(w: World):
    yield Call({"roomId": w.room})
    yield Call({"roomId": w.new_room(w.me, w.other)}, client=w.third.client, status=403, errcode="M_FORBIDDEN")


@scenario("getRoomEvents")
def _(w: World):
    answer = yield Call({"roomId": w.room}, query={"dir": "b", "limit": 2})
    yield Call({"roomId": w.room}, query={"dir": "b", "limit": 100, "from": answer.json["end"]})
    yield Call({"roomId": w.room}, query={"dir": "f", "filter": json.dumps({"lazy_load_members": True, "types": ["m.room.message"]})})
    yield Call({"roomId": w.new_room(w.me, w.other)}, query={"dir": "b"}, client=w.third.client, status=403, errcode="M_FORBIDDEN")


@scenario("getEventContext")
def _(w: World):
    yield Call({"roomId": w.room, "eventId": w.event})
    yield Call({"roomId": w.room, "eventId": w.event}, query={"limit": 0, "filter": json.dumps({"lazy_load_members": True})})


@scenario("getEventByTimestamp")
def _(w: World):
    yield Call({"roomId": w.room}, query={"ts": 0, "dir": "f"})
    yield Call({"roomId": w.room}, query={"ts": 0, "dir": "b"}, status=404, errcode="M_NOT_FOUND")


@scenario("getRelatingEvents")
def _(w: World):
    yield Call({"roomId": w.room, "eventId": w.event})
    yield Call({"roomId": w.room, "eventId": w.event}, query={"limit": 1, "dir": "f", "recurse": "true"})
    yield Call({"roomId": w.room, "eventId": "$none"}, status=404, errcode="M_NOT_FOUND")


@scenario("getRelatingEventsWithRelType")
def _(w: World):
    yield Call({"roomId": w.room, "eventId": w.event, "relType": "m.thread"})


@scenario("getRelatingEventsWithRelTypeAndEventType")
def _(w: World):
    yield Call({"roomId": w.room, "eventId": w.event, "relType": "m.thread", "eventType": "m.room.message"})


@scenario("getThreadRoots")
def _(w: World):
    yield Call({"roomId": w.room})
    yield Call({"roomId": w.room}, query={"include": "participated", "limit": 1})
    yield Call({"roomId": w.room}, query={"from": "no token"}, status=400, errcode="M_INVALID_PARAM")
    yield Call({"roomId": "!none:example.jp"}, status=403, errcode="M_FORBIDDEN")


@scenario("reportRoom")
def _(w: World):
    yield Call({"roomId": w.room}, {"reason": "確認してください"})
    # The same answer whether it exists (v1.18).
    yield Call({"roomId": "!none:example.jp"}, {"reason": "x"})


@scenario("reportEvent")
def _(w: World):
    yield Call({"roomId": w.room, "eventId": w.event}, {"reason": "誤り"}, client=w.other.client)
    yield Call({"roomId": w.room, "eventId": "$none"}, {}, client=w.other.client)


@scenario("search")
def _(w: World):
    yield Call(body={"search_categories": {"room_events": {
        "search_term": "発熱", "keys": ["content.body"], "order_by": "recent", "event_context": {"before_limit": 1, "after_limit": 1,
                                                                                             "include_profile": True},
        "include_state": True, "groupings": {"group_by": [{"key": "room_id"}]}, "filter": {"rooms": [w.room]}}}})
    yield Call(body={"search_categories": {"room_events": {"search_term": "発熱", "order_by": "none"}}}, status=400)


@scenario("sync")
def _(w: World):
    answer = yield Call(query={"timeout": 0})
    w.me.client.ok("PUT", f"{C}/rooms/{quote(w.room)}/typing/{quote(w.me.user_id)}", {"typing": True, "timeout": 5000})
    yield Call(query={"timeout": 0, "since": answer.json["next_batch"], "set_presence": "offline"})
    yield Call(query={"timeout": 0, "full_state": "true", "use_state_after": "true",
                      "filter": json.dumps({"room": {"include_leave": True, "timeline": {"limit": 1}}})})


@scenario("roomInitialSync")
def _(w: World):
    yield Call({"roomId": w.room})


@scenario("initialSync")
def _(w: World):
    yield Call(query={"limit": 1})


@scenario("getEvents")
def _(w: World):
    yield Call(query={"timeout": 0})


@scenario("peekEvents")
def _(w: World):
    yield Call(query={"timeout": 0, "room_id": w.room})


@scenario("getOneEvent")
def _(w: World):
    yield Call({"eventId": w.event})


# Media ---------------------------------------------------------------------------------------------------------------


@scenario("uploadContent")
def _(w: World):
    yield Call(raw=PNG, headers={"Content-Type": "image/png"}, query={"filename": "写真.png"})


@scenario("createContent")
def _(w: World):
    yield Call()


@scenario("uploadContentToMXC")
def _(w: World):
    made = w.me.client.ok("POST", "/_matrix/media/v1/create", {})["content_uri"]
    server_name, media_id = made.removeprefix("mxc://").split("/")
    yield Call({"serverName": server_name, "mediaId": media_id}, raw=PNG, headers={"Content-Type": "image/png"})
    yield Call({"serverName": server_name, "mediaId": media_id}, raw=PNG, headers={"Content-Type": "image/png"},
               status=409, errcode="M_CANNOT_OVERWRITE_MEDIA")


@scenario("getConfigAuthed")
def _(w: World):
    yield Call()


@scenario("getConfig")
def _(w: World):
    yield Call()


@scenario("getContentAuthed")
def _(w: World):
    answer = yield Call(w.media)
    assert answer.content == PNG
    yield Call(w.media | {"mediaId": "none"}, status=404, errcode="M_NOT_FOUND")


@scenario("getContentOverrideNameAuthed")
def _(w: World):
    answer = yield Call(w.media | {"fileName": "写真 1.png"})
    assert answer.content == PNG


@scenario("getContentThumbnailAuthed")
def _(w: World):
    yield Call(w.media, query={"width": 32, "height": 32, "method": "scale", "animated": "false"})
    yield Call(w.media, query={"width": "x", "height": 32}, status=400)
    yield Call(w.media, query={"width": -1, "height": 32}, status=400)


@scenario("getContent")
def _(w: World):
    yield Call(w.media, anonymous=True)


@scenario("getContentOverrideName")
def _(w: World):
    yield Call(w.media | {"fileName": "photo.png"}, anonymous=True)


@scenario("getContentThumbnail")
def _(w: World):
    yield Call(w.media, query={"width": 32, "height": 32}, anonymous=True)


@scenario("getUrlPreviewAuthed")
def _(w: World):
    yield Call(query={"url": "https://example.jp/"})


@scenario("getUrlPreview")
def _(w: World):
    yield Call(query={"url": "https://example.jp/"})


# Appservices and other networks --------------------------------------------------------------------------------------


@scenario("pingAppservice")
def _(w: World):
    bridge = w.appservice.client(w.server)
    yield Call({"appserviceId": "bridge"}, {"transaction_id": unique()}, client=bridge)
    yield Call({"appserviceId": "city"}, {}, client=bridge, status=403, errcode="M_FORBIDDEN")
    yield Call({"appserviceId": "bridge"}, {}, status=403, errcode="M_FORBIDDEN")


@scenario("getProtocols")
def _(w: World):
    answer = yield Call()
    assert list(answer.json) == ["testnet"]


@scenario("getProtocolMetadata")
def _(w: World):
    yield Call({"protocol": "testnet"})
    yield Call({"protocol": "none"}, status=404, errcode="M_NOT_FOUND")


@scenario("queryLocationByProtocol")
def _(w: World):
    yield Call({"protocol": "testnet"}, query={"channel": "#x"})


@scenario("queryUserByProtocol")
def _(w: World):
    yield Call({"protocol": "testnet"}, query={"nick": "x"})


@scenario("queryLocationByAlias")
def _(w: World):
    yield Call(query={"alias": f"#bridge_x:{w.server.server_name}"})


@scenario("queryUserByID")
def _(w: World):
    yield Call(query={"userid": f"@bridge_x:{w.server.server_name}"})


# Routes beside the specification -------------------------------------------------------------------------------------

# Bodies that reach far into the operation; all others begin with an empty one.
FURTHER_BODIES: dict[str, dict] = {
    "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync": {
        "conn_id": "main", "lists": {"all": {
            "ranges": [[0, 20]], "timeline_limit": 3, "required_state": [["m.room.member", "$LAZY"], ["*", "*"]],
            "filters": {"is_dm": False, "is_encrypted": False, "is_invite": False, "spaces": [], "room_types": [None], "not_room_types": ["m.space"],
                        "tags": ["m.favourite"], "not_tags": []}, "include_heroes": True}},
        "room_subscriptions": {"!x:example.jp": {"timeline_limit": 1, "required_state": []}},
        "extensions": {"to_device": {"enabled": True, "limit": 10, "since": "1"}, "e2ee": {"enabled": True}, "account_data": {"enabled": True, "lists": ["all"]},
                       "typing": {"enabled": True, "rooms": ["*"]}, "receipts": {"enabled": True, "lists": ["*"]},
                       "org.matrix.msc4308.thread_subscriptions": {"enabled": True}}},
}
FURTHER_QUERIES = {"/_matrix/client/unstable/org.matrix.simplified_msc3575/sync": {"timeout": 0}}


def further(w: World, method: str, path: str) -> Call:
    """A call of a route that the specification's data does not have. Administration is asked as city staff, and of
    somebody and something that nobody needs."""
    admin = path.startswith("/_synapse/")
    server = w.server.server_name
    values = {"room": "!none:example.jp" if admin else w.room, "user": f"@nobody:{server}" if admin else w.me.user_id, "event": w.event,
              "txn": unique(), "type": "m.room.topic", "state": "", "device": "NONE", "rel": "m.thread", "server": server}
    names = re.findall(r"\{(\w+)\}", path)
    given = {name: next((value for start, value in values.items() if start in name.lower()), "x") for name in names}
    call = Call(given, query=FURTHER_QUERIES.get(path, {}), client=w.admin if admin and w.city else w.me.client)
    if method in ("POST", "PUT"):
        if path.startswith(("/_matrix/", "/_synapse/")):
            call.body = FURTHER_BODIES.get(path, {})
        else:
            call.raw, call.headers = b"a=b&c=d", {"Content-Type": "application/x-www-form-urlencoded"}
    return call


# Sending -------------------------------------------------------------------------------------------------------------


def send(world: World, method: str, template: str, call: Call) -> Answer:
    """Sends a call."""
    path = template
    for name, value in call.path.items():
        path = path.replace("{" + name + "}", quote(value))
    assert "{" not in path, path
    client = call.client or world.me.client
    body = None if call.body is NO_BODY else call.body
    return client.request(method, path, json_body=body, body=call.raw, query=call.query, headers=call.headers,
                          token="" if call.anonymous else None)
