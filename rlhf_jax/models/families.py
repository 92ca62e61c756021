"""Every supported family: how Hugging Face calls it, what it switches on, what its tensors are called.

A new family is one entry of `FAMILIES` (see docs/adding-a-model.md). Defaults and old layouts of config.json are
resolved by transformers' own config classes, so that an absent key means what it means there.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from rlhf_jax.config.scorer import ScoreAt
from rlhf_jax.models.config import DecoderConfig, Gate, Rope


@dataclasses.dataclass(frozen=True)
class ModelFamily:
    """What tells a family apart.

    Attributes:
      classes: prefix of Hugging Face's class names. causal: the language model's class, where the prefix misleads.
      switches: `DecoderConfig` fields that all models of the family share.
      keys: config.json keys of the family alone -> `DecoderConfig` fields.
      names: tensor names within a layer that differ from Llama's; weights of one name lie in one tensor, in order.
      windows: whether `sliding_window` means something.
    """

    classes: str
    switches: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    windows: bool = False
    causal: str = ""

    @property
    def architectures(self) -> dict[str, str]:
        """Kind of head -> Hugging Face's class name."""
        return {"causal": self.causal or self.classes + "ForCausalLM",
                "scores": self.classes + "ForSequenceClassification",
                "gated": self.classes + "ForRewardModelWithGating"}


NAMES = {
    **{key: f"self_attn.{key}_proj.weight" for key in "qkvo"},
    **{f"{key}_bias": f"self_attn.{key}_proj.bias" for key in "qkv"},
    **{f"{key}_norm": f"self_attn.{key}_norm.weight" for key in "qk"},
    **{key: f"mlp.{key}_proj.weight" for key in ("gate", "up", "down")},
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
}
"""Llama's tensor names within `model.layers.N.`, from which a family's `names` differ."""

_AFTER = {"attention_post_norm": "post_attention_layernorm.weight",
          "mlp_post_norm": "post_feedforward_layernorm.weight"}
