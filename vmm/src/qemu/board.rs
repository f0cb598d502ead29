//! The machine itself: `-machine`, `-accel`, `-cpu`, `-smp`, `-m`, `-numa` and what guest memory is made of.

use devices::virtio::options::{ConfigError, Pairs};

use super::args::Group;
use super::backends::Backends;
use super::collect::Collected;
use super::keyval::{Reader, Settled, canonical, settled};
use crate::config::{MAX_CPUS, parse_size};

/// QEMU's default for `-m`.
const DEFAULT_MEMORY: u64 = 128 << 20;

/// Which of QEMU's machines it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MachineType {
    /// The i440FX.
    #[default]
    Pc,
    /// Nothing: for programs that ask what there is.
    None,
}

/// Who runs the CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Accelerator {
    /// KVM.
    #[default]
    Kvm,
    /// Nobody: a test drives the devices.
    Qtest,
}

/// Machines for `-machine help`.
pub(super) const MACHINES: &[(&str, &str)] = &[
    ("pc", "Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)"),
    ("pc-i440fx-7.2", "Standard PC (i440FX + PIIX, 1996) (default)"),
    ("none", "empty machine"),
];

/// Properties of machines that are as things are here.
const MACHINE: &[Settled] = &[
    settled("usb", &["off"], "there is no USB"),
    settled("vmport", &["auto", "off"], "there is no VMware port"),
    settled("dump-guest-core", &[], "the guest cannot tell"),
    settled("mem-merge", &[], "the guest cannot tell"),
    settled("kernel-irqchip", &["on"], "the interrupt controllers are KVM's"),
    settled("kernel_irqchip", &["on"], "the interrupt controllers are KVM's"),
    settled("nvdimm", &["off"], "there are no NVDIMMs"),
    settled("hmat", &["off"], "there is no such table"),
    settled("graphics", &[], "there are no displays"),
    settled("smm", &["auto", "off"], "there is no firmware that would use it"),
    settled("hpet", &["off"], "there is no HPET"),
    settled("pit", &["on"], "it is KVM's"),
    settled("acpi", &["on", "auto"], "put acpi=off into -append"),
    settled("smbus", &[], "Linux asks it for nothing"),
    settled("sata", &["off"], "there is no SATA"),
    settled("i8042", &["on"], "it resets the machine"),
    settled("suppress-vmdesc", &[], "there is no migration"),
    settled("enforce-config-section", &[], "there is no migration"),
    settled("default-bus-bypass-iommu", &["off"], "there is no IOMMU"),
    settled("confidential-guest-support", &[""], "guests are not encrypted"),
    settled("memory-encryption", &[""], "guests are not encrypted"),
    settled("fd-bootchk", &[], "there is no floppy"),
];

/// What the machine is to be, apart from its devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Board {
    pub(super) machine: MachineType,
    pub(super) accelerator: Accelerator,
    pub(super) cpus: u32,
    pub(super) cpu_model: String,
    pub(super) memory: u64,
    /// Other processes are to see guest memory.
    pub(super) shared: bool,
    /// The object that memory comes from.
    pub(super) backend: Option<String>,
    pub(super) notes: Vec<String>,
}

/// Reads all of it. Backends have their objects already.
pub(super) fn read(collected: &mut Collected, backends: &Backends) -> Result<Board, ConfigError> {
    let mut notes = Vec::new();
    let mut reader = Reader::new("-machine", std::mem::take(&mut collected.machine));
    let machine = machine_type(&mut reader)?;
    let mut accelerators: Vec<String> = Vec::new();
    if let Some(list) = reader.text("accel") {
        accelerators.extend(list.split(':').map(str::to_owned));
    }
    for (key, place) in [
        ("kernel", &mut collected.kernel),
        ("initrd", &mut collected.initrd),
        ("append", &mut collected.append),
        ("firmware", &mut collected.bios),
    ] {
        if let Some(value) = reader.text(key) {
            *place = Some(value);
        }
    }
    let named = reader.text("memory-backend");
    reader.settle(MACHINE)?;
    reader.finish()?;
    for pairs in std::mem::take(&mut collected.accelerators) {
        accelerators.push(accelerator_name(pairs)?);
    }
    let memory = size(std::mem::take(&mut collected.memory))?;
    let backend = numa(collected, named)?;
    let (memory, shared) = match &backend {
        Some(id) => from_object(id, memory, backends)?,
        None => (memory.unwrap_or(DEFAULT_MEMORY), false),
    };
    Ok(Board {
        machine,
        accelerator: accelerator(&accelerators)?,
        cpus: cpus(std::mem::take(&mut collected.smp), &mut notes)?,
        cpu_model: cpu(collected.cpu.take(), &mut notes)?,
        memory,
        shared,
        backend,
        notes,
    })
}

