//! How a running node's PostgreSQL is entered past the daemon, for the benchmark of break-glass: what is compared is the
//! way, so the server must be the same. `superuser_login DATA_DIR` prints JSON. Needs what an attacker would need: the
//! node's key.

use std::path::PathBuf;
use std::sync::Arc;

use bib_identity::NodeKey;
use bibd::secrets::Secrets;
use bibd_postgres::SecretStore as _;
use secrecy::ExposeSecret as _;

#[allow(clippy::print_stdout, reason = "that is what it is for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = PathBuf::from(std::env::args().nth(1).ok_or("DATA_DIR")?);
    let key = NodeKey::load(&data.join("identity/node_key"))?;
    let secrets = Secrets::new(&data.join("secrets"), Arc::new(key), Vec::new());
    let document = secrets.read("db")?.ok_or("there are no secrets")?;
    let document: serde_json::Value = serde_json::from_str(document.expose_secret())?;
    let lock = std::fs::read_to_string(data.join("postgres/data/postmaster.pid"))?;
    let host = lock.lines().nth(4).ok_or("the server has no socket")?;
    let password = document["admin"].as_str().ok_or("there is no password")?;
    println!("{}", serde_json::json!({ "host": host, "user": "bibd_admin", "password": password }));
    Ok(())
}
