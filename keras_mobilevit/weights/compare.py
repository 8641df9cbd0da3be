"""Compares the weights of a model with those of a file."""

from collections.abc import Mapping

MAX_LISTED = 10  # names of each kind of difference that an error message lists
# Keras's quantized layers and layers with LoRA have variables with these names.
ADAPTER_PREFIXES = ("lora_kernel", "kernel_scale")


def shorten(names: list[str]) -> str:
    """Joins names for a message; of many it lists the first."""
    rest = len(names) - MAX_LISTED
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _likely_cause(differing: list[str], has_mismatches: bool, holds: str) -> str:
    if any(word in name for name in differing for word in ADAPTER_PREFIXES):
        return (
            "Either the model or the file is quantized or has LoRA adapters: load the "
            "weights before `quantize` or `enable_lora`."
        )
    if not has_mismatches and all("auxiliary" in name for name in differing):
        return (
            "Only one of them has the auxiliary head: build the model with "
            "`auxiliary=True`, load the weights, and then remove the head with "
            "`without_auxiliary`."
        )
    return holds or "Is the file for another variant or another number of classes?"


def check_match(
    expected: Mapping[str, tuple],
    found: Mapping[str, tuple],
    path: str,
    holds: str = "",
) -> None:
    """Raises a ValueError with all differences between a model and the file `path`.

    Both are given as shapes by name, and must have the same names and shapes. `holds`
    is a sentence on the file's model, if it is known.
    """
    missing = sorted(set(expected) - set(found))
    unused = sorted(set(found) - set(expected))
    mismatched = [
        f"{name} (model {tuple(expected[name])}, file {tuple(found[name])})"
        for name in sorted(set(expected) & set(found))
        if tuple(expected[name]) != tuple(found[name])
    ]
    problems = [
        f"{kind}: {shorten(names)}"
        for kind, names in (
            ("not in the file", missing),
            ("not in the model", unused),
            ("different shape", mismatched),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit the model, and nothing was loaded. "
            f"{_likely_cause(missing + unused, bool(mismatched), holds)}\n  "
            + "\n  ".join(problems)
        )
