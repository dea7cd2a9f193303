//! Kubernetes quantities, as far as they have to be checked and compared.

/// The value of a quantity, in billionths; `None` if it is none.
///
/// The grammar is that of `k8s.io/apimachinery/pkg/api/resource`: a signed
/// decimal number and a suffix, binary (`Ki`…`Ei`), decimal (`n`…`E`) or an
/// exponent (`e3`). The API server writes a quantity back in another form of
/// the same value, so forms are not compared. As there, what is smaller than a
/// billionth is rounded up.
pub fn nanos(text: &str) -> Option<i128> {
    const NANOS: i128 = 1_000_000_000;
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (multiplier, exponent) = match suffix {
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        other => (1, other.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?),
    };
    let exponent = exponent - i32::try_from(fraction.len()).ok()?;
    let power = 10i128.checked_pow(exponent.unsigned_abs())?;
    let scaled = digits.checked_mul(multiplier)?.checked_mul(NANOS)?;
    let value = if exponent < 0 {
        scaled.checked_add(power - 1)?.checked_div(power)?
    } else {
        scaled.checked_mul(power)?
    };
    Some(if text.starts_with('-') { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantity_has_many_forms() {
        for forms in
            [&["500m", "0.5", "+.5", "5e-1"][..], &["1536Mi", "1.5Gi"], &["1E", "1e18"], &["1", "1000m"]]
        {
            assert!(
                forms.iter().all(|form| nanos(form).is_some() && nanos(form) == nanos(forms[0])),
                "{forms:?}"
            );
        }
        assert_ne!(nanos("1M"), nanos("1Mi"));
        assert_eq!(nanos("0.1n"), Some(1));
    }

    #[test]
    fn malformed_quantity_is_none() {
        for text in ["", "Mi", "1.2.3", "64Miz", "1 Gi", "0x10", "1e", "ten", ".", "1e99999999999", "-"] {
            assert_eq!(nanos(text), None, "{text}");
        }
    }
}
