-- Who may do what to which table. Asserted whole by bibd/catalog/golden/roles.txt: change both together.
-- No role but bibd_seal writes seals; none updates, deletes or truncates an audit table; no two job roles are alike.
SET LOCAL search_path = bib;

GRANT USAGE ON SCHEMA bib TO bibd_service, bibd_seal, bibd_audit, bibd_backup,
    bibd_scrape, bibd_query, bibd_transform, bibd_admin_jobs;

-- Functions are for nobody until said otherwise.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA bib FROM PUBLIC;

-- Use cases.
GRANT SELECT, INSERT, UPDATE, DELETE ON
    nodes, users, user_keys, user_uids, persons, certificates, sessions, tokens, settings, quotas, idempotency,
    topics, topic_grants, datasets, names, records,
    pages, chunks, chunk_places, page_chunks, versions, version_roots, page_spans, tags,
    leases, lease_chunks, lease_pages
    TO bibd_service;
GRANT SELECT, INSERT ON audit_entry, audit_detail TO bibd_service;
GRANT SELECT ON audit_seal, audit_checkpoint TO bibd_service;
GRANT EXECUTE ON FUNCTION audit_make_month(timestamptz), audit_make_block(bigint, bigint), audit_erase(uuid) TO bibd_service;

-- The sequencer.
GRANT SELECT, DELETE ON audit_unsealed TO bibd_seal;
GRANT SELECT, INSERT ON audit_seal, audit_checkpoint TO bibd_seal;
GRANT SELECT, INSERT, UPDATE ON audit_head TO bibd_seal;
GRANT INSERT ON audit_entry, audit_detail TO bibd_seal;
GRANT EXECUTE ON FUNCTION audit_make_block(bigint, bigint) TO bibd_seal;

-- Reading the log.
GRANT SELECT ON audit_entry, audit_detail, audit_seal, audit_checkpoint, audit_head, audit_unsealed TO bibd_audit;
GRANT INSERT ON audit_entry, audit_detail TO bibd_audit;

-- Dumps.
GRANT SELECT ON ALL TABLES IN SCHEMA bib TO bibd_backup;

-- Jobs, each with what its kind needs.
GRANT SELECT ON topics, datasets, versions, version_roots, pages, page_chunks, chunks, tags TO bibd_query;
GRANT INSERT ON audit_entry, audit_detail TO bibd_query;
GRANT SELECT ON topics TO bibd_scrape;
GRANT INSERT ON datasets, chunks, audit_entry, audit_detail TO bibd_scrape;
GRANT SELECT ON topics TO bibd_transform;
GRANT SELECT, INSERT, UPDATE ON datasets, chunks TO bibd_transform;
GRANT INSERT ON audit_entry, audit_detail TO bibd_transform;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    nodes, persons, settings, quotas, idempotency, topics, topic_grants, datasets, names, records,
    pages, chunks, chunk_places, page_chunks, versions, version_roots, page_spans, tags,
    leases, lease_chunks, lease_pages
    TO bibd_admin_jobs;
GRANT INSERT ON audit_entry, audit_detail TO bibd_admin_jobs;
