//! The one image of the test cluster, made from this machine's own files: busybox, and the probe with what it links to.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::error::{AtPath, Error};

/// Its name: sandboxes and all pods run it.
pub const IMAGE: &str = "localhost/tessera/busybox:1";
/// busybox, statically linked.
const BUSYBOX: &str = "/bin/busybox";

/// Writes the image as a docker archive: busybox with all its applets, and the programs in `/bin`
/// with the shared libraries that they link to, at the paths that they have here.
pub fn write(archive: &Path, programs: &[PathBuf]) -> Result<(), Error> {
    let layer = layer(programs).at(archive)?;
    let hash = |bytes: &[u8]| {
        Sha256::digest(bytes)
            .iter()
            .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    };
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Cmd": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hash(&layer))] },
    })
    .to_string();
    let name = format!("{}.json", hash(config.as_bytes()));
    let manifest = json!([{ "Config": name, "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    let mut file = File::create(archive).at(archive)?;
    let mut tar = tar::Builder::new(&mut file);
    for (name, bytes) in [
        (name.as_str(), config.as_bytes()),
        ("layer.tar", &layer),
        ("manifest.json", manifest.to_string().as_bytes()),
    ] {
        add(&mut tar, Path::new(name), bytes, 0o644).at(archive)?;
    }
    tar.finish().at(archive)?;
    drop(tar);
    file.flush().at(archive)
}

fn layer(programs: &[PathBuf]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
        let mut header = header(tar::EntryType::Directory, 0, 0o755);
        tar.append_data(&mut header, directory, io::empty())?;
    }
    add(
        &mut tar,
        Path::new("bin/busybox"),
        &fs::read(BUSYBOX)?,
        0o755,
    )?;
    for applet in output(Command::new(BUSYBOX).arg("--list"))?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        let mut header = header(tar::EntryType::Symlink, 0, 0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    let mut libraries = BTreeSet::new();
    for program in programs {
        let name = program.file_name().unwrap_or_default();
        add(
            &mut tar,
            &Path::new("bin").join(name),
            &fs::read(program)?,
            0o755,
        )?;
        libraries.extend(linked(&output(Command::new("ldd").arg(program))?));
    }
    for library in libraries {
        let inside = library.strip_prefix("/").unwrap_or(&library);
        add(&mut tar, inside, &fs::read(&library)?, 0o755)?;
    }
    tar.into_inner()
}

/// The files in the output of ldd(1): `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld-linux.so.2 (0x…)`.
fn linked(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

fn add(tar: &mut tar::Builder<impl Write>, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = header(tar::EntryType::Regular, bytes.len() as u64, mode);
    tar.append_data(&mut header, path, bytes)
}

fn output(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_the_output_of_ldd() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(
            linked(text),
            [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld.so.2")]
        );
        assert!(linked("\tstatically linked\n").is_empty());
    }
}
