//! Figures as a table in Markdown, and as a page with the charts.

use std::fmt::Write;

use super::figures::{Aim, Curve, Figures, Line, Number, Value};

impl Figures {
    /// Returns the machine, the table, failures and charts. `before` has earlier values of the same
    /// lines.
    pub fn markdown(&self, before: Option<&Self>) -> String {
        let mut text = self.described();
        let head = ["#", "what", "ours", "against", "ratio", "aim", "met"];
        let mut head = head.map(str::to_owned).to_vec();
        if let Some(before) = before {
            text.push_str(&format!(
                "\"before\" is the same line at commit {}, measured by the same program ([before.json](before.json)): the number, and its ratio.\n\n",
                before.machine.commit
            ));
            head.push(format!("before ({})", before.machine.commit));
        }
        let rule = vec!["---".to_owned(); head.len()];
        let mut rows = vec![head, rule];
        rows.extend(self.lines.iter().map(|line| {
            let mut cells = cells(line);
            cells.extend(before.map(|before| earlier(before, line)));
            cells
        }));
        for row in rows {
            text.push_str(&format!("| {} |\n", row.join(" | ")));
        }
        for failure in &self.failed {
            let reason = failure.reason.lines().next().unwrap_or_default();
            text.push_str(&format!(
                "\nRow {} **could not be measured**, or not all of it: {reason}\n",
                failure.row
            ));
        }
        for Curve { name, title, .. } in &self.curves {
            text.push_str(&format!("\n![{title}]({name}.svg)\n"));
        }
        text
    }

    fn described(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "{}, {} cores, {} MiB, Linux {}, {}; {}, commit {}.",
            machine.processor,
            machine.cores,
            machine.memory,
            machine.kernel,
            machine.system,
            machine.day,
            machine.commit
        );
        if self.quick {
            text.push_str(" **A quick run: few runs, small crowds.**");
        }
        if !machine.profile.is_empty() {
            let profile = machine.profile.join(" ");
            text.push_str(&format!(" **Not built as it is shipped: {profile}.**"));
        }
        text.push_str("\n\n");
        text
    }
}

fn cells(line: &Line) -> Vec<String> {
    let peers = line
        .peers
        .iter()
        .map(|peer| format!("{}: {}", peer.name, said(&peer.value)));
    let ratio = line.ratio().map(|ratio| format!("{ratio:.2}"));
    let met = line.met().map(|met| if met { "yes" } else { "**no**" });
    vec![
        line.row.to_string(),
        line.what.clone(),
        said(&line.ours),
        peers.collect::<Vec<_>>().join("<br>"),
        ratio.unwrap_or_default(),
        aim(line),
        met.unwrap_or_default().to_owned(),
    ]
}

fn aim(line: &Line) -> String {
    let of = |peer: usize| line.peers.get(peer).map_or("?", |peer| peer.name.as_str());
    match line.aim {
        None => String::new(),
        Some(Aim::Within { peer, times }) => format!("at most {times} of {}", of(peer)),
        Some(Aim::Reaches { peer, times }) => format!("at least {times} of {}", of(peer)),
        Some(Aim::AtMost(limit)) => format!("at most {limit}"),
        Some(Aim::Exactly(number)) => format!("{number}"),
    }
}

/// Formats the earlier value of a line: its ratio if there is one, and the number.
fn earlier(before: &Figures, line: &Line) -> String {
    let same = |other: &&Line| (other.row, &other.what) == (line.row, &line.what);
    let Some(line) = before.lines.iter().find(same) else {
        return String::new();
    };
    let median = match &line.ours {
        Value::Number(number) => median(number),
        Value::Text(text) => text.clone(),
    };
    match line.ratio() {
        Some(ratio) => format!("{median}; {ratio:.2}"),
        None => median,
    }
}

pub(super) fn said(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Number(number) if number.runs == 1 => median(number),
        Value::Number(number) => {
            let mut text = median(number);
            let (low, high) = (digits(number.low), digits(number.high));
            let _ = write!(text, " ({low} to {high}, n={})", number.runs);
            text
        }
    }
}

fn median(number: &Number) -> String {
    let text = format!("{} {}", digits(number.median), number.unit);
    text.trim_end().to_owned()
}

/// Formats a number with three digits, or all digits before the point.
pub(super) fn digits(number: f64) -> String {
    let places = match number.abs() {
        size if size.fract() == 0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{number:.places$}");
    let whole = text.len() - text.find('.').map_or(0, |point| text.len() - point);
    let mut out = String::new();
    for (at, digit) in text.char_indices() {
        let left = whole.saturating_sub(at);
        if at > 0 && at < whole && left.is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.5, "0.50"),
            (6.0, "6"),
            (3.456, "3.46"),
            (45.67, "45.7"),
            (99.96, "100"),
            (1234.5, "1,234"),
            (16280.0, "16,280"),
            (1_234_567.0, "1,234,567"),
        ];
        for (number, text) in cases {
            assert_eq!(digits(number), text);
        }
    }

    #[test]
    fn an_aim_is_judged_by_the_ratio_that_is_shown() {
        let number = |median| Number::one("ms", median);
        let line = |ours: f64, aim| {
            Line::new(5, "a mount", number(ours))
                .peer("nsenter", number(2.0))
                .aim(aim)
        };
        let within = Aim::Within {
            peer: 0,
            times: 1.1,
        };
        assert_eq!(line(2.204, within).met(), Some(true));
        assert_eq!(line(2.3, within).met(), Some(false));
        let reaches = Aim::Reaches {
            peer: 0,
            times: 1.0,
        };
        assert_eq!(line(1.9, reaches).met(), Some(false));
        assert_eq!(line(0.0, Aim::AtMost(0.0)).met(), Some(true));
        assert_eq!(line(999.0, Aim::Exactly(1000.0)).met(), Some(false));
        let unknown = Line::new(5, "a mount", number(1.0))
            .peer("nsenter", Value::Text("more than 60 s".into()))
            .aim(within);
        assert_eq!((unknown.ratio(), unknown.met()), (None, None));
    }
}
