-- Version 3: scans of the consent form (form 4). The file itself is in the control room; here is which post has it.
CREATE TABLE consent_scans (
    event_id TEXT PRIMARY KEY,
    consent BIGINT NOT NULL,         -- consents.id
    attached_by TEXT NOT NULL,
    attached_at BIGINT NOT NULL,
    taken_back_at BIGINT             -- the post was redacted; kept, so that a purge names the same posts when it is repeated
);
CREATE INDEX consent_scans_by_consent ON consent_scans (consent);

-- Messages of the bot in the control room about a report of consent: a scan may be posted as a reply to one.
CREATE TABLE consent_messages (
    event_id TEXT PRIMARY KEY,
    consent BIGINT NOT NULL
);
CREATE INDEX consent_messages_by_consent ON consent_messages (consent);

PRAGMA user_version = 3;
