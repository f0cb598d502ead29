//! What each register does when it is read or written.

#![forbid(unsafe_code)]

use super::fault::TransportFault;
use super::registers::{Access, Face, Piece, Register, RegisterSpec, find};
use super::state::State;
use crate::virtio::virtq::{NO_VECTOR, RingPart, check_size};

impl State {
    /// Reads the register of `block` that begins at `offset`; `absent` where there is none.
    pub(super) fn read_block(
        &mut self,
        face: Face,
        block: &[RegisterSpec],
        piece: &Piece,
        offset: u64,
        absent: u32,
    ) -> u32 {
        let Some(spec) = find(block, offset) else {
            self.fault(not_a_register(face, offset, piece.len));
            return absent;
        };
        if spec.width != piece.len {
            self.fault(not_a_register(face, offset, piece.len));
        }
        match spec.access {
            Access::Write => absent,
            Access::Read | Access::ReadWrite => self.read(spec.register),
        }
    }

    /// Writes the register of `block` that begins at `offset`; ignored where there is none.
    pub(super) fn write_block(&mut self, face: Face, block: &[RegisterSpec], piece: &Piece, offset: u64, value: u32) {
        let spec = find(block, offset);
        if spec.is_none_or(|spec| spec.width != piece.len) {
            self.fault(not_a_register(face, offset, piece.len));
        }
        match spec.map(|spec| (spec.access, spec.register)) {
            Some((Access::Read, register)) => self.fault(TransportFault::ReadOnly { register }),
            Some((_, register)) => self.write(face, register, value),
            None => {}
        }
    }

    fn read(&self, register: Register) -> u32 {
        let registers = self.registers();
        let queue = self.selected();
        let address = |part| queue.map_or(0, |queue| queue.address(part));
        match register {
            Register::LegacyDeviceFeatures => self.offered().legacy,
            Register::LegacyDriverFeatures => self.negotiated().features as u32,
            Register::QueuePfn => queue.map_or(0, |queue| queue.legacy_pfn()),
            Register::Isr => self.interrupts().take_isr().into(),
            Register::DeviceFeatureSelect => registers.device_feature_select,
            Register::DeviceFeature => word(self.offered().modern, registers.device_feature_select),
            Register::DriverFeatureSelect => registers.driver_feature_select,
            Register::DriverFeature => word(registers.driver_features, registers.driver_feature_select),
            Register::NumQueues => self.visible_queues().into(),
            Register::ConfigGeneration => self.interrupts().generation().into(),
            Register::QueueEnable => queue.is_some_and(|queue| queue.enabled).into(),
            Register::QueueNotifyOff => registers.queue_select.into(),
            Register::QueueDescLow => address(RingPart::Descriptors) as u32,
            Register::QueueDescHigh => (address(RingPart::Descriptors) >> 32) as u32,
            Register::QueueDriverLow => address(RingPart::Available) as u32,
            Register::QueueDriverHigh => (address(RingPart::Available) >> 32) as u32,
            Register::QueueDeviceLow => address(RingPart::Used) as u32,
            Register::QueueDeviceHigh => (address(RingPart::Used) >> 32) as u32,
            Register::Status => self.status().into(),
            Register::QueueSelect => registers.queue_select.into(),
            Register::QueueSize => queue.map_or(0, |queue| queue.size).into(),
            Register::ConfigVector => registers.config_vector.into(),
            Register::QueueVector => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            // A reset is done when its write returns, and nothing waits at the doorbell's register.
            Register::QueueReset | Register::QueueNotify => 0,
        }
    }

    fn write(&mut self, face: Face, register: Register, value: u32) {
        match register {
            Register::LegacyDriverFeatures => self.write_legacy_features(value),
            Register::QueuePfn => self.write_pfn(value),
            Register::QueueNotify => self.kick(value),
            Register::DeviceFeatureSelect => self.registers_mut().device_feature_select = value,
            Register::DriverFeatureSelect => self.registers_mut().driver_feature_select = value,
            Register::DriverFeature => self.write_feature_word(value),
            Register::QueueEnable => self.enable_queue(value),
            Register::QueueReset => self.reset_queue(value),
            Register::QueueDescLow | Register::QueueDescHigh => {
                self.write_address(register, RingPart::Descriptors, value)
            }
            Register::QueueDriverLow | Register::QueueDriverHigh => {
                self.write_address(register, RingPart::Available, value)
            }
            Register::QueueDeviceLow | Register::QueueDeviceHigh => self.write_address(register, RingPart::Used, value),
            Register::Status => self.write_status(face, value as u8),
            Register::QueueSelect => self.registers_mut().queue_select = u16::try_from(value).unwrap_or(u16::MAX),
            Register::QueueSize => self.write_queue_size(value),
            Register::ConfigVector => self.write_config_vector(value),
            Register::QueueVector => self.write_queue_vector(value),
            Register::LegacyDeviceFeatures
            | Register::Isr
            | Register::DeviceFeature
            | Register::NumQueues
            | Register::ConfigGeneration
            | Register::QueueNotifyOff => self.fault(TransportFault::ReadOnly { register }),
        }
    }

    /// Sizes that cannot be are ignored at once, so that a read shows what holds.
    fn write_queue_size(&mut self, value: u32) {
        let queue = self.registers().queue_select;
        let Some(config) = self.selected_for_setup(Register::QueueSize) else {
            return;
        };
        let size = u16::try_from(value).unwrap_or(0);
        match check_size(size, config.max_size) {
            Ok(()) => config.size = size,
            Err(fault) => self.fault(TransportFault::Queue { queue, fault }),
        }
    }

    fn write_address(&mut self, register: Register, part: RingPart, value: u32) {
        let Some(config) = self.selected_for_setup(register) else {
            return;
        };
        let address = match part {
            RingPart::Descriptors => &mut config.descriptors,
            RingPart::Available => &mut config.available,
            RingPart::Used => &mut config.used,
        };
        let high = matches!(
            register,
            Register::QueueDescHigh | Register::QueueDriverHigh | Register::QueueDeviceHigh
        );
        let shift = if high { 32 } else { 0 };
        *address = *address & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
    }
}

/// 32 of 64 bits; there are no others.
fn word(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn not_a_register(face: Face, offset: u64, len: usize) -> TransportFault {
    TransportFault::NotARegister { face, offset, len }
}
