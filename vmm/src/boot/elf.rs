//! ELF kernels: an uncompressed vmlinux, or any program that offers the PVH entry point.
//!
//! linux-loader's own loader is not used: it leaves the part of a segment that is not in the file as it was (wrong
//! after a reboot) and tells a truncated file, a segment outside memory and a 32-bit file by one error.

use std::ops::Range;

use linux_loader::bootparam::setup_header;

use super::error::KernelError;
use super::image::Image;
use super::kernel::{Kernel, Protocol, in_kernel_memory};
use crate::memory::{GuestMemory, Layout, clear};

/// The first four bytes of every ELF file.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: a physical address, entered as the PVH boot protocol says
/// (xen/include/public/elfnote.h).
const NOTE_PVH_ENTRY: u32 = 18;
const NOTE_OWNER: &[u8] = b"Xen\0";
/// More bytes of notes than any kernel has; the rest is not looked at.
const NOTES_LIMIT: u64 = 1 << 20;

/// What a vmlinux does not say and every 64-bit one takes: the values of its bzImage (arch/x86/boot/header.S,
/// COMMAND_LINE_SIZE).
const COMMAND_LINE_LIMIT: u64 = 2047;
const INITRD_LAST: u64 = 0x7fff_ffff;

/// The fields of the file header that matter here, of either class.
struct FileHeader {
    class: u8,
    entry: u64,
    segments_offset: u64,
    segment_size: usize,
    segment_count: usize,
}

/// A program header, of either class.
struct Segment {
    kind: u32,
    file: Range<u64>,
    address: u64,
    memory_size: u64,
}

/// Loads every segment at its physical address and finds the entry point.
pub(super) fn load(memory: &GuestMemory, layout: &Layout, image: &Image, head: &[u8]) -> Result<Kernel, KernelError> {
    let header = FileHeader::parse(head)?;
    let segments = read_segments(&header, image)?;
    let pvh = find_pvh_entry(&segments, image)?;
    if header.class == CLASS_32 && pvh.is_none() {
        return Err(KernelError::Only32Bit);
    }

    let mut loaded = Vec::new();
    for segment in segments
        .iter()
        .filter(|segment| segment.kind == SEGMENT_LOAD && segment.memory_size > 0)
    {
        loaded.push(load_segment(memory, layout, image, segment)?);
    }
    let rip = pvh.map_or(header.entry, u64::from);
    if !loaded.iter().any(|range| range.contains(&rip)) {
        return Err(KernelError::EntryOutside(rip));
    }
    Ok(Kernel {
        protocol: match pvh {
            Some(rip) => Protocol::Pvh { rip },
            None => Protocol::Linux64 {
                rip,
                header: vmlinux_setup_header(),
            },
        },
        end: loaded.iter().map(|range| range.end).max().unwrap_or_default(),
        initrd_last: INITRD_LAST,
        command_line_limit: COMMAND_LINE_LIMIT,
    })
}

fn load_segment(
    memory: &GuestMemory,
    layout: &Layout,
    image: &Image,
    segment: &Segment,
) -> Result<Range<u64>, KernelError> {
    let start = segment.address;
    let end = start.saturating_add(segment.memory_size);
    if !in_kernel_memory(layout, start, end) {
        return Err(KernelError::SegmentOutsideMemory { start, end });
    }
    let length = segment.file.end - segment.file.start;
    if length > segment.memory_size {
        return Err(KernelError::BadHeader("a segment is larger in the file than in memory"));
    }
    // No more than the segment's size in memory, which lies below 4 GiB.
    image.load(memory, start, segment.file.start, length as usize)?;
    clear(memory, start + length..end)?;
    Ok(start..end)
}

/// A vmlinux comes without a setup header: just what says "a boot loader filled this in" and how the kernel may be
/// placed.
fn vmlinux_setup_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020c,
        loadflags: 1,
        kernel_alignment: 0x20_0000,
        initrd_addr_max: INITRD_LAST as u32,
        cmdline_size: COMMAND_LINE_LIMIT as u32,
        ..setup_header::default()
    }
}

impl FileHeader {
    fn parse(head: &[u8]) -> Result<Self, KernelError> {
        let fields = Fields(head);
        let truncated = || KernelError::Truncated {
            what: "the ELF header",
            needed: 64,
            actual: head.len() as u64,
        };
        let class = *head.get(4).ok_or_else(truncated)?;
        let order = *head.get(5).ok_or_else(truncated)?;
        let kind = fields.u16(16).ok_or_else(truncated)?;
        let machine = fields.u16(18).ok_or_else(truncated)?;
        if order != LITTLE_ENDIAN {
            return Err(KernelError::WrongMachine(machine.swap_bytes()));
        }
        match (class, machine) {
            (CLASS_64, MACHINE_X86_64) | (CLASS_32, MACHINE_386) => {}
            _ => return Err(KernelError::WrongMachine(machine)),
        }
        if kind != TYPE_EXECUTABLE {
            return Err(KernelError::NotAnExecutable);
        }
        let (entry, segments_offset, sizes) = if class == CLASS_64 {
            (fields.u64(24), fields.u64(32), 54)
        } else {
            (fields.u32(24).map(u64::from), fields.u32(28).map(u64::from), 42)
        };
        let header = Self {
            class,
            entry: entry.ok_or_else(truncated)?,
            segments_offset: segments_offset.ok_or_else(truncated)?,
            segment_size: fields.u16(sizes).ok_or_else(truncated)?.into(),
            segment_count: fields.u16(sizes + 2).ok_or_else(truncated)?.into(),
        };
        if header.segment_size < (if class == CLASS_64 { 56 } else { 32 }) {
            return Err(KernelError::BadHeader("the size of program headers"));
        }
        Ok(header)
    }
}

