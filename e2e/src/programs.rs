//! Where the programs and files of this repository are.

use std::path::{Path, PathBuf};

/// The folder of the binaries that cargo built: where this one lies.
pub fn binaries_dir() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let dir = own.parent().unwrap_or(Path::new("."));
    // A test lies one folder deeper.
    match dir.file_name() {
        Some(name) if name == "deps" => dir.parent().unwrap_or(dir).into(),
        _ => dir.into(),
    }
}

/// The folder of the binaries that `e2e/install.sh` made: `$TESSERA_E2E_TOOLS`, else `target/e2e-tools`.
pub fn tools_dir() -> PathBuf {
    std::env::var_os("TESSERA_E2E_TOOLS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/e2e-tools"),
        PathBuf::from,
    )
}

/// A file of the repository.
pub fn source(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().unwrap_or(root).join(path)
}
