//! Small guests for the tests of this module.
#![allow(clippy::unwrap_used)]

use std::io::Write;

use vmm_sys_util::tempfile::TempFile;

use super::{BootConfig, Image, tables::Platform};
use crate::memory::{Backing, Layout, Ram};

/// A layout of `mib` MiB and memory for it.
pub(super) fn guest(mib: u64) -> (Layout, Ram) {
    let layout = Layout::new(mib << 20).unwrap();
    (layout, Ram::new(layout, Backing::Shared).unwrap())
}

/// A file with these bytes.
pub(super) fn image(bytes: &[u8]) -> Image {
    let mut file = TempFile::new().unwrap().into_file();
    file.write_all(bytes).unwrap();
    Image::from_file("test", file)
}

/// A guest with one processor that boots these bytes.
pub(super) fn config(kernel: &[u8], mib: u64) -> BootConfig {
    let layout = Layout::new(mib << 20).unwrap();
    BootConfig {
        kernel: image(kernel),
        initrd: None,
        command_line: String::new(),
        layout,
        platform: Platform::new(1, &layout),
    }
}
