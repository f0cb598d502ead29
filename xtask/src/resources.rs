//! What guest tests and the demonstration load into guests, gathered from Debian's packages into one folder of the cache:
//!
//! ```text
//! kernels/{cloud,generic}/vmlinuz   the stock bzImage
//! kernels/{cloud,generic}/vmlinux   the same, uncompressed
//! kernels/{cloud,generic}/release   its name, as `uname -r` prints it
//! kernels/{cloud,generic}/modules/  those modules that tests use, for `ModuleTree::open`
//! busybox                           static
//! tools/                            a tree for `Initramfs::copy(.., "/")`: the programs of TOOLS with what they load and read
//! firmware/                         what QEMU needs to start a PC, for its option -L
//! ```

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::cache;
use crate::error::{During, Error, Result};
use crate::kernel::{DebianKernel, Flavour};
use crate::lab;
use crate::modules::ModuleTree;
use crate::packages::{self, Unpacked};
use crate::shared_libraries;

/// Part of the folder's name; to be changed with the lists below or the layout.
const LAYOUT: &str = "3";

/// The modules that drive the devices of the table, in an order in which `virtio_pci` finds devices before their drivers come.
pub const VIRTIO_DRIVERS: [&str; 6] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio-rng",
];

/// The modules that guests may want; those that a kernel has neither loadable nor built in are left out of its folder.
pub const GUEST_MODULES: [&str; 28] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio-rng",
    "virtio_scsi",
    "vmw_vsock_virtio_transport",
    "vsock",
    "vsock_diag",
    "9p",
    "9pnet_virtio",
    "virtiofs",
    "sd_mod",
    "sr_mod",
    "sg",
    "ext4",
    "crc32c_generic",
    "tun",
    "8021q",
    "button",
    "af_packet",
    "msr",
    "cpuid",
    "i2c-piix4",
    "rtc-cmos",
    "evdev",
];

/// Programs that busybox lacks, or knows only in part: the package and what is taken from it.
const TOOLS: [(&str, &[&str]); 6] = [
    ("pciutils", &["lspci"]),
    ("e2fsprogs", &["mke2fs", "e2fsck"]),
    ("ethtool", &["ethtool"]),
    ("iperf3", &["iperf3"]),
    ("qemu-guest-agent", &["qemu-ga"]),
    ("rng-tools-debian", &["rngtest"]),
];

/// What the tools read: the names of devices, the features of each kind of file system.
const TOOL_DATA: [&str; 2] = ["usr/share/misc/pci.ids", "etc/mke2fs.conf"];

/// Firmware that QEMU loads for a PC started with `-kernel` or from a disk.
const FIRMWARE: [(&str, &str, &[&str]); 2] = [
    (
        "seabios",
        "usr/share/seabios",
        &["bios.bin", "bios-256k.bin", "bios-microvm.bin"],
    ),
    (
        "qemu-system-data",
        "usr/share/qemu",
        &[
            "kvmvapic.bin",
            "linuxboot.bin",
            "linuxboot_dma.bin",
            "pvh.bin",
            "qboot.rom",
        ],
    ),
];

/// Gathers everything, or finds it gathered, and returns the folder.
///
/// # Errors
/// When a package cannot be fetched or the cache cannot be written.
pub fn gather() -> Result<PathBuf> {
    let kernels: Vec<DebianKernel> = Flavour::ALL
        .into_iter()
        .map(DebianKernel::fetch)
        .collect::<Result<_>>()?;
    let busybox = lab::busybox()?;
    let tools = tools()?;
    let firmware: Vec<PathBuf> = FIRMWARE
        .iter()
        .map(|(package, ..)| Ok(packages::fetch(package)?.root))
        .collect::<Result<_>>()?;
    let sources: Vec<String> = kernels
        .iter()
        .map(|kernel| &kernel.image)
        .chain([&busybox, &tools])
        .chain(&firmware)
        .map(|path| path.display().to_string())
        .collect();
    let parts: Vec<&str> = [LAYOUT]
        .into_iter()
        .chain(sources.iter().map(String::as_str))
        .chain(GUEST_MODULES)
        .collect();
    cache::entry(&format!("resources/{}", cache::key(&parts)), |folder| {
        eprintln!("gathering kernels and programs for guests");
        for kernel in &kernels {
            put_kernel(kernel, &folder.join("kernels").join(kernel.flavour.name()))?;
        }
        put(&busybox, &folder.join("busybox"))?;
        let link = folder.join("tools");
        symlink(&tools, &link).during(|| format!("linking to {}", tools.display()))?;
        for ((_, place, files), root) in FIRMWARE.iter().zip(&firmware) {
            for file in *files {
                put(&root.join(place).join(file), &folder.join("firmware").join(file))?;
            }
        }
        Ok(())
    })
}

