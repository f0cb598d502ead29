#![allow(clippy::unwrap_used, clippy::panic)]
use super::testing::inventory;
use super::*;

fn rng(options: &str) -> DeviceConfig {
    DeviceConfig::parse("virtio-rng-pci", options, None)
}

fn refusal(inventory: &Inventory, options: &str) -> String {
    inventory.plug(&rng(options)).unwrap_err().to_string()
}

#[test]
fn devices_are_found_by_id_and_place_and_listed_in_order() {
    let inventory = inventory();
    inventory.plug(&rng("id=a,addr=5")).unwrap();
    inventory.plug(&rng("")).unwrap();
    inventory.plug(&rng("")).unwrap();
    let list = inventory.list();
    assert!(list.iter().all(|plugged| plugged.driver() == "virtio-rng-pci"));
    let paths: Vec<_> = list.iter().map(|plugged| plugged.path()).collect();
    let anonymous = [
        "/machine/peripheral-anon/device[0]",
        "/machine/peripheral-anon/device[1]",
    ];
    assert_eq!(paths, ["/machine/peripheral/a", anonymous[0], anonymous[1]]);
    let slots: Vec<_> = list
        .iter()
        .map(|plugged| plugged.slot().unwrap().address.device())
        .collect();
    assert_eq!(slots, [5, 2, 3]);
    assert_eq!(inventory.find("a").unwrap().config(), &rng("id=a,addr=5"));
    assert!(inventory.find("b").is_none() && inventory.control("b").is_none());
    let at = inventory.at(Address::new(0, 5, 0).unwrap()).unwrap();
    assert_eq!(at.id(), Some("a"));
}

#[test]
fn an_id_is_a_word_and_belongs_to_one_device() {
    let inventory = inventory();
    inventory.plug(&rng("id=rng.0-a_b")).unwrap();
    assert!(refusal(&inventory, "id=rng.0-a_b").contains("duplicate device id 'rng.0-a_b'"));
    for id in ["", "0a", "a b", "-a", "a/b", "ä"] {
        let error = refusal(&inventory, &format!("id={id}"));
        assert!(error.contains("an identifier"), "{error}");
    }
    assert_eq!(inventory.list().len(), 1);
}

#[test]
fn places_that_are_taken_or_not_there_are_refused() {
    let inventory = inventory();
    inventory.plug(&rng("addr=4")).unwrap();
    assert!(refusal(&inventory, "addr=4").contains("already"));
    assert!(refusal(&inventory, "addr=1").contains("already"));
    assert!(refusal(&inventory, "addr=6.1").contains("function other than 0"));
    assert!(refusal(&inventory, "nonsense=1").contains("nonsense"));
    for _ in 0..29 {
        inventory.plug(&rng("")).unwrap();
    }
    assert!(refusal(&inventory, "").contains("no free slot"));
}

#[test]
fn io_threads_can_be_named_until_they_are_removed_and_stay_while_in_use() {
    let inventory = inventory();
    inventory.add_io_thread("a").unwrap();
    inventory.add_io_thread("b").unwrap();
    assert!(inventory.add_io_thread("a").is_err());
    let disk = "path=null-co://,size=1M,iothread=a";
    let disk = |options: &str| DeviceConfig::parse("virtio-blk-pci", &format!("{disk}{options}"), None);
    inventory.plug(&disk("")).unwrap();
    assert!(
        inventory
            .remove_io_thread("a")
            .unwrap_err()
            .to_string()
            .contains("in use")
    );
    inventory.remove_io_thread("b").unwrap();
    assert!(inventory.remove_io_thread("b").is_err());
    let names: Vec<_> = inventory
        .io_threads()
        .iter()
        .map(|thread| thread.name().to_owned())
        .collect();
    assert_eq!(names, ["a"]);
    inventory.clear();
    inventory.remove_io_thread("a").unwrap();
    assert!(inventory.plug(&disk("")).is_err(), "there is no such thread any more");
}

#[test]
fn clearing_takes_devices_off_the_bus() {
    let inventory = inventory();
    inventory.plug(&rng("id=a")).unwrap();
    inventory.clear();
    assert!(inventory.list().is_empty());
    assert_eq!(
        inventory.board().pci().first_free_slot(host::FIRST_DEVICE_SLOT),
        Some(2)
    );
    inventory.plug(&rng("id=a,addr=2")).unwrap();
}
