//! What could have been changed in a database, at one moment, and the difference between two moments.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;

use crate::error::Error;

/// Every object by kind and name, with a line that says how it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Snapshot(BTreeMap<String, BTreeMap<String, String>>);

/// One object that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `role`, `function`, `trigger`, `setting` and others.
    pub kind: String,
    /// Which.
    pub name: String,
    /// How it was; nothing when it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// How it is; nothing when it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

macro_rules! kinds {
    ($($kind:literal $sql:literal,)*) => {
        const KINDS: &[(&str, &str)] = &[$(($kind, $sql),)*];
    };
}

// Numbers from 16384 on are those of objects that came after `initdb`: whatever schema they hide in. Settings with a dot are
// those of a module that this session has loaded.
kinds! {
    "role" "SELECT rolname::text, concat_ws(' ', CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
        CASE WHEN rolcreatedb THEN 'CREATEDB' END, CASE WHEN rolreplication THEN 'REPLICATION' END,
        CASE WHEN rolbypassrls THEN 'BYPASSRLS' END, CASE WHEN rolcanlogin THEN 'LOGIN' END,
        CASE WHEN rolinherit THEN 'INHERIT' END, 'limit ' || rolconnlimit, 'until ' || coalesce(rolvaliduntil::text, 'ever'))
        FROM pg_roles",
    "membership" "SELECT m.rolname || ' in ' || r.rolname, CASE WHEN a.admin_option THEN 'may give it away' ELSE 'member' END
        FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member",
    "role setting" "SELECT coalesce(r.rolname::text, 'ALL') || ' in ' || coalesce(d.datname::text, 'ALL'), array_to_string(s.setconfig, ', ')
        FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase",
    "setting" "SELECT name, setting || coalesce(' ' || unit, '') || ' (' || source || ')' FROM pg_settings WHERE name !~ '[.]'",
    "function" "SELECT p.oid::regprocedure::text, concat_ws(' ', CASE WHEN p.prosecdef THEN 'SECURITY DEFINER' END, l.lanname,
        'owner ' || pg_get_userbyid(p.proowner), 'set ' || array_to_string(p.proconfig, ', '), 'rights ' || array_to_string(p.proacl, ', '),
        'text ' || md5(p.prosrc || coalesce(p.probin, '')))
        FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.oid >= 16384",
    "trigger" "SELECT t.tgname || ' on ' || t.tgrelid::regclass, 'enabled ' || t.tgenabled::text || ' ' || pg_get_triggerdef(t.oid)
        FROM pg_trigger t WHERE NOT t.tgisinternal",
    "event trigger" "SELECT evtname::text, concat_ws(' ', evtevent, 'enabled ' || evtenabled::text, evtfoid::regprocedure, array_to_string(evttags, ', '))
        FROM pg_event_trigger",
    "rule" "SELECT r.rulename || ' on ' || r.ev_class::regclass, 'enabled ' || r.ev_enabled::text || ' ' || md5(pg_get_ruledef(r.oid))
        FROM pg_rewrite r WHERE r.oid >= 16384",
    "policy" "SELECT p.polname || ' on ' || p.polrelid::regclass, concat_ws(' ', p.polcmd, pg_get_expr(p.polqual, p.polrelid),
        pg_get_expr(p.polwithcheck, p.polrelid)) FROM pg_policy p",
    "relation" "SELECT c.oid::regclass::text, concat_ws(' ', 'kind ' || c.relkind::text, 'owner ' || pg_get_userbyid(c.relowner),
        'rights ' || array_to_string(c.relacl, ', '), 'options ' || array_to_string(c.reloptions, ', '),
        CASE WHEN c.relrowsecurity THEN 'row security' END, 'columns ' || c.relnatts)
        FROM pg_class c WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't'",
    "column" "SELECT a.attrelid::regclass || '.' || a.attname, 'rights ' || array_to_string(a.attacl, ', ')
        FROM pg_attribute a WHERE a.attacl IS NOT NULL",
    "schema" "SELECT nspname::text, concat_ws(' ', 'owner ' || pg_get_userbyid(nspowner), 'rights ' || array_to_string(nspacl, ', '))
        FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'",
    "database" "SELECT datname::text, concat_ws(' ', 'owner ' || pg_get_userbyid(datdba), 'rights ' || array_to_string(datacl, ', ')) FROM pg_database",
    "default rights" "SELECT pg_get_userbyid(defaclrole) || ' in ' || coalesce(defaclnamespace::regnamespace::text, 'ALL') || ' on ' || defaclobjtype::text,
        array_to_string(defaclacl, ', ') FROM pg_default_acl",
    "extension" "SELECT extname::text, extversion || ' owner ' || pg_get_userbyid(extowner) FROM pg_extension",
    "language" "SELECT lanname::text, concat_ws(' ', 'owner ' || pg_get_userbyid(lanowner), 'rights ' || array_to_string(lanacl, ', ')) FROM pg_language",
    "type" "SELECT t.oid::regtype::text, concat_ws(' ', 'kind ' || t.typtype::text, 'owner ' || pg_get_userbyid(t.typowner))
        FROM pg_type t WHERE t.oid >= 16384 AND t.typrelid = 0 AND t.typelem = 0",
    "large object" "SELECT oid::text, concat_ws(' ', 'owner ' || pg_get_userbyid(lomowner), 'rights ' || array_to_string(lomacl, ', '))
        FROM pg_largeobject_metadata",
    "foreign server" "SELECT srvname::text, 'owner ' || pg_get_userbyid(srvowner) FROM pg_foreign_server",
    "publication" "SELECT pubname::text, 'owner ' || pg_get_userbyid(pubowner) FROM pg_publication",
    "operator" "SELECT oid::regoperator::text, 'owner ' || pg_get_userbyid(oprowner) FROM pg_operator WHERE oid >= 16384",
}

