// Runs the browser tests one after another against one city; the last line says how many passed and failed.
// `pages`, `client`, `calls`, `encryption` or `conversation` as argument runs one part; within a part tests build on those before them.

import { bundle } from "./bundle.mjs";
import { launch } from "./browser.mjs";
import { callsTests } from "./calls.test.mjs";
import { City } from "./city.mjs";
import { clientTests } from "./client.test.mjs";
import { conversationTests } from "./conversation.test.mjs";
import { encryptionTests } from "./encryption.test.mjs";
import { pagesTests } from "./pages.test.mjs";

const parts = { pages: pagesTests, client: clientTests, calls: callsTests, encryption: encryptionTests, conversation: conversationTests };
const wanted = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(parts);
for (const part of wanted) if (!(part in parts)) throw new Error(`no part "${part}": ${Object.keys(parts).join(", ")}`);
// A signal, too, runs what waits for the exit.
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));
const clientDir = await bundle();
const cities = [];
let chromium;
let passed = 0;
let failed = 0;
try {
    const city = await City.start({ clientDir });
    cities.push(city);
    const bare = await City.start({ policy: ["oauth = true"] });
    cities.push(bare);
    const sealed = await City.start({ clientDir, encryption: "allowed" });
    cities.push(sealed);
    chromium = await launch();
    const facility = await city.facility("あおば訪問看護ステーション");
    const tests = [];
    const test = (name, run) => tests.push({ name, run });
    const given = { browser: () => chromium, city, facility, bare: () => bare, sealed: () => sealed };
    for (const part of wanted) parts[part](test, given);
    for (const { name, run } of tests) {
        const began = performance.now();
        try {
            await run();
            passed += 1;
            console.log(`ok      ${name} (${((performance.now() - began) / 1000).toFixed(1)} s)`);
        } catch (error) {
            failed += 1;
            console.log(`FAILED  ${name}\n${String(error.stack ?? error).replace(/^/gm, "        ")}`);
        }
    }
    if (failed) console.log(`the server's log:\n${cities.map((city) => city.log.slice(-4_000)).join("\n")}`);
} finally {
    await chromium?.close();
    for (const city of cities) await city.stop();
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed || !passed ? 1 : 0;
