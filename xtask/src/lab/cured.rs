//! QEMU with two faults of its emulated SVM cured, built once from Debian's source package. Both are in `helper_vmrun`.
//!
//! It delivers an injected interrupt itself and leaves its number behind as a pending exception. When the main loop is
//! interrupted before the next exit, it delivers the same interrupt once more, wherever the guest then is, interrupts
//! enabled or not: now and then a guest locks up for good. One line forgets the number.
//!
//! And where a virtual interrupt is pending it sets a bit in `interrupt_request` without the lock under which the main thread
//! sets others there. When the two meet, the main thread's bit is lost: a timer interrupt waits in the local APIC for ever,
//! and the whole emulated machine sleeps on. It must hold the lock.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache;
use crate::error::{During, Error, Result};
use crate::packages::{self, Candidate};
use crate::tool;

/// Names the patch and the configuration below in the cache; to be changed with them.
const PATCH_KEY: &str = "vmrun2";

/// A line of the source, and what is put round it.
struct Cure {
    line: &'static str,
    before: Option<&'static str>,
    after: Option<&'static str>,
}

const CURES: [Cure; 3] = [
    Cure {
        line: "do_interrupt_x86_hardirq(env, vector, 1);",
        before: None,
        after: Some("cs->exception_index = -1;"),
    },
    Cure {
        line: "cs->interrupt_request |= CPU_INTERRUPT_VIRQ;",
        before: Some("qemu_mutex_lock_iothread();"),
        after: Some("qemu_mutex_unlock_iothread();"),
    },
    Cure {
        line: "#include \"qemu/log.h\"",
        before: None,
        after: Some("#include \"qemu/main-loop.h\""),
    },
];

/// The folders of emulated SVM in the versions of QEMU, and the file in them.
const SVM_FOLDERS: [&str; 2] = ["target/i386/tcg/sysemu", "target/i386/tcg/system"];
const SVM_FILE: &str = "svm_helper.c";

/// What the build needs. All of it, and the configuration, serves QEMU's own test programs too.
const BUILD_PACKAGES: [&str; 14] = [
    "build-essential",
    "dpkg-dev",
    "meson",
    "ninja-build",
    "pkg-config",
    "python3-venv",
    "flex",
    "bison",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "zlib1g-dev",
    "libfdt-dev",
    "libcap-ng-dev",
    "libattr1-dev",
];

const CONFIGURATION: &[&str] = &[
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-tcg",
    "--enable-kvm",
    "--enable-virtfs",
    "--enable-attr",
    "--enable-cap-ng",
    "--enable-tools",
    "--enable-vhost-user",
    "--enable-vhost-user-blk-server",
    "--enable-vhost-net",
    "--enable-vhost-kernel",
    "--enable-fdt=system",
    "--disable-docs",
    "--disable-werror",
];

/// A finished build in the cache. Source and build folder stay, so that more of QEMU can be built there.
#[derive(Clone, Debug)]
pub struct CuredQemu {
    folder: PathBuf,
}

