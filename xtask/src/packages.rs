//! Debian packages: installed where a program must run on this host, otherwise only fetched and unpacked into the
//! cache, so that nothing is written to `/boot` and no package script runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use crate::cache;
use crate::error::{During, Error, Result};
use crate::tool;

/// A package that apt would install: its name and the version it would choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The package's name.
    pub package: String,
    /// The version, as Debian writes it, with its epoch.
    pub version: String,
}

/// A package unpacked in the cache.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// Which package in which version.
    pub candidate: Candidate,
    /// The folder that stands for `/`.
    pub root: PathBuf,
}

/// The program on the PATH; the Debian package `package` that has it is installed when it is missing.
///
/// # Errors
/// As [`install`], or when it is not there even then.
pub fn program(name: &str, package: &str, purpose: &str) -> Result<PathBuf> {
    if tool::find(name).is_none() {
        install(&[package], purpose)?;
    }
    tool::find(name).ok_or_else(|| Error::Other(format!("{name} is not on the PATH")))
}

/// Installs those of the packages that are missing. `purpose` says why, as the end of "needed to ...".
///
/// # Errors
/// [`Error::PackagesMissing`] with the exact command when this process is not root; else what apt-get says.
pub fn install(packages: &[&str], purpose: &str) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !tool::is_root() {
        return Err(Error::PackagesMissing {
            purpose: purpose.into(),
            command: format!("sudo {command}"),
        });
    }
    eprintln!("installing Debian packages, needed to {purpose}: {}", missing.join(" "));
    let attempt = || {
        tool::output(
            tool::command("apt-get")
                .args(["install", "--yes", "--no-install-recommends", "-qq"])
                .args(["-o", "DPkg::Lock::Timeout=300"])
                .args(&missing),
        )
    };
    // The lists may name versions that the mirror no longer has.
    attempt().or_else(|error| if update_once()? { attempt() } else { Err(error) })?;
    Ok(())
}

/// Fetches one package and unpacks it below the cache, without installing it and without its dependencies.
///
/// # Errors
/// When apt does not know it, or it can be neither downloaded nor unpacked.
pub fn fetch(package: &str) -> Result<Unpacked> {
    unpack(resolve(package, |shown| Ok(shown.candidate()))?)
}

/// Fetches the real package behind a metapackage: the first dependency whose name starts with `prefix`.
///
/// # Errors
/// As [`fetch`], and when there is no such dependency.
pub fn fetch_behind(metapackage: &str, prefix: &str) -> Result<Unpacked> {
    unpack(resolve(metapackage, |shown| {
        let real = shown
            .dependency(prefix)
            .ok_or_else(|| Error::UnknownPackage(format!("{prefix}* (behind {metapackage})")))?;
        Ok(show(&real)?.candidate())
    })?)
}

/// Fetches a package together with those of its dependencies that this host has not installed.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_with_dependencies(package: &str) -> Result<Vec<Unpacked>> {
    let top = fetch(package)?;
    let path = cache::folder()?
        .join("resolved")
        .join(format!("{package}:dependencies"));
    let stamp = top.candidate.version.clone();
    let record = match Record::read(&path).filter(|record| record.stamp == stamp) {
        Some(record) => record,
        None => {
            let plan =
                tool::text(tool::command("apt-get").args(["install", "-s", "--no-install-recommends", package]))?;
            let lines = planned(&plan).into_iter().filter(|name| name != package).collect();
            let record = Record { stamp, lines };
            record.write(&path)?;
            record
        }
    };
    let names = [package].into_iter().chain(record.lines.iter().map(String::as_str));
    names.map(fetch).collect()
}

/// The source package and version that a binary package was built from.
///
/// # Errors
/// When apt does not know the package.
pub fn source_of(package: &str) -> Result<Candidate> {
    resolve(&format!("{package}:source"), |_| Ok(show(package)?.source()))
}

fn is_installed(package: &str) -> bool {
    tool::text(tool::command("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev}", package]))
        .is_ok_and(|status| status.starts_with("ii"))
}

