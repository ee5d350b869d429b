-- Takes nothing away: the tables move aside.
CREATE SCHEMA IF NOT EXISTS bib_removed;
ALTER TABLE bib.records SET SCHEMA bib_removed;
ALTER TABLE bib.names SET SCHEMA bib_removed;
ALTER TABLE bib.datasets SET SCHEMA bib_removed;
ALTER FUNCTION bib.datasets_set_words() SET SCHEMA bib_removed;
ALTER TABLE bib.topic_grants SET SCHEMA bib_removed;
ALTER TABLE bib.topics SET SCHEMA bib_removed;
