//! What a machine is to be: the same type whatever the user wrote it in.

use std::path::PathBuf;

use devices::virtio::options::Pairs;

use crate::memory::{Layout, LayoutError};

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// Who places the BARs of PCI functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PciResources {
    /// We do, before the kernel starts, as a BIOS does.
    #[default]
    Firmware,
    /// Nobody does, and the guest's kernel finds them empty.
    Guest,
}

/// A machine with a kernel to boot.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// A bzImage or an ELF vmlinux; a machine with a processor needs one.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Virtual CPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// Bytes of guest memory, whole MiB, at least 32.
    pub memory: u64,
    /// Other processes can map guest memory: it is a file. Private memory is faster.
    pub shared_memory: bool,
    /// A reset by the guest ends the machine instead of starting it again.
    pub end_at_reset: bool,
    /// A guest that switches itself off leaves the machine standing until somebody ends or resets it (QEMU's `-no-shutdown`).
    pub keep_at_shutdown: bool,
    /// A triple fault resets the machine, as in a PC, instead of ending it.
    pub reset_at_triple_fault: bool,
    /// The CPUs wait until somebody lets them run (QEMU's `-S`).
    pub start_paused: bool,
    /// There is a serial port at COM1.
    pub serial_port: bool,
    /// The port of the debug-exit device, if there is one.
    pub debug_exit: Option<u16>,
    /// Who places BARs.
    pub pci_resources: PciResources,
    /// Virtio devices, in the order of their slots.
    pub devices: Vec<DeviceConfig>,
    /// Names of the I/O threads that serve them; one is made when none is named.
    pub io_threads: Vec<String>,
    /// What firmware is told.
    pub firmware: FirmwareConfig,
}

/// What firmware asks of QEMU's configuration device, beside the sizes of the machine. Only a machine without a processor has that device.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FirmwareConfig {
    /// The machine's UUID, in the order of its digits; zeros when it has none.
    pub uuid: [u8; 16],
    /// There is no display, and the console is the serial port.
    pub no_graphic: bool,
    /// A menu is to be offered.
    pub boot_menu: bool,
    /// Milliseconds after which it starts again when nothing boots; -1 for never.
    pub reboot_timeout: Option<i32>,
    /// Milliseconds for which the picture and the menu are there.
    pub splash_time: Option<u16>,
}

/// A virtio device as the user wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// A name of the table of devices, for instance `virtio-blk-pci`.
    pub name: String,
    /// Its options, not looked at yet.
    pub options: Pairs,
    /// By property, the names of the things whose options are among its own: `drive=d0`. Management shows them and finds it by them.
    pub references: Pairs,
}

impl DeviceConfig {
    /// A device of the table with these options.
    pub fn new(name: impl Into<String>, options: Pairs) -> Self {
        Self {
            name: name.into(),
            options,
            references: Pairs::default(),
        }
    }

    /// Takes `text`, for instance `path=root.img,format=raw`, apart. A first value without a key belongs to `implied`.
    pub fn parse(name: impl Into<String>, text: &str, implied: Option<&str>) -> Self {
        Self::new(name, Pairs::parse(text, implied))
    }
}

/// The most virtual CPUs of a machine. APIC ids above 254 would need interrupt remapping.
pub const MAX_CPUS: u32 = 254;
/// Guest memory in bytes when the user gives none.
pub const DEFAULT_MEMORY: u64 = 512 * MIB;
/// The port of QEMU's isa-debug-exit when the user gives none.
pub const DEBUG_EXIT_PORT: u16 = 0x501;

/// The configuration asks for something that no machine here has
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// The number of CPUs
    #[error("{0} CPUs: a machine has 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// The size of guest memory
    #[error(transparent)]
    Memory(#[from] LayoutError),
    /// No kernel
    #[error("no kernel is named, and there is no firmware that would look for one on a disk")]
    NoKernel,
    /// The size's text
    #[error("'{0}' is not a size; write a number with K, M, G or T behind it, such as 512M (a bare number is MiB)")]
    Size(String),
}

