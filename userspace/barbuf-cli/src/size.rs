// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sizes as people write them: `4096`, `0x1000`, `64K`, `2MiB`, `1G`. All units are binary.

const UNITS: [(&str, u32); 5] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];

/// Bytes of a size.
///
/// # Errors
///
/// A sentence for who wrote it, if it is none.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: write bytes, or a number with K, M, G or T");
    let (digits, shift) = split(text).ok_or_else(wrong)?;
    let number = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    // from_str_radix takes a sign.
    let number = number.ok().filter(|_| !digits.contains('+'));
    let number = number.ok_or_else(wrong)?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is more than 64 bits can say"))
}

fn split(text: &str) -> Option<(&str, u32)> {
    if text.starts_with("0x") {
        return Some((text, 0));
    }
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    if unit.is_empty() || unit == "B" {
        return Some((digits, 0));
    }
    let upper = unit.to_ascii_uppercase();
    let letter = upper.strip_suffix("IB").unwrap_or(&upper);
    let known = UNITS.iter().find(|(name, _)| *name == letter)?;
    Some((digits, known.1))
}

/// A range as `OFFSET+LENGTH`, two sizes.
///
/// # Errors
///
/// A sentence for who wrote it, if it is none.
pub fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let Some((offset, length)) = text.split_once('+') else {
        return Err(format!(
            "{text:?} is no range: write OFFSET+LENGTH, as in 1G+64M"
        ));
    };
    let range = (parse(offset)?, parse(length)?);
    match range.0.checked_add(range.1) {
        Some(_) => Ok(range),
        None => Err(format!("{text:?} ends beyond 64 bits")),
    }
}

/// A size for people: the largest unit in which it is a whole number, or two decimals.
pub fn show(bytes: u64) -> String {
    let (name, shift) = match bytes {
        0..1024 => return format!("{bytes} B"),
        1024..0x10_0000 => ("KiB", 10),
        0x10_0000..0x4000_0000 => ("MiB", 20),
        0x4000_0000..0x100_0000_0000 => ("GiB", 30),
        _ => ("TiB", 40),
    };
    if bytes.trailing_zeros() >= shift {
        format!("{} {name}", bytes >> shift)
    } else {
        format!("{:.2} {name}", bytes as f64 / (1u64 << shift) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("64K", 65536),
            ("64k", 65536),
            ("2MiB", 2 << 20),
            ("1G", 1 << 30),
            ("32GiB", 32 << 30),
            ("5B", 5),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "+1",
            "1.5G",
            "1 G",
            "0x",
            "0x+1",
            "1Q",
            "99999999T",
            "1GG",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse_range("1G+64M"), Ok((1 << 30, 64 << 20)));
        assert!(parse_range("1G").is_err());
        assert!(parse_range("0xffffffffffffffff+1").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,24}") {
            let _ = parse(&text);
            let _ = parse_range(&text);
        }

        #[test]
        fn whole_units_read_back(number in 1u64..1024, unit in 0usize..4) {
            let (name, shift) = UNITS[unit];
            let text = format!("{number}{name}");
            prop_assert_eq!(parse(&text), Ok(number << shift));
            let shown = show(number << shift).replace(' ', "");
            prop_assert_eq!(parse(&shown), Ok(number << shift));
        }
    }
}
