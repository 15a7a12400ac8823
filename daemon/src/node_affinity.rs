//! Which nodes a pod's selector and required affinity admit, by the rules of kube-scheduler. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
};

/// Whether the pod may run on a node of that name with these labels, as far as `nodeName`, `nodeSelector` and
/// required node affinity say.
pub fn admits(spec: &PodSpec, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let name = spec.node_name.as_deref().filter(|name| !name.is_empty());
    let mut selector = spec.node_selector.iter().flatten();
    name.is_none_or(|name| name == node)
        && selector.all(|(key, value)| labels.get(key) == Some(value))
        && required(spec).is_none_or(|required| {
            let mut terms = required.node_selector_terms.iter();
            terms.any(|term| term_matches(term, node, labels))
        })
}

/// The pod's required node affinity.
fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()
}

fn term_matches(term: &NodeSelectorTerm, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term without requirements matches no node.
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|requirement| {
            let value = labels.get(&requirement.key).map(String::as_str);
            is_met(requirement, value)
        })
        && fields.iter().all(|requirement| {
            let value = (requirement.key == "metadata.name").then_some(node);
            is_met(requirement, value)
        })
}

fn is_met(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|known| known == value));
    let numbers = || {
        let value: i64 = value?.parse().ok()?;
        let limit: i64 = values.first()?.parse().ok()?;
        Some((value, limit))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, limit)| value > limit),
        "Lt" => numbers().is_some_and(|(value, limit)| value < limit),
        _ => false,
    }
}

/// Adds the requirement that the node has no label of that key, to what the pod requires already.
pub fn exclude_label(spec: &mut PodSpec, key: &str) {
    let affinity = spec.affinity.get_or_insert_default();
    let affinity = affinity.node_affinity.get_or_insert_default();
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_default();
    if required.node_selector_terms.is_empty() {
        required
            .node_selector_terms
            .push(NodeSelectorTerm::default());
    }
    // One of the terms must match, so each needs it.
    for term in &mut required.node_selector_terms {
        let expressions = term.match_expressions.get_or_insert_default();
        expressions.push(NodeSelectorRequirement {
            key: key.to_owned(),
            operator: "DoesNotExist".to_owned(),
            values: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(spec: Value) -> PodSpec {
        let mut whole = json!({ "containers": [] });
        let Value::Object(fields) = spec else {
            panic!("{spec}")
        };
        for (key, value) in fields {
            whole[key] = value;
        }
        serde_json::from_value(whole).unwrap()
    }

    fn required(terms: Value) -> PodSpec {
        let mut affinity = json!({});
        affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] =
            terms;
        spec(json!({ "affinity": affinity }))
    }

    fn labels() -> BTreeMap<String, String> {
        let pairs = [("pool", "a"), ("gpus", "8")];
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        pairs.into_iter().map(owned).collect()
    }

    #[test]
    fn nodes_are_admitted_as_kube_scheduler_does() {
        let expression = |key: &str, operator: &str, values: Value| {
            required(
                json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]),
            )
        };
        let field = |operator: &str| {
            required(
                json!([{ "matchFields": [{ "key": "metadata.name", "operator": operator, "values": ["n"] }] }]),
            )
        };
        let no = json!({ "matchExpressions": [{ "key": "pool", "operator": "DoesNotExist" }] });
        let yes = json!({ "matchExpressions": [{ "key": "pool", "operator": "Exists" }] });
        for (spec, admitted) in vec![
            (spec(json!({})), true),
            (spec(json!({ "nodeName": "n" })), true),
            (spec(json!({ "nodeName": "m" })), false),
            (spec(json!({ "nodeSelector": { "pool": "a" } })), true),
            (
                spec(json!({ "nodeSelector": { "pool": "a", "x": "y" } })),
                false,
            ),
            (expression("pool", "In", json!(["b", "a"])), true),
            (expression("pool", "In", json!(["b"])), false),
            (expression("pool", "NotIn", json!(["b"])), true),
            (expression("none", "NotIn", json!(["b"])), true),
            (expression("pool", "NotIn", json!(["a"])), false),
            (expression("none", "DoesNotExist", json!(null)), true),
            (expression("gpus", "Gt", json!(["7"])), true),
            (expression("gpus", "Gt", json!(["8"])), false),
            (expression("gpus", "Lt", json!(["9"])), true),
            (expression("pool", "Lt", json!(["9"])), false),
            (field("In"), true),
            (field("NotIn"), false),
            (required(json!([no, yes])), true),
            (required(json!([no])), false),
            (required(json!([{}])), false),
            (required(json!([])), false),
        ] {
            assert_eq!(admits(&spec, "n", &labels()), admitted, "{spec:?}");
        }
    }

    #[test]
    fn an_excluded_label_is_added_to_every_term() {
        for mut spec in [
            spec(json!({})),
            required(
                json!([{ "matchExpressions": [{ "key": "gpus", "operator": "Exists" }] },
                { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n"] }] }]),
            ),
        ] {
            assert!(admits(&spec, "n", &labels()));
            exclude_label(&mut spec, "pool");
            assert!(!admits(&spec, "n", &labels()), "{spec:?}");
            exclude_label(&mut spec, "other");
            assert!(!admits(&spec, "n", &labels()), "{spec:?}");
        }
        let mut spec = spec(json!({ "nodeSelector": { "pool": "a" } }));
        exclude_label(&mut spec, "other");
        assert!(admits(&spec, "n", &labels()));
    }
}
