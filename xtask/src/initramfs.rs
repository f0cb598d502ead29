//! An initramfs, collected in memory and written as a `newc` cpio archive: the format of the Linux kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{During, Error, Result};
use crate::modules::ModuleTree;
use crate::{shared_libraries, tool};

/// Where [`Initramfs::modules`] puts modules, with a file `order` that lists them.
pub const MODULE_FOLDER: &str = "/lib/modules";

/// Shell commands that load what [`Initramfs::modules`] has put in.
pub const LOAD_MODULES: &str = "for module in $(cat /lib/modules/order); do insmod /lib/modules/$module.ko; done\n";

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// A file system to be unpacked by a booting kernel. Paths are absolute; folders above an entry come by themselves;
/// a later entry replaces an earlier one of the same path.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Type and permissions, as in `st_mode`.
    mode: u32,
    /// The device's major and minor number.
    device: (u32, u32),
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Bytes(Vec<u8>),
    HostFile(PathBuf),
}

impl Initramfs {
    /// One that holds nothing but the device node of the console, without which `/init` has no standard output.
    #[must_use]
    pub fn new() -> Self {
        let mut new = Self::default();
        new.put("/dev/console", CHARACTER | 0o600, (5, 1), Data::Bytes(Vec::new()));
        new
    }

    /// Adds an empty folder.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        self.put(path, DIRECTORY | 0o755, (0, 0), Data::Bytes(Vec::new()))
    }

    /// Adds a file of these contents.
    pub fn bytes(&mut self, path: &str, contents: impl Into<Vec<u8>>) -> &mut Self {
        self.put(path, REGULAR | 0o644, (0, 0), Data::Bytes(contents.into()))
    }

    /// Adds a shell script, executable. A first line that names the shell is added where there is none.
    pub fn script(&mut self, path: &str, text: &str) -> &mut Self {
        let shebang = if text.starts_with("#!") { "" } else { "#!/bin/sh\n" };
        self.put(
            path,
            REGULAR | 0o755,
            (0, 0),
            Data::Bytes(format!("{shebang}{text}").into_bytes()),
        )
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.put(path, SYMLINK | 0o777, (0, 0), Data::Bytes(target.as_bytes().to_vec()))
    }

    /// Adds a file or, with all that is in it, a folder of the host. Symbolic links are followed. The contents are
    /// read when the archive is written.
    ///
    /// # Errors
    /// When something of it cannot be found or listed.
    pub fn copy(&mut self, source: &Path, destination: &str) -> Result<&mut Self> {
        let meta = fs::metadata(source).during(|| format!("reading {}", source.display()))?;
        if !meta.is_dir() {
            let mode = REGULAR | (meta.permissions().mode() & 0o777);
            return Ok(self.put(destination, mode, (0, 0), Data::HostFile(source.into())));
        }
        if !destination.trim_matches('/').is_empty() {
            self.directory(destination);
        }
        let listing = || format!("listing {}", source.display());
        for item in fs::read_dir(source).during(listing)? {
            let item = item.during(listing)?;
            let name = item.file_name();
            self.copy(
                &item.path(),
                &format!("{}/{}", destination.trim_end_matches('/'), name.to_string_lossy()),
            )?;
        }
        Ok(self)
    }

    /// Adds a program of the host with the shared libraries that it needs, those at their paths on the host.
    ///
    /// # Errors
    /// When it or one of its libraries is missing.
    pub fn program(&mut self, source: &Path, destination: &str) -> Result<&mut Self> {
        self.copy(source, destination)?;
        for library in shared_libraries::of(source, &[])? {
            let path = library.to_string_lossy().into_owned();
            self.copy(&library, &path)?;
        }
        Ok(self)
    }

    /// Adds a static busybox as `/bin/busybox` and a link in `/bin` for each of its commands that is not there yet.
    /// Folders for the usual mounts come with it.
    ///
    /// # Errors
    /// When the program cannot be run to ask for its commands.
    pub fn busybox(&mut self, busybox: &Path) -> Result<&mut Self> {
        self.copy(busybox, "/bin/busybox")?;
        let commands = tool::text(tool::command(&busybox.to_string_lossy()).arg("--list"))?;
        for command in commands.lines() {
            let path = format!("/bin/{command}");
            if !self.entries.contains_key(&path) {
                self.symlink(&path, "busybox");
            }
        }
        for folder in ["/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/etc"] {
            self.directory(folder);
        }
        Ok(self)
    }

    /// Adds modules with their dependencies below [`MODULE_FOLDER`]; [`LOAD_MODULES`] loads them. Returns their names
    /// in load order.
    ///
    /// # Errors
    /// When one is missing.
    pub fn modules(&mut self, tree: &ModuleTree, names: &[&str]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for module in tree.in_load_order(names)? {
            self.bytes(&format!("{MODULE_FOLDER}/{}.ko", module.name), module.object);
            order.push(module.name);
        }
        self.bytes(&format!("{MODULE_FOLDER}/order"), order.join("\n") + "\n");
        Ok(order)
    }

    /// Whether there is an entry of that path.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When a file of the host cannot be read, is over 4 GiB, or the writer fails.
    pub fn write_to(&self, writer: &mut dyn Write) -> Result<()> {
        let mut cpio = Cpio { writer, inode: 0 };
        for (path, entry) in &self.entries {
            match &entry.data {
                Data::Bytes(bytes) => cpio.entry(path, entry, bytes)?,
                Data::HostFile(file) => {
                    let bytes = fs::read(file).during(|| format!("reading {}", file.display()))?;
                    cpio.entry(path, entry, &bytes)?;
                }
            }
        }
        cpio.trailer()
    }

    /// The archive as bytes.
    ///
    /// # Errors
    /// As [`Self::write_to`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    fn put(&mut self, path: &str, mode: u32, device: (u32, u32), data: Data) -> &mut Self {
        let path = format!("/{}", path.trim_matches('/'));
        let above: Vec<String> = path
            .match_indices('/')
            .skip(1)
            .map(|(end, _)| path.get(..end).unwrap_or_default().to_string())
            .collect();
        for folder in above {
            self.entries.entry(folder).or_insert(Entry {
                mode: DIRECTORY | 0o755,
                device: (0, 0),
                data: Data::Bytes(Vec::new()),
            });
        }
        self.entries.insert(path, Entry { mode, device, data });
        self
    }
}

