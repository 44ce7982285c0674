//! Percentiles in characters.

use hdrhistogram::Histogram;

const COLUMNS: usize = 72;
const ROWS: usize = 12;

/// Latency over percentile; both axes logarithmic, so that each 9 takes the same width. `histogram`: in ns.
pub fn percentile_plot(histogram: &Histogram<u64>) -> String {
    // No further to the right than there are messages to speak of.
    let nines = (histogram.len() as f64).log10().clamp(1.0, 6.0);
    let quantile = |column: usize| 1.0 - 10_f64.powf(-nines * column as f64 / (COLUMNS - 1) as f64);
    let values: Vec<f64> = (0..COLUMNS).map(|c| histogram.value_at_quantile(quantile(c)).max(1) as f64).collect();
    let (low, high) = (values[0].ln(), (histogram.max().max(2) as f64).ln());
    let step = ((high - low) / (ROWS - 1) as f64).max(f64::MIN_POSITIVE);
    let heights: Vec<usize> = values.iter().map(|v| ((v.ln() - low) / step).round() as usize).collect();
    let mut text = String::new();
    for row in (0..ROWS).rev() {
        let bars: String = heights
            .iter()
            .map(|h| {
                if *h == row {
                    '#'
                } else if *h > row {
                    ':'
                } else {
                    ' '
                }
            })
            .collect();
        text += &format!("{:>12} |{}\n", micros((low + step * row as f64).exp()), bars.trim_end());
    }
    text += &format!("{:>12} +{}\n", "", "-".repeat(COLUMNS));
    let mut labels = vec![b' '; COLUMNS + 8];
    for (nine, label) in ["0", "90%", "99%", "99.9%", "99.99%", "99.999%", "99.9999%"].iter().enumerate() {
        let column = (nine as f64 / nines * (COLUMNS - 1) as f64).round() as usize;
        if column < COLUMNS {
            labels[column..column + label.len()].copy_from_slice(label.as_bytes());
        }
    }
    text + &format!("{:>12}  {}", "", String::from_utf8_lossy(&labels).trim_end())
}

fn micros(ns: f64) -> String {
    match ns {
        ns if ns < 1e6 => format!("{:.0} µs", ns / 1e3),
        ns if ns < 1e7 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.0} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_rises_to_the_right() {
        let mut histogram = crate::histogram::empty();
        for i in 1..=100_000_u64 {
            histogram.record(if i > 99_900 { 5_000_000 } else { 80_000 + i }).unwrap();
        }
        let plot = percentile_plot(&histogram);
        let lines: Vec<&str> = plot.lines().collect();
        assert_eq!(lines.len(), ROWS + 2);
        assert!(lines[0].contains("5.0 ms") && lines[ROWS - 1].contains("80 µs"), "{plot}");
        let (top, bottom) = (lines[0].find('#').unwrap(), lines[ROWS - 1].find('#').unwrap());
        assert!(top > bottom, "{plot}");
    }
}
