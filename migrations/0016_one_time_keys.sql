-- A key that was handed out stays as a claimed row for a while: an upload that is sent again (its answer was lost) must not
-- put it back. The same id may stand for a key of each algorithm.
CREATE TABLE one_time_keys_by_algorithm (
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    key       TEXT NOT NULL,
    position  BIGINT NOT NULL,
    claimed   BOOLEAN NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, key_id)
);
INSERT INTO one_time_keys_by_algorithm (user_id, device_id, algorithm, key_id, key, position, claimed)
    SELECT user_id, device_id, algorithm, key_id, key, position, FALSE FROM one_time_keys;
DROP TABLE one_time_keys;
ALTER TABLE one_time_keys_by_algorithm RENAME TO one_time_keys;
