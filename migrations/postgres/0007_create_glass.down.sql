-- Takes nothing away: the tables move aside.
REVOKE ALL ON ALL TABLES IN SCHEMA bib FROM bibd_glass_read, bibd_glass_write;
REVOKE USAGE ON SCHEMA bib FROM bibd_glass_read, bibd_glass_write;
CREATE SCHEMA IF NOT EXISTS bib_removed;
ALTER TABLE bib.glass_sessions SET SCHEMA bib_removed;
ALTER TABLE bib.glass_grants SET SCHEMA bib_removed;
