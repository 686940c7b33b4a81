// Starts a real city for the browser tests: the server's own binary with a config of free ports, its first-start sheets,
// accounts through the internal API, and people enrolled through the same pages that a browser would use.

import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const BINARY = process.env.HEYA_BIN ?? join(ROOT, "target/debug/heya");

/** Whom to ask, as the config says and every page must show. */
export const CONTACT = ["〇〇市 試験担当課", "電話 0000-00-1234"];
/** Every person's own password. */
export const PASSWORD = "Yama-no-4-Kawa!";

/** A city that runs. */
export class City {
    /** Starts one; `clientDir` is the web client it serves ("" for none), `policy` further lines of that section. */
    static async start({ clientDir = "", policy = [], encryption = "forbidden" } = {}) {
        const city = new City();
        city.folder = mkdtempSync(join(tmpdir(), "heya-browser-"));
        const [listen, enrol, internal, bot, mail] = await freePorts(5);
        city.origin = `https://localhost:${listen}`;
        city.enrolOrigin = `https://localhost:${enrol}`;
        city.internal = `http://127.0.0.1:${internal}`;
        city.name = `localhost:${listen}`;
        const file = join(city.folder, "config.toml");
        writeFileSync(
            file,
            [
                "[server]",
                `public_url = "${city.origin}"`,
                `listen = "127.0.0.1:${listen}"`,
                `enrol_listen = "127.0.0.1:${enrol}"`,
                `internal_listen = "127.0.0.1:${internal}"`,
                `data_dir = "${join(city.folder, "data")}"`,
                "[policy]",
                `encryption = "${encryption}"`,
                ...policy,
                "[city]",
                'name = "〇〇市"',
                'service = "在宅ケア連携ネット"',
                `contact = "${CONTACT.join("\\n")}"`,
                'links = [{ label = "利用規約", url = "https://www.example.jp/terms" }]',
                `bot_listen = "127.0.0.1:${bot}"`,
                "[mail]",
                `listen = "127.0.0.1:${mail}"`,
                "[web]",
                `client_dir = "${clientDir}"`,
                "",
            ].join("\n"),
        );
        city.process = spawn(BINARY, ["serve", "--config", file], { stdio: ["ignore", "ignore", "pipe"] });
        // However the tests end, the server ends with them.
        process.once("exit", () => {
            city.process.kill();
            rmSync(city.folder, { recursive: true, force: true });
        });
        city.log = "";
        await new Promise((done, failed) => {
            city.process.stderr.setEncoding("utf8");
            city.process.stderr.on("data", (text) => {
                city.log += text;
                if (/\bserving\b/.test(city.log)) done();
            });
            city.process.on("error", failed);
            city.process.on("exit", (code) => failed(new Error(`the server ended with ${code}:\n${city.log}`)));
        });
        city.ca = readFileSync(city.path("keys/ca.pem"));
        city.agent = new https.Agent({ ca: city.ca, keepAlive: true });
        return city;
    }

    /** Stops it and removes its folder. */
    async stop() {
        this.agent.destroy();
        if (this.process.exitCode === null) {
            const ended = new Promise((done) => this.process.once("exit", done));
            this.process.kill("SIGTERM");
            await ended;
        }
        rmSync(this.folder, { recursive: true, force: true });
    }

    /** A file of the data folder. */
    path(name) {
        return join(this.folder, "data", name);
    }

    /** A call of `/_heya/v1` as a local command (docs/internal-api.md). */
    async call(method, path, body) {
        const headers = { authorization: `Bearer ${readFileSync(this.path("keys/command.token"), "utf8").trim()}` };
        if (body) {
            headers["content-type"] = "application/json";
            headers["idempotency-key"] = `browser-${(this.calls = (this.calls ?? 0) + 1)}`;
        }
        const answer = await request(`${this.internal}/_heya/v1/${path}`, {
            method,
            headers,
            body: body && JSON.stringify({ ...body, acting: "command" }),
        });
        if (answer.status !== 200) throw new Error(`${method} ${path}: ${answer.status} ${answer.text}`);
        return JSON.parse(answer.text);
    }

