//! Compiles the `.proto` files with protox, so that nobody needs a `protoc`.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=bib");
    let files = ["admin", "auth", "break_glass", "common", "dataset", "health", "node", "topic", "user"]
        .map(|name| format!("bib/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Chunk data stays a shared buffer from the socket to the disk.
        .bytes(".bib.v1")
        // It holds a secret, and nothing may print it.
        .skip_debug(["bib.v1.SetBackupCredentialsRequest", "bib.v1.SetStorageCredentialsRequest"])
        .compile_fds(descriptors)?;
    Ok(())
}
