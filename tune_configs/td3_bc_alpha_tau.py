"""The sweep of td3_bc_alpha_tau.yaml as a Tune sweep script: `python FILE.py --help`."""

import argparse

from ray import tune

import raymimic.sweep

RATE = {"initial": 1e-3, "decay_factor": 0.3, "epoch_schedule": [5, 7, 9]}
SWEEP = {
    "name": "td3_bc_alpha_tau",
    "algo": "td3_bc",
    "dataset": "quickstart/walker2d_medium_expert.hdf5",
    "set": {
        "train.hdf5_filter_key": "train",
        "train.cuda": False,
        "train.num_epochs": 10,
        "experiment.epoch_every_n_steps": 1000,
        "experiment.rollout.rate": 2,
        "experiment.rollout.n": 16,
        "train.seq_length": 5,
        "algo.n_step": 5,
        "algo.optim_params.actor.learning_rate": RATE,
        "algo.optim_params.critic.learning_rate": RATE,
    },
    "space": {
        "algo.alpha": tune.grid_search([0.25, 0.5, 1.0, 2.5]),
        "algo.target_tau": tune.grid_search([0.005, 0.02]),
    },
    "seeds": [1, 2],
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default=SWEEP["dataset"], help="HDF5 file, path or URI")
    parser.add_argument("--storage", help="folder or URI for results")
    args = parser.parse_args()
    settings = SWEEP["set"] | {"ray.storage_path": args.storage}
    raymimic.sweep.run(SWEEP | {"dataset": args.dataset, "set": settings})
