//! Brings a kernel into guest memory with all that firmware would have left there, so that the first instruction is the
//! kernel's own.

mod bzimage;
pub mod cpu_state;
mod elf;
mod error;
mod image;
mod kernel;
pub mod layout;
mod params;
pub mod tables;
#[cfg(test)]
mod testing;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

pub use error::{BootError, InitrdError, KernelError};
pub use image::Image;

use crate::memory::{GuestMemory, Layout, address, clear};
use kernel::{Kernel, Protocol};
use params::{Initrd, Parameters};

const PAGE: u64 = 4096;

/// What is booted, and what the firmware tables say of the machine.
#[derive(Debug)]
pub struct BootConfig {
    /// A bzImage or an ELF kernel.
    pub kernel: Image,
    /// An initial RAM disk, of any format that the kernel knows.
    pub initrd: Option<Image>,
    /// The kernel's command line.
    pub command_line: String,
    /// Where RAM is.
    pub layout: Layout,
    /// The machine, for the firmware tables.
    pub platform: tables::Platform,
}

/// Where and how the boot processor starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// In long mode, as the 64-bit boot protocol of Linux says.
    Linux64 {
        /// Guest physical address of the first instruction.
        rip: u64,
        /// Guest physical address of `boot_params`.
        boot_params: u64,
    },
    /// In 32-bit protected mode without paging, as the PVH protocol says.
    Pvh {
        /// Guest physical address of the first instruction.
        rip: u32,
        /// Guest physical address of `hvm_start_info`.
        start_info: u32,
    },
}

/// Fills guest memory for a start and says where to start. It relies on nothing that was in memory before, so it serves
/// the first start and every reboot.
pub fn prepare(config: &BootConfig, memory: &GuestMemory) -> Result<Entry, BootError> {
    let kernel_failed = |problem| BootError::Kernel {
        path: config.kernel.path().into(),
        problem,
    };
    write_bios_data(memory)?;
    let rsdp = tables::write(memory, &config.platform)?;
    let kernel = kernel::load(memory, &config.layout, &config.kernel).map_err(kernel_failed)?;
    let initrd = match &config.initrd {
        Some(image) => {
            Some(
                load_initrd(memory, &config.layout, &kernel, image).map_err(|problem| BootError::Initrd {
                    path: image.path().into(),
                    problem,
                })?,
            )
        }
        None => None,
    };
    write_command_line(memory, &kernel, &config.command_line).map_err(kernel_failed)?;
    cpu_state::write_tables(memory)?;

    let command_line_size = config.command_line.len() as u64;
    let parameters = Parameters {
        layout: &config.layout,
        command_line_size,
        initrd,
        rsdp,
    };
    match kernel.protocol {
        Protocol::Linux64 { rip, header } => {
            params::write_boot_params(memory, &parameters, header)?;
            Ok(Entry::Linux64 {
                rip,
                boot_params: layout::BOOT_PARAMS,
            })
        }
        Protocol::Pvh { rip } => {
            params::write_start_info(memory, &parameters)?;
            Ok(Entry::Pvh {
                rip,
                start_info: layout::START_INFO as u32,
            })
        }
    }
}

/// Clears what kernels search for signatures and sets the two words of BIOS data by which they find the end of
/// conventional memory.
fn write_bios_data(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    const KIB: u64 = 1024;
    clear(memory, 0..PAGE)?;
    clear(memory, address::EBDA..address::HIGH_MEMORY)?;
    memory.write_obj((address::EBDA / 16) as u16, GuestAddress(layout::BDA_EBDA_SEGMENT))?;
    memory.write_obj((address::EBDA / KIB) as u16, GuestAddress(layout::BDA_BASE_MEMORY))?;
    // The area's own first byte: its size in KiB.
    memory.write_obj(
        ((address::VGA_HOLE - address::EBDA) / KIB) as u8,
        GuestAddress(address::EBDA),
    )
}

/// Loads the initrd as high as the kernel takes it, where it is least in the way of a kernel that moves.
fn load_initrd(memory: &GuestMemory, layout: &Layout, kernel: &Kernel, image: &Image) -> Result<Initrd, InitrdError> {
    let size = image.size()?;
    let top = layout.low_end().min(kernel.initrd_last.saturating_add(1));
    let bottom = kernel.end.next_multiple_of(PAGE);
    let start = top
        .checked_sub(size)
        .map(|start| start - start % PAGE)
        .filter(|start| *start >= bottom);
    let Some(start) = start else {
        return Err(InitrdError::TooLarge {
            size,
            room: top.saturating_sub(bottom),
        });
    };
    image.load(memory, start, 0, size as usize)?;
    Ok(Initrd { address: start, size })
}

