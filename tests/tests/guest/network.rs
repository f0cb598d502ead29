//! Guests on a network: through passt as the user of a laptop has it, on a tap as a server has it, on a wire to another guest.
//!
//! What the guests do is in resources/jobs/network.sh. Each test has a network namespace of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use tests::Error;
use tests::checksum::md5;
use tests::guest::{self, Conversation, Ended};
use tests::network::{self, Iperf3, apart, fetch, ip, run};
use tests::qemu;
use tests::report::Report;
use tests::resources::{self, Extras};
use vmm::config::MachineConfig;
use vmm::machine::Outcome;
use vmm::machine::remote::Remote;

const MIB: u64 = 1 << 20;

/// What pages are made of: two MiB that are not like each other.
fn page() -> Vec<u8> {
    (0..MIB / 4)
        .flat_map(|number: u64| (number * number).to_le_bytes())
        .collect()
}

/// The host that passt makes reachable, and what the guest says when it has reached it.
fn reachable() -> [String; 4] {
    network::way_out().unwrap();
    let page = page();
    let sum = md5(&page).unwrap();
    network::serve_page(8000, page).unwrap();
    let lease = "lease 203.0.113.2/24 router 203.0.113.1 dns 203.0.113.1";
    [
        lease.to_owned(),
        "udhcpc 0".to_owned(),
        "wget 0".to_owned(),
        format!("{sum}  -"),
    ]
}

