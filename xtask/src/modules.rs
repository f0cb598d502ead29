//! Kernel modules: where they are, and in which order they load.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{During, Error, Result};
use crate::tool;

/// The modules of one kernel, found by name anywhere below a folder. The folder may be the whole
/// `/lib/modules/VERSION` or hold only some modules.
#[derive(Debug)]
pub struct ModuleTree {
    root: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module and its contents, uncompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name as the kernel shows it in `/proc/modules`, with underscores.
    pub name: String,
    /// The ELF object.
    pub object: Vec<u8>,
}

impl ModuleTree {
    /// Finds the modules below `root`. A file `modules.builtin` there says which need no loading.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn open(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut builtin = BTreeSet::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let action = || format!("listing {}", folder.display());
            for item in fs::read_dir(&folder).during(action)? {
                let path = item.during(action)?.path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if path.file_name() == Some(OsStr::new("modules.builtin")) {
                    let text = fs::read_to_string(&path).during(|| format!("reading {}", path.display()))?;
                    builtin.extend(text.lines().filter_map(|line| name_of(Path::new(line))));
                } else if let Some(name) = name_of(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Self {
            root: root.into(),
            files,
            builtin,
        })
    }

    /// Whether the kernel has this module, loadable or built in.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.files.contains_key(&name) || self.builtin.contains(&name)
    }

    /// The named modules and all that they depend on, in the order in which they load, each once. Those built into
    /// the kernel are left out.
    ///
    /// # Errors
    /// [`Error::ModuleMissing`] for a name that the kernel does not know.
    pub fn in_load_order(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut visited = BTreeSet::new();
        for name in names {
            self.visit(&canonical(name), &mut visited, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, visited: &mut BTreeSet<String>, order: &mut Vec<Module>) -> Result<()> {
        if self.builtin.contains(name) || !visited.insert(name.into()) {
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| Error::ModuleMissing {
            name: name.into(),
            root: self.root.clone(),
        })?;
        let object = read_object(path)?;
        for dependency in dependencies(&object) {
            self.visit(&dependency, visited, order)?;
        }
        order.push(Module {
            name: name.into(),
            object,
        });
        Ok(())
    }
}

/// Files use dashes or underscores as their authors liked; the kernel itself only uses underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// `.../virtio-rng.ko.xz` is module `virtio_rng`; a file that is no module has no name.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, packing) = file.split_once(".ko")?;
    matches!(packing, "" | ".xz" | ".zst" | ".gz").then(|| canonical(stem))
}

fn read_object(path: &Path) -> Result<Vec<u8>> {
    let unpacker = match path.extension().and_then(OsStr::to_str) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).during(|| format!("reading {}", path.display())),
    };
    tool::output(tool::command(unpacker).arg("-dc").arg(path))
}

/// The `depends=a,b` line of a module's `.modinfo` section, which holds NUL-terminated `key=value` strings.
fn dependencies(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = object.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = object.get(start + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("innkeeper-modules-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("kernel/drivers")).unwrap();
            Self(path)
        }

        fn module(&self, file: &str, depends: &str) {
            let object = format!("\x7fELF..\0license=GPL\0depends={depends}\0retpoline=Y\0");
            fs::write(self.0.join("kernel/drivers").join(file), object).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn names(tree: &ModuleTree, wanted: &[&str]) -> Vec<String> {
        tree.in_load_order(wanted)
            .unwrap()
            .into_iter()
            .map(|module| module.name)
            .collect()
    }

    #[test]
    fn dependencies_come_first_and_everything_once() {
        let folder = Folder::new("order");
        folder.module("virtio.ko", "");
        folder.module("virtio_ring.ko", "virtio");
        folder.module("virtio-rng.ko", "virtio-ring,virtio");
        folder.module("virtio_blk.ko", "virtio_ring,virtio");
        let tree = ModuleTree::open(&folder.0).unwrap();
        assert_eq!(
            names(&tree, &["virtio_rng", "virtio-blk"]),
            ["virtio", "virtio_ring", "virtio_rng", "virtio_blk"]
        );
    }

    #[test]
    fn what_is_built_in_is_not_loaded_and_what_is_nowhere_is_an_error() {
        let folder = Folder::new("builtin");
        folder.module("user.ko", "core_part");
        fs::write(folder.0.join("modules.builtin"), "kernel/lib/core-part.ko\n").unwrap();
        let tree = ModuleTree::open(&folder.0).unwrap();
        assert_eq!(names(&tree, &["user", "core-part"]), ["user"]);
        assert!(tree.has("core_part") && !tree.has("absent"));
        assert!(matches!(
            tree.in_load_order(&["absent"]),
            Err(Error::ModuleMissing { .. })
        ));
    }

    #[test]
    fn modules_that_need_each_other_do_not_loop() {
        let folder = Folder::new("circle");
        folder.module("a.ko", "b");
        folder.module("b.ko", "a");
        assert_eq!(names(&ModuleTree::open(&folder.0).unwrap(), &["a"]), ["b", "a"]);
    }
}
