-- Version 2: by which event a case was decided, so that the server can say from which terminal.
ALTER TABLE cases ADD COLUMN decided_event TEXT;

PRAGMA user_version = 2;