/// Looks at the database that `connection` is in.
///
/// # Errors
/// [`Error::Sql`].
pub async fn take(connection: &mut PgConnection) -> Result<Snapshot, Error> {
    let mut all = Snapshot::default();
    for (kind, sql) in KINDS {
        let rows: Vec<(String, String)> = sqlx::query_as(*sql)
            .fetch_all(&mut *connection)
            .await
            .map_err(Error::sql("look at the objects of the database"))?;
        all.0.insert((*kind).to_owned(), rows.into_iter().collect());
    }
    Ok(all)
}

/// What differs, in order of kind and name. The line of the role `own`, which was shut in between, is left out.
#[must_use]
pub fn changes(before: &Snapshot, after: &Snapshot, own: &str) -> Vec<Change> {
    let nothing = BTreeMap::new();
    let mut found = Vec::new();
    for (kind, _) in KINDS {
        let (old, new) = (before.0.get(*kind).unwrap_or(&nothing), after.0.get(*kind).unwrap_or(&nothing));
        let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let (before, after) = (old.get(name), new.get(name));
            let is_own_role = *kind == "role" && name == own;
            if before != after && !is_own_role {
                found.push(Change {
                    kind: (*kind).to_owned(),
                    name: name.clone(),
                    before: before.cloned(),
                    after: after.cloned(),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(kind: &str, name: &str, how: &str) -> Snapshot {
        Snapshot(BTreeMap::from([(kind.to_owned(), BTreeMap::from([(name.to_owned(), how.to_owned())]))]))
    }

    #[test]
    fn what_is_new_gone_or_different_is_told_and_the_rest_is_not() {
        let (one, other) = (with("function", "bib.f()", "a"), with("function", "bib.f()", "b"));
        assert_eq!(changes(&one, &one, "r"), []);
        let [changed] = &changes(&one, &other, "r")[..] else { panic!() };
        assert_eq!((changed.before.as_deref(), changed.after.as_deref()), (Some("a"), Some("b")));
        let [gone] = &changes(&one, &Snapshot::default(), "r")[..] else { panic!() };
        assert_eq!((gone.kind.as_str(), gone.after.clone()), ("function", None));
        assert_eq!(changes(&Snapshot::default(), &with("role", "r", "LOGIN"), "r"), []);
        assert_eq!(changes(&Snapshot::default(), &with("role", "r", "LOGIN"), "x").len(), 1);
    }
}
