// Chromium for the tests: contexts with and without a certificate, screenshots, and what a page must not do.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual } from "node:util";
import { chromium } from "playwright-core";

const SCREENSHOTS = join(dirname(fileURLToPath(import.meta.url)), "screenshots");
/** The handbook's smallest screen (§10), and a phone. */
const SIZES = [
    { width: 1024, height: 768 },
    { width: 390, height: 844 },
];

/** Starts Debian's Chromium, which makes no request of its own. */
export function launch() {
    return chromium.launch({
        executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
        args: [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ],
    });
}

/** A fresh profile with one page. `watched` collects what the page asks for, logs, and throws. */
export async function newPage(browser, clientCertificates) {
    const context = await browser.newContext({
        // The tests' server certificate is by the city's own CA, which Chromium does not know.
        ignoreHTTPSErrors: true,
        locale: "ja-JP",
        viewport: SIZES[0],
        ...(clientCertificates && { clientCertificates }),
    });
    const page = await context.newPage();
    page.setDefaultTimeout(30_000);
    page.watched = { origins: new Set(), errors: [] };
    context.on("request", (request) => {
        const url = new URL(request.url());
        if (!["data:", "blob:"].includes(url.protocol)) page.watched.origins.add(url.origin);
    });
    page.on("console", (message) => {
        if (message.type() === "error") page.watched.errors.push(`${message.text()} (${message.location().url})`);
    });
    page.on("pageerror", (error) => page.watched.errors.push(`uncaught: ${error.message}`));
    return page;
}

/** Takes a picture of the whole page at each size, and checks that nothing sticks out sideways. */
export async function shoot(page, name) {
    mkdirSync(SCREENSHOTS, { recursive: true });
    for (const size of SIZES) {
        await page.setViewportSize(size);
        const { wide, seen } = await page.evaluate(() => ({
            wide: document.documentElement.scrollWidth,
            seen: document.documentElement.clientWidth,
        }));
        assert.ok(wide <= seen, `${name} is ${wide} px wide on a screen of ${seen} px`);
        await page.screenshot({ path: join(SCREENSHOTS, `${name}-${size.width}x${size.height}.png`), fullPage: true });
    }
    await page.setViewportSize(SIZES[0]);
}

/**
 * Asks a page until what it answers is this, and then returns; after thirty seconds it fails with the last answer. (Playwright's
 * `waitForFunction` does not wait for a promise: to it, an asynchronous condition holds at once.)
 */
export async function eventually(page, read, arg, wanted, message) {
    const deadline = performance.now() + 30_000;
    for (;;) {
        const found = await page.evaluate(read, arg);
        if (isDeepStrictEqual(found, wanted)) return;
        if (performance.now() > deadline) assert.deepEqual(found, wanted, message);
        await new Promise((again) => setTimeout(again, 50));
    }
}
