//! Checksums of bytes that are never together: CRC32C (reflected polynomial 0x82F63B78) of `a ++ b` from those of
//! `a` and `b`.
//!
//! A checksum is a polynomial modulo P, and appending `n` bytes multiplies it by x⁸ⁿ: `combine` computes that power from a
//! table of squares.

const POLYNOMIAL: u32 = 0x82F6_3B78;
/// x⁰, bit-reflected.
const ONE: u32 = 1 << 31;

/// `SQUARES[k]` = x^(8·2ᵏ) mod P.
const SQUARES: [u32; 64] = squares();

const fn squares() -> [u32; 64] {
    // x⁸: the bit of x⁰ moved on by eight.
    let mut squares = [ONE >> 8; 64];
    let mut k = 1;
    while k < 64 {
        squares[k] = multiply(squares[k - 1], squares[k - 1]);
        k += 1;
    }
    squares
}

/// `a · b` mod P, bit-reflected.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, ONE);
    while bit != 0 {
        // Without a branch: which bits are set can't be guessed.
        product ^= b & 0u32.wrapping_sub((a & bit != 0) as u32);
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
        bit >>= 1;
    }
    product
}

/// The CRC32C of `a ++ b`, where `b_bytes` is the length of `b`.
pub fn combine(crc_a: u32, crc_b: u32, b_bytes: u64) -> u32 {
    let (mut power, mut rest, mut k) = (ONE, b_bytes, 0);
    while rest != 0 {
        if rest & 1 == 1 {
            power = multiply(power, SQUARES[k]);
        }
        (rest, k) = (rest >> 1, k + 1);
    }
    multiply(power, crc_a) ^ crc_b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combined_is_the_checksum_of_both() {
        let bytes: Vec<u8> = (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1), (49, 40), (49, 65_536), (3, 69_997), (61, 4_095), (1_000, 255)] {
            let whole = crc32c::crc32c(&bytes[..a + b]);
            let combined = combine(crc32c::crc32c(&bytes[..a]), crc32c::crc32c(&bytes[a..a + b]), b as u64);
            assert_eq!(combined, whole, "{a} and {b} bytes");
        }
    }
}