_AROUND = {**_AFTER, "mlp_norm": "pre_feedforward_layernorm.weight"}
_GEMMA: dict[str, Any] = {"norm_offset": 1.0, "embed_scale": True}
_GEMMA3_KEYS = {"query_pre_attn_scalar": "query_scalar", "final_logit_softcapping": "logit_softcap"}
_GEMMA2_KEYS = {**_GEMMA3_KEYS, "attn_logit_softcapping": "attn_softcap"}
_OLMO: dict[str, Any] = {"norms": "post", "qk_norm": "projection"}
_FUSED = {**dict.fromkeys("qkv", "self_attn.qkv_proj.weight"),
          **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj.weight")}
_EXPERT_KEYS = {"num_experts_per_tok": "experts_per_token", "num_local_experts": "experts"}


def _experts(room: str, router: str, gate: str, up: str, down: str) -> dict[str, str]:
    names = {"gate": gate, "up": up, "down": down}
    return {"router": router, **{key: f"{room}.{{expert}}.{name}.weight" for key, name in names.items()}}


FAMILIES = {
    "llama": ModelFamily("Llama"),
    "mistral": ModelFamily("Mistral", windows=True),
    "ministral": ModelFamily("Ministral", windows=True),
    "qwen2": ModelFamily("Qwen2", {"qkv_bias": True}, windows=True),
    "qwen3": ModelFamily("Qwen3", {"qk_norm": "head"}, windows=True),
    "gemma": ModelFamily("Gemma", _GEMMA),
    "gemma2": ModelFamily("Gemma2", {**_GEMMA, "norms": "both"}, _GEMMA2_KEYS, _AROUND, windows=True),
    "gemma3_text": ModelFamily("Gemma3Text", {**_GEMMA, "norms": "both", "qk_norm": "head"}, _GEMMA3_KEYS, _AROUND,
                          windows=True, causal="Gemma3ForCausalLM"),
    "olmo2": ModelFamily("Olmo2", _OLMO, names=_AFTER),
    "olmo3": ModelFamily("Olmo3", _OLMO, names=_AFTER, windows=True),
    "phi3": ModelFamily("Phi3", names=_FUSED, windows=True),
    "mixtral": ModelFamily("Mixtral", {"normalize_experts": True}, _EXPERT_KEYS, _experts(
        "block_sparse_moe.experts", "block_sparse_moe.gate.weight", "w1", "w3", "w2"), windows=True),
    "qwen3_moe": ModelFamily("Qwen3Moe", {"qk_norm": "head"},
                        {**_EXPERT_KEYS, "norm_topk_prob": "normalize_experts", "moe_intermediate_size": "mlp"},
                        _experts("mlp.experts", "mlp.gate.weight", "gate_proj", "up_proj", "down_proj"), windows=True),
}
"""model_type -> family."""

_KEYS = {
    "vocab_size": "vocab_size", "hidden_size": "embed", "intermediate_size": "mlp", "num_hidden_layers": "layers",
    "num_attention_heads": "heads", "rms_norm_eps": "norm_eps", "max_position_embeddings": "max_position",
    "tie_word_embeddings": "tie_embeddings", "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id", "pad_token_id": "pad_token_id",
}
"""config.json keys of all families -> `DecoderConfig` fields of the same meaning."""

SCORE_AT = "rlhf_jax_score_at"
"""config.json key of a classifier; transformers keeps it and reads nothing from it."""
_GATE = {"gating_hidden_dim": "hidden", "gating_n_hidden": "layers", "gating_temperature": "temperature"}
_ARMO_OBJECTIVES = 19
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
_ONLY: dict[str, tuple[Any, ...]] = {"attention_bias": (False, None), "mlp_bias": (False, None),
                                     "use_bidirectional_attention": (False, None), "is_causal": (True, None),
                                     "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)}
"""config.json keys that the decoder knows some values of only."""
_ROPE = {"rope_theta": "theta", "factor": "factor", "low_freq_factor": "low_freq_factor",
         "high_freq_factor": "high_freq_factor", "original_max_position_embeddings": "original_max_position",
         "partial_rotary_factor": "fraction", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
         "attention_factor": "attention_factor"}
_ROPE_KEYS = {"default": ("rope_theta",), "linear": ("rope_theta", "factor"),
              "llama3": ("rope_theta", "factor", "low_freq_factor", "high_freq_factor",
                         "original_max_position_embeddings"),
              "yarn": ("rope_theta", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow",
                       "attention_factor")}
"""rope type -> what it reads."""


def _rope_from_hf(parameters: Mapping[str, Any]) -> Rope:
    _check_numbers(parameters)
    kind = parameters.get("rope_type", "default")
    if kind == "yarn":
        parameters = _with_yarns_defaults(parameters)
    if kind not in _ROPE_KEYS:
        raise ValueError(f"config.json asks for rope type {kind!r}; supported are {sorted(_ROPE_KEYS)}")
    if absent := [key for key in _ROPE_KEYS[kind] if parameters.get(key) is None]:
        raise ValueError(f"config.json asks for rope type {kind!r} and gives no {', '.join(absent)}, which it reads")
    fields: dict[str, Any] = {_ROPE[key]: parameters[key] for key in _ROPE_KEYS[kind]}
    fraction = parameters.get("partial_rotary_factor")
    return Rope(kind=kind, fraction=1.0 if fraction is None else fraction, **fields)


def _with_yarns_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN's settings with what transformers takes where one is absent."""
    if not given.get("truncate", True):
        raise ValueError("config.json has truncate = False of rope type 'yarn'; the decoder here knows True only")

    def scale(weight: float) -> float:
        return 1.0 + 0.1 * weight * math.log(max(given.get("factor") or 1.0, 1.0))

    of, over = given.get("mscale"), given.get("mscale_all_dim")
    attention = given.get("attention_factor")
    if attention is None:
        attention = scale(of) / scale(over) if of and over else scale(1.0)
    return {**given, "attention_factor": attention, "beta_fast": given.get("beta_fast") or 32.0,
            "beta_slow": given.get("beta_slow") or 1.0}


def _rope_to_hf(rope: Rope) -> dict[str, Any]:
    raw: dict[str, Any] = {"rope_type": rope.kind, **{key: getattr(rope, _ROPE[key]) for key in _ROPE_KEYS[rope.kind]}}
    return raw if rope.fraction == 1.0 else raw | {"partial_rotary_factor": rope.fraction}


def is_multimodal(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a Gemma 3 with an eye, whose text part is what is read."""
    return raw.get("model_type") == "gemma3" and "text_config" in raw


@cache
def _of_class(family: str) -> Mapping[str, Any]:
    """What transformers' config class of a family knows, with its defaults."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family).to_dict()


def _unsupported(raw: Mapping[str, Any]) -> str:
    """What is supported, which family comes closest, and which settings of `raw` that one does not have."""
    known = {name: set(_of_class(name)) for name in FAMILIES}
    closest = max(known, key=lambda name: len(known[name] & set(raw)))
    foreign = sorted(set(raw) - known[closest] - {"torch_dtype", "rope_theta", "rope_scaling", "auto_map"})
    return (f"model_type {raw.get('model_type')!r} is not supported; supported are {sorted(FAMILIES)}. Its config.json "
            f"is closest to that of {closest!r}, which has no {foreign}" if foreign else
            f"model_type {raw.get('model_type')!r} is not supported; supported are {sorted(FAMILIES)}")


def _resolved(raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with transformers' defaults filled in and old layouts converted; the text part of a Gemma 3.

    As there, a Mistral with `layer_types` is a Ministral, and a Gemma 3 of several parts ties its embeddings by the
    key of the whole.
    """
    from transformers import AutoConfig

    if is_multimodal(raw):
        shared = {key: raw[key] for key in ("eos_token_id", "bos_token_id", "pad_token_id") if key in raw}
        raw = {**raw["text_config"], **shared, "tie_word_embeddings": raw.get("tie_word_embeddings", True),
               "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    if raw.get("model_type") == "mistral" and "layer_types" in raw:
        names = [name.replace("Mistral", "Ministral") for name in raw.get("architectures") or []]
        raw = {**raw, "model_type": "ministral", "architectures": names or None}
    if raw.get("pad_token_id") == -1:  # none, in early conversions of Llama
        raw = {**raw, "pad_token_id": None}
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(_unsupported(raw))
    _check_numbers(raw)
    given = copy.deepcopy({key: value for key, value in raw.items() if key != "model_type"})  # it is written to
    return {**AutoConfig.for_model(family, **given).to_dict(), "architectures": raw.get("architectures"),
            "num_labels": raw.get("num_labels")}


def _head(raw: Mapping[str, Any], family: ModelFamily) -> dict[str, Any]:
    """The fields `num_labels`, `score_at` and `gate`, from the architecture that config.json names."""
    known = family.architectures
    architecture = (raw["architectures"] or [known["causal"]])[0]
    if architecture not in known.values():
        raise ValueError(f"config.json names the architecture {architecture!r}; of this model_type "
                         f"{list(known.values())} are supported, which differ in the head that sits on the decoder")
    if architecture == known["causal"]:
        return {}
    score_at = raw.get(SCORE_AT) or "last_token"
    if score_at not in get_args(ScoreAt):
        raise ValueError(f"config.json has {SCORE_AT} = {score_at!r}; known are {', '.join(get_args(ScoreAt))}")
    if architecture == known["scores"]:
        outputs = int(raw["num_labels"] or len(raw.get("id2label") or "01"))  # absent: transformers' 2
        return {"num_labels": outputs, "labels": _labels(raw, outputs), "score_at": score_at}
    gate = Gate(**{field: raw[key] for key, field in _GATE.items() if key in raw})
    objectives = int(raw.get("num_objectives") or _ARMO_OBJECTIVES)
    return {"num_labels": objectives, "labels": _labels(raw, objectives), "gate": gate, "score_at": score_at}


def _labels(raw: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """What `id2label` calls the outputs; none where it has transformers' own names, or is about another number."""
    names = {str(key): str(name) for key, name in (raw.get("id2label") or {}).items()}
    found = tuple(names.get(str(i), f"LABEL_{i}") for i in range(outputs))
    if len(names) != outputs or all(name == f"LABEL_{i}" for i, name in enumerate(found)):
        return ()
    if len(set(found)) < outputs or not all(found):
        raise ValueError(f"config.json has id2label = {names}; each output has a name of its own")
    return found


_COUNTS = ("num_hidden_layers", "num_local_experts", "num_experts_per_tok", "gating_n_hidden", "num_objectives")
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads",
          "num_key_value_heads", "head_dim", "sliding_window", "max_position_embeddings", "num_labels",
          "gating_hidden_dim", "original_max_position_embeddings")
_FROM_ZERO = ("initializer_range",)
_POSITIVE = ("rms_norm_eps", "gating_temperature", *_GEMMA2_KEYS, *_ROPE)
_TOKENS = ("bos_token_id", "pad_token_id", "eos_token_id")


def _check_numbers(raw: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key, for a number of config.json that no model has."""
    for key, value in raw.items():
        if value is None:
            continue
        if key in (*_COUNTS, *_SIZES):  # tensors are counted and named before the files are looked at
            most = 4096 if key in _COUNTS else 2**31 - 1
            fine, wanted = type(value) is int and 1 <= value <= most, f"a whole number from 1 to {most:,}"
        elif key in _FROM_ZERO:
            fine, wanted = type(value) in (int, float) and 0 <= value < math.inf, "a number from 0"
        elif key in _POSITIVE:
            fine, wanted = type(value) in (int, float) and 0 < value < math.inf, "a number above 0"
        elif key in _TOKENS:
            ids = value if isinstance(value, list) else [value]
            fine, wanted = all(type(i) is int and 0 <= i < 2**31 for i in ids), "a token id (or a list of stop ids)"
        else:
            continue
        if not fine:
            raise ValueError(f"{key} is {value!r:.80}, which is not {wanted}")


def config_from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
    """Reads a Hugging Face config.json, old or new layout.

    Raises:
      ValueError: for an architecture or a switch that this decoder does not implement, or a number that no model has,
        naming them.
    """
    raw = _resolved(raw)
    name = raw["model_type"]
    family, of_class = FAMILIES[name], _of_class(name)
    for key, known in _ONLY.items():
        if key in raw and raw[key] not in known:
            raise ValueError(f"config.json has {key} = {raw[key]!r}; the {name} decoder here knows {known[0]!r} only")
    key = "hidden_activation" if "hidden_activation" in of_class else "hidden_act"
    if raw[key] not in _ACTIVATIONS:
        raise ValueError(f"config.json has {key} = {raw[key]!r}; the decoder here knows {sorted(_ACTIVATIONS)}")
    ropes = _ropes(raw, of_class)
    windowed = family.windows and (raw["use_sliding_window"] if "use_sliding_window" in of_class else True)
    window = raw.get("sliding_window") if windowed else None
    kinds = raw.get("layer_types") or []
    if "layer_types" not in of_class:
        if window and len(set(kinds)) > 1:
            raise ValueError(f"config.json has layer_types of several kinds, which transformers does not read for "
                             f"{name}: there every layer has the window of {window}. Take the key out, or the window")
        kinds = []
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    if len(full) == raw["num_hidden_layers"]:
        window = None
    eos = raw.get("eos_token_id")
    fields = {field: raw[key] for key, field in {**_KEYS, **family.keys}.items()}
    return DecoderConfig(**{
        **fields, **family.switches, "family": name, "activation": _ACTIVATIONS[raw[key]],
        "kv_heads": raw.get("num_key_value_heads") or raw["num_attention_heads"],
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        "rope": ropes[0], "local_rope": ropes[1] if window and ropes[1] != ropes[0] else None,
        "window": window, "full_layers": full if window else (),
        **_head(raw, family),
        "eos_token_ids": tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    })


def _ropes(raw: Mapping[str, Any], of_class: Mapping[str, Any]) -> list[Rope]:
    """Rotation of the full layers and of those with a window."""
    given = raw["rope_parameters"]
    if "full_attention" in given:
        return [_rope_from_hf(given[kind]) for kind in ("full_attention", "sliding_attention")]
    if (first := raw.get("original_max_position_embeddings")) and "original_max_position_embeddings" in given:
        given = {**given, "original_max_position_embeddings": first}  # which of the two transformers takes
    rope = _rope_from_hf(given)
    if rope.fraction != 1.0 and "partial_rotary_factor" not in of_class["rope_parameters"]:
        raise ValueError(f"config.json has partial_rotary_factor = {rope.fraction}, which transformers does not read "
                         f"for {raw['model_type']}: it rotates all dimensions. Take the key out if that is the model")
    return [rope, rope]


def head_kind(config: DecoderConfig) -> str:
    """Key of `ModelFamily.architectures`."""
    return "causal" if not config.is_classifier else "scores" if config.gate is None else "gated"


def config_to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The config.json that `transformers` loads as the same model, causal or classifier; 4.x keys beside 5.x ones."""
    family, known, eos = FAMILIES[config.family], _of_class(config.family), config.eos_token_ids
    activation = next(key for key, value in _ACTIVATIONS.items() if value == config.activation)
    raw: dict[str, Any] = {
        "architectures": [family.architectures[head_kind(config)]],
        "model_type": config.family,
        **{key: getattr(config, field) for key, field in {**_KEYS, **family.keys}.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "eos_token_id": list(eos) if len(eos) > 1 else next(iter(eos), None),
        "dtype": dtype,
        "torch_dtype": dtype,
        "rope_theta": config.rope.theta,
    }
    rope = _rope_to_hf(config.rope)
    if config.rope.kind != "default":
        raw["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if config.rope.fraction != 1.0:
        raw["partial_rotary_factor"] = config.rope.fraction
    if "full_attention" in known["rope_parameters"]:
        local_rope = config.local_rope or config.rope
        raw["rope_parameters"] = {"full_attention": rope, "sliding_attention": _rope_to_hf(local_rope)}
        raw["rope_local_base_freq"] = local_rope.theta
    else:
        raw["rope_parameters"] = rope
    if config.experts:
        raw["num_experts"] = config.experts  # as transformers 4 calls it in some families
    local, window = config.local_layers, config.window
    if window is None and "layer_types" in known and "use_sliding_window" not in known:
        window = known["sliding_window"]  # transformers needs one, of no layer though it be
    some_have = {
        "hidden_act": activation, "hidden_activation": activation, "attention_bias": False,
        "sliding_window": window, "use_sliding_window": config.window is not None,
        "layer_types": ["sliding_attention" if x else "full_attention" for x in local],
        "max_window_layers": local.index(True) if True in local else config.layers,
    }
    raw |= {key: value for key, value in some_have.items() if key in known}
    if config.is_classifier:
        labels = config.labels or tuple(f"LABEL_{i}" for i in range(config.num_labels))
        raw |= {"id2label": {str(i): label for i, label in enumerate(labels)},
                "label2id": {label: i for i, label in enumerate(labels)}, "num_labels": config.num_labels,
                SCORE_AT: config.score_at}
    if config.gate is not None:
        raw |= {key: getattr(config.gate, field) for key, field in _GATE.items()}
        raw["num_objectives"] = config.num_labels
    return raw
