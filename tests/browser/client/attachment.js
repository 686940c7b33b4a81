// Encrypted attachments (client-server API, "Sending encrypted attachments", v2), which an SDK leaves to its client:
// AES-CTR with a key of its own for each file, named in the event beside the hash of what lies on the server.

const base64 = (bytes) => btoa(String.fromCharCode(...bytes)).replace(/=+$/, "");
const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const sha256 = async (data) => base64(new Uint8Array(await crypto.subtle.digest("SHA-256", data)));
/** The upper half of the block counts from a random number, the lower from zero. */
const counter = (iv) => ({ name: "AES-CTR", counter: iv, length: 64 });

/** Encrypts a file: the bytes to upload, and the event's `file` without its `url`. */
export async function encrypt(data) {
    const iv = new Uint8Array(16);
    crypto.getRandomValues(iv.subarray(0, 8));
    const key = await crypto.subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
    const sealed = await crypto.subtle.encrypt(counter(iv), key, data);
    const jwk = { ...(await crypto.subtle.exportKey("jwk", key)), key_ops: ["encrypt", "decrypt"] };
    return { sealed, file: { v: "v2", key: jwk, iv: base64(iv), hashes: { sha256: await sha256(sealed) } } };
}

/** Decrypts what was downloaded. Throws where it is not what the event names. */
export async function decrypt(sealed, file) {
    if ((await sha256(sealed)) !== file.hashes.sha256) throw new Error("the file is another than the event says");
    const key = await crypto.subtle.importKey("jwk", file.key, { name: "AES-CTR" }, false, ["decrypt"]);
    return crypto.subtle.decrypt(counter(bytesOf(file.iv)), key, sealed);
}
