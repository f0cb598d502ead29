#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use crate::qmp::target::Order;
use crate::qmp::target::Shown;
use crate::qmp::testing::{Client, generic};

#[test]
fn a_machine_says_what_it_is() {
    let client = Client::new();
    for (command, expected) in [
        ("query-name", json!({"name": "gast"})),
        ("query-uuid", json!({"UUID": "00000000-0000-0000-0000-000000000000"})),
        ("query-kvm", json!({"enabled": true, "present": true})),
        ("query-target", json!({"arch": "x86_64"})),
        (
            "query-status",
            json!({"running": true, "singlestep": false, "status": "running"}),
        ),
        (
            "query-memory-size-summary",
            json!({"base-memory": 64 << 20, "plugged-memory": 0}),
        ),
        ("query-iothreads", json!([])),
    ] {
        assert_eq!(client.run(command, json!({})), Ok(expected), "{command}");
    }
    let unexpected = generic("Parameter 'a' is unexpected");
    assert_eq!(client.fails("query-status", json!({"a": 1})), unexpected);
}

/// QEMU's test program takes no member more and none less.
#[test]
fn machines_have_the_members_of_qemu_7_2() {
    let machines = Client::new().run("query-machines", json!({})).unwrap();
    let machines = machines.as_array().unwrap().clone();
    let known = [
        "name",
        "alias",
        "is-default",
        "cpu-max",
        "hotpluggable-cpus",
        "numa-mem-supported",
        "deprecated",
        "default-cpu-type",
        "default-ram-id",
    ];
    for machine in &machines {
        let machine = machine.as_object().unwrap();
        assert!(machine.keys().all(|name| known.contains(&name.as_str())), "{machine:?}");
        for name in [
            "name",
            "cpu-max",
            "hotpluggable-cpus",
            "numa-mem-supported",
            "deprecated",
        ] {
            assert!(machine.contains_key(name), "{machine:?}");
        }
    }
    let named = |name: &str, value: &str| machines.iter().any(|machine| machine[name] == value);
    assert!(named("alias", "pc") && named("name", "none"));
}

#[test]
fn device_types_are_those_of_the_table() {
    let client = Client::new();
    let types = client
        .run("qom-list-types", json!({"implements": "device", "abstract": true}))
        .unwrap();
    let find = |name: &str| {
        types
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["name"] == name)
            .cloned()
    };
    assert_eq!(
        find("virtio-rng-pci"),
        Some(json!({"name": "virtio-rng-pci", "parent": "virtio-rng-pci-base"}))
    );
    assert_eq!(
        find("virtio-blk-pci-base"),
        Some(json!({"name": "virtio-blk-pci-base", "parent": "virtio-pci", "abstract": true}))
    );
    assert_eq!(find("iothread"), None);
    let concrete = client
        .run("qom-list-types", json!({"implements": "virtio-pci"}))
        .unwrap();
    assert!(
        concrete
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row.get("abstract").is_none())
    );
    assert_eq!(
        client.run("qom-list-types", json!({"implements": "nosuch"})),
        Ok(json!([]))
    );
}

#[test]
fn properties_of_devices_are_those_of_the_table() {
    let client = Client::new();
    let properties = client
        .run("device-list-properties", json!({"typename": "virtio-rng-pci"}))
        .unwrap();
    let find = |name: &str| {
        properties
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["name"] == name)
            .cloned()
            .unwrap()
    };
    assert_eq!(
        (&find("addr")["type"], &find("addr")["default-value"]),
        (&json!("int32"), &json!(-1))
    );
    assert_eq!(find("disable-modern")["default-value"], false);
    assert_eq!(find("disable-legacy")["type"], "OnOffAuto");
    assert_eq!(find("rng")["type"], "link<rng-backend>");
    assert_eq!(find("page-per-vq")["type"], "bool");
    let fails = |name: &str| client.fails("device-list-properties", json!({"typename": name}));
    assert_eq!(
        fails("nosuch"),
        ("DeviceNotFound".into(), "Device 'nosuch' not found".into())
    );
    assert_eq!(
        fails("virtio-pci"),
        generic("Parameter 'typename' expects a non-abstract device type")
    );
    assert_eq!(fails("iothread"), generic("Parameter 'typename' expects a device type"));
}

