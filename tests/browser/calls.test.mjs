// Every call that Element Web 1.12.10 and 1.11.81 were recorded making against a server that allows encryption
// (element-web-calls.tsv: method, path, statuses), made again with a certificate: each answers a recorded status, or
// the refusal that this city's policy has in its place.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { deflateSync } from "node:zlib";

/** What a city answers otherwise, and why. */
const POLICY = {
    // Encryption is forbidden (DESIGN 13), so there are no cross-signing keys and no backup of keys.
    "POST /_matrix/client/v3/keys/device_signing/upload": [403, "M_FORBIDDEN"],
    "POST /_matrix/client/v3/keys/signatures/upload": [403, "M_FORBIDDEN"],
    "POST /_matrix/client/v3/room_keys/version": [403, "M_FORBIDDEN"],
    // The city invites (DESIGN 14).
    "POST /_matrix/client/v3/rooms/{roomId}/invite": [403, "M_FORBIDDEN"],
    "PUT /_matrix/client/v3/rooms/{roomId}/state/m.room.avatar/": [403, "M_FORBIDDEN"],
    // Element looks into the room of its address bar before its first sync; nobody looks in from outside here, and
    // Element goes on after exactly this answer.
    "GET /_matrix/client/v3/rooms/{roomId}/initialSync": [403, "M_FORBIDDEN"],
    "GET /_matrix/client/v3/events": [403, "M_FORBIDDEN"],
    // Only an address that was confirmed gets mail (REQUIREMENTS H17).
    "POST /_matrix/client/v3/pushers/set": [400, "M_INVALID_PARAM"],
    // Media without a token are gone (client-server API 1.11, "Content repository"): a patient's pictures need one.
    "GET /_matrix/media/v3/download/{serverName}/{mediaId}": [404, "M_NOT_FOUND"],
    "GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}": [404, "M_NOT_FOUND"],
};

/** Not in the specification: a server that does not know them says so, in the way that clients understand. */
const UNRECOGNIZED = /\/unstable\//;

