//! What can be there several times.

use devices::virtio::options::{ConfigError, Pairs};

use crate::qemu::keyval;

/// Kinds of things that can be there several times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Group {
    Blockdev,
    Chardev,
    Device,
    Drive,
    Mon,
    Netdev,
    Nic,
    Numa,
    Object,
}

impl Group {
    const ALL: [Self; 9] = [
        Self::Blockdev,
        Self::Chardev,
        Self::Device,
        Self::Drive,
        Self::Mon,
        Self::Netdev,
        Self::Nic,
        Self::Numa,
        Self::Object,
    ];

    /// The option without its dash, which is also the section of a configuration file and the first word of a `-set`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blockdev => "blockdev",
            Self::Chardev => "chardev",
            Self::Device => "device",
            Self::Drive => "drive",
            Self::Mon => "mon",
            Self::Netdev => "netdev",
            Self::Nic => "nic",
            Self::Numa => "numa",
            Self::Object => "object",
        }
    }

    /// The key that a first value without one belongs to.
    fn implied(self) -> Option<&'static str> {
        match self {
            Self::Blockdev | Self::Device => Some("driver"),
            Self::Chardev => Some("backend"),
            Self::Drive => None,
            Self::Mon => Some("chardev"),
            Self::Netdev | Self::Nic | Self::Numa => Some("type"),
            Self::Object => Some("qom-type"),
        }
    }

    /// The group of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.name() == name)
    }

    fn takes_json(self) -> bool {
        matches!(self, Self::Blockdev | Self::Device | Self::Netdev | Self::Object)
    }

    /// Its options in a text.
    ///
    /// # Errors
    /// JSON that is none.
    pub fn parse(self, text: &str) -> Result<Pairs, ConfigError> {
        if self.takes_json() {
            keyval::parse(&format!("-{}", self.name()), text, self.implied())
        } else {
            Ok(Pairs::parse(text, self.implied()))
        }
    }
}