#[test]
fn orders_reach_the_machine_and_their_events_everybody() {
    let client = Client::new();
    for command in ["stop", "cont", "system_reset", "system_powerdown", "inject-nmi", "quit"] {
        assert_eq!(client.run(command, json!({})), Ok(json!({})), "{command}");
    }
    let orders = [
        Order::Stop,
        Order::Cont,
        Order::Reset,
        Order::Powerdown,
        Order::Nmi,
        Order::Quit,
    ];
    assert_eq!(*client.target.orders.lock().unwrap(), orders);
    assert_eq!(client.event_names(), ["STOP", "RESUME"]);
}

#[test]
fn a_device_is_added_with_what_it_refers_to() {
    let client = Client::new();
    assert_eq!(
        client.fails("device_add", json!({})),
        generic("Parameter 'driver' is missing")
    );
    let random = json!({"qom-type": "rng-random", "id": "r0", "filename": "/dev/urandom"});
    assert_eq!(client.run("object-add", random), Ok(json!({})));
    let rng = json!({"driver": "virtio-rng-pci", "id": "rng1", "addr": "0x06", "disable-modern": true, "rng": "r0"});
    assert_eq!(client.run("device_add", rng.clone()), Ok(json!({})));
    assert_eq!(client.fails("device_add", rng), generic("Duplicate device ID 'rng1'"));
    let strange = json!({"driver": "virtio-rng-pci", "id": "1x"});
    assert_eq!(
        client.fails("device_add", strange),
        generic("Parameter 'id' expects an identifier")
    );
    let plugged = client.target.inventory.find("rng1").unwrap();
    assert_eq!(plugged.slot().unwrap().address.device(), 6);
    assert_eq!(
        (plugged.pairs().get("disable-modern"), plugged.reference("rng")),
        (Some("on"), Some("r0"))
    );
    assert_eq!(
        client.fails("object-del", json!({"id": "r0"})),
        generic("object 'r0' is in use, can not be deleted")
    );
    assert_eq!(
        client.run("device_del", json!({"id": "/machine/peripheral/rng1"})),
        Ok(json!({}))
    );
    assert!(
        client.target.inventory.find("rng1").is_some(),
        "the guest has to let it go"
    );
    let not_found = ("DeviceNotFound".to_owned(), "Device 'nosuch' not found".to_owned());
    assert_eq!(client.fails("device_del", json!({"id": "nosuch"})), not_found);
}

/// The answer of QEMU 7.2 to the same devices, IDE and the option ROM of the network card aside.
#[test]
fn functions_of_the_bus_are_shown_as_qemu_shows_them() {
    let client = Client::with(
        &["id=d0,file=null-co://"],
        &["virtio-blk-pci,drive=d0,id=disk0", "virtio-rng-pci"],
    );
    let buses = client.ask("query-pci");
    assert_eq!((buses.as_array().unwrap().len(), &buses[0]["bus"]), (1, &json!(0)));
    let devices = buses[0]["devices"].as_array().unwrap();
    let at = |slot: u8, function: u8| {
        let found = devices
            .iter()
            .find(|row| row["slot"] == slot && row["function"] == function);
        found.cloned().unwrap()
    };
    let host = json!({
        "irq_pin": 0, "bus": 0, "qdev_id": "", "slot": 0, "class_info": {"class": 1536, "desc": "Host bridge"},
        "id": {"device": 4663, "subsystem-vendor": 6900, "vendor": 32902, "subsystem": 4352}, "function": 0, "regions": [],
    });
    assert_eq!(at(0, 0), host);
    let memory = |bar: u8, size: u32, wide: bool| json!({"prefetch": wide, "mem_type_64": wide, "bar": bar, "size": size, "address": -1, "type": "memory"});
    let disk = json!({
        "irq_pin": 1, "bus": 0, "qdev_id": "disk0", "irq": 0, "slot": 2, "class_info": {"class": 256, "desc": "SCSI controller"},
        "id": {"device": 4097, "subsystem-vendor": 6900, "vendor": 6900, "subsystem": 2}, "function": 0,
        "regions": [
            {"bar": 0, "size": 128, "address": -1, "type": "io"}, memory(1, 4096, false), memory(4, 16384, true),
        ],
    });
    assert_eq!(at(2, 0), disk);
    assert_eq!(
        (&at(3, 0)["class_info"], &at(3, 0)["qdev_id"]),
        (&json!({"class": 255}), &json!(""))
    );
    let text = client.line("info pci");
    let row =
        "  Bus  0, device   2, function 0:\n    SCSI controller: PCI device 1af4:1001\n      PCI subsystem 1af4:0002\n";
    assert!(text.contains(row), "{text}");
    assert!(
        text.contains("      BAR4: 64 bit prefetchable memory at 0xffffffffffffffff [0x00003ffe].\n"),
        "{text}"
    );
}