export function callsTests(test, { city, facility }) {
    test("every call of Element Web's first minute is answered as recorded, or by the city's policy", async () => {
        const [alice, bob] = [
            await city.enrol(await city.person(facility, "中村愛")),
            await city.enrol(await city.person(facility, "小林望")),
        ];
        const logIn = { type: "m.login.password", identifier: { type: "m.id.user", user: alice.loginId }, password: alice.password };
        const call = async (person, method, path, body) => {
            const answer = await city.api(person, method, path, body);
            assert.equal(answer.status, 200, `${method} ${path}: ${answer.text}`);
            return JSON.parse(answer.text);
        };
        for (const person of [alice, bob]) {
            const session = await call(person, "POST", "/_matrix/client/v3/login", {
                ...logIn,
                identifier: { type: "m.id.user", user: person.loginId },
            });
            [person.token, person.device] = [session.access_token, session.device_id];
        }
        const { room_id: room } = await city.call("POST", "rooms", {
            case: "calls", kind: "association", name: "訪問看護部会", members: [alice.userId, bob.userId],
            opening_notice: "開設しました。", requested_by: null, confirm_second: false,
        }); // prettier-ignore
        const client = "/_matrix/client/v3";
        const inRoom = `${client}/rooms/${encodeURIComponent(room)}`;
        const send = (body) => call(alice, "PUT", `${inRoom}/send/m.room.message/${crypto.randomUUID()}`, body);
        const { event_id: event } = await send({ msgtype: "m.text", body: "本文" });
        const { event_id: wrong } = await send({ msgtype: "m.text", body: "誤り" });
        const uploaded = await city.api(alice, "POST", "/_matrix/media/v3/upload?filename=a.png", png(), { "content-type": "image/png" });
        const [, , , media] = JSON.parse(uploaded.text).content_uri.split("/");
        await send({ msgtype: "m.image", body: "a.png", url: JSON.parse(uploaded.text).content_uri });
        const { next_batch: since } = await call(alice, "GET", `${client}/sync?timeout=0`);
        const { filter_id: filter } = await call(alice, "POST", `${client}/user/${encodeURIComponent(alice.userId)}/filter`, {});
        const direct = await call(bob, "POST", `${client}/createRoom`, { is_direct: true, invite: [alice.userId], preset: "trusted_private_chat" });
        const deviceKeys = {
            user_id: alice.userId, device_id: alice.device, algorithms: ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            keys: { [`curve25519:${alice.device}`]: "A".repeat(43), [`ed25519:${alice.device}`]: "B".repeat(43) },
            signatures: { [alice.userId]: { [`ed25519:${alice.device}`]: "C".repeat(86) } },
        }; // prettier-ignore

        const values = {
            roomId: room, eventId: event, userId: alice.userId, serverName: city.name, mediaId: media, filterId: filter,
            deviceId: alice.device, txnId: "txn",
        }; // prettier-ignore
        /** Queries and bodies, as Element sends them. */
        const given = {
            "GET /_matrix/client/v1/media/download/{serverName}/{mediaId}": { query: "allow_redirect=true" },
            "GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}": { query: "allow_redirect=true&width=96&height=96&method=crop" },
            "GET /_matrix/media/v3/download/{serverName}/{mediaId}": { query: "allow_redirect=true" },
            "GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}": { query: "allow_redirect=true&width=96&height=96&method=crop" },
            "GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}": { query: "dir=b&org.matrix.msc3981.recurse=true&recurse=true" },
            "POST /_matrix/client/v3/createRoom": { body: { is_direct: true, invite: [bob.userId], preset: "trusted_private_chat", visibility: "private" } },
            "GET /_matrix/client/v3/events": { query: `room_id=${encodeURIComponent(room)}&timeout=0&from=${since}` },
            "POST /_matrix/client/v3/join/{roomId}": { values: { roomId: direct.room_id }, body: {} },
            "POST /_matrix/client/v3/keys/device_signing/upload": { body: {} },
            "POST /_matrix/client/v3/keys/query": { body: { device_keys: { [bob.userId]: [] } } },
            "POST /_matrix/client/v3/keys/signatures/upload": { body: {} },
            "POST /_matrix/client/v3/keys/upload": { body: { device_keys: deviceKeys } },
            "POST /_matrix/client/v3/login": { body: logIn },
            "POST /_matrix/client/v3/logout": { last: true, body: {} },
            "POST /_matrix/client/v3/pushers/set": {
                body: {
                    kind: "email", app_id: "m.email", pushkey: "ai@example.jp", app_display_name: "Email Notifications",
                    device_display_name: "ai@example.jp", lang: "ja", data: { brand: "Element" }, append: true,
                }, // prettier-ignore
            },
            "POST /_matrix/client/v3/room_keys/version": { body: { algorithm: "m.megolm_backup.v1.curve25519-aes-sha2", auth_data: { public_key: "A".repeat(43) } } },
            "GET /_matrix/client/v3/rooms/{roomId}/initialSync": { query: "limit=20" },
            "POST /_matrix/client/v3/rooms/{roomId}/invite": { body: { user_id: bob.userId } },
            "GET /_matrix/client/v3/rooms/{roomId}/members": { query: `not_membership=leave&at=${since}` },
            "GET /_matrix/client/v3/rooms/{roomId}/messages": { query: `dir=b&limit=20&from=${since}&filter=${encodeURIComponent('{"lazy_load_members":true}')}` },
            "POST /_matrix/client/v3/rooms/{roomId}/read_markers": { body: { "m.fully_read": event, "m.read": event, "m.read.private": event } },
            "POST /_matrix/client/v3/rooms/{roomId}/receipt/m.read/{eventId}": { body: { thread_id: "main" } },
            "PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}": { values: { eventId: wrong }, body: {} },
            "PUT /_matrix/client/v3/rooms/{roomId}/send/m.reaction/{txnId}": { body: { "m.relates_to": { rel_type: "m.annotation", event_id: event, key: "👍" } } },
            "PUT /_matrix/client/v3/rooms/{roomId}/send/m.room.message/{txnId}": { body: { msgtype: "m.text", body: "本文", "m.mentions": {} } },
            "PUT /_matrix/client/v3/rooms/{roomId}/state/m.room.avatar/": { body: { url: `mxc://${city.name}/${media}` } },
            "PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}": { body: { typing: true, timeout: 20000 } },
            "POST /_matrix/client/v3/search": {
                body: {
                    search_categories: {
                        room_events: {
                            search_term: "本文", filter: { rooms: [room] }, order_by: "recent",
                            event_context: { before_limit: 1, after_limit: 1, include_profile: true },
                        },
                    },
                }, // prettier-ignore
            },
            "GET /_matrix/client/v3/sync": {
                query: `filter=${filter}&timeout=0&set_presence=offline&since=${since}&org.matrix.msc4222.use_state_after=true&_cacheBuster=1`,
            },
            "PUT /_matrix/client/v3/user/{userId}/account_data/im.vector.setting.breadcrumbs": { body: { recent_rooms: [room] } },
            "PUT /_matrix/client/v3/user/{userId}/account_data/im.vector.web.settings": { body: { "UserSettings.x": true } },
            "PUT /_matrix/client/v3/user/{userId}/account_data/io.element.recent_emoji": { body: { recent_emoji: [["👍", 1]] } },
            "PUT /_matrix/client/v3/user/{userId}/account_data/org.matrix.msc3890.local_notification_settings.{deviceId}": { body: { is_silenced: false } },
            "POST /_matrix/client/v3/user/{userId}/filter": { body: { room: { state: { lazy_load_members: true } } } },
            "POST /_matrix/client/v3/user_directory/search": { body: { search_term: "小林", limit: 10 } },
            "POST /_matrix/media/v3/upload": { query: "filename=b.png", body: png(), type: "image/png" },
        };

        const calls = readFileSync(new URL("element-web-calls.tsv", import.meta.url), "utf8")
            .trim().split("\n").slice(1).map((line) => line.split("\t")); // prettier-ignore
        // Logging out comes last: the others need the token.
        calls.sort(([am, ap], [bm, bp]) => Number(given[`${am} ${ap}`]?.last ?? false) - Number(given[`${bm} ${bp}`]?.last ?? false));
        const different = [];
        for (const [method, path, statuses] of calls) {
            const name = `${method} ${path}`;
            const { query, body, type, values: own } = given[name] ?? {};
            assert.ok(body || !["POST", "PUT"].includes(method), `${name} needs a body`);
            const filled = path.replace(/\{(\w+)\}/g, (_, key) => encodeURIComponent(own?.[key] ?? values[key]));
            const answer = await city.api(alice, method, query ? `${filled}?${query}` : filled, body, type && { "content-type": type });
            const json = answer.headers["content-type"] === "application/json";
            const code = answer.status < 400 ? "" : json ? JSON.parse(answer.text).errcode : answer.headers["content-type"];
            const policy = POLICY[name];
            const right = policy
                ? answer.status === policy[0] && code === policy[1]
                : statuses.split(",").includes(String(answer.status)) && (answer.status !== 404 || !UNRECOGNIZED.test(path) || code === "M_UNRECOGNIZED");
            if (!right) different.push(`${name}: ${answer.status} ${code}, recorded ${statuses}${policy ? `, policy ${policy.join(" ")}` : ""}`);
        }
        assert.deepEqual(different, []);
    });

    test("an unknown endpoint is 404 M_UNRECOGNIZED, although a web client is served at /", async () => {
        const person = await city.enrol(await city.person(facility, "加藤実"));
        for (const method of ["GET", "POST", "PUT", "DELETE"]) {
            for (const path of ["/_matrix/client/v3/nothing", "/_matrix/nothing", "/_heya/nothing"]) {
                const answer = await city.api(person, method, path, method === "GET" ? undefined : {});
                assert.equal(answer.headers["content-type"], "application/json", `${method} ${path}`);
                assert.deepEqual([answer.status, JSON.parse(answer.text).errcode], [404, "M_UNRECOGNIZED"], `${method} ${path}`);
            }
        }
        const wrong = await city.api(person, "POST", "/_matrix/client/versions", {});
        assert.deepEqual([wrong.status, JSON.parse(wrong.text).errcode], [405, "M_UNRECOGNIZED"]);
    });
}

/** A grey PNG of 128 × 128 pixels. */
function png() {
    const chunk = (type, data) => {
        const body = Buffer.concat([Buffer.from(type), data]);
        const framed = Buffer.alloc(body.length + 8);
        framed.writeUInt32BE(data.length, 0);
        body.copy(framed, 4);
        framed.writeUInt32BE(crc32(body), body.length + 4);
        return framed;
    };
    const header = Buffer.alloc(13);
    header.writeUInt32BE(128, 0);
    header.writeUInt32BE(128, 4);
    header[8] = 8; // bits; colour type 0 is grey
    const rows = Buffer.alloc(128 * 129, 0x90);
    for (let row = 0; row < 128; row += 1) rows[row * 129] = 0; // no filter
    return Buffer.concat([
        Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
        chunk("IHDR", header),
        chunk("IDAT", deflateSync(rows)),
        chunk("IEND", Buffer.alloc(0)),
    ]);
}

/** PNG's checksum (ISO/IEC 15948, annex D). */
function crc32(bytes) {
    let crc = ~0;
    for (const byte of bytes) {
        crc ^= byte;
        for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc >>> 0;
}
