//! Where the certificate is stored, and which names it is valid for.

/// Where the certificate is stored, and which names it is valid for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the Secret and the Service.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// Name of the Service that the API server calls.
    pub service: String,
    /// DNS names or IP addresses beside those of the Service.
    pub extra_names: Vec<String>,
    /// `MutatingWebhookConfiguration` whose `caBundle` is written; `None`: somebody else writes it.
    pub webhook_configuration: Option<String>,
}

impl Settings {
    /// Subject alternative names of the serving certificate.
    pub fn names(&self) -> Vec<String> {
        let base = format!("{}.{}.svc", self.service, self.namespace);
        let mut names = vec![format!("{base}.cluster.local"), base];
        names.extend(self.extra_names.iter().cloned());
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_that_the_api_server_calls() {
        let settings = Settings {
            namespace: "tessera-system".into(),
            secret: "cert".into(),
            service: "webhook".into(),
            extra_names: Vec::new(),
            webhook_configuration: None,
        };
        let names = settings.names();
        assert!(names.contains(&"webhook.tessera-system.svc".to_owned()));
    }
}
