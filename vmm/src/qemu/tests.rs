//! Whole command lines: those of QEMU's own tests, and those that the documentation of other programs shows.

#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

use super::args::rows;
use super::board::{Accelerator, MachineType};
use super::invocation::{Invocation, MonitorMode, Request, parse};

/// Splits as a shell does, as far as quotes go.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None;
    let mut quote = None;
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), letter) if open == letter => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_with(String::new);
            }
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (_, letter) => word.get_or_insert_with(String::new).push(letter),
        }
    }
    words.extend(word);
    words
}

fn invocation(text: &str) -> Result<Invocation, String> {
    match parse(words(text)) {
        Ok(Request::Machine(invocation)) => Ok(*invocation),
        Ok(Request::Text(text)) => Err(text),
        Err(error) => Err(error.to_string()),
    }
}

fn devices(invocation: &Invocation) -> Vec<String> {
    let devices = invocation.config.devices.iter();
    devices
        .map(|device| format!("{},{}", device.name, device.options))
        .collect()
}

/// What QEMU's test programs put around each command line.
fn qos(middle: &str) -> Result<Invocation, String> {
    invocation(&format!(
        "-qtest unix:/t/q.sock -qtest-log /dev/null -chardev socket,path=/t/q.qmp,id=char0 -mon chardev=char0,mode=control \
         -display none {middle} -accel qtest"
    ))
}

#[test]
fn command_lines_of_qemus_own_tests_are_taken() {
    for (middle, expected) in [
        (
            "-M pc  -device virtio-rng-pci,addr=04.0",
            &["virtio-rng-pci,addr=04.0"][..],
        ),
        (
            "-M pc  -device virtio-blk-pci,id=drv0,drive=drive0,addr=4.0 \
             -drive if=none,id=drive0,file=IMG,format=raw,auto-read-only=off \
             -drive if=none,id=drive1,file=null-co://,file.read-zeroes=on,format=raw",
            &["virtio-blk-pci,path=IMG,format=raw,id=drv0,addr=4.0"],
        ),
        (
            "-M pc  -device virtio-net-pci,netdev=hs0,addr=04.0 -netdev socket,fd=7,id=hs0",
            &["virtio-net-pci,socket=fd=7,addr=04.0"],
        ),
        (
            "-M pc  -device virtio-net-pci,netdev=hs0,addr=04.0 -netdev hubport,hubid=0,id=hs0",
            &["virtio-net-pci,hub=0,addr=04.0"],
        ),
    ] {
        let invocation = qos(middle).unwrap();
        assert_eq!(devices(&invocation), expected, "{middle}");
        assert_eq!(
            (invocation.accelerator, invocation.machine),
            (Accelerator::Qtest, MachineType::Pc)
        );
        assert_eq!(invocation.qtest.as_deref(), Some("unix:/t/q.sock"));
        assert_eq!(invocation.config.memory, 128 << 20);
        let [monitor] = &invocation.monitors[..] else {
            panic!("one monitor")
        };
        assert_eq!(monitor.far_end.to_string(), "backend=socket,path=/t/q.qmp");
        assert_eq!(monitor.mode, MonitorMode::Control { pretty: false });
    }
    assert_eq!(qos("-machine none").unwrap().machine, MachineType::None);
}

#[test]
fn what_qemus_own_tests_want_and_is_not_here_is_refused_by_name() {
    for (middle, complaint) in [
        (
            "-M pc -device virtio-iommu-pci,addr=04.0",
            "virtio-iommu-pci: there is no such device here",
        ),
        (
            "-M pc -fsdev synth,id=fsdev0 -device virtio-9p-pci,fsdev=fsdev0",
            "-fsdev: not supported; there is no virtio-9p",
        ),
        (
            "-M pc -device virtio-scsi-pci,id=vs0,addr=04.0 -device scsi-hd,bus=vs0.0",
            "virtio-scsi-pci: there is no such device here; use virtio-blk-pci",
        ),
        (
            "-M pc -drive file=blkdebug::null-co://,if=none,id=dr1,format=raw",
            "there are no other protocols",
        ),
        (
            "-M pc -incoming unix:/x",
            "-incoming: not supported; there is no migration",
        ),
    ] {
        let error = qos(middle).unwrap_err();
        assert!(error.contains(complaint), "{error}");
    }
}

/// What becomes of a command line.
enum Fate {
    /// It runs, with these devices, and so many lines for the user.
    Runs(&'static [&'static str], usize),
    /// It is refused with these words.
    Refused(&'static str),
}
use Fate::{Refused, Runs};

/// Command lines of other programs, with where they are from: `= NAME`, comments, and words as a shell reads them.
const PUBLIC: &str = include_str!("../../../resources/qemu-command-lines.txt");

const PASST: &str = "virtio-net-pci,user=on";
const NO_FSDEV: &str = "-fsdev: not supported; there is no virtio-9p; give a disk with -drive if=virtio";
const NO_VIRTFS: &str = "-virtfs: not supported; there is no virtio-9p; give a disk with -drive if=virtio";
const NO_IDE: &str = "-hda: not supported; there is no IDE; write -drive file=FILE,format=raw,if=virtio";

