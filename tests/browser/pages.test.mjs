// What people see before they are in: enrolment in a browser without a certificate, and the refusals.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
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

    test("an app asks to be logged in: the page names it, and Chromium goes back to it with a code", async () => {
        const other = bare();
        const person = await other.enrol(await other.person(await other.facility("さくら診療所"), "伊藤四郎"));
        const redirect = "https://app.example.com/callback";
        const registered = await other.api(person, "POST", "/oauth2/register", {
            client_uri: "https://app.example.com/",
            client_name: "訪問看護アプリ",
            redirect_uris: [redirect],
            grant_types: ["authorization_code", "refresh_token"],
        });
        assert.equal(registered.status, 201, registered.text);
        const verifier = randomBytes(32).toString("base64url");
        const asked = new URLSearchParams({
            response_type: "code",
            response_mode: "fragment",
            client_id: JSON.parse(registered.text).client_id,
            redirect_uri: redirect,
            state: "opaque",
            scope: "urn:matrix:client:api:* urn:matrix:client:device:BROWSERTEST",
            code_challenge: createHash("sha256").update(verifier).digest("base64url"),
            code_challenge_method: "S256",
        });
        const page = await newPage(browser(), other.certificate(person));
        await page.context().route("https://app.example.com/**", (route) =>
            route.fulfill({ contentType: "text/html", body: "<title>back</title>" }),
        );
        await page.goto(`${other.origin}/oauth2/authorize?${asked}`);
        await showsContact(page);
        const main = await page.locator("main").innerText();
        for (const words of ["訪問看護アプリ", "app.example.com", "市は確認していません", "受付のパソコン"]) {
            assert.ok(main.includes(words), words);
        }
        await shoot(page, "oauth-authorize");
        await page.getByLabel("利用者ID").fill(person.loginId);
        await page.getByLabel("パスワード").fill("Wrong-1-password");
        await page.getByRole("button", { name: /ログインする/ }).click();
        assert.match(await page.getByRole("alert").innerText(), /利用者IDまたはパスワードが違うか/);
        await shoot(page, "oauth-authorize-wrong");
        await page.getByLabel("パスワード").fill(PASSWORD);
        await page.getByRole("button", { name: /ログインする/ }).click();
        // The page's policy lets the form's answer lead there, and nowhere else.
        await page.waitForURL((url) => url.origin === "https://app.example.com");
        const answer = new URLSearchParams(new URL(page.url()).hash.slice(1));
        assert.equal(answer.get("state"), "opaque");
        const handedIn = new URLSearchParams({
            grant_type: "authorization_code",
            client_id: asked.get("client_id"),
            code: answer.get("code"),
            redirect_uri: redirect,
            code_verifier: verifier,
        });
        const tokens = await other.api(person, "POST", "/oauth2/token", Buffer.from(handedIn.toString()), {
            "content-type": "application/x-www-form-urlencoded",
        });
        assert.equal(tokens.status, 200, tokens.text);

        await page.goto(`${other.origin}/oauth2/authorize?client_id=x&redirect_uri=https://evil.example/`);
        await shoot(page, "oauth-wrong");
        await page.goto(`${other.origin}/oauth2/link`);
        await shoot(page, "oauth-link");
        await page.goto(`${other.origin}/account`);
        await shoot(page, "account-login");
        await page.getByLabel("利用者ID").fill(person.loginId);
        await page.getByLabel("パスワード").fill(PASSWORD);
        await page.getByRole("button", { name: /続ける/ }).click();
        await page.getByRole("heading", { name: "ログイン中のアプリ" }).waitFor();
        assert.match(await page.locator("main").innerText(), /訪問看護アプリ/);
        await shoot(page, "account");
        await page.goto(`${other.origin}/account?action=org.matrix.account_deactivate`);
        await shoot(page, "account-deactivate");
        await page.context().close();
    });

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
