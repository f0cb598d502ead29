#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use crate::qmp::target::Order;
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
fn devices_come_and_go() {
    let client = Client::new();
    assert_eq!(
        client.fails("device_add", json!({})),
        generic("Parameter 'driver' is missing")
    );
    let rng =
        json!({"driver": "virtio-rng-pci", "id": "rng1", "addr": "0x06", "max-bytes": 1024, "disable-modern": true});
    assert_eq!(client.run("device_add", rng.clone()), Ok(json!({})));
    assert_eq!(client.fails("device_add", rng), generic("Duplicate device ID 'rng1'"));
    let strange = json!({"driver": "virtio-rng-pci", "id": "1x"});
    assert_eq!(
        client.fails("device_add", strange),
        generic("Parameter 'id' expects an identifier")
    );
    let options = client.target.devices.lock().unwrap()[0].options.clone();
    assert_eq!(
        (options.get("addr"), options.get("max-bytes")),
        (Some("0x06"), Some("1024"))
    );
    assert_eq!(options.get("disable-modern"), Some("on"));

    assert_eq!(
        client.run("device_del", json!({"id": "/machine/peripheral/rng1"})),
        Ok(json!({}))
    );
    let deleted = &client.events()[0];
    assert_eq!(deleted["event"], "DEVICE_DELETED");
    assert_eq!(
        deleted["data"],
        json!({"device": "rng1", "path": "/machine/peripheral/rng1"})
    );
    let not_found = ("DeviceNotFound".to_owned(), "Device 'rng1' not found".to_owned());
    assert_eq!(client.fails("device_del", json!({"id": "rng1"})), not_found);
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
