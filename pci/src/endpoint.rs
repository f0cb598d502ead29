//! What every function has: configuration space with its command register, BARs, capabilities, MSI-X and INTx#. A
//! device wraps an [`Endpoint`] and adds what its BARs hold.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bar::{Bar, BarError, Bars};
use crate::capability::msix::{MESSAGE_CONTROL, Msix, MsixLayout, MsixState, MsixStateError};
use crate::capability::{Capability, CapabilityError};
use crate::config_space::{ConfigSpace, ConfigState, ConfigStateError, Header, command, register, status};
use crate::function::{Change, Changes, Region};
use crate::intx::Intx;

/// What a function consists of.
#[derive(Clone, Debug, Default)]
pub struct EndpointLayout {
    /// The read-only part of the header.
    pub header: Header,
    /// BARs.
    pub bars: Vec<Bar>,
    /// MSI-X, whose capability heads the chain.
    pub msix: Option<MsixLayout>,
    /// The other capabilities, in the order in which the guest finds them.
    pub capabilities: Vec<Capability>,
}

/// Why there can be no such function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// A BAR is impossible
    #[error(transparent)]
    Bar(#[from] BarError),
    /// A capability is misplaced
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// The MSI-X table or its pending bits don't fit into their BAR
    #[error("MSI-X: table or pending bits don't fit into BAR {0}")]
    Msix(u8),
}

/// The changeable part of an endpoint, in a form to save.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointState {
    config: ConfigState,
    msix: Option<MsixState>,
    intx_wanted: bool,
}