fn assert_reached(report: &Report, words: &[String]) {
    report.assert_said(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let answers = report.section("job").iter();
    let address = network::ADDRESS.to_string();
    assert!(
        answers
            .filter(|line| line.starts_with("Address"))
            .any(|line| line.contains(&address))
    );
}

each_kernel! {
    user_mode_network_leads_out_and_in(kernel) {
        apart(|| {
            let words = reachable();
            for force_legacy in [false, true] {
                let config = guest::with_job(kernel, force_legacy, "user").unwrap();
                let config = config.device("virtio-net-pci", "user=on,hostfwd=tcp:127.0.0.1:8080-:80");
                let mut guest = Conversation::start(config).unwrap();
                assert_eq!(guest.hear("turn ").unwrap(), "to fetch it");
                let inside = fetch(SocketAddr::from(([127, 0, 0, 1], 8080)), "/page").unwrap();
                assert_eq!(inside.len(), page().len());
                assert!(inside == page(), "the guest's page is another");
                guest.say("done").unwrap();
                let ended = guest.end().unwrap();
                assert_eq!(ended.outcome, Outcome::PowerOff);
                assert_reached(&ended.report, &words);
            }
        })
        .unwrap();
    }

    card_on_a_tap_stands_as_under_qemu(kernel) {
        assert_as_under_qemu(kernel, false, "");
    }

    tap_carries_everything(kernel) {
        carry(kernel, false, "", "", 1);
    }
}

/// QEMU's guest and ours, line by line.
fn assert_as_under_qemu(kernel: &str, force_legacy: bool, words: &str) {
    apart(|| {
        let config = guest::reporting_with(kernel, Extras::Tools { force_legacy }, &format!("quiet {words}"));
        let config = config.unwrap().memory(512 * MIB);
        let netdev = format!("tap,id=n0,ifname={TAP},script=no,downscript=no");
        let theirs = qemu::run(
            &config,
            &["-netdev", &netdev, "-device", "virtio-net-pci,netdev=n0,romfile="],
        )
        .unwrap();
        let ours = guest::run(config.device("virtio-net-pci", format!("tap={TAP}")))
            .unwrap()
            .report;
        assert!(
            ours.section("ethtool eth0").len() > 40,
            "{:?}",
            ours.section("ethtool eth0")
        );
        for section in ["virtio", "buses", "net eth0", "ethtool eth0"] {
            assert_eq!(ours.section(section), theirs.section(section), "{section}");
        }
        assert_eq!(ours.lasting_config("00:02.0"), theirs.lasting_config("00:02.0"));
    })
    .unwrap();
}

/// Nobody without privilege: neither root nor in a group, with nothing but access to `/dev/kvm`.
const NOBODY: u32 = 65534;

#[test]
fn user_mode_network_needs_no_privilege() {
    apart(|| {
        let words = reachable();
        let mut command = Command::new(resources::program().unwrap());
        let initrd = resources::initrd(&std::env::temp_dir(), "cloud", Extras::Tools { force_legacy: false });
        command.arg("run").arg(resources::kernel("cloud").unwrap());
        command.arg("--initrd").arg(initrd.unwrap());
        command.args([
            "--memory",
            "512M",
            "--append",
            "quiet console=ttyS0 job=user",
            "--net",
            "user",
        ]);
        let mut child = command
            .uid(NOBODY)
            .gid(NOBODY)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut keyboard = child.stdin.take().unwrap();
        let mut console = String::new();
        for line in BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
        {
            if line.starts_with("turn ") {
                keyboard.write_all(b"done\n").unwrap();
            }
            console.push_str(&(line + "\n"));
        }
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{errors}\n{}", guest::tail(&console));
        assert_reached(&Report::parse(&console), &words);
    })
    .unwrap();
}

/// What we call the interface; each test's network has only one.
const TAP: &str = "tap0";

/// Gives the tap's side of the cable its addresses. The card's hardware address is the first that QEMU gives.
fn host_side() -> Result<(), Error> {
    ip(&format!("link set {TAP} mtu 9000"))?;
    ip(&format!("link set {TAP} up"))?;
    ip(&format!("addr add 192.0.2.1/24 dev {TAP}"))?;
    ip(&format!("-6 addr add fd00::1/64 dev {TAP}"))?;
    ip(&format!("link add link {TAP} name {TAP}.5 type vlan id 5"))?;
    ip(&format!("addr add 198.51.100.1/24 dev {TAP}.5"))?;
    ip(&format!("link set {TAP}.5 up"))?;
    ip(&format!("route add {GROUP}/32 dev {TAP}"))
}

fn set_link(remote: &Remote, up: bool) {
    for plugged in remote.inventory().list() {
        if let devices::virtio::info::Control::Net(card) = plugged.control() {
            card.set_link(up);
        }
    }
}

fn ping(words: &str) -> Result<(), Error> {
    run(Command::new("ping").args(words.split_whitespace()))
}

/// What the guest has received, by its own count, when it said so with these words.
fn count(report: &Report, words: &str) -> u64 {
    let line = report.section("job").iter().find_map(|line| line.strip_prefix(words));
    line.unwrap_or_else(|| panic!("no '{words}' in {:?}", report.section("job")))
        .trim()
        .parse()
        .unwrap()
}

/// A multicast group that no guest is in: its frames reach the card, which the guest sees only when it listens to everything.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);

/// How many frames it is sent at a time.
const CALLS: u64 = 20;

fn call_others() {
    let socket = UdpSocket::bind(("192.0.2.1", 0)).unwrap();
    for _ in 0..CALLS {
        socket.send_to(b"anybody?", (GROUP, 9)).unwrap();
    }
}

fn on_tap(config: MachineConfig, options: &str) -> Ended {
    let device = format!("tap={TAP},mtu=9000{options}");
    let config = config.device("virtio-net-pci", device);
    let mut guest = Conversation::prepared(config, |_| host_side()).unwrap();
    let _server = Iperf3::start().unwrap();
    while let Some(line) = guest.next_line().unwrap() {
        let Some(turn) = line.strip_prefix("turn ") else {
            continue;
        };
        match turn {
            "to ask for fd00::2" => ping("-6 -c 3 -W 20 fd00::2").unwrap(),
            "to call others" | "to call others again" => call_others(),
            "to pull the cable" => set_link(&guest.remote(), false),
            "to plug it in" => set_link(&guest.remote(), true),
            _ => {}
        }
        guest.say("done").unwrap();
    }
    guest.end().unwrap()
}

fn carry(kernel: &str, force_legacy: bool, words: &str, options: &str, queues: u32) {
    apart(|| {
        let mut config = guest::with_job(kernel, force_legacy, "tap").unwrap().cpus(queues);
        config.command_line.push_str(words);
        let options = format!(",queues={queues}{options}");
        let report = on_tap(config, &options).report;
        report.assert_said(&[
            "mtu 9000",
            "ping plain 3",
            "ping jumbo 3",
            "iperf3 to the host 0",
            "iperf3 from the host 0",
            "iperf3 in parallel 0",
            "iperf3 as datagrams 0",
            "iperf3 to the host in small pieces 0",
            "iperf3 from the host in small pieces 0",
            "ping in the VLAN 3",
            "ping of neighbours 3",
            "carrier 1",
            "carrier 0",
            "ping again 3",
        ]);
        let before = count(&report, "before");
        let without = count(&report, "without promiscuity");
        let with = count(&report, "with promiscuity");
        // A few frames of the kernels' own may come at any time. vhost-net filters nothing, under QEMU neither.
        assert!(
            without - before < CALLS / 2 || options.contains("vhost=on"),
            "{before} {without}: frames for others reach a card that filters"
        );
        assert!(
            with - without >= CALLS,
            "{without} {with}: frames for others do not reach a card that listens to all"
        );
        let on_queue = |kind: &str| (0..queues).all(|queue| report.interrupts(&format!("virtio0-{kind}.{queue}")) > 0);
        if queues > 1 {
            assert!(on_queue("input"), "{:?}", report.section("interrupts"));
        }
    })
    .unwrap();
}

#[test]
fn tap_carries_everything_on_the_interrupt_line_by_the_legacy_driver() {
    carry("cloud", true, " pci=nomsi", "", 1);
}

#[test]
fn tap_carries_everything_by_vhost() {
    carry("cloud", false, "", ",vhost=on", 1);
}

#[test]
fn tap_carries_everything_on_four_queue_pairs() {
    carry("cloud", false, "", "", 4);
}

#[cfg(feature = "long")]
mod long {
    use super::*;
    use std::path::Path;
    use std::thread;
    use std::time::Duration;

    /// The guest's own checksum of what it sent, and that of what it received.
    fn sums(report: &Report) -> (&str, &str) {
        let said = |start| {
            let lines = report.section("job").iter();
            lines
                .filter_map(|line| line.strip_prefix(start))
                .next()
                .unwrap_or_default()
        };
        (said("sum of mine "), said("sum of theirs "))
    }

    #[test]
    fn a_guest_on_qemu_and_one_of_ours_copy_200_mib_each_way_over_a_socket() {
        let wire = std::env::temp_dir().join("wire.sock");
        let wire = wire.display();
        for force_legacy in [false, true] {
            let mut config = guest::with_job("cloud", force_legacy, "copy")
                .unwrap()
                .memory(768 * MIB);
            let mut theirs = config.clone();
            theirs.command_line.push_str(" host=1");
            config.command_line.push_str(" host=2");
            let netdev = format!("stream,id=n0,server=on,addr.type=unix,addr.path={wire}");
            let qemu = thread::spawn(move || {
                qemu::run(
                    &theirs,
                    &["-netdev", &netdev, "-device", "virtio-net-pci,netdev=n0,romfile="],
                )
                .unwrap()
            });
            while !Path::new(&wire.to_string()).exists() {
                thread::sleep(Duration::from_millis(100));
            }
            let options = format!("socket=connect:{wire},mac=52:54:00:12:34:57");
            let ours = Conversation::start(config.device("virtio-net-pci", options))
                .unwrap()
                .end()
                .unwrap()
                .report;
            let theirs = qemu.join().unwrap();
            let (our_mine, our_theirs) = sums(&ours);
            assert_eq!(our_mine.len(), 35, "{:?}", ours.section("job"));
            assert_eq!((our_theirs, our_mine), sums(&theirs));
            let _ = std::fs::remove_file(wire.to_string());
        }
    }

    #[test]
    fn the_driver_leaves_a_busy_card_and_comes_back_100_times() {
        for force_legacy in [false, true] {
            apart(|| {
                let config = guest::with_job("cloud", force_legacy, "unbind_network").unwrap();
                let config = config.device("virtio-net-pci", format!("tap={TAP}"));
                let guest = Conversation::prepared(config, |_| host_side()).unwrap();
                let _server = Iperf3::start().unwrap();
                let report = guest.end().unwrap().report;
                report.assert_said(&["bound 100", "ping afterwards 3"]);
                let complaint = report.section("job").iter().find(|line| {
                    ["after", "failed", "no frames"].iter().any(|word| line.contains(word)) && !line.starts_with("ping")
                });
                assert_eq!(complaint, None);
            })
            .unwrap();
        }
    }

    #[test]
    fn card_on_a_tap_stands_as_under_qemu_in_other_ways() {
        for kernel in ["cloud", "generic"] {
            assert_as_under_qemu(kernel, true, "");
            assert_as_under_qemu(kernel, false, "pci=nomsi");
        }
    }

    #[test]
    fn tap_carries_everything_in_other_ways() {
        carry("generic", true, "", "", 1);
        carry("cloud", false, " pci=nomsi", "", 1);
        carry("cloud", true, "", ",vhost=on", 1);
        carry("cloud", false, "", ",vhost=on", 4);
        carry("cloud", false, "", ",offload=off", 1);
        carry("generic", true, "", "", 4);
    }
}
