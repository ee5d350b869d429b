REVOKE ALL ON ALL TABLES IN SCHEMA bib FROM bibd_service, bibd_seal, bibd_audit, bibd_backup,
    bibd_scrape, bibd_query, bibd_transform, bibd_admin_jobs;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA bib FROM bibd_service, bibd_seal;
REVOKE USAGE ON SCHEMA bib FROM bibd_service, bibd_seal, bibd_audit, bibd_backup,
    bibd_scrape, bibd_query, bibd_transform, bibd_admin_jobs;
