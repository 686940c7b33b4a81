-- Profile fields beside the display name and the avatar, which stand in `accounts` (client-server API, "Profiles", v1.16).
CREATE TABLE profile_fields (
    user_id TEXT NOT NULL,
    key     TEXT NOT NULL,
    -- JSON text of any type.
    value   TEXT NOT NULL,
    PRIMARY KEY (user_id, key)
);
