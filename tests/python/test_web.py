"""The folder of a web client that an operator drops in (DESIGN 1; Element Web's own deployment guide): headers, caching,
compression, our script, the generated config. A small client stands for Element Web, with files named as its build names
them."""

from __future__ import annotations

import gzip
import json
import os
import re

import pytest

from harness import CONTACT, Answer, Server

HASH = "4f0c1d2e3a5b6c7d8e9f"
FILES = {
    "index.html": '<!doctype html><html><head><meta charset="utf-8"><link rel="manifest" href="manifest.json">'
                  f'<script src="bundles/{HASH}/init.js" type="module"></script></head><body></body></html>',
    f"bundles/{HASH}/init.js": "console.log('はじめ');" * 400,
    f"bundles/{HASH}/crypto.wasm": "\0asm" * 500,
    "fonts/Inter.a1b2c3d4.woff2": "font" * 500,
    "i18n/ja.0123abc.json": json.dumps({"語": "ことば"} | {str(n): "x" for n in range(300)}),
    "img/logo.svg": "<svg xmlns='http://www.w3.org/2000/svg'/>",
    "manifest.json": "{}",
    "sw.js": "// worker",
    "version": "1.2.3",
    # Through this page in a frame Element hands out files to keep.
    "usercontent/index.html": "<!doctype html><script src='../bundles/x.js'></script>",
    # What an operator copied from elsewhere must not win.
    "config.json": '{"default_hs_url": "https://elsewhere.example"}',
    "config.localhost.json": '{"default_hs_url": "https://elsewhere.example"}',
}
IMMUTABLE = "public, max-age=31536000, immutable"


class Linking(Server):
    """A city with a link of its own on its pages."""

    def _write_config(self) -> None:
        super()._write_config()
        path = self.folder / "config.toml"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("[city]", '[city]\nlinks = [{ label = "利用規約", url = "https://city.example/terms" }]'), encoding="utf-8")


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Server:
    folder = tmp_path_factory.mktemp("client")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    server = Linking(config={"web": {"client_dir": str(folder)}})
    server.client_folder = folder
    server.visitor = server.person()
    yield server
    server.remove()


def get(web: Server, path: str, **headers: str) -> Answer:
    return web.visitor.client.get(path, headers=headers, token="")


def test_every_file_has_the_headers(web: Server):
    for path in ["/", "/config.json", "/_heya/certificate.js", *("/" + name for name in FILES if not name.startswith("config."))]:
        answer = get(web, path)
        assert answer.status == 200, path
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        # Nothing outside, no inline script, framed by the client itself only.
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self' 'wasm-unsafe-eval'", path
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'self'"
        assert not re.search(r"https?:|\*", answer.headers["Content-Security-Policy"])
        # What Element Web needs: blobs as pictures, sound, downloads and workers; its fonts and styles.
        for what, needs in {"img-src": "blob:", "media-src": "blob:", "connect-src": "'self'", "worker-src": "blob:",
                            "style-src": "'unsafe-inline'", "font-src": "data:", "frame-src": "'self'", "manifest-src": "'self'"}.items():
            assert needs in policy[what].split(), (path, what)
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    kinds = {f"/bundles/{HASH}/init.js": "text/javascript", f"/bundles/{HASH}/crypto.wasm": "application/wasm", "/": "text/html",
             "/fonts/Inter.a1b2c3d4.woff2": "font/woff2", "/img/logo.svg": "image/svg+xml", "/manifest.json": "application/json"}
    for path, kind in kinds.items():
        assert get(web, path).headers["Content-Type"].split(";")[0] == kind, path


def test_what_is_named_by_its_hash_is_kept_and_the_rest_asked_for(web: Server):
    for name in FILES:
        if name.startswith("config."):
            continue
        answer = get(web, "/" + name)
        hashed = HASH in name or name.startswith(("fonts/", "i18n/"))
        assert answer.headers["Cache-Control"] == (IMMUTABLE if hashed else "no-cache"), name
        if hashed:
            continue
        # Asked for again and not sent again; sent when it has changed.
        tag = answer.headers["ETag"]
        same = get(web, "/" + name, **{"If-None-Match": f'"other", {tag}'})
        assert same.status == 304 and not same.content and same.headers["ETag"] == tag, name
        assert same.headers["Cache-Control"] == "no-cache" and same.headers["X-Content-Type-Options"] == "nosniff"
        path = web.client_folder / name
        os.utime(path, (1, 1))
        changed = get(web, "/" + name, **{"If-None-Match": tag})
        assert changed.status == 200 and changed.headers["ETag"] != tag and changed.content == answer.content, name
    assert get(web, "/config.json").headers["Cache-Control"] == "no-cache"
    assert get(web, "/").headers["Cache-Control"] == "no-cache"


