//! Slicing by eight: one table look-up a byte, eight of them independent.

use super::tables::TABLES;

pub(super) fn crc32c(seed: u32, data: &[u8]) -> u32 {
    let mut crc = !seed;
    let (words, rest) = data.as_chunks::<8>();
    for word in words {
        let [a, b, c, d, e, f, g, h] = *word;
        let [w, x, y, z] = (u32::from_le_bytes([a, b, c, d]) ^ crc).to_le_bytes();
        crc = TABLES[7][usize::from(w)]
            ^ TABLES[6][usize::from(x)]
            ^ TABLES[5][usize::from(y)]
            ^ TABLES[4][usize::from(z)]
            ^ TABLES[3][usize::from(e)]
            ^ TABLES[2][usize::from(f)]
            ^ TABLES[1][usize::from(g)]
            ^ TABLES[0][usize::from(h)];
    }
    for &byte in rest {
        crc = (crc >> 8) ^ TABLES[0][usize::from(crc.to_le_bytes()[0] ^ byte)];
    }
    !crc
}
