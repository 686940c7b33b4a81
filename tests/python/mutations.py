"""Makes wrong requests of right ones: thousands, from a seed that can be given again.

One request gets one fault or two, in its body, path, query or head. Bodies are changed where the specification's schema
says that something is, so that the faults reach the code that reads it.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from typing import Any

import spec
from harness import Client, quote
from scenarios import NO_BODY, Call

# JSON texts, some of which are no JSON.
LONG = json.dumps("x" * 70_000)
DEEP = 200
VALUES = [
    "null", "true", "false", "0", "-1", "1", "1.5", "-0", "1e308", "1e999", "1E400", "9007199254740991", "9007199254740993",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616", "1" * 400, "0.1e-400", "01", "NaN",
    '""', '" "', '"\\u0000"', '"a\\u0000b"', '"\\ud800"', '"\\udc00\\ud800"', '"\x01"', '"\\u202e\\u200b"', '"' + "あ" * 5000 + '"', LONG,
    '"@"', '"@:"', '"@x:y z"', '"!"', '"$"', '"#"', '"#:"', '"mxc://"', '"mxc://../../etc"', '"../../../etc/passwd"', '"%00%2e%2e"',
    '"\' OR 1=1 --"', '"%s%n%d"', '"${jndi:x}"', '"*"', '".*"', '"(a+)+$"', '"\\\\"', '"-1"', '"1e9"', '"true"', '"null"',
    "[]", "[[]]", "[null]", "[1,2,3]", '["a","a"]', "{}", '{"":{}}', '{"a":{"b":{"c":[]}}}', '{"a":1,"a":2}', '{"$ref":"#"}',
    '{"m.relates_to":5}', '{"membership":"join"}', "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP,
    "[" + ",".join(["1"] * 5000) + "]", "{" + ",".join(f'"k{n}":{n}' for n in range(3000)) + "}",
    "[" + ",".join(['"@x:example.jp"'] * 1200) + "]", "{" + ",".join(f'"@u{n}:example.jp":{{"D":"x"}}' for n in range(1200)) + "}",
    "undefined", "'x'", "{a:1}", "",
]
KEYS = ["", "a", "type", "user_id", "room_id", "sender", "auth", "content", "__proto__", "\u0000", "x" * 300, "m.relates_to", "m.mentions"]
# Path segments as they stand in the request.
SEGMENTS = [
    "", "x", "%00", "a%00b", "%FF%FE", "%C0%80", "%ED%A0%80", "..", ".", "%2e%2e", "%2F", "..%2F..%2F..%2Fetc%2Fpasswd", "%5C..%5C", "%", "%zz",
    "%2", "*", "%0d%0aX-Y:%20z", "%F0%9F%98%80", "%E3%81%82" * 100, "!", "!x", "!%3A", "!x:y", "@", "@:", "@x", "@x:example.jp", "%23x:example.jp",
    "$", "$x", "$" + "a" * 43, "%24" + "A" * 43, "a" * 255, "a" * 256, "a" * 5000, ";a=b", "a+b", "~", "-1", "0", "1e9", "99999999999999999999", "null",
    "%27%20OR%201%3D1", "m.room.member", "m.room.power_levels", "m.room.create", "m.fully_read", "m.push_rules", ".m.rule.master", "%E2%80%AE",
]
QUERIES = [
    "", "x", "-1", "0", "1", "1.5", "1e3", "9007199254740993", "99999999999999999999", "-9223372036854775809", "true", "TRUE", "null", "NaN", "%00", "%FF",
    "%", "%zz", "a" * 5000, "%E3%81%82" * 500, "{}", "[]", "%7B%22room%22%3A5%7D", "%7B%22limit%22%3A-1%7D", "%7B%22a%22%3A" * 100, "%7B%7D%7D",
    "h1_x_0_0", "h9_____", "t1_0", "p-1", "p99999999999999999999", "s0", "@x:y", "!x:y", "b", "f", "bf", "..", "%2e%2e%2f", "%0d%0a", "+", "&", "=", ";",
]
TYPES = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json; charset=utf-16", "application/xml",
         "image/png", "", "x", "/", "application/json;;;", "a" * 5000]
HEADS = [
    ("Authorization", b"Bearer"), ("Authorization", b"Bearer "), ("Authorization", b"Basic eDp5"), ("Authorization", b"Bearer \xff\xfe"),
    ("Authorization", b"Bearer " + b"x" * 5000), ("Authorization", b"bearer x"), ("Range", b"bytes=-1"), ("Range", b"bytes=5-1,,x"),
    ("Range", b"bytes=0-99999999999999999999"), ("Range", b"lines=1"), ("Content-Encoding", b"gzip"), ("Accept-Encoding", b"\xff"),
    ("Accept", b"text/html"), ("Accept-Language", b"\xe3\x81\x82"), ("If-None-Match", b'"x"'), ("If-Modified-Since", b"never"),
    ("Origin", b"null"), ("Origin", b"https://example.jp"), ("X-Forwarded-For", b"127.0.0.1"), ("Cookie", b"a=" + b"b" * 3000),
    ("Content-Length-X", b"-1"), ("Expect", b"x"), ("User-Agent", b"\x80" * 200),
]


@dataclasses.dataclass
class Request:
    """A request as its bytes go out."""

    method: str
    path: str
    headers: list[tuple[str, bytes]]
    body: bytes | None
    client: Client
    faults: list[str] = dataclasses.field(default_factory=list)
    value: Any = NO_BODY  # the body, where it is JSON
    query: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # as it goes out

    def __str__(self) -> str:
        body = "" if self.body is None else f" body {self.body[:200]!r}" + (f"… ({len(self.body)} bytes)" if len(self.body) > 200 else "")
        heads = [f"{name}: {value[:60]!r}" for name, value in self.headers if name != "Authorization" or len(value) < 20 or len(value) > 900]
        return f"{self.method} {self.path[:300]} [{', '.join(self.faults)}] {heads}{body}"


class _Text:
    """A JSON text to be put into a body as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