/// Runs `apt-get update`, at most once in the life of this process. Returns whether it ran now.
///
/// # Errors
/// [`Error::PackagesMissing`] with the exact command when this process is not root; else what apt-get says.
pub fn update_once() -> Result<bool> {
    static RAN: AtomicBool = AtomicBool::new(false);
    if RAN.swap(true, Ordering::Relaxed) {
        return Ok(false);
    }
    if !tool::is_root() {
        return Err(Error::PackagesMissing {
            purpose: "know which packages there are".into(),
            command: "sudo apt-get update".into(),
        });
    }
    eprintln!("updating apt's lists of packages");
    tool::output(tool::command("apt-get").args(["update", "-qq"]))?;
    Ok(true)
}

/// What apt's lists say about one package.
#[derive(Debug)]
struct Shown(String);

impl Shown {
    fn field(&self, name: &str) -> Option<&str> {
        self.0
            .lines()
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            package: self.field("Package").unwrap_or_default().into(),
            version: self.field("Version").unwrap_or_default().into(),
        }
    }

    /// `Source: name (version)`; the version is left out where it is the binary's, the field where the name is too.
    fn source(&self) -> Candidate {
        let own = self.candidate();
        let Some(source) = self.field("Source") else {
            return own;
        };
        match source.split_once(" (") {
            Some((package, version)) => Candidate {
                package: package.into(),
                version: version.trim_end_matches(')').into(),
            },
            None => Candidate {
                package: source.into(),
                version: own.version,
            },
        }
    }

    fn dependency(&self, prefix: &str) -> Option<String> {
        self.field("Depends")?
            .split([',', '|'])
            .filter_map(|clause| clause.split_whitespace().next())
            .find(|name| name.starts_with(prefix))
            .map(String::from)
    }
}

fn show(package: &str) -> Result<Shown> {
    let ask = || tool::text(tool::command("apt-cache").args(["show", "--no-all-versions", package]));
    let known = |answer: Result<String>| answer.ok().filter(|text| text.contains("Version:")).map(Shown);
    if let Some(shown) = known(ask()) {
        return Ok(shown);
    }
    update_once()?;
    known(ask()).ok_or_else(|| Error::UnknownPackage(package.into()))
}

/// Answers from the record of an earlier run as long as apt's lists are the same; asking apt takes a second. Where apt has
/// no answer, as without its lists and without the right to get them, the earlier one still holds.
fn resolve(key: &str, choose: impl FnOnce(Shown) -> Result<Candidate>) -> Result<Candidate> {
    let record = cache::folder()?.join("resolved").join(key);
    let earlier = Record::read(&record);
    let known = earlier.as_ref().and_then(Record::candidate);
    if let (Some(record), Some(candidate)) = (&earlier, &known)
        && record.stamp == lists_stamp()
    {
        return Ok(candidate.clone());
    }
    let package = key.split(':').next().unwrap_or(key);
    match (show(package).and_then(choose), known) {
        (Ok(candidate), _) => {
            let line = format!("{} {}", candidate.package, candidate.version);
            // Asking may just have updated the lists.
            Record {
                stamp: lists_stamp(),
                lines: vec![line],
            }
            .write(&record)?;
            Ok(candidate)
        }
        (Err(_), Some(candidate)) => Ok(candidate),
        (Err(error), None) => Err(error),
    }
}

/// Changes whenever apt's lists do: the time of their last change, in nanoseconds.
fn lists_stamp() -> String {
    let changed = fs::metadata("/var/lib/apt/lists").and_then(|meta| meta.modified()).ok();
    let since = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or_else(|| "none".into(), |duration| duration.as_nanos().to_string())
}

/// An answer of apt's that is kept: what it was valid for, and its lines.
#[derive(Debug)]
struct Record {
    stamp: String,
    lines: Vec<String>,
}

impl Record {
    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text.lines().map(String::from);
        Some(Self {
            stamp: lines.next()?,
            lines: lines.collect(),
        })
    }

    /// Its first line as `package version`.
    fn candidate(&self) -> Option<Candidate> {
        let (package, version) = self.lines.first()?.split_once(' ')?;
        Some(Candidate {
            package: package.into(),
            version: version.into(),
        })
    }

    fn write(&self, path: &Path) -> Result<()> {
        let action = || format!("writing {}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).during(action)?;
        }
        let staging = path.with_extension(std::process::id().to_string());
        let lines: String = self.lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&staging, format!("{}\n{lines}", self.stamp)).during(action)?;
        fs::rename(&staging, path).during(action)
    }
}

