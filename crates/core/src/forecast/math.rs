//! The little mathematics that `core` lacks, for arguments that are at least 0.

/// Larger inputs count as this. It exceeds every u64 and leaves room for squares and products within f64.
const LARGEST: f64 = 1e20;

/// The 95 % quantile of the normal distribution.
pub(super) const Z95: f64 = 1.645;

/// The 95 % quantile of Student's distribution, to 1 % (Abramowitz and Stegun, 26.7.5; the first two are known exactly).
pub(super) fn student95(degrees: usize) -> f64 {
    match degrees {
        0 | 1 => 6.314,
        2 => 2.920,
        n => {
            let n = n as f64;
            let z = Z95;
            let z3 = z * z * z;
            let (z5, z7) = (z3 * z * z, z3 * z3 * z);
            z + (z3 + z) / (4.0 * n)
                + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * n * n)
                + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * n * n * n)
        }
    }
}

/// `x` as a quantity: at least 0 and finite.
pub(super) fn clean(x: f64) -> f64 {
    // A NaN fails the comparison.
    if x > 0.0 { x.min(LARGEST) } else { 0.0 }
}

pub(super) fn clean_variance(x: f64) -> f64 {
    if x > 0.0 { x.min(LARGEST * LARGEST) } else { 0.0 }
}

/// Square root by Newton's method, to a relative error below 1e-12.
pub(super) fn sqrt(x: f64) -> f64 {
    if !(x > 0.0 && x.is_finite()) {
        return 0.0;
    }
    // Halving the exponent gives a start within a factor of two.
    let mut guess = f64::from_bits((x.to_bits() >> 1) + (1023 << 51));
    for _ in 0..6 {
        guess = 0.5 * (guess + x / guess);
    }
    guess
}

/// `1 - e^-x`, for x of at least 0, without losing small values.
pub(super) fn one_minus_exp_neg(x: f64) -> f64 {
    if x.is_nan() || x <= 0.0 {
        return 0.0;
    }
    if x > 50.0 {
        return 1.0;
    }
    // For a small y the series; then 1 - e^-2y = u (2 - u) with u = 1 - e^-y.
    let mut y = x;
    let mut doublings = 0;
    while y > 0.125 {
        y *= 0.5;
        doublings += 1;
    }
    let mut u = 0.0;
    for n in (1..=10).rev() {
        // Horner: y (1 - y/2 (1 - y/3 (…)))
        u = y / f64::from(n) * (1.0 - u);
    }
    for _ in 0..doublings {
        u *= 2.0 - u;
    }
    u.clamp(0.0, 1.0)
}

/// `-ln(1 - u)`, the inverse of [`one_minus_exp_neg`], for u in 0 to 1; at most 20.
pub(super) fn neg_ln_one_minus(u: f64) -> f64 {
    if u.is_nan() || u <= 0.0 {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, 20.0);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if one_minus_exp_neg(middle) < u {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a printed table.
    #[test]
    fn quantiles_of_students_distribution() {
        let table = [
            (1, 6.314),
            (2, 2.920),
            (3, 2.353),
            (4, 2.132),
            (5, 2.015),
            (7, 1.895),
            (10, 1.812),
            (29, 1.699),
            (120, 1.658),
        ];
        for (degrees, quantile) in table {
            assert!((student95(degrees) / quantile - 1.0).abs() < 0.01, "{degrees}: {}", student95(degrees));
        }
    }

    #[test]
    fn agrees_with_the_standard_library() {
        let mut x = 1e-12;
        while x < 1e40 {
            let root = f64::sqrt(x);
            assert!((sqrt(x) - root).abs() <= 1e-12 * root, "sqrt({x})");
            let exp = -f64::exp_m1(-x);
            assert!((one_minus_exp_neg(x) - exp).abs() <= 1e-12 * exp, "1 - e^-{x}");
            if x < 10.0 {
                assert!((neg_ln_one_minus(exp) - x).abs() <= 1e-9 * x.max(1e-6), "-ln(1 - {exp})");
            }
            x *= 1.37;
        }
        for bad in [f64::NAN, -1.0, f64::NEG_INFINITY, 0.0] {
            assert_eq!((sqrt(bad), one_minus_exp_neg(bad), neg_ln_one_minus(bad), clean(bad)), (0.0, 0.0, 0.0, 0.0));
        }
        assert_eq!(one_minus_exp_neg(f64::INFINITY), 1.0);
        assert_eq!(clean(f64::INFINITY), 1e20);
    }
}
