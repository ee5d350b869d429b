//! `bib cert`: certificates. `init`, `info` and `export` work without a node.

use std::path::{Path, PathBuf};

use bib_client::api::Whose;
use bib_client::pb;
use bib_identity::ca::{CA_VALIDITY, CertificateAuthority};
use bib_identity::certificate::CertificateInfo;
use bib_identity::pem;
use bib_identity::request::CertificateRequest;
use bib_identity::token_file::TokenFile;
use clap::{Args, Subcommand, ValueEnum};
use secrecy::ExposeSecret as _;

use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;

/// Certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a certificate authority in a folder, for services of your own; `bibd` makes its own at first start
    Init(Init),
    /// Makes a key here and has the node certify it
    Generate(Generate),
    /// The certificates that the node has issued to you
    List {
        /// Everybody's; for admins
        #[arg(long)]
        all: bool,
    },
    /// What a certificate file says
    Info {
        /// PEM or DER
        file: PathBuf,
    },
    /// Writes out the certificate of your log-in
    Export(Export),
    /// Revokes a certificate; connections that use it end within seconds
    Revoke {
        /// Serial number or SHA-256 fingerprint
        certificate: String,
        /// Why
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
}

/// Makes a certificate authority.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The folder for `ca.crt` and `ca.key` (0600); nothing in it is overwritten
    #[arg(default_value = "bib-ca")]
    dir: PathBuf,
}

/// Has the node certify a key.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// What the certificate is called in lists
    #[arg(long)]
    name: String,
    /// The file for key and certificates (0600); NAME.pem when missing
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Writes out the certificate of the log-in.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// pem; p12 is not offered
    #[arg(long, value_enum, default_value = "pem")]
    format: ExportFormat,
    /// The file; standard output when missing
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// With the private key (the file is 0600)
    #[arg(long)]
    with_key: bool,
    /// The CA certificate of the node instead, as it is trusted here: for `connection.tls.ca_file`
    #[arg(long, conflicts_with = "with_key")]
    ca: bool,
}

/// What `cert export --format` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    Pem,
    P12,
}

record! {
    /// A certificate of the node's list.
    CertRow {
        serial: String = Text listed, name: String = Text listed, state: String = Text listed, user_id: String = Text,
        key: String = Text, fingerprint: String = Hash, not_before: String = Time, not_after: String = Time listed,
    }
}

record! {
    /// What a certificate file says.
    InfoRow {
        subject: String = Text, issuer: String = Text, serial: String = Text, not_before: String = Time, not_after: String = Time,
        valid_now: bool = Text, ca: bool = Text, usage: Vec<String> = Many, names: Vec<String> = Many, node: Option<String> = Text,
        user_id: Option<String> = Text, key: Option<String> = Text, fingerprint: String = Text, public_key_fingerprint: String = Text,
    }
}

record! {
    /// Files that were written.
    WrittenRow { certificate: String = Text, key: Option<String> = Text, fingerprint: String = Text, expires_at: String = Time }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Init(init) => init.run(context),
            Self::Generate(generate) => generate.run(context).await,
            Self::List { all } => {
                let whose = if all { Whose::Everybodys } else { Whose::Mine };
                let rows = context.client().await?.auth().certificates(whose);
                context.output.list().drain(rows, CertRow::from, "no certificates").await.map(|_| ())
            }
            Self::Info { file } => {
                let info = describe(&file)?;
                let valid_now = info.is_valid_at(context.clock.now());
                context.output.one(&InfoRow { valid_now, ..InfoRow::from(info) })
            }
            Self::Export(export) => export.run(context),
            Self::Revoke { certificate, reason } => {
                context.asker.confirm(&format!("revoke the certificate {certificate}? this cannot be taken back"))?;
                let answer = context.client().await?.auth().revoke_certificate(&certificate, &reason).await?;
                context.output.one(&CertRow::from(answer.certificate.unwrap_or_default()))
            }
        }
    }
}

impl Init {
    fn run(self, context: &Context) -> Result<()> {
        let failed = |error: bib_identity::ca::CaError| Failure::failed(error.to_string()).with_hint_of(error.hint());
        let (certificate, key) = (self.dir.join("ca.crt"), self.dir.join("ca.key"));
        for path in [&certificate, &key] {
            if path.exists() {
                return Err(Failure::new(
                    Exit::Conflict,
                    format!("`{}` exists; an authority is never overwritten", path.display()),
                )
                .with_hint("name another folder"));
            }
        }
        let authority =
            CertificateAuthority::create(&mut rand::rngs::OsRng, context.clock.now(), CA_VALIDITY).map_err(failed)?;
        bib_identity::file::ensure_private_dir(&self.dir)?;
        let text = pem::encode(pem::PRIVATE_KEY, authority.key_der().expose_secret());
        bib_identity::file::create_private(&key, text.as_bytes())?;
        bib_identity::file::replace_public(&certificate, authority.certificate_pem().as_bytes())?;
        context.output.one(&WrittenRow {
            certificate: certificate.display().to_string(),
            key: Some(key.display().to_string()),
            fingerprint: authority.fingerprint().to_string(),
            expires_at: authority.info().not_after.to_string(),
        })
    }
}

