//! What a user does and sees, on a real control plane.

mod admission;
mod containers;
mod health;
mod life;
mod many;
mod namespaces;
mod placement;
mod specs;
mod two_plugins;
pub(crate) mod world;

use std::pin::Pin;

use self::world::World;

/// A scenario by name.
pub(crate) type Scenario = fn(World) -> Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

macro_rules! scenarios {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), |world| Box::pin($module::$name(world)))),*]
    };
}

/// All of them, in the order in which they run.
pub(crate) const SCENARIOS: &[(&str, Scenario)] = scenarios![
    life::the_pod_of_the_seed_gets_two_instances_and_leaves_none,
    placement::sizes_fit_in_any_order_and_disturb_nobody,
    placement::pods_without_a_mode_use_both_pools,
    placement::what_does_not_fit_waits_and_says_what_would,
    placement::a_count_alone_is_whole_gpus,
    placement::a_more_important_pod_displaces_the_cheapest,
    placement::a_pod_that_allows_it_restarts_elsewhere_to_make_room,
    placement::nobody_is_restarted_for_a_pod_that_cannot_use_the_place,
    admission::nonsense_is_refused_in_one_sentence,
    admission::while_the_webhook_is_away_pods_without_gpu_are_created_and_others_refused,
    admission::annotations_of_tessera_are_written_by_tessera_alone,
    admission::only_the_scheduler_binds_with_a_claim,
    admission::the_mode_of_a_running_pod_cannot_be_changed,
    admission::pods_of_exempt_namespaces_are_left_alone,
    admission::privileged_gpu_pods_run_where_the_admin_allows_them,
    admission::pods_of_gpus_alone_are_left_to_other_gpu_nodes,
    admission::no_annotation_and_no_ephemeral_container_opens_a_back_door,
    containers::each_container_has_exactly_its_devices,
    containers::an_init_container_alone_has_a_gpu,
    containers::an_init_container_has_another_size_than_the_application,
    containers::a_sidecar_and_two_sizes,
    life::a_killed_agent_adopts_what_runs,
    life::a_gpu_node_says_that_its_agent_is_gone,
    life::no_pod_fails_while_an_agent_is_restarted_in_order,
    life::a_restarted_kubelet_finds_devices_and_pods_as_they_were,
    life::a_restarted_plugin_knows_every_claim,
    two_plugins::two_plugins_hold_no_slot_twice,
    life::nothing_changes_while_the_api_server_is_away,
    life::a_rebooted_node_comes_back_by_itself,
    life::a_node_that_lost_a_gpu_over_a_reboot_runs_the_pods_of_the_others,
    life::a_label_turns_a_node_into_a_mig_node_and_back,
    health::a_gpu_with_a_fault_takes_no_pods_until_it_has_recovered,
    health::a_pod_whose_instance_cannot_be_made_is_made_anew_elsewhere,
    health::an_idle_gpu_changes_its_mode_for_a_pod_that_fits_nowhere_else,
    health::a_container_starts_again_although_a_fresh_agent_has_no_api_server,
    many::fifty_pods_at_once,
];
