// SPDX-License-Identifier: MIT OR Apache-2.0
//! CRC-32 as of gzip and zlib: ISO-HDLC, reflected polynomial 0xedb88320. The libraries that have it use instructions that
//! bare metal without floating point does not.

const POLYNOMIAL: u32 = 0xedb8_8320;

/// A sum to which bytes are added.
#[derive(Clone)]
pub struct Crc(u32);

static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut crc, mut bits) = (n as u32, 8);
        while bits > 0 {
            crc = times_x(crc);
            bits -= 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
}

/// A polynomial times x. The highest bit is the constant.
const fn times_x(a: u32) -> u32 {
    (a >> 1) ^ ((a & 1) * POLYNOMIAL)
}

fn times(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for bit in (0..32).rev() {
        if a >> bit & 1 != 0 {
            product ^= b;
        }
        b = times_x(b);
    }
    product
}

impl Crc {
    /// Of no bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self(!0)
    }

    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let index = (self.0 ^ u32::from(*byte)) & 0xff;
            self.0 = (self.0 >> 8) ^ TABLE[index as usize];
        }
    }

    /// The sum.
    #[must_use]
    pub const fn value(&self) -> u32 {
        !self.0
    }
}

impl Default for Crc {
    fn default() -> Self {
        Self::new()
    }
}

/// The sum of bytes whose sum is `first`, and then of `len` bytes whose sum is `second`.
#[must_use]
pub fn append(first: u32, second: u32, mut len: u64) -> u32 {
    // x to the power of 8 times 2^n, for each bit n of the length.
    let (mut sum, mut power) = (first, 1 << 23);
    while len > 0 {
        if len & 1 != 0 {
            sum = times(sum, power);
        }
        power = times(power, power);
        len >>= 1;
    }
    sum ^ second
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> u32 {
        let mut crc = Crc::new();
        crc.add(bytes);
        crc.value()
    }

    #[test]
    fn sums() {
        assert_eq!(of(b""), 0);
        assert_eq!(of(b"123456789"), 0xcbf4_3926);
        let bytes: [u8; 1000] = core::array::from_fn(|n| (n * n / 7) as u8);
        for at in [0, 1, 2, 255, 256, 500, 999, 1000] {
            let (a, b) = bytes.split_at(at);
            assert_eq!(append(of(a), of(b), b.len() as u64), of(&bytes), "{at}");
        }
    }
}
