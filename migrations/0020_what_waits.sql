-- Mails that wait are looked for each second, among all that were ever owed.
CREATE INDEX mails_waiting ON mails (leased_until) WHERE outcome IS NULL;
