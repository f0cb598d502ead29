//! Disk images that go away with their test.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A raw image, each sector filled with the low byte of its number plus one.
pub struct Image {
    path: PathBuf,
}

impl Image {
    pub fn new(sectors: u64) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("innkeeper-machine-{}-{number}.img", std::process::id());
        let path = std::env::temp_dir().join(name);
        let bytes: Vec<u8> = (0..sectors).flat_map(sector).collect();
        fs::write(&path, bytes).unwrap();
        Self { path }
    }

    /// Options of a device on it.
    pub fn options(&self, more: &str) -> String {
        format!("path={},format=raw{more}", self.path.display())
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What is in a sector of a fresh image.
pub fn sector(number: u64) -> [u8; 512] {
    [(number as u8).wrapping_add(1); 512]
}