/// Reads the program headers and checks that the file has all that they name.
fn read_segments(header: &FileHeader, image: &Image) -> Result<Vec<Segment>, KernelError> {
    let size = image.size()?;
    let table_size = header.segment_size * header.segment_count;
    let table_end = header.segments_offset.saturating_add(table_size as u64);
    if table_end > size {
        return Err(KernelError::Truncated {
            what: "the program headers",
            needed: table_end,
            actual: size,
        });
    }
    let table = image.read_at(header.segments_offset, table_size)?;
    let mut segments = Vec::with_capacity(header.segment_count);
    for entry in table.chunks_exact(header.segment_size) {
        let segment = Segment::parse(header.class, entry).ok_or(KernelError::BadHeader("a program header"))?;
        if segment.file.end > size {
            return Err(KernelError::Truncated {
                what: "a segment",
                needed: segment.file.end,
                actual: size,
            });
        }
        segments.push(segment);
    }
    Ok(segments)
}

impl Segment {
    fn parse(class: u8, entry: &[u8]) -> Option<Self> {
        let fields = Fields(entry);
        let (offset, address, file_size, memory_size) = if class == CLASS_64 {
            (fields.u64(8)?, fields.u64(24)?, fields.u64(32)?, fields.u64(40)?)
        } else {
            (
                fields.u32(4)?.into(),
                fields.u32(12)?.into(),
                fields.u32(16)?.into(),
                fields.u32(20)?.into(),
            )
        };
        let file = offset..offset.saturating_add(file_size);
        Some(Self {
            kind: fields.u32(0)?,
            file,
            address,
            memory_size,
        })
    }
}