/// Writes one `newc` record after another, numbering the inodes.
struct Cpio<'a> {
    writer: &'a mut dyn Write,
    inode: u32,
}

impl Cpio<'_> {
    fn entry(&mut self, path: &str, entry: &Entry, data: &[u8]) -> Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| Error::Other(format!("{path}: too large for an initramfs (4 GiB at most)")))?;
        self.inode += 1;
        self.record(path.trim_start_matches('/'), entry, size, data)
            .during(|| "writing an initramfs")
    }

    fn trailer(&mut self) -> Result<()> {
        let empty = Entry {
            mode: 0,
            device: (0, 0),
            data: Data::Bytes(Vec::new()),
        };
        self.inode = 0;
        self.record("TRAILER!!!", &empty, 0, &[])
            .during(|| "writing an initramfs")
    }

    /// The 110-byte header, the name with its NUL, the data; name and data each padded to four bytes.
    fn record(&mut self, name: &str, entry: &Entry, size: u32, data: &[u8]) -> io::Result<()> {
        const HEADER: usize = 110;
        let links = if entry.mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let name_size = name.len() + 1;
        let (major, minor) = entry.device;
        // Magic; inode, mode, owner, group, links, time, size; device of the file system; device of the node; name size; checksum.
        write!(
            self.writer,
            "070701{:08X}{:08X}{:08X}{:08X}{links:08X}{:08X}{size:08X}{:08X}{:08X}{major:08X}{minor:08X}{name_size:08X}{:08X}",
            self.inode, entry.mode, 0, 0, 0, 0, 0, 0
        )?;
        self.writer.write_all(name.as_bytes())?;
        self.writer.write_all(padding(HEADER + name_size, 1))?;
        self.writer.write_all(data)?;
        self.writer.write_all(padding(data.len(), 0))
    }
}

