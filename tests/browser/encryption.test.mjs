// A city that allows encryption: two people with matrix-js-sdk and its Rust crypto get an identity without a second
// password, talk in an encrypted room that they open themselves, and one of them keeps a backup of the keys.

import assert from "node:assert/strict";
import { eventually, newPage } from "./browser.mjs";

export function encryptionTests(test, { browser, sealed }) {
    const people = {};
    let room;

    test("encryption allowed: the first identity takes no password", async () => {
        const city = sealed();
        const facility = await city.facility("あおば訪問看護ステーション");
        for (const [key, name] of [["hanako", "伊藤花子"], ["taro", "渡辺太郎"]]) {
            people[key] = await city.enrol(await city.person(facility, name));
            people[key].page = await newPage(browser(), city.certificate(people[key]));
        }
        await city.call("POST", "rooms", {
            case: "1",
            kind: "association",
            name: "在宅医療連携会議",
            subject: null,
            members: [people.hanako.userId, people.taro.userId],
            opening_notice: "部屋を開設しました。",
            requested_by: null,
            confirm_second: false,
        });
        for (const { page, loginId, password } of Object.values(people)) {
            await page.goto(city.origin);
            await page.evaluate(([id, password]) => window.logIn(id, password), [loginId, password]);
            await page.evaluate(async () => {
                // No `auth`: where the server asked for one, this would fail.
                await window.client.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: (send) => send(null) });
            });
            // The client believes it when it has read its own keys back.
            const identity = async () => {
                const crypto = window.client.getCrypto();
                const me = window.client.getUserId();
                const status = await crypto.getDeviceVerificationStatus(me, window.client.getDeviceId());
                return [await crypto.userHasCrossSigningKeys(me, true), status?.signedByOwner];
            };
            await eventually(page, identity, null, [true, true]);
        }
    });

    test("encryption allowed: two people read each other in an encrypted room, the server does not", async () => {
        const { hanako, taro } = people;
        room = await hanako.page.evaluate(async (other) => {
            const { room_id } = await window.client.createRoom({
                is_direct: true,
                invite: [other],
                initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
            });
            return room_id;
        }, taro.userId);
        await taro.page.waitForFunction((id) => window.client.getRoom(id)?.getMyMembership() === "invite", room);
        await taro.page.evaluate((id) => window.client.joinRoom(id).then(() => {}), room);
        for (const [from, to, text] of [[hanako, taro, "昨夜から発熱があります"], [taro, hanako, "明日の朝に伺います"]]) {
            await from.page.waitForFunction((id) => window.client.getRoom(id)?.getJoinedMemberCount() === 2, room);
            const eventId = await from.page.evaluate(
                ([id, body]) => window.client.sendMessage(id, { msgtype: "m.text", body }).then((sent) => sent.event_id),
                [room, text],
            );
            await to.page.waitForFunction(
                ([id, eventId]) => window.eventOf(id, eventId)?.getContent().body !== undefined,
                [room, eventId],
            );
            const read = await to.page.evaluate(
                ([id, eventId]) => {
                    const event = window.eventOf(id, eventId);
                    return [event.isEncrypted(), event.isDecryptionFailure(), event.getContent().body, event.getWireType()];
                },
                [room, eventId],
            );
            assert.deepEqual(read, [true, false, text, "m.room.encrypted"]);
            const stored = await from.page.evaluate(
                ([id, eventId]) => window.client.fetchRoomEvent(id, eventId),
                [room, eventId],
            );
            assert.equal(stored.type, "m.room.encrypted");
            assert.ok(!JSON.stringify(stored).includes(text));
        }
    });

    test("encryption allowed: a key backup is made, and the keys of the room get into it", async () => {
        const { page } = people.hanako;
        // By chance, the SDK would wait for up to ten seconds before it uploads keys.
        await page.evaluate(() => (Math.random = () => 0));
        await page.evaluate(() => window.client.getCrypto().resetKeyBackup());
        // One session that she writes with, and one that she reads. (What the SDK says of a backup is as old as the backup.)
        const backup = async () => {
            const headers = { authorization: `Bearer ${window.client.getAccessToken()}` };
            const { count, version } = await fetch("/_matrix/client/v3/room_keys/version", { headers }).then((answer) => answer.json());
            return [count, version, await window.client.getCrypto().getActiveSessionBackupVersion()];
        };
        await eventually(page, backup, null, [2, "1", "1"]);
    });

    test("encryption allowed: a new device reads what was written before it, with the keys of the backup", async () => {
        const city = sealed();
        const { hanako } = people;
        const key = await hanako.page.evaluate(() => window.client.getCrypto().getSessionBackupPrivateKey().then((key) => [...key]));
        const page = await newPage(browser(), city.certificate(hanako));
        await page.goto(city.origin);
        await page.evaluate(([id, password]) => window.logIn(id, password), [hanako.loginId, hanako.password]);
        const bodies = (id) => {
            const messages = window.client.getRoom(id).getLiveTimeline().getEvents().filter((event) => event.getWireType() === "m.room.encrypted");
            return messages.map((event) => (event.isDecryptionFailure() ? null : event.getContent().body));
        };
        await eventually(page, bodies, room, [null, null]);
        const restored = await page.evaluate(async (key) => {
            const crypto = window.client.getCrypto();
            const { version } = await crypto.getKeyBackupInfo();
            await crypto.storeSessionBackupPrivateKey(new Uint8Array(key), version);
            const { total, imported } = await crypto.restoreKeyBackup();
            return [total, imported];
        }, key);
        assert.deepEqual(restored, [2, 2]);
        await eventually(page, bodies, room, ["昨夜から発熱があります", "明日の朝に伺います"]);
        await page.context().close();
    });
}
