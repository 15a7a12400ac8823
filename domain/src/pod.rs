//! The name of a pod.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Namespace and name of a pod; `namespace/name` in logs, in the agent's status and in its journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodName {
    /// Never empty.
    pub namespace: String,
    /// Never empty.
    pub name: String,
}

/// A text that is not `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a pod; write \"namespace/name\"")]
pub struct InvalidPodName(pub String);

impl PodName {
    /// The pod of that name in that namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for PodName {
    type Err = InvalidPodName;

    fn from_str(text: &str) -> Result<Self, InvalidPodName> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self::new(namespace, name))
            }
            _ => Err(InvalidPodName(text.to_owned())),
        }
    }
}

impl TryFrom<String> for PodName {
    type Error = InvalidPodName;

    fn try_from(text: String) -> Result<Self, InvalidPodName> {
        text.parse()
    }
}

impl From<PodName> for String {
    fn from(name: PodName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_parsed() {
        let name = PodName::new("default", "a");
        assert_eq!(name.to_string(), "default/a");
        assert_eq!("default/a".parse(), Ok(name.clone()));
        let json = serde_json::to_value(&name).unwrap();
        assert_eq!(json, "default/a");
        assert_eq!(serde_json::from_value::<PodName>(json).unwrap(), name);
    }

    #[test]
    fn what_is_not_a_namespace_and_a_name_is_refused() {
        for text in ["", "a", "/a", "a/", "a/b/c"] {
            let error = text.parse::<PodName>().unwrap_err();
            assert!(error.to_string().contains("namespace/name"), "{error}");
        }
    }
}