/// `terminator` NULs, and then as many as bring `length` to a multiple of four.
fn padding(length: usize, terminator: usize) -> &'static [u8] {
    const NULS: [u8; 4] = [0; 4];
    NULS.get(..terminator + length.wrapping_neg() % 4).unwrap_or(&NULS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Name, mode, device numbers, contents.
    type Record = (String, u32, (u32, u32), Vec<u8>);

    /// Reads a `newc` archive by the letter of its description.
    fn read(archive: &[u8]) -> Vec<Record> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(at % 4, 0, "a header starts at a multiple of four");
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                u32::from_str_radix(std::str::from_utf8(&archive[start..start + 8]).unwrap(), 16).unwrap()
            };
            let name_size = field(11) as usize;
            let name_at = at + 110;
            assert_eq!(archive[name_at + name_size - 1], 0);
            let name = String::from_utf8(archive[name_at..name_at + name_size - 1].to_vec()).unwrap();
            let data_at = (name_at + name_size).next_multiple_of(4);
            let data_end = data_at + field(6) as usize;
            if name == "TRAILER!!!" {
                assert_eq!(data_end, archive.len());
                return found;
            }
            found.push((
                name,
                field(1),
                (field(9), field(10)),
                archive[data_at..data_end].to_vec(),
            ));
            at = data_end.next_multiple_of(4);
        }
    }

    #[test]
    fn every_kind_of_entry_reads_back() {
        let mut fs = Initramfs::new();
        fs.script("/init", "echo hello\n")
            .symlink("/bin/sh", "busybox")
            .directory("/proc")
            .bytes("/a/b/c", "12345");
        let found = read(&fs.to_bytes().unwrap());
        let expected: Vec<Record> = [
            ("a", 0o040_755, (0, 0), ""),
            ("a/b", 0o040_755, (0, 0), ""),
            ("a/b/c", 0o100_644, (0, 0), "12345"),
            ("bin", 0o040_755, (0, 0), ""),
            ("bin/sh", 0o120_777, (0, 0), "busybox"),
            ("dev", 0o040_755, (0, 0), ""),
            ("dev/console", 0o020_600, (5, 1), ""),
            ("init", 0o100_755, (0, 0), "#!/bin/sh\necho hello\n"),
            ("proc", 0o040_755, (0, 0), ""),
        ]
        .map(|(name, mode, device, data)| (name.into(), mode, device, data.into()))
        .into();
        assert_eq!(found, expected);
    }

    #[test]
    fn folders_come_before_what_is_in_them_even_beside_names_that_sort_lower() {
        let mut fs = Initramfs::default();
        fs.bytes("/a/x", "").bytes("/a-b", "").bytes("/a.b", "");
        let names: Vec<String> = read(&fs.to_bytes().unwrap()).into_iter().map(|entry| entry.0).collect();
        let position = |name: &str| names.iter().position(|other| other == name).unwrap();
        assert!(position("a") < position("a/x"));
    }

    #[test]
    fn any_length_of_name_and_data_stays_aligned() {
        for length in 0..9 {
            let mut fs = Initramfs::default();
            fs.bytes(&format!("/{}", "n".repeat(length + 1)), "d".repeat(length))
                .bytes("/z", "end");
            assert_eq!(read(&fs.to_bytes().unwrap()).len(), 2);
        }
    }

    #[test]
    fn a_later_entry_replaces_an_earlier_one() {
        let mut fs = Initramfs::default();
        fs.bytes("/f", "old").bytes("/f", "new");
        assert_eq!(read(&fs.to_bytes().unwrap())[0].3, b"new");
    }

    #[test]
    fn this_program_is_packed_with_the_dynamic_linker() {
        let mut fs = Initramfs::default();
        fs.program(&std::env::current_exe().unwrap(), "/bin/me").unwrap();
        assert!(fs.contains("/bin/me"));
        assert!(
            fs.entries.keys().any(|path| path.contains("ld-linux")),
            "{:?}",
            fs.entries.keys()
        );
    }
}
