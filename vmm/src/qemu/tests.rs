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

/// Where it is from, the command line (paths shortened), and what becomes of it.
const PUBLIC: &[(&str, &str, Fate)] = &[
    (
        "virtme-ng, without a shared root",
        "-name virtme-ng@box -m 1G -machine accel=kvm:tcg -cpu host -parallel none -net none -echr 1 -chardev file,path=/proc/self/fd/2,id=dmesg \
         -chardev stdio,id=console,signal=off,mux=on -serial chardev:console -mon chardev=console -vga none -display none -smp 4 -kernel bzImage \
         -append 'virtme_hostname=box console=ttyS0' -initrd initrd.cpio -no-reboot",
        Runs(&[], 0),
    ),
    (
        "virtme, root over 9p",
        "-fsdev local,id=virtfs1,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=virtfs1,mount_tag=/dev/root \
         -machine accel=kvm:tcg -kernel bzImage",
        Refused("-fsdev: not supported; there is no virtio-9p; give a disk with -drive if=virtio"),
    ),
    (
        "virtme-ng on microvm",
        "-M microvm,accel=kvm,pcie=on,rtc=on -cpu host -kernel bzImage",
        Refused("-machine: type=microvm: expected pc: the devices virtio-*-device are virtio-*-pci there"),
    ),
    (
        "Nomad's qemu driver, an image and a forwarded port",
        "-machine type=pc,accel=kvm -name linux.img -m 1024M -drive file=linux.img -nographic -netdev user,id=user.0,hostfwd=tcp::22000-:22 \
         -device virtio-net,netdev=user.0",
        Refused("-drive: if=ide, which is meant without if=: expected virtio, or none with -device virtio-blk-pci"),
    ),
    (
        "libguestfs, direct backend",
        "-global virtio-blk-pci.scsi=off -no-user-config -nodefaults -display none -machine accel=kvm:tcg,graphics=off -cpu max -m 1280 -no-reboot \
         -rtc driftfix=slew -no-hpet -global kvm-pit.lost_tick_policy=discard -kernel kernel -initrd initrd",
        Refused("-global kvm-pit.lost_tick_policy=discard: this property cannot be changed; leave it out"),
    ),
    (
        "libguestfs, its appliance on virtio-scsi",
        "-no-user-config -nodefaults -display none -machine accel=kvm:tcg,graphics=off -cpu max -m 1280 -no-reboot -rtc driftfix=slew -no-hpet \
         -kernel kernel -initrd initrd -object rng-random,filename=/dev/urandom,id=rng0 -device virtio-rng-pci,rng=rng0 \
         -device virtio-scsi-pci,id=scsi",
        Refused("virtio-scsi-pci: there is no such device here; use virtio-blk-pci"),
    ),
    (
        "syzkaller",
        "-m 2048 -smp 2 -chardev socket,id=SOCKSYZ,server=on,wait=off,host=localhost,port=51727 -mon chardev=SOCKSYZ,mode=control -display none \
         -serial stdio -no-reboot -name VM-0 -device virtio-rng-pci -enable-kvm -cpu host,migratable=off \
         -device virtio-net-pci,netdev=net0 -netdev user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:5727-:22 \
         -drive file=bullseye.img,format=raw,if=none,id=d0 -device virtio-blk-pci,drive=d0 -kernel bzImage -append 'root=/dev/vda console=ttyS0'",
        Refused("-netdev id=net0: restrict=on: expected off: passt lets the guest reach what the host reaches"),
    ),
    (
        "syzkaller, with a network that is not restricted",
        "-m 2048 -smp 2 -chardev socket,id=SOCKSYZ,server=on,wait=off,host=localhost,port=51727 -mon chardev=SOCKSYZ,mode=control -display none \
         -serial stdio -no-reboot -name VM-0 -device virtio-rng-pci -enable-kvm -cpu host,migratable=off \
         -device virtio-net-pci,netdev=net0 -netdev user,id=net0,hostfwd=tcp:127.0.0.1:5727-:22 \
         -drive file=bullseye.img,format=raw,if=none,id=d0 -device virtio-blk-pci,drive=d0 -kernel bzImage -append 'root=/dev/vda console=ttyS0'",
        Runs(
            &[
                "virtio-rng-pci,",
                "virtio-net-pci,user=on,hostfwd=tcp:127.0.0.1:5727-:22",
                "virtio-blk-pci,path=bullseye.img,format=raw",
            ],
            0,
        ),
    ),
    (
        "syzkaller, as its setup guide starts an image by hand",
        "-m 2G -smp 2 -kernel bzImage -append 'console=ttyS0 root=/dev/sda earlyprintk=serial net.ifnames=0' -drive file=bullseye.img,format=raw \
         -net user,host=10.0.2.10,hostfwd=tcp:127.0.0.1:10021-:22 -net nic,model=e1000 -enable-kvm -nographic -pidfile vm.pid",
        Refused("-nic: the card would be an e1000, which is not here; add model=virtio-net-pci"),
    ),
    (
        "the kernel's KUnit, x86-64 with KVM",
        "-nodefaults -m 1024 -kernel arch/x86/boot/bzImage -append 'kunit.enable=1 console=ttyS0 kunit_shutdown=reboot' -no-reboot -nographic \
         -accel kvm -accel hvf -accel tcg -serial stdio",
        Runs(&[], 0),
    ),
    (
        "vmtest",
        "-nodefaults -display none -serial mon:stdio -enable-kvm -cpu host -qmp unix:/run/qmp.sock,server=on,wait=off -chardev socket,path=/run/qga.sock,\
         server=on,wait=off,id=qga0 -m 4G -smp 2 -kernel bzImage -no-reboot -append 'rootfstype=9p' -virtfs local,id=root,path=/,mount_tag=/dev/root",
        Refused("-virtfs: not supported; there is no virtio-9p"),
    ),
    (
        "buildroot, qemu_x86_64_defconfig",
        "-M pc -kernel bzImage -drive file=rootfs.ext2,if=virtio,format=raw -append 'rootwait root=/dev/vda console=tty1 console=ttyS0' \
         -net nic,model=virtio -net user -nographic",
        Runs(
            &["virtio-net-pci,user=on", "virtio-blk-pci,path=rootfs.ext2,format=raw"],
            0,
        ),
    ),
    (
        "Yocto's runqemu, nographic with a tap",
        "-device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:02 -netdev tap,id=net0,ifname=tap0,script=no,downscript=no \
         -object rng-random,filename=/dev/urandom,id=rng0 -device virtio-rng-pci,rng=rng0 -drive file=core-image.ext4,if=virtio,format=raw \
         -cpu IvyBridge -machine pc,i8042=on -smp 4 -enable-kvm -m 256 -serial mon:stdio -serial null -nographic -kernel bzImage \
         -append 'root=/dev/vda rw ip=192.168.7.2::192.168.7.1:255.255.255.0 console=ttyS0'",
        Refused("-serial: there is one serial port; use -device virtconsole for others"),
    ),
    (
        "cloud-init's tutorial, NoCloud over HTTP",
        "-net nic -net user -machine accel=kvm:tcg -m 512 -nographic -hda noble.img -smbios type=1,serial=ds='nocloud;s=http://10.0.2.2:8000/'",
        Refused("-hda: not supported; there is no IDE; write -drive file=FILE,format=raw,if=virtio"),
    ),
    (
        "Packer's qemu builder",
        "-machine type=pc,accel=kvm -m 512M -name packer-debian -boot once=d -vnc 127.0.0.1:47 -netdev user,id=user.0,hostfwd=tcp::3213-:22 \
         -device virtio-net,netdev=user.0 -drive file=out/disk,if=virtio,cache=writeback,discard=ignore,format=qcow2",
        Refused("-vnc 127.0.0.1:47: there are no displays"),
    ),
    (
        "comparisons with Firecracker: the smallest guest on pc",
        "-M pc -enable-kvm -cpu host -m 512m -smp 2 -kernel vmlinux -append 'console=ttyS0 root=/dev/vda' -nodefaults -no-user-config -nographic \
         -serial stdio -drive id=test,file=root.img,format=raw,if=none -device virtio-blk-pci,drive=test \
         -netdev tap,id=tap0,script=no,downscript=no,ifname=vmtap0,vhost=off -device virtio-net-pci,netdev=tap0 -bios qboot.rom",
        Runs(
            &[
                "virtio-blk-pci,path=root.img,format=raw",
                "virtio-net-pci,tap=vmtap0,vhost=off",
            ],
            1,
        ),
    ),
    (
        "QEMU's microvm manual, its devices",
        "-M pc -enable-kvm -m 512m -kernel vmlinux -append 'console=hvc0' -nodefaults -no-user-config -nographic -chardev stdio,id=virtiocon0 \
         -device virtio-serial-device -device virtconsole,chardev=virtiocon0",
        Refused("virtio-serial-device:"),
    ),
    (
        "the vhost-user example of QEMU's manual",
        "-m 1024 -object memory-backend-file,id=mem,size=1024M,mem-path=/dev/hugepages,share=on -numa node,memdev=mem -kernel bzImage",
        Refused("-object id=mem: qom-type=memory-backend-file: expected memory-backend-ram|memory-backend-memfd"),
    ),
];

#[test]
fn command_lines_of_other_programs_run_or_are_refused_with_words() {
    for (source, text, fate) in PUBLIC {
        match (invocation(text), fate) {
            (Ok(invocation), Runs(expected, notes)) => {
                assert_eq!(devices(&invocation), *expected, "{source}");
                assert_eq!(invocation.notes.len(), *notes, "{source}: {:?}", invocation.notes);
            }
            (Err(error), Refused(words)) => {
                assert!(error.starts_with(words) && !error.contains('\n'), "{source}: {error}");
            }
            (Ok(_), Refused(_)) => panic!("{source}: runs"),
            (Err(error), Runs(..)) => panic!("{source}: {error}"),
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
