//! What is printed.

use serde::Serialize;

use crate::machine::load;

/// One line.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    bench: &'static str,
    case: &'a str,
    unit: &'static str,
    ours: f64,
    peer: &'a str,
    theirs: f64,
    ratio: f64,
    goal: &'a str,
    met: bool,
    samples: usize,
    /// Median distance of the rounds' ratios from their median.
    ratio_mad: f64,
    /// Processes that wanted a processor during the last minute, the bench's own among them.
    load: f64,
}

/// The samples of one case. `ours[i]` and `theirs[i]` were taken right after one another.
pub struct Case<'a> {
    pub name: &'a str,
    pub unit: &'static str,
    pub peer: &'a str,
    pub goal: &'a str,
    pub ours: Vec<f64>,
    pub theirs: Vec<f64>,
}

impl Case<'_> {
    /// Prints the medians, the ratio being that of the rounds. `is_met` gets the case's three medians: ours, theirs, ratio.
    pub fn print(&self, is_met: impl Fn(f64, f64, f64) -> bool) {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs).collect();
        let (ours, theirs, ratio) = (median(&self.ours), median(&self.theirs), median(&ratios));
        let distances: Vec<f64> = ratios.iter().map(|r| (r - ratio).abs()).collect();
        let line = Line {
            bench: "migrate",
            case: self.name,
            unit: self.unit,
            ours: rounded(ours),
            peer: self.peer,
            theirs: rounded(theirs),
            ratio: rounded(ratio),
            goal: self.goal,
            met: is_met(ours, theirs, ratio),
            samples: ratios.len(),
            ratio_mad: rounded(median(&distances)),
            load: load(),
        };
        println!("{}", serde_json::to_string(&line).unwrap());
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
