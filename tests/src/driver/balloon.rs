//! What a driver tells a balloon (virtio 1.3, 5.5.6).

use devices::virtio::balloon::BalloonControl;
use devices::virtio::info::Control;
use devices::virtio::virtq::testing::Buffer;

use super::Driver;

/// Queue of pages that go into the balloon.
pub const INFLATE: u16 = 0;
/// Queue of pages that come out.
pub const DEFLATE: u16 = 1;
/// Queue of statistics.
pub const STATS: u16 = 2;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// What management has of the device of `driver`.
///
/// # Panics
/// It is no balloon.
pub fn control(driver: &Driver<'_>) -> BalloonControl {
    match driver.machine().control(driver.device.address) {
        Control::Balloon(control) => control,
        _ => panic!("no balloon"),
    }
}

/// Writes an array of page numbers where the driver's data is; the buffer is not posted yet.
pub fn array(driver: &Driver<'_>, pages: impl IntoIterator<Item = u32>) -> Buffer {
    let bytes: Vec<u8> = pages.into_iter().flat_map(u32::to_le_bytes).collect();
    driver.machine().set_bytes(driver.data(), &bytes);
    Buffer::readable(driver.data(), bytes.len() as u32)
}

/// Names pages on a queue.
///
/// # Panics
/// The array does not come back as it should.
pub fn name_pages(driver: &mut Driver<'_>, queue: u16, pages: impl IntoIterator<Item = u32>) {
    let array = array(driver, pages);
    assert_eq!(driver.request(queue, &[array]).len, 0, "bytes written");
}
