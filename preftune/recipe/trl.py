"""The keys of TRL's configs (1.16 and older) in a recipe: CPO-, DPO-, KTO-, ORPO-, Reward- and PPOConfig.

Keys with a counterpart here go through the tables that `preftune.recipe.compat` joins with its own. One key needs more:
TRL's `loss_type` chooses what is an objective of its own here, so that

    objective: dpo, loss_type: ipo                                      is  objective: ipo, normalize: length
    objective: cpo, loss_type: simpo                                    is  objective: simpo
    objective: dpo, loss_type: [sigmoid, bco_pair], loss_weights: [0.8, 0.2]  is  objective: mixture

The defaults stay ours; a line in the log says where TRL's differ.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, NamedTuple

from preftune.errors import RecipeError
from preftune.objectives import objective_defaults
from preftune.recipe.layers import Given, Layer, merge

log = logging.getLogger(__name__)

TRL_ALIASES: dict[str, str] = {
    "dataset_name": "dataset",
    "chat_template_path": "chat_template",
    "ref_model_name_or_path": "reference_model_name_or_path",
    "reward_model_path": "reward_model_name_or_path",
    "sft_model_path": "model_name_or_path",
}

TRL_IGNORED: dict[str, str] = {
    "padding_free": "rows are always packed without padding",
    "pad_to_multiple_of": "rows are packed without padding",
    "pad_token": "lengths make the masks, so no padding token is needed",
    "padding_value": "lengths make the masks, so no padding token is needed",
    "label_pad_token_id": "lengths make the masks",
    "precompute_ref_batch_size": "passes are cut by micro_batch_tokens",
    "max_completion_length": "it is for encoder-decoder models; max_length and max_prompt_length say what is cut",
    "max_target_length": "it is for encoder-decoder models; max_length and max_prompt_length say what is cut",
    "use_logits_to_keep": "logits are never made for the prompt",
    "f_alpha_divergence_coef": "the divergence is the reverse KL",
    "ref_model_mixup_alpha": "the reference model does not move",
    "ref_model_sync_steps": "the reference model does not move",
    "dataset_kwargs": "rows are recognised by their columns",
    "lora_task_type": "it follows from the objective",
    "num_sample_generations": "samples are written at every evaluation (eval_steps)",
    "ds3_gather_for_generation": "weights are not sharded while ppo generates",
    "exp_name": "output_dir and run_name name a run",
}

# Key: (the values that ask for nothing, why any other is refused). As compat.REFUSED.
TRL_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "is_encoder_decoder": ((False, None), "models are decoders"),
    "generate_during_eval": ((False, None), "use preftune chat on a checkpoint"),
    "sync_ref_model": ((False, None), "the reference is the model at the start; leave it out"),
    "f_divergence_type": (("reverse_kl", None), "the divergence is the reverse KL; leave it out"),
    "use_weighting": ((False, None), "pairs weigh the same; leave it out"),
    "ld_alpha": ((None,), "dpo_norm and rdpo are the ways against length here"),
    "activation_offloading": ((False, None), "set gradient_checkpointing instead"),
    "router_aux_loss_coef": ((None, 0), "routers get no auxiliary loss; leave it out"),
    "reference_free": ((False, None), "simpo and cpo are the objectives without a reference"),
    "eos_token": ((None,), "the chat template ends a turn; set chat_template"),
    "kl_estimator": (("k1",), "the KL penalty is log π - log π_ref of each token"),
    "total_episodes": ((None,), "set num_train_epochs or max_steps"),
    "stop_token_id": ((None,), "name the token by its text: stop_token"),
    "model_adapter_name": ((None,), "name one adapter with adapter_name_or_path"),
    "ref_adapter_name": ((None,), "the reference of an adapter is that adapter as it was at the start"),
    "force_use_ref_model": ((False, None), "set reference_model_name_or_path"),
    "ref_model_init_kwargs": ((None,), "the reference is loaded as the model is"),
}

# Values of TrainingArguments fields that TRL's configs have and that say nothing here.
_UNSET = ("bf16", "disable_dropout", "dataset_num_proc", "center_rewards_coefficient", "trust_remote_code")
_MODEL_KEYS = ("torch_dtype", "dtype", "attn_implementation", "trust_remote_code", "revision")


# Read here, before any table.
TRL_KEYS = ("model_init_kwargs", "loss_type", "loss_weights", "discopop_tau")


class Loss(NamedTuple):
    """What a `loss_type` of TRL is here: an objective, and keys of it."""

    objective: str
    keys: dict[str, Any] = {}


LOSSES: dict[str, dict[str, Loss]] = {
    "dpo": {
        "ipo": Loss("ipo", {"normalize": "length"}),
        "exo_pair": Loss("exo_pair"),
        "nca_pair": Loss("nca_pair"),
        "bco_pair": Loss("bco_pair"),
        "sppo_hard": Loss("sppo_hard"),
        "aot": Loss("aot", {"loss_type": "paired"}),
        "aot_unpaired": Loss("aot", {"loss_type": "unpaired"}),
        "aot_pair": Loss("aot", {"loss_type": "unpaired"}),  # the name of aot_unpaired before TRL 1
        "apo_zero": Loss("apo_zero"),
        "apo_down": Loss("apo_down"),
        "discopop": Loss("discopop"),
        "sigmoid_norm": Loss("dpo_norm"),
    },
    "cpo": {"simpo": Loss("simpo")},
    "kto": {"kto": Loss("kto")},
}
OWN = {"dpo": ("sigmoid", "hinge", "robust"), "cpo": ("sigmoid", "hinge")}  # `loss_type` is our key too
_NOT_HERE = {
    ("kto", "apo_zero_unpaired"): "apo_zero trains on pairs: set objective: apo_zero",
    ("kto", "bco"): "bco_pair trains on pairs: set objective: bco_pair",
    ("cpo", "ipo"): "set objective: ipo, which has a reference, or loss_type: hinge",
    ("cpo", "kto_pair"): "set objective: kto, which makes rows of pairs",
    ("dpo", "kto_pair"): "set objective: kto, which makes rows of pairs",
}

# Where TRL's default for a key is another one than ours.
DIFFERENT = {
    "simpo": "TRL's defaults are beta 0.1, simpo_gamma 0.5 and cpo_alpha 1; here beta 2, gamma_beta_ratio 0.5, no NLL",
    "exo_pair": "TRL's default label_smoothing is 0, where this loss is infinite; here 1e-3",
    "dpo_norm": "TRL's default beta is 0.1; here 5, as in Tülu 3",
}


def unfold(layer: Layer) -> Layer:
    """`model_init_kwargs` as keys, and what TRL leaves open left out.

    Raises:
        RecipeError: `model_init_kwargs` holds something that is no key here.
    """
    layer = {key: given for key, given in layer.items() if not (key in _UNSET and given.value is None)}
    given = layer.pop("model_init_kwargs", None)
    if given is None or not given.value:
        return layer
    if not isinstance(given.value, dict):
        raise RecipeError(f"{given.place}: 'model_init_kwargs' must be a mapping (key: value), found {given.value!r}.")
    for key, value in given.value.items():
        if key not in _MODEL_KEYS:
            known = ", ".join(_MODEL_KEYS)
            raise RecipeError(f"{given.place}: 'model_init_kwargs.{key}' is not known; known are {known}.")
        name = "model_revision" if key == "revision" else key
        log.info("%s: 'model_init_kwargs.%s' is read as '%s'.", given.place, key, name)
        layer.setdefault(name, Given(value, given.place))
    return layer


def fold_loss(file: Layer, last: Layer) -> tuple[Layer, Layer]:
    """The layers with TRL's `loss_type` as an objective; as they are where it is a key of the objective.

    Raises:
        RecipeError: the loss has no counterpart, or weights and losses do not fit.
    """
    both = merge(file, last)
    family = both["objective"].value if "objective" in both else None
    given = both.get("loss_type", Given("sigmoid", "recipe"))
    names = given.value if isinstance(given.value, list) else [given.value]
    idle = _idle(both, family, names)
    file, last = _without(file, idle), _without(last, idle)
    if "loss_type" not in both or family not in LOSSES:
        return file, last
    if len(names) == 1 and names[0] in OWN.get(family, ()):
        last["loss_type"] = given._replace(value=names[0], text=None)
        return file, last
    losses = [_loss(family, name, given) for name in names]
    added = _mixture(names, losses, both) if len(names) > 1 else _single(names[0], losses[0], both)
    folded = ["loss_type", "loss_weights", "discopop_tau"] + ["beta", "label_smoothing"] * (len(names) > 1)
    said = " + ".join(map(str, names))
    log.info("%s: 'loss_type' %s of %s is read as 'objective' %s.", given.place, said, family, added["objective"])
    if added["objective"] in DIFFERENT:
        log.info("%s: %s.", given.place, DIFFERENT[added["objective"]])
    last = _without(last, folded) | {key: Given(value, given.place) for key, value in added.items()}
    return _without(file, folded), last


def _idle(both: Layer, family: object, names: list[Any]) -> list[str]:
    """Keys that TRL's configs always have, and that say nothing about these losses."""
    idle = []
    if "discopop_tau" in both and "discopop" not in names:
        idle.append("discopop_tau")
    if "loss_weights" in both and (both["loss_weights"].value is None or len(names) == 1):
        idle.append("loss_weights")
    if family == "cpo":
        idle += ["simpo_gamma"] * ("simpo_gamma" in both and "simpo" not in names)
        idle += ["alpha"] * ("alpha" in both and not both["alpha"].value)
    folds = family in LOSSES and any(name not in OWN.get(family, ()) for name in names)
    if folds and "label_smoothing" in both and not both["label_smoothing"].value:
        idle.append("label_smoothing")
    for key in idle:
        if both[key].value:
            because = f"it is not of the loss {' + '.join(map(str, names))}"
            log.info("%s: '%s' has no effect: %s.", both[key].place, key, because)
    return idle


