"""How many cases of the tests that take longest are run each time; the others are slow, as if marked so.

A test of forty cases that take half a second each is worth all of them before a release, and a few of them after
every change. Kept are cases spread evenly over a test's own, its first among them. Chosen by ``--durations=0``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

QUICK_CASES = {
    "tests/edges/test_damage_to_every_file.py::test_a_damaged_file_changes_nothing_or_is_named": 30,
    "tests/edges/test_hostile_runs.py::test_links_and_pipes_are_never_written_through_nor_waited_for": 6,
    "tests/edges/test_hostile_runs.py::test_text_is_shown_and_never_run": 12,
    "tests/edges/test_interval_coverage.py::test_intervals_cover_as_often_as_they_say": 12,
    "tests/end_to_end/test_examples.py::test_example_runs_and_prints_its_answer": 3,
    "tests/end_to_end/test_matched_training.py::"
    "test_the_noise_of_a_run_that_ended_early_is_measured_beside_its_target": 0,
    "tests/end_to_end/test_noise_page.py::test_the_page_fits_fetches_nothing_and_has_no_faults": 2,
    "tests/end_to_end/test_other_data.py::test_a_run_is_not_continued_on_other_data": 5,
    "tests/end_to_end/test_quantities_runs.py": 0,
    "tests/end_to_end/test_report_page.py::test_the_page_fits_fetches_nothing_and_has_no_faults": 2,
    "tests/end_to_end/test_resumed_experiments.py::test_a_damaged_task_is_named_and_done_again_once_removed": 3,
    "tests/end_to_end/test_resumed_experiments.py::test_stopped_at_any_file_it_goes_on_to_the_same_bytes": 1,
    "tests/end_to_end/test_resumed_experiments.py::"
    "test_stopped_within_a_task_it_goes_on_there_to_the_same_bytes": 3,
    "tests/end_to_end/test_start_up.py::test_nothing_that_works_is_imported": 5,
    "tests/end_to_end/test_toy_2d.py::test_another_seed_is_another_run": 0,
    "tests/end_to_end/test_toy_2d.py::test_the_preset_changes_only_the_noises_that_look_at_gradients": 0,
    "tests/end_to_end/test_trainers.py::test_three_loops_report_the_same": 3,
    "tests/unit/distributed/test_mistakes.py": 0,
    "tests/unit/distributed/test_sharded_models.py": 0,
    "tests/unit/dynamics/test_exact_covariances.py::test_leading_covariance_is_the_best_part_of_its_rank": 5,
    "tests/unit/dynamics/test_noise_of_each_dynamics.py::test_draws_have_mean_zero_and_the_claimed_covariance": 8,
    "tests/unit/dynamics/test_noise_of_each_dynamics.py::test_loss_on_a_quadratic_follows_the_discrete_formula": 10,
    "tests/unit/experiments/test_claim_verdicts.py::test_noise_not_shown_to_be_of_its_trace_vetoes_any_verdict": 25,
    "tests/unit/experiments/test_claim_verdicts.py::test_noise_shown_to_be_of_its_trace_is_judged": 15,
    "tests/unit/experiments/test_knob_arms.py::test_the_noise_of_each_arm_has_its_covariance": 1,
    "tests/unit/experiments/test_matched_traces.py::test_every_noise_injects_the_trace_of_minibatches": 3,
    "tests/unit/experiments/test_statistics.py::test_the_interval_by_fishers_z_covers_as_often_as_it_says": 0,
    "tests/unit/linops/test_budgets.py::"
    "test_no_more_products_are_spent_than_allowed_and_the_cost_is_what_was_spent": 8,
    "tests/unit/linops/test_coverage.py::test_intervals_cover_and_estimates_are_unbiased_over_a_thousand_seeds": 2,
    "tests/unit/linops/test_operand_order.py::test_the_order_of_operands_changes_neither_value_nor_cost": 8,
    "tests/unit/linops/test_operator_draws.py::test_covariance_of_draws_is_the_operator": 5,
    "tests/unit/linops/test_operator_precision.py::test_an_ambient_autocast_changes_no_estimate": 10,
    "tests/unit/measurement/test_loss_budget.py::test_the_change_of_drawn_steps_is_that_of_all_batches": 2,
    "tests/unit/measurement/test_memory_forecast.py::test_what_a_risk_decides_once_leaves_nothing_behind": 3,
    "tests/unit/risk/test_architectures.py::test_hessian_product_of_a_vector": 15,
    "tests/unit/risk/test_coupled_models.py::test_a_sound_loss_is_accepted_and_its_gradient_is_the_mean": 10,
    "tests/unit/risk/test_data_forms.py::test_the_same_samples_in_any_form": 12,
    "tests/unit/risk/test_derivatives.py::test_derivatives_are_the_same_where_gradients_are_off": 4,
    "tests/unit/risk/test_layer_rules.py::test_gradients_are_right_also_where_the_trial_saw_something_else": 15,
    "tests/unit/risk/test_module_untouched.py::test_every_call_leaves_the_module_as_it_was": 6,
    "tests/unit/simulation/test_resumed_bits.py::test_a_closed_form_goes_on_to_the_same_bits": 10,
    "tests/unit/simulation/test_resumed_bits.py::test_a_diverging_replica_is_remembered": 6,
    "tests/unit/simulation/test_resumed_bits.py::test_a_network_goes_on_to_the_same_bits": 8,
    "tests/unit/simulation/test_resumed_bits.py::"
    "test_noise_of_several_directions_goes_on_to_the_same_bits_wherever_it_lies_in_the_file": 3,
    "tests/unit/simulation/test_resumed_bits.py::test_the_toys_replicas_go_on_to_the_same_bits": 4,
    "tests/unit/simulation/test_stationary_runs.py::test_a_long_run_reaches_the_stationary_covariance": 5,
    "tests/unit/theory/test_learning_coefficient.py::test_a_start_that_is_no_minimum_is_doubted": 0,
    "tests/unit/theory/test_learning_coefficient.py::"
    "test_at_a_regular_minimum_it_is_the_closed_form_biases_included": 1,
    "tests/unit/theory/test_mean_square_stability.py::"
    "test_a_strong_sample_that_shares_no_direction_with_the_others_is_found": 2,
    "tests/unit/theory/test_mean_square_stability.py::test_threshold_is_that_of_the_kronecker_products": 9,
    "tests/unit/theory/test_sde_gap.py::"
    "test_the_gap_is_that_of_the_closed_form_within_its_error_whatever_the_zero_of_the_loss": 1,
    "tests/unit/training/test_branches_in_closed_form.py::test_a_few_seeds_decide_nothing_that_more_would": 0,
    "tests/unit/training/test_branches_in_closed_form.py::test_the_critical_batch_size_is_the_known_one": 1,
    "tests/unit/training/test_branches_in_closed_form.py::test_with_noise_every_loss_is_the_expected_one": 0,
    "tests/unit/training/test_branches_really_train.py::test_nothing_of_the_users_changes": 4,
    "tests/unit/training/test_lightning.py::test_a_compiled_module": 0,
    "tests/unit/training/test_noise_scale.py::test_the_interval_covers": 2,
    "tests/unit/training/test_probe_leaves_no_trace.py::test_modules_of_all_kinds_are_what_they_were": 8,
    "tests/unit/training/test_transformers.py::test_a_compiled_model": 0,
    "tests/unit/training/test_transformers.py::test_a_gradient_scaler": 1,
    "tests/unit/training/test_transformers.py::test_a_loss_function_of_the_users": 1,
    "tests/unit/training/test_transformers.py::test_a_resumed_training_goes_on_exactly": 1,
    "tests/unit/training/test_transformers.py::test_a_trainer_that_computes_its_loss_itself": 1,
    "tests/unit/training/test_transformers.py::test_an_option_that_a_checkpoint_cannot_hold": 0,
    "tests/unit/training/test_transformers.py::test_half_precision": 1,
    "tests/unit/training/test_transformers.py::test_probed_figures_of_held_out_samples": 0,
}
"""By file, or by file and test; of a file, 0."""


def slow_ones(items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
    """Those of the tests collected that are one too many: slow ones, if only for what is listed here."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        file, name = item.nodeid.split("::", 1)
        if item.get_closest_marker("slow") is None:
            for key in (file, f"{file}::{name.split('[')[0]}"):
                if key in QUICK_CASES:
                    cases.setdefault(key, []).append(item)
    for key, own in cases.items():
        kept = QUICK_CASES[key]
        quick = {index * len(own) // kept for index in range(kept)}
        yield from (item for place, item in enumerate(own) if place not in quick)


def unknown_keys(items: Sequence[pytest.Item]) -> list[str]:
    """Listed tests, of the files collected whole, that are not there."""
    files = {item.nodeid.split("::", 1)[0] for item in items}
    names = {item.nodeid.split("[")[0] for item in items} | files
    return [key for key in QUICK_CASES if key.split("::")[0] in files and key not in names]
