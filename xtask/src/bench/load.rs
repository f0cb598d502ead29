//! Benchmarks of a guest with a load, from their command line to the measuring process: programs are built, the guest is made, and
//! everything is put where it is measured.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use xtask::error::During;
use xtask::initramfs::{Initramfs, LOAD_MODULES};
use xtask::kernel::Flavour;
use xtask::lab::{self, Lab, ensure_cured, scratch};
use xtask::modules::ModuleTree;
use xtask::{Result, resources};

use super::guest::{ENDED, debian_qemu};
use super::machines::Files;
use super::place;
use super::requests::Table;
use crate::cargo;
use crate::way::{self, Way};

/// A load.
pub struct Load<'a> {
    /// Its program, one of this crate's.
    pub program: &'static str,
    /// The guest's drivers.
    pub modules: &'static [&'static str],
    /// Shell words by which the guest's init starts the program.
    pub start: &'a str,
    /// The hidden benchmark that measures.
    pub measure: &'static str,
    /// For each round of all guests, on a busy host in the lab.
    pub limit: Duration,
    /// The lab's memory, in MiB.
    pub lab_memory: u32,
    /// Bytes of the image of the guest's disk, if it has one.
    pub image: Option<u64>,
}

/// How and how often it is measured.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// How often each figure is taken; medians are shown.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Use the lab even where this host's KVM could run the guests.
    #[arg(long)]
    lab: bool,
    /// Use the lab and count its time in instructions (1 ns each), so that figures repeat whatever else the host does.
    #[arg(long)]
    icount: bool,
}

/// What the measuring process is told.
#[derive(Args, Clone, Debug)]
pub struct MeasureArgs {
    /// Where programs and the guest's files are.
    #[command(flatten)]
    pub files: Files,
    /// How often each figure is taken.
    #[arg(long)]
    pub runs: u32,
    /// The image of the guest's disk: raw.
    #[arg(long)]
    pub image: Option<PathBuf>,
}

/// Where the lab has the image.
const IMAGE_IN_LAB: &str = "/tmp/disk";

impl Load<'_> {
    /// Measures, prints `table` with the figures, and returns the exit status for the process. `title` says what is measured,
    /// and `words` are for the measuring process alone.
    ///
    /// # Errors
    /// When something of it cannot be built, fetched or measured.
    pub fn run(&self, args: &LoadArgs, words: &[OsString], title: &str, table: &mut Table) -> Result<u8> {
        let innkeeper = cargo::build(&["build", "--release", "-p", "vmm", "--bin", "innkeeper"], "innkeeper")?;
        let name = self.program;
        let program = cargo::build(&["build", "--release", "-p", "xtask", "--bin", name], name)?;
        let resources = resources::gather()?;
        let way = way::decide(&innkeeper, args.lab || args.icount)?;
        let bench = Bench {
            load: self,
            args,
            words,
            guest: self.guest(&program, &resources)?,
            innkeeper,
            resources,
        };
        println!("{title}; {way}\n");
        let status = match way {
            Way::Host => bench.on_host(table),
            Way::Lab(_) => bench.in_lab(table),
        };
        // What was measured before something failed is worth a look.
        println!("{table}");
        status
    }

    /// A guest whose init starts the program and says when it has ended.
    fn guest(&self, program: &Path, resources: &Path) -> Result<Initramfs> {
        let kernel = resources.join("kernels").join(Flavour::Cloud.name());
        let modules = ModuleTree::open(&kernel.join("modules"))?;
        let mut contents = Initramfs::new();
        contents
            .busybox(&lab::busybox()?)?
            .program(program, &format!("/bin/{}", self.program))?;
        let wanted: Vec<_> = self.modules.iter().copied().filter(|name| modules.has(name)).collect();
        contents.modules(&modules, &wanted)?;
        let start = self.start;
        contents.script(
            "/init",
            &format!(
                "mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev 2>/dev/null\n{LOAD_MODULES}\
                 {start}\necho {ENDED}\nwhile :; do sleep 1000; done\n"
            ),
        );
        Ok(contents)
    }
}

/// All that is needed to measure a load.
struct Bench<'a> {
    load: &'a Load<'a>,
    args: &'a LoadArgs,
    words: &'a [OsString],
    guest: Initramfs,
    innkeeper: PathBuf,
    resources: PathBuf,
}

impl Bench<'_> {
    fn on_host(&self, table: &mut Table) -> Result<u8> {
        let initrd = scratch::unlinked_file("initrd")?;
        self.guest.write_to(&mut &initrd)?;
        let image = self.load.image.map(image_of).transpose()?;
        let files = Files {
            innkeeper: self.innkeeper.clone(),
            qemu: debian_qemu()?,
            firmware: self.resources.join("firmware"),
            kernels: self.resources.join("kernels").join(Flavour::Cloud.name()),
            initrd: scratch::inherited_path(&initrd).into(),
        };
        let path = image.as_ref().map(scratch::inherited_path);
        let inherited: Vec<_> = std::iter::once(&initrd).chain(&image).collect();
        let take = &mut |line: &str| table.take(line);
        place::on_host(&self.arguments(&files, path.as_deref()), &inherited, self.limit(), take)
    }

    fn in_lab(&self, table: &mut Table) -> Result<u8> {
        let inside = Files {
            innkeeper: "/bin/innkeeper".into(),
            qemu: "/bin/qemu".into(),
            firmware: "/firmware".into(),
            kernels: "/kernels".into(),
            initrd: "/initrd".into(),
        };
        let kernels = self.resources.join("kernels").join(Flavour::Cloud.name());
        let mut lab = Lab::with(ensure_cured()?);
        lab.limit = self.limit();
        lab.memory_mib = self.load.lab_memory;
        lab.icount = self.args.icount;
        lab.contents
            .program(&self.innkeeper, "/bin/innkeeper")?
            .program(&debian_qemu()?, "/bin/qemu")?
            .copy(&self.resources.join("firmware"), "/firmware")?
            .copy(&kernels.join("vmlinuz"), "/kernels/vmlinuz")?
            .bytes("/initrd", self.guest.to_bytes()?);
        let image = self.load.image.map(|_| IMAGE_IN_LAB);
        let prelude = self.load.image.map_or_else(String::new, |bytes| {
            format!(
                "dd if=/dev/zero of={IMAGE_IN_LAB} bs=1M count={} 2>/dev/null\n",
                bytes >> 20
            )
        });
        let take = &mut |line: &str| table.take(line);
        place::in_lab(lab, &prelude, &self.arguments(&inside, image), take)
    }

    fn limit(&self) -> Duration {
        self.load.limit * self.args.runs
    }

    /// The measuring process's arguments, without the program.
    fn arguments(&self, files: &Files, image: Option<&str>) -> Vec<OsString> {
        let runs = self.args.runs.to_string();
        let words = ["bench", self.load.measure, "--runs", &runs].map(OsString::from);
        let image = image.map(|path| ["--image", path].map(OsString::from));
        words
            .into_iter()
            .chain(self.words.iter().cloned())
            .chain(image.into_iter().flatten())
            .chain(files.arguments())
            .collect()
    }
}

/// An image of so many bytes, in the page cache.
fn image_of(bytes: u64) -> Result<File> {
    let image = scratch::unlinked_file("image")?;
    image.set_len(bytes).during(|| "making the image")?;
    Ok(image)
}
