//! Virtio device ids: every kind of device that the specification or Linux names.

#![forbid(unsafe_code)]

use std::fmt;

/// PCI vendor id of virtio devices (virtio 1.3, 4.1.2).
pub const PCI_VENDOR: u16 = 0x1af4;

/// A modern device's PCI device id is this plus its virtio id (virtio 1.3, 4.1.2).
pub const PCI_MODERN_BASE: u16 = 0x1040;

/// Declares [`DeviceId`] from one row a device.
macro_rules! device_ids {
    ($($variant:ident = $id:literal, $name:literal;)*) => {
        /// A kind of virtio device: virtio 1.3, section 5, and Linux's
        /// include/uapi/linux/virtio_ids.h.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum DeviceId {
            $(
                #[doc = concat!("Id ", $id, ": ", $name, ".")]
                $variant = $id,
            )*
        }

        impl DeviceId {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// What the specification calls it, in lower case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The kind of device that has this number.
            pub fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($id => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

device_ids! {
    Network = 1, "network card";
    Block = 2, "block device";
    Console = 3, "console";
    Entropy = 4, "entropy source";
    Balloon = 5, "memory ballooning (traditional)";
    IoMemory = 6, "I/O memory";
    Rpmsg = 7, "rpmsg";
    Scsi = 8, "SCSI host";
    NineP = 9, "9P transport";
    MacWlan = 10, "mac80211 wlan";
    RprocSerial = 11, "rproc serial";
    Caif = 12, "virtio CAIF";
    MemoryBalloon = 13, "memory balloon";
    Gpu = 16, "GPU device";
    Clock = 17, "timer/clock device";
    Input = 18, "input device";
    Vsock = 19, "socket device";
    Crypto = 20, "crypto device";
    SignalDistribution = 21, "signal distribution module";
    Pstore = 22, "pstore device";
    Iommu = 23, "IOMMU device";
    Memory = 24, "memory device";
    Sound = 25, "audio device";
    FileSystem = 26, "file system device";
    Pmem = 27, "persistent memory device";
    Rpmb = 28, "replay protected memory block";
    MacWlanHwsim = 29, "mac80211 hwsim wireless simulation";
    VideoEncoder = 30, "video encoder device";
    VideoDecoder = 31, "video decoder device";
    Scmi = 32, "ARM SCMI device";
    NitroSecurityModule = 33, "Nitro secure module";
    I2c = 34, "I2C adapter";
    Watchdog = 35, "watchdog";
    Can = 36, "CAN device";
    Dmabuf = 37, "DMA buffer sharing";
    ParameterServer = 38, "parameter server";
    AudioPolicy = 39, "audio policy device";
    Bluetooth = 40, "bluetooth device";
    Gpio = 41, "GPIO device";
    Rdma = 42, "RDMA device";
    Camera = 43, "camera device";
    Ism = 44, "ISM device";
    Spi = 45, "SPI controller";
    Tee = 46, "TEE device";
    CpuBalloon = 47, "CPU balloon device";
    Media = 48, "media device";
    Usb = 49, "USB controller";
}

impl DeviceId {
    /// The number.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The PCI device id of a modern-only function.
    pub fn modern_pci_id(self) -> u16 {
        PCI_MODERN_BASE + self.number()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_devices_map_both_ways() {
        for id in DeviceId::ALL {
            assert_eq!(DeviceId::from_number(id.number()), Some(*id));
        }
        for unnamed in [0, 14, 15, 50, u16::MAX] {
            assert_eq!(DeviceId::from_number(unnamed), None);
        }
    }

    #[test]
    fn numbers_are_those_of_linux() {
        let known = [
            (DeviceId::Network, 1),
            (DeviceId::Rpmsg, 7),
            (DeviceId::NineP, 9),
            (DeviceId::Caif, 12),
            (DeviceId::Gpu, 16),
            (DeviceId::Vsock, 19),
            (DeviceId::FileSystem, 26),
            (DeviceId::Bluetooth, 40),
            (DeviceId::Spi, 45),
        ];
        assert!(known.iter().all(|(id, number)| id.number() == *number));
        assert_eq!(DeviceId::Iommu.modern_pci_id(), 0x1057);
    }
}
