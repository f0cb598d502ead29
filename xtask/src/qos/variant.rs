//! As what devices appear, and the program that makes them: it stands between QEMU's test and Innkeeper and changes the
//! command line on its way.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::error::During;
use xtask::{Error, Result};

/// The faces that the virtio devices of a test have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Variant {
    /// Both: the tests use the modern one.
    Transitional,
    /// The legacy face alone.
    Legacy,
    /// The modern face alone.
    Modern,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Transitional, Self::Legacy, Self::Modern];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transitional => "transitional",
            Self::Legacy => "legacy",
            Self::Modern => "modern",
        }
    }

    /// What is added to the options of a device.
    const fn options(self) -> &'static str {
        match self {
            Self::Transitional => "",
            Self::Legacy => ",disable-modern=on",
            Self::Modern => ",disable-legacy=on",
        }
    }
}

/// The name under which the tests start the program, from the end of which they know what it emulates.
const NAME: &str = "qemu-system-x86_64";
/// Tells the stand-in which program to start.
const PROGRAM: &str = "INNKEEPER_QOS_PROGRAM";
/// Tells the stand-in the name of the variant.
const VARIANT: &str = "INNKEEPER_QOS_VARIANT";

/// What the names of virtio devices begin with.
const VIRTIO: [&str; 2] = ["virtio-", "vhost-user-"];

/// A virtio device that QEMU's unplug tests take for being small. Innkeeper has a smaller one.
const SMALL_DEVICE: (&str, &str) = ("virtio-mouse-pci", "virtio-rng-pci");

/// A folder with the links that the tests start.
pub struct Stage {
    folder: PathBuf,
    stand_in: PathBuf,
    program: PathBuf,
    storage_daemon: PathBuf,
}

impl Stage {
    /// Makes the links in `folder`, for the program under test. Disks of other processes come from `storage_daemon`.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn new(folder: &Path, program: &Path, storage_daemon: PathBuf) -> Result<Self> {
        let ourselves = std::env::current_exe().during(|| "finding this program")?;
        let link = |name: &str, target: &Path| {
            let path = folder.join(name);
            std::fs::create_dir_all(&path).during(|| format!("making {}", path.display()))?;
            let path = path.join(NAME);
            symlink(target, &path).during(|| format!("making the link {}", path.display()))?;
            Ok::<_, Error>(path)
        };
        Ok(Self {
            stand_in: link("stand-in", &ourselves)?,
            program: link("program", program)?,
            folder: folder.to_owned(),
            storage_daemon,
        })
    }

    /// Makes `command`, a test program, start the program under test with devices that appear as `variant`.
    pub fn prepare(&self, command: &mut Command, variant: Variant) {
        command
            .current_dir(&self.folder)
            .env("TMPDIR", &self.folder)
            .env("QTEST_QEMU_BINARY", &self.stand_in)
            .env("QTEST_QEMU_STORAGE_DAEMON_BINARY", &self.storage_daemon)
            .env(PROGRAM, &self.program)
            .env(VARIANT, variant.name());
    }
}

/// When this process was started as the stand-in, it becomes the program under test, and this returns only if that fails.
pub fn stand_in() -> Option<Error> {
    let mut arguments = std::env::args_os();
    let name = arguments.next()?;
    if Path::new(&name).file_name() != Some(OsStr::new(NAME)) {
        return None;
    }
    let (Some(program), Ok(wanted)) = (std::env::var_os(PROGRAM), std::env::var(VARIANT)) else {
        return Some(Error::Other(format!(
            "{NAME}: only QEMU's tests start this, through cargo xtask qos"
        )));
    };
    let variant = Variant::ALL.into_iter().find(|variant| variant.name() == wanted);
    let arguments = changed(arguments, variant.unwrap_or(Variant::Transitional));
    let source = Command::new(&program).args(arguments).exec();
    let action = format!("starting {}", program.display());
    Some(Error::Io { action, source })
}

/// The command line with every virtio device appearing as `variant`.
fn changed(arguments: impl Iterator<Item = OsString>, variant: Variant) -> Vec<OsString> {
    let mut of_device = false;
    let change = |argument: OsString| {
        let was_of_device = std::mem::replace(&mut of_device, argument == "-device");
        match argument.to_str() {
            Some(text) if was_of_device => device(text, variant).into(),
            _ => argument,
        }
    };
    arguments.map(change).collect()
}

fn device(text: &str, variant: Variant) -> String {
    let mut text = text.replace(SMALL_DEVICE.0, SMALL_DEVICE.1);
    let name = text.split(',').next().unwrap_or_default();
    if VIRTIO.iter().any(|prefix| name.starts_with(prefix)) && name.ends_with("-pci") {
        text.push_str(variant.options());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed_words(words: &str, variant: Variant) -> String {
        let words = words.split(' ').map(OsString::from);
        let words = changed(words, variant);
        words.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }

    #[test]
    fn only_virtio_devices_on_pci_get_the_option() {
        let words = "-M pc -device virtio-serial-pci,id=v -device virtserialport,bus=v.0 -drive virtio-blk-pci";
        assert_eq!(
            changed_words(words, Variant::Legacy),
            "-M pc -device virtio-serial-pci,id=v,disable-modern=on -device virtserialport,bus=v.0 -drive virtio-blk-pci"
        );
        assert_eq!(changed_words(words, Variant::Transitional), words);
    }

    #[test]
    fn the_mouse_is_replaced_in_either_notation() {
        let words = "-device virtio-mouse-pci,id=dev0 -device {'driver':'virtio-mouse-pci'}";
        assert_eq!(
            changed_words(words, Variant::Transitional),
            "-device virtio-rng-pci,id=dev0 -device {'driver':'virtio-rng-pci'}"
        );
    }
}
