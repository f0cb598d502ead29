//! Temporary files without a name: whatever kills us, they are gone with the last process that has them open.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{During, Result};

/// Makes an empty file, open for reading and writing, whose name is already removed again. `purpose` is a word for its
/// name while it has one.
///
/// # Errors
/// When the folder for temporary files (`$TMPDIR`, by default `/tmp`) cannot be written.
pub fn unlinked_file(purpose: &str) -> Result<File> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("innkeeper-{purpose}-{}-{count}", std::process::id()));
    let action = || format!("making a temporary file {}", path.display());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .during(action)?;
    fs::remove_file(&path).during(action)?;
    Ok(file)
}

/// The path under which a process that inherits the file's descriptor can open it once more.
#[must_use]
pub fn inherited_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn the_file_has_no_name_and_can_be_opened_again_by_its_descriptor() {
        let mut file = unlinked_file("test").unwrap();
        file.write_all(b"contents").unwrap();
        let mut again = String::new();
        File::open(inherited_path(&file))
            .unwrap()
            .read_to_string(&mut again)
            .unwrap();
        assert_eq!(again, "contents");
        let name = fs::read_link(inherited_path(&file)).unwrap();
        assert!(name.to_string_lossy().ends_with("(deleted)"));
    }
}