def test_texts_go_out_compressed(web: Server):
    for name in (f"bundles/{HASH}/init.js", f"bundles/{HASH}/crypto.wasm", "i18n/ja.0123abc.json"):
        answer = get(web, "/" + name, **{"Accept-Encoding": "gzip"})
        assert answer.headers["Content-Encoding"] == "gzip" and "accept-encoding" in answer.headers["Vary"].lower(), name
        assert gzip.decompress(answer.content).decode() == FILES[name] and len(answer.content) < len(FILES[name]) / 2
        assert "Content-Encoding" not in get(web, "/" + name).headers
    assert "Content-Encoding" not in get(web, "/fonts/Inter.a1b2c3d4.woff2", **{"Accept-Encoding": "gzip"}).headers


def test_the_page_has_our_script_first_and_a_manifest_with_the_certificate(web: Server):
    page = get(web, "/").text
    assert re.findall(r'<script src="([^"]+)"', page) == ["/_heya/certificate.js", f"bundles/{HASH}/init.js"]
    assert page.index("/_heya/certificate.js") < page.index("manifest")
    assert '<link rel="manifest" crossorigin="use-credentials" href="manifest.json">' in page
    assert get(web, "/index.html").text == page


def test_the_config_is_this_citys_and_leads_nowhere_else(web: Server):
    answer = get(web, "/config.json")
    config = answer.json
    assert config["default_server_config"] == {"m.homeserver": {"base_url": web.base, "server_name": web.server_name}}
    assert config["disable_guests"] and config["disable_custom_urls"] and not config["default_federate"]
    defaults = config["setting_defaults"]
    assert defaults["language"] == "ja" and not defaults["urlPreviewsEnabled"]
    # No fall-back to somebody else's call server, no identity server, no widgets, no reports to a maker.
    for off in ("fallbackICEServerAllowed", "webRtcAllowPeerToPeer", "UIFeature.identityServer", "UIFeature.widgets", "UIFeature.voip",
                "UIFeature.feedback", "UIFeature.locationSharing", "UIFeature.registration", "UIFeature.BulkUnverifiedSessionsReminder"):
        assert defaults[off] is False, off
    assert not any(config["features"].values())
    assert config["integrations_ui_url"] == config["integrations_rest_url"] == config["bug_report_endpoint_url"] == config["map_style_url"] == ""
    assert not config["desktop_builds"]["available"] and set(config["mobile_builds"].values()) == {None}
    assert "m.identity_server" not in config["default_server_config"] and not {"posthog", "sentry", "element_call"} & set(config)
    assert config["jitsi"]["preferred_domain"] == web.server_name
    # The only addresses: the server's two, and what the city itself links to.
    assert set(re.findall(r"https?://[^/\"]+", answer.text)) == {web.base, web.enrol_base, "https://city.example"}
    assert config["branding"]["auth_footer_links"] == [{"text": "利用規約", "url": "https://city.example/terms"}]


def test_a_folder_is_its_page(web: Server):
    answer = get(web, "/usercontent/")
    assert answer.status == 200 and answer.text == FILES["usercontent/index.html"]
    assert "frame-ancestors 'self'" in answer.headers["Content-Security-Policy"] and answer.headers["Content-Type"].startswith("text/html")
    short = get(web, "/usercontent")
    assert short.status == 308 and short.headers["Location"] == "./usercontent/"
    for none in ("/bundles/", "/bundles", "//usercontent", "/..//usercontent"):
        assert get(web, none).status == 404, none


def test_phones_stay_and_links_are_the_citys(web: Server):
    """Element asks for neither before it reads its config, so the script that runs first says it."""
    assert "element_mobile_redirect_to_guide=false; path=/; SameSite=Strict; Secure" in get(web, "/_heya/certificate.js").text
    config = get(web, "/config.json").json
    assert config["permalink_prefix"] == web.base
    home = get(web, config["embedded_pages"]["home_url"])
    assert home.status == 200 and "左の一覧から部屋を選んでください" in home.text and CONTACT.splitlines()[0] in home.text
    assert "<script" not in home.text


def test_no_other_config_and_nothing_beside_the_folder(web: Server):
    """Element asks for `config.<host>.json` first."""
    for path in ("/config.localhost.json", "/config.sample.json", "/no/such.js", "/bundles", "/..%2fsecret", "/%2e%2e/secret"):
        assert get(web, path).status == 404, path
    assert get(web, "/_matrix/client/v3/nothing").told == (404, "M_UNRECOGNIZED")
    # And nothing of it without the certificate.
    for path in ("/", "/config.json", f"/bundles/{HASH}/init.js"):
        assert web.public().get(path).status == 403, path
