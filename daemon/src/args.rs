//! Groups of flags that the daemons share.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Logging.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// Log filter: a level, or `target=level` pairs separated by commas.
    #[arg(long = "log", env = "TESSERA_LOG", default_value = "info")]
    pub filter: String,
    /// Log format.
    #[arg(long, env = "TESSERA_LOG_FORMAT", default_value = "plain")]
    pub log_format: LogFormat,
}

/// Log format.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text per record.
    Plain,
    /// One JSON object per line.
    Json,
}

/// Probes and metrics.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct AdminArgs {
    /// Address of `/live`, `/ready` and `/metrics`, plain HTTP.
    #[arg(long, env = "TESSERA_ADMIN_ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,
}

/// The settings that all daemons share.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    /// File with the shared settings: YAML, with the field names of `HAMi`'s device configuration.
    #[arg(long, env = "TESSERA_CONFIG")]
    pub config: Option<PathBuf>,
}

impl LogArgs {
    /// Starts logging to standard error.
    pub fn init(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.filter)
            .with_context(|| format!("--log {:?} is not a log filter", self.filter))?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Plain => log.with_ansi(false).try_init(),
            LogFormat::Json => log.json().try_init(),
        }
        .map_err(|error| anyhow::anyhow!("logging is already initialised: {error}"))
    }
}

impl ConfigArgs {
    /// Reads the file, or returns the defaults where none is given.
    pub fn load(&self) -> anyhow::Result<domain::config::Config> {
        let Some(path) = &self.config else {
            return Ok(domain::config::Config::default());
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        parse(&text).with_context(|| format!("invalid configuration {}", path.display()))
    }
}

/// The file has the settings at its top level, or under `nvidia:` as `HAMi`'s does.
fn parse(text: &str) -> anyhow::Result<domain::config::Config> {
    #[derive(serde::Deserialize)]
    struct File {
        nvidia: Option<serde_json::Value>,
        #[serde(flatten)]
        rest: serde_json::Map<String, serde_json::Value>,
    }
    if text.trim().is_empty() {
        return Ok(domain::config::Config::default());
    }
    let file: File = serde_saphyr::from_str(text)?;
    let value = match file.nvidia {
        Some(nvidia) => nvidia,
        None => file.rest.into(),
    };
    Ok(serde_json::from_value(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_file_are_read() {
        for text in [
            "resourceCountName: x/gpu\n",
            "nvidia:\n  resourceCountName: x/gpu\n",
        ] {
            assert_eq!(parse(text).unwrap().resource_count_name, "x/gpu");
        }
        assert_eq!(parse("").unwrap(), domain::config::Config::default());
    }

    #[test]
    fn a_bad_file_is_refused_with_the_field() {
        let error = format!("{:#}", parse("deviceSplitCount: many\n").unwrap_err());
        assert!(error.contains("u32"), "{error}");
        let error = format!("{:#}", parse("resourceCuontName: x/gpu\n").unwrap_err());
        assert!(error.contains("resourceCuontName"), "{error}");
    }
}
