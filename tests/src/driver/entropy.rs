//! What a driver asks a source of randomness: to fill buffers (virtio 1.3, 5.4.6).

use devices::virtio::virtq::testing::Buffer;

use super::Driver;

/// Has `len` bytes filled.
///
/// # Panics
/// They are not filled.
pub fn fill(driver: &mut Driver<'_>, len: u32) -> Vec<u8> {
    let at = driver.data();
    driver.machine().set_bytes(at, &vec![0; len as usize]);
    let used = driver.request(0, &[Buffer::writable(at, len)]);
    assert_eq!(used.len, len, "bytes filled");
    driver.machine().bytes(at, len as usize)
}