    /** The mails that the server owes, as the mail bridge leases them. */
    async mails() {
        const token = readFileSync(this.path("keys/mail.token"), "utf8").trim();
        const answer = await request(`${this.internal}/_heya/v1/mail/lease`, {
            method: "POST",
            headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
            body: JSON.stringify({ max: 20, wait_ms: 5_000 }),
        });
        if (answer.status !== 200) throw new Error(`no mail: ${answer.status} ${answer.text}`);
        return JSON.parse(answer.text).mails;
    }

    /** A new facility. */
    async facility(name) {
        return (await this.call("POST", "facilities", { name, kind: "visiting_nurse", pledge: true })).facility;
    }

    /** A new personal ID with what its two sheets say, not enrolled yet. */
    async person(facility, name, profession = "看護師") {
        const account = await this.call("POST", "accounts", { facility, kind: "personal", name, profession, pledge: true });
        return {
            userId: account.user_id,
            loginId: account.login_id,
            displayName: account.display_name,
            ...this.sheets(account.sheets),
        };
    }

    /** The secrets on handover sheets. */
    sheets(files) {
        const found = {};
        for (const file of files) {
            for (const [, label, value] of readFileSync(this.path(file), "utf8").matchAll(
                /<th scope="row">([^<]+)<\/th><td><span class="value(?: url)?">([^<]+)</g,
            )) {
                if (label === "利用者ID") found.loginId = value;
                if (label === "初期パスワード") found.initialPassword = unescape(value);
                if (label === "登録コード") found.code = value;
            }
        }
        return found;
    }