/// Why a saved state can't be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EndpointStateError {
    /// The saved configuration space is not one
    #[error(transparent)]
    Config(#[from] ConfigStateError),
    /// The saved MSI-X table has another size
    #[error(transparent)]
    Msix(#[from] MsixStateError),
    /// One of the two has MSI-X and the other has not
    #[error("only one of the saved function and this one has MSI-X")]
    MsixPresence,
}

/// The part of a function that is the same for every device.
pub struct Endpoint {
    config: ConfigSpace,
    bars: Bars,
    msix: Option<Msix>,
    intx: Arc<Intx>,
    decoded: Vec<Region>,
}

impl Endpoint {
    /// A function in the state after reset.
    ///
    /// # Errors
    /// The parts don't fit together.
    pub fn new(layout: EndpointLayout) -> Result<Self, LayoutError> {
        let EndpointLayout {
            header,
            bars,
            msix,
            capabilities,
        } = layout;
        let chain: Vec<_> = msix.iter().map(MsixLayout::capability).chain(capabilities).collect();
        let mut config = ConfigSpace::type0(&header).with_capabilities(&chain)?;
        let bars = Bars::new(bars, &mut config)?;
        if let Some(msix) = msix {
            let bar_size = bars.get(msix.bar).map_or(0, Bar::size);
            if !msix.fits(bar_size) {
                return Err(LayoutError::Msix(msix.bar));
            }
        }
        let (msix, intx) = (msix.map(Msix::new), Arc::new(Intx::new()));
        Ok(Self {
            config,
            bars,
            msix,
            intx,
            decoded: Vec::new(),
        })
    }

    /// A function with a header and nothing else: no BARs, no capabilities.
    pub fn plain(header: &Header) -> Self {
        Self {
            config: ConfigSpace::type0(header),
            bars: Bars::default(),
            msix: None,
            intx: Arc::new(Intx::new()),
            decoded: Vec::new(),
        }
    }

    /// The registers as they are now.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// The registers, for a device that sets some by itself. What the command register, BARs and message control
    /// bring about follows only [`write_config`](Self::write_config).
    pub fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    /// The BARs.
    pub fn bars(&self) -> &Bars {
        &self.bars
    }

    /// MSI-X, if the function has it.
    pub fn msix(&self) -> Option<&Msix> {
        self.msix.as_ref()
    }

    /// MSI-X, if the function has it.
    pub fn msix_mut(&mut self) -> Option<&mut Msix> {
        self.msix.as_mut()
    }

    /// Whether MSI-X is there and on.
    pub fn msix_enabled(&self) -> bool {
        self.msix.as_ref().is_some_and(Msix::enabled)
    }

    /// INTx#, to be shared with whoever raises it.
    pub fn intx(&self) -> &Arc<Intx> {
        &self.intx
    }

    /// Whether the function may access memory and send messages by itself: Bus Master of the command register.
    pub fn bus_master(&self) -> bool {
        self.config.read_u16(register::COMMAND) & command::MASTER != 0
    }

    /// Reads configuration space, for [`Function::read_config`](crate::Function::read_config).
    pub fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
        let status = register::STATUS.checked_sub(offset).map(usize::from);
        if let Some(low) = status.and_then(|at| data.get_mut(at)) {
            *low |= if self.intx.wanted() { status::INTERRUPT as u8 } else { 0 };
        }
    }

    /// Writes configuration space, for [`Function::write_config`](crate::Function::write_config).
    pub fn write_config(&mut self, offset: u16, data: &[u8]) -> Changes {
        self.config.write(offset, data);
        self.follow_config()
    }

    /// The regions decoded now, for [`Function::regions`](crate::Function::regions).
    pub fn regions(&self) -> &[Region] {
        &self.decoded
    }

    /// Reads MSI-X table or pending bits; `false` when `bar` is not theirs and `data` is as it was.
    pub fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        let msix = self.msix.as_ref().filter(|msix| msix.layout().bar == bar);
        msix.map(|msix| msix.read(offset, data)).is_some()
    }

    /// Writes the MSI-X table; `None` when `bar` is not its.
    pub fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<Changes> {
        let msix = self.msix.as_mut().filter(|msix| msix.layout().bar == bar);
        msix.map(|msix| msix.write(offset, data))
    }

    /// The state after reset, for [`Function::reset`](crate::Function::reset).
    pub fn reset(&mut self) -> Changes {
        self.config.reset();
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
        self.intx.set(false);
        self.follow_config()
    }

    /// What it holds now.
    pub fn state(&self) -> EndpointState {
        EndpointState {
            config: self.config.state(),
            msix: self.msix.as_ref().map(Msix::state),
            intx_wanted: self.intx.wanted(),
        }
    }

    /// Takes back what [`state`](Self::state) gave, and says what that changed outside.
    ///
    /// # Errors
    /// The state is of a function with another layout; nothing has changed then.
    pub fn restore(&mut self, state: &EndpointState) -> Result<Changes, EndpointStateError> {
        let mut config = self.config.clone();
        config.restore(&state.config)?;
        match (&mut self.msix, &state.msix) {
            (Some(msix), Some(saved)) => msix.restore(saved)?,
            (None, None) => {}
            _ => return Err(EndpointStateError::MsixPresence),
        }
        self.config = config;
        let changes = self.follow_config();
        self.intx.set(state.intx_wanted);
        Ok(changes)
    }

    /// Lets decode, MSI-X and INTx# follow the registers; says what changed.
    fn follow_config(&mut self) -> Changes {
        let mut changes = self.follow_bars();
        if let Some(msix) = &mut self.msix {
            let control = u16::from(msix.layout().offset) + MESSAGE_CONTROL;
            changes.extend(msix.set_control(self.config.read_u16(control)));
            if msix.enabled() {
                self.intx.set(false);
            }
        }
        let disabled = self.config.read_u16(register::COMMAND) & command::INTX_DISABLE != 0;
        if disabled != self.intx.disabled() {
            self.intx.set_disabled(disabled);
            changes.push(Change::IntxDisabled(disabled));
        }
        changes
    }

    /// What is no longer decoded, then what is decoded newly.
    fn follow_bars(&mut self) -> Changes {
        let before = std::mem::take(&mut self.decoded);
        self.decoded = self.bars.regions(&self.config);
        let gone = before.iter().filter(|region| !self.decoded.contains(region));
        let new = self.decoded.iter().filter(|region| !before.contains(region));
        gone.copied()
            .map(Change::Unmapped)
            .chain(new.copied().map(Change::Mapped))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bar::BarKind;
    use crate::function::Space;

    const MSIX: MsixLayout = MsixLayout::exclusive(0x98, 1, 4);

    fn network_card() -> Endpoint {
        let bars = vec![
            Bar::new(0, BarKind::Io, 0x20).unwrap(),
            Bar::new(1, BarKind::Memory32 { prefetchable: false }, 0x1000).unwrap(),
            Bar::new(4, BarKind::Memory64 { prefetchable: true }, 0x4000).unwrap(),
        ];
        let header = Header {
            vendor: 0x1af4,
            device: 0x1000,
            class: 0x0200,
            ..Header::default()
        };
        Endpoint::new(EndpointLayout {
            header,
            bars,
            msix: Some(MSIX),
            ..Default::default()
        })
        .unwrap()
    }

    fn ports(base: u64) -> Region {
        Region {
            bar: 0,
            space: Space::Io,
            base,
            size: 0x20,
        }
    }

    fn word(endpoint: &Endpoint, offset: u16) -> u16 {
        let mut data = [0; 2];
        endpoint.read_config(offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn decode_changes_are_returned_once_each() {
        let mut card = network_card();
        assert_eq!(card.write_config(0x10, &[0x40, 0xc1]), []);
        assert_eq!(card.write_config(0x04, &[3]), [Change::Mapped(ports(0xc140))]);
        assert_eq!(card.write_config(0x04, &[3]), []);
        let moved = [Change::Unmapped(ports(0xc140)), Change::Mapped(ports(0xc240))];
        assert_eq!(card.write_config(0x11, &[0xc2]), moved);
        assert_eq!(card.regions(), [ports(0xc240)]);
        assert_eq!(card.reset(), [Change::Unmapped(ports(0xc240))]);
    }

    #[test]
    fn one_write_of_bar_and_command_changes_only_what_moves() {
        let mut card = network_card();
        card.write_config(0x14, &0xfebf_a000u32.to_le_bytes());
        card.write_config(0x10, &0xc140u32.to_le_bytes());
        card.write_config(0x04, &[3]);
        assert_eq!(card.write_config(0x04, &[2]), [Change::Unmapped(ports(0xc140))]);
    }

    #[test]
    fn switching_msix_on_is_returned_and_lowers_intx() {
        let mut card = network_card();
        card.intx().set(true);
        assert_eq!(word(&card, register::STATUS), 0x0018);
        let on = Change::MsixControl {
            enabled: true,
            masked: false,
        };
        assert_eq!(card.write_config(0x9a, &[0xff, 0xbf]), [on]);
        assert!(card.msix_enabled() && !card.intx().level());
        assert_eq!(word(&card, 0x9a), 0x8003, "the table size is read-only");
        assert_eq!(word(&card, register::STATUS), 0x0010);
        let off = Change::MsixControl {
            enabled: false,
            masked: false,
        };
        assert_eq!(card.reset(), [off]);
    }

    #[test]
    fn interrupt_disable_holds_intx_back_but_status_shows_it() {
        let mut card = network_card();
        card.intx().set(true);
        assert_eq!(card.write_config(0x04, &[0, 4]), [Change::IntxDisabled(true)]);
        assert!(!card.intx().level());
        assert_eq!(word(&card, register::STATUS) & status::INTERRUPT, status::INTERRUPT);
        assert_eq!(card.write_config(0x05, &[0]), [Change::IntxDisabled(false)]);
        assert!(card.intx().level());
        card.reset();
        assert!(!card.intx().level());
    }

    #[test]
    fn only_the_msix_bar_is_served() {
        let mut card = network_card();
        let mut data = [0xaa; 4];
        assert!(!card.read_bar(4, 0x0c, &mut data));
        assert_eq!(data, [0xaa; 4]);
        assert!(card.read_bar(1, 0x0c, &mut data));
        assert_eq!(data, [1, 0, 0, 0]);
        assert_eq!(card.write_bar(0, 0, &[1; 4]), None);
        assert_eq!(card.write_bar(1, 0, &[1; 4]), Some(vec![Change::MsixVector(0)]));
    }

    #[test]
    fn state_comes_back_with_its_effects() {
        let mut card = network_card();
        card.write_config(0x10, &0xc140u32.to_le_bytes());
        card.write_config(0x04, &[5]);
        card.write_bar(1, 8, &7u32.to_le_bytes());
        card.intx().set(true);
        let mut copy = network_card();
        assert_eq!(copy.restore(&card.state()), Ok(vec![Change::Mapped(ports(0xc140))]));
        assert!(copy.intx().level() && copy.bus_master());
        assert_eq!(copy.state(), card.state());
    }

    #[test]
    fn msix_table_outside_its_bar_is_refused() {
        let layout = EndpointLayout {
            msix: Some(MSIX),
            ..Default::default()
        };
        assert_eq!(Endpoint::new(layout).err(), Some(LayoutError::Msix(1)));
    }
}
