// A Matrix client in the browser, behind the certificate: matrix-js-sdk, the engine of Element Web, in a page that the
// server serves from its own origin. Two people in two profiles, each with a certificate.

import assert from "node:assert/strict";
import { newPage, shoot } from "./browser.mjs";

/** Answers that Chromium logs as errors and that are right: what was asked for, and why. */
const RIGHT_REFUSALS = [
    // No key backup where the city forbids encryption (client-server API, "GET /room_keys/version": M_NOT_FOUND).
    [404, /\/_matrix\/client\/v3\/room_keys\/version/],
    // No OAuth, no calls, no dehydrated devices: the SDK asks and goes on without.
    [404, /\/_matrix\/client\/(v1\/auth_metadata|unstable\/org\.matrix\.msc(2965|3814|4143))/],
    // Asked for by the tests below.
    [400, /\/_matrix\/client\/v3\/pushers\/set/],
    [403, /\/_matrix\/client\/v3\/rooms\/[^/]+\/state\/m\.room\.encryption/],
    [401, /\/_matrix\/client\/v3\/account\/whoami/],
    // User-interactive authentication begins with 401; a wrong step, a weak password, an address not confirmed yet.
    [401, /\/_matrix\/client\/v3\/account\/(3pid\/add|password)\)$/],
    [400, /\/_matrix\/client\/v3\/account\/(3pid\/add|password)\)$/],
    [403, /\/_matrix\/client\/v3\/account\/(3pid\/add|password)\)$/],
];

