// Bundles the test client into build/client, as an operator would drop a web client in.

import { build } from "esbuild";
import { copyFileSync, mkdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));

/** Builds it and returns its folder. */
export async function bundle() {
    const folder = join(here, "build/client");
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(join(folder, "pkg"), { recursive: true });
    await build({
        entryPoints: [join(here, "client/main.js")],
        outfile: join(folder, "main.js"),
        bundle: true,
        minify: true,
        format: "esm",
        target: "es2022",
        define: { global: "globalThis" },
        logLevel: "error",
    });
    copyFileSync(join(here, "client/index.html"), join(folder, "index.html"));
    // The SDK fetches it beside its own file.
    const wasm = "pkg/matrix_sdk_crypto_wasm_bg.wasm";
    copyFileSync(join(here, "node_modules/@matrix-org/matrix-sdk-crypto-wasm", wasm), join(folder, wasm));
    return folder;
}
