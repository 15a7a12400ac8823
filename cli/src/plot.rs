//! Utilisation and acceptance over time, as an SVG.

use anyhow::anyhow;
use plotters::prelude::*;

use crate::simulate::Sample;

/// Points of a line; more are thinned out.
const POINTS: usize = 2_000;
const HELD: &str = "GPUs held";
const ACCEPTED: &str = "asked for and given at once, so far";

pub(crate) fn svg(series: &[Sample]) -> anyhow::Result<String> {
    let mut text = String::new();
    draw(series, &mut text).map_err(|error| anyhow!("cannot draw: {error}"))?;
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
    let every = series.len().div_ceil(POINTS).max(1);
    for (label, colour) in [(HELD, BLUE), (ACCEPTED, RED)] {
        let points = series.iter().step_by(every).map(|sample| {
            let value = if label == HELD {
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
