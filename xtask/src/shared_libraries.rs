//! Which shared libraries a program needs, as the host's own dynamic linker finds them.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tool;

/// The files that a dynamically linked program needs beside itself: its libraries and the dynamic linker, at their
/// paths on this host. Empty for a static program and for anything that is no program.
///
/// `search` names folders to look in first, for programs whose libraries are not installed.
///
/// # Errors
/// [`Error::LibraryMissing`] when the host lacks one.
pub fn of(program: &Path, search: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut ldd = tool::command("ldd");
    if let Ok(path) = std::env::join_paths(search)
        && !search.is_empty()
    {
        ldd.env("LD_LIBRARY_PATH", path);
    }
    // ldd fails for static programs and scripts, which need nothing.
    let Ok(listing) = tool::text(ldd.arg(program)) else {
        return Ok(Vec::new());
    };
    parse(&listing).map_err(|library| Error::LibraryMissing {
        program: program.into(),
        library,
    })
}

/// Reads ldd's listing. The error is the name of a library that was not found.
fn parse(listing: &str) -> std::result::Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for line in listing.lines().map(str::trim) {
        let location = match line.split_once(" => ") {
            Some((library, "not found")) => return Err(library.into()),
            Some((_, location)) => location,
            None => line,
        };
        // `/path (0x...)`; the kernel's vDSO has a name but no path.
        let path = location.split(" (0x").next().unwrap_or_default();
        if path.starts_with('/') {
            files.push(PathBuf::from(path));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn libraries_and_the_linker_are_listed_and_the_vdso_is_not() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse(listing).unwrap(), expected);
    }

    #[test]
    fn a_missing_library_is_named() {
        assert_eq!(parse("\tlibpci.so.3 => not found\n").unwrap_err(), "libpci.so.3");
    }

    #[test]
    fn a_static_program_needs_nothing() {
        assert_eq!(parse("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
        assert_eq!(of(Path::new("/etc/passwd"), &[]).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn this_very_program_needs_the_c_library() {
        let files = of(&std::env::current_exe().unwrap(), &[]).unwrap();
        assert!(
            files.iter().any(|file| file.to_string_lossy().contains("libc.so")),
            "{files:?}"
        );
    }
}
