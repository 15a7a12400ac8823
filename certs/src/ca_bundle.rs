//! The `caBundle` of a `MutatingWebhookConfiguration`, as a patch of its present contents.

use json_patch::Patch;
use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration};
use serde_json::json;

/// The patch that makes every webhook of the configuration trust `ca`; `None` where all do already.
///
/// Each entry is tested by name first, so that a configuration replaced in the meantime is not half patched.
pub(crate) fn patch(configuration: &MutatingWebhookConfiguration, ca: &str) -> Option<Patch> {
    let bundle = ByteString(ca.as_bytes().to_vec());
    let operations: Vec<serde_json::Value> = configuration
        .webhooks
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, webhook)| webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
        .flat_map(|(index, webhook)| {
            [
                json!({ "op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook.name }),
                json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle }),
            ]
        })
        .collect();
    if operations.is_empty() {
        return None;
    }
    serde_json::from_value(operations.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(bundles: &[Option<&str>]) -> MutatingWebhookConfiguration {
        let webhooks: Vec<_> = bundles
            .iter()
            .map(|bundle| {
                let bundle = bundle.map(|text| ByteString(text.as_bytes().to_vec()));
                json!({ "name": "w", "clientConfig": { "caBundle": bundle }, "sideEffects": "None", "admissionReviewVersions": ["v1"] })
            })
            .collect();
        serde_json::from_value(json!({ "webhooks": webhooks })).unwrap()
    }

    #[test]
    fn only_webhooks_with_another_bundle_are_patched() {
        let patch = patch(&configuration(&[Some("ca"), None, Some("old")]), "ca").unwrap();
        assert_eq!(
            serde_json::to_value(&patch).unwrap(),
            json!([
                { "op": "test", "path": "/webhooks/1/name", "value": "w" },
                { "op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "Y2E=" },
                { "op": "test", "path": "/webhooks/2/name", "value": "w" },
                { "op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "Y2E=" },
            ])
        );
    }

    #[test]
    fn nothing_is_written_when_all_trust_the_ca() {
        assert!(patch(&configuration(&[Some("ca")]), "ca").is_none());
        assert!(patch(&configuration(&[]), "ca").is_none());
    }
}