fn machine_type(reader: &mut Reader) -> Result<MachineType, ConfigError> {
    let Some(name) = reader.text("type") else {
        return Ok(MachineType::Pc);
    };
    if name == "none" {
        return Ok(MachineType::None);
    }
    if name == "pc"
        || name
            .strip_prefix("pc-i440fx-")
            .is_some_and(|version| version.starts_with(char::is_numeric))
    {
        return Ok(MachineType::Pc);
    }
    let expected = match name.as_str() {
        "microvm" => "pc: the devices virtio-*-device are virtio-*-pci there",
        name if name.contains("q35") => "pc: it has one bus, without bridges and PCI Express",
        _ => "pc, a version of it such as pc-i440fx-7.2, or none",
    };
    Err(reader.invalid("type", &name, expected))
}

/// One `-accel`.
fn accelerator_name(pairs: Pairs) -> Result<String, ConfigError> {
    let mut reader = Reader::new("-accel", pairs);
    let name = reader.required("accel", "kvm or qtest")?;
    reader.settle(&[
        settled("kernel-irqchip", &["on"], "the interrupt controllers are KVM's"),
        settled("thread", &[], "each CPU has a thread"),
        settled("tb-size", &[], "nothing is translated"),
        settled("dirty-ring-size", &[], "there is no migration"),
        settled("kvm-shadow-mem", &[], "the guest cannot tell"),
        settled("notify-vmexit", &[], "the guest cannot tell"),
    ])?;
    reader.finish()?;
    Ok(name)
}

/// The first of the user's that is here. Those of other hosts are passed over, as in QEMU.
fn accelerator(names: &[String]) -> Result<Accelerator, ConfigError> {
    if names.is_empty() {
        return Ok(Accelerator::Kvm);
    }
    let known = names.iter().find_map(|name| match name.as_str() {
        "kvm" => Some(Accelerator::Kvm),
        "qtest" => Some(Accelerator::Qtest),
        _ => None,
    });
    known.ok_or_else(|| {
        ConfigError::refused(
            format_args!("-accel {}", names.join(":")),
            "guests run on KVM only, not in software",
            "use -accel kvm; 'innkeeper check' says what this host can do",
        )
    })
}

/// `-m [size=]N`, in MiB without a letter.
fn size(pairs: Pairs) -> Result<Option<u64>, ConfigError> {
    let mut reader = Reader::new("-m", pairs);
    let size = reader.text("size");
    let more = "memory cannot be added; a balloon takes and gives";
    reader.settle(&[settled("slots", &["0"], more)])?;
    if let Some(maximum) = reader.text("maxmem").filter(|maximum| size.as_ref() != Some(maximum)) {
        return Err(reader.invalid("maxmem", &maximum, &format!("nothing: {more}")));
    }
    reader.finish()?;
    let read = |size: String| parse_size(&size).map_err(|error| ConfigError::refused("-m", error, "see -help"));
    size.map(read).transpose()
}

/// The memory of one node, if the user says which: by `-machine memory-backend=` or `-numa node,memdev=`.
fn numa(collected: &Collected, named: Option<String>) -> Result<Option<String>, ConfigError> {
    let mut backend = named;
    let mut nodes = 0;
    for pairs in collected.of(Group::Numa) {
        let mut reader = Reader::new("-numa", pairs.clone());
        match reader.text("type").as_deref() {
            Some("node") => nodes += 1,
            _ => return Err(reader.refused("memory has one node", "write -numa node,memdev=ID, or nothing")),
        }
        if nodes > 1 {
            return Err(reader.refused("memory has one node", "leave out the others"));
        }
        reader.settle(&[
            settled("cpus", &[], "all CPUs are in the one node"),
            settled("nodeid", &["0"], "there is one node"),
            settled("initiator", &["0"], "there is one node"),
            settled("mem", &[], "the node has all memory"),
        ])?;
        backend = reader.text("memdev").or(backend);
        reader.finish()?;
    }
    Ok(backend)
}