impl CuredQemu {
    /// The emulator.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.build_folder().join("qemu-system-x86_64")
    }

    /// The unpacked, patched source.
    #[must_use]
    pub fn source_folder(&self) -> PathBuf {
        self.folder.join("src")
    }

    /// Where `ninja` builds.
    #[must_use]
    pub fn build_folder(&self) -> PathBuf {
        self.folder.join("build")
    }

    /// The build for the version of QEMU that apt knows, when it is there and finished.
    ///
    /// # Errors
    /// When apt knows no QEMU.
    pub fn existing() -> Result<Option<Self>> {
        let version = wanted()?.version;
        let cured = Self {
            folder: cache::folder()?.join(name(&version)),
        };
        Ok((cured.marker().is_file() && cured.program().is_file()).then_some(cured))
    }

    /// As [`Self::existing`], building it first when it is not there, which takes about five minutes.
    ///
    /// # Errors
    /// When packages are missing, cannot be fetched, or the build fails.
    pub fn ensure() -> Result<Self> {
        if let Some(cured) = Self::existing()? {
            return Ok(cured);
        }
        packages::install(&BUILD_PACKAGES, "build QEMU with its emulated SVM cured")?;
        let downloaded = cache::folder()?.join("apt/sources");
        // apt's lists may name a version that the mirror no longer has.
        let source = match wanted().and_then(|source| download(source, &downloaded)) {
            Err(_) if packages::update_once()? => download(wanted()?, &downloaded)?,
            answer => answer?,
        };
        let name = name(&source.version);
        let _lock = cache::lock(&name)?;
        if let Some(cured) = Self::existing()? {
            return Ok(cured);
        }
        let cured = Self {
            folder: cache::folder()?.join(name),
        };
        eprintln!(
            "building QEMU {} with its emulated SVM cured, once, in {}: about five minutes",
            source.version,
            cured.folder.display()
        );
        cache::remove(&cured.folder)?;
        fs::create_dir_all(&cured.folder).during(|| format!("making {}", cured.folder.display()))?;
        let dsc = format!("{}_{}.dsc", source.package, packages::without_epoch(&source.version));
        let mut unpack = tool::command("dpkg-source");
        unpack
            .args(["--no-check", "-x"])
            .arg(downloaded.join(dsc))
            .arg(cured.source_folder());
        tool::output(&mut unpack)?;
        patch(&cured.source_folder())?;
        cured.build()?;
        fs::write(cured.marker(), PATCH_KEY).during(|| format!("writing {}", cured.marker().display()))?;
        Ok(cured)
    }

    /// Builds test programs of QEMU, as far as they are not there yet, and returns the folder that they are in.
    ///
    /// # Errors
    /// The build fails.
    pub fn test_programs(&self, names: &[&str]) -> Result<PathBuf> {
        const FOLDER: &str = "tests/qtest";
        let targets: Vec<_> = names.iter().map(|name| format!("{FOLDER}/{name}")).collect();
        self.build_more(&targets)?;
        Ok(self.build_folder().join(FOLDER))
    }

    /// QEMU's storage daemon, which serves disks to other processes, built if it is not there yet.
    ///
    /// # Errors
    /// The build fails.
    pub fn storage_daemon(&self) -> Result<PathBuf> {
        const TARGET: &str = "storage-daemon/qemu-storage-daemon";
        self.build_more(&[TARGET.to_owned()])?;
        Ok(self.build_folder().join(TARGET))
    }

    /// Builds those of `targets`, files in the build folder, that are not there yet.
    fn build_more(&self, targets: &[String]) -> Result<()> {
        let folder = self.build_folder();
        let _lock = match self.folder.file_name() {
            Some(name) => Some(cache::lock(&name.to_string_lossy())?),
            None => None,
        };
        let missing: Vec<_> = targets.iter().filter(|target| !folder.join(target).is_file()).collect();
        if !missing.is_empty() {
            eprintln!("building more of QEMU, once, in {}", folder.display());
            packages::install(&BUILD_PACKAGES, "build QEMU's test programs")?;
            let mut ninja = tool::command("nice");
            tool::output(ninja.arg("ninja").args(missing).current_dir(folder))?;
        }
        Ok(())
    }

    /// Written last: without it the build is not finished.
    fn marker(&self) -> PathBuf {
        self.folder.join("finished")
    }

    fn build(&self) -> Result<()> {
        let folder = self.build_folder();
        fs::create_dir_all(&folder).during(|| format!("making {}", folder.display()))?;
        tool::output(
            tool::command("nice")
                .arg(self.source_folder().join("configure"))
                .args(CONFIGURATION)
                .current_dir(&folder),
        )?;
        tool::output(
            tool::command("nice")
                .args(["ninja", "qemu-system-x86_64"])
                .current_dir(&folder),
        )
        .map(|_| ())
    }
}

fn name(version: &str) -> String {
    format!("qemu-{}-{PATCH_KEY}", packages::without_epoch(version))
}

/// The source package of the QEMU that apt knows.
fn wanted() -> Result<Candidate> {
    packages::source_of("qemu-system-x86")
}

