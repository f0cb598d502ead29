//! `Reader`, `Writer` and `GuestIoVec`, against the same bytes laid out flat.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{Buffer, DriverRing};
use super::super::{Chain, GuestFault, GuestIoVec};
use super::differential::Random;
use super::{FLAGS, Pair, SEAM, memory};

/// A pair whose next chain has the text in `pieces` of the given lengths to read, and as much room
/// to write. One piece lies across two regions of RAM.
fn chain_of(pieces: &[u32], text: &[u8]) -> (Pair, Chain) {
    let mut pair = Pair::on(DriverRing::modern(memory(), 0x1000, 64), FLAGS);
    let (mut address, mut rest) = (SEAM - 10, text);
    let mut buffers = Vec::new();
    for &len in pieces {
        let (piece, behind) = rest.split_at(len as usize);
        pair.driver.memory().write_slice(piece, GuestAddress(address)).unwrap();
        buffers.push(Buffer::readable(address, len));
        address += u64::from(len) + 3;
        rest = behind;
    }
    for &len in pieces {
        buffers.push(Buffer::writable(address, len));
        address += u64::from(len) + 3;
    }
    pair.driver.post(&buffers).unwrap();
    let chain = pair.pop();
    (pair, chain)
}

/// The bytes of the writable part of the chain that [`chain_of`] made.
fn written(pair: &Pair, pieces: &[u32]) -> Vec<u8> {
    let total: u64 = pieces.iter().map(|&len| u64::from(len) + 3).sum();
    let mut address = SEAM - 10 + total;
    let mut bytes = Vec::new();
    for &len in pieces {
        let mut piece = vec![0; len as usize];
        pair.driver
            .memory()
            .read_slice(&mut piece, GuestAddress(address))
            .unwrap();
        bytes.extend(piece);
        address += u64::from(len) + 3;
    }
    bytes
}

#[test]
fn a_header_in_one_byte_pieces_reads_like_one_piece() {
    let (_pair, chain) = chain_of(&[1; 16], b"0123456789abcdef");
    let mut reader = chain.reader();
    assert_eq!(reader.read_obj::<[u8; 16]>().unwrap(), *b"0123456789abcdef");
    assert_eq!(reader.remaining(), 0);
}

#[test]
fn a_short_request_is_a_fault_and_nothing_is_consumed() {
    let (_pair, chain) = chain_of(&[4, 3], b"0123456");
    let mut reader = chain.reader();
    let fault = GuestFault::BufferTooShort {
        head: chain.head(),
        wanted: 8,
        available: 7,
    };
    assert_eq!(reader.read_obj::<u64>().unwrap_err(), fault);
    assert_eq!(reader.skip(8).unwrap_err(), fault);
    assert_eq!(reader.split_at(8).unwrap_err(), fault);
    assert_eq!(reader.remaining(), 7);
    let mut writer = chain.writer();
    assert_eq!(writer.write_all(&[0; 8]).unwrap_err(), fault);
    assert_eq!(writer.write_zeroes(8).unwrap_err(), fault);
    assert_eq!((writer.remaining(), writer.written()), (7, 0));
}

#[test]
fn a_status_byte_is_split_off_the_end() {
    let pieces = [5, 1, 3];
    let (pair, chain) = chain_of(&pieces, b"012345678");
    let mut writer = chain.writer();
    let mut status = writer.split_at(8).unwrap();
    status.write_all(&[0xee]).unwrap();
    writer.write_all(b"abcdefgh").unwrap();
    assert_eq!((writer.remaining(), writer.written(), status.written()), (0, 8, 1));
    assert_eq!(written(&pair, &pieces), b"abcdefgh\xee");
}

#[test]
fn random_steps_see_the_same_bytes_as_a_flat_buffer() {
    let mut random = Random::new(7);
    for _ in 0..2_000 {
        let pieces: Vec<u32> = (0..random.range(1, 8)).map(|_| random.range(1, 40) as u32).collect();
        let total: u32 = pieces.iter().sum();
        let text: Vec<u8> = (0..total).map(|_| random.next() as u8).collect();
        let (pair, chain) = chain_of(&pieces, &text);
        let (mut reader, mut writer) = (chain.reader(), chain.writer());
        let mut at = 0;
        while reader.remaining() > 0 {
            let len = random.range(1, 50) as usize;
            let len = len.min(reader.remaining());
            let expected = &text[at..at + len];
            match random.range(0, 3) {
                0 => {
                    let mut bytes = vec![0; len];
                    reader.read_exact(&mut bytes).unwrap();
                    assert_eq!(bytes, expected);
                    writer.write_all(&bytes).unwrap();
                }
                1 => {
                    let mut head = reader.clone();
                    reader = head.split_at(len).unwrap();
                    let mut bytes = vec![0; len + 1];
                    assert_eq!(head.read(&mut bytes), len);
                    assert_eq!(&bytes[..len], expected);
                    assert_eq!(writer.fill_from(&mut &bytes[..len], usize::MAX).unwrap(), len);
                }
                _ => {
                    let mut bytes = Vec::new();
                    let visited = reader.for_each_slice(len, |slice| {
                        let mut piece = vec![0; slice.len()];
                        slice.copy_to(&mut piece);
                        bytes.extend(piece);
                    });
                    assert_eq!((visited, bytes.as_slice()), (len, expected));
                    let mut left = bytes.as_slice();
                    writer.for_each_slice(len, |slice| {
                        let (piece, rest) = left.split_at(slice.len());
                        slice.copy_from(piece);
                        left = rest;
                    });
                }
            }
            at += len;
            assert_eq!(writer.written() as usize, at);
        }
        assert_eq!(written(&pair, &pieces), text);
    }
}

