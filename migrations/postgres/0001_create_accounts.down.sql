-- Takes nothing away: the tables move aside, whole, to a schema that no role but the owner may use.
CREATE SCHEMA IF NOT EXISTS bib_removed;
ALTER TABLE bib.idempotency SET SCHEMA bib_removed;
ALTER TABLE bib.quotas SET SCHEMA bib_removed;
ALTER TABLE bib.settings SET SCHEMA bib_removed;
ALTER TABLE bib.tokens SET SCHEMA bib_removed;
ALTER TABLE bib.sessions SET SCHEMA bib_removed;
ALTER TABLE bib.certificates SET SCHEMA bib_removed;
ALTER TABLE bib.persons SET SCHEMA bib_removed;
ALTER TABLE bib.user_uids SET SCHEMA bib_removed;
ALTER TABLE bib.user_keys SET SCHEMA bib_removed;
ALTER TABLE bib.users SET SCHEMA bib_removed;
ALTER TABLE bib.nodes SET SCHEMA bib_removed;
