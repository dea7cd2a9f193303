//! The one table that all of it ends in.

use std::fmt;

/// What a measurement is to reach.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Ours over the baseline, at most.
    RatioAtMost(f64),
    /// Ours over the baseline, at least.
    RatioAtLeast(f64),
    /// Ours alone, at most.
    AtMost(f64),
    /// Ours alone, at least.
    AtLeast(f64),
    /// Nothing; it is there to be known.
    None,
}

/// One measurement, in medians.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The unit of both sides.
    pub unit: &'static str,
    /// Ours.
    pub ours: f64,
    /// What it is held against.
    pub baseline: Option<f64>,
    /// Ours over that.
    pub ratio: Option<f64>,
    /// What it is to reach.
    pub goal: Goal,
    /// Runs of ours, and of the baseline.
    pub runs: [usize; 2],
}

impl Row {
    /// Medians of two sides' runs.
    pub fn new(name: &str, unit: &'static str, ours: &[f64], baseline: &[f64], goal: Goal) -> Self {
        Self::of(median, name, unit, ours, Some(baseline), goal)
    }

    /// The same of sides that were measured in turns within each run, and whose
    /// runs differ by how fast the machine is just then more than by anything
    /// else: the ratio is the median of the runs' own.
    pub fn paired(name: &str, unit: &'static str, ours: &[f64], baseline: &[f64], goal: Goal) -> Self {
        let ratios: Vec<f64> = ours.iter().zip(baseline).map(|(ours, baseline)| ours / baseline).collect();
        Self { ratio: Some(median(&ratios)), ..Self::new(name, unit, ours, baseline, goal) }
    }

    /// The same, of anything but the median too, and without another side.
    pub fn of(
        number: fn(&[f64]) -> f64,
        name: &str,
        unit: &'static str,
        ours: &[f64],
        baseline: Option<&[f64]>,
        goal: Goal,
    ) -> Self {
        let runs = [ours.len(), baseline.unwrap_or_default().len()];
        let (ours, baseline) = (number(ours), baseline.map(number));
        let ratio = baseline.filter(|baseline| *baseline > 0.0).map(|baseline| ours / baseline);
        Self { name: name.to_owned(), unit, ours, baseline, ratio, goal, runs }
    }

    /// A size, with nothing beside it.
    pub fn alone(name: &str, unit: &'static str, ours: f64, goal: Goal) -> Self {
        Self::of(median, name, unit, &[ours], None, goal)
    }

    fn cells(&self) -> [String; 7] {
        let value = |value: f64| format!("{} {}", digits(value), self.unit).trim_end().to_owned();
        let (goal, met) = match self.goal {
            Goal::RatioAtMost(most) => (format!("≤ {most}"), self.ratio.map(|ratio| ratio <= most)),
            Goal::RatioAtLeast(least) => (format!("≥ {least}"), self.ratio.map(|ratio| ratio >= least)),
            Goal::AtMost(most) => {
                (format!("≤ {most} {}", self.unit).trim_end().to_owned(), Some(self.ours <= most))
            }
            Goal::AtLeast(least) => (format!("≥ {least} {}", self.unit), Some(self.ours >= least)),
            Goal::None => (String::new(), None),
        };
        let met = met.map_or("", |met| if met { "yes" } else { "no" });
        let runs = match self.runs {
            [ours, 0] => ours.to_string(),
            [ours, baseline] if ours == baseline => ours.to_string(),
            [ours, baseline] => format!("{ours}, {baseline}"),
        };
        [
            self.name.clone(),
            runs,
            value(self.ours),
            self.baseline.map(value).unwrap_or_default(),
            self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            goal,
            met.to_owned(),
        ]
    }
}

/// Three digits are more than a noisy machine is worth.
fn digits(value: f64) -> String {
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ if value.fract() == 0.0 => 0,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (Some(low), Some(high)) if sorted.len().is_multiple_of(2) => (low + high) / 2.0,
        (_, value) => value.copied().unwrap_or(f64::NAN),
    }
}

/// The worst one, of what is to be small.
pub fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// All rows, as people and Markdown read them.
#[derive(Debug)]
pub struct Table(pub Vec<Row>);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["name", "runs", "ours", "baseline", "ratio", "goal", "met"].map(str::to_owned);
        let lines: Vec<[String; 7]> = std::iter::once(head).chain(self.0.iter().map(Row::cells)).collect();
        let width =
            |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        for (number, line) in lines.iter().enumerate() {
            for (column, cell) in line.iter().enumerate() {
                let width = width(column);
                if column == 0 { write!(f, "| {cell:width$} |") } else { write!(f, " {cell:>width$} |") }?;
            }
            writeln!(f)?;
            if number == 0 {
                for column in 0..line.len() {
                    let dashes = "-".repeat(width(column) + 1);
                    if column == 0 { write!(f, "|{dashes}-|") } else { write!(f, "{dashes}:|") }?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_goal_is_met_or_not() {
        let met = |ours: f64, goal| Row::new("", "ms", &[ours], &[100.0], goal).cells()[6].clone();
        assert_eq!(met(130.0, Goal::RatioAtMost(1.3)), "yes");
        assert_eq!(met(131.0, Goal::RatioAtMost(1.3)), "no");
        assert_eq!(met(84.0, Goal::RatioAtLeast(0.85)), "no");
        assert_eq!(met(7.0, Goal::AtMost(8.0)), "yes");
        assert_eq!(met(7.0, Goal::AtLeast(8.0)), "no");
        assert_eq!(met(7.0, Goal::None), "");
    }

    #[test]
    fn pairs_are_compared_run_by_run() {
        // The machine became slower and slower.
        let (ours, baseline) = ([90.0, 72.0, 20.0], [100.0, 60.0, 25.0]);
        assert_eq!(Row::paired("", "", &ours, &baseline, Goal::None).ratio, Some(0.9));
        assert_eq!(Row::new("", "", &ours, &baseline, Goal::None).ratio, Some(1.2));
    }

    #[test]
    fn runs_are_counted() {
        let runs = |ours: &[f64], baseline| Row::of(worst, "", "ms", ours, baseline, Goal::None).cells();
        assert_eq!(runs(&[1.0, 3.0, 2.0], None)[1..4], ["3", "3 ms", ""]);
        assert_eq!(runs(&[1.0, 3.0], Some(&[7.5]))[1..5], ["2, 1", "3 ms", "7.50 ms", "0.40"]);
        assert_eq!(runs(&[1.0], Some(&[0.0]))[1..5], ["1", "1 ms", "0 ms", ""], "over nothing is no ratio");
    }
}