export function clientTests(test, { browser, city, facility }) {
    const people = {};
    let room;

    test("the client's page has our script before its own, a policy, and a config of this city", async () => {
        for (const [key, name] of [["hanako", "伊藤花子"], ["taro", "渡辺太郎"]]) {
            people[key] = await city.enrol(await city.person(facility, name));
            people[key].page = await newPage(browser(), city.certificate(people[key]));
        }
        room = (
            await city.call("POST", "rooms", {
                case: "1",
                kind: "subject",
                name: "山田さんの部屋",
                subject: { name: "山田うめ", birth_date: "1940-05-01", address: "〇〇市1-2-3", eligibility: "home", approval_note: "" },
                members: [people.hanako.userId, people.taro.userId],
                opening_notice: "部屋を開設しました。",
                requested_by: null,
                confirm_second: false,
            })
        ).room_id;
        const { page } = people.hanako;
        const answer = await page.goto(city.origin);
        assert.equal(answer.status(), 200);
        const policy = answer.headers()["content-security-policy"];
        for (const part of ["default-src 'none'", "script-src 'self' 'wasm-unsafe-eval'", "connect-src 'self'", "frame-ancestors"]) {
            assert.ok(policy.includes(part), `${part} is not in ${policy}`);
        }
        assert.ok(!/https?:|\*/.test(policy), `the policy names another origin: ${policy}`);
        assert.equal(answer.headers()["x-content-type-options"], "nosniff");
        const scripts = await page.evaluate(() => [...document.scripts].map((script) => [script.getAttribute("src"), script.type]));
        assert.deepEqual(scripts, [["/_heya/certificate.js", ""], ["main.js", "module"]]);
        const config = await page.evaluate(async () => (await fetch("/config.json")).json());
        assert.deepEqual(config.default_server_config["m.homeserver"], { base_url: city.origin, server_name: city.name });
        assert.equal(config.disable_guests, true);
        assert.equal(config.setting_defaults.language, "ja");
        // Nothing in it leads outside but what the city itself links to (city.mjs).
        assert.deepEqual(new Set(JSON.stringify(config).match(/https?:\/\/[^"/]+/g)), new Set([city.origin, city.enrolOrigin, "https://www.example.jp"]));
        assert.equal(await page.evaluate(async () => (await fetch("/no/such/file.js")).status), 404);
        page.watched.errors.length = 0; // that 404
    });

    test("a request without credentials carries them after all, so Firefox shows the certificate", async () => {
        const { page } = people.hanako;
        assert.equal(await page.evaluate(() => /native code/.test(Function.prototype.toString.call(window.fetch))), false);
        // A cookie shows whether credentials travel: browsers send both or neither. Only the tests have cookies here.
        await page.context().addCookies([{ name: "probe", value: "1", url: city.origin, secure: true }]);
        const carried = async (how, ask) => {
            const [request] = await Promise.all([page.waitForRequest((request) => request.url().endsWith(`?${how}`)), page.evaluate(ask, how)]);
            assert.equal((await request.response()).status(), 200, how);
            return ((await request.allHeaders()).cookie ?? "").includes("probe=1");
        };
        const path = `${city.origin}/_matrix/client/versions`;
        await page.evaluate((path) => (window.path = path), path);
        assert.ok(await carried("url", (how) => fetch(`${window.path}?${how}`, { credentials: "omit" }).then(() => {})));
        assert.ok(await carried("object", (how) => fetch(new URL(`${window.path}?${how}`), { credentials: "omit" }).then(() => {})));
        assert.ok(await carried("request", (how) => fetch(new Request(`${window.path}?${how}`, { credentials: "omit" })).then(() => {})));
        assert.ok(await carried("both", (how) => fetch(new Request(`${window.path}?${how}`), { credentials: "omit" }).then(() => {})));
        // What the browser does without the script, or the assertions above would mean nothing.
        await page.evaluate(() => {
            const frame = document.body.appendChild(document.createElement("iframe"));
            window.untouched = frame.contentWindow.fetch.bind(window);
        });
        assert.equal(await carried("native", (how) => window.untouched(`${window.path}?${how}`, { credentials: "omit" }).then(() => {})), false);
        // Bodies and methods survive.
        const posted = await page.evaluate(async () => {
            const answer = await fetch(new Request("/_matrix/client/v3/login", { method: "POST", body: '{"type":"m.login.nothing"}', credentials: "omit" }));
            return [answer.status, (await answer.json()).errcode];
        });
        assert.equal(posted[0], 400);
        page.watched.errors.length = 0;
        await page.context().clearCookies();
    });

    test("both log in with password and certificate, sync, and see the room that the city opened", async () => {
        const { hanako, taro } = people;
        await taro.page.goto(city.origin);
        for (const person of [hanako, taro]) {
            const wrong = await person.page.evaluate(
                ([id]) => window.logIn(id, "Wrong-4-password").then(() => "in", (error) => `${error.httpStatus} ${error.errcode}`),
                [person.loginId],
            );
            assert.equal(wrong, "403 M_FORBIDDEN");
            person.page.watched.errors.length = 0;
            const userId = await person.page.evaluate(([id, password]) => window.logIn(id, password), [person.loginId, person.password]);
            assert.equal(userId, person.userId);
            await person.page.waitForFunction((room) => window.client.getRoom(room)?.getMyMembership() === "join", room);
            await person.page.evaluate((room) => window.openRoom(room), room);
        }
        assert.equal(await hanako.page.locator("#who").innerText(), hanako.displayName);
        assert.match(await hanako.page.locator("#rooms").innerText(), /山田さんの部屋/);
        assert.match(await hanako.page.locator("#timeline").innerText(), /部屋を開設しました。/);
        const seen = await hanako.page.evaluate((id) => {
            const room = window.client.getRoom(id);
            const levels = room.currentState.getStateEvents("m.room.power_levels", "").getContent();
            return {
                version: room.getVersion(),
                members: room.getJoinedMembers().map((member) => member.name).sort(),
                joinRule: room.getJoinRule(),
                history: room.getHistoryVisibility(),
                maySend: room.maySendMessage(),
                mayInvite: room.canInvite(window.client.getUserId()),
                invite: levels.invite,
                encrypted: room.hasEncryptionStateEvent(),
            };
        }, room);
        assert.equal(seen.version, "12");
        assert.deepEqual(seen.members.filter((name) => [hanako.displayName, taro.displayName].includes(name)).length, 2);
        assert.equal(seen.joinRule, "invite");
        assert.equal(seen.history, "shared");
        assert.deepEqual([seen.maySend, seen.mayInvite, seen.invite, seen.encrypted], [true, false, 50, false]);
        await clean(hanako.page);
    });

    /** Runs in a person's page with the room's id first. */
    const as = (person, run, ...args) => people[person].page.evaluate(run, [room, ...args]);
    /** Waits in a person's page until a condition on the room holds. */
    const until = (person, condition, ...args) => people[person].page.waitForFunction(condition, [room, ...args], { polling: 50 });
    let first;

    test("a message reaches the other person, both ways", async () => {
        first = await as("hanako", ([room]) => window.client.sendTextMessage(room, "本日、発熱がありました。KT37.8").then((sent) => sent.event_id));
        await until("taro", ([room, id]) => window.eventOf(room, id), first);
        assert.match(await people.taro.page.locator(`[data-event="${first}"]`).innerText(), new RegExp(`^${people.hanako.displayName}: 本日、発熱`));
        await as("taro", ([room]) => window.client.sendTextMessage(room, "承知しました。夕方に伺います。"));
        await until("hanako", ([room]) => window.has(room, "承知しました。夕方に伺います。"));
    });

    test("edit, reaction, reply and thread arrive as such", async () => {
        await as("hanako", ([room, id]) =>
            window.client.sendMessage(room, {
                msgtype: "m.text",
                body: "* 本日、発熱がありました。KT38.2",
                "m.new_content": { msgtype: "m.text", body: "本日、発熱がありました。KT38.2" },
                "m.relates_to": { rel_type: "m.replace", event_id: id },
            }), first);
        await until("taro", ([room, id]) => window.eventOf(room, id).getContent().body.endsWith("KT38.2"), first);
        assert.match(await people.taro.page.locator(`[data-event="${first}"]`).innerText(), /KT38\.2 \(編集済み\)$/);

        await as("taro", ([room, id]) =>
            window.client.sendEvent(room, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: id, key: "了解" } }), first);
        await until("hanako", ([room, id]) => {
            const reactions = window.client.getRoom(room).relations.getChildEventsForEvent(id, "m.annotation", "m.reaction");
            return reactions?.getSortedAnnotationsByKey()?.some(([key, events]) => key === "了解" && events.size === 1);
        }, first);

        const reply = await as("taro", ([room, id]) =>
            window.client.sendMessage(room, { msgtype: "m.text", body: "往診を手配します。", "m.relates_to": { "m.in_reply_to": { event_id: id } } })
                .then((sent) => sent.event_id), first);
        await until("hanako", ([room, id, first]) => window.eventOf(room, id)?.replyEventId === first, reply, first);

        const inThread = await as("taro", ([room, id]) =>
            window.client.sendMessage(room, id, { msgtype: "m.text", body: "詳しい経過はこちらに書きます。" }).then((sent) => sent.event_id), first);
        await until("hanako", ([room, root, id]) => window.client.getRoom(room).getThread(root)?.findEventById(id), first, inThread);
        assert.equal(await as("hanako", ([room, root]) => window.client.getRoom(room).getThread(root).length, first), 1);
    });

    test("receipts, typing and unread counts", async () => {
        const last = await as("hanako", async ([room]) => {
            const sent = await window.client.sendTextMessage(room, "既読の確認です。");
            return sent.event_id;
        });
        await until("taro", ([room, id]) => window.eventOf(room, id), last);
        await until("taro", ([room]) => window.client.getRoom(room).getUnreadNotificationCount("total") > 0);
        await as("taro", ([room, id]) => window.client.sendReadReceipt(window.eventOf(room, id)), last);
        await until("hanako", ([room, id, reader]) => window.client.getRoom(room).hasUserReadEvent(reader, id), last, people.taro.userId);
        await until("taro", ([room]) => window.client.getRoom(room).getUnreadNotificationCount("total") === 0);
        await as("taro", ([room]) => window.client.sendTyping(room, true, 20_000));
        await until("hanako", ([room, who]) => window.client.getRoom(room).getMember(who)?.typing, people.taro.userId);
        await as("taro", ([room]) => window.client.sendTyping(room, false, 0));
        await until("hanako", ([room, who]) => !window.client.getRoom(room).getMember(who)?.typing, people.taro.userId);
    });

    test("an image is uploaded, and shown to the other person", async () => {
        const id = await as("hanako", async ([room]) => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 480 });
            const paint = canvas.getContext("2d");
            paint.fillStyle = "#cc8800";
            paint.fillRect(0, 0, 640, 480);
            const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
            const { content_uri } = await window.client.uploadContent(blob, { name: "創部.png", type: "image/png" });
            const info = { mimetype: "image/png", size: blob.size, w: 640, h: 480 };
            return (await window.client.sendMessage(room, { msgtype: "m.image", body: "創部.png", url: content_uri, info })).event_id;
        });
        const item = people.taro.page.locator(`[data-event="${id}"][data-shown="yes"] img`);
        await item.waitFor();
        const [width, height, colour] = await item.evaluate((image) => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
            const paint = canvas.getContext("2d");
            paint.drawImage(image, 0, 0, 1, 1);
            return [image.naturalWidth, image.naturalHeight, [...paint.getImageData(0, 0, 1, 1).data]];
        });
        assert.deepEqual([width, height], [320, 240]);
        assert.ok(Math.abs(colour[0] - 0xcc) < 8 && Math.abs(colour[1] - 0x88) < 8 && colour[2] < 16, `colour ${colour}`);
    });

    test("a two-character Japanese word is found, and what was redacted is not", async () => {
        const search = (person, term) =>
            as(person, async ([, term]) => {
                const found = await window.client.searchRoomEvents({ term });
                return found.results.map((result) => result.context.ourEvent.getContent().body);
            }, term);
        const poll = async (person, term, wanted) => {
            // The index follows the committer: asked again until it is there.
            const deadline = performance.now() + 30_000;
            for (;;) {
                const found = await search(person, term);
                if (wanted(found)) return;
                assert.ok(performance.now() < deadline, `search for ${term} found ${JSON.stringify(found)}`);
                await new Promise((again) => setTimeout(again, 50));
            }
        };
        // The message, and its edit as an event of its own.
        await poll("taro", "発熱", (found) => [1, 2].includes(found.length) && found.every((body) => /発熱.*KT38\.2$/.test(body)));
        await poll("taro", "手配", (found) => found.length === 1);
        await poll("taro", "頭痛", (found) => found.length === 0);
        const wrong = await as("hanako", ([room]) => window.client.sendTextMessage(room, "誤って転倒と書きました。").then((sent) => sent.event_id));
        await poll("taro", "転倒", (found) => found.length === 1);
        await as("hanako", ([room, id]) => window.client.redactEvent(room, id, undefined, { reason: "書き間違い" }), wrong);
        await until("taro", ([room, id]) => window.eventOf(room, id)?.isRedacted(), wrong);
        assert.equal(await people.taro.page.locator(`[data-event="${wrong}"]`).innerText(), "(削除されました)");
        await poll("taro", "転倒", (found) => found.length === 0);
        const others = await as("taro", ([room, id]) => window.client.redactEvent(room, id).then(() => "done", (error) => error.errcode), first);
        assert.equal(others, "M_FORBIDDEN");
        people.taro.page.watched.errors = people.taro.page.watched.errors.filter((error) => !/403.*\/redact\//.test(error));
        await shoot(people.taro.page, "client");
    });

    test("history is paged backwards to the room's beginning", async () => {
        const page = await as("hanako", async ([room]) => {
            for (let i = 0; i < 45; i += 1) await window.client.sendTextMessage(room, `経過 ${i}`);
            const bodies = [];
            let from = null;
            do {
                const chunk = await window.client.createMessagesRequest(room, from, 20, "b");
                bodies.push(...chunk.chunk.filter((event) => event.type === "m.room.message").map((event) => event.content.body));
                if (chunk.chunk.length === 0) break;
                from = chunk.end;
            } while (from);
            return bodies;
        });
        assert.deepEqual(page.slice(0, 45), Array.from({ length: 45 }, (_, i) => `経過 ${44 - i}`));
        assert.equal(page.at(-1), "部屋を開設しました。");
    });

    test("a mail switch without a confirmed address is refused; encryption is, too; no key screen comes up", async () => {
        const tried = await as("hanako", async ([room]) => {
            const outcome = (promise) => promise.then(() => "done", (error) => `${error.httpStatus} ${error.errcode}`);
            const address = "hanako@example.jp";
            return {
                addresses: (await window.client.getThreePids()).threepids,
                pusher: await outcome(
                    window.client.setPusher({
                        kind: "email", app_id: "m.email", pushkey: address, app_display_name: "Email Notifications",
                        device_display_name: address, lang: "ja", data: { brand: "在宅ケア連携ネット" }, append: true,
                    }),
                ),
                pushers: (await window.client.getPushers()).pushers,
                encryption: await outcome(window.client.sendStateEvent(room, "m.room.encryption", { algorithm: "m.megolm.v1.aes-sha2" }, "")),
                identity: await window.client.getCrypto().userHasCrossSigningKeys(),
                backup: await window.client.getCrypto().getKeyBackupInfo(),
            };
        }); // prettier-ignore
        assert.deepEqual(tried, { addresses: [], pusher: "400 M_INVALID_PARAM", pushers: [], encryption: "403 M_FORBIDDEN", identity: false, backup: null });
    });

    test("the second and third device of one ID meet no key screen either", async () => {
        // What makes a client show one (Element Web: "verify this device", "set up recovery"): cross-signing or secret storage
        // that is there or wanted, a request to verify, a key backup. The devices know each other's keys, as clients insist, and
        // stay logged in beside each other.
        const { hanako } = people;
        const screens = () => {
            const crypto = window.client.getCrypto();
            const user = window.client.getUserId();
            return Promise.all([
                crypto.userHasCrossSigningKeys(user, true),
                crypto.isCrossSigningReady(),
                crypto.isSecretStorageReady(),
                window.client.secretStorage.getDefaultKeyId(),
                crypto.getKeyBackupInfo(),
                crypto.getVerificationRequestsToDeviceInProgress(user).length,
                window.client.getClientWellKnown()?.["io.element.e2ee"] ?? fetch("/.well-known/matrix/client").then((answer) => answer.json()).then((body) => body["io.element.e2ee"]),
                window.client.getRooms().some((room) => room.hasEncryptionStateEvent()),
            ]);
        };
        const quiet = [false, false, false, null, null, 0, { default: false, force_disable: true, secure_backup_required: false }, false];
        assert.deepEqual(await hanako.page.evaluate(screens), quiet, "the first device");
        const devices = [await hanako.page.evaluate(() => window.client.getDeviceId())];
        for (const which of ["second", "third"]) {
            // A further device of the same ID on the same terminal: a browser profile of its own, which knows nothing.
            const page = await newPage(browser(), city.certificate(hanako));
            await page.goto(city.origin);
            const asked = [];
            page.on("request", (request) => request.method() !== "GET" && asked.push(new URL(request.url()).pathname));
            await page.evaluate(([id, password]) => window.logIn(id, password), [hanako.loginId, hanako.password]);
            devices.push(await page.evaluate(() => window.client.getDeviceId()));
            await page.waitForFunction((room) => window.client.getRoom(room)?.getMyMembership() === "join", room, { polling: 50 });
            await page.evaluate((room) => window.openRoom(room), room);
            assert.deepEqual(await page.evaluate(screens), quiet, `the ${which} device`);
            assert.deepEqual(asked.filter((path) => /sendToDevice|device_signing|signatures/.test(path)), [], "no request for verification goes out");
            // And it is a device like the first: what it writes is read there, in plain text.
            const said = `${which === "second" ? "二" : "三"}台目の端末からです。`;
            await page.evaluate(([room, said]) => window.client.sendTextMessage(room, said), [room, said]);
            await until("hanako", ([room, said]) => window.has(room, said), said);
            await until("taro", ([room, said]) => window.has(room, said), said);
            // The devices before it are asked nothing.
            assert.deepEqual(await hanako.page.evaluate(screens), quiet, `the first device beside the ${which}`);
            await clean(page);
        }
        assert.equal(new Set(devices).size, 3);
        const known = await hanako.page.evaluate(() => window.client.getDevices().then((all) => all.devices.map((device) => device.device_id)));
        for (const device of devices) assert.ok(known.includes(device), `${device} is not among ${known}`);
    });

    test("an address is added, confirmed by the button in a mail's page, and then gets the mail switch", async () => {
        const { hanako } = people;
        const address = "hanako@example.jp";
        const asked = await as("hanako", async ([, address]) => {
            window.secret = window.client.generateClientSecret();
            return window.client.requestAdd3pidEmailToken(address, window.secret, 1);
        }, address);
        const mails = (await city.mails()).filter((mail) => mail.to === address);
        assert.equal(mails.length, 1);
        assert.equal(mails[0].template, "verify_address");
        const add = ([, sid, password, user]) =>
            window.client.addThreePidOnly({ sid, client_secret: window.secret }).then(
                () => "added",
                (error) => error.httpStatus !== 401 || !error.data.session ? `${error.httpStatus} ${error.errcode}` :
                    window.client.addThreePidOnly({
                        sid, client_secret: window.secret,
                        auth: { type: "m.login.password", identifier: { type: "m.id.user", user }, password, session: error.data.session },
                    }).then(() => "added", (error) => `${error.httpStatus} ${error.errcode}`),
            ); // prettier-ignore
        // Not before the button was pressed.
        const early = await as("hanako", add, asked.sid, hanako.password, hanako.loginId);
        assert.match(early, /^40[013] M_/);

        const page = await newPage(browser());
        const link = mails[0].parameters.link;
        assert.ok(link.startsWith(`${city.enrolOrigin}/mail/verify?`));
        // Mail scanners open links: that does nothing.
        for (let opened = 0; opened < 2; opened += 1) assert.equal((await page.goto(link)).status(), 200);
        await shoot(page, "mail-verify");
        await page.getByRole("button", { name: /確認する/ }).click();
        await page.getByRole("heading", { name: "メールアドレスを確認しました" }).waitFor();
        await shoot(page, "mail-verified");
        await page.goto(link);
        await page.getByRole("button", { name: /確認する/ }).click();
        await page.getByRole("heading", { name: "このリンクは使えません" }).waitFor();
        await shoot(page, "mail-used");
        await page.context().close();

        assert.equal(await as("hanako", add, asked.sid, hanako.password, hanako.loginId), "added");
        const set = await as("hanako", async ([, address]) => {
            await window.client.setPusher({
                kind: "email", app_id: "m.email", pushkey: address, app_display_name: "Email Notifications",
                device_display_name: address, lang: "ja", data: { brand: "在宅ケア連携ネット" }, append: true,
            });
            return [(await window.client.getThreePids()).threepids.map((one) => one.address), (await window.client.getPushers()).pushers.map((one) => one.pushkey)];
        }, address); // prettier-ignore
        assert.deepEqual(set, [[address], [address]]);
    });

    test("a person changes the password, and only the new one opens", async () => {
        const { hanako } = people;
        const password = "Umi-no-7-Kaze!";
        const outcome = await as("hanako", async ([, old, password]) => {
            // As Element does: the whole user id, no session, one request.
            const change = (given, to) => {
                const user = window.client.getUserId();
                const auth = { type: "m.login.password", identifier: { type: "m.id.user", user }, user, password: given };
                return window.client.setPassword(auth, to, false).then(() => "changed", (error) => `${error.httpStatus} ${error.errcode}`);
            };
            return [await change("Wrong-4-password", password), await change(old, "weak"), await change(old, password)];
        }, hanako.password, password);
        assert.deepEqual(outcome, ["401 M_FORBIDDEN", "400 M_WEAK_PASSWORD", "changed"]);
        for (const [tried, status] of [[hanako.password, 403], [password, 200]]) {
            const answer = await city.api(hanako, "POST", "/_matrix/client/v3/login", {
                type: "m.login.password",
                identifier: { type: "m.id.user", user: hanako.loginId },
                password: tried,
            });
            assert.equal(answer.status, status);
        }
        assert.equal(await as("hanako", () => window.client.whoami().then((who) => who.user_id)), hanako.userId);
    });

    test("the page logged no error and asked for nothing outside its origin", async () => {
        for (const { page } of Object.values(people)) {
            await clean(page);
            assert.deepEqual([...page.watched.origins], [city.origin]);
        }
    });

    test("after logging out the token is worth nothing; revoking the certificate ends the other one at once", async () => {
        const { hanako, taro } = people;
        const token = await hanako.page.evaluate(() => window.client.getAccessToken());
        await hanako.page.evaluate(() => window.client.logout(true));
        const status = await hanako.page.evaluate(async (token) => {
            const answer = await fetch("/_matrix/client/v3/account/whoami", { headers: { authorization: `Bearer ${token}` } });
            return [answer.status, (await answer.json()).errcode];
        }, token);
        assert.deepEqual(status, [401, "M_UNKNOWN_TOKEN"]);
        await clean(hanako.page);

        const { terminals } = await city.call("GET", `accounts/${encodeURIComponent(taro.userId)}/terminals`);
        const began = performance.now();
        const ended = taro.page.waitForFunction(() => ["RECONNECTING", "ERROR"].includes(window.client.getSyncState()), null, { polling: 50 });
        await city.call("POST", `terminals/${terminals[0].terminal}/revoke`, { reason: "紛失" });
        await ended;
        const took = performance.now() - began;
        // HEYA_PATIENCE says how many times as long a slow machine may take.
        assert.ok(took < 5_000 * Number(process.env.HEYA_PATIENCE ?? 1), `the open long poll ended after ${took} ms`);
        const refused = await taro.page.evaluate(async () => {
            const answer = await fetch("/_matrix/client/v3/sync", { headers: { authorization: `Bearer ${window.client.getAccessToken()}` } });
            return [answer.status, (await answer.json())["jp.heya.certificate"]];
        });
        assert.deepEqual(refused, [403, "revoked"]);
        await taro.page.evaluate(() => window.client.stopClient());
        assert.equal((await taro.page.goto(city.origin)).status(), 403);
        assert.equal(await taro.page.getByRole("heading", { level: 1 }).innerText(), "この端末の電子証明書は失効しています");
        for (const { page } of Object.values(people)) await page.context().close();
    });
}

/** Nothing in the console but refusals that are right, those of a log-in and further `[status, path]`, and known noise. */
export async function clean(page, further = [], noise = []) {
    const wrong = page.watched.errors.filter((error) => {
        if (noise.some((known) => known.test(error))) return false;
        const status = /status of (\d+)/.exec(error)?.[1];
        return ![...RIGHT_REFUSALS, ...further].some(([right, path]) => Number(status) === right && path.test(error));
    });
    assert.deepEqual(wrong, []);
}
