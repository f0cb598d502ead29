//! A function for tests: BARs of the three kinds that hold what is written to them.
#![allow(clippy::unwrap_used)]

use crate::address::Address;
use crate::bar::{Bar, BarKind};
use crate::capability::msix::MsixLayout;
use crate::config_space::Header;
use crate::endpoint::{Endpoint, EndpointLayout};
use crate::function::{Changes, Function, Region};
use crate::intx::Pin;

/// Function 0 of `slot`.
pub(crate) fn address(slot: u8) -> Address {
    Address::new(0, slot, 0).unwrap()
}

/// A function with the BARs of a transitional virtio device.
pub(crate) struct Scratch {
    endpoint: Endpoint,
    held: Vec<u8>,
}

impl Scratch {
    /// With 32 ports and MSI-X.
    pub(crate) fn new(device: u8) -> Self {
        Self::with_bars(device, Some(0x20), true)
    }

    /// With `ports` ports in BAR 0, MSI-X in BAR 1 if `msix`, 16 KiB of 64-bit prefetchable memory in BAR 4.
    pub(crate) fn with_bars(device: u8, ports: Option<u64>, msix: bool) -> Self {
        let msix = msix.then_some(MsixLayout::exclusive(0x98, 1, 4));
        let mut bars: Vec<_> = ports
            .iter()
            .map(|ports| Bar::new(0, BarKind::Io, *ports).unwrap())
            .collect();
        let table =
            |msix: &MsixLayout| Bar::new(1, BarKind::Memory32 { prefetchable: false }, msix.bar_size()).unwrap();
        bars.extend(msix.iter().map(table));
        bars.push(Bar::new(4, BarKind::Memory64 { prefetchable: true }, 0x4000).unwrap());
        let header = Header {
            vendor: 0x1af4,
            device: 0x1000 + u16::from(device),
            class: 0x0200,
            pin: Some(Pin::A),
            ..Header::default()
        };
        Self::of(EndpointLayout {
            header,
            bars,
            msix,
            ..Default::default()
        })
    }

    /// As `layout` says.
    pub(crate) fn of(layout: EndpointLayout) -> Self {
        Self {
            endpoint: Endpoint::new(layout).unwrap(),
            held: vec![0; 0x4000],
        }
    }
}

impl Function for Scratch {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.endpoint.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Changes {
        self.endpoint.write_config(offset, data)
    }

    fn regions(&self) -> Vec<Region> {
        self.endpoint.regions().to_vec()
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Changes {
        if !self.endpoint.read_bar(bar, offset, data) {
            let at = offset as usize;
            data.copy_from_slice(&self.held[at..at + data.len()]);
        }
        Changes::new()
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Changes {
        self.endpoint.write_bar(bar, offset, data).unwrap_or_else(|| {
            let at = offset as usize;
            self.held[at..at + data.len()].copy_from_slice(data);
            Changes::new()
        })
    }

    fn reset(&mut self) -> Changes {
        self.endpoint.reset()
    }
}
