//! A gzip stream in parts that are made one by one. Between two parts nothing is kept but the checksum, so
//! thousands of streams need no memory for it.

use std::sync::{Mutex, PoisonError};

use flate2::{Compress, Compression, Crc, FlushCompress};

/// Compressors that are kept for the next parts.
const KEPT: usize = 8;
static FREE: Mutex<Vec<Compress>> = Mutex::new(Vec::new());

/// The header of RFC 1952: no name, no time, any system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// An empty last block.
const LAST: [u8; 2] = [3, 0];

/// A gzip stream.
#[derive(Debug, Default)]
pub(super) struct Gzip {
    began: bool,
    crc: Crc,
}

impl Gzip {
    /// The next part. It can be read as soon as it is there.
    pub(super) fn part(&mut self, text: &[u8]) -> Vec<u8> {
        let mut part = Vec::with_capacity(text.len() / 2 + 64);
        if !std::mem::replace(&mut self.began, true) {
            part.extend_from_slice(&HEADER);
        }
        self.crc.update(text);
        let free = || FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = free().pop();
        let mut compress = kept.unwrap_or_else(|| Compress::new(Compression::fast(), false));
        compress.reset();
        let mut read = 0;
        // Ends at the boundary of a byte, and refers to nothing before.
        loop {
            part.reserve(text.len() / 2 + 64);
            let before = compress.total_in();
            // The only error of a compressor is a wrong call.
            let _ = compress.compress_vec(&text[read..], &mut part, FlushCompress::Full);
            read += usize::try_from(compress.total_in() - before).unwrap_or(usize::MAX);
            if read >= text.len() && part.len() < part.capacity() {
                break;
            }
        }
        let mut free = free();
        if free.len() < KEPT {
            free.push(compress);
        }
        part
    }

    /// The end of the stream.
    pub(super) fn end(&mut self) -> Vec<u8> {
        let mut end = if self.began { Vec::new() } else { HEADER.to_vec() };
        end.extend_from_slice(&LAST);
        end.extend_from_slice(&self.crc.sum().to_le_bytes());
        end.extend_from_slice(&self.crc.amount().to_le_bytes());
        end
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_compressed_in_parts_is_read_as_one_and_each_part_at_once(
            parts in proptest::collection::vec("[a-z{}\",]{0,3000}", 0..6)
        ) {
            let (mut gzip, mut stream, mut plain) = (Gzip::default(), Vec::new(), String::new());
            for part in &parts {
                stream.extend(gzip.part(part.as_bytes()));
                plain.push_str(part);
                let mut read = vec![0; plain.len()];
                flate2::read::GzDecoder::new(stream.as_slice()).read_exact(&mut read).unwrap();
                prop_assert_eq!(std::str::from_utf8(&read).unwrap(), &plain);
            }
            stream.extend(gzip.end());
            let mut read = String::new();
            flate2::read::GzDecoder::new(stream.as_slice()).read_to_string(&mut read).unwrap();
            prop_assert_eq!(read, plain);
        }
    }
}
