ALTER TABLE bib.versions DROP COLUMN charged_bytes;