/// Downloads a source package into a folder, and returns which. The system's own list of sources stays as it is: a private
/// one, with private state, names the same sites for source packages.
fn download(source: Candidate, folder: &Path) -> Result<Candidate> {
    let _lock = cache::lock("sources")?;
    let apt = cache::folder()?.join("apt");
    for part in [folder, &apt.join("lists/partial"), &apt.join("archives/partial")] {
        fs::create_dir_all(part).during(|| format!("making {}", part.display()))?;
    }
    let targets = tool::text(tool::command("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT) $(SIGNED_BY)",
        "Created-By: Packages",
    ]))?;
    let list = apt.join("source.list");
    fs::write(&list, source_list(&targets)).during(|| format!("writing {}", list.display()))?;
    let apt_get = || {
        let mut command = tool::command("apt-get");
        command.current_dir(folder).args([
            "-qq",
            "-o",
            "Dir::Etc::sourceparts=/dev/null",
            "-o",
            "APT::Sandbox::User=root",
        ]);
        for (option, value) in [
            ("Dir::Etc::sourcelist", &list),
            ("Dir::State::lists", &apt.join("lists")),
            ("Dir::Cache", &apt),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command
    };
    tool::output(apt_get().arg("update"))?;
    tool::output(
        apt_get()
            .args(["source", "--download-only"])
            .arg(format!("{}={}", source.package, source.version)),
    )?;
    Ok(source)
}

/// Turns apt's list of binary indexes into a list of Debian's source packages at the same sites. An index whose key is
/// not named is checked against the keys of Debian's own archive.
fn source_list(targets: &str) -> String {
    let mut lines: Vec<String> = targets
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("Debian ")?.split_whitespace();
            let (site, release, component) = (words.next()?, words.next()?, words.next()?);
            let key = words
                .next()
                .filter(|key| key.starts_with('/'))
                .unwrap_or("/usr/share/keyrings/debian-archive-keyring.gpg");
            Some(format!("deb-src [signed-by={key}] {site} {release} {component}\n"))
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

fn patch(source: &Path) -> Result<()> {
    let file = SVM_FOLDERS
        .map(|folder| source.join(folder).join(SVM_FILE))
        .into_iter()
        .find(|file| file.is_file())
        .ok_or_else(|| Error::Other(format!("no {SVM_FILE} in {}", source.display())))?;
    let text = fs::read_to_string(&file).during(|| format!("reading {}", file.display()))?;
    let mut cured = text;
    for cure in &CURES {
        cured = cure.apply(&cured).ok_or_else(|| {
            Error::Other(format!(
                "{} does not have the line `{}` exactly once",
                file.display(),
                cure.line
            ))
        })?;
    }
    fs::write(&file, cured).during(|| format!("writing {}", file.display()))
}

impl Cure {
    /// The text with the lines put in, in the indentation of the line that they go with; `None` where there is not just one such line.
    fn apply(&self, text: &str) -> Option<String> {
        if text.matches(self.line).count() != 1 {
            return None;
        }
        let mut cured = String::with_capacity(text.len() + 128);
        for line in text.split_inclusive('\n') {
            let Some((indentation, _)) = line.split_once(self.line) else {
                cured.push_str(line);
                continue;
            };
            let added = |line: Option<&str>| line.map_or(String::new(), |line| format!("{indentation}{line}\n"));
            cured += &added(self.before);
            cured += line;
            cured += &added(self.after);
        }
        Some(cured)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CURE: Cure = Cure {
        line: "f(1);",
        before: Some("lock();"),
        after: Some("unlock();"),
    };

    #[test]
    fn a_cure_goes_round_its_line() {
        let expected = "  case A:\n    lock();\n    f(1);\n    unlock();\n    break;\n";
        assert_eq!(CURE.apply("  case A:\n    f(1);\n    break;\n").unwrap(), expected);
    }

    #[test]
    fn a_source_that_looks_different_is_refused() {
        assert_eq!(CURE.apply("nothing here\n"), None);
        assert_eq!(CURE.apply("f(1);\nf(1);\n"), None);
    }

    #[test]
    fn source_packages_are_sought_where_the_binaries_are() {
        let targets = "Debian http://deb.debian.org/debian/ bookworm main /etc/key.gpg\n\
                       Debian http://deb.debian.org/debian/ bookworm main /etc/key.gpg\n\
                       Somebody https://example.org/apt/ stable main /etc/other.gpg\n\
                       Debian http://deb.debian.org/debian-security/ bookworm-security main $(SIGNED_BY)\n";
        assert_eq!(
            source_list(targets),
            "deb-src [signed-by=/etc/key.gpg] http://deb.debian.org/debian/ bookworm main\n\
             deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security/ bookworm-security main\n"
        );
    }

    #[test]
    fn the_build_is_named_by_version_and_patch() {
        assert_eq!(name("1:7.2+dfsg-7+deb12u18"), "qemu-7.2+dfsg-7+deb12u18-vmrun2");
    }
}
