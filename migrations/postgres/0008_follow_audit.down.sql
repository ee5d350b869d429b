DROP FUNCTION bib.audit_months();
DROP FUNCTION bib.audit_drop_month(timestamptz, uuid);
DROP FUNCTION bib.audit_detach_month(timestamptz);
DROP INDEX bib.audit_entry_special;
DROP TABLE bib.audit_reader;
