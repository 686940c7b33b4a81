"""End-to-end encryption where it is allowed (DESIGN 13): devices' keys, one-time and fallback keys, cross-signing, key
backup, messages to devices, device lists, dehydrated devices. Keys and signatures here are real ones (ed25519).

Client-server API, "End-to-End Encryption"; MSC3814 for dehydrated devices."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import secrets
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from harness import Client, Person, Server, quote, wait_for

C = "/_matrix/client/v3"
DEHYDRATED = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
ALGORITHMS = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]
FORBIDDEN, NOT_FOUND = (403, "M_FORBIDDEN"), (404, "M_NOT_FOUND")
INVALID, TOO_LARGE = (400, "M_INVALID_PARAM"), (413, "M_TOO_LARGE")
ENCRYPTION = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


# Keys ----------------------------------------------------------------------------------------------------------------


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


class Key:
    """An ed25519 key pair."""

    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.public = b64(self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, thing: dict, user_id: str, key_id: str | None = None) -> dict:
        """The object with this key's signature (appendices, "Signing JSON")."""
        bare = {name: value for name, value in thing.items() if name not in ("signatures", "unsigned")}
        text = json.dumps(bare, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        signature = b64(self.private.sign(text.encode()))
        of_user = thing.get("signatures", {}).get(user_id, {}) | {f"ed25519:{key_id or self.public}": signature}
        return thing | {"signatures": thing.get("signatures", {}) | {user_id: of_user}}


class Device:
    """A session with its keys."""

    def __init__(self, client: Client, user_id: str, device_id: str) -> None:
        self.client, self.user_id, self.id = client, user_id, device_id
        self.key, self.serial = Key(), 0

    def device_keys(self, **more) -> dict:
        bare = {"user_id": self.user_id, "device_id": self.id, "algorithms": ALGORITHMS,
                "keys": {f"ed25519:{self.id}": self.key.public, f"curve25519:{self.id}": b64(secrets.token_bytes(32))}}
        return self.key.sign(bare | more, self.user_id, self.id)

    def one_time(self, count: int, *, fallback: bool = False) -> dict:
        keys = {}
        for _ in range(count):
            self.serial += 1
            key = {"key": b64(secrets.token_bytes(32))} | ({"fallback": True} if fallback else {})
            keys[f"signed_curve25519:K{self.serial:04}"] = self.key.sign(key, self.user_id, self.id)
        return keys

    def publish(self) -> dict:
        self.keys = self.device_keys()
        self.client.ok("POST", f"{C}/keys/upload", {"device_keys": self.keys})
        return self.keys

    def left(self, since: str | None = None) -> tuple[int, list[str]]:
        """What a sync says that the device has left."""
        told = self.client.sync(since)
        return told["device_one_time_keys_count"]["signed_curve25519"], told["device_unused_fallback_key_types"]


class Identity:
    """A user's three cross-signing keys."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.master, self.self_signing, self.user_signing = Key(), Key(), Key()

    def object(self, usage: str) -> dict:
        key = getattr(self, usage)
        bare = {"user_id": self.user_id, "usage": [usage], "keys": {f"ed25519:{key.public}": key.public}}
        return bare if usage == "master" else self.master.sign(bare, self.user_id)

    def body(self, *usages: str) -> dict:
        return {f"{usage}_key": self.object(usage) for usage in usages or ("master", "self_signing", "user_signing")}


def device(person: Person, fresh: bool = False) -> Device:
    """The person's first device, or a further one."""
    client = person.log_in() if fresh else person.client
    return Device(client, person.user_id, client.ok("GET", f"{C}/account/whoami")["device_id"])


def query(client: Client, *users: str) -> dict:
    return client.ok("POST", f"{C}/keys/query", {"device_keys": {user: [] for user in users}})


def claim(client: Client, device: Device, algorithm: str = "signed_curve25519") -> dict:
    answer = client.ok("POST", f"{C}/keys/claim", {"one_time_keys": {device.user_id: {device.id: algorithm}}})
    return answer["one_time_keys"].get(device.user_id, {}).get(device.id, {})


def send(client: Client, to: dict, txn: str | None = None, kind: str = "m.test"):
    return client.put(f"{C}/sendToDevice/{kind}/{txn or secrets.token_hex(8)}", {"messages": to})


def lists(told: dict) -> tuple[set, set]:
    told = told.get("device_lists", {})
    return set(told.get("changed", [])), set(told.get("left", []))


def encrypted_room(a: Person, *others: Person) -> str:
    room = a.client.ok("POST", f"{C}/createRoom", {"invite": [o.user_id for o in others], "initial_state": [ENCRYPTION]})["room_id"]
    for other in others:
        other.client.ok("POST", f"{C}/join/{quote(room)}", {})
    return room


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest) -> Server:
    """The open profile allows encryption."""
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    server = Server(request.param, profile="open", config={"policy": {"rate_limits": False}})
    yield server
    server.remove()


@pytest.fixture
def pair(server: Server) -> tuple[Person, Person]:
    """Two people in one encrypted room."""
    a, b = server.register(), server.register()
    encrypted_room(a, b)
    return a, b


# Device keys ---------------------------------------------------------------------------------------------------------


def test_device_keys_come_back_as_they_were_uploaded(server, pair):
    a, b = pair
    of_a = device(a)
    keys = of_a.publish()
    a.client.ok("PUT", f"{C}/devices/{quote(of_a.id)}", {"display_name": "受付"})
    found = query(b.client, a.user_id)
    assert found["device_keys"][a.user_id][of_a.id] == keys | {"unsigned": {"device_display_name": "受付"}}
    assert found["failures"] == {} and "master_keys" not in found
    none = b.client.ok("POST", f"{C}/keys/query", {"device_keys": {a.user_id: ["OTHER"]}})
    assert none["device_keys"] == {a.user_id: {}}
    # Whoever shares no room with somebody learns nothing, not even that there are devices.
    stranger = server.register()
    assert query(stranger.client, a.user_id, "@nobody:example.org")["device_keys"] == {}


@pytest.mark.parametrize("change", [
    {"user_id": "@other:example.org"}, {"device_id": "OTHER"}, {"algorithms": "x"}, {"algorithms": [{}]}, {"keys": []},
    {"keys": {"ed25519:X": 1}}, {"keys": {"nonsense": "x"}}, {"keys": {"ed25519:\n": "x"}}, {"signatures": {"x": {}}},
    {"signatures": {"@a:b": {"ed25519:X": {}}}}, {"keys": {f"ed25519:{n}": "x" for n in range(200)}},
])
def test_malformed_device_keys_are_refused(pair, change):
    a, b = pair
    of_a = device(a)
    since = b.client.sync()["next_batch"]
    assert a.client.post(f"{C}/keys/upload", {"device_keys": of_a.device_keys() | change}).told == INVALID
    assert query(b.client, a.user_id)["device_keys"] == {a.user_id: {}}
    assert lists(b.client.sync(since)) == (set(), set())