def _dump(value: Any) -> str:
    if isinstance(value, _Text):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_dump(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_dump, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _places(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place in a JSON value."""
    found = [at] if at else []
    if isinstance(value, dict):
        for key, one in value.items():
            found += _places(one, (*at, key))
    elif isinstance(value, list):
        for index, one in enumerate(value[:5]):
            found += _places(one, (*at, index))
    return found


def _named(schema: dict, at: tuple = (), depth: int = 0) -> list[tuple]:
    """Every place that a schema names."""
    if depth > 6 or not isinstance(schema, dict):
        return []
    found = []
    for name, one in schema.get("properties", {}).items():
        found.append((*at, name))
        found += _named(one, (*at, name), depth + 1)
    for word in ("allOf", "anyOf"):
        for one in schema.get(word, []):
            found += _named(one, at, depth + 1)
    return found


def _set(value: Any, at: tuple, new: Any) -> Any:
    """The value with another one at a place, which is made where it is not there."""
    if not at:
        return new
    first, *rest = at
    if isinstance(value, list) and isinstance(first, int) and first < len(value):
        return [_set(one, tuple(rest), new) if index == first else one for index, one in enumerate(value)]
    kept = dict(value) if isinstance(value, dict) else {}
    kept[first] = _set(kept.get(first, {}), tuple(rest), new)
    return kept


def _without(value: Any, at: tuple) -> Any:
    first, *rest = at
    if isinstance(value, list):
        return [one if index != first else _without(one, tuple(rest)) for index, one in enumerate(value) if rest or index != first]
    if not rest:
        return {key: one for key, one in value.items() if key != first}
    return {key: _without(one, tuple(rest)) if key == first else one for key, one in value.items()}


class Mutator:
    """Makes wrong requests of one operation."""

    def __init__(self, operation: spec.Operation, seed: str) -> None:
        self.operation = operation
        self.chance = random.Random(f"{seed}/{operation.name}")
        self.places = _named(operation.body or {})
        self.queries = [one.name for one in operation.parameters if one.where == "query"]
        kinds = ["query", "head", "path"]
        if "{" in operation.path:
            kinds += ["path"] * 3
        if self.queries:
            kinds += ["query"] * 4
        if operation.body is not None:
            kinds += ["value"] * 8 + ["text"] * 3 + ["type"]
        if operation.binary:
            kinds += ["type"] * 2 + ["text"]
        self.kinds = kinds

    def request(self, call: Call) -> Request:
        """One wrong request."""
        self._body = None if call.body is NO_BODY else call.body
        self._text: bytes | None = call.raw
        self._path, self._query = dict(call.path), [(name, quote(str(value))) for name, value in call.query.items()]
        self._segments: dict[str, str] = {}
        self._method, self._type = self.operation.method, call.headers.get("Content-Type", "application/json")
        self._heads: list[tuple[str, bytes]] = []
        self._faults: list[str] = []
        for _ in range(1 if self.chance.random() < 0.8 else 2):
            getattr(self, f"_change_{self.chance.choice(self.kinds)}")()
        path = re.sub(r"\{(\w+)\}", lambda found: self._segments.get(found[1], quote(self._path.get(found[1], ""))), self.operation.path)
        if self._query:
            path += "?" + "&".join(f"{name}={value}" for name, value in self._query)
        value: Any = NO_BODY
        if self._text is None and self._body is not None:
            self._text = _dump(self._body).encode("utf-8", "surrogatepass")
        if self._text is not None:
            try:
                value = json.loads(self._text, parse_constant=lambda _: 1 / 0)
            except (ValueError, ZeroDivisionError, RecursionError):
                pass
        client = call.client
        assert client is not None
        heads = [] if call.anonymous else [("Authorization", f"Bearer {client.token}".encode())]
        if self._text is not None and self._type is not None:
            heads.append(("Content-Type", self._type.encode()))
        for name, given in self._heads:
            heads = [(other, kept) for other, kept in heads if other != name] + [(name, given)]
        return Request(self._method, path, heads, self._text, client, self._faults, value, self._query)

    def _note(self, fault: str) -> None:
        self._faults.append(fault[:120])

    def _change_value(self) -> None:
        """Somewhere in the body something else."""
        body = self._body if isinstance(self._body, dict) else {}
        draw = self.chance.random()
        there = _places(body)
        if draw < 0.2 and there:
            at = self.chance.choice(there)
            self._note(f"without {at}")
            self._body = _without(body, at)
        elif draw < 0.3:
            text = self.chance.choice(VALUES)
            self._note(f"the whole body {text[:20]}")
            self._body = _Text(text)
        elif draw < 0.4:
            at = (*self.chance.choice([()] + [place for place in there]), self.chance.choice(KEYS))
            text = self.chance.choice(VALUES)
            self._note(f"a further {at}: {text[:20]}")
            self._body = _set(body, at, _Text(text))
        else:
            at = self.chance.choice((there or [()]) if draw < 0.7 or not self.places else self.places)
            text = self.chance.choice(VALUES)
            self._note(f"{at}: {text[:20]}")
            self._body = _set(body, at, _Text(text))

    def _change_text(self) -> None:
        """The bytes of the body."""
        text = bytearray(self._text if self._text is not None else _dump(self._body if self._body is not None else {}).encode())
        what = self.chance.choice(["cut", "noise", "bytes", "mark", "utf-16", "twice", "empty", "large", "key twice", "trailing"])
        self._note(f"text: {what}")
        place = self.chance.randrange(len(text) + 1)
        match what:
            case "cut":
                text = text[:place]
            case "noise":
                for _ in range(self.chance.randint(1, 8)):
                    if text:
                        text[self.chance.randrange(len(text))] = self.chance.randrange(256)
            case "bytes":
                text[place:place] = self.chance.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\x01", b"\xf8\x88\x80\x80\x80", b"\\u0000"])
            case "mark":
                text = bytearray(b"\xef\xbb\xbf") + text
            case "utf-16":
                text = bytearray(text.decode(errors="replace").encode("utf-16"))
            case "twice":
                text = text + text
            case "empty":
                text = bytearray()
            case "large":
                text = bytearray(b'{"x":"' + b"y" * self.chance.choice([300_000, 1_048_000, 1_500_000]) + b'"}')
            case "key twice":
                text = bytearray(b'{"a":1,"\\u0061":2,') + text[1:] if text[:1] == b"{" else text
            case "trailing":
                text = text + b",}"
        self._text = bytes(text)

    def _change_path(self) -> None:
        names = re.findall(r"\{(\w+)\}", self.operation.path)
        if not names or self.chance.random() < 0.03:
            self._method = "PATCH"
            self._note("method PATCH")
            return
        name, segment = self.chance.choice(names), self.chance.choice(SEGMENTS)
        self._note(f"path {name}={segment[:20]}")
        self._segments[name] = segment

    def _change_query(self) -> None:
        name = self.chance.choice(self.queries) if self.queries and self.chance.random() < 0.85 else self.chance.choice(
            ["x", "", "user_id", "device_id", "access_token", "filter", "from", "limit", "%00", "%FF", "a[]"])
        value = self.chance.choice(QUERIES)
        draw = self.chance.random()
        if draw < 0.15:
            self._note(f"query without {name}")
            self._query = [(other, given) for other, given in self._query if other != name]
        elif draw < 0.3:
            self._note(f"query {name} twice: {value[:20]}")
            self._query.append((name, value))
        else:
            self._note(f"query {name}={value[:20]}")
            self._query = [(other, given) for other, given in self._query if other != name] + [(name, value)]

    def _change_head(self) -> None:
        name, value = self.chance.choice(HEADS)
        self._note(f"{name}: {value[:20]!r}")
        self._heads.append((name, value))

    def _change_type(self) -> None:
        self._type = self.chance.choice(TYPES)
        self._note(f"type {self._type[:20]}")
