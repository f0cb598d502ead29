//! Announcing a card to the network after it moved: a frame that makes switches learn where its
//! address is, sent several times at growing distance. As QEMU's `announce-self` (net/announce.c).

#![forbid(unsafe_code)]

use std::time::Duration;

use super::mac::MacAddress;

/// How often and when; what QMP calls AnnounceParameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnnounceParameters {
    /// Between the first and the second round.
    pub initial: Duration,
    /// Never wait for longer than this.
    pub max: Duration,
    /// How many rounds; 0 ends an announcement that is under way.
    pub rounds: u32,
    /// How much longer each wait is than the one before.
    pub step: Duration,
}

impl Default for AnnounceParameters {
    /// QEMU's (migration/options.c, `migrate_announce_params`).
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(50),
            max: Duration::from_millis(550),
            rounds: 5,
            step: Duration::from_millis(100),
        }
    }
}

/// An announcement under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Announcement {
    parameters: AnnounceParameters,
    /// Rounds to go.
    left: u32,
}

impl Announcement {
    pub(super) fn new(parameters: AnnounceParameters) -> Self {
        Self {
            parameters,
            left: parameters.rounds,
        }
    }

    /// Whether there is a round to go.
    pub(super) fn is_under_way(&self) -> bool {
        self.left > 0
    }

    /// A round was made. Returns how long to wait for the next, if there is one.
    pub(super) fn step(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        if self.left == 0 {
            return None;
        }
        let parameters = &self.parameters;
        let made = parameters.rounds.saturating_sub(self.left).saturating_sub(1);
        let wait = parameters.initial.saturating_add(parameters.step.saturating_mul(made));
        Some(wait.min(parameters.max))
    }
}

/// Bytes of the frame: the shortest that Ethernet has, without its check sequence.
const FRAME: usize = 60;

/// A reverse ARP request, "what is my protocol address", from `mac` to all (RFC 903).
pub(super) fn frame(mac: MacAddress) -> [u8; FRAME] {
    const TYPE_RARP: [u8; 2] = [0x80, 0x35];
    // Ethernet, IPv4, their address lengths, "request reverse".
    const RARP: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
    const NO_ADDRESS: [u8; 4] = [0; 4];
    let parts: [&[u8]; 8] = [
        &MacAddress::BROADCAST.0,
        &mac.0,
        &TYPE_RARP,
        &RARP,
        &mac.0,
        &NO_ADDRESS,
        &mac.0,
        &NO_ADDRESS,
    ];
    let mut frame = [0; FRAME];
    for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_come_at_growing_distance_up_to_the_longest() {
        let mut announcement = Announcement::new(AnnounceParameters {
            rounds: 8,
            ..AnnounceParameters::default()
        });
        let waits: Vec<_> = std::iter::from_fn(|| announcement.step())
            .map(|wait| wait.as_millis())
            .collect();
        assert_eq!(waits, [50, 150, 250, 350, 450, 550, 550]);
        assert!(!announcement.is_under_way());
    }

    #[test]
    fn no_round_is_no_announcement() {
        let none = AnnounceParameters {
            rounds: 0,
            ..AnnounceParameters::default()
        };
        let mut announcement = Announcement::new(none);
        assert!(!announcement.is_under_way());
        assert_eq!(announcement.step(), None);
    }

    #[test]
    fn the_frame_is_a_reverse_arp_request_to_all() {
        let frame = frame(MacAddress([1, 2, 3, 4, 5, 6]));
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..14], [1, 2, 3, 4, 5, 6, 0x80, 0x35]);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..32], [1, 2, 3, 4, 5, 6, 0, 0, 0, 0]);
        assert_eq!(frame[32..42], [1, 2, 3, 4, 5, 6, 0, 0, 0, 0]);
        assert_eq!(frame[42..], [0; 18]);
    }
}