def test_oversized_keys_are_refused(pair):
    of_a = device(pair[0])
    upload = lambda body: of_a.client.post(f"{C}/keys/upload", body).told  # noqa: E731
    assert upload({"device_keys": of_a.device_keys(x="y" * 20_000)}) == TOO_LARGE
    assert upload({"one_time_keys": {"signed_curve25519:A": {"key": "x" * 5_000, "signatures": {"@a:x": {"ed25519:D": "s"}}}}}) == TOO_LARGE
    assert upload({"one_time_keys": of_a.one_time(300)}) == INVALID
    assert upload({"fallback_keys": of_a.one_time(2)}) == INVALID
    for bad in ({"a": {"key": "x"}}, {"a:": "x"}, {":b": "x"}, {"a:b": 1}, {"a:b": {}}, {"a:b": {"key": 1}}, {"a:ん": "x"},
                {"a:b": {"key": "x", "signatures": "x"}}, {"a:" + "b" * 300: "x"}):
        assert upload({"one_time_keys": bad}) == INVALID, bad
        assert upload({"fallback_keys": bad}) == INVALID, bad
    assert of_a.left() == (0, [])


# One-time and fallback keys ------------------------------------------------------------------------------------------


def test_one_time_keys_are_handed_out_oldest_first_and_once(server, pair):
    a, b = pair
    of_a = device(a)
    of_a.publish()
    sent = []
    for _ in range(3):
        keys = of_a.one_time(2)
        counts = a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": keys})["one_time_key_counts"]
        sent.append(keys)
        assert counts == {"signed_curve25519": 2 * len(sent)}
    given = []
    for n in range(6):
        if n == 3:
            server.restart()
        key = claim(b.client, of_a)
        assert len(key) == 1 and list(key)[0] in sent[n // 2], "of an older upload first"
        assert key.items() <= sent[n // 2].items(), "as it was uploaded"
        given += key
        assert of_a.left()[0] == 5 - n
    assert len(set(given)) == 6
    assert claim(b.client, of_a) == {}
    # Sent again, since its answer was lost: nothing that was handed out comes back.
    again = a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": sent[0] | sent[2]})
    assert again["one_time_key_counts"]["signed_curve25519"] == 0 and claim(b.client, of_a) == {}


def test_two_never_get_the_same_key(server, pair):
    a, b = pair
    of_a = device(a)
    a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": of_a.one_time(60)})
    clients = [b.log_in() for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda client: [claim(client, of_a) for _ in range(8)], clients))
    for client in clients:
        client.close()
    names = [name for of_client in given for key in of_client for name in key]
    assert len(names) == 60 and len(set(names)) == 60


def test_a_key_id_stands_for_one_key(pair):
    a, b = pair
    of_a = device(a)
    keys = of_a.one_time(2)
    name = next(iter(keys))
    a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": keys})
    a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": keys})
    other = of_a.one_time(1)
    changed = other | {name: next(iter(other.values()))}
    assert a.client.post(f"{C}/keys/upload", {"one_time_keys": changed}).told == INVALID
    assert of_a.left()[0] == 2, "a refused upload leaves nothing behind"
    # The same id with another algorithm is another key.
    a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": {name.replace("signed_", ""): "plain"}})
    assert claim(b.client, of_a, "curve25519") == {name.replace("signed_", ""): "plain"}
    assert list(claim(b.client, of_a)) == [name]


def test_the_fallback_key_comes_when_no_other_is_left(server, pair):
    a, b = pair
    of_a = device(a)
    assert of_a.left() == (0, [])
    once, fallback = of_a.one_time(1), of_a.one_time(1, fallback=True)
    a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": once, "fallback_keys": fallback})
    assert of_a.left() == (1, ["signed_curve25519"])
    assert claim(b.client, of_a) == once and of_a.left() == (0, ["signed_curve25519"])
    assert claim(b.client, of_a) == fallback and of_a.left() == (0, [])
    server.restart()
    assert claim(b.client, of_a) == fallback and of_a.left() == (0, []), "again and again"
    a.client.ok("POST", f"{C}/keys/upload", {"fallback_keys": fallback})
    assert of_a.left() == (0, []), "the same one stays used"
    new = of_a.one_time(1, fallback=True)
    a.client.ok("POST", f"{C}/keys/upload", {"fallback_keys": new})
    assert of_a.left() == (0, ["signed_curve25519"]) and claim(b.client, of_a) == new
    # A key that was used up by name is not there for strangers.
    assert claim(server.register().client, of_a) == {}


def test_counts_in_sync_follow_without_being_asked_for(server, pair):
    """Also in the empty answer of a quiet sync, and for each device its own."""
    a, b = pair
    one, two = device(a), device(a, fresh=True)
    since = a.client.sync()["next_batch"]
    for n in range(3):
        a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": one.one_time(5)})
        for _ in range(2):
            told = a.client.sync(since)
            since = told["next_batch"]
            assert told["device_one_time_keys_count"] == {"signed_curve25519": 5 * (n + 1) - n}
        claim(b.client, one)
    assert two.left() == (0, [])


def test_restoring_drops_one_time_keys(fresh, tmp_path):
    """DESIGN 20: what was handed out after the backup must not be handed out again."""
    server = fresh(profile="open", config={"policy": {"rate_limits": False}})
    a, b = server.register(), server.register()
    encrypted_room(a, b)
    of_a = device(a)
    of_a.publish()
    a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": of_a.one_time(5)})
    saved, keys = tmp_path / "saved", tmp_path / "keys"
    made = subprocess.run(server.command("backup", str(saved)), capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    server.stop()
    shutil.copytree(server.data / "keys", keys)
    shutil.rmtree(server.data)
    server.data.mkdir(mode=0o700)
    shutil.copytree(keys, server.data / "keys")
    done = subprocess.run(server.command("restore", str(saved)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    server.start()
    assert of_a.left()[0] == 0 and claim(b.client, of_a) == {}
    assert query(b.client, a.user_id)["device_keys"][a.user_id][of_a.id]


# Cross-signing -------------------------------------------------------------------------------------------------------


UPLOAD = f"{C}/keys/device_signing/upload"


def password(person: Person, session: str, secret: str | None = None) -> dict:
    return {"auth": {"type": "m.login.password", "session": session, "password": secret or person.password,
                     "identifier": {"type": "m.id.user", "user": person.user_id}}}


def test_the_first_identity_needs_no_password_the_next_does(server, pair):
    """MSC3967, v1.11."""
    a, b = pair
    first = Identity(a.user_id)
    since = b.client.sync()["next_batch"]
    a.client.ok("POST", UPLOAD, first.body("master"))
    # Further keys beside an identity are new ones.
    asked = a.client.post(UPLOAD, first.body("self_signing", "user_signing"))
    assert asked.status == 401 and asked.json["flows"] == [{"stages": ["m.login.password"]}]
    wrong = a.client.post(UPLOAD, first.body("self_signing") | password(a, asked.json["session"], "wrong"))
    assert wrong.status == 401 and "self_signing_keys" not in query(b.client, a.user_id)
    a.client.ok("POST", UPLOAD, first.body("self_signing", "user_signing") | password(a, asked.json["session"]))
    assert lists(b.client.sync(since)) == ({a.user_id}, set())
    # The same again, in part or whole, is nothing new.
    since = b.client.sync()["next_batch"]
    for body in (first.body(), first.body("master"), first.body("self_signing")):
        a.client.ok("POST", UPLOAD, body)
    assert lists(b.client.sync(since)) == (set(), set())
    server.restart()
    found = query(b.client, a.user_id)
    assert found["master_keys"] == {a.user_id: first.object("master")}
    assert found["self_signing_keys"] == {a.user_id: first.object("self_signing")}
    assert "user_signing_keys" not in found, "it tells whom its owner knows"
    assert query(a.client, a.user_id)["user_signing_keys"] == {a.user_id: first.object("user_signing")}
    # Another identity takes the password, which is used up by it.
    second = Identity(a.user_id)
    asked = a.client.post(UPLOAD, second.body())
    assert asked.status == 401
    body = second.body() | password(a, asked.json["session"])
    a.client.ok("POST", UPLOAD, body)
    third = Identity(a.user_id)
    assert a.client.post(UPLOAD, third.body() | password(a, asked.json["session"])).status == 401
    assert query(b.client, a.user_id)["master_keys"] == {a.user_id: second.object("master")}
    assert lists(b.client.sync(since))[0] == {a.user_id}


def test_a_new_master_key_ends_what_the_old_one_signed(pair):
    a, b = pair
    first, second = Identity(a.user_id), Identity(a.user_id)
    of_a = device(a)
    keys = of_a.publish()
    a.client.ok("POST", UPLOAD, first.body())
    signed = first.self_signing.sign(keys, a.user_id)
    assert a.client.ok("POST", f"{C}/keys/signatures/upload", {a.user_id: {of_a.id: signed}}) == {"failures": {}}
    asked = a.client.post(UPLOAD, second.body("master"))
    a.client.ok("POST", UPLOAD, second.body("master") | password(a, asked.json["session"]))
    found = query(a.client, a.user_id)
    assert found["master_keys"][a.user_id] == second.object("master")
    assert not {"self_signing_keys", "user_signing_keys"} & set(found)
    assert found["device_keys"][a.user_id][of_a.id]["signatures"] == keys["signatures"]


def test_wrong_identities_are_refused(pair):
    a, b = pair
    mine, other = Identity(a.user_id), Identity(a.user_id)
    assert a.client.post(UPLOAD, mine.body("self_signing")).told == (400, "M_MISSING_PARAM")
    forged = mine.body() | {"self_signing_key": other.object("self_signing")}
    assert a.client.post(UPLOAD, forged).told == (400, "M_INVALID_SIGNATURE")
    unsigned = {name: value for name, value in mine.object("user_signing").items() if name != "signatures"}
    assert a.client.post(UPLOAD, mine.body() | {"user_signing_key": unsigned}).told == (400, "M_INVALID_SIGNATURE")
    for change in ({"user_id": b.user_id}, {"usage": ["self_signing"]}, {"usage": "master"}, {"keys": {}}, {"keys": {"ed25519:x": "x"}},
                   {"keys": {f"ed25519:{mine.master.public}": other.master.public}}, {"signatures": 1}):
        answer = a.client.post(UPLOAD, mine.body("master") | {"master_key": mine.object("master") | change})
        assert answer.told == INVALID, change
    large = mine.object("master") | {"x": "y" * 20_000}
    assert a.client.post(UPLOAD, {"master_key": large}).told == TOO_LARGE
    # A device that is named like the key would be taken for it.
    named = Identity(a.user_id)
    assert a.server.public().post(f"{C}/login", {"type": "m.login.password", "password": a.password, "device_id": named.master.public,
                                                 "identifier": {"type": "m.id.user", "user": a.user_id}}).status == 200
    assert a.client.post(UPLOAD, named.body("master")).told == FORBIDDEN
    assert "master_keys" not in query(a.client, a.user_id)


def test_the_password_of_another_does_not_do(pair):
    a, b = pair
    a.client.ok("POST", UPLOAD, Identity(a.user_id).body())
    asked = a.client.post(UPLOAD, Identity(a.user_id).body())
    theirs = {"auth": password(b, asked.json["session"])["auth"]}
    assert a.client.post(UPLOAD, Identity(a.user_id).body() | theirs).status == 401


SIGNATURES = f"{C}/keys/signatures/upload"


def test_signatures_are_checked_and_shown_to_whom_they_concern(server, pair):
    a, b = pair
    stranger = server.register()
    encrypted_room(stranger, b)
    of_a, mine, theirs = device(a), Identity(a.user_id), Identity(b.user_id)
    keys = of_a.publish()
    a.client.ok("POST", UPLOAD, mine.body())
    b.client.ok("POST", UPLOAD, theirs.body())
    second = device(a, fresh=True)
    since, far, own = (person.sync()["next_batch"] for person in (b.client, stranger.client, second.client))
    # A device by the self-signing key, the own master key by the device, another's master key by the user-signing key.
    on_device = mine.self_signing.sign(keys, a.user_id)
    on_own = of_a.key.sign(mine.object("master"), a.user_id, of_a.id)
    on_theirs = mine.user_signing.sign(theirs.object("master"), a.user_id)
    done = a.client.ok("POST", SIGNATURES, {a.user_id: {of_a.id: on_device, mine.master.public: on_own},
                                           b.user_id: {theirs.master.public: on_theirs}})
    assert done == {"failures": {}}
    assert lists(b.client.sync(since))[0] == {a.user_id}, "the own ones are everybody's news"
    assert lists(second.client.sync(own))[0] == {a.user_id, b.user_id}, "the user's own devices hear of both"
    assert lists(stranger.client.sync(far))[0] == set(), "whom one signs is nobody's business"
    for _ in range(2):
        seen_by_a, seen_by_b = query(a.client, a.user_id, b.user_id), query(b.client, a.user_id, b.user_id)
        for seen in (seen_by_a, seen_by_b):
            assert seen["device_keys"][a.user_id][of_a.id]["signatures"] == on_device["signatures"]
            assert seen["master_keys"][a.user_id] == on_own
        assert seen_by_a["master_keys"][b.user_id] == on_theirs
        assert seen_by_b["master_keys"][b.user_id] == theirs.object("master"), "not even to whom it is about"
        assert query(stranger.client, b.user_id)["master_keys"][b.user_id] == theirs.object("master")
        server.restart()
    # The second device that was offline then hears of it after a restart, too.
    assert b.user_id in lists(second.client.sync(own))[0]


def test_the_same_keys_sent_again_stay_signed(server, pair):
    """A client that begins its identity sends its keys twice beside each other, with the identity's signature and without."""
    a, _ = pair
    of_a, mine = device(a), Identity(a.user_id)
    keys = of_a.publish()
    a.client.ok("POST", UPLOAD, mine.body())
    signed = mine.self_signing.sign(keys, a.user_id)

    def seen() -> dict:
        return query(a.client, a.user_id)["device_keys"][a.user_id][of_a.id]["signatures"]

    again = lambda keys: a.client.ok("POST", "/_matrix/client/v3/keys/upload", {"device_keys": keys})  # noqa: E731
    again(signed)
    assert seen() == signed["signatures"]
    since = a.client.sync()["next_batch"]
    again(keys)
    assert seen() == signed["signatures"], "what the same keys had before"
    assert a.client.ok("POST", SIGNATURES, {a.user_id: {of_a.id: signed}}) == {"failures": {}}
    again(keys), again(signed), again(keys)
    assert seen() == signed["signatures"], "what was signed"
    assert a.user_id in lists(a.client.sync(since))[0]
    # Other keys were signed by nobody.
    other = keys | {"algorithms": [*keys["algorithms"], "m.other"]}
    other = of_a.key.sign({name: value for name, value in other.items() if name != "signatures"}, a.user_id, of_a.id)
    again(other)
    assert seen() == other["signatures"]


def test_wrong_signatures_fail_one_by_one(server, pair):
    a, b = pair
    of_a, of_b, mine, theirs = device(a), device(b), Identity(a.user_id), Identity(b.user_id)
    keys, their_keys = of_a.publish(), of_b.publish()
    a.client.ok("POST", UPLOAD, mine.body())
    b.client.ok("POST", UPLOAD, theirs.body())
    stranger = server.register()
    far = Identity(stranger.user_id)
    stranger.client.ok("POST", UPLOAD, far.body())

    def upload(user: str, target: str, signed) -> str | None:
        failures = a.client.ok("POST", SIGNATURES, {user: {target: signed}})["failures"]
        assert set(failures) <= {user} and set(failures.get(user, {})) <= {target}
        return failures.get(user, {}).get(target, {}).get("errcode")

    good = mine.self_signing.sign(keys, a.user_id)
    changed = mine.self_signing.sign(keys | {"algorithms": ["m.none"]}, a.user_id)
    assert upload(a.user_id, of_a.id, changed) == "M_INVALID_PARAM", "not the object that was uploaded"
    broken = json.loads(json.dumps(good))
    broken["signatures"][a.user_id][f"ed25519:{mine.self_signing.public}"] = b64(b"x" * 64)
    for bad in (broken, keys, mine.user_signing.sign(keys, a.user_id), mine.self_signing.sign(keys, b.user_id)):
        assert upload(a.user_id, of_a.id, bad) == "M_INVALID_SIGNATURE"
    # Somebody else's device is not for me to sign, nor a stranger's key.
    assert upload(b.user_id, of_b.id, mine.user_signing.sign(their_keys, a.user_id)) == "M_NOT_FOUND"
    assert upload(b.user_id, theirs.self_signing.public, mine.user_signing.sign(theirs.object("self_signing"), a.user_id)) == "M_NOT_FOUND"
    assert upload(stranger.user_id, far.master.public, mine.user_signing.sign(far.object("master"), a.user_id)) == "M_NOT_FOUND"
    assert upload(a.user_id, "NONE", good) == "M_NOT_FOUND"
    assert upload("nobody", "X", good) == "M_INVALID_PARAM"
    for bad in (1, [], None, "x", {}, {"signatures": 1}, {"a": 1.5}):
        assert upload(a.user_id, of_a.id, bad) in ("M_INVALID_PARAM", "M_INVALID_SIGNATURE"), bad
    # In another's name, with another's key.
    forged = theirs.user_signing.sign(mine.object("master"), b.user_id)
    assert upload(a.user_id, mine.master.public, forged) == "M_INVALID_SIGNATURE"
    # The good ones of a request count, beside bad ones.
    failures = a.client.ok("POST", SIGNATURES, {a.user_id: {of_a.id: good, "NONE": good}})["failures"]
    assert list(failures[a.user_id]) == ["NONE"]
    assert query(b.client, a.user_id)["device_keys"][a.user_id][of_a.id]["signatures"] == good["signatures"]
    assert a.client.post(SIGNATURES, {a.user_id: {str(n): {} for n in range(600)}}).told == INVALID
    # Other keys of the device: what was signed does not hold for them.
    of_a.publish()
    assert len(query(b.client, a.user_id)["device_keys"][a.user_id][of_a.id]["signatures"][a.user_id]) == 1


# Key backup ----------------------------------------------------------------------------------------------------------


B = f"{C}/room_keys"
ALGORITHM = "m.megolm_backup.v1.curve25519-aes-sha2"


def backup(client: Client, **auth) -> str:
    return client.ok("POST", f"{B}/version", {"algorithm": ALGORITHM, "auth_data": {"public_key": "abc"} | auth})["version"]


def megolm(index: int = 0, forwarded: int = 0, verified: bool = False, text: str = "x") -> dict:
    return {"first_message_index": index, "forwarded_count": forwarded, "is_verified": verified,
            "session_data": {"ciphertext": text, "ephemeral": "e", "mac": "m"}}


def test_backup_versions(server):
    a, b = server.register(), server.register()
    assert a.client.get(f"{B}/version").told == NOT_FOUND
    one = backup(a.client)
    told = a.client.ok("GET", f"{B}/version")
    assert told == {"version": one, "algorithm": ALGORITHM, "auth_data": {"public_key": "abc"}, "count": 0, "etag": told["etag"]}
    assert a.client.ok("GET", f"{B}/version/{one}") == told
    assert b.client.get(f"{B}/version").told == NOT_FOUND and b.client.get(f"{B}/version/{one}").told == NOT_FOUND
    # Only auth_data changes.
    body = {"algorithm": ALGORITHM, "auth_data": {"public_key": "abc", "signatures": {a.user_id: {"ed25519:X": "y"}}}}
    a.client.ok("PUT", f"{B}/version/{one}", body | {"version": one})
    assert a.client.ok("GET", f"{B}/version")["auth_data"] == body["auth_data"]
    assert a.client.put(f"{B}/version/{one}", body | {"version": "7"}).told == INVALID
    assert a.client.put(f"{B}/version/{one}", body | {"algorithm": "other"}).told == INVALID
    for none in ("7", "x", "0", "-1", "01", "99999999999999999999"):
        assert a.client.put(f"{B}/version/{none}", body).told == NOT_FOUND, none
        assert a.client.get(f"{B}/version/{none}").told == NOT_FOUND, none
        assert a.client.delete(f"{B}/version/{none}").told == NOT_FOUND, none
    # A new version is the current one; deleted, it makes way for the one before; its number never comes back.
    two = backup(a.client)
    assert two != one and a.client.ok("GET", f"{B}/version")["version"] == two
    server.restart()
    for _ in range(2):
        a.client.ok("DELETE", f"{B}/version/{two}")
    assert a.client.get(f"{B}/version/{two}").told == NOT_FOUND
    assert a.client.ok("GET", f"{B}/version")["version"] == one
    three = backup(a.client)
    assert three not in (one, two)
    for version in (one, three):
        a.client.ok("DELETE", f"{B}/version/{version}")
    assert a.client.get(f"{B}/version").told == NOT_FOUND
    a.client.ok("DELETE", f"{B}/version/{two}")
    for bad in ({}, {"algorithm": 1, "auth_data": {}}, {"algorithm": ALGORITHM}, {"algorithm": ALGORITHM, "auth_data": 1}):
        assert a.client.post(f"{B}/version", bad).told == (400, "M_BAD_JSON"), bad
    assert a.client.post(f"{B}/version", {"algorithm": "", "auth_data": {}}).told == INVALID
    assert a.client.post(f"{B}/version", {"algorithm": ALGORITHM, "auth_data": {"x": "y" * 70_000}}).told == TOO_LARGE
    for _ in range(60):
        answer = a.client.post(f"{B}/version", {"algorithm": ALGORITHM, "auth_data": {}})
        if answer.status != 200:
            break
    assert answer.told == TOO_LARGE, "versions have a limit"


def test_keys_are_stored_found_and_deleted(server):
    a, b = server.register(), server.register()
    r1, r2 = "!one:example.org", "!two"
    version = backup(a.client)
    v = f"?version={version}"
    one = a.client.ok("PUT", f"{B}/keys/{quote(r1)}/{quote('s/1')}{v}", megolm(text="1"))
    two = a.client.ok("PUT", f"{B}/keys/{quote(r1)}{v}", {"sessions": {"s2": megolm(text="2"), "s3": megolm(text="3")}})
    three = a.client.ok("PUT", f"{B}/keys{v}", {"rooms": {r2: {"sessions": {"s4": megolm(text="4")}}}})
    assert [told["count"] for told in (one, two, three)] == [1, 3, 4]
    assert len({told["etag"] for told in (one, two, three)}) == 3
    assert a.client.ok("PUT", f"{B}/keys{v}", {"rooms": {}}) == three, "nothing new, the same etag"
    told = a.client.ok("GET", f"{B}/version")
    assert (told["count"], told["etag"]) == (4, three["etag"])
    server.restart()
    everything = {r1: {"sessions": {"s/1": megolm(text="1"), "s2": megolm(text="2"), "s3": megolm(text="3")}},
                  r2: {"sessions": {"s4": megolm(text="4")}}}
    assert a.client.ok("GET", f"{B}/keys{v}") == {"rooms": everything}
    assert a.client.ok("GET", f"{B}/keys/{quote(r1)}{v}") == everything[r1]
    assert a.client.ok("GET", f"{B}/keys/{quote(r1)}/s2{v}") == megolm(text="2")
    assert a.client.ok("GET", f"{B}/keys/{quote('!none')}{v}") == {"sessions": {}}
    assert a.client.get(f"{B}/keys/{quote(r1)}/s4{v}").told == NOT_FOUND
    # Somebody else's backup of the same number is another.
    assert b.client.get(f"{B}/keys{v}").told == NOT_FOUND
    backup(b.client)
    assert b.client.ok("GET", f"{B}/keys{v}") == {"rooms": {}}
    gone = a.client.ok("DELETE", f"{B}/keys/{quote(r1)}/s2{v}")
    assert gone["count"] == 3 and gone["etag"] not in (one["etag"], two["etag"], three["etag"])
    assert a.client.ok("DELETE", f"{B}/keys/{quote(r1)}{v}")["count"] == 1
    assert a.client.ok("GET", f"{B}/keys{v}") == {"rooms": {r2: everything[r2]}}
    assert a.client.ok("DELETE", f"{B}/keys{v}")["count"] == 0
    for method in ("GET", "DELETE"):
        for path in ("", f"/{quote(r1)}", f"/{quote(r1)}/s"):
            assert a.client.request(method, f"{B}/keys{path}?version=77").told == NOT_FOUND
            assert a.client.request(method, f"{B}/keys{path}").told == (400, "M_MISSING_PARAM")


def test_keys_go_into_the_current_version_only(server):
    a = server.register()
    v = lambda version: f"{B}/keys?version={version}"  # noqa: E731
    keys = {"rooms": {"!r": {"sessions": {"s": megolm()}}}}
    assert a.client.put(v("1"), keys).told == NOT_FOUND
    one = backup(a.client)
    a.client.ok("PUT", v(one), keys)
    two = backup(a.client)
    answer = a.client.put(v(one), keys)
    assert answer.told == (403, "M_WRONG_ROOM_KEYS_VERSION") and answer.json["current_version"] == two
    for unknown in ("77", "x"):
        assert a.client.put(v(unknown), keys).told == NOT_FOUND
    assert a.client.ok("GET", v(one))["rooms"], "an old version can be read"
    assert a.client.ok("GET", v(two)) == {"rooms": {}}


def test_the_better_key_is_kept(server):
    """"If the server receives a key for a session that exists": verified, then the lowest index, then the least forwarded."""
    a = server.register()
    path = f"{B}/keys/{quote('!r')}/s?version={backup(a.client)}"
    now = megolm(5, 5, False, "first")
    etag = a.client.ok("PUT", path, now)["etag"]
    for worse in (megolm(6, 0), megolm(5, 6), megolm(5, 5), megolm(9, 9)):
        assert a.client.ok("PUT", path, worse) == {"count": 1, "etag": etag}
        assert a.client.ok("GET", path) == now
    for better in (megolm(5, 4), megolm(4, 9), megolm(9, 9, True), megolm(8, 9, True), megolm(8, 1, True)):
        told = a.client.ok("PUT", path, better)
        assert told["count"] == 1 and told["etag"] != etag
        etag, now = told["etag"], better
        assert a.client.ok("GET", path) == now
    assert a.client.ok("PUT", path, megolm(0, 0, False))["etag"] == etag and a.client.ok("GET", path) == now


def test_bad_backup_keys_are_refused(server):
    a = server.register()
    path = f"{B}/keys?version={backup(a.client)}"
    put = lambda rooms: a.client.put(path, {"rooms": rooms}).told  # noqa: E731
    for bad in (megolm(-1), megolm(0, -1)):
        assert put({"!r": {"sessions": {"s": bad}}}) == INVALID
    for bad in ({}, 1, None, megolm() | {"is_verified": "x"}, megolm() | {"session_data": "x"}, megolm() | {"first_message_index": 1.5}):
        assert put({"!r": {"sessions": {"s": bad}}}) == (400, "M_BAD_JSON"), bad
    assert put({"r": {"sessions": {"s": megolm()}}}) == INVALID
    assert put({"!r": {"sessions": {"s" * 300: megolm()}}}) == INVALID
    assert put({"!r": {"sessions": {"s": megolm(text="x" * 20_000)}}}) == TOO_LARGE
    assert put({"!r": {"sessions": {str(n): megolm() for n in range(2_500)}}}) == TOO_LARGE
    # One bad key among good ones: nothing is half-written.
    assert put({"!r": {"sessions": {"s": megolm(), "t": megolm(-1)}}}) == INVALID
    assert a.client.ok("GET", path) == {"rooms": {}}


# Messages to devices -------------------------------------------------------------------------------------------------


def inbox(told: dict) -> list[dict]:
    return [event["content"] for event in told.get("to_device", {}).get("events", [])]


def test_messages_stay_until_they_are_acknowledged(server, pair):
    a, b = pair
    one, two = device(b), device(b, fresh=True)
    since = b.client.sync()["next_batch"]
    assert send(a.client, {b.user_id: {one.id: {"n": 1}, "NONE": {"n": 9}}}, "t1").status == 200
    assert send(a.client, {b.user_id: {one.id: {"n": 1}}}, "t1").status == 200, "the same transaction"
    assert send(a.client, {b.user_id: {"*": {"n": 2}}}).status == 200
    for _ in range(2):
        told = b.client.sync(since)
        assert told["to_device"]["events"][0] == {"type": "m.test", "sender": a.user_id, "content": {"n": 1}}
        assert inbox(told) == [{"n": 1}, {"n": 2}], "again, while the token has not moved"
        server.restart()
    # An initial sync of the device begins with them as well: it acknowledges nothing.
    assert inbox(b.client.sync()) == [{"n": 1}, {"n": 2}]
    assert inbox(b.client.sync(told["next_batch"])) == []
    assert inbox(b.client.sync(since)) == [], "acknowledged: dropped"
    assert inbox(b.client.sync()) == [] and inbox(two.client.sync()) == [{"n": 2}], "each device its own"


def test_many_messages_come_in_pages(pair):
    a, b = pair
    of_b = device(b)
    since = b.client.sync()["next_batch"]
    for n in range(230):
        send(a.client, {b.user_id: {of_b.id: {"n": n}}})
    got, pages = [], 0
    while True:
        told = b.client.sync(since)
        part = inbox(told)
        if not part:
            break
        assert len(part) <= 100
        got, pages, since = got + part, pages + 1, told["next_batch"]
    assert [one["n"] for one in got] == list(range(230)) and pages == 3


def test_messages_have_limits(server, pair):
    a, b = pair
    of_b = device(b)
    stranger = server.register()
    assert send(stranger.client, {b.user_id: {of_b.id: {"n": 1}}}).status == 200
    assert inbox(b.client.sync()) == [], "from nobody without a room in common"
    assert send(a.client, {b.user_id: {of_b.id: {"x": "y" * 70_000}}}).told == TOO_LARGE
    assert send(a.client, {b.user_id: {str(n): {} for n in range(1_100)}}).told == INVALID
    assert send(a.client, {b.user_id: {of_b.id: {}}}, kind="m" * 300).told == INVALID
    for bad in (1, "x", [], None):
        assert send(a.client, {b.user_id: {of_b.id: bad}}).told == (400, "M_BAD_JSON"), bad
    # A device that fetches nothing gets no more, and makes nobody's sending fail.
    other = device(b, fresh=True)
    large = {"x": "y" * 60_000}
    for _ in range(160):
        assert send(a.client, {b.user_id: {of_b.id: large}}).status == 200
    assert send(a.client, {b.user_id: {"*": {"small": 1}}}).status == 200
    assert inbox(other.client.sync()) == [{"small": 1}]
    waiting, since = 0, None
    while part := inbox(told := b.client.sync(since)):
        waiting, since = waiting + len(part), told["next_batch"]
    assert 100 < waiting < 160
    send(a.client, {b.user_id: {of_b.id: {"n": 1}}})
    assert inbox(b.client.sync(since)) == [{"n": 1}], "after it has fetched them it gets messages again"


# Device lists --------------------------------------------------------------------------------------------------------


def test_whoever_shares_a_room_hears_of_changes(server):
    a, b, c = (server.register() for _ in range(3))
    encrypted_room(a, b)
    plain = a.client.ok("POST", f"{C}/createRoom", {"invite": [c.user_id]})["room_id"]
    c.client.ok("POST", f"{C}/join/{quote(plain)}", {})
    stranger = server.register()
    everybody = [a, b, c, stranger]
    since = {person.user_id: person.client.sync()["next_batch"] for person in everybody}
    start = dict(since)

    def told(expected: set, what: str) -> None:
        for person in everybody:
            answer = person.client.sync(since[person.user_id])
            assert lists(answer) == ({a.user_id} if person.user_id in expected else set(), set()), (what, person.user_id)
            since[person.user_id] = answer["next_batch"]

    near = {a.user_id, b.user_id, c.user_id}
    of_a = device(a)
    of_a.publish()
    told(near, "keys")
    told(set(), "nothing")
    a.client.ok("POST", f"{C}/keys/upload", {"device_keys": of_a.keys})
    told(set(), "the same keys again")
    a.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": of_a.one_time(3)})
    told(set(), "one-time keys")
    a.client.ok("PUT", f"{C}/devices/{quote(of_a.id)}", {"display_name": "x"})
    told(near, "a name")
    a.client.ok("POST", UPLOAD, Identity(a.user_id).body())
    told(near, "an identity")
    second = device(a, fresh=True)
    told(set(), "a device without keys")
    second.publish()
    told(near, "a second device")
    second.client.ok("POST", f"{C}/logout")
    told(near, "a device that is gone")
    assert list(query(b.client, a.user_id)["device_keys"][a.user_id]) == [of_a.id]
    # The same from the endpoint, and after a restart.
    server.restart()
    for person in everybody:
        path = f"{C}/keys/changes?from={quote(start[person.user_id])}&to={quote(since[person.user_id])}"
        expected = [a.user_id] if person.user_id in near else []
        assert person.client.ok("GET", path) == {"changed": expected, "left": []}
        again = f"{C}/keys/changes?from={quote(since[person.user_id])}&to={quote(since[person.user_id])}"
        assert person.client.ok("GET", again) == {"changed": [], "left": []}


def test_a_change_ends_a_long_poll(pair):
    a, b = pair
    since = b.client.sync()["next_batch"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(b.client.sync, since, 20_000)
        device(a).publish()
        assert lists(waiting.result(15)) == ({a.user_id}, set())


def test_joining_and_leaving_encrypted_rooms(server):
    a, b, c = (server.register() for _ in range(3))
    room = encrypted_room(a, b)
    plain = a.client.ok("POST", f"{C}/createRoom", {"invite": [c.user_id]})["room_id"]
    c.client.ok("POST", f"{C}/join/{quote(plain)}", {})
    at = lambda: {person.user_id: person.client.sync()["next_batch"] for person in (a, b, c)}  # noqa: E731
    news = lambda person: lists(person.client.sync(since[person.user_id]))  # noqa: E731
    start = since = at()
    a.client.ok("POST", f"{C}/rooms/{quote(room)}/invite", {"user_id": c.user_id})
    assert news(b)[0] == {c.user_id}, "messages are encrypted for who is invited"
    assert c.user_id in query(b.client, c.user_id)["device_keys"]
    # Who is only invited does not learn who is in the room, nor who was when the invitation is declined.
    assert news(c) == (set(), set()) and b.user_id not in query(c.client, b.user_id)["device_keys"]
    since = at()
    c.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
    assert news(c) == (set(), set()) and news(b) == (set(), {c.user_id})
    a.client.ok("POST", f"{C}/rooms/{quote(room)}/invite", {"user_id": c.user_id})
    since = at()
    c.client.ok("POST", f"{C}/join/{quote(room)}", {})
    assert news(a) == ({c.user_id}, set()) and news(b) == ({c.user_id}, set())
    assert news(c) == ({a.user_id, b.user_id}, set())
    server.restart()
    assert news(c) == ({a.user_id, b.user_id}, set()), "after a restart, too"
    since = at()
    c.client.ok("POST", f"{C}/rooms/{quote(room)}/leave", {})
    # They still share a room with a, but none that is encrypted.
    assert news(b) == (set(), {c.user_id}) and news(a) == (set(), {c.user_id})
    assert news(c) == (set(), {a.user_id, b.user_id})
    path = f"{C}/keys/changes?from={quote(since[b.user_id])}&to={quote(at()[b.user_id])}"
    assert b.client.ok("GET", path) == {"changed": [], "left": [c.user_id]}
    assert c.user_id not in query(b.client, c.user_id)["device_keys"]
    # Two rooms in common: leaving one of them changes nothing.
    other = encrypted_room(a, b)
    since = at()
    b.client.ok("POST", f"{C}/rooms/{quote(other)}/leave", {})
    assert news(a)[1] == set() and news(b)[1] == set()
    # A room that becomes an encrypted one.
    since = at()
    a.client.ok("PUT", f"{C}/rooms/{quote(plain)}/state/m.room.encryption", ENCRYPTION["content"])
    assert news(a) == ({c.user_id}, set()) and news(c) == ({a.user_id}, set()) and news(b) == (set(), set())
    # Somebody is removed.
    since = at()
    a.client.ok("POST", f"{C}/rooms/{quote(room)}/kick", {"user_id": b.user_id})
    assert news(a) == (set(), {b.user_id}) and news(b) == (set(), {a.user_id})
    # Whoever slept through all of it hears how it ended.
    since = start
    assert b.user_id in news(a)[1] and c.user_id in news(a)[0]
    assert lists(a.client.sync()) == (set(), set()), "a first sync fetches everything anyway"


def test_a_deleted_device_leaves_nothing(server, pair):
    a, b = pair
    second = device(a, fresh=True)
    second.publish()
    second.client.ok("POST", f"{C}/keys/upload", {"one_time_keys": second.one_time(3), "fallback_keys": second.one_time(1, fallback=True)})
    send(b.client, {a.user_id: {second.id: {"n": 1}}})
    asked = a.client.delete(f"{C}/devices/{quote(second.id)}", {})
    a.client.ok("DELETE", f"{C}/devices/{quote(second.id)}", password(a, asked.json["session"]))
    for table in ("device_keys", "one_time_keys", "fallback_keys", "to_device", "devices"):
        assert server.count(f"SELECT COUNT(*) FROM {table} WHERE user_id = '{a.user_id}' AND device_id = '{second.id}'") == 0, table
    assert claim(b.client, second) == {} and query(b.client, a.user_id)["device_keys"] == {a.user_id: {}}
    assert second.client.post(f"{C}/keys/upload", {"device_keys": second.device_keys()}).status == 401


# Dehydrated devices --------------------------------------------------------------------------------------------------


def dehydrated(person: Person, device_id: str) -> tuple[Device, dict]:
    one = Device(person.client, person.user_id, device_id)
    return one, {"device_id": device_id, "initial_device_display_name": "Dehydrated device",
                 "device_data": {"algorithm": "org.matrix.msc3814.v2", "device_pickle": "abc", "nonce": "n"},
                 "device_keys": one.device_keys(dehydrated=True), "one_time_keys": one.one_time(3),
                 "fallback_keys": one.one_time(1, fallback=True)}


def test_a_dehydrated_device_takes_messages(server, pair):
    a, b = pair
    assert a.client.get(DEHYDRATED).told == NOT_FOUND and a.client.delete(DEHYDRATED).told == NOT_FOUND
    since = b.client.sync()["next_batch"]
    one, body = dehydrated(a, "DRY1")
    assert a.client.ok("PUT", DEHYDRATED, body) == {"device_id": "DRY1"}
    assert lists(b.client.sync(since))[0] == {a.user_id}
    assert query(b.client, a.user_id)["device_keys"][a.user_id]["DRY1"]["dehydrated"] is True
    assert claim(b.client, one)
    for n in range(130):
        send(b.client, {a.user_id: {"DRY1": {"n": n}}})
    server.restart()
    assert a.client.ok("GET", DEHYDRATED) == {"device_id": "DRY1", "device_data": body["device_data"]}
    assert b.client.get(DEHYDRATED).told == NOT_FOUND, "another's is not found"
    events = f"{DEHYDRATED}/DRY1/events"
    for _ in range(2):  # a client that broke off begins again
        got, place = [], {}
        while part := (told := a.client.ok("POST", events, place))["events"]:
            got, place = got + part, {"next_batch": told["next_batch"]}
        assert [event["content"]["n"] for event in got] == list(range(130))
        assert got[0]["sender"] == b.user_id
    for person in (a, b):
        assert person.client.post(f"{DEHYDRATED}/OTHER/events", {}).told == FORBIDDEN
    assert b.client.post(events, {}).told == FORBIDDEN
    assert a.client.post(events, {"next_batch": "x"}).told == INVALID
    # A new one replaces it, with its messages; nobody can log in as it or lose a session to it.
    two, new = dehydrated(a, "DRY2")
    a.client.ok("PUT", DEHYDRATED, new)
    assert set(query(b.client, a.user_id)["device_keys"][a.user_id]) == {"DRY2"}
    assert a.client.post(events, {}).told == FORBIDDEN
    assert server.count(f"SELECT COUNT(*) FROM to_device WHERE user_id = '{a.user_id}' AND device_id = 'DRY1'") == 0
    since = b.client.sync()["next_batch"]
    assert a.client.ok("DELETE", DEHYDRATED) == {"device_id": "DRY2"}
    assert lists(b.client.sync(since))[0] == {a.user_id}
    assert a.client.get(DEHYDRATED).told == NOT_FOUND and query(b.client, a.user_id)["device_keys"] == {a.user_id: {}}


def test_bad_dehydrated_devices_are_refused(server, pair):
    a, _ = pair
    own = device(a)
    _, clash = dehydrated(a, own.id)
    assert a.client.put(DEHYDRATED, clash).told == FORBIDDEN, "the id of a session"
    assert a.client.get(f"{C}/account/whoami").status == 200
    _, body = dehydrated(a, "DRY")
    for change in ({"device_data": {}}, {"device_data": {"algorithm": 1}}, {"device_keys": {}}, {"device_id": "OTHER"},
                   {"device_id": ""}, {"one_time_keys": {"x": 1}}):
        assert a.client.put(DEHYDRATED, body | change).told == INVALID, change
    for missing in ("device_id", "device_data", "device_keys"):
        part = {name: value for name, value in body.items() if name != missing}
        assert a.client.put(DEHYDRATED, part).status == 400, missing
    assert a.client.put(DEHYDRATED, body | {"device_data": {"algorithm": "x", "y": "z" * 300_000}}).told == TOO_LARGE
    assert a.client.get(DEHYDRATED).told == NOT_FOUND


# The policy ----------------------------------------------------------------------------------------------------------


def test_what_is_offered_where_encryption_is_allowed(server):
    features = server.public().get("/_matrix/client/versions").json["unstable_features"]
    assert features["org.matrix.e2e_cross_signing"] and features["org.matrix.msc3814"]


def test_what_is_refused_where_it_is_forbidden(city):
    """The default. `test_rooms.py` has the ways into rooms."""
    a, b = city.person(), city.person()
    city.room(a, b)
    of_a, mine = device(a), Identity(a.user_id)
    keys = of_a.publish()
    assert query(b.client, a.user_id)["device_keys"][a.user_id][of_a.id]["keys"] == keys["keys"]
    for method, path, body in (
        ("POST", UPLOAD, mine.body()), ("POST", SIGNATURES, {}), ("POST", f"{B}/version", {"algorithm": ALGORITHM, "auth_data": {}}),
        ("PUT", f"{B}/version/1", {"algorithm": ALGORITHM, "auth_data": {}}), ("DELETE", f"{B}/version/1", None),
        ("PUT", f"{B}/keys?version=1", {"rooms": {}}), ("DELETE", f"{B}/keys?version=1", None),
        ("PUT", f"{B}/keys/{quote('!r')}?version=1", {"sessions": {}}), ("PUT", f"{B}/keys/{quote('!r')}/s?version=1", megolm()),
    ):
        assert a.client.request(method, path, json_body=body).told == FORBIDDEN, path
    for path in (f"{B}/version", f"{B}/version/1", f"{B}/keys?version=1", f"{B}/keys/{quote('!r')}?version=1",
                 f"{B}/keys/{quote('!r')}/s?version=1"):
        assert a.client.get(path).told == NOT_FOUND, path
    for method in ("PUT", "GET", "DELETE"):
        assert a.client.request(method, DEHYDRATED, json_body={} if method == "PUT" else None).told == (404, "M_UNRECOGNIZED")
    found = query(a.client, a.user_id)
    assert not {"master_keys", "self_signing_keys", "user_signing_keys"} & set(found)
    features = city.public(a.terminal).get("/_matrix/client/versions").json["unstable_features"]
    assert not {"org.matrix.e2e_cross_signing", "org.matrix.msc3814"} & set(features)
    # Clients are not asked for one-time keys that nobody would fetch, and nobody is woken for others' devices.
    since = b.client.sync()["next_batch"]
    device(a, fresh=True).publish()
    told = b.client.sync(since)
    assert told["device_one_time_keys_count"] == {"signed_curve25519": 50} and lists(told) == (set(), set())


@pytest.mark.parametrize("name", ["sqlite", "postgres"])
def test_a_city_that_allows_encryption_and_goes_back(fresh, request, name):
    """Rooms that the city opens are not encrypted in either case; with encrypted rooms there is no way back."""
    if name == "postgres":
        request.getfixturevalue("postgres")
    server = fresh(name, config={"policy": {"encryption": "allowed", "rate_limits": False}})
    a, b = server.person(), server.person()
    room = server.room(a, b)
    state = [event["type"] for event in a.client.ok("GET", f"{C}/rooms/{quote(room)}/state")]
    assert "m.room.encryption" not in state
    for client in (a.client, server.first_staff().client, server.as_city()):
        assert client.put(f"{C}/rooms/{quote(room)}/state/m.room.encryption", ENCRYPTION["content"]).told == FORBIDDEN
        assert client.put(f"{C}/rooms/{quote(room)}/send/m.room.encrypted/{secrets.token_hex(4)}", {"ciphertext": "x"}).told == FORBIDDEN
    # An identity alone does not stand in the way.
    mine = Identity(a.user_id)
    a.client.ok("POST", UPLOAD, mine.body())

    def policy(value: str) -> None:
        server.stop()
        server.overrides["policy"]["encryption"] = value
        server._write_config()

    policy("forbidden")
    server.start()
    assert "master_keys" not in query(a.client, a.user_id)
    policy("allowed")
    server.start()
    assert query(a.client, a.user_id)["master_keys"] == {a.user_id: mine.object("master")}
    direct = a.client.ok("POST", f"{C}/createRoom", {"invite": [b.user_id], "is_direct": True, "initial_state": [ENCRYPTION]})["room_id"]
    assert direct
    policy("forbidden")
    refused = subprocess.run(server.command("serve"), capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0 and "encrypted" in refused.stderr + refused.stdout
    policy("allowed")
    server.start()
    # Whoever has left the network is not encrypted for: all keys go with the account.
    since = b.client.sync()["next_batch"]
    device(a).publish()
    backup(a.client)
    wait_for(lambda: lists(b.client.sync(since))[0] == {a.user_id}, 60, what="the change")
    server.act(f"accounts/{quote(a.user_id)}/end", {"reason": "退職"})
    for table in ("cross_signing_keys", "key_backups", "device_keys", "devices"):
        assert server.count(f"SELECT COUNT(*) FROM {table} WHERE user_id = '{a.user_id}'") == 0, table


def test_a_lost_terminals_devices_are_not_encrypted_for(fresh):
    server = fresh(config={"policy": {"encryption": "allowed", "rate_limits": False}})
    a, b = server.person(), server.person()
    server.room(a, b)
    device(a).publish()
    assert query(b.client, a.user_id)["device_keys"][a.user_id]
    since = b.client.sync()["next_batch"]
    server.revoke(server.terminal_number(a))
    assert query(b.client, a.user_id)["device_keys"] == {a.user_id: {}}
    assert lists(b.client.sync(since))[0] == {a.user_id}
