-- The search index in one tree instead of three: a room's terms stand together, under a number instead of the room's id, and
-- nothing but the entry itself is stored. It is made anew: search finds less for the minutes that this takes.
DROP TABLE search_terms;
CREATE TABLE search_terms (
    room     BIGINT NOT NULL,         -- the position of the room's create event, a short name for it
    term     TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (room, term, position)
) /*! SQLite: WITHOUT ROWID */;
DELETE FROM followers WHERE name = 'search';

-- The transactions of clients in one tree instead of two.
CREATE TABLE transactions_by_key (
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    scope     TEXT NOT NULL,          -- endpoint and room
    txn_id    TEXT NOT NULL,
    event_id  TEXT NOT NULL,
    at        BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, scope, txn_id)
) /*! SQLite: WITHOUT ROWID */;
INSERT INTO transactions_by_key (user_id, device_id, scope, txn_id, event_id, at)
    SELECT user_id, device_id, scope, txn_id, event_id, at FROM transactions;
DROP TABLE transactions;
ALTER TABLE transactions_by_key RENAME TO transactions;