#[test]
fn disks_are_shown_with_their_drives() {
    let client = Client::with(
        &["id=d0,file=null-co://,readonly=on", "id=d1,file=null-co://"],
        &["virtio-blk-pci,drive=d0,id=disk0"],
    );
    let disks = client.ask("query-block");
    let names = ["device", "io-status", "locked", "removable", "inserted", "qdev", "type"];
    assert!(
        disks[0]
            .as_object()
            .unwrap()
            .keys()
            .all(|name| names.contains(&name.as_str()))
    );
    assert_eq!(
        (&disks[0]["device"], &disks[0]["qdev"]),
        (&json!("d0"), &json!("/machine/peripheral/disk0/virtio-backend"))
    );
    let medium = &disks[0]["inserted"];
    assert_eq!(
        (&medium["drv"], &medium["ro"], &medium["node-name"]),
        (&json!("null-co"), &json!(true), &json!("d0"))
    );
    assert_eq!(medium["image"]["virtual-size"], 1 << 30);
    assert_eq!((&disks[1]["device"], disks[1].get("qdev")), (&json!("d1"), None));
    assert_eq!(client.ask("query-named-block-nodes").as_array().unwrap().len(), 2);
    let stats = client.ask("query-blockstats");
    assert_eq!(
        (&stats[0]["device"], &stats[0]["stats"]["rd_operations"]),
        (&json!("d0"), &json!(0))
    );
    assert!(
        client
            .line("info block")
            .starts_with("d0 (d0): null-co:// (null-co, read-only)\n    Attached to:")
    );
}