/// The PVH entry point, when one of the notes names it.
fn find_pvh_entry(segments: &[Segment], image: &Image) -> Result<Option<u32>, KernelError> {
    for segment in segments.iter().filter(|segment| segment.kind == SEGMENT_NOTE) {
        let length = (segment.file.end - segment.file.start).min(NOTES_LIMIT);
        let notes = image.read_at(segment.file.start, length as usize)?;
        if let Some(entry) = pvh_entry_of_notes(&notes) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Notes: three words (length of the owner's name, length of the content, kind), the name, the content, each padded to
/// 4 bytes.
fn pvh_entry_of_notes(mut notes: &[u8]) -> Option<u32> {
    loop {
        let fields = Fields(notes);
        let name_size = fields.u32(0)? as usize;
        let content_size = fields.u32(4)? as usize;
        let kind = fields.u32(8)?;
        let content_at = 12_usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let owner = notes.get(12..12_usize.checked_add(name_size)?)?;
        if kind == NOTE_PVH_ENTRY && owner == NOTE_OWNER && content_size >= 4 {
            return fields.u32(content_at);
        }
        notes = notes.get(content_at.checked_add(content_size.checked_next_multiple_of(4)?)?..)?;
    }
}

/// Little-endian fields at offsets; `None` past the end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::boot::testing::{guest, image};
    use vm_memory::{Bytes, GuestAddress};

    const CODE_AT: u64 = 0x20_0000;

    /// The PVH note for an entry point, behind a note of somebody else.
    fn notes(entry: u32) -> Vec<u8> {
        let mut notes = Vec::new();
        for (owner, kind, content) in [
            (&b"GNU\0"[..], 3_u32, &[1_u8, 2, 3][..]),
            (b"Xen\0", 18, &entry.to_le_bytes()),
        ] {
            for word in [owner.len() as u32, content.len() as u32, kind] {
                notes.extend(word.to_le_bytes());
            }
            notes.extend(owner);
            notes.extend(content);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        notes
    }

    fn program_header(kind: u32, offset: u64, address: u64, file_size: u64, memory_size: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(7_u32.to_le_bytes());
        for field in [offset, address, address, file_size, memory_size, 0x1000] {
            bytes.extend(field.to_le_bytes());
        }
        bytes
    }

    /// A 64-bit ELF kernel at 2 MiB: 256 bytes of 0xaa, then 1 MiB of zeroes; with a PVH entry at its start if `pvh`.
    pub(in crate::boot) fn small_kernel(pvh: bool) -> Vec<u8> {
        let notes = if pvh { notes(CODE_AT as u32) } else { Vec::new() };
        let code_offset = (64 + 2 * 56 + notes.len()) as u64;
        let mut file = MAGIC.to_vec();
        file.extend([CLASS_64, LITTLE_ENDIAN, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(TYPE_EXECUTABLE.to_le_bytes());
        file.extend(MACHINE_X86_64.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        for field in [CODE_AT + 0x10, 64, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for field in [64_u16, 56, 2, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(program_header(
            SEGMENT_NOTE,
            64 + 2 * 56,
            0,
            notes.len() as u64,
            notes.len() as u64,
        ));
        file.extend(program_header(SEGMENT_LOAD, code_offset, CODE_AT, 256, 0x10_0100));
        file.extend(notes);
        file.extend([0xaa; 256]);
        file
    }

    fn load_bytes(bytes: &[u8]) -> Result<Kernel, KernelError> {
        let (layout, ram) = guest(32);
        crate::boot::kernel::load(ram.memory(), &layout, &image(bytes))
    }

    fn with<const N: usize>(mut file: Vec<u8>, at: usize, bytes: [u8; N]) -> Vec<u8> {
        file[at..at + N].copy_from_slice(&bytes);
        file
    }

    #[test]
    fn note_decides_between_pvh_and_the_64_bit_entry() {
        let kernel = load_bytes(&small_kernel(true)).unwrap();
        assert!(
            matches!(kernel.protocol, Protocol::Pvh { rip: 0x20_0000 }),
            "{kernel:?}"
        );
        let kernel = load_bytes(&small_kernel(false)).unwrap();
        assert!(
            matches!(kernel.protocol, Protocol::Linux64 { rip: 0x20_0010, .. }),
            "{kernel:?}"
        );
        assert_eq!(kernel.end, CODE_AT + 0x10_0100);
    }

    #[test]
    fn rest_of_a_segment_is_zero_in_dirty_memory() {
        let (layout, ram) = guest(32);
        let memory = ram.memory();
        memory
            .write_slice(&vec![0x55; 0x20_0000], GuestAddress(CODE_AT))
            .unwrap();
        crate::boot::kernel::load(memory, &layout, &image(&small_kernel(true))).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(CODE_AT + 255)).unwrap(), 0xaa);
        for at in [0x100, 0xfff, 0x1000, 0x10_00ff] {
            assert_eq!(memory.read_obj::<u8>(GuestAddress(CODE_AT + at)).unwrap(), 0, "{at:#x}");
        }
        assert_eq!(memory.read_obj::<u8>(GuestAddress(CODE_AT + 0x10_0100)).unwrap(), 0x55);
    }

    #[test]
    fn files_that_are_no_kernels_say_what_they_are() {
        assert!(matches!(
            load_bytes(&with(small_kernel(true), 16, [3])),
            Err(KernelError::NotAnExecutable)
        ));
        assert!(matches!(
            load_bytes(&with(small_kernel(true), 18, [183])),
            Err(KernelError::WrongMachine(183))
        ));
        assert!(matches!(load_bytes(b"#!/bin/sh\n"), Err(KernelError::NotAKernel)));
        assert!(matches!(load_bytes(b""), Err(KernelError::NotAKernel)));
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert!(matches!(load_bytes(&program), Err(KernelError::NotAnExecutable)));
    }

    #[test]
    fn segments_and_entries_outside_memory_are_refused() {
        let address_at = 64 + 56 + 24;
        for address in [0x1000, 31 << 20, 1 << 32, u64::MAX] {
            let file = with(small_kernel(true), address_at, u64::to_le_bytes(address));
            assert!(
                matches!(load_bytes(&file), Err(KernelError::SegmentOutsideMemory { .. })),
                "{address:#x}"
            );
        }
        let file = with(small_kernel(false), 24, 0x10_0000_u64.to_le_bytes());
        assert!(matches!(load_bytes(&file), Err(KernelError::EntryOutside(0x10_0000))));
    }

    #[test]
    fn thirty_two_bit_kernel_needs_the_note() {
        let mut file = MAGIC.to_vec();
        file.extend([
            CLASS_32,
            LITTLE_ENDIAN,
            1,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            2,
            0,
            3,
            0,
            1,
            0,
            0,
            0,
        ]);
        file.resize(64, 0);
        let file = with(with(file, 28, [52]), 42, [32]);
        assert!(matches!(load_bytes(&file), Err(KernelError::Only32Bit)));
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let file = small_kernel(true);
        for length in 0..file.len() {
            assert!(load_bytes(&file[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn note_that_claims_to_be_endless_is_passed_over() {
        let mut endless = notes(1);
        endless[0..4].fill(0xff);
        assert_eq!(pvh_entry_of_notes(&endless), None);
        let mut endless = notes(1);
        endless[4..8].fill(0xff);
        assert_eq!(pvh_entry_of_notes(&endless), None);
    }

    proptest::proptest! {
        #[test]
        fn damaged_file_never_panics(at in 4_usize..240, value: u8, second in 4_usize..240, other: u8) {
            let file = with(with(small_kernel(true), at, [value]), second, [other]);
            let _ = load_bytes(&file);
        }
    }
}
