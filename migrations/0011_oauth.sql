-- Access tokens that run out, refresh tokens, the OAuth 2.0 API, OpenID tokens, checks of addresses for a new password.

-- A device has one session. While an answer with new tokens may have been lost it has two rows: the access token in use
-- and the one that came by the refresh and nobody has used yet.
ALTER TABLE sessions ADD COLUMN expires_at  BIGINT;                         -- of the access token (ms); null: it does not run out
ALTER TABLE sessions ADD COLUMN client_id   TEXT;                           -- the OAuth client; null: m.login.password, registration
ALTER TABLE sessions ADD COLUMN scope       TEXT;                           -- what the OAuth client was given
ALTER TABLE sessions ADD COLUMN certificate TEXT;                           -- serial (hex) shown at the log-in; null: before this column
ALTER TABLE sessions ADD COLUMN unused      BOOLEAN NOT NULL DEFAULT FALSE; -- came by a refresh; what it replaces is still good

CREATE TABLE refresh_tokens (
    token_hash TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL,
    device_id  TEXT NOT NULL,
    state      TEXT NOT NULL,         -- current | previous (good until a newer token is used) | spent (its use ends the session)
    created_at BIGINT NOT NULL
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_id, device_id);

-- Clients that registered themselves (RFC 7591). The id is a hash of the metadata: the same client has the same one.
CREATE TABLE oauth_clients (
    client_id  TEXT PRIMARY KEY,
    metadata   TEXT NOT NULL,         -- JSON, only what was checked
    created_at BIGINT NOT NULL,
    used_at    BIGINT                 -- when somebody last logged in with it
);

CREATE TABLE oauth_codes (
    code_hash    TEXT PRIMARY KEY,
    client_id    TEXT NOT NULL,
    redirect_uri TEXT NOT NULL,
    challenge    TEXT NOT NULL,       -- S256
    user_id      TEXT NOT NULL,
    device_id    TEXT NOT NULL,
    scope        TEXT NOT NULL,
    terminal     BIGINT,
    certificate  TEXT,
    expires_at   BIGINT NOT NULL,
    used_at      BIGINT
);

CREATE TABLE openid_tokens (
    token_hash TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX openid_tokens_user ON openid_tokens (user_id);

-- What a checked address is good for. A link that was opened for one thing must not do the other.
ALTER TABLE threepid_checks ADD COLUMN purpose TEXT NOT NULL DEFAULT 'add'; -- add | reset
