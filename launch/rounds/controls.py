"""What audio is worth: the last round's labels with audio, without, audio only, and shuffled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from launch.rounds.growth import GrowthRound, final_labels
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from launch.stages.shared import Say, Shared, evaluate_stage, train_stage
from vlmae.evaluation import read_metrics

# name -> inputs in training, inputs in evaluation. The shuffled control is the model trained with
# both, measured on clips whose sound is another clip's.
CONTROLS = {
    "with audio": ("both", "both"),
    "without audio": ("vl", "vl"),
    "audio only": ("audio", "audio"),
    "audio shuffled": ("both", "shuffled_audio"),
}


def measure_controls(
    settings: Settings, shared: Shared, folder: RunFolder, last: GrowthRound, say: Say
) -> dict[str, dict[str, Any]]:
    """Control -> task -> metrics, every model trained on the labels of the arm's last round."""
    labelled, gold = final_labels(settings, last)
    results = {}
    for name, (trained_on, measured_on) in CONTROLS.items():
        say(f"control: {name}")
        used = replace(
            settings,
            train=replace(settings.train, inputs=trained_on),
            evaluate=replace(settings.evaluate, inputs=measured_on),
        )
        trained = folder.use(train_stage(used, shared, labelled, gold))
        results[name] = read_metrics(folder.use(evaluate_stage(used, shared, trained)))
    return results
