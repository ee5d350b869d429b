-- Takes nothing away: the tables move aside.
CREATE SCHEMA IF NOT EXISTS bib_removed;
ALTER TABLE bib.lease_pages SET SCHEMA bib_removed;
ALTER TABLE bib.lease_chunks SET SCHEMA bib_removed;
ALTER TABLE bib.leases SET SCHEMA bib_removed;
ALTER TABLE bib.tags SET SCHEMA bib_removed;
ALTER TABLE bib.page_spans SET SCHEMA bib_removed;
ALTER TABLE bib.version_roots SET SCHEMA bib_removed;
ALTER TABLE bib.versions SET SCHEMA bib_removed;
ALTER TABLE bib.page_chunks SET SCHEMA bib_removed;
ALTER TABLE bib.chunk_places SET SCHEMA bib_removed;
ALTER TABLE bib.chunks SET SCHEMA bib_removed;
ALTER TABLE bib.pages SET SCHEMA bib_removed;
