//! INTx, MSI-X, and what stands between them and the device.

use pci::{Change, InterruptLine};

use super::*;

/// Vector control, address and data of a vector as Linux writes them; ends unmasked.
fn set_up_vector(bench: &mut Bench, vector: u64) {
    let entry = 16 * vector;
    bench.write(1, entry, 4, 0xfee0_0000);
    bench.write(1, entry + 4, 4, 0);
    bench.write(1, entry + 8, 4, 0x4020 + vector);
    bench.write(1, entry + 12, 4, 0);
}

/// A running device with MSI-X: configuration on vector 0, queue 0 on 1, queue 1 on none.
fn with_msix() -> Bench {
    let mut bench = Bench::new();
    bench.set_config(0x9a, 2, 0x8000);
    (0..3).for_each(|vector| set_up_vector(&mut bench, vector));
    bench.bring_up();
    bench.set_modern(common::CONFIG_VECTOR, 2, 0);
    bench.set_modern(common::QUEUE_SELECT, 2, 0);
    bench.set_modern(common::QUEUE_VECTOR, 2, 1);
    bench
}

#[derive(Default)]
struct Wire(AtomicBool);

impl InterruptLine for Wire {
    fn set_level(&self, asserted: bool) {
        self.0.store(asserted, Ordering::Relaxed);
    }
}

#[test]
fn the_line_is_up_until_isr_is_read_and_shows_in_the_status_register() {
    for isr_by_port in [false, true] {
        let mut bench = Bench::new();
        let wire = Arc::new(Wire::default());
        bench.pci.connect_intx(wire.clone());
        bench.bring_up();
        bench.signal_queue(1);
        assert!(wire.0.load(Ordering::Relaxed));
        assert_eq!(bench.config(0x06, 2), 0x0018);
        if isr_by_port {
            bench.port(port::ISR, 1)
        } else {
            bench.modern(common::ISR, 1)
        };
        assert!(!wire.0.load(Ordering::Relaxed));
        assert_eq!(bench.config(0x06, 2), 0x0010);
    }
}

#[test]
fn an_interrupt_that_is_never_acknowledged_goes_with_the_reset() {
    let mut bench = Bench::new();
    let wire = Arc::new(Wire::default());
    bench.pci.connect_intx(wire.clone());
    bench.bring_up();
    (0..1000).for_each(|_| bench.signal_queue(0));
    bench.set_status(0);
    assert!(!wire.0.load(Ordering::Relaxed));
    assert_eq!(bench.modern(common::ISR, 1), 0);
}

#[test]
fn messages_go_to_the_vectors_that_the_driver_chose() {
    let bench = with_msix();
    bench.signal_queue(0);
    bench.signal_queue(1);
    bench.signal_config();
    assert_eq!(bench.sent(), [1, 0]);
    let message = bench.pci.msix_vector(1).unwrap();
    assert_eq!(
        (message.address, message.data, message.masked),
        (0xfee0_0000, 0x4021, false)
    );
}

#[test]
fn a_masked_vector_shows_in_the_pending_bits_and_goes_when_unmasked() {
    let mut bench = with_msix();
    assert_eq!(bench.write(1, 16 + 12, 4, 1), [Change::MsixVector(1)]);
    bench.signal_queue(0);
    assert_eq!((bench.sent(), bench.read(1, 0x800, 8)), (vec![], 2));
    bench.write(1, 0x800, 8, 0);
    assert_eq!(bench.read(1, 0x800, 4), 2, "read-only");
    assert_eq!(bench.write(1, 16 + 12, 4, 0), [Change::MsixVector(1)]);
    assert_eq!((bench.sent(), bench.read(1, 0x800, 8)), (vec![1], 0));
}

#[test]
fn the_function_mask_holds_every_message_back() {
    let mut bench = with_msix();
    let masked = Change::MsixControl {
        enabled: true,
        masked: true,
    };
    assert_eq!(bench.set_config(0x9a, 2, 0xc000), [masked]);
    bench.signal_queue(0);
    bench.signal_config();
    assert_eq!((bench.sent(), bench.read(1, 0x800, 8)), (vec![], 3));
    bench.set_config(0x9a, 2, 0x8000);
    assert_eq!(bench.sent(), [0, 1]);
}

#[test]
fn without_msix_enable_the_line_is_used() {
    let mut bench = with_msix();
    bench.set_config(0x9a, 2, 0);
    bench.signal_queue(0);
    assert_eq!((bench.sent(), bench.config(0x06, 2)), (vec![], 0x0018));
    bench.set_config(0x9a, 2, 0x8000);
    assert_eq!(bench.config(0x06, 2), 0x0010, "the line is off while MSI-X is on");
}

#[test]
fn table_accesses_of_odd_widths_do_no_harm() {
    let mut bench = with_msix();
    for (offset, len) in [(16, 1), (17, 2), (18, 4), (0x30, 8), (0x7f8, 8), (0xffc, 8), (0xfff, 1)] {
        bench.write(1, offset, len, 0);
        bench.read(1, offset, len);
    }
    assert_eq!(bench.pci.msix_vector(1).unwrap().address, 0xfee0_0000);
    bench.write(1, 16, 8, 0x1_fee1_0000);
    assert_eq!(bench.pci.msix_vector(1).unwrap().address, 0x1_fee1_0000);
}

#[test]
fn a_vector_that_was_taken_away_is_silent() {
    let mut bench = with_msix();
    bench.set_modern(common::QUEUE_VECTOR, 2, 0xffff);
    bench.signal_queue(0);
    assert_eq!((bench.sent(), bench.rules()), (vec![], vec![]));
}

#[test]
fn a_queue_that_is_reset_loses_its_vector() {
    let mut bench = with_msix();
    bench.set_modern(common::QUEUE_RESET, 2, 1);
    bench.set_up_queue(0, 0x1_0000);
    bench.signal_queue(0);
    assert!(bench.sent().is_empty());
}

#[test]
fn reset_takes_vectors_away_on_both_faces() {
    let mut bench = with_msix();
    bench.set_status(0);
    assert_eq!(
        (
            bench.modern(common::CONFIG_VECTOR, 2),
            bench.modern(common::QUEUE_VECTOR, 2)
        ),
        (0xffff, 0xffff)
    );
    assert_eq!((bench.port(0x14, 2), bench.port(0x16, 2)), (0xffff, 0xffff));
}
