//! A curve as a chart (SVG): linear axes from 0, a line for each series, with its quartiles as a
//! band.

use super::figures::{Curve, Series};
use super::table::digits;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 82.0;
const BOTTOM: f64 = 46.0;
/// Colours that differ for people who confuse red and green.
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// Draws a chart.
pub fn svg(curve: &Curve) -> String {
    let largest = |pick: fn(&[f64; 4]) -> f64| {
        let points = curve.series.iter().flat_map(|series| &series.points);
        points.map(pick).fold(0.0, f64::max)
    };
    let (across, up) = (
        Axis::new(largest(|point| point[0]), LEFT, WIDTH - RIGHT),
        Axis::new(
            largest(|point| point[1].max(point[3])),
            HEIGHT - BOTTOM,
            TOP,
        ),
    );
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    text(&mut out, LEFT, 20.0, "start", &curve.title);
    text(
        &mut out,
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 10.0,
        "middle",
        &curve.across,
    );
    text(&mut out, LEFT, TOP - 8.0, "end", &curve.up);
    for tick in up.ticks() {
        let y = up.place(tick);
        line(&mut out, [LEFT, y, WIDTH - RIGHT, y]);
        text(&mut out, LEFT - 6.0, y + 4.0, "end", &digits(tick));
    }
    for tick in across.ticks() {
        let x = across.place(tick);
        line(&mut out, [x, HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 5.0]);
        text(&mut out, x, HEIGHT - BOTTOM + 18.0, "middle", &digits(tick));
    }
    let [mut x, mut y] = [LEFT, 30.0];
    for (series, colour) in curve.series.iter().zip(COLOURS.iter().cycle()) {
        draw(&mut out, series, colour, [&across, &up]);
        let width = 40.0 + 7.2 * series.name.chars().count() as f64;
        if x > LEFT && x + width > WIDTH {
            [x, y] = [LEFT, y + 16.0];
        }
        out.push_str(&format!(
            "<rect x=\"{x:.1}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n"
        ));
        text(&mut out, x + 18.0, y + 10.0, "start", &series.name);
        x += width;
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, series: &Series, colour: &str, [across, up]: [&Axis; 2]) {
    let places = |pick: usize| {
        let points = series.points.iter();
        points.map(move |point| {
            let (x, y) = (across.place(point[0]), up.place(point[pick]));
            format!("{x:.1},{y:.1}")
        })
    };
    let band: Vec<_> = places(2).chain(places(3).rev()).collect();
    let middle: Vec<_> = places(1).collect();
    out.push_str(&format!(
        "<polygon points=\"{}\" fill=\"{colour}\" fill-opacity=\"0.15\"/>\n\
         <polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
        band.join(" "),
        middle.join(" ")
    ));
    for place in middle {
        if let Some((x, y)) = place.split_once(',') {
            out.push_str(&format!(
                "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>\n"
            ));
        }
    }
}

fn line(out: &mut String, [x1, y1, x2, y2]: [f64; 4]) {
    out.push_str(&format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ccc\"/>\n"
    ));
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    out.push_str(&format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#333\">{text}</text>\n"
    ));
}

/// An axis from 0 to a round number, with its labels.
struct Axis {
    step: f64,
    end: f64,
    places: [f64; 2],
}

impl Axis {
    fn new(largest: f64, from: f64, to: f64) -> Self {
        let rough = if largest > 0.0 { largest / 5.0 } else { 1.0 };
        let power = 10_f64.powf(rough.log10().floor());
        let round = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
        let step = round.into_iter().find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(rough);
        Self {
            step,
            end: (largest / step).ceil().max(1.0) * step,
            places: [from, to],
        }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = (self.end / self.step).round() as u32;
        let step = self.step;
        (0..=count).map(move |number| f64::from(number) * step)
    }

    fn place(&self, number: f64) -> f64 {
        let [from, to] = self.places;
        from + (to - from) * number / self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_where_their_numbers_are() {
        let series = Series {
            name: "a & b".into(),
            points: vec![[0.0, 0.0, 0.0, 0.0], [100.0, 10.0, 9.0, 10.0]],
        };
        let curve = Curve {
            name: "x".into(),
            title: "t".into(),
            across: "mounts".into(),
            up: "ms".into(),
            series: vec![series],
        };
        let drawn = svg(&curve);
        // The line goes from the lower left corner to the upper right one, because both ends are
        // round.
        assert!(
            drawn.contains("polyline points=\"64.0,314.0 692.0,82.0\""),
            "{drawn}"
        );
        assert!(drawn.contains("a &amp; b"));
        assert!(drawn.contains(">100</text>") && drawn.contains(">10</text>"));
    }
}
