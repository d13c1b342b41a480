"""What a sweep will do, before anything is done: `raymimic tune --dry-run`."""

from raymimic.sweep.spec import SweepSpec


def plan_lines(spec: SweepSpec) -> list[str]:
    """The trials and what they cost, as lines of text.

    Args:
        spec: the sweep; its data are opened, nothing is trained.

    Raises:
        RaymimicError: the sweep could not run.
    """
    spec.check_data()
    lines = [f"sweep {spec.name}: {spec.algo}, {spec.search} search, scheduler {spec.scheduler}"]
    for trial in spec.trials():
        values = ", ".join(f"{path}={value!r}" for path, value in trial.setting.items())
        lines.append(f"  {trial.trial_id}: {values}")
    if spec.search == "optuna":
        lines.append(f"  {spec.num_settings} settings of Optuna's choice, {len(spec.seeds)} seeds")
    cost = spec.cost()
    steps = "as many gradient steps as the data ask for"
    if cost.gradient_steps is not None:
        steps = f"{cost.gradient_steps:,} gradient steps"
    lines.append(
        f"at most {cost.trials} trials, {steps}, {cost.episodes:,} evaluation episodes in each "
        f"environment, and {spec.final_episodes} for each seed of the winner"
    )
    return lines
