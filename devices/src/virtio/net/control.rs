//! The control queue: commands of the driver. Virtio 1.3, 5.1.6.5; answers as in QEMU
//! (hw/net/virtio-net.c, `virtio_net_handle_ctrl_iov`).
//!
//! Every command that can be answered is: what is unknown, too short or out of range with
//! VIRTIO_NET_ERR. A chain without a header, or without room for the answer, comes back empty.

#![forbid(unsafe_code)]

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI, VIRTIO_NET_CTRL_RX_NOUNI,
    VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, VIRTIO_NET_CTRL_VLAN_DEL,
    VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_OK,
};
use vm_memory::{Le16, Le32, Le64};

use super::card::Card;
use super::config::GUEST_OFFLOADS;
use super::filter::{AddressList, Filter, TABLE_ENTRIES};
use super::mac::{MAC_BYTES, MacAddress};
use crate::io_thread::{Source, Worker};
use crate::virtio::device::QueueStart;
use crate::virtio::virtq::{Chain, GuestFault, QueueState, Reader, Severity};

/// A command that cannot be carried out; the driver gets VIRTIO_NET_ERR.
struct Refused;

impl From<GuestFault> for Refused {
    /// The command is shorter than its kind.
    fn from(_: GuestFault) -> Self {
        Self
    }
}

/// Carries out the command in `command`, class and number first.
fn carry_out(card: &Card, mut command: Reader<'_>) -> Result<(), Refused> {
    let [class, number] = command.read_obj::<[u8; 2]>()?.map(u32::from);
    match class {
        VIRTIO_NET_CTRL_RX | VIRTIO_NET_CTRL_MAC | VIRTIO_NET_CTRL_VLAN => {
            match class {
                VIRTIO_NET_CTRL_RX => set_mode(card, number, command),
                VIRTIO_NET_CTRL_MAC => set_addresses(card, number, command),
                _ => set_vlan(card, number, command),
            }?;
            card.filter_changed();
            Ok(())
        }
        VIRTIO_NET_CTRL_ANNOUNCE => match number {
            VIRTIO_NET_CTRL_ANNOUNCE_ACK if card.announced() => Ok(()),
            _ => Err(Refused),
        },
        VIRTIO_NET_CTRL_MQ => set_pairs(card, number, command),
        VIRTIO_NET_CTRL_GUEST_OFFLOADS => set_offloads(card, number, command),
        _ => Err(Refused),
    }
}

fn set_mode(card: &Card, number: u32, mut command: Reader<'_>) -> Result<(), Refused> {
    let on = command.read_obj::<u8>()? != 0;
    card.filter.change(|Filter { modes, .. }| {
        let mode = match number {
            VIRTIO_NET_CTRL_RX_PROMISC => &mut modes.promisc,
            VIRTIO_NET_CTRL_RX_ALLMULTI => &mut modes.allmulti,
            VIRTIO_NET_CTRL_RX_ALLUNI => &mut modes.alluni,
            VIRTIO_NET_CTRL_RX_NOMULTI => &mut modes.nomulti,
            VIRTIO_NET_CTRL_RX_NOUNI => &mut modes.nouni,
            VIRTIO_NET_CTRL_RX_NOBCAST => &mut modes.nobcast,
            _ => return Err(Refused),
        };
        *mode = on;
        Ok(())
    })
}

fn set_addresses(card: &Card, number: u32, mut command: Reader<'_>) -> Result<(), Refused> {
    match number {
        VIRTIO_NET_CTRL_MAC_ADDR_SET if command.remaining() == MAC_BYTES => {
            card.set_mac(MacAddress(command.read_obj()?));
            Ok(())
        }
        VIRTIO_NET_CTRL_MAC_TABLE_SET => {
            let unicast = read_addresses(&mut command, TABLE_ENTRIES)?;
            let left = TABLE_ENTRIES.saturating_sub(unicast.addresses.len());
            let multicast = read_addresses(&mut command, left)?;
            if command.remaining() > 0 {
                return Err(Refused);
            }
            card.filter.change(|filter| {
                (filter.unicast, filter.multicast) = (unicast, multicast);
            });
            Ok(())
        }
        _ => Err(Refused),
    }
}

