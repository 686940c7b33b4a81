-- From where an event was sent into the control room, where words and reactions are orders: what staff do by the bot is
-- logged with it (REQUIREMENTS C22). Written with the event; its device, session and certificate may be gone when the order
-- is carried out. That room is never purged, and a row names nobody's content.
CREATE TABLE event_origins (
    event_id    TEXT PRIMARY KEY,
    terminal    BIGINT,               -- null: policy asks for no certificate
    certificate TEXT,
    address     TEXT NOT NULL
);
