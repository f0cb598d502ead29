//! Disks as QEMU has them, a drive or a graph of block nodes, made into the options of our virtio-blk-pci.

use devices::virtio::options::{ConfigError, Pairs};

use super::backends::Named;

/// What a `-drive` without `id` and `if` asks for.
pub(super) fn from_drive(subject: &str, pairs: Pairs) -> Result<Pairs, ConfigError> {
    let _ = subject;
    Ok(pairs)
}

/// What a `-blockdev` without `node-name` asks for, which may refer to one of `nodes`.
pub(super) fn from_blockdev(subject: &str, pairs: Pairs, nodes: &Named) -> Result<Pairs, ConfigError> {
    let _ = (subject, nodes);
    Ok(pairs)
}
