//! The plot of `gmem bench`: a bar for each case, on a logarithmic scale, with its limit as a mark.

use plotters::prelude::*;

use super::Row;

const ROW: i32 = 18;
const WIDTH: u32 = 1000;
const LABELS: i32 = 360;

/// The plot as SVG text. Rows that have no size to draw are left out.
///
/// # Errors
/// What the plotting library says.
pub(super) fn svg(title: &str, rows: &[Row]) -> Result<String, String> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.median() > 0.0).collect();
    let height = (rows.len() as i32 * ROW + 90) as u32;
    let mut text = String::new();
    draw(&mut text, title, &rows, height).map_err(|error| error.to_string())?;
    Ok(text)
}

fn draw(text: &mut String, title: &str, rows: &[&Row], height: u32) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let (mut low, mut high) = (1.0f64, 10.0f64);
    for value in rows.iter().flat_map(|row| [Some(row.median()), row.case.limit]).flatten() {
        low = low.min(value / 1.5);
        high = high.max(value * 1.5);
    }
    let count = rows.len().max(1) as f64;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .margin_left(LABELS)
        .x_label_area_size(32)
        .build_cartesian_2d((low..high).log_scale(), count..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("nanoseconds, or bytes, for each element")
        .draw()?;
    for (index, row) in (0u32..).zip(rows) {
        let (top, bottom) = (f64::from(index) + 0.2, f64::from(index) + 0.8);
        let is_over = row.case.limit.is_some_and(|limit| row.median() > limit);
        let colour = match (row.case.is_peer, is_over) {
            (true, _) => RGBColor(160, 160, 160),
            (_, true) => RGBColor(200, 80, 60),
            (_, false) => RGBColor(60, 110, 180),
        };
        chart.draw_series([Rectangle::new([(low, top), (row.median(), bottom)], colour.filled())])?;
        if let Some(limit) = row.case.limit {
            let mark = [(limit, f64::from(index) + 0.05), (limit, f64::from(index) + 0.95)];
            chart.draw_series([PathElement::new(mark, BLACK.stroke_width(2))])?;
        }
        let (_, y) = chart.backend_coord(&(low, f64::from(index) + 0.5));
        let style = TextStyle::from(("sans-serif", 12).into_font());
        area.draw_text(&row.case.id().replace('_', " "), &style, (10, y - 6))?;
        let value = format!("{:.1} {}", row.median(), row.unit());
        area.draw_text(&value, &style, (LABELS - 80, y - 6))?;
    }
    area.present()?;
    Ok(())
}