/// A list with its length in front. Of one with more than `max` addresses only that is kept.
fn read_addresses(command: &mut Reader<'_>, max: usize) -> Result<AddressList, Refused> {
    let entries = u32::from(command.read_obj::<Le32>()?) as usize;
    if entries > max {
        let bytes = entries.checked_mul(MAC_BYTES).ok_or(Refused)?;
        command.skip(bytes)?;
        return Ok(AddressList {
            addresses: Vec::new(),
            overflow: true,
        });
    }
    let addresses = (0..entries).map(|_| Ok(MacAddress(command.read_obj()?)));
    Ok(AddressList {
        addresses: addresses.collect::<Result<_, Refused>>()?,
        overflow: false,
    })
}

fn set_vlan(card: &Card, number: u32, mut command: Reader<'_>) -> Result<(), Refused> {
    let id = command.read_obj::<Le16>()?.into();
    let member = match number {
        VIRTIO_NET_CTRL_VLAN_ADD => true,
        VIRTIO_NET_CTRL_VLAN_DEL => false,
        _ => return Err(Refused),
    };
    let known = card.filter.change(|filter| filter.vlans.set(id, member));
    known.then_some(()).ok_or(Refused)
}

fn set_pairs(card: &Card, number: u32, mut command: Reader<'_>) -> Result<(), Refused> {
    const LEGAL: std::ops::RangeInclusive<u32> = VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN..=VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX;
    if number != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || !card.is_multiqueue() {
        return Err(Refused);
    }
    let pairs = u16::from(command.read_obj::<Le16>()?);
    if !LEGAL.contains(&pairs.into()) || pairs > card.pairs() {
        return Err(Refused);
    }
    card.set_active_pairs(pairs);
    Ok(())
}

fn set_offloads(card: &Card, number: u32, mut command: Reader<'_>) -> Result<(), Refused> {
    let negotiated = card.negotiated();
    let known = negotiated.has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) && number == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET;
    let bits = u64::from(command.read_obj::<Le64>()?);
    let accepted = negotiated.features & GUEST_OFFLOADS;
    if !known || !card.capabilities().vnet_header || bits & !accepted != 0 {
        return Err(Refused);
    }
    card.set_offloads(bits).then_some(()).ok_or(Refused)
}

/// Serves one chain. Returns the bytes written, or why there is no answer.
fn serve(card: &Card, chain: &Chain) -> Result<u32, GuestFault> {
    let command = chain.reader();
    // Nothing is done that cannot be answered.
    command.clone().skip(2)?;
    chain.writer().skip(1)?;
    let answer = match carry_out(card, command) {
        Ok(()) => VIRTIO_NET_OK,
        Err(Refused) => VIRTIO_NET_ERR,
    };
    let mut writer = chain.writer();
    writer.write_all(&[answer as u8])?;
    Ok(writer.written())
}

/// The control queue on its I/O thread.
pub(super) struct Controller {
    card: Arc<Card>,
    queue: QueueStart,
}

impl Controller {
    pub(super) fn new(card: Arc<Card>, queue: QueueStart) -> Self {
        Self { card, queue }
    }

    /// How far the queue has come.
    pub(super) fn into_state(self) -> QueueState {
        self.queue.ring.stop()
    }

    fn report(&self, fault: &GuestFault) {
        let rule = fault.rule();
        self.card
            .report_fault(format_args!("control queue: the driver broke {rule}: {fault}"));
        if fault.severity() == Severity::Ring {
            self.queue.interrupt.broken();
        }
    }
}

impl Worker for Controller {
    fn sources(&self) -> Vec<Source> {
        vec![Source::input(&self.queue.kick, 0)]
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self, _token: u32) {
        self.poll();
    }

    /// Serves as many commands as the queue can hold, and no more, however fast the driver posts
    /// them.
    fn poll(&mut self) -> bool {
        if !self.queue.ring.has_available() {
            return false;
        }
        self.queue.ring.disable_notify();
        for _ in 0..self.queue.ring.size() {
            match self.queue.ring.pop() {
                Ok(Some(chain)) => {
                    let written = serve(&self.card, &chain).unwrap_or_else(|fault| {
                        self.report(&fault);
                        0
                    });
                    self.queue.ring.push(chain, written);
                }
                Ok(None) => break,
                Err(fault) => self.report(&fault),
            }
        }
        if self.queue.ring.publish() {
            self.queue.interrupt.signal();
        }
        true
    }

    fn before_sleep(&mut self) -> bool {
        self.queue.ring.enable_notify()
    }

    fn panicked(&mut self) {
        self.queue.interrupt.broken();
    }
}
