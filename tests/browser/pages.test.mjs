// What people see before they are in: enrolment in a browser without a certificate, and the refusals.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { newPage, shoot } from "./browser.mjs";
import { CONTACT, PASSWORD, request } from "./city.mjs";

export function pagesTests(test, { browser, city, facility, bare }) {
    test("a new member enrols in a browser, downloads the certificate, and gets in with it", async () => {
        const person = await city.person(facility, "佐藤花子");
        const page = await newPage(browser());
        const visited = await page.goto(`${city.enrolOrigin}/`);
        assert.equal(page.url(), `${city.enrolOrigin}/enrol`);
        assert.equal(visited.status(), 200);
        assert.match(visited.headers()["content-security-policy"], /default-src 'none'/);
        await showsContact(page);
        await shoot(page, "enrol-1");

        const fill = async (code) => {
            await page.getByLabel("利用者ID").fill(person.loginId);
            await page.getByLabel("初期パスワード、または現在のパスワード").fill(person.initialPassword);
            await page.getByLabel("登録コード").fill(code);
            await page.getByRole("button", { name: /次へ進む/ }).click();
        };
        await fill("AAAA-BBBB-CCCC");
        const alert = page.getByRole("alert");
        assert.match(await alert.innerText(), /利用者ID、パスワード、登録コードのどれかが違う/);
        assert.equal(await page.getByLabel("利用者ID").inputValue(), person.loginId);
        assert.equal(await page.getByLabel("初期パスワード、または現在のパスワード").inputValue(), "");
        await showsContact(page);
        await shoot(page, "enrol-1-wrong-code");

        // Small letters and spaces, as people type.
        await fill(person.code.toLowerCase().replaceAll("-", " "));
        await page.getByText("ご自分のパスワードを決めてください").waitFor();
        assert.match(await page.locator("main").innerText(), new RegExp(person.displayName));
        await shoot(page, "enrol-2");

        const choose = async (password, again, ownership) => {
            await page.getByLabel(/^新しいパスワード New/).fill(password);
            await page.getByLabel(/^新しいパスワード（確認/).fill(again);
            await page.getByLabel("端末の名前").fill("受付のパソコン");
            await page.getByLabel(ownership, { exact: true }).check();
            await page.getByRole("button", { name: /電子証明書を発行する/ }).click();
        };
        for (const [password, again, ownership, told] of [
            ["abcd1234", "abcd1234", "事業所の端末", /3種類以上を混ぜて/],
            ["Ab1!", "Ab1!", "事業所の端末", /8文字以上/],
            [PASSWORD, `${PASSWORD}x`, "事業所の端末", /2回入力したパスワードが同じではありません/],
            [PASSWORD, PASSWORD, "私的端末（個人の持ち物）", /市の承認がないと登録できません/],
        ]) {
            await choose(password, again, ownership);
            assert.match(await alert.innerText(), told);
            assert.equal(await page.getByLabel("端末の名前").inputValue(), "受付のパソコン");
        }
        await shoot(page, "enrol-2-refused");

        await choose(PASSWORD, PASSWORD, "事業所の端末");
        await page.waitForURL(`${city.enrolOrigin}/enrol/done`);
        const secret = page.getByLabel("取り込み用パスワード", { exact: true });
        person.p12Password = (await secret.innerText()).trim();
        assert.match(person.p12Password, /^[0-9A-Za-z]{8,}$/);
        await showsContact(page);
        for (const [link, file] of [
            [page.getByRole("link", { name: "電子証明書（.p12）" }).first(), "p12"],
            [page.getByRole("link", { name: "古い端末用（.p12）" }), "legacy"],
        ]) {
            const [download] = await Promise.all([page.waitForEvent("download"), link.click()]);
            assert.equal(download.suggestedFilename(), "heya-terminal.p12");
            person[file] = readFileSync(await download.path());
            assert.equal(person[file][0], 0x30, "a PKCS#12 file is a DER sequence");
        }
        await shoot(page, "enrol-3");
        for (const summary of await page.locator("summary").all()) await summary.click();
        await shoot(page, "enrol-3-open");
        const profile = await page.context().request.get(`${city.enrolOrigin}/enrol/terminal.mobileconfig`);
        assert.equal(profile.headers()["content-type"], "application/x-apple-aspen-config");
        assert.match(await profile.text(), /<plist version="1.0">/);
        assert.deepEqual([...page.watched.origins], [city.enrolOrigin]);
        // Chromium logs the answers to refused forms, and that there is no icon; nothing else may be there.
        const expected = /status of 40[03] .*\/enrol(\/password)?\)$|status of 404 .*\/favicon\.ico\)$/;
        assert.deepEqual(page.watched.errors.filter((error) => !expected.test(error)), []);
        await page.context().close();

        const inside = await newPage(browser(), city.certificate(person));
        const answer = await inside.goto(city.origin);
        assert.equal(answer.status(), 200);
        assert.equal(await inside.title(), "試験用クライアント");
        await inside.context().close();

        // The code is spent.
        const again = await newPage(browser());
        await again.goto(`${city.enrolOrigin}/enrol`);
        await again.getByLabel("利用者ID").fill(person.loginId);
        await again.getByLabel("初期パスワード、または現在のパスワード").fill(PASSWORD);
        await again.getByLabel("登録コード").fill(person.code);
        await again.getByRole("button", { name: /次へ進む/ }).click();
        assert.match(await again.getByRole("alert").innerText(), /どれかが違う/);
        await again.context().close();
    });

    test("a further terminal takes the current password and sets none", async () => {
        const person = await city.enrol(await city.person(facility, "鈴木一郎"));
        const { sheets } = await city.call("POST", `accounts/${encodeURIComponent(person.userId)}/codes`, {});
        const page = await newPage(browser());
        await page.goto(`${city.enrolOrigin}/enrol`);
        await page.getByLabel("利用者ID").fill(person.loginId);
        await page.getByLabel("初期パスワード、または現在のパスワード").fill(PASSWORD);
        await page.getByLabel("登録コード").fill(city.sheets(sheets).code);
        await page.getByRole("button", { name: /次へ進む/ }).click();
        await page.getByText("パスワードは変わりません。").waitFor();
        assert.equal(await page.locator('input[type="password"]').count(), 0);
        await shoot(page, "enrol-2-further");
        await page.getByLabel("端末の名前").fill("訪問用スマートフォン1号");
        await page.getByRole("button", { name: /電子証明書を発行する/ }).click();
        await page.waitForURL(`${city.enrolOrigin}/enrol/done`);
        const { terminals } = await city.call("GET", `accounts/${encodeURIComponent(person.userId)}/terminals`);
        assert.deepEqual(terminals.map((terminal) => terminal.label).sort(), ["受付のパソコン", "訪問用スマートフォン1号"].sort());
        await page.context().close();
    });

    test("the handover sheets, the help page and the one for a wrong address can be read and printed", async () => {
        const page = await newPage(browser());
        await page.goto(`${city.enrolOrigin}/help`);
        await showsContact(page);
        const lost = await page.locator("#lost").innerText();
        for (const line of CONTACT) assert.ok(lost.includes(line), "whom to call stands where a lost terminal is spoken of");
        await shoot(page, "help");
        assert.equal((await page.goto(`${city.enrolOrigin}/nothing`)).status(), 404);
        await showsContact(page);
        await shoot(page, "not-found");
        for (const name of ["0001-password", "0002-code"]) {
            await page.goto(`file://${city.path(`sheets/${name}.html`)}`);
            await showsContact(page);
            await shoot(page, `sheet-${name.slice(5)}`);
            // One A4 page each.
            const pdf = await page.pdf({ preferCSSPageSize: true });
            assert.equal(pdf.toString("latin1").match(/\/Type\s*\/Page\b(?!s)/g).length, 1, `${name} prints on one page`);
        }
        await page.context().close();
    });

    const refusals = {
        none: ["この端末の電子証明書が確認できません", async () => undefined],
        unknown: ["このシステムの電子証明書ではありません", async () => city.foreignCertificate()],
        expired: ["電子証明書の有効期限が切れています", async () => city.expiredCertificate()],
        revoked: [
            "この端末の電子証明書は失効しています",
            async () => {
                const person = await city.enrol(await city.person(facility, "高橋次郎"));
                const { terminals } = await city.call("GET", `accounts/${encodeURIComponent(person.userId)}/terminals`);
                await city.call("POST", `terminals/${terminals[0].terminal}/revoke`, { reason: "紛失" });
                return city.certificate(person);
            },
        ],
    };
    for (const [state, [title, certificate]] of Object.entries(refusals)) {
        test(`with the certificate "${state}" people read why, and clients get 403`, async () => {
            const page = await newPage(browser(), await certificate());
            const answer = await page.goto(city.origin);
            assert.equal(answer.status(), 403);
            assert.equal(await page.getByRole("heading", { level: 1 }).innerText(), title);
            assert.equal(await page.title(), `${title} | 在宅ケア連携ネット`);
            assert.match(await page.locator("main").innerText(), new RegExp(`記号 ${state}`));
            await showsContact(page);
            const style = await page.evaluate(() => getComputedStyle(document.querySelector("header.site")).borderTopWidth);
            assert.equal(style, "6px", "the page has its stylesheet");
            await shoot(page, `refused-${state}`);
            const href = await page.getByRole("link", { name: /端末の登録/ }).getAttribute("href");
            assert.equal(href, `${city.enrolOrigin}/enrol`);
            // The page's own policy lets it fetch nothing, so the same connection's address is visited.
            const refused = await page.goto(`${city.origin}/_matrix/client/v3/login`);
            const api = { status: refused.status(), body: await refused.json() };
            assert.equal(api.status, 403);
            assert.equal(api.body.errcode, "M_FORBIDDEN");
            assert.equal(api.body["jp.heya.certificate"], state);
            await page.context().close();
        });
    }

    test("discovery is open without a certificate; a city without a web client explains itself", async () => {
        const answer = await request(`${city.origin}/.well-known/matrix/client`, { agent: city.agent });
        assert.equal(answer.status, 200);
        assert.deepEqual(JSON.parse(answer.text)["io.element.e2ee"], {
            default: false,
            force_disable: true,
            secure_backup_required: false,
        });
        const other = bare();
        const person = await other.enrol(await other.person(await other.facility("みなと薬局"), "田中三郎"));
        const page = await newPage(browser(), other.certificate(person));
        const visited = await page.goto(other.origin);
        assert.equal(visited.status(), 200);
        assert.match(await page.locator("main").innerText(), new RegExp(other.name));
        await showsContact(page);
        await shoot(page, "no-client");
        await page.context().close();
    });
}

/** Every page says whom to ask (REQUIREMENTS H25). */
async function showsContact(page) {
    const text = await page.locator("footer").innerText();
    for (const line of CONTACT) assert.ok(text.includes(line), `the page does not show "${line}"`);
}