/// The tree with [`TOOLS`], made once in the cache.
///
/// # Errors
/// When a package cannot be fetched or the cache cannot be written.
pub fn tools() -> Result<PathBuf> {
    let mut packages = Vec::new();
    for (package, _) in TOOLS {
        packages.extend(packages::fetch_with_dependencies(package)?);
    }
    let roots: Vec<String> = packages
        .iter()
        .map(|package| package.root.display().to_string())
        .collect();
    let parts: Vec<&str> = [LAYOUT].into_iter().chain(roots.iter().map(String::as_str)).collect();
    cache::entry(&format!("tools/{}", cache::key(&parts)), |folder| {
        put_tools(&packages, folder)
    })
}

fn put_kernel(kernel: &DebianKernel, folder: &Path) -> Result<()> {
    let modules = folder.join("modules");
    fs::create_dir_all(&modules).during(|| format!("making {}", modules.display()))?;
    put(&kernel.image, &folder.join("vmlinuz"))?;
    let vmlinux = kernel.vmlinux()?;
    symlink(&vmlinux, folder.join("vmlinux")).during(|| format!("linking to {}", vmlinux.display()))?;
    write(&folder.join("release"), kernel.release.as_bytes())?;
    put(
        &kernel.modules.join("modules.builtin"),
        &modules.join("modules.builtin"),
    )?;
    let tree = ModuleTree::open(&kernel.modules)?;
    let names: Vec<&str> = GUEST_MODULES.into_iter().filter(|name| tree.has(name)).collect();
    for module in tree.in_load_order(&names)? {
        write(&modules.join(format!("{}.ko", module.name)), &module.object)?;
    }
    Ok(())
}

/// The tools need not be installed, so their own libraries may come from their packages; the rest come from this host.
fn put_tools(packages: &[Unpacked], folder: &Path) -> Result<()> {
    let find = |folders: &[&str], name: &str| {
        let places = packages
            .iter()
            .flat_map(|package| folders.iter().map(|folder| package.root.join(folder).join(name)));
        places.into_iter().find(|path| path.is_file())
    };
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    let search: Vec<PathBuf> = packages
        .iter()
        .flat_map(|package| libraries.map(|folder| package.root.join(folder)))
        .collect();
    for (package, name) in TOOLS
        .iter()
        .flat_map(|(package, names)| names.iter().map(move |name| (package, name)))
    {
        let program = find(&["usr/bin", "bin", "usr/sbin", "sbin"], name)
            .ok_or_else(|| Error::Other(format!("package {package} holds no {name}")))?;
        put_program(&program, &search, folder)?;
    }
    for data in TOOL_DATA {
        let installed = || Some(Path::new("/").join(data)).filter(|path| path.is_file());
        if let Some(source) = find(&[""], data).or_else(installed) {
            put(&source, &folder.join(data))?;
        }
    }
    Ok(())
}

/// Puts a program into `bin` of a tree, and the libraries that it loads where it finds them.
fn put_program(program: &Path, search: &[PathBuf], folder: &Path) -> Result<()> {
    put(
        program,
        &folder.join("bin").join(program.file_name().unwrap_or_default()),
    )?;
    for library in shared_libraries::of(program, search)? {
        let name = library.file_name().unwrap_or(OsStr::new(""));
        // The dynamic linker is found by its whole path, everything else by its name.
        let place = if library.starts_with("/lib64") {
            "lib64"
        } else {
            "lib/x86_64-linux-gnu"
        };
        put(&library, &folder.join(place).join(name))?;
    }
    Ok(())
}

fn put(source: &Path, destination: &Path) -> Result<()> {
    if let Some(folder) = destination.parent() {
        fs::create_dir_all(folder).during(|| format!("making {}", folder.display()))?;
    }
    fs::copy(source, destination)
        .during(|| format!("copying {}", source.display()))
        .map(|_| ())
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).during(|| format!("writing {}", path.display()))
}