#[test]
fn a_disk_is_resized_by_its_drive_its_node_or_its_device() {
    let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let path = dir.as_path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let drive = format!("id=d0,file={},format=raw", path.display());
    let client = Client::with(
        &[&drive, "id=d1,file=null-co://"],
        &["virtio-blk-pci,drive=d0,id=disk0"],
    );
    for (arguments, size) in [
        (json!({"device": "d0", "size": 8192}), 8192),
        (json!({"node-name": "d0", "size": 1024}), 1024),
        (json!({"device": "disk0", "size": 4096}), 4096),
    ] {
        assert_eq!(client.run("block_resize", arguments), Ok(json!({})));
        let disks = client.ask("query-block");
        assert_eq!(disks[0]["inserted"]["image"]["virtual-size"], size);
    }
    let fails = |arguments| client.fails("block_resize", arguments);
    assert_eq!(
        fails(json!({"device": "x", "size": 1})),
        generic("Cannot find device='x' nor node-name=''")
    );
    assert_eq!(
        fails(json!({"size": 1})),
        generic("Cannot find device='' nor node-name=''")
    );
    assert_eq!(
        fails(json!({"device": "d0", "size": -1})),
        generic("Parameter 'size' expects a >0 size")
    );
    assert_eq!(
        fails(json!({"device": "d1", "size": 512})),
        generic("'d1' is not open: no device has it")
    );
    let none = json!({"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0, "device": "d0"});
    assert_eq!(client.run("block_set_io_throttle", none.clone()), Ok(json!({})));
    let mut some = none;
    some["bps"] = 1.into();
    assert!(
        client
            .fails("block_set_io_throttle", some)
            .1
            .starts_with("There are no limits for disks")
    );
}

#[test]
fn networks_character_devices_objects_and_nodes_come_and_go_by_name() {
    let client = Client::new();
    for (add, arguments, again) in [
        (
            "netdev_add",
            json!({"type": "hubport", "id": "x", "hubid": 0}),
            "Duplicate ID 'x'",
        ),
        (
            "chardev-add",
            json!({"id": "x", "backend": {"type": "null", "data": {}}}),
            "Chardev with id 'x' already exists",
        ),
        (
            "object-add",
            json!({"qom-type": "rng-random", "id": "x"}),
            "attempt to add duplicate property 'x' to object (type 'container')",
        ),
        (
            "object-add",
            json!({"qom-type": "iothread", "id": "y"}),
            "attempt to add duplicate property 'y' to object (type 'container')",
        ),
        (
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "x"}),
            "Duplicate nodes with node-name='x'",
        ),
    ] {
        assert_eq!(client.run(add, arguments.clone()), Ok(json!({})), "{add}");
        assert_eq!(client.fails(add, arguments), generic(again), "{add}");
    }
    assert_eq!(client.ask("query-iothreads")[0]["id"], "y");
    let kinds = client.run("qom-list", json!({"path": "/objects"})).unwrap();
    assert!(
        kinds
            .as_array()
            .unwrap()
            .contains(&json!({"name": "y", "type": "child<iothread>"}))
    );
    for (remove, arguments, again) in [
        ("netdev_del", json!({"id": "x"}), "Device 'x' not found"),
        ("chardev-remove", json!({"id": "x"}), "Chardev 'x' not found"),
        ("object-del", json!({"id": "x"}), "object 'x' not found"),
        ("object-del", json!({"id": "y"}), "object 'y' not found"),
        (
            "blockdev-del",
            json!({"node-name": "x"}),
            "Failed to find node with node-name='x'",
        ),
    ] {
        assert_eq!(client.run(remove, arguments.clone()), Ok(json!({})), "{remove}");
        assert_eq!(client.fails(remove, arguments).1, again, "{remove}");
    }
    assert_eq!(client.ask("query-iothreads"), json!([]));
}

#[test]
fn what_is_wrong_with_a_backend_is_said_in_qemus_words() {
    let client = Client::new();
    for (command, arguments, expected) in [
        ("netdev_add", json!({"id": "n"}), "Parameter 'type' is missing"),
        (
            "netdev_add",
            json!({"id": "n", "type": "nope"}),
            "Parameter 'type' does not accept value 'nope'",
        ),
        (
            "netdev_add",
            json!({"id": "n", "type": "hubport"}),
            "Parameter 'hubid' is missing",
        ),
        (
            "netdev_add",
            json!({"id": "n", "type": "hubport", "hubid": "x"}),
            "Invalid parameter type for 'hubid', expected: integer",
        ),
        (
            "netdev_add",
            json!({"id": "n", "type": "hubport", "hubid": 1, "foo": 1}),
            "Parameter 'foo' is unexpected",
        ),
        (
            "chardev-add",
            json!({"id": "c", "backend": {"type": "file", "data": {}}}),
            "Parameter 'backend.data.out' is missing",
        ),
        (
            "object-add",
            json!({"id": "o", "qom-type": "nope"}),
            "Parameter 'qom-type' does not accept value 'nope'",
        ),
        (
            "blockdev-add",
            json!({"driver": "nope", "node-name": "b"}),
            "Parameter 'driver' does not accept value 'nope'",
        ),
        (
            "blockdev-add",
            json!({"driver": "null-co"}),
            "'node-name' must be specified for the root node",
        ),
        (
            "blockdev-add",
            json!({"driver": "raw", "node-name": "b", "file": {"driver": "file"}}),
            "Parameter 'file.filename' is missing",
        ),
    ] {
        assert_eq!(client.fails(command, arguments), generic(expected), "{command}");
    }
}