    /** Enrols a person's terminal through the pages, without a browser; the person then has `p12` and its password. */
    async enrol(person, label = "受付のパソコン") {
        const page = (path, fields, cookie) =>
            request(`${this.enrolOrigin}${path}`, {
                method: fields ? "POST" : "GET",
                agent: this.agent,
                headers: {
                    ...(fields && { "content-type": "application/x-www-form-urlencoded", origin: this.enrolOrigin }),
                    ...(cookie && { cookie }),
                },
                body: fields && new URLSearchParams(fields).toString(),
            });
        const begun = await page("/enrol", { login_id: person.loginId, password: person.initialPassword, code: person.code });
        if (!begun.headers["set-cookie"]) throw new Error(`enrolment did not begin: ${begun.status}`);
        const cookie = begun.headers["set-cookie"][0].split(";")[0];
        const csrf = /name="csrf" value="([^"]+)"/.exec((await page("/enrol/password", null, cookie)).text)[1];
        const fields = { csrf, new_password: PASSWORD, new_password_again: PASSWORD, terminal_label: label, ownership: "facility" };
        const finished = await page("/enrol/password", fields, cookie);
        if (finished.status !== 303) throw new Error(`enrolment did not finish: ${finished.status} ${finished.text}`);
        const done = await page("/enrol/done", null, cookie);
        person.p12Password = unescape(/class="secret"[^>]*>([^<]+)</.exec(done.text)[1].trim());
        person.p12 = (await page("/enrol/terminal.p12", null, cookie)).body;
        person.password = PASSWORD;
        return person;
    }

    /** A request with a person's certificate and, where logged in, token. */
    api(person, method, path, body, headers = {}) {
        person.agent ??= new https.Agent({ ca: this.ca, pfx: person.p12, passphrase: person.p12Password, keepAlive: true });
        const raw = body instanceof Buffer;
        return request(`${this.origin}${path}`, {
            method,
            agent: person.agent,
            headers: {
                ...(person.token && { authorization: `Bearer ${person.token}` }),
                ...(body && !raw && { "content-type": "application/json" }),
                ...headers,
            },
            body: body && !raw ? JSON.stringify(body) : body,
        });
    }

    /** What Playwright takes as `clientCertificates`, from an enrolled person. */
    certificate(person) {
        return [{ origin: this.origin, pfx: person.p12, passphrase: person.p12Password }];
    }

    /** A certificate that another CA signed. */
    foreignCertificate() {
        const at = (name) => join(this.folder, name);
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", "/CN=Another service", "-addext", "extendedKeyUsage=clientAuth",
            "-keyout", at("foreign.key"), "-out", at("foreign.pem")); // prettier-ignore
        return [{ origin: this.origin, cert: readFileSync(at("foreign.pem")), key: readFileSync(at("foreign.key")) }];
    }

    /** A certificate that the city's own CA signed and whose time was over yesterday. */
    expiredCertificate() {
        const folder = join(this.folder, "expired");
        mkdirSync(folder);
        const at = (name) => join(folder, name);
        writeFileSync(at("index.txt"), "");
        writeFileSync(at("serial"), "0123456789ABCDEF0123\n");
        writeFileSync(
            at("ca.cnf"),
            `[ca]\ndefault_ca=d\n[d]\ndatabase=${at("index.txt")}\nserial=${at("serial")}\nnew_certs_dir=${folder}\n` +
                `default_md=sha256\npolicy=p\nx509_extensions=x\nunique_subject=no\n[p]\ncommonName=supplied\n` +
                `[x]\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n` +
                `authorityKeyIdentifier=keyid\nsubjectAltName=URI:heya:terminal/1,URI:heya:facility/1,URI:heya:server/${this.name}\n`,
        );
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", "/CN=Heya terminal 1", "-keyout", at("key.pem"), "-out", at("request.pem")); // prettier-ignore
        const day = (back) => new Date(Date.now() - back * 86_400_000).toISOString().replace(/[-:T]|\.\d+/g, "");
        openssl("ca", "-batch", "-notext", "-config", at("ca.cnf"), "-cert", this.path("keys/ca.pem"),
            "-keyfile", this.path("keys/ca.key"), "-startdate", day(30), "-enddate", day(1),
            "-in", at("request.pem"), "-out", at("certificate.pem")); // prettier-ignore
        return [{ origin: this.origin, cert: readFileSync(at("certificate.pem")), key: readFileSync(at("key.pem")) }];
    }
}

/** One HTTP request: status, headers, body as text and bytes. */
export function request(url, { method = "GET", headers = {}, body, agent } = {}) {
    return new Promise((done, failed) => {
        const sent = (url.startsWith("https:") ? https : http).request(
            url,
            { method, agent, headers: body ? { ...headers, "content-length": Buffer.byteLength(body) } : headers },
            (answer) => {
                const parts = [];
                answer.on("data", (part) => parts.push(part));
                answer.on("error", failed);
                answer.on("end", () => {
                    const body = Buffer.concat(parts);
                    done({ status: answer.statusCode, headers: answer.headers, body, text: body.toString("utf8") });
                });
            },
        );
        sent.setTimeout(30_000, () => sent.destroy(new Error(`${method} ${new URL(url).pathname}: no answer in 30 s`)));
        sent.on("error", failed);
        sent.end(body);
    });
}

function openssl(...args) {
    execFileSync("openssl", args, { stdio: ["ignore", "ignore", "pipe"] });
}

/** What the pages escape in a password or code. */
function unescape(text) {
    return text.replace(/&#(\d+);/g, (_, number) => String.fromCodePoint(Number(number)))
        .replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&quot;/g, '"').replace(/&amp;/g, "&"); // prettier-ignore
}

/** Ports that were free a moment ago, all different. */
async function freePorts(count) {
    const sockets = Array.from({ length: count }, () => createServer());
    const ports = await Promise.all(
        sockets.map((socket) => new Promise((done) => socket.listen(0, "127.0.0.1", () => done(socket.address().port)))),
    );
    await Promise.all(sockets.map((socket) => new Promise((done) => socket.close(done))));
    return ports;
}
