//! Kubernetes quantities of the resources: plain whole numbers.

/// What a resource counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Devices,
    Mib,
    Percent,
}

/// What is wrong with a quantity, and how to write it right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number of devices.
    #[error("is not a number of devices; write a whole number, such as 1")]
    Devices,
    /// Not a number of MiB.
    #[error("is not a number of MiB; write a whole number, such as 8000")]
    Mib,
    /// Not a percentage.
    #[error("is not a percentage; write a whole number from 0 to 100")]
    Percent,
    /// A unit of bytes on a resource that counts MiB; what was meant in MiB.
    #[error("has a unit, but this resource counts MiB already; write {mib}")]
    HasUnit {
        /// The number that was meant.
        mib: u64,
    },
    /// More than 100 percent.
    #[error("is more than 100 percent; write a whole number from 0 to 100")]
    TooManyPercent,
    /// More devices than any node has.
    #[error("is more devices than any node has; write a smaller number")]
    TooManyDevices,
}

/// More devices than this are on no node.
const MAX_DEVICES: u64 = 1024;

/// Reads a Kubernetes quantity that must be a plain whole number.
///
/// API machinery may rewrite `8000` as `8k`, so decimal `k` is accepted; a suffix that can only come
/// from taking the resource for bytes (`8Gi`) is refused with the number that was meant.
pub(crate) fn parse(text: &str, unit: Unit) -> Result<u64, QuantityError> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let not_a_number = || match unit {
        Unit::Devices => QuantityError::Devices,
        Unit::Mib => QuantityError::Mib,
        Unit::Percent => QuantityError::Percent,
    };
    let number: u64 = number.parse().map_err(|_| not_a_number())?;
    let value = match (suffix, unit) {
        ("", _) => number,
        ("k", _) => number.checked_mul(1000).ok_or_else(not_a_number)?,
        // 1000000 MiB, rewritten by API machinery; more than that is meant as bytes.
        ("M", Unit::Mib) if number <= 1 => number * 1_000_000,
        (suffix, Unit::Mib) => {
            let mib = mib_of_bytes(number, suffix).ok_or_else(not_a_number)?;
            return Err(QuantityError::HasUnit { mib: mib.max(1) });
        }
        _ => return Err(not_a_number()),
    };
    match unit {
        Unit::Percent if value > 100 => Err(QuantityError::TooManyPercent),
        Unit::Devices if value > MAX_DEVICES => Err(QuantityError::TooManyDevices),
        _ => Ok(value),
    }
}

/// The MiB of a number of bytes with a suffix; `None`: not a suffix of bytes.
fn mib_of_bytes(number: u64, suffix: &str) -> Option<u64> {
    const MIB: u64 = 1024 * 1024;
    Some(match suffix {
        "Ki" => number / 1024,
        "Mi" => number,
        "Gi" => number.saturating_mul(1024),
        "Ti" => number.saturating_mul(MIB),
        "M" => number.saturating_mul(1_000_000) / MIB,
        "G" => number.saturating_mul(1_000_000_000) / MIB,
        "T" => number.saturating_mul(1_000_000_000_000) / MIB,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_read_also_as_api_machinery_rewrites_them() {
        for (text, value) in [
            ("8000", 8_000),
            (" 8k ", 8_000),
            ("1M", 1_000_000),
            ("0", 0),
        ] {
            assert_eq!(parse(text, Unit::Mib), Ok(value), "{text}");
        }
    }

    #[test]
    fn a_unit_of_bytes_is_refused_with_the_number_that_was_meant() {
        for (text, mib) in [("8Gi", 8_192), ("8000Mi", 8_000), ("8G", 7_629), ("1Ki", 1)] {
            assert_eq!(
                parse(text, Unit::Mib),
                Err(QuantityError::HasUnit { mib }),
                "{text}"
            );
        }
        assert_eq!(parse("1Gi", Unit::Devices), Err(QuantityError::Devices));
    }

    #[test]
    fn what_is_no_number_or_too_large_is_refused() {
        for text in ["", "lots", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(parse(text, Unit::Mib), Err(QuantityError::Mib), "{text}");
        }
        assert_eq!(
            parse("1025", Unit::Devices),
            Err(QuantityError::TooManyDevices)
        );
        assert_eq!(
            parse("101", Unit::Percent),
            Err(QuantityError::TooManyPercent)
        );
    }
}
