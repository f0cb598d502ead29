//! The user's cache folder: what is downloaded or built once and survives a new clone.
//!
//! Everything in it is named after its version and appears by a rename, so that a half-finished entry is never
//! mistaken for a finished one. Whoever makes an entry holds its lock, so that two processes do not make it twice.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{During, Error, Result};

/// The cache folder: `$XDG_CACHE_HOME/innkeeper`, by default `~/.cache/innkeeper`. Made when missing.
///
/// # Errors
/// When there is neither `XDG_CACHE_HOME` nor `HOME`, or the folder cannot be made.
pub fn folder() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .ok_or_else(|| Error::Other("neither XDG_CACHE_HOME nor HOME names a folder for the cache".into()))?;
    let folder = base.join("innkeeper");
    fs::create_dir_all(&folder).during(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// An exclusive lock between processes, held until dropped; the kernel drops it when the process dies.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Takes the lock of that name; when another process holds it, says so and waits.
///
/// # Errors
/// When the lock file cannot be made or locked.
pub fn lock(name: &str) -> Result<Lock> {
    lock_in(&folder()?, name)
}

fn lock_in(cache: &Path, name: &str) -> Result<Lock> {
    let folder = cache.join("locks");
    fs::create_dir_all(&folder).during(|| format!("making {}", folder.display()))?;
    let path = folder.join(name);
    let action = || format!("locking {}", path.display());
    let file = File::create(&path).during(action)?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another process that is preparing {name} ...");
        file.lock().during(action)?;
    }
    Ok(Lock(file))
}

/// Returns the entry of that name below the cache folder, making it first when it is not there: `make` fills an
/// empty folder, which gets its name only when `make` has succeeded.
///
/// # Errors
/// When `make` fails, or the file system does.
pub fn entry(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    entry_in(&folder()?, name, make)
}

fn entry_in(cache: &Path, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let path = cache.join(name);
    if path.exists() {
        return Ok(path);
    }
    let _lock = lock_in(cache, &name.replace('/', "_"))?;
    if path.exists() {
        return Ok(path);
    }
    let staging = path.with_file_name(format!(
        ".making-{}",
        path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default()
    ));
    remove(&staging)?;
    fs::create_dir_all(&staging).during(|| format!("making {}", staging.display()))?;
    make(&staging)?;
    fs::rename(&staging, &path).during(|| format!("renaming {} to {}", staging.display(), path.display()))?;
    Ok(path)
}

/// Removes a folder with all that is in it; one that is not there is as good as removed.
///
/// # Errors
/// When something in it cannot be removed.
pub fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).during(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// An FNV-1a hash in hexadecimal, for the names of entries that depend on a list of things. Stable between builds.
#[must_use]
pub fn key(parts: &[&str]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // The separator keeps ["ab", "c"] and ["a", "bc"] apart.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn what_failed_half_way_is_not_there_and_what_is_there_is_not_made_again() {
        let cache = std::env::temp_dir().join(format!("innkeeper-cache-{}", std::process::id()));
        let fail = |folder: &Path| {
            fs::write(folder.join("half"), "").unwrap();
            Err(Error::Other("interrupted".into()))
        };
        assert!(entry_in(&cache, "a/thing-1", fail).is_err());
        assert!(!cache.join("a/thing-1").exists());
        let make = |folder: &Path| fs::write(folder.join("whole"), "").during(|| "writing");
        let path = entry_in(&cache, "a/thing-1", make).unwrap();
        assert!(path.join("whole").exists() && !path.join("half").exists());
        assert_eq!(entry_in(&cache, "a/thing-1", |_| panic!("made twice")).unwrap(), path);
        remove(&cache).unwrap();
        assert!(!cache.exists());
    }

    #[test]
    fn keys_tell_apart_where_one_part_ends_and_the_next_begins() {
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&[]).len(), 16);
    }
}