impl Generate {
    async fn run(self, context: &Context) -> Result<()> {
        let path = match self.out {
            Some(path) => path,
            None => {
                bib_core::name::Segment::new(&self.name)
                    .map_err(|error| Failure::usage(format!("{error}")).with_hint("or name the file with `--out`"))?;
                PathBuf::from(format!("{}.pem", self.name))
            }
        };
        refuse_existing(&path)?;
        let client = context.client().await?;
        let request =
            CertificateRequest::generate().map_err(|error| Failure::failed(format!("make a key: {error}")))?;
        let answer = client.auth().issue_certificate(request.der.clone(), &self.name).await?;
        let text = [request.key_pem.expose_secret(), &answer.certificate_pem, &answer.ca_certificate_pem]
            .map(with_line_end)
            .concat();
        bib_identity::file::create_private(&path, text.as_bytes())?;
        let certificate = answer.certificate.unwrap_or_default();
        context.output.one(&WrittenRow {
            certificate: path.display().to_string(),
            key: Some(path.display().to_string()),
            fingerprint: certificate.fingerprint,
            expires_at: certificate.not_after,
        })
    }
}

impl Export {
    fn run(self, context: &Context) -> Result<()> {
        if self.ca {
            return self.write_ca(context);
        }
        let file = match &context.token_file {
            Some(path) => path.clone(),
            None => context.credentials_file(&context.target()?)?,
        };
        if self.format == ExportFormat::P12 {
            return Err(Failure::usage(
                "PKCS#12 is not written: its usual ciphers are weak, and nothing in BIB reads it",
            )
            .with_hint("bib cert export --with-key --out me.pem && openssl pkcs12 -export -in me.pem -out me.p12"));
        }
        let credentials =
            TokenFile::load(&file).map_err(|error| Failure::failed(error.to_string()).with_hint_of(error.hint()))?;
        let certificate = pem::encode(pem::CERTIFICATE, credentials.certificate_der());
        let text = if self.with_key {
            let key = pem::encode(pem::PRIVATE_KEY, credentials.key_der().expose_secret());
            format!("{}{}", key.as_str(), certificate.as_str())
        } else {
            certificate.to_string()
        };
        let Some(path) = self.out else {
            if self.with_key {
                context.output.refuse_terminal("a private key", "write it to a file with `--out`")?;
            }
            return context.output.text(&text);
        };
        refuse_existing(&path)?;
        if self.with_key {
            bib_identity::file::create_private(&path, text.as_bytes())?;
        } else {
            bib_identity::file::replace_public(&path, text.as_bytes())?;
        }
        let shown = path.display().to_string();
        context.output.one(&WrittenRow {
            key: self.with_key.then(|| shown.clone()),
            certificate: shown,
            fingerprint: credentials.info().sha256.to_string(),
            expires_at: credentials.info().not_after.to_string(),
        })
    }

    fn write_ca(&self, context: &Context) -> Result<()> {
        let target = context.target()?;
        let known = context.pin_of(&target)?.and_then(|pin| pin.ca_certificate_pem);
        let text = known.ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("no CA certificate of {target} is known here"))
                .with_hint("`bib connect HOST:PORT` trusts a node; on its own machine it lies in its certs/ca.crt")
        })?;
        let Some(path) = &self.out else { return context.output.text(&text) };
        refuse_existing(path)?;
        let der = pem::decode_one(text.as_bytes(), pem::CERTIFICATE);
        let info = der.map_err(|error| Failure::failed(error.to_string())).and_then(|der| {
            bib_identity::certificate::describe(&der).map_err(|error| Failure::failed(error.to_string()))
        })?;
        bib_identity::file::replace_public(path, text.as_bytes())?;
        context.output.one(&WrittenRow {
            key: None,
            certificate: path.display().to_string(),
            fingerprint: info.sha256.to_string(),
            expires_at: info.not_after.to_string(),
        })
    }
}

/// Refuses to write over a file.
pub(crate) fn refuse_existing(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(Failure::new(Exit::Conflict, format!("`{}` exists and is not overwritten", path.display()))
            .with_hint("name another file with `--out`"));
    }
    Ok(())
}

fn with_line_end(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

fn describe(file: &Path) -> Result<CertificateInfo> {
    let bytes = bib_identity::file::read_public(file, 256 * 1024)?;
    let der = if bytes.starts_with(b"-----") || bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        let blocks = pem::decode(&bytes).map_err(|error| Failure::failed(format!("`{}`: {error}", file.display())))?;
        let block = blocks.into_iter().find(|block| block.label == pem::CERTIFICATE);
        let block = block.ok_or_else(|| Failure::failed(format!("`{}` holds no certificate", file.display())))?;
        block.bytes.to_vec()
    } else {
        bytes
    };
    bib_identity::certificate::describe(&der)
        .map_err(|error| Failure::failed(format!("`{}`: {error}", file.display())).with_hint("PEM and DER are read"))
}

impl From<pb::Certificate> for CertRow {
    fn from(certificate: pb::Certificate) -> Self {
        Self {
            serial: certificate.serial,
            name: certificate.name,
            state: certificate.state,
            user_id: certificate.user_id,
            key: certificate.key_fingerprint,
            fingerprint: certificate.fingerprint,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        }
    }
}

impl From<CertificateInfo> for InfoRow {
    fn from(info: CertificateInfo) -> Self {
        let usage = [
            (info.server_auth, "server"),
            (info.client_auth, "client"),
            (info.is_ca && info.may_certify, "sign"),
            (info.other_usage, "other"),
        ];
        Self {
            node: info.peer_id().map(|id| id.to_string()),
            user_id: info.user_id().map(|id| id.to_string()),
            key: info.key().map(|key| key.to_string()),
            subject: info.subject,
            issuer: info.issuer,
            serial: info.serial,
            not_before: info.not_before.to_string(),
            not_after: info.not_after.to_string(),
            valid_now: false,
            ca: info.is_ca,
            usage: usage.into_iter().filter(|(has, _)| *has).map(|(_, name)| name.to_owned()).collect(),
            names: info.names,
            fingerprint: info.sha256.to_string(),
            public_key_fingerprint: info.spki_sha256.to_string(),
        }
    }
}