/// What becomes of each. Of those that run, virtme-ng's has a disk without format=, which is refused when it is opened unless it is qcow2.
const FATES: &[(&str, Fate)] = &[
    ("kunit", Runs(&[], 1)),
    (
        "bpf-selftests",
        Runs(&["virtio-blk-pci,path=root.img,format=raw,cache=none,queues=8"], 0),
    ),
    (
        "buildroot",
        Runs(&[PASST, "virtio-blk-pci,path=output/images/rootfs.ext2,format=raw"], 0),
    ),
    (
        "lava-pc",
        Runs(
            &[
                "virtio-net-pci,user=on,mac=52:54:00:12:34:58",
                "virtio-blk-pci,path=rootfs.ext4,format=raw",
            ],
            0,
        ),
    ),
    (
        "lava",
        Refused("-machine: type=q35: expected pc: it has one bus, without bridges and PCI Express"),
    ),
    ("kernelcraft", Runs(&["virtio-blk-pci,path=rootfs.ext2,format=raw"], 0)),
    ("initramfs", Runs(&[], 0)),
    ("virtme-ng-9p", Refused(NO_FSDEV)),
    (
        "virtme-ng-virtiofs",
        Refused("vhost-user-fs-pci: there is no such device here; there are no shared folders; give a disk with"),
    ),
    (
        "virtme-ng-without-root",
        Runs(
            &[
                "virtio-serial-pci,",
                "virtio-balloon-pci,id=balloon0",
                "virtio-blk-pci,path=disk.img,serial=disk,queues=4",
                "virtconsole,backend=file,path=/proc/self/fd/2",
            ],
            0,
        ),
    ),
    (
        "nomad",
        Refused("-drive: if=ide, which is meant without if=: expected virtio, or none with -device virtio-blk-pci"),
    ),
    (
        "nomad-with-kernel",
        Runs(
            &[
                "virtio-net,user=on,hostfwd=udp::22000-:22,hostfwd=tcp::22000-:22",
                "virtio-blk-pci,path=linux.img,format=raw",
            ],
            0,
        ),
    ),
    (
        "libguestfs",
        Refused("-global kvm-pit.lost_tick_policy=discard: this property cannot be changed; leave it out"),
    ),
    ("syzkaller", Refused(NO_IDE)),
    (
        "syzkaller-virtio",
        Refused("-netdev id=net0: there is no host=; leave it out: the guest has the addresses of the host, by passt"),
    ),
    ("syzkaller-guide", Refused(NO_IDE)),
    ("vmtest", Refused(NO_VIRTFS)),
    (
        "vmtest-image",
        Refused("-kernel: none is named, and there is no firmware that would look for one on a disk; add -kernel FILE"),
    ),
    ("kata", Refused(NO_FSDEV)),
    ("packer", Refused("-display gtk: there are no displays")),
    ("cloud-init", Refused(NO_IDE)),
];

/// The names and the words.
fn public() -> Vec<(&'static str, String)> {
    let block = |block: &'static str| {
        let (name, rest) = block.split_once('\n').unwrap();
        let lines = rest.lines().filter(|line| !line.starts_with('#'));
        (name, lines.collect::<Vec<_>>().join(" "))
    };
    PUBLIC.split("\n= ").skip(1).map(block).collect()
}