/// Size of, and whether others see, the memory of an object.
fn from_object(id: &str, memory: Option<u64>, backends: &Backends) -> Result<(u64, bool), ConfigError> {
    let subject = format!("memory-backend={id}");
    let object = backends.objects.get(id).ok_or_else(|| {
        let remedy = format!("add -object memory-backend-memfd,id={id},size=SIZE");
        ConfigError::refused(&subject, "there is no object of that name", remedy)
    })?;
    let kind = object.get("qom-type").unwrap_or_default();
    let Some(size) = object.get("size").filter(|_| kind.starts_with("memory-backend-")) else {
        return Err(ConfigError::refused(
            &subject,
            format_args!("it is a {kind}"),
            "name a memory-backend-memfd",
        ));
    };
    let bytes = bytes(size)
        .ok_or_else(|| ConfigError::refused(&subject, format_args!("'{size}' is not a size"), "write 256M"))?;
    // Without -m, memory is as large as the object.
    if memory.is_some_and(|memory| memory != bytes) {
        return Err(ConfigError::refused(
            &subject,
            "its size is not that of -m",
            format_args!("write -m {}", bytes >> 20),
        ));
    }
    let shared = object
        .get("share")
        .map_or(kind == "memory-backend-memfd", |share| canonical(share) == "on");
    Ok((bytes, shared))
}

/// A size of an object: bytes without a letter, unlike `-m`.
fn bytes(text: &str) -> Option<u64> {
    match text.parse() {
        Ok(bytes) => Some(bytes),
        Err(_) => parse_size(text).ok(),
    }
}

/// `-smp [cpus=]N,sockets=,cores=,threads=`: what is left out follows from what is there (hw/core/machine-smp.c).
fn cpus(pairs: Pairs, notes: &mut Vec<String>) -> Result<u32, ConfigError> {
    let mut reader = Reader::new("-smp", pairs);
    let given = reader.number("cpus")?;
    let maximum = reader.number("maxcpus")?;
    let mut product = 1u64;
    let mut shape = Vec::new();
    for key in [
        "sockets", "dies", "clusters", "cores", "threads", "books", "drawers", "modules",
    ] {
        let Some(count) = reader.number(key)? else { continue };
        if count == 0 {
            return Err(reader.invalid(key, "0", "a number from 1"));
        }
        product = product.saturating_mul(count);
        if count > 1 && key != "cores" {
            shape.push(format!("{key}={count}"));
        }
    }
    let count = given.or(maximum).unwrap_or(product);
    if maximum.is_some_and(|maximum| maximum != count) {
        return Err(reader.refused("CPUs cannot be added later", "leave out maxcpus="));
    }
    // What the user left out takes the rest.
    if product != 0 && count % product != 0 {
        return Err(reader.refused(
            &format!("{product} places for {count} CPUs"),
            "sockets, cores and threads multiply to the number of CPUs",
        ));
    }
    reader.finish()?;
    if !shape.is_empty() {
        notes.push(format!("-smp {}: the CPUs are cores of one package", shape.join(",")));
    }
    let in_range = |count: &u32| (1..=MAX_CPUS).contains(count);
    u32::try_from(count).ok().filter(in_range).ok_or_else(|| {
        ConfigError::refused(
            "-smp",
            format_args!("{count} CPUs"),
            format_args!("a machine has 1 to {MAX_CPUS}"),
        )
    })
}

/// Models that QEMU has, by the beginning of their names; the guest's CPU is the host's.
const MODELS: &[&str] = &[
    "qemu64",
    "qemu32",
    "kvm64",
    "kvm32",
    "base",
    "486",
    "pentium",
    "athlon",
    "phenom",
    "core2duo",
    "coreduo",
    "n270",
    "Conroe",
    "Penryn",
    "Nehalem",
    "Westmere",
    "SandyBridge",
    "IvyBridge",
    "Haswell",
    "Broadwell",
    "Skylake",
    "Cascadelake",
    "Cooperlake",
    "Icelake",
    "SapphireRapids",
    "GraniteRapids",
    "SierraForest",
    "Snowridge",
    "Denverton",
    "KnightsMill",
    "Opteron",
    "EPYC",
    "Dhyana",
    "YongFeng",
];

