-- The state at an event off the room's line (DESIGN 6): a fork that another server brings. Local writes never make one.
-- `events.state_id` names it; null there means the room's interval state.
CREATE TABLE stored_states (
    id           BIGINT PRIMARY KEY,
    room_id      TEXT NOT NULL,
    parent       BIGINT,              -- the stored state that this one changes; null: the line's
    parent_order BIGINT NOT NULL      -- where parent is null: the line's state just before this order
);
CREATE TABLE stored_state_changes (
    state_id  BIGINT NOT NULL,
    type      TEXT NOT NULL,
    state_key TEXT NOT NULL,
    event_id  TEXT NOT NULL,
    PRIMARY KEY (state_id, type, state_key)
);
