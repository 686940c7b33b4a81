-- Version 5: posts that name a subject and became neither a case nor a report of consent: forms with gaps, and the staff's
-- withdrawals. They go with the subject's record.
CREATE TABLE subject_posts (
    event_id TEXT PRIMARY KEY,
    subject_key TEXT NOT NULL        -- name after NFKC without spaces, '|', birth date or nothing
);
CREATE INDEX subject_posts_by_subject ON subject_posts (subject_key);

PRAGMA user_version = 5;