#[test]
fn command_lines_of_other_programs_run_or_are_refused_with_words() {
    let lines = public();
    let names = |of: &mut dyn Iterator<Item = &'static str>| of.collect::<Vec<_>>();
    assert_eq!(
        names(&mut lines.iter().map(|(name, _)| *name)),
        names(&mut FATES.iter().map(|(name, _)| *name))
    );
    for ((name, text), (_, fate)) in lines.iter().zip(FATES) {
        match (invocation(text), fate) {
            (Ok(invocation), Runs(expected, notes)) => {
                assert_eq!(devices(&invocation), *expected, "{name}");
                assert_eq!(invocation.notes.len(), *notes, "{name}: {:?}", invocation.notes);
            }
            (Err(error), Refused(words)) => {
                assert!(error.starts_with(words) && !error.contains('\n'), "{name}: {error}");
            }
            (Ok(_), Refused(_)) => panic!("{name}: runs"),
            (Err(error), Runs(..)) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn devices_stand_in_qemus_order() {
    let text =
        "-kernel k -drive file=a,format=raw,if=virtio -device virtio-rng-pci -nic none -nic tap,ifname=t,model=virtio";
    let order = [
        "virtio-net-pci,tap=t",
        "virtio-rng-pci,",
        "virtio-blk-pci,path=a,format=raw",
    ];
    assert_eq!(devices(&invocation(text).unwrap()), order);
}

#[test]
fn the_serial_port_leads_where_it_does_on_qemu() {
    for (text, expected) in [
        ("-kernel k", Some("backend=stdio,escapes=on")),
        ("-kernel k -nographic", Some("backend=stdio,escapes=on")),
        ("-kernel k -display none", None),
        ("-kernel k -nographic -display none", Some("backend=stdio,escapes=on")),
        ("-kernel k -nodefaults", None),
        ("-kernel k -serial none", None),
        ("-kernel k -qmp stdio", None),
        ("-kernel k -serial stdio", Some("backend=stdio")),
        (
            "-kernel k -serial file:/tmp/x -serial none",
            Some("backend=file,path=/tmp/x"),
        ),
    ] {
        let serial = invocation(text).unwrap().serial.map(|options| options.to_string());
        assert_eq!(serial.as_deref(), expected, "{text}");
    }
}

#[test]
fn ends_of_a_machine_are_as_asked_for() {
    let ends = |text: &str| {
        let config = invocation(&format!("-kernel k {text}")).unwrap().config;
        (
            config.end_at_reset,
            config.keep_at_shutdown,
            config.start_paused,
            config.debug_exit,
        )
    };
    assert_eq!(ends(""), (false, false, false, None));
    assert_eq!(ends("-no-reboot -no-shutdown -S"), (true, true, true, None));
    assert_eq!(
        ends("-action reboot=shutdown,shutdown=pause,panic=none"),
        (true, true, false, None)
    );
    assert_eq!(ends("-device isa-debug-exit,iobase=0xf4,iosize=0x04").3, Some(0xf4));
    assert_eq!(ends("-device isa-debug-exit").3, Some(0x501));
}

#[test]
fn mistakes_are_one_line_that_names_the_option() {
    for (text, complaint) in [
        ("", "-kernel: none is named"),
        ("-append x -accel qtest", "-initrd, -append: they belong to a kernel"),
        ("-kernel k -bios OVMF.fd", "-bios OVMF.fd: there is no firmware here"),
        ("-kernel k -device addr=4", "-device: no driver is named"),
        (
            "-kernel k -device VGA",
            "VGA: there is no such device here; there are no displays",
        ),
        (
            "-kernel k -mon chardev=x",
            "-mon: chardev x: there is none of that name; add -chardev ...,id=x",
        ),
        ("-kernel k -uuid 1234", "-uuid 1234: this is not a UUID"),
        ("-kernel k -rtc base=localtime", "-rtc: base=localtime: expected utc"),
        ("-kernel k -display gtk", "-display gtk: there are no displays"),
        (
            "-kernel k -drive file=a,format=raw,if=none,id=d -device virtio-blk-pci,drive=d -device virtio-blk-pci,drive=d",
            "virtio-blk-pci: drive=d is another device's already",
        ),
        (
            "-kernel k -smbios type=1",
            "-smbios: not supported; there is no SMBIOS table",
        ),
        (
            "-machine none -device virtio-rng-pci",
            "-device virtio-rng-pci: a machine of type none has no bus",
        ),
    ] {
        let error = invocation(text).unwrap_err();
        assert!(error.starts_with(complaint) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn uuid_and_name_are_kept() {
    let text = "-kernel k -name guest=g1,debug-threads=on -uuid 00112233-4455-6677-8899-aabbccddeeff";
    let invocation = invocation(text).unwrap();
    assert_eq!(invocation.name.as_deref(), Some("g1"));
    assert_eq!(invocation.config.firmware.uuid[..4], [0x00, 0x11, 0x22, 0x33]);
}

/// Pieces that mean something somewhere, so that random command lines get far.
fn piece() -> impl Strategy<Value = String> {
    let known = rows().map(|row| format!("-{}", row.name)).collect::<Vec<_>>();
    let values = [
        "pc",
        "none",
        "kvm",
        "qtest",
        "virtio-blk-pci",
        "virtio-net-pci,netdev=n",
        "virtio-rng-pci",
        "user,id=n",
        "file=a,format=raw,if=none,id=d",
        "socket,path=x,id=c",
        "chardev:c",
        "mon:stdio",
        "unix:a,server",
        "tcp::",
        "{\"driver\":\"raw\"}",
        "a=b,,c=,=,d",
        "iothread,id=i",
        "4,cores=",
        "node,memdev=m",
        "d.d.d=d",
        "1G",
        "0x",
        "host,+",
        "help",
        ",",
        "=",
        "é,é=é",
    ];
    prop_oneof![
        3 => prop::sample::select(known),
        3 => prop::sample::select(values.map(str::to_owned).to_vec()),
        1 => ".{0,24}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_command_line_panics_and_every_refusal_is_one_line(words in prop::collection::vec(piece(), 0..12)) {
        // Files of a random name could be read by this one.
        let words: Vec<_> = words.into_iter().filter(|word| !word.contains("readconfig")).collect();
        let own: bool = words.iter().any(|word| word.contains(['\n', '\r']));
        if let Err(error) = parse(words) {
            let text = error.to_string();
            prop_assert!(own || !text.contains('\n'), "{text}");
        }
    }
}
