"""Remedies, one file each. `METHODS` are the names that the command line takes; `auto` follows the policy."""

METHODS: dict[str, str] = {
    "auto": "relearn in closed form, tune, prove, and go on in rounds while a new search still succeeds",
    "closed_form": "relearn every linear map in closed form on pairs of dummies, once",
    "tune": "a short gradient tune on pairs of dummies, once",
    "sharp": "the same tune with sharpness-aware steps (after Zhu et al., 2023), to compare with",
    "shift": "tune the head against universal shifts of features at the inspection layer",
    "bound": "bound activations by what dummies reach, made drop-in in closed form, to compare with",
    "clp": "prune the channels of outlying Lipschitz bound (Zheng et al., 2022), to compare with",
    "paper": "the published method: fine-tune the head on dummy features",
}

__all__ = ["METHODS"]
