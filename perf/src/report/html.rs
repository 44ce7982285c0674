//! One page with the charts inside: no script, no file beside it.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{RunReport, thousands};
use crate::Outcome;

const SIZE: (u32, u32) = (860, 320);
/// Told apart by colour-blind eyes too.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
    RGBColor(0, 0, 0),
];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}svg{max-width:100%;height:auto}\
.t{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.3em .7em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}\
td:first-child,th:first-child{text-align:left}.bad{color:#b00020;font-weight:bold}.s{display:inline-block;width:.8em;height:.8em;margin-right:.5em}";

/// The page.
pub(super) fn page(outcome: &Outcome) -> Result<String> {
    let runs: Vec<&RunReport> = outcome.runs.iter().filter(|r| r.messages.is_some()).collect();
    let mut body = String::from("<h1>Ringmain benchmark</h1>\n");
    if let Some(run) = outcome.runs.first() {
        let words = [
            Some(run.date.clone()),
            Some(format!("kernel {}", run.kernel)),
            run.filesystem.clone(),
            run.device.clone(),
            Some(format!("version {}", run.version)),
        ];
        body += &format!("<p>{}</p>\n", escape(&words.into_iter().flatten().collect::<Vec<_>>().join(" · ")));
    }
    if !runs.is_empty() {
        body += &table(&runs);
        body += "<h2>Latency by percentile</h2>\n";
        body += &percentiles(&runs)?;
        let with_curve: Vec<&RunReport> = runs.iter().copied().filter(|r| r.over_time.len() > 1).collect();
        if !with_curve.is_empty() {
            body += "<h2>Messages per second over time</h2>\n";
            body += &over_time(&with_curve, "messages/s", |p| Some(p.messages_per_second))?;
            body += "<h2>99th percentile over time, µs</h2>\n";
            body += &over_time(&with_curve, "p99 µs", |p| p.p99_us)?;
        }
    }
    for limits in outcome.runs.iter().filter_map(|r| r.limits.as_ref()) {
        body += "<h2>Limits of this machine</h2>\n<div class=t><table>";
        for (name, value) in limits.rows() {
            body += &format!("<tr><td>{}<td>{}", escape(&name), escape(&value));
        }
        body += "</table></div>\n";
    }
    Ok(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>Ringmain benchmark</title><style>{STYLE}</style>\n<body>\n{body}</body></html>\n"
    ))
}

fn table(runs: &[&RunReport]) -> String {
    let mut text = String::from(
        "<div class=t><table><tr><th>run<th>messages/s<th>MB/s<th>p50 µs<th>p90<th>p99<th>p99.9<th>p99.99<th>max<th>broker CPU s/M<th>client CPU s/M<th>RSS MiB<th>device/payload<th>verified",
    );
    for (index, run) in runs.iter().enumerate() {
        let RGBColor(r, g, b) = COLOURS[index % COLOURS.len()];
        text += &format!("<tr><td><span class=s style=\"background:rgb({r},{g},{b})\"></span>{}", escape(&run.title()));
        let latency = &run.latency_us;
        let mut cells = vec![run.messages_per_second.map(thousands), run.megabytes_per_second.map(|v| format!("{v:.1}"))];
        cells.extend(
            [latency.p50, latency.p90, latency.p99, latency.p999, latency.p9999, latency.max].map(|v| v.map(|v| format!("{v:.1}"))),
        );
        cells.extend([run.broker_cpu_seconds_per_million, run.client_cpu_seconds_per_million].map(|v| v.map(|v| format!("{v:.3}"))));
        cells.push(run.broker_rss_bytes.map(|b| (b >> 20).to_string()));
        cells.push(run.device_bytes_per_payload_byte.map(|v| format!("{v:.2}")));
        for cell in cells {
            text += &format!("<td>{}", cell.unwrap_or_else(|| "–".into()));
        }
        text += &match &run.fault {
            None => "<td>yes".to_owned(),
            Some(fault) => format!("<td class=bad>no: {}", escape(fault)),
        };
    }
    text + "</table></div>\n"
}

/// Logarithmic in both directions: x is the number of messages of which one is slower.
fn percentiles(runs: &[&RunReport]) -> Result<String> {
    let curves: Vec<(usize, Vec<(f64, f64)>)> = runs
        .iter()
        .enumerate()
        .filter_map(|(index, run)| {
            let total = &run.recording.as_ref()?.total;
            let most = total.len() as f64;
            let points = total
                .iter_quantiles(10)
                .map(|step| ((1.0 / (1.0 - step.quantile_iterated_to())).min(most), step.value_iterated_to() as f64 / 1e3));
            (most > 0.0).then(|| (index, points.filter(|(x, _)| *x >= 1.0).collect()))
        })
        .collect();
    let all = || curves.iter().flat_map(|(_, points)| points.iter());
    let (x_end, y_end) = all().fold((10.0_f64, 1.0_f64), |(x, y), p| (x.max(p.0), y.max(p.1)));
    let y_start = all().fold(y_end, |y, p| y.min(p.1));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(34)
            .y_label_area_size(72)
            .build_cartesian_2d((1.0..x_end).log_scale(), (y_start * 0.8..y_end * 1.2).log_scale())
            .map_err(|e| anyhow!("the percentile chart: {e}"))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|x| percentile_label(*x))
            .y_label_formatter(&|y| format!("{} µs", thousands(*y)))
            .draw()
            .map_err(|e| anyhow!("the percentile chart: {e}"))?;
        for (index, points) in curves {
            let colour = COLOURS[index % COLOURS.len()];
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2))).map_err(|e| anyhow!("the percentile chart: {e}"))?;
        }
        root.present().map_err(|e| anyhow!("the percentile chart: {e}"))?;
    }
    Ok(svg)
}

/// One in 1,000 slower = 99.9 %.
fn percentile_label(one_in: f64) -> String {
    let nines = one_in.log10().round().max(0.0) as usize;
    match nines {
        0 => "0 %".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        nines => format!("99.{} %", "9".repeat(nines - 2)),
    }
}

fn over_time(runs: &[&RunReport], label: &str, value: impl Fn(&crate::histogram::Point) -> Option<f64>) -> Result<String> {
    let fail = |e: &dyn std::fmt::Display| anyhow!("the chart of {label} over time: {e}");
    let points = |run: &RunReport| -> Vec<(f64, f64)> { run.over_time.iter().filter_map(|p| Some((p.at_seconds, value(p)?))).collect() };
    let (x_end, y_end) = runs.iter().flat_map(|run| points(run)).fold((0.1_f64, 1.0_f64), |(x, y), p| (x.max(p.0), y.max(p.1)));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(34)
            .y_label_area_size(88)
            .build_cartesian_2d(0.0..x_end, 0.0..y_end * 1.1)
            .map_err(|e| fail(&e))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("seconds")
            .y_label_formatter(&|y| thousands(*y))
            .draw()
            .map_err(|e| fail(&e))?;
        for (index, run) in runs.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            chart.draw_series(LineSeries::new(points(run), colour.stroke_width(2))).map_err(|e| fail(&e))?;
        }
        root.present().map_err(|e| fail(&e))?;
    }
    Ok(svg)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
