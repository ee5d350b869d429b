ALTER TABLE bib.datasets DROP COLUMN origin;
ALTER TABLE bib.topics DROP COLUMN origin;
