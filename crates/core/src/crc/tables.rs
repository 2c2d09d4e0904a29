//! Tables, computed while compiling.

/// The polynomial, bit-reversed.
const POLY: u32 = 0x82F6_3B78;

/// `TABLES[k][b]`: the effect of byte `b` followed by `k` zero bytes.
pub(super) static TABLES: [[u32; 256]; 8] = slicing_tables();

const fn slicing_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLY } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[k - 1][byte];
            tables[k][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        k += 1;
    }
    tables
}

/// The product of two polynomials modulo the CRC polynomial; bit 31 is the coefficient of x^0.
#[cfg(target_arch = "x86_64")]
const fn multiply(mut a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut power = b;
    while a != 0 {
        if a & 0x8000_0000 != 0 {
            product ^= power;
        }
        a <<= 1;
        power = if power & 1 == 1 { (power >> 1) ^ POLY } else { power >> 1 };
    }
    product
}

/// A table that appends `bytes` zero bytes to a CRC register: XOR of one entry for each of its four bytes.
#[cfg(target_arch = "x86_64")]
pub(super) const fn shift_table(bytes: usize) -> [[u32; 256]; 4] {
    // x^(8 * bytes), by squaring x^8.
    let mut factor = 0x8000_0000;
    let mut square = 0x0080_0000;
    let mut rest = bytes;
    while rest != 0 {
        if rest & 1 == 1 {
            factor = multiply(factor, square);
        }
        square = multiply(square, square);
        rest >>= 1;
    }
    let mut table = [[0u32; 256]; 4];
    let mut lane = 0;
    while lane < 4 {
        let mut byte = 0;
        while byte < 256 {
            table[lane][byte] = multiply((byte as u32) << (8 * lane), factor);
            byte += 1;
        }
        lane += 1;
    }
    table
}