def _without(layer: Layer, keys: Collection[str]) -> Layer:
    return {key: given for key, given in layer.items() if key not in keys}


def _loss(family: str, name: object, given: Given) -> Loss:
    if name == "sft":
        return Loss("sft")
    if name in OWN.get(family, ()):
        return Loss(family, {"loss_type": name})
    if name in LOSSES[family]:
        return LOSSES[family][str(name)]
    known = ", ".join(dict.fromkeys((*OWN.get(family, ()), *LOSSES[family])))
    because = _NOT_HERE.get((family, str(name)), f"one of {known}")
    raise RecipeError(f"{given.place}: 'loss_type' {name} is no loss of {family} here; {because}.")


def _single(name: str, loss: Loss, both: Layer) -> dict[str, Any]:
    added = {"objective": loss.objective, **loss.keys}
    if name == "simpo" and both.get("alpha") and both["alpha"].value:
        added["objective"] = "alphapo"
    if name == "discopop" and "discopop_tau" in both:
        added["tau"] = both["discopop_tau"].value
    return added


def _mixture(names: list[str], losses: list[Loss], both: Layer) -> dict[str, Any]:
    given = both["loss_type"]
    asked = both.get("loss_weights")
    weights = asked.value if asked is not None and asked.value is not None else [1.0] * len(names)
    if not isinstance(weights, list) or len(weights) != len(names):
        raise RecipeError(
            f"{given.place}: 'loss_weights' {weights} must hold one weight for each of {len(names)} losses."
        )
    parts: dict[str, Any] = {}
    added: dict[str, Any] = {"objective": "mixture"}
    for loss, weight in zip(losses, weights, strict=True):
        if loss.objective == "sft":
            added |= {"sft_weight": weight, "sft_normalization": "token"}
        elif loss.objective in parts:
            raise RecipeError(f"{given.place}: 'loss_type' {names} holds {loss.objective} twice. Keep one of them.")
        else:
            parts[loss.objective] = {"weight": weight, **loss.keys, **_shared(loss.objective, both)}
    return {**added, "mixture": parts}


def _shared(objective: str, both: Layer) -> dict[str, Any]:
    """`beta` and `label_smoothing` for a part of a mixture, where they are given and it has them."""
    keys = objective_defaults(objective)
    names = {"beta": "tau" if objective == "ipo" else "beta", "label_smoothing": "label_smoothing"}
    found = {ours: both[theirs].value for theirs, ours in names.items() if theirs in both and ours in keys}
    if not found.get("label_smoothing"):
        found.pop("label_smoothing", None)
    if objective == "discopop" and "discopop_tau" in both:
        found["tau"] = both["discopop_tau"].value
    return found