/// `-cpu MODEL,feature...`.
fn cpu(text: Option<String>, notes: &mut Vec<String>) -> Result<String, ConfigError> {
    let Some(text) = text else { return Ok("host".to_owned()) };
    let mut words = text.split(',');
    let model = words.next().unwrap_or_default().to_owned();
    let refused = |problem: &str, remedy: &str| ConfigError::refused(format_args!("-cpu {text}"), problem, remedy);
    if model != "host" && model != "max" {
        if !MODELS.iter().any(|known| model.starts_with(known)) {
            return Err(refused("there is no such model", "use -cpu host"));
        }
        notes.push(format!(
            "-cpu {model}: the guest's CPU is the host's, with all that KVM offers"
        ));
    }
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, "on"));
        let wanted = match name {
            "migratable" | "check" | "enforce" | "host-cache-info" | "l3-cache" | "x-intel-pt-auto-level" => true,
            name if name.starts_with('-') => false,
            _ => name.starts_with('+') || canonical(value) == "on",
        };
        // What the host has is there; what it has not cannot be had.
        if !wanted || name == "hv-passthrough" || name.starts_with("hv_") {
            return Err(refused(
                &format!("{word} takes something from the host's CPU, or adds to it"),
                "leave it out, or put what Linux has for it into -append, such as clearcpuid= or nox2apic",
            ));
        }
    }
    Ok(if model == "max" { model } else { "host".to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn board(text: &str) -> Result<Board, String> {
        let words = text.split_whitespace().map(str::to_owned);
        let mut collected = Collected::from_words(words).map_err(|error| error.to_string())?;
        let mut backends = Backends::default();
        for object in collected.of(Group::Object) {
            backends.add_object(object.clone()).map_err(|error| error.to_string())?;
        }
        read(&mut collected, &backends).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_qemus() {
        let board = board("").unwrap();
        assert_eq!((board.machine, board.accelerator), (MachineType::Pc, Accelerator::Kvm));
        assert_eq!((board.cpus, board.memory, board.shared), (1, 128 << 20, false));
    }

    #[test]
    fn memory_comes_from_where_the_user_says() {
        let memory = |text: &str| {
            let board = board(text).unwrap();
            (board.memory >> 20, board.shared)
        };
        assert_eq!(memory("-m 256"), (256, false));
        assert_eq!(memory("-m size=1G"), (1024, false));
        let memfd = "-object memory-backend-memfd,id=mem,size=256M,";
        assert_eq!(memory(&format!("-m 256 {memfd} -numa node,memdev=mem")), (256, true));
        assert_eq!(memory(&format!("{memfd}share=on -M memory-backend=mem")), (256, true));
        assert_eq!(
            memory("-object memory-backend-ram,id=a,size=64M -machine memory-backend=a -m 64M"),
            (64, false)
        );
    }

    #[test]
    fn cpus_follow_from_what_is_given() {
        for (text, count) in [
            ("-smp 4", 4),
            ("-smp cpus=2", 2),
            ("-smp 4,sockets=1,cores=4,threads=1", 4),
            ("-smp 4,sockets=2,cores=2,threads=1,maxcpus=4", 4),
            ("-smp cores=2,threads=2", 4),
            ("-smp sockets=3", 3),
        ] {
            assert_eq!(board(text).unwrap().cpus, count, "{text}");
        }
        assert_eq!(
            board("-smp 4,sockets=4").unwrap().notes,
            ["-smp sockets=4: the CPUs are cores of one package"]
        );
    }

    #[test]
    fn the_host_runs_the_guest() {
        for text in [
            "-accel kvm -accel tcg",
            "-machine accel=kvm:tcg",
            "-enable-kvm",
            "-M pc,accel=hvf:kvm",
        ] {
            assert_eq!(board(text).unwrap().accelerator, Accelerator::Kvm, "{text}");
        }
        assert_eq!(board("-accel qtest").unwrap().accelerator, Accelerator::Qtest);
        for text in ["-cpu host", "-cpu max", "-cpu host,migratable=off", "-cpu host,+x2apic"] {
            assert_eq!(board(text).unwrap().notes, [""; 0], "{text}");
        }
        assert!(board("-cpu Skylake-Client").unwrap().notes[0].contains("the guest's CPU is the host's"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, complaint) in [
            ("-accel tcg", "-accel tcg: guests run on KVM only"),
            ("-M q35", "-machine: type=q35: expected pc: it has one bus"),
            ("-M microvm", "virtio-*-device are virtio-*-pci"),
            ("-M pc,usb=on", "there is no USB"),
            ("-M pc,foo=1", "there is no option 'foo'"),
            ("-smp 0", "0 CPUs"),
            ("-smp 300", "a machine has 1 to 254"),
            ("-smp 3,cores=2", "2 places for 3 CPUs"),
            ("-smp 2,maxcpus=4", "cannot be added later"),
            ("-m lots", "'lots' is not a size"),
            ("-m 1G,slots=2,maxmem=4G", "memory cannot be added"),
            ("-numa node -numa node", "memory has one node"),
            ("-M memory-backend=x", "there is no object of that name"),
            (
                "-m 1G -M memory-backend=x -object memory-backend-ram,id=x,size=1M",
                "its size is not that of -m",
            ),
            ("-cpu foo", "there is no such model"),
            ("-cpu host,-svm", "-svm takes something"),
            ("-cpu host,pmu=off", "pmu=off takes something"),
        ] {
            let error = board(text).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