#[test]
fn options_of_qmp_become_those_of_the_command_line() {
    let client = Client::new();
    let forwards = json!([{"str": "tcp::1-:2"}, {"str": "tcp::3-:4"}]);
    client
        .run("netdev_add", json!({"type": "user", "id": "n", "hostfwd": forwards}))
        .unwrap();
    let socket = json!({"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "/x"}}, "server": true}});
    client
        .run("chardev-add", json!({"id": "c", "backend": socket}))
        .unwrap();
    let backends = crate::qmp::target::Target::backends(&*client.target).lock().unwrap();
    let options = backends.netdevs["n"].iter();
    let forwarded: Vec<_> = options.filter(|(key, _)| *key == "hostfwd").collect();
    assert_eq!(forwarded, [("hostfwd", "tcp::1-:2"), ("hostfwd", "tcp::3-:4")]);
    let chardev = &backends.chardevs["c"];
    let value = |key: &str| chardev.get(key);
    assert_eq!(
        (value("backend"), value("path"), value("server")),
        (Some("socket"), Some("/x"), Some("on"))
    );
    drop(backends);
    let chardevs = client.ask("query-chardev");
    assert_eq!(
        chardevs[0],
        json!({"label": "c", "filename": "unix:/x,server=on", "frontend-open": false})
    );
    assert_eq!(
        chardevs[1],
        json!({"label": "compat_monitor0", "filename": "stdio", "frontend-open": true})
    );
}

#[test]
fn the_tree_shows_devices_with_their_properties() {
    let client = Client::with(
        &["id=d0,file=null-co://"],
        &["virtio-blk-pci,drive=d0,id=disk0,addr=4.0", "virtio-rng-pci"],
    );
    let list = |path: &str| client.run("qom-list", json!({"path": path})).unwrap();
    let disk = json!({"name": "disk0", "type": "child<virtio-blk-pci>"});
    assert_eq!(
        list("/machine/peripheral"),
        json!([{"name": "type", "type": "string"}, disk])
    );
    let rng = json!({"name": "device[0]", "type": "child<virtio-rng-pci>"});
    assert!(list("/machine/peripheral-anon").as_array().unwrap().contains(&rng));
    let get = |path: &str, property: &str| client.run("qom-get", json!({"path": path, "property": property}));
    for path in ["/machine/peripheral/disk0", "disk0"] {
        assert_eq!(get(path, "drive"), Ok(json!("d0")));
        assert_eq!(get(path, "addr"), Ok(json!(32)));
        assert_eq!(get(path, "type"), Ok(json!("virtio-blk-pci")));
        assert_eq!(get(path, "disable-modern"), Ok(json!(false)));
    }
    assert_eq!(
        get("/machine/peripheral/disk0/virtio-backend", "type"),
        Ok(json!("virtio-blk-device"))
    );
    assert_eq!(
        get("/machine/peripheral", "disk0"),
        Ok(json!("/machine/peripheral/disk0"))
    );
    let fails = |arguments| client.fails("qom-get", arguments);
    let unknown = generic("Property 'pc-i440fx-7.2-machine.x' not found");
    assert_eq!(fails(json!({"path": "/machine", "property": "x"})), unknown);
    assert_eq!(fails(json!({"path": "/nosuch", "property": "x"})).0, "DeviceNotFound");
    let missing = generic("Parameter 'value' is missing");
    assert_eq!(
        client.fails("qom-set", json!({"path": "/machine", "property": "rtc-time"})),
        missing
    );
    let set = json!({"path": "disk0", "property": "disable-modern", "value": true});
    let realized =
        "Attempt to set property 'disable-modern' on device 'disk0' (type 'virtio-blk-pci') after it was realized";
    assert_eq!(client.fails("qom-set", set), generic(realized));
}

#[test]
fn a_balloon_is_asked_and_told() {
    let none = (
        "DeviceNotActive".to_owned(),
        "No balloon device has been activated".to_owned(),
    );
    assert_eq!(Client::new().fails("query-balloon", json!({})), none);
    let client = Client::with(&[], &["virtio-balloon-pci,id=bal"]);
    assert!(client.ask("query-balloon")["actual"].is_u64());
    assert_eq!(
        client.fails("balloon", json!({"value": 0})),
        generic("Parameter 'target' expects a size")
    );
    assert_eq!(client.run("balloon", json!({"value": 32 << 20})), Ok(json!({})));
    let polling = json!({"path": "bal", "property": "guest-stats-polling-interval", "value": 2});
    assert_eq!(client.run("qom-set", polling), Ok(json!({})));
    let stats = client
        .run("qom-get", json!({"path": "bal", "property": "guest-stats"}))
        .unwrap();
    assert_eq!(
        (&stats["last-update"], &stats["stats"]["stat-free-memory"]),
        (&json!(0), &json!(u64::MAX))
    );
}

#[test]
fn a_network_card_is_asked_and_told() {
    let client = Client::with(&[], &["virtio-net-pci,id=net0,mac=52:54:00:12:34:56"]);
    let filter = &client.ask("query-rx-filter")[0];
    assert_eq!(
        (&filter["name"], &filter["main-mac"]),
        (&json!("net0"), &json!("52:54:00:12:34:56"))
    );
    assert_eq!(
        (&filter["promiscuous"], &filter["vlan"], &filter["unicast"]),
        (&json!(true), &json!("all"), &json!("normal"))
    );
    assert_eq!(filter["vlan-table"].as_array().unwrap().len(), 4096);
    assert_eq!(
        client.fails("query-rx-filter", json!({"name": "x"})),
        generic("invalid net client name: x")
    );
    assert_eq!(
        client.run("set_link", json!({"name": "net0", "up": false})),
        Ok(json!({}))
    );
    assert_eq!(
        client.fails("set_link", json!({"name": "x", "up": false})).0,
        "DeviceNotFound"
    );
    let announce = json!({"initial": 20, "max": 100, "rounds": 300, "step": 10, "id": "bob"});
    assert_eq!(client.run("announce-self", announce), Ok(json!({})));
    let far = json!({"initial": 20, "max": 100, "rounds": 3000, "step": 10});
    assert_eq!(client.fails("announce-self", far).0, "GenericError");
    assert!(
        client
            .line("info network")
            .starts_with("net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n")
    );
}

#[test]
fn the_insides_of_a_virtio_device_can_be_looked_at() {
    let client = Client::with(&[], &["virtio-rng-pci,id=rng0"]);
    let path = "/machine/peripheral/rng0/virtio-backend";
    assert_eq!(
        client.ask("x-query-virtio"),
        json!([{"name": "virtio-rng", "path": path}])
    );
    let status = client.run("x-query-virtio-status", json!({"path": path})).unwrap();
    assert_eq!(
        (&status["device-id"], &status["num-vqs"], &status["started"]),
        (&json!(4), &json!(1), &json!(false))
    );
    let transports = status["host-features"]["transports"].as_array().unwrap().clone();
    assert!(transports.contains(&json!("VIRTIO_F_VERSION_1")));
    let queue = client
        .run("x-query-virtio-queue-status", json!({"path": path, "queue": 0}))
        .unwrap();
    assert_eq!(
        (&queue["vring-num"], &queue["vring-desc"], &queue["inuse"]),
        (&json!(8), &json!(0), &json!(0))
    );
    let fails = |command: &str, queue: u8| client.fails(command, json!({"path": path, "queue": queue}));
    assert_eq!(
        fails("x-query-virtio-queue-status", 9),
        generic("Invalid virtqueue number 9")
    );
    assert_eq!(
        fails("x-query-virtio-queue-element", 0),
        generic("The driver has not set the queue up")
    );
    let nowhere = client.fails("x-query-virtio-status", json!({"path": "/nope"}));
    assert_eq!(nowhere, generic("Path /nope is not a VirtIODevice"));
    assert_eq!(client.line("info virtio"), format!("{path} [virtio-rng]\n"));
    assert!(
        client
            .line(&format!("info virtio-status {path}"))
            .contains("num_vqs:                 1\n")
    );
    assert!(
        client
            .line(&format!("info virtio-queue-status {path} 0"))
            .contains("num:          8\n")
    );
}

#[test]
fn lines_for_people_are_understood() {
    let client = Client::with(&["id=d0,file=null-co://"], &["virtio-blk-pci,drive=d0,id=disk0"]);
    assert_eq!(
        (client.line("").as_str(), client.line("system_reset").as_str()),
        ("", "")
    );
    assert_eq!(*client.target.orders.lock().unwrap(), [Order::Reset]);
    assert_eq!(client.line("info nosuch"), "unknown command: 'info nosuch'\n");
    assert_eq!(client.line("nosuch thing"), "unknown command: 'nosuch'\n");
    assert_eq!(
        client.line("info balloon"),
        "Error: No balloon device has been activated\n"
    );
    assert!(client.line("info").contains("info qtree"));
    let tree = client.line("info qtree");
    assert!(
        tree.contains("      dev: virtio-blk-pci, id \"disk0\"\n        addr = 02.0\n        drive = \"d0\"\n"),
        "{tree}"
    );
    let missing = client.fails("human-monitor-command", json!({}));
    assert_eq!(missing, generic("Parameter 'command-line' is missing"));
}

/// The names that `query-block` shows.
fn drives(client: &Client) -> Vec<Value> {
    let disks = client.ask("query-block");
    disks
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| disk["device"].clone())
        .collect()
}

#[test]
fn drives_come_and_go_by_lines_for_people() {
    let client = Client::new();
    assert_eq!(client.line("drive_add 0 if=none,id=d"), "OK\n");
    assert!(client.line("drive_add 0 if=none,id=d").starts_with("Error: "));
    assert!(client.line("drive_add 0 id=e").contains("if=none"));
    assert_eq!(drives(&client), ["d"]);
    let (class, words) = client.fails("device_add", json!({"driver": "virtio-blk-pci", "drive": "d"}));
    assert!(class == "GenericError" && words.contains("drive is empty"), "{words}");
    assert_eq!(client.line("drive_del d"), "");
    assert!(drives(&client).is_empty());
    assert_eq!(client.line("drive_del d"), "Error: Device 'd' not found\n");
}

#[test]
fn a_node_needs_its_file() {
    let client = Client::new();
    let node = json!({"driver": "file", "node-name": "f", "filename": "/nonexistent"});
    let (_, description) = client.fails("blockdev-add", node);
    assert!(
        description.starts_with("Could not open '/nonexistent': No such file"),
        "{description}"
    );
    assert_eq!(
        client.fails("blockdev-del", json!({"node-name": "f"})).0,
        "GenericError"
    );
}

#[test]
fn options_of_the_command_line_are_those_of_its_table() {
    let client = Client::new();
    let option = |name: &str| client.run("query-command-line-options", json!({"option": name}));
    let name = option("name").unwrap();
    assert!(
        name[0]["parameters"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "debug-threads", "type": "boolean"}))
    );
    assert_eq!(option("nosuch").unwrap_err()["desc"], "invalid option name: nosuch");
    assert!(client.ask("query-command-line-options").as_array().unwrap().len() > 10);
}