#[test]
fn gathered_buffers_go_to_a_file_and_back_without_a_copy() {
    let text: Vec<u8> = (0..200).collect();
    let pieces = [7, 60, 1, 100, 32];
    let (pair, chain) = chain_of(&pieces, &text);
    let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();

    let mut list = GuestIoVec::new();
    let mut reader = chain.reader();
    reader.skip(3).unwrap();
    reader.gather(190, &mut list).unwrap();
    assert_eq!((list.bytes(), reader.remaining()), (190, 7));
    assert_eq!(list.write_at(file.as_fd(), 0).unwrap(), 190);
    let mut stored = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut stored).unwrap();
    assert_eq!(stored, text[3..193]);

    list.clear();
    let mut writer = chain.writer();
    writer.clone().gather(190, &mut list).unwrap();
    assert_eq!(list.read_at(file.as_fd(), 0).unwrap(), 190);
    assert_eq!(writer.written(), 0);
    writer.skip(190).unwrap();
    assert_eq!(writer.written(), 190);
    assert_eq!(written(&pair, &pieces)[..190], text[3..193]);
}

#[test]
fn a_transfer_that_was_cut_short_goes_on_where_it_ended() {
    let text: Vec<u8> = (0..100).collect();
    for cut in 0..=100 {
        let (_pair, chain) = chain_of(&[10, 1, 80, 9], &text);
        let mut list = GuestIoVec::new();
        chain.reader().gather(100, &mut list).unwrap();
        list.advance(cut);
        assert_eq!(list.bytes(), 100 - cut);
        let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        assert_eq!(list.write(file.as_fd()).unwrap(), 100 - cut);
        let mut stored = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut stored).unwrap();
        assert_eq!(stored, text[cut..]);
    }
}

#[test]
fn more_pieces_than_one_call_takes_are_a_short_transfer() {
    let mut pair = Pair::on(DriverRing::modern(memory(), 0x1000, 2048), FLAGS);
    pair.driver.post(&[Buffer::readable(0x2_0000, 1); 2048]).unwrap();
    let chain = pair.pop();
    let mut list = GuestIoVec::new();
    chain.reader().gather(2048, &mut list).unwrap();
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    assert_eq!(list.write_at(file.as_fd(), 0).unwrap(), 1024);
    list.advance(1024);
    assert_eq!(list.write_at(file.as_fd(), 1024).unwrap(), 1024);
}

#[test]
fn errors_of_the_system_call_are_handed_on() {
    let (_pair, chain) = chain_of(&[4], b"text");
    let mut list = GuestIoVec::new();
    chain.reader().gather(4, &mut list).unwrap();
    let (reading_end, _writing_end) = std::io::pipe().unwrap();
    let error = list.write(reading_end.as_fd()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    let error = list.write_at(reading_end.as_fd(), u64::MAX).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
}

#[test]
fn a_source_that_ends_or_fails_is_counted_as_far_as_it_went() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::Other.into());
            }
            let len = self.0.min(to.len());
            self.0 -= len;
            Ok(len)
        }
    }
    let (_pair, chain) = chain_of(&[50, 50], &[0; 100]);
    let mut writer = chain.writer();
    assert_eq!(writer.fill_from(&mut &b"ten bytes!"[..], usize::MAX).unwrap(), 10);
    assert!(writer.fill_from(&mut Failing(20), usize::MAX).is_err());
    assert_eq!(writer.written(), 30);
    assert_eq!(writer.fill_from(&mut std::io::repeat(1), 40).unwrap(), 40);
    assert_eq!(writer.fill_from(&mut std::io::repeat(1), usize::MAX).unwrap(), 30);
    assert_eq!(writer.write(b"more"), 0);
}

#[test]
fn the_standard_traits_work_on_both_parts() {
    let pieces = [6, 5];
    let (pair, chain) = chain_of(&pieces, b"hello world");
    let mut text = String::new();
    Read::read_to_string(&mut chain.reader(), &mut text).unwrap();
    assert_eq!(text, "hello world");
    write!(chain.writer(), "{}{}", "hello".to_uppercase(), 12).unwrap();
    assert_eq!(written(&pair, &pieces), b"HELLO12\0\0\0\0");
}