impl MachineConfig {
    /// One CPU, 512 MiB, and no command line.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: Some(kernel.into()),
            ..Self::without_kernel()
        }
    }

    /// The same without a kernel: for a machine without a processor, which a test drives.
    pub fn without_kernel() -> Self {
        Self {
            kernel: None,
            initrd: None,
            command_line: String::new(),
            cpus: 1,
            memory: DEFAULT_MEMORY,
            shared_memory: false,
            end_at_reset: false,
            keep_at_shutdown: false,
            reset_at_triple_fault: false,
            start_paused: false,
            serial_port: true,
            debug_exit: None,
            pci_resources: PciResources::default(),
            devices: Vec::new(),
            io_threads: Vec::new(),
            firmware: FirmwareConfig::default(),
        }
    }

    /// Sets the initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.initrd = Some(path.into());
        self
    }

    /// Sets the kernel's command line.
    #[must_use]
    pub fn command_line(mut self, text: impl Into<String>) -> Self {
        self.command_line = text.into();
        self
    }

    /// Sets the number of CPUs.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// Sets the size of guest memory in bytes.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Adds a device of the table, with its options: `device("virtio-blk-pci", "path=root.img,format=raw")`.
    #[must_use]
    pub fn device(mut self, name: impl Into<String>, options: impl AsRef<str>) -> Self {
        self.devices.push(DeviceConfig::parse(name, options.as_ref(), None));
        self
    }

    /// There is to be no serial port at COM1: whatever console the machine is given says and hears nothing.
    #[must_use]
    pub fn without_serial_port(mut self) -> Self {
        self.serial_port = false;
        self
    }

    /// A reset by the guest is to end the machine.
    #[must_use]
    pub fn end_at_reset(mut self) -> Self {
        self.end_at_reset = true;
        self
    }

    /// Whether guest memory has to be a file: because the user says so, or because another process serves a device.
    pub fn shares_memory(&self) -> bool {
        let is_elsewhere = |device: &DeviceConfig| device.options.get("vhost-user").is_some();
        self.shared_memory || self.devices.iter().any(is_elsewhere)
    }

    /// Sees that the figures are within bounds.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        Layout::new(self.memory)?;
        Ok(())
    }
}

/// Reads a size as QEMU's `-m` does: a number with K, M, G or T, where a bare number is MiB.
///
/// # Errors
/// The text is no size, or too large for 64 bits.
pub fn parse_size(text: &str) -> Result<u64, ConfigError> {
    let error = || ConfigError::Size(text.to_owned());
    let trimmed = text.trim_end_matches("iB").trim_end_matches(['b', 'B']);
    let digits = trimmed.trim_end_matches(char::is_alphabetic);
    let shift = match trimmed.strip_prefix(digits).unwrap_or_default() {
        "" | "m" | "M" => 20,
        "k" | "K" => 10,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err(error()),
    };
    let number: u64 = digits.parse().map_err(|_| error())?;
    number.checked_mul(1 << shift).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        for (text, bytes) in [
            ("512", 512 << 20),
            ("512M", 512 << 20),
            ("1g", 1 << 30),
            ("64K", 64 << 10),
            ("2GiB", 2 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "x", "-1", "1.5G", "12Q", "99999999999T", "1MM"] {
            assert_eq!(parse_size(text), Err(ConfigError::Size(text.into())));
        }
    }

    #[test]
    fn figures_out_of_bounds_are_refused() {
        let config = MachineConfig::new("kernel");
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.clone().cpus(0).validate(), Err(ConfigError::Cpus(0)));
        assert_eq!(config.clone().cpus(255).validate(), Err(ConfigError::Cpus(255)));
        assert!(matches!(
            config.clone().memory(1 << 20).validate(),
            Err(ConfigError::Memory(_))
        ));
        assert!(matches!(
            config.memory((64 << 20) + 1).validate(),
            Err(ConfigError::Memory(_))
        ));
    }
}
