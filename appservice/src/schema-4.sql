-- Version 4: e-applications (電子申請). They come as CSV files posted in the control room.
CREATE TABLE application_files (
    event_id TEXT PRIMARY KEY,       -- the post
    mxc TEXT NOT NULL,
    name TEXT NOT NULL,              -- what the file is called: it may say the procedure
    posted_by TEXT NOT NULL,
    posted_at BIGINT NOT NULL,
    taken_back_at BIGINT             -- the post was redacted; kept, so that a purge finds its original
);

-- Which subjects a file names (name after NFKC without spaces, '|', birth date or nothing), for the purge of their records.
CREATE TABLE application_subjects (
    file TEXT NOT NULL,
    subject_key TEXT NOT NULL,
    PRIMARY KEY (file, subject_key)
);
CREATE INDEX application_subjects_by_subject ON application_subjects (subject_key);

-- Messages of the bot about such a file: a reaction or a reply to one has it taken.
CREATE TABLE application_messages (
    event_id TEXT PRIMARY KEY,
    file TEXT NOT NULL               -- application_files.event_id
);

-- Applications that were taken, by their receipt number (整理番号): each counts once, however often it is imported.
CREATE TABLE applications (
    receipt TEXT PRIMARY KEY,
    content TEXT NOT NULL,           -- a hash of the row: the same number with other content is told
    case_number BIGINT,              -- none: a consent was recorded
    taken_by TEXT NOT NULL,
    taken_at BIGINT NOT NULL
);

-- Rows that could not be taken, until the application is.
CREATE TABLE applications_aside (
    file TEXT NOT NULL,
    line BIGINT NOT NULL,
    receipt TEXT,
    reason TEXT NOT NULL,            -- as people read it; names nobody
    set_aside_at BIGINT NOT NULL,
    PRIMARY KEY (file, line)
);
CREATE INDEX applications_aside_by_receipt ON applications_aside (receipt);

PRAGMA user_version = 4;
