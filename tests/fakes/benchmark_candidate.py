"""A candidate of `benchmarks.workers` that needs no library."""

import os


def start(settings: dict):
    """Measures as many seconds as `settings` say."""

    def measure(request: dict) -> dict:
        print("output of a library")
        if request["steps"] == 0:
            raise ValueError("no steps")
        if request["steps"] < 0:
            raise KeyError("a crash")
        return {"seconds": [settings["pace"]] * request["steps"]}

    return {"device": os.environ["DEVICE"]}, measure


def refuse(settings: dict):
    """Fails as a library that is not installed."""
    import a_module_that_is_missing  # noqa: F401
