-- When an ID was last used, whatever becomes of its sessions: for the register of IDs that nobody uses (C18).
ALTER TABLE accounts ADD COLUMN last_used BIGINT;
UPDATE accounts SET last_used = (SELECT MAX(d.last_seen) FROM devices d WHERE d.user_id = accounts.user_id);
