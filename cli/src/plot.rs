//! Utilisation and acceptance over time, as an SVG.

use anyhow::anyhow;
use plotters::prelude::*;

use crate::simulation::report::Sample;

/// The most points per line; of more, only every second, third, ... is drawn.
const MAX_POINTS: usize = 2_000;
const IN_USE: &str = "GPUs in use";
const ACCEPTED: &str = "requested GPUs given on arrival, so far";

pub(crate) fn svg(series: &[Sample]) -> anyhow::Result<String> {
    let mut text = String::new();
    draw(series, &mut text).map_err(|error| anyhow!("cannot draw the plot: {error}"))?;
    Ok(text)
}

fn draw(series: &[Sample], text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, (960, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let end = series.last().map_or(1.0, |sample| sample.at).max(1.0);
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..end, 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("%")
        .draw()?;
    let every = series.len().div_ceil(MAX_POINTS).max(1);
    for (label, colour) in [(IN_USE, BLUE), (ACCEPTED, RED)] {
        let points = series.iter().step_by(every).map(|sample| {
            let value = if label == IN_USE {
                sample.utilisation
            } else {
                sample.accepted
            };
            (sample.at, value)
        });
        chart
            .draw_series(LineSeries::new(points, colour))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .position(SeriesLabelPosition::LowerRight)
        .draw()?;
    root.present()?;
    Ok(())
}
