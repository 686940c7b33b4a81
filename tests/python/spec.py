"""The Matrix specification's own data (OpenAPI and event schemas, v1.19), read for the contract tests.

The data is not part of the repository: MATRIX_SPEC_DIR says where it is (`../shared/matrix-spec` by default). Nothing is
fetched: every `$ref` is relative and is put in place here.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import os
import pathlib
import re
from typing import Any, Iterator

import yaml
from jsonschema import Draft202012Validator, FormatChecker

from harness import ROOT

FOLDER = pathlib.Path(os.environ.get("MATRIX_SPEC_DIR") or ROOT.parent / "shared" / "matrix-spec")
DATA = FOLDER / "data"
ENDPOINTS = ROOT / "tests" / "endpoints.tsv"
METHODS = ("get", "put", "post", "delete")
WHY_NOT = f"no specification data at {FOLDER}: set MATRIX_SPEC_DIR"

# Client-server API, "Standard error response": the codes of the specification's text. Those of single endpoints are read
# from the data.
COMMON_CODES = frozenset("""
M_FORBIDDEN M_UNKNOWN_TOKEN M_MISSING_TOKEN M_USER_LOCKED M_USER_SUSPENDED M_BAD_JSON M_NOT_JSON M_NOT_FOUND
M_LIMIT_EXCEEDED M_UNRECOGNIZED M_UNKNOWN M_UNAUTHORIZED M_USER_DEACTIVATED M_USER_IN_USE M_INVALID_USERNAME M_ROOM_IN_USE
M_INVALID_ROOM_STATE M_THREEPID_IN_USE M_THREEPID_NOT_FOUND M_THREEPID_AUTH_FAILED M_THREEPID_DENIED M_SERVER_NOT_TRUSTED
M_UNSUPPORTED_ROOM_VERSION M_INCOMPATIBLE_ROOM_VERSION M_BAD_STATE M_GUEST_ACCESS_FORBIDDEN M_CAPTCHA_NEEDED
M_CAPTCHA_INVALID M_MISSING_PARAM M_INVALID_PARAM M_TOO_LARGE M_EXCLUSIVE M_RESOURCE_LIMIT_EXCEEDED
M_CANNOT_LEAVE_SERVER_NOTICE_ROOM M_THREEPID_MEDIUM_NOT_SUPPORTED M_UNKNOWN_DEVICE
""".split())


class _Loader(yaml.CSafeLoader):
    """YAML 1.2's scalars: no dates, and no booleans but true and false."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers
            if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:bool")]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


@functools.cache
def _raw(path: pathlib.Path) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file) if path.suffix == ".json" else yaml.load(file, _Loader)  # noqa: S506: a safe loader


_placed: dict[tuple[pathlib.Path, str], Any] = {}


def _follow(file: pathlib.Path, reference: str) -> Any:
    name, _, pointer = reference.partition("#")
    path = (file.parent / name).resolve() if name else file
    key = (path, pointer)
    if key in _placed:
        return _placed[key]
    # Known before it is whole: a schema may contain itself.
    holder: dict[str, Any] = {}
    _placed[key] = holder
    node = _raw(path)
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        node = node[int(part)] if isinstance(node, list) else node[part]
    done = _place(node, path)
    if not isinstance(done, dict):
        _placed[key] = done
        return done
    holder.update(done)
    return holder


def _place(node: Any, file: pathlib.Path, names: bool = False) -> Any:
    """The node with its references in place. `names`: its keys are names of properties, not words of a schema."""
    if isinstance(node, list):
        return [_place(one, file) for one in node]
    if not isinstance(node, dict):
        return node
    if not names and isinstance(node.get("$ref"), str):
        target = _follow(file, node["$ref"])
        beside = {key: value for key, value in node.items()
                  if key not in ("$ref", "description", "title", "example", "examples") and not key.startswith("x-")}
        return {"allOf": [target], **_place(beside, file)} if beside else target
    kept = {}
    for key, value in node.items():
        if not names and (key in ("example", "examples", "$schema", "$id") or str(key).startswith("x-")):
            continue
        if not names and key == "oneOf":
            # Its alternatives overlap: what is a whole event is an event's content as well.
            key = "anyOf"
        kept[str(key)] = _place(value, file, not names and key in ("properties", "patternProperties"))
    return kept


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A row of endpoints.tsv."""

    api: str
    method: str
    path: str
    operation: str
    auth: str
    deprecated: bool
    added_in: str
    summary: str

    @property
    def shape(self) -> tuple[str, str]:
        """Method and path without the names of its parameters."""
        return self.method, shape(self.path)


def shape(path: str) -> str:
    return re.sub(r"\{\w+\}", "{}", path)


@functools.cache
def endpoints() -> list[Endpoint]:
    """The operations that concern a homeserver's clients and appservices."""
    with open(ENDPOINTS, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Endpoint(row["api"], row["method"], row["path"], row["operationId"], row["auth"], row["deprecated"] == "y",
                     row["added_in"], row["summary"])
            for row in rows if row["api"] in ("client-server", "application-service")]