/// The packages that `apt-get install -s` says it would install.
fn planned(plan: &str) -> Vec<String> {
    plan.lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name).to_string())
        .collect()
}

/// The name of a package's folder in the cache: no epoch, whose colon would split a search path.
fn folder_name(candidate: &Candidate) -> String {
    format!("{}_{}", candidate.package, without_epoch(&candidate.version))
}

/// A Debian version without its epoch: `1:7.2+dfsg-7` is `7.2+dfsg-7`.
#[must_use]
pub fn without_epoch(version: &str) -> &str {
    version.split_once(':').map_or(version, |(_, rest)| rest)
}

fn unpack(candidate: Candidate) -> Result<Unpacked> {
    let root = cache::entry(&format!("packages/{}", folder_name(&candidate)), |staging| {
        eprintln!("fetching Debian package {} {}", candidate.package, candidate.version);
        let download = || {
            tool::output(
                tool::command("apt-get")
                    .args(["download", "-qq", "-o", "APT::Sandbox::User=root"])
                    .arg(format!("{}={}", candidate.package, candidate.version))
                    .current_dir(staging),
            )
        };
        download().or_else(|error| if update_once()? { download() } else { Err(error) })?;
        let listing = || format!("listing {}", staging.display());
        for file in fs::read_dir(staging).during(listing)? {
            let deb = file.during(listing)?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                tool::output(tool::command("dpkg-deb").arg("-x").arg(&deb).arg(staging))?;
                fs::remove_file(&deb).during(|| format!("removing {}", deb.display()))?;
            }
        }
        Ok(())
    })?;
    Ok(Unpacked { candidate, root })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Shown {
        Shown(text.into())
    }

    #[test]
    fn the_real_kernel_is_found_behind_its_metapackage() {
        let meta = shown("Package: linux-image-amd64\nDepends: foo (>= 1), linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n");
        assert_eq!(
            meta.dependency("linux-image-").as_deref(),
            Some("linux-image-6.1.0-56-amd64")
        );
        assert_eq!(meta.dependency("linux-headers-"), None);
    }

    #[test]
    fn the_source_version_may_differ_from_the_binarys() {
        let rebuilt = shown("Package: q\nSource: qemu (1:7.2+dfsg-7+deb12u18)\nVersion: 1:7.2+dfsg-7+deb12u18+b3\n");
        assert_eq!(
            rebuilt.source(),
            Candidate {
                package: "qemu".into(),
                version: "1:7.2+dfsg-7+deb12u18".into()
            }
        );
        let plain = shown("Package: seabios\nVersion: 1.16.2-1\n");
        assert_eq!(plain.source(), plain.candidate());
        let renamed = shown("Package: q\nSource: qemu\nVersion: 2\n");
        assert_eq!(
            renamed.source(),
            Candidate {
                package: "qemu".into(),
                version: "2".into()
            }
        );
    }

    #[test]
    fn only_the_candidates_own_paragraph_counts() {
        let two = shown("Package: a\nVersion: 2\n\nPackage: a\nVersion: 1\nDepends: linux-image-old\n");
        assert_eq!(two.candidate().version, "2");
        assert_eq!(two.dependency("linux-image-"), None);
    }

    #[test]
    fn folders_are_named_by_version_without_the_epoch() {
        let candidate = Candidate {
            package: "busybox-static".into(),
            version: "1:1.35.0-4".into(),
        };
        assert_eq!(folder_name(&candidate), "busybox-static_1.35.0-4");
    }

    #[test]
    fn a_simulated_installation_lists_what_is_missing() {
        let plan = "Reading...\nInst pci.ids (0.0 Debian [all])\nInst libpci3:amd64 [1] (2 Debian [amd64])\nConf pci.ids (0.0)\n";
        assert_eq!(planned(plan), ["pci.ids", "libpci3"]);
    }
}
