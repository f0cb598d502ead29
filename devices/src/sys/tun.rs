//! The ioctls of tap interfaces (Linux, include/uapi/linux/if_tun.h).

use std::ffi::c_int;
use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::fd::check;

/// Bytes of an interface's name at most.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// Which interface a descriptor is a queue of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// IFF_TAP, IFF_VNET_HDR and so on.
    pub flags: c_int,
}

impl Interface {
    /// Whether `flag` (one of `IFF_*`) is among its flags.
    pub fn has(&self, flag: c_int) -> bool {
        self.flags & flag != 0
    }
}

/// Makes `file`, an open `/dev/net/tun`, a queue of the interface `name`, which is created if there
/// is none. An empty name, or one with `%d` in it, leaves the choice to the kernel. Returns the name
/// (TUNSETIFF).
///
/// # Errors
/// `InvalidInput` for a name that is too long or has a zero in it; what the kernel says.
pub fn attach(file: &impl AsRawFd, name: &str, flags: c_int) -> io::Result<String> {
    let mut request = request(flags)?;
    if name.len() > NAME_MAX || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the request is an ifreq, which the kernel reads and whose name it fills in.
    check(unsafe { ioctl_with_mut_ref(file, libc::TUNSETIFF, &mut request) })?;
    Ok(name_of(&request))
}

/// The interface that `file` is a queue of (TUNGETIFF).
///
/// # Errors
/// It is none of any.
pub fn interface(file: &impl AsRawFd) -> io::Result<Interface> {
    let mut request = request(0)?;
    // SAFETY: the kernel fills an ifreq, which the request is.
    check(unsafe { ioctl_with_mut_ref(file, libc::TUNGETIFF, &mut request) })?;
    // SAFETY: the flags are what TUNGETIFF fills in, and every pattern of bits is a number.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(Interface {
        name: name_of(&request),
        // IFF_TUN_EXCL is bit 15, so the sign means nothing.
        flags: c_int::from(flags.cast_unsigned()),
    })
}

/// Makes `file` a queue of its multi-queue interface that takes part, or one that does not
/// (TUNSETQUEUE).
///
/// # Errors
/// It is that already, or the interface has one queue.
pub fn set_attached(file: &impl AsRawFd, attached: bool) -> io::Result<()> {
    let request = request(if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    })?;
    // SAFETY: the kernel reads an ifreq, which the request is.
    check(unsafe { ioctl_with_ref(file, libc::TUNSETQUEUE, &request) }).map(drop)
}

/// How many bytes of virtio_net_hdr stand in front of each frame (TUNSETVNETHDRSZ).
///
/// # Errors
/// Fewer than 10, or more than the kernel knows.
pub fn set_header_len(file: &impl AsRawFd, len: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads an int.
    check(unsafe { ioctl_with_ref(file, libc::TUNSETVNETHDRSZ, &len) }).map(drop)
}

/// What frames that come out of the interface may leave undone, some of `TUN_F_*`; nothing else may
/// be left undone then (TUNSETOFFLOAD).
///
/// # Errors
/// `InvalidInput` for a bit that the kernel does not have, and for one without a bit that it needs.
pub fn set_offloads(file: &impl AsRawFd, offloads: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { ioctl_with_val(file, libc::TUNSETOFFLOAD, offloads.into()) }).map(drop)
}

/// A request without a name.
fn request(flags: c_int) -> io::Result<libc::ifreq> {
    // All flags are below bit 16, which is what a request has room for.
    let flags = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: an ifreq is numbers and a pointer, for all of which zeroes are legal.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    Ok(request)
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|byte| byte.cast_unsigned());
    let name: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&name).into_owned()
}