@dataclasses.dataclass
class Parameter:
    """A parameter of the path, the query or the head."""

    where: str
    name: str
    required: bool
    schema: dict


@dataclasses.dataclass
class Operation:
    """One operation of the client-server API."""

    name: str
    method: str
    path: str
    parameters: list[Parameter]
    body: dict | None  # the JSON schema of its body
    binary: bool  # its body is a file
    responses: dict[str, dict]
    file: str

    def schema(self, status: int) -> dict | None:
        """The schema of a JSON answer."""
        for kind, content in self.responses.get(str(status), {}).get("content", {}).items():
            if kind == "application/json":
                return content.get("schema", {})
        return None

    @functools.cached_property
    def codes(self) -> frozenset[str]:
        """The error codes that its description and examples name."""
        return frozenset(re.findall(r"\bM_[A-Z_]+\b", json.dumps(self._described, ensure_ascii=False)))

    _described: Any = None


@functools.cache
def operations() -> dict[str, Operation]:
    """All operations of the client-server API, by operationId."""
    found: dict[str, Operation] = {}
    for file in sorted((DATA / "api" / "client-server").glob("*.yaml")):
        whole = _raw(file)
        base = whole["servers"][0]["variables"]["basePath"]["default"]
        for path, item in whole.get("paths", {}).items():
            for method in METHODS:
                if method not in item:
                    continue
                raw = item[method]
                operation = _place(raw, file)
                parameters = [Parameter(one["in"], one["name"], bool(one.get("required")), one.get("schema", {}))
                              for one in operation.get("parameters", [])]
                content = operation.get("requestBody", {}).get("content", {})
                body = content.get("application/json", {}).get("schema")
                name = operation["operationId"]
                assert name not in found, name
                found[name] = Operation(name, method.upper(), base + path.strip(), parameters, body,
                                        bool(content) and body is None, operation["responses"], file.name,
                                        _described=raw["responses"])
    return found


@functools.cache
def all_codes() -> frozenset[str]:
    """Every error code that the specification knows."""
    named: set[str] = set(COMMON_CODES)
    for file in (DATA / "api" / "client-server").rglob("*.yaml"):
        named.update(re.findall(r"\bM_[A-Z_]+\b", file.read_text(encoding="utf-8")))
    return frozenset(named)


# Validation ----------------------------------------------------------------------------------------------------------

_SERVER = r"(?:[A-Za-z0-9.-]{1,230}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?"
# Appendices, "Identifier Grammar". Room ids of version 12 name no server.
_FORMATS = {
    "mx-user-id": rf"@[^:\0]+:{_SERVER}", "mx-event-id": r"\$[^\0]+", "mx-room-id": r"![^\0]+",
    "mx-room-alias": rf"#[^:\0]+:{_SERVER}", "mx-server-name": _SERVER, "mx-mxc-uri": rf"mxc://{_SERVER}/[A-Za-z0-9_-]+",
    "mx-unpadded-base64": r"[A-Za-z0-9+/]*", "mx-urlsafe-unpadded-base64": r"[A-Za-z0-9_-]*",
}
_checker = FormatChecker(formats=())
for _name, _pattern in _FORMATS.items():
    _checker.checks(_name)(lambda value, pattern=re.compile(_pattern): not isinstance(value, str) or bool(pattern.fullmatch(value)))


def faults(value: Any, schema: dict, limit: int = 5) -> list[str]:
    """What is wrong with a value; nothing where it is valid."""
    found = []
    for error in Draft202012Validator(schema, format_checker=_checker).iter_errors(value):
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        found.append(f"{place or 'the answer'}: {error.message[:300]}")
        if len(found) == limit:
            break
    return found


def wrong_places(value: Any, schema: dict) -> list[str]:
    """Where a value is wrong, by the names of members that the schema itself has (not those of ids and numbers)."""
    found = []
    for error in Draft202012Validator(schema, format_checker=FormatChecker(formats=())).iter_errors(value):
        place = ".".join(str(part) for part in error.absolute_path if isinstance(part, str) and re.fullmatch(r"[a-z_.]+", part))
        found.append(place or ("the whole" if not error.absolute_path and error.validator == "type" else "a required member"))
    return list(dict.fromkeys(found))


@functools.cache
def _content_schema(kind: str) -> dict | None:
    file = DATA / "event-schemas" / "schema" / f"{kind}.yaml"
    if not re.fullmatch(r"m\.[a-z_.]{1,60}", kind) or not file.is_file():
        return None
    return _place(_raw(file), file).get("properties", {}).get("content")


def events(value: Any) -> Iterator[dict]:
    """Everything in an answer that looks like an event."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str) and isinstance(value.get("content"), dict):
            yield value
        for one in value.values():
            yield from events(one)
    elif isinstance(value, list):
        for one in value:
            yield from events(one)


def event_faults(value: Any) -> list[str]:
    """What is wrong with the contents of the events in an answer, by the event schemas."""
    found = []
    for event in events(value):
        schema = _content_schema(event["type"])
        if schema and "redacted_because" not in event.get("unsigned", {}):
            found += [f"{event['type']}: {fault}" for fault in faults(event["content"], schema)]
    return found
