//! Pods from a trace: a CSV with a pod per line.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use csv::StringRecord;
use domain::{
    config::Config,
    demand::{ContainerKind, Demand},
    request::{ContainerRequest, PodRequest},
};

use super::pod::SimulatedPod;

/// Columns that are not resources.
const COLUMNS: [&str; 3] = ["arrival", "lifetime", "name"];

/// A line, by column.
type Row = BTreeMap<String, String>;

pub(super) fn trace(text: &str, config: &Config) -> anyhow::Result<Vec<SimulatedPod>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(text.as_bytes());
    let resources = Resources::new(config);
    resources.check(reader.headers()?)?;
    let mut pods = Vec::new();
    for (number, row) in reader.deserialize::<Row>().enumerate() {
        let line = || format!("line {}", number + 2);
        let row = row.with_context(line)?;
        let demand = Demand::read(&resources.request(&row), config).with_context(line)?;
        let Some(demand) = demand else { continue };
        let name = row.get("name").filter(|name| !name.is_empty());
        pods.push(SimulatedPod {
            name: name
                .cloned()
                .unwrap_or_else(|| format!("pod-{}", number + 1)),
            demand,
            arrival: seconds(&row, "arrival").with_context(line)?.unwrap_or(0.0),
            lifetime: seconds(&row, "lifetime").with_context(line)?,
        });
    }
    pods.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
    Ok(pods)
}

fn seconds(row: &Row, column: &str) -> anyhow::Result<Option<f64>> {
    let Some(text) = row.get(column).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let seconds: Option<f64> = text.parse().ok();
    match seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0) {
        Some(seconds) => Ok(Some(seconds)),
        None => bail!("{column} {text:?} is not a time; write seconds, such as 12.5"),
    }
}

/// The columns that are resources, by their short and by their full name.
struct Resources {
    count: String,
    by_column: BTreeMap<&'static str, String>,
}

impl Resources {
    fn new(config: &Config) -> Self {
        let [count, mib, percent, cores] = config.resource_names().map(str::to_owned);
        Self {
            count: count.clone(),
            by_column: BTreeMap::from([
                ("gpu", count),
                ("gpumem", mib),
                ("gpumem-percentage", percent),
                ("gpucores", cores),
            ]),
        }
    }

    /// The resource of a column; `None`: it is not a resource.
    fn of_column<'a>(&'a self, column: &str) -> Option<&'a String> {
        let mut all = self.by_column.iter();
        let found = all.find(|(short, full)| **short == column || *full == column);
        found.map(|(_, full)| full)
    }

    fn check(&self, headers: &StringRecord) -> anyhow::Result<()> {
        let is_known = |column: &&str| COLUMNS.contains(column) || self.of_column(column).is_some();
        match headers.iter().find(|column| !is_known(column)) {
            None => Ok(()),
            Some(unknown) => bail!(
                "column {unknown:?} is unknown; write arrival, lifetime, name, gpu, gpumem, gpumem-percentage or gpucores"
            ),
        }
    }

    /// What a pod of one container asks for; one device where the line has no number.
    fn request(&self, row: &Row) -> PodRequest {
        let asked = row.iter().filter(|(_, text)| !text.is_empty());
        let resources = asked
            .filter_map(|(column, text)| Some((self.of_column(column)?.clone(), text.clone())));
        let mut resources: BTreeMap<String, String> = resources.collect();
        resources
            .entry(self.count.clone())
            .or_insert_with(|| "1".to_owned());
        PodRequest {
            annotations: BTreeMap::new(),
            containers: vec![ContainerRequest {
                name: "main".to_owned(),
                kind: ContainerKind::App,
                resources,
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_in_the_order_of_arrival() {
        let text = "name,arrival,lifetime,gpumem\nb,5,1,8000\na,1.5,,20000\n";
        let read = trace(text, &Config::default()).unwrap();
        assert_eq!((read[0].name.as_str(), read[0].lifetime), ("a", None));
        assert_eq!(read[1].lifetime, Some(1.0));
    }

    #[test]
    fn an_error_names_the_line_or_the_column() {
        let error = |text: &str| format!("{:#}", trace(text, &Config::default()).unwrap_err());
        assert!(error("arrival,lifetime,memory\n0,1,2\n").contains("gpumem"));
        assert!(error("arrival,lifetime,gpumem\nsoon,1,2\n").contains("line 2"));
        assert!(error("arrival,lifetime,gpumem\n0,1,8Gi\n").contains("write 8192"));
    }
}