#[test]
fn a_hot_plugged_balloon_tells_of_its_size() {
    let client = Client::new();
    client
        .run(
            "device_add",
            json!({"driver": "virtio-balloon-pci", "id": "b", "addr": "6"}),
        )
        .unwrap();
    assert_eq!(client.ask("query-balloon")["actual"], 1 << 20);
    // The guest's driver writes `actual`, the second word of the configuration: one page is in the balloon.
    let plugged = client.target.inventory.find("b").unwrap();
    write_config(&plugged, 4, 1);
    let event = loop {
        match client.events().pop() {
            Some(event) => break event,
            None => std::thread::yield_now(),
        }
    };
    assert_eq!(
        (&event["event"], &event["data"]["actual"]),
        (&json!("BALLOON_CHANGE"), &json!((1 << 20) - 4096))
    );
}

/// Writes a word of device configuration on the legacy face, where it begins at 0x14 without MSI-X.
fn write_config(plugged: &crate::machine::inventory::Plugged, offset: u64, value: u32) {
    let mut function = plugged.slot().unwrap().lock();
    pci::Function::write_bar(&mut *function, 0, 0x14 + offset, &value.to_le_bytes());
}

#[test]
fn commands_are_listed() {
    let commands = Client::new().run("query-commands", json!({})).unwrap();
    let count = commands
        .as_array()
        .unwrap()
        .iter()
        .filter(|row: &&Value| row["name"] == "device_add")
        .count();
    assert_eq!(count, 1);
}
