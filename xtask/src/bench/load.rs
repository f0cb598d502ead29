//! Benchmarks of a guest with a load, from their command line to the measuring process: programs are built, the guest is made, and
//! everything is put where it is measured.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::Args;
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
pub struct Load {
    /// Its program, one of this crate's.
    pub program: &'static str,
    /// The guest's drivers.
    pub modules: &'static [&'static str],
    /// Shell words by which the guest's init starts the program.
    pub start: &'static str,
    /// The hidden benchmark that measures.
    pub measure: &'static str,
    /// For each round of both programs, on a busy host in the lab.
    pub limit: Duration,
    /// The lab's memory, in MiB.
    pub lab_memory: u32,
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
}

impl Load {
    /// Measures, fills `table`, and returns the exit status for the process. `title` says what is measured.
    ///
    /// # Errors
    /// When something of it cannot be built, fetched or measured.
    pub fn run(&self, args: &LoadArgs, title: &str, table: &mut Table) -> Result<u8> {
        let innkeeper = cargo::build(&["build", "--release", "-p", "vmm", "--bin", "innkeeper"], "innkeeper")?;
        let name = self.program;
        let program = cargo::build(&["build", "--release", "-p", "xtask", "--bin", name], name)?;
        let resources = resources::gather()?;
        let way = way::decide(&innkeeper, args.lab || args.icount)?;
        let guest = self.guest(&program, &resources)?;
        println!("{title}; {way}\n");
        match way {
            Way::Host => self.on_host(&innkeeper, &resources, &guest, args, table),
            Way::Lab(_) => self.in_lab(&innkeeper, &resources, &guest, args, table),
        }
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

    fn on_host(
        &self,
        innkeeper: &Path,
        resources: &Path,
        guest: &Initramfs,
        args: &LoadArgs,
        table: &mut Table,
    ) -> Result<u8> {
        let initrd = scratch::unlinked_file("initrd")?;
        guest.write_to(&mut &initrd)?;
        let files = Files {
            innkeeper: innkeeper.into(),
            qemu: debian_qemu()?,
            firmware: resources.join("firmware"),
            kernels: resources.join("kernels").join(Flavour::Cloud.name()),
            initrd: scratch::inherited_path(&initrd).into(),
        };
        let limit = self.limit * args.runs;
        let take = &mut |line: &str| table.take(line);
        place::on_host(&self.arguments(&files, args), &[&initrd], limit, take)
    }

    fn in_lab(
        &self,
        innkeeper: &Path,
        resources: &Path,
        guest: &Initramfs,
        args: &LoadArgs,
        table: &mut Table,
    ) -> Result<u8> {
        let inside = Files {
            innkeeper: "/bin/innkeeper".into(),
            qemu: "/bin/qemu".into(),
            firmware: "/firmware".into(),
            kernels: "/kernels".into(),
            initrd: "/initrd".into(),
        };
        let kernel = resources.join("kernels").join(Flavour::Cloud.name()).join("vmlinuz");
        let mut lab = Lab::with(ensure_cured()?);
        lab.limit = self.limit * args.runs;
        lab.memory_mib = self.lab_memory;
        lab.icount = args.icount;
        lab.contents
            .program(innkeeper, "/bin/innkeeper")?
            .program(&debian_qemu()?, "/bin/qemu")?
            .copy(&resources.join("firmware"), "/firmware")?
            .copy(&kernel, "/kernels/vmlinuz")?
            .bytes("/initrd", guest.to_bytes()?);
        place::in_lab(lab, "", &self.arguments(&inside, args), &mut |line| table.take(line))
    }

    /// The measuring process's arguments, without the program.
    fn arguments(&self, files: &Files, args: &LoadArgs) -> Vec<OsString> {
        let runs = args.runs.to_string();
        let words = ["bench", self.measure, "--runs", &runs].map(OsString::from);
        words.into_iter().chain(files.arguments()).collect()
    }
}