fn write_command_line(memory: &GuestMemory, kernel: &Kernel, line: &str) -> Result<(), KernelError> {
    let limit = kernel.command_line_limit.min(layout::COMMAND_LINE_SIZE - 1) as usize;
    if line.len() > limit {
        return Err(KernelError::CommandLineTooLong {
            length: line.len(),
            limit,
        });
    }
    if let Some(position) = line.bytes().position(|byte| byte == 0) {
        return Err(KernelError::CommandLineNul(position));
    }
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    memory.write_obj(0_u8, GuestAddress(layout::COMMAND_LINE + line.len() as u64))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use testing::{config, guest, image};

    fn initrd_of(memory: &GuestMemory) -> (u64, u64) {
        let field = |offset| {
            memory
                .read_obj::<u32>(GuestAddress(layout::BOOT_PARAMS + offset))
                .unwrap()
                .into()
        };
        (field(0x218), field(0x21c))
    }

    #[test]
    fn initrd_ends_at_the_top_of_memory_or_where_the_kernel_says() {
        let (_, ram) = guest(64);
        let mut config = config(&bzimage::tests::small_kernel(), 64);
        config.initrd = Some(image(&[0x5a; 5000]));
        prepare(&config, ram.memory()).unwrap();
        let (address, size) = initrd_of(ram.memory());
        assert_eq!((address, size), (0x3ff_e000, 5000));
        assert_eq!(
            ram.memory().read_obj::<u8>(GuestAddress(address + size - 1)).unwrap(),
            0x5a
        );

        let mut kernel = bzimage::tests::small_kernel();
        kernel[0x22c..0x230].copy_from_slice(&0x2ff_ffff_u32.to_le_bytes());
        config.kernel = image(&kernel);
        prepare(&config, ram.memory()).unwrap();
        assert_eq!(initrd_of(ram.memory()).0, 0x2ff_e000);
    }

    #[test]
    fn initrd_that_fits_exactly_is_taken_and_one_byte_more_is_not() {
        let room = 8 << 20;
        let (_, ram) = guest(32);
        let mut config = config(&bzimage::tests::small_kernel(), 32);
        config.initrd = Some(image(&vec![1; room]));
        prepare(&config, ram.memory()).unwrap();
        assert_eq!(initrd_of(ram.memory()).0, 0x180_0000);
        config.initrd = Some(image(&vec![1; room + 1]));
        let error = prepare(&config, ram.memory()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("initrd 'test': has 8388609 bytes, and beside the kernel there is room for 8388608;"),
            "{error}"
        );
    }

    #[test]
    fn command_line_limit_is_the_kernels() {
        let (_, ram) = guest(32);
        let mut config = config(&bzimage::tests::small_kernel(), 32);
        config.command_line = "x".repeat(2047);
        prepare(&config, ram.memory()).unwrap();
        assert_eq!(
            ram.memory()
                .read_obj::<u16>(GuestAddress(layout::COMMAND_LINE + 2046))
                .unwrap(),
            u16::from(b'x')
        );
        config.command_line.push('x');
        let error = prepare(&config, ram.memory()).unwrap_err();
        assert!(
            error.to_string().contains("has 2048 bytes, and this kernel takes 2047"),
            "{error}"
        );
        config.command_line = "a\0b".into();
        assert!(matches!(
            prepare(&config, ram.memory()),
            Err(BootError::Kernel {
                problem: KernelError::CommandLineNul(1),
                ..
            })
        ));
    }

    #[test]
    fn reboot_into_dirty_memory_leaves_the_same_bytes() {
        for (kernel, mib) in [
            (bzimage::tests::small_kernel(), 32),
            (elf::tests::small_kernel(true), 32),
            (elf::tests::small_kernel(false), 32),
        ] {
            let mut config = config(&kernel, mib);
            config.command_line = "console=ttyS0".into();
            config.initrd = Some(image(b"initrd"));
            let (_, fresh) = guest(mib);
            let entry = prepare(&config, fresh.memory()).unwrap();
            let (_, dirty) = guest(mib);
            dirty
                .memory()
                .write_slice(&vec![0xa5; (mib << 20) as usize], GuestAddress(0))
                .unwrap();
            assert_eq!(prepare(&config, dirty.memory()).unwrap(), entry);
            let read = |ram: &crate::memory::Ram, at: u64, size: usize| {
                let mut bytes = vec![0; size];
                ram.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
                bytes
            };
            let mut ranges = vec![
                (0, 0x1000),
                (layout::PAGE_TABLES, 0x6000),
                (layout::COMMAND_LINE, 14),
                (address::EBDA, 0x6_0400),
            ];
            ranges.push(match entry {
                Entry::Linux64 { boot_params, .. } => (boot_params, 0x1000),
                Entry::Pvh { start_info, .. } => (start_info.into(), 0x1000),
            });
            for (at, size) in ranges {
                assert!(read(&fresh, at, size) == read(&dirty, at, size), "{at:#x}");
            }
        }
    }

    #[test]
    fn conventional_memory_ends_at_639_kib() {
        let (_, ram) = guest(32);
        prepare(&config(&bzimage::tests::small_kernel(), 32), ram.memory()).unwrap();
        assert_eq!(ram.memory().read_obj::<u16>(GuestAddress(0x40e)).unwrap(), 0x9fc0);
        assert_eq!(ram.memory().read_obj::<u16>(GuestAddress(0x413)).unwrap(), 639);
        assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(0x9_fc00)).unwrap(), 1);
    }

    #[test]
    fn missing_kernel_is_named() {
        let error = Image::kernel("/nonexistent/bzImage").unwrap_err().to_string();
        assert!(
            error.starts_with("kernel '/nonexistent/bzImage': No such file or directory"),
            "{error}"
        );
        let (_, ram) = guest(32);
        let mut config = config(b"", 32);
        config.kernel = Image::kernel("/tmp").unwrap();
        let error = prepare(&config, ram.memory()).unwrap_err().to_string();
        assert!(error.starts_with("kernel '/tmp': Is a directory"), "{error}");
    }
}
