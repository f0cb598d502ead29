//! Debian's stock kernels, fetched without being installed, and the uncompressed kernel inside a bzImage.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use crate::cache;
use crate::error::{During, Error, Result};
use crate::lab::scratch;
use crate::packages;
use crate::tool;

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-cloud-amd64`: only what virtual machines need.
    Cloud,
    /// `linux-image-amd64`: what every PC needs.
    Generic,
}

impl Flavour {
    /// Every flavour there is.
    pub const ALL: [Self; 2] = [Self::Cloud, Self::Generic];

    /// A short name for folders and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
        }
    }

    const fn metapackage(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }
}

/// A kernel of Debian's in the cache.
#[derive(Clone, Debug)]
pub struct DebianKernel {
    /// Which one.
    pub flavour: Flavour,
    /// The kernel's own name, as `uname -r` prints it.
    pub release: String,
    /// The package's version.
    pub version: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The folder that is `/lib/modules/RELEASE` where the package is installed.
    pub modules: PathBuf,
}

impl DebianKernel {
    /// Fetches the newest kernel of this flavour that apt knows.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn fetch(flavour: Flavour) -> Result<Self> {
        const PREFIX: &str = "linux-image-";
        let unpacked = packages::fetch_behind(flavour.metapackage(), PREFIX)?;
        let package = &unpacked.candidate.package;
        let release = package
            .trim_start_matches(PREFIX)
            .trim_end_matches("-unsigned")
            .to_string();
        let image = unpacked.root.join("boot").join(format!("vmlinuz-{release}"));
        let modules = ["lib/modules", "usr/lib/modules"]
            .map(|folder| unpacked.root.join(folder).join(&release))
            .into_iter()
            .find(|folder| folder.is_dir())
            .ok_or_else(|| Error::Other(format!("package {package} holds no folder of modules")))?;
        if !image.is_file() {
            return Err(Error::Kernel {
                path: image,
                why: "not in its package".into(),
            });
        }
        Ok(Self {
            flavour,
            release,
            version: unpacked.candidate.version,
            image,
            modules,
        })
    }

    /// The uncompressed kernel: an ELF file with the PVH note, which starts seconds sooner where every instruction is
    /// emulated. Made once, in the cache.
    ///
    /// # Errors
    /// When the image is not a bzImage or cannot be uncompressed.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let version = packages::without_epoch(&self.version);
        let folder = cache::entry(&format!("vmlinux/{}_{version}", self.release), |folder| {
            let vmlinux = extract_vmlinux(&self.image)?;
            let path = folder.join("vmlinux");
            fs::write(&path, vmlinux).during(|| format!("writing {}", path.display()))
        })?;
        Ok(folder.join("vmlinux"))
    }
}

/// How a bzImage packs its kernel: the first bytes, and who unpacks it.
struct Packing {
    magic: &'static [u8],
    tool: &'static str,
    package: &'static str,
    arguments: &'static [&'static str],
}

/// Those that Linux's `arch/x86/boot/compressed/Makefile` offers and distributions use. It appends the unpacked size,
/// four bytes, to all but gzip, which has it anyway.
const PACKINGS: [Packing; 6] = [
    Packing {
        magic: b"\xfd7zXZ\0",
        tool: "xz",
        package: "xz-utils",
        arguments: &["-dc"],
    },
    Packing {
        magic: b"\x1f\x8b",
        tool: "gzip",
        package: "gzip",
        arguments: &["-dc"],
    },
    Packing {
        magic: b"\x28\xb5\x2f\xfd",
        tool: "zstd",
        package: "zstd",
        arguments: &["-dc"],
    },
    Packing {
        magic: b"\x02\x21\x4c\x18",
        tool: "lz4",
        package: "lz4",
        arguments: &["-dc"],
    },
    Packing {
        magic: b"\x5d\0\0",
        tool: "xz",
        package: "xz-utils",
        arguments: &["-dc", "--format=lzma"],
    },
    Packing {
        magic: b"BZh",
        tool: "bzip2",
        package: "bzip2",
        arguments: &["-dc"],
    },
];

const SIZE_SUFFIX: usize = 4;

/// Unpacks the ELF kernel from a bzImage.
///
/// # Errors
/// [`Error::Kernel`] when it is no bzImage or packed in an unknown way.
pub fn extract_vmlinux(image: &Path) -> Result<Vec<u8>> {
    let wrong = |why: &str| Error::Kernel {
        path: image.into(),
        why: why.into(),
    };
    let bytes = fs::read(image).during(|| format!("reading {}", image.display()))?;
    let payload = payload_of(&bytes).ok_or_else(|| wrong("not a bzImage of boot protocol 2.08 or later"))?;
    if payload.starts_with(b"\x7fELF") {
        return Ok(payload.to_vec());
    }
    let packing = PACKINGS
        .iter()
        .find(|packing| payload.starts_with(packing.magic))
        .ok_or_else(|| wrong("packed in a way that is not known here"))?;
    let end = if packing.tool == "gzip" {
        payload.len()
    } else {
        payload.len().saturating_sub(SIZE_SUFFIX)
    };
    if tool::find(packing.tool).is_none() {
        packages::install(&[packing.package], "unpack a kernel image")?;
    }
    let mut input: File = scratch::unlinked_file("payload")?;
    let vmlinux = input
        .write_all(payload.get(..end).unwrap_or(payload))
        .and_then(|()| input.rewind())
        .during(|| "writing a temporary file")
        .and_then(|()| tool::output(tool::command(packing.tool).args(packing.arguments).stdin(input)))?;
    if !vmlinux.starts_with(b"\x7fELF") {
        return Err(wrong("what is packed in it is not an ELF file"));
    }
    Ok(vmlinux)
}

/// The packed kernel in a bzImage, by the fields of its setup header (Linux, `Documentation/arch/x86/boot.rst`).
fn payload_of(image: &[u8]) -> Option<&[u8]> {
    const SETUP_SECTORS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const PROTOCOL: usize = 0x206;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" || word(PROTOCOL)? & 0xffff < 0x0208 {
        return None;
    }
    let sectors = match *image.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    image.get(start..start.checked_add(word(PAYLOAD_LENGTH)?)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn image(setup_sectors: u8, payload: &[u8]) -> Vec<u8> {
        let sectors = if setup_sectors == 0 {
            4
        } else {
            usize::from(setup_sectors)
        };
        let mut image = vec![0; (sectors + 1) * 512];
        image[0x1f1] = setup_sectors;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend([0xee; 16]);
        image.extend(payload);
        image
    }

    #[test]
    fn the_payload_is_found_and_zero_setup_sectors_mean_four() {
        assert_eq!(payload_of(&image(27, b"payload")), Some(&b"payload"[..]));
        assert_eq!(payload_of(&image(0, b"payload")), Some(&b"payload"[..]));
    }

    #[test]
    fn a_cut_off_image_and_a_text_file_are_no_kernels() {
        let whole = image(2, b"payload");
        assert_eq!(payload_of(whole.get(..whole.len() - 1).unwrap()), None);
        assert_eq!(payload_of(b"hello"), None);
        assert!(matches!(
            extract_vmlinux(Path::new("/etc/passwd")),
            Err(Error::Kernel { .. })
        ));
    }
}
